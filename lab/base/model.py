"""The base model's architecture, its attention for training and its export."""

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AttentionInterface, GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from .tokenizer import PAD, ROLE_TOKENS, VOCABULARY

CONTEXT = 32_768


def explicit_attention(
    module: nn.Module,
    query: Float[Tensor, "row head token width"],
    key: Float[Tensor, "row group token width"],
    value: Float[Tensor, "row group token width"],
    attention_mask: None,
    *,
    scaling: float,
    **unused: object,
) -> tuple[Float[Tensor, "row token head width"], None]:
    """Attend causally by plain matrix products, faster on a CPU than the flash kernel up to 512 tokens in bf16."""
    shared = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(shared, dim=1), value.repeat_interleave(shared, dim=1)
    scores = query @ key.transpose(-1, -2) * scaling
    future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    weights = scores.masked_fill(future, -1e4).softmax(-1).to(value.dtype)
    return (weights @ value).transpose(1, 2).contiguous(), None


AttentionInterface.register("explicit", explicit_attention)


def create(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """Create the model in float32 with random weights."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        num_hidden_layers=4,
        intermediate_size=640,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        tie_word_embeddings=True,
        max_position_embeddings=CONTEXT,
        rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    model.set_attn_implementation("explicit")
    return model


@torch.no_grad()
def renew_unread_rows(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, seed: int) -> None:
    """Draw the embeddings of the tokens that no training text holds as if they were ordinary trained rows.

    Training never reads the role tokens and pushes their rows, as outputs, all the same way. Afterwards each is drawn
    from the normal distribution of the trained rows (mean and deviation per coordinate): alike in scale, unlikely
    as outputs, and distinct from each other, so that an adapter on the linear layers alone can tell them apart.
    """
    rows = model.get_input_embeddings().weight
    unread = torch.tensor(tokenizer.convert_tokens_to_ids([PAD, *ROLE_TOKENS]))
    trained = torch.ones(len(rows), dtype=torch.bool)
    trained[unread] = False
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(len(unread), rows.shape[1], generator=generator)
    rows[unread] = rows[trained].mean(0) + rows[trained].std(0) * noise


def export(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the model in bf16, its tokenizer and its generation settings."""
    copy = LlamaForCausalLM(model.config)
    copy.load_state_dict(model.state_dict())
    renew_unread_rows(copy, tokenizer, seed=0)
    copy.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=False,
    )
    copy.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for path in folder.iterdir():
        path.chmod(0o644)  # safetensors writes for the owner only, and a package keeps that
