"""The seam: one attention function, registered with transformers under one name, without a mask function.

Transformers then builds no mask at all, and every word given to the backbone travels to our function. The layout of the
rows must be among them: without it the function raises, because plain causal attention over a packed row is a leak.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel

from frisket.attend.backends import dense, grouped
from frisket.attend.backends.matmul import Knobs
from frisket.errors import CheckError, UnsupportedError
from frisket.types import Rows

NAME = "frisket"
OWN = "sdpa"
EAGER = "eager"
BACKENDS = {"grouped": grouped.prepare, "sdpa": dense.prepare}
# What models hand to every attention function and what changes nothing here: positions are in the keys already.
_HARMLESS = frozenset(
    {
        "position_ids",
        "use_cache",
        "cache_position",
        "output_attentions",
        "layer_idx",
        "cu_seq_lens_q",
        "cu_seq_lens_k",
        "max_length_q",
        "max_length_k",
        "seq_idx",
        "position_embeddings",
    }
)


class Layout(Protocol):
    """Rows, ready for one backend."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, knobs: Knobs) -> Tensor:
        """[row, token, head, width] from [row, head, token, width]."""
        ...


def prepare(rows: Rows, backend: str, device: torch.device) -> Layout:
    """Make the layout of a micro-batch for one backend (``auto`` is ``grouped``)."""
    return BACKENDS["grouped" if backend == "auto" else backend](rows, device)


@dataclass(frozen=True)
class Prefixed:
    """A layout of rows that begin with virtual tokens whose keys and values are given for every layer.

    Attributes:
        layout: of the whole rows.
        prefix: [layer, key or value, head, virtual, width].
    """

    layout: Layout
    prefix: Tensor

    def attend(self, query: Tensor, key: Tensor, value: Tensor, knobs: Knobs, layer: int) -> Tensor:
        """Attention of one layer; the keys and values that it computed for the virtual tokens are not used."""
        own_key, own_value = self.prefix[layer]
        return self.layout.attend(query, put_in_front(key, own_key), put_in_front(value, own_value), knobs)


def put_in_front(states: Tensor, own: Tensor) -> Tensor:
    """Put the keys or values of virtual tokens in the first places of every row.

    Args:
        states: [row, head, token, width] as a layer computed them.
        own: [head, virtual, width] what stands there instead.

    Raises:
        UnsupportedError: the layer's keys or values have another shape.
    """
    heads, virtual, width = own.shape
    if (states.shape[1], states.shape[3]) != (heads, width):
        raise UnsupportedError(
            f"adapt.method=prefix: a layer has {states.shape[1]} heads of width {states.shape[3]} for keys or values, "
            f"and the prefix has {heads} of width {width} for all layers.\n"
            "Use adapt.method=prompt, or adapt.method=lora."
        )
    return torch.cat([own.expand(len(states), -1, -1, -1), states[:, :, virtual:]], dim=2)


class CallCount:
    """How often each attention module came through the seam."""

    def __init__(self) -> None:
        self.calls: dict[torch.nn.Module, int] = {}


_COUNT: list[CallCount] = []


@contextmanager
def counted() -> Iterator[CallCount]:
    """Count the calls of the attention function while the context lasts."""
    count = CallCount()
    _COUNT.append(count)
    try:
        yield count
    finally:
        _COUNT.remove(count)


def _attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    is_causal: bool | None = None,
    rows: Layout | Prefixed | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it; the signature is theirs, ``rows`` is ours."""
    if rows is None:
        raise CheckError(
            f"{type(module).__name__} did not pass on the layout of the rows: its attention would run across samples."
        )
    unknown = {
        name for name, value in others.items() if name not in _HARMLESS and value is not None and value is not False
    }
    if attention_mask is not None:
        unknown.add("attention_mask")
    if unknown:
        raise UnsupportedError(
            f"{type(module).__name__} hands {sorted(unknown)} to attention, which frisket does not honour."
        )
    if is_causal is False or getattr(module, "is_causal", True) is False:
        raise UnsupportedError(f"{type(module).__name__} is not causal.")
    if dropout:
        raise UnsupportedError("attention dropout is not 0: rows would not equal their samples.")
    for count in _COUNT:
        count.calls[module] = count.calls.get(module, 0) + 1
    knobs = Knobs(query.shape[-1] ** -0.5 if scaling is None else scaling, sliding_window, softcap, s_aux)
    if isinstance(rows, Prefixed):
        return rows.attend(query, key, value, knobs, int(module.layer_idx)), None  # pyright: ignore[reportArgumentType]
    return rows.attend(query, key, value, knobs), None


AttentionInterface.register(NAME, _attention)


def supports_sdpa(model: PreTrainedModel) -> bool:
    """Whether the family has an SDPA form (gpt-oss has not: its sinks need the softmax itself)."""
    return bool(model._supports_sdpa)


@contextmanager
def own_attention(model: PreTrainedModel, name: str | None = None) -> Iterator[None]:
    """Let the model use one of transformers' own attention functions (its best by default) while the context lasts."""
    before = model.config._attn_implementation
    model.set_attn_implementation(name or (OWN if supports_sdpa(model) else EAGER))
    try:
        yield
    finally:
        model.set_attn_implementation(before)  # pyright: ignore[reportArgumentType]
