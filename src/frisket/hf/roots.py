"""A model's root in the model's own forward and in ``generate``: in front of every prompt, right of the padding."""

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from frisket.adapt.roots import root_of
from frisket.errors import UnsupportedError
from frisket.hf.attention import put_in_front
from frisket.hf.load import layer_counts


def with_root(model: PreTrainedModel, inputs: dict[str, Tensor]) -> dict[str, Any]:
    """What the model itself takes so that its root stands in front of each prompt; the inputs as they are without one.

    The root lies between the padding and the prompt, so that a sliding window, which transformers counts in places and
    not in positions, reaches as far as in a row without padding.

    Args:
        inputs: left-padded ``input_ids``, ``attention_mask`` and ``position_ids`` [row, token], on the model's device.

    Returns:
        ``inputs_embeds`` [row, virtual + token, hidden] with mask and positions, and a cache that puts the keys and
        values of a prefix in their places.
    """
    root = root_of(model)
    if root is None:
        return dict(inputs)
    words = model.get_input_embeddings()(inputs["input_ids"])
    vectors = root.vectors(words)
    paddings = (inputs["attention_mask"] == 0).sum(1).tolist()
    rows = [torch.cat([row[:padding], vectors, row[padding:]]) for row, padding in zip(words, paddings, strict=True)]
    mask = torch.cat([inputs["attention_mask"], inputs["attention_mask"].new_ones(len(words), root.tokens)], dim=1)
    for row, padding in enumerate(paddings):
        mask[row, padding:] = 1
    prepared = {
        "inputs_embeds": torch.stack(rows),
        "attention_mask": mask,
        "position_ids": (mask.cumsum(1) - 1).clamp(min=0),
    }
    prefix = root.keys_and_values(words)
    return prepared if prefix is None else prepared | {"past_key_values": _PrefixCache(model, prefix, paddings)}


def check_layers(model: PreTrainedModel) -> None:
    """Refuse a root that some layers of the model would not see as PEFT means it.

    Raises:
        UnsupportedError: keys and values, where layers have none or take those of other layers.
    """
    root = root_of(model)
    if root is None or root.keys is None:
        return
    recurrent = layer_counts(model.config).recurrent
    shared = getattr(model.config.get_text_config(), "num_kv_shared_layers", 0)
    if recurrent or shared:
        told = f"{recurrent} recurrent layers, which have no keys and values" if recurrent else ""
        told = told or f"{shared} layers that take keys and values from others"
        raise UnsupportedError(
            f"adapt.method=prefix gives every layer keys and values, and this model has {told}.\n"
            "Use adapt.method=prompt, or adapt.method=lora."
        )


class _PrefixCache(DynamicCache):
    """A cache whose first keys and values get those of the prefix in the root's places of every row."""

    def __init__(self, model: PreTrainedModel, prefix: Tensor, starts: list[int]) -> None:
        super().__init__(config=model.config)
        self._prefix = prefix
        self._starts = starts
        self._begun: set[int] = set()

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Take the keys and values of new tokens; the signature is transformers'."""
        if layer_idx not in self._begun:
            self._begun.add(layer_idx)
            key, value = self._prefix[layer_idx]
            key_states, value_states = self._begin(key_states, key), self._begin(value_states, value)
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)

    def _begin(self, states: Tensor, own: Tensor) -> Tensor:
        """[row, head, token, width] with what stands in the root's places, which begin where the padding ends."""
        rows = [
            torch.cat([row[:, :start], put_in_front(row[None, :, start:], own)[0]], dim=1)
            for row, start in zip(states, self._starts, strict=True)
        ]
        return torch.stack(rows)
