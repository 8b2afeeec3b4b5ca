"""Decoding without `generate`, for models whose `generate` takes no input vectors: nothing is cached."""

import inspect
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import LogitsProcessorList, PreTrainedModel, TemperatureLogitsWarper, TopPLogitsWarper

from frisket.hf.roots import with_root


def takes_vectors(model: PreTrainedModel) -> bool:
    """Whether `generate` may be given input vectors, by the question that transformers itself asks."""
    return "inputs_embeds" in inspect.signature(model.prepare_inputs_for_generation).parameters  # pyright: ignore


def decode(
    model: PreTrainedModel,
    inputs: dict[str, Tensor],
    *,
    new_tokens: int,
    stop_ids: Sequence[int],
    pad_id: int,
    temperature: float,
    top_p: float,
    on_token: Callable[[Tensor], None],
) -> Int[Tensor, "row new"]:
    """Continue left-padded prompts, with the model's root in front of each.

    The whole row is computed again for every token, so that layers of any kind need no cache; the tokens are those that
    `generate` would choose, random ones too.

    Args:
        inputs: left-padded ``input_ids``, ``attention_mask`` and ``position_ids`` [row, token], on the model's device.
        temperature: 0 for the most likely token.
        on_token: is given the newest tokens [row].
    """
    warpers = LogitsProcessorList()
    if temperature not in (0, 1):
        warpers.append(TemperatureLogitsWarper(temperature))
    if temperature and top_p < 1:
        warpers.append(TopPLogitsWarper(top_p))
    ids, mask, start = inputs["input_ids"], inputs["attention_mask"], inputs["input_ids"].shape[1]
    stops = torch.tensor(list(stop_ids), dtype=ids.dtype, device=ids.device)
    is_open = torch.ones(len(ids), dtype=torch.bool, device=ids.device)
    while ids.shape[1] - start < new_tokens and is_open.any():
        scores = warpers(ids, _last_logits(model, ids, mask))
        chosen = torch.multinomial(scores.softmax(-1), 1)[:, 0] if temperature else scores.argmax(-1)
        chosen = torch.where(is_open, chosen, pad_id)
        on_token(chosen)
        is_open &= ~torch.isin(chosen, stops)
        ids, mask = torch.cat([ids, chosen[:, None]], dim=1), torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
    return ids[:, start:]


def _last_logits(model: PreTrainedModel, ids: Tensor, mask: Tensor) -> Tensor:
    """[row, vocab] in float32."""
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
    taken = with_root(model, inputs)
    if "logits_to_keep" in inspect.signature(type(model).forward).parameters:
        taken["logits_to_keep"] = 1
    return model(**taken, use_cache="past_key_values" in taken).logits[:, -1].float()
