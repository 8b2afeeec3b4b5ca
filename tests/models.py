"""Tiny random models of the families that people train, and random samples: what the equality tests run on."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from frisket.hf.attention import NAME
from frisket.hf.load import is_mixture, switch_off_dropout
from frisket.types import Provenance, Sequence

VOCAB = 64
SHAPE = {
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
_SLIDING, _FULL = "sliding_attention", "full_attention"
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
_TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
_DELTA = {  # gated delta net: three layers of it, then one of attention
    "num_hidden_layers": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}


@dataclass(frozen=True)
class Family:
    """A family at reduced depth, with its real kinds of layers.

    Attributes:
        label: what people call it.
        kind: ``model_type`` of its text configuration in transformers.
        config: what differs from ``SHAPE``.
        layers: what its layers are, in words.
        outer: configuration around the text's, with its own ``model_type``, where the model also has other towers.
    """

    label: str
    kind: str
    layers: str
    config: Mapping[str, Any] = field(default_factory=dict)
    outer: Mapping[str, Any] = field(default_factory=dict)


FAMILIES = {
    "llama": Family(
        "Llama 3",
        "llama",
        "full attention, scaled rotary frequencies",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    "qwen2": Family("Qwen2.5", "qwen2", "full attention with q, k, v biases"),
    "qwen3": Family("Qwen3", "qwen3", "full attention with q and k norms"),
    "qwen3_5": Family(
        "Qwen3.5",
        "qwen3_5_text",
        "3 gated delta net : 1 gated full attention, partial rotary",
        {
            **_DELTA,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e7,
                "partial_rotary_factor": 0.5,
                "mrope_section": [1, 1, 0],
                "mrope_interleaved": True,
            },
        },
    ),
    "gemma2": Family(
        "Gemma 2",
        "gemma2",
        "1 sliding : 1 full attention, soft-capped scores and logits",
        {
            "sliding_window": 6,
            "query_pre_attn_scalar": 8,
            "final_logit_softcapping": 3.0,
            "attn_logit_softcapping": 2.0,
        },
    ),
    "gemma3": Family(
        "Gemma 3 (text)",
        "gemma3_text",
        "5 sliding : 1 full attention, two rotary bases, q and k norms",
        {"num_hidden_layers": 6, "sliding_window": 5, "query_pre_attn_scalar": 8},
    ),
    "gemma4": Family(
        "Gemma 4 E2B (text)",
        "gemma4_text",
        "2 sliding : 1 full attention with wider heads, per-layer inputs, keys and values shared by the last layers",
        {
            "num_hidden_layers": 6,
            "layer_types": [_SLIDING, _SLIDING, _FULL] * 2,
            "sliding_window": 5,
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": VOCAB,
            "num_kv_shared_layers": 3,
            "use_double_wide_mlp": True,
            "global_head_dim": 16,
            "final_logit_softcapping": 3.0,
        },
    ),
    "gemma4_moe": Family(
        "Gemma 4 26B-A4B (text)",
        "gemma4_text",
        "2 sliding : 1 full attention with wider heads whose keys are the values, experts beside the dense block",
        {
            "num_hidden_layers": 3,
            "layer_types": [_SLIDING, _SLIDING, _FULL],
            "sliding_window": 5,
            "hidden_size_per_layer_input": 0,
            "enable_moe_block": True,
            "num_experts": 4,
            "top_k_experts": 2,
            "moe_intermediate_size": 16,
            "attention_k_eq_v": True,
            "num_global_key_value_heads": 1,
            "global_head_dim": 16,
            "final_logit_softcapping": 3.0,
        },
    ),
    "mistral": Family("Mistral", "mistral", "sliding attention", {"sliding_window": 5}),
    "phi3": Family(
        "Phi-4",
        "phi3",
        "full attention, fused qkv_proj and gate_up_proj, partial rotary",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 250000.0, "partial_rotary_factor": 0.75}},
    ),
    "gpt_oss": Family(
        "gpt-oss",
        "gpt_oss",
        "1 sliding : 1 full attention with sinks and biases, experts",
        {"sliding_window": 5, "num_local_experts": 4, "num_experts_per_tok": 2, "layer_types": [_SLIDING, _FULL]},
    ),
    "qwen3_moe": Family(
        "Qwen3-MoE", "qwen3_moe", "full attention with q and k norms, experts", {"num_experts": 4, **_EXPERTS}
    ),
    "qwen3_5_moe": Family(
        "Qwen3.5-MoE",
        "qwen3_5_moe_text",
        "3 gated delta net : 1 gated full attention, experts and a shared one",
        {**_DELTA, "num_experts": 4, "shared_expert_intermediate_size": 16, **_EXPERTS},
    ),
    "smollm3": Family(
        "SmolLM3", "smollm3", "full attention, every fourth layer without positions", {"num_hidden_layers": 4}
    ),
    "olmo2": Family("OLMo 2", "olmo2", "full attention, norms behind the blocks"),
    "olmo3": Family("OLMo 3", "olmo3", "3 sliding : 1 full attention", {"num_hidden_layers": 4, "sliding_window": 5}),
    "glm4": Family(
        "GLM-4",
        "glm4",
        "full attention, partial interleaved rotary, sandwich norms",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}},
    ),
    "granite": Family(
        "Granite 3",
        "granite",
        "full attention, multipliers",
        {"logits_scaling": 3.0, "attention_multiplier": 0.3, "embedding_multiplier": 2.0, "residual_multiplier": 0.5},
    ),
    "granite4": Family(
        "Granite 4",
        "granitemoehybrid",
        "Mamba 2 and full attention without positions, experts and a shared one",
        {
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "layer_types": ["mamba", "attention"],
            "mamba_n_heads": 8,
            "mamba_d_head": 8,
            "mamba_n_groups": 1,
            "mamba_d_state": 8,
            "mamba_chunk_size": 32,
            "shared_intermediate_size": 16,
        },
    ),
    "cohere": Family("Command R", "cohere", "full attention, parallel blocks, scaled logits", {"logit_scale": 0.25}),
    "cohere2": Family(
        "Command A",
        "cohere2",
        "3 sliding : 1 full attention without positions, parallel blocks",
        {"num_hidden_layers": 4, "sliding_window": 5, "logit_scale": 0.25},
    ),
    "deepseek_v3": Family(
        "DeepSeek-V3",
        "deepseek_v3",
        "latent attention (values narrower than keys), a dense layer, then experts and a shared one",
        {
            "num_hidden_layers": 3,
            "num_key_value_heads": 4,
            "first_k_dense_replace": 1,
            "n_routed_experts": 4,
            "n_group": 2,
            "topk_group": 1,
            "q_lora_rank": 16,
            "kv_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 16,
            "v_head_dim": 8,
            "head_dim": 8,
            **_EXPERTS,
        },
    ),
    "glm4_moe": Family(
        "GLM-4.5",
        "glm4_moe",
        "full attention with q and k norms, a dense layer, then experts and a shared one",
        {
            "first_k_dense_replace": 1,
            "n_routed_experts": 4,
            "n_group": 1,
            "topk_group": 1,
            "use_qk_norm": True,
            **_EXPERTS,
        },
    ),
    "mixtral": Family(
        "Mixtral", "mixtral", "full attention, experts", {"num_local_experts": 4, "num_experts_per_tok": 2}
    ),
    "seed_oss": Family("Seed-OSS", "seed_oss", "full attention with q, k, v biases"),
    "falcon_h1": Family(
        "Falcon-H1",
        "falcon_h1",
        "Mamba 2 and full attention side by side in each layer",
        {
            "mamba_d_ssm": 32,
            "mamba_n_heads": 4,
            "mamba_d_head": 8,
            "mamba_n_groups": 1,
            "mamba_d_state": 8,
            "mamba_chunk_size": 32,
        },
    ),
    "nemotron_h": Family(
        "Nemotron-H",
        "nemotron_h",
        "layers of Mamba 2, of experts, of full attention, of a dense block",
        {
            "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"],
            "num_hidden_layers": 4,
            "mamba_num_heads": 8,
            "mamba_head_dim": 8,
            "ssm_state_size": 8,
            "n_groups": 1,
            "chunk_size": 32,
            "n_routed_experts": 4,
            "moe_shared_expert_intermediate_size": 16,
            "n_group": 1,
            "topk_group": 1,
            **_EXPERTS,
        },
    ),
    "lfm2": Family(
        "LFM2", "lfm2", "short convolutions and full attention", {"layer_types": ["conv", "full_attention"]}
    ),
}
FAMILIES["gemma3_image"] = Family(
    "Gemma 3 (text of the model that sees)",
    "gemma3_text",
    "those of Gemma 3; a vision tower that no text reaches",
    FAMILIES["gemma3"].config,
    {
        "model_type": "gemma3",
        "vision_config": {**_TOWER, "image_size": 16, "patch_size": 8},
        "mm_tokens_per_image": 1,
        "image_token_index": 60,
        "boi_token_index": 61,
        "eoi_token_index": 62,
    },
)
FAMILIES["gemma4_image"] = Family(
    "Gemma 4 E2B (text of the model that sees)",
    "gemma4_text",
    "those of Gemma 4; a vision tower that no text reaches",
    FAMILIES["gemma4"].config,
    {
        "model_type": "gemma4",
        "vision_config": {**_TOWER, "num_key_value_heads": 4, "head_dim": 8, "position_embedding_size": 16},
        "audio_config": None,
        "image_token_id": 60,
        "boi_token_id": 61,
        "eoi_token_id": 62,
        "audio_token_id": 59,
        "video_token_id": 58,
    },
)
REFUSED = {
    "llama4": Family(
        "Llama 4",
        "llama4_text",
        "3 chunked : 1 full attention without positions, experts",
        {"num_hidden_layers": 4, "num_local_experts": 4, "num_experts_per_tok": 1, "intermediate_size_mlp": 48},
    ),
    "deepseek_v32": Family("DeepSeek-V3.2", "deepseek_v32", "latent attention to the tokens that an indexer chooses"),
    "stablelm": Family("StableLM 2", "stablelm", "full attention", {"num_key_value_heads": 4}),
}
PLAIN = ("llama", "qwen3", "mistral", "gemma2", "gpt_oss", "granite", "cohere")
"""Families of two layers of attention: what the tests of single parts run on."""


def configuration(family: str, **changes: Any) -> Any:
    """The configuration of a family, with some of its text's fields changed."""
    known = FAMILIES.get(family) or REFUSED.get(family) or Family(family, family, "")
    text = SHAPE | dict(known.config) | changes
    if not known.outer:
        return CONFIG_MAPPING[known.kind](**text)
    outer = {name: value for name, value in known.outer.items() if name != "model_type"}
    return CONFIG_MAPPING[known.outer["model_type"]](text_config={"model_type": known.kind, **text}, **outer)


