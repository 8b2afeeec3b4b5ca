"""Tiny random models of many families, and random samples: what the equality tests run on."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from frisket.hf.attention import NAME
from frisket.types import Provenance, Sequence

VOCAB = 64
_SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FAMILIES = {
    "llama": {},
    "qwen3": {},
    "mistral": {"sliding_window": 5},
    "gemma2": {
        "sliding_window": 6,
        "query_pre_attn_scalar": 8,
        "final_logit_softcapping": 3.0,
        "attn_logit_softcapping": 2.0,
    },
    "gpt_oss": {
        "sliding_window": 5,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "granite": {"logits_scaling": 3.0, "attention_multiplier": 0.3},
    "cohere": {"logit_scale": 0.25},
}


def tiny(family: str = "llama", dtype: torch.dtype = torch.float64, seed: int = 0, **changes) -> PreTrainedModel:
    """A 2-layer model of a family, its norms in the given type where that is float64."""
    torch.manual_seed(seed)
    config = CONFIG_MAPPING[family](**{**_SHAPE, **FAMILIES.get(family, {}), **changes})
    experts = {"experts_implementation": "eager"} if family == "gpt_oss" and dtype == torch.float64 else {}
    model = AutoModelForCausalLM.from_config(config, attn_implementation=NAME, **experts).to(dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.2)
            elif "sink" in name or name.endswith("bias"):
                parameter.normal_(0, 0.5)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    if dtype == torch.float64:
        _exact_norms(model)
    return model.train()


class _ExactNorm(nn.Module):
    """RMS norm in the input's own type; Hugging Face's computes in float32."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.weight = norm.weight
        self.epsilon = getattr(norm, "variance_epsilon", getattr(norm, "eps", 1e-6))
        self.offset = 1.0 if "Gemma" in type(norm).__name__ else 0.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.epsilon) * (self.weight + self.offset)


def _exact_norms(model: nn.Module) -> None:
    for _, parent in list(model.named_modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__.endswith("RMSNorm"):
                setattr(parent, name, _ExactNorm(child))


def sample(rng: np.random.Generator, length: int, name: str) -> Sequence:
    """A random sequence, all of it written by the assistant."""
    return Sequence(
        name,
        0,
        rng.integers(3, VOCAB, length).astype(np.int32),
        np.full(length, Provenance.ASSISTANT, np.uint8),
        np.zeros(length, np.int32),
        np.zeros(length, np.uint32),
        np.full(length, np.nan),
    )


def samples(seed: int, lengths: list[int]) -> list[Sequence]:
    """Random sequences of given lengths."""
    rng = np.random.default_rng(seed)
    return [sample(rng, length, f"s{i}") for i, length in enumerate(lengths)]


def gradients(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Gradients of all parameters that have one."""
    return ((name, p.grad) for name, p in model.named_parameters() if p.grad is not None)


def tiny_gpt2(dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A family with Conv1D layers (weights as [in, out]), learned positions and a tied head."""
    torch.manual_seed(0)
    config = CONFIG_MAPPING["gpt2"](
        vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2
    )
    return AutoModelForCausalLM.from_config(config, attn_implementation=NAME).to(dtype).train()