def tiny(family: str = "llama", dtype: torch.dtype = torch.float64, seed: int = 0, **changes) -> PreTrainedModel:
    """A small model of a family on frisket's seam; where the type is float64, all of it computes in float64."""
    torch.manual_seed(seed)
    model = randomise(AutoModelForCausalLM.from_config(configuration(family, **changes), attn_implementation=NAME))
    model.to(dtype)
    if dtype == torch.float64:
        compute_in_float64(model)
    return model.train()


def randomise(model: PreTrainedModel) -> PreTrainedModel:
    """Weights large enough that every part of the model matters; no dropout."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.2)
            elif "sink" in name or name.endswith("bias"):
                parameter.normal_(0, 0.5)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    switch_off_dropout(model)
    return model


class Float64(TorchFunctionMode):
    """Leaves float64 tensors float64 where a model's code asks for float32 (norms, softmaxes, routers, recurrences)."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if args and isinstance(args[0], torch.Tensor) and args[0].dtype == torch.float64:
            if func is torch.Tensor.float:
                return args[0]
            args = tuple(torch.float64 if value is torch.float32 else value for value in args)
            kwargs = {name: torch.float64 if value is torch.float32 else value for name, value in kwargs.items()}
        if func is torch.Tensor.__setitem__ and isinstance(args[2], torch.Tensor):  # into a float32 one (FourierFT)
            args = (*args[:2], args[2].to(args[0].dtype))
        return func(*args, **kwargs)


def compute_in_float64(model: PreTrainedModel) -> None:
    """Let every forward of a float64 model compute in float64 throughout, by transformers' own code."""
    if is_mixture(model):
        model.set_experts_implementation("eager")  # its grouped matmul has no float64
    open_modes: list[Float64] = []

    def enter(*_: object) -> None:
        open_modes.append(Float64())
        open_modes[-1].__enter__()

    def leave(*_: object) -> None:
        open_modes.pop().__exit__(None, None, None)

    for module in {model, model.base_model}:
        module.register_forward_pre_hook(enter, prepend=True)
        module.register_forward_hook(leave, always_call=True)


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
