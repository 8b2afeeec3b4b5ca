"""Attention as two matmuls and a softmax, with everything that model families add to it."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True)
class Knobs:
    """What a layer says about its attention.

    Attributes:
        scaling: factor of the scores.
        window: a query sees keys less than this many positions back; None for all.
        softcap: scores are bounded by ``softcap * tanh(scores / softcap)`` (Gemma 2).
        sinks: [query_head] logits that take part in the softmax and vote for nothing (gpt-oss).
    """

    scaling: float
    window: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None

    @property
    def is_plain(self) -> bool:
        """True where a stock kernel computes this layer, windows aside."""
        return self.softcap is None and self.sinks is None


def masked_attention(
    query: Float[Tensor, "batch query_head query width"],
    key: Float[Tensor, "batch head key width"],
    value: Float[Tensor, "batch head key value_width"],
    mask: Bool[Tensor, "#batch #head #group query key"],
    knobs: Knobs,
) -> Float[Tensor, "batch query_head query value_width"]:
    """Attention where ``mask`` is True.

    Grouped-query attention folds the queries that share a key head into one matmul, so keys are never repeated.
    The softmax is computed in the wider of float32 and the input's type.
    """
    batch, query_heads, queries, width = query.shape
    heads, keys = key.shape[1], key.shape[2]
    folded = query.reshape(batch, heads, query_heads // heads * queries, width)
    scores = (folded @ key.transpose(-1, -2)).view(batch, heads, -1, queries, keys) * knobs.scaling
    if knobs.softcap is not None:
        scores = knobs.softcap * torch.tanh(scores / knobs.softcap)
    scores = scores.masked_fill(~mask, float("-inf"))
    wide = torch.promote_types(query.dtype, torch.float32)
    if knobs.sinks is None:
        shares = torch.softmax(scores, dim=-1, dtype=wide)
    else:
        sinks = knobs.sinks.view(1, heads, -1, 1, 1).expand(batch, -1, -1, queries, 1)
        shares = torch.softmax(torch.cat([scores, sinks.to(scores.dtype)], dim=-1), dim=-1, dtype=wide)[..., :-1]
    out = shares.to(value.dtype).reshape(batch, heads, -1, keys) @ value
    return out.view(batch, query_heads, queries, -1)
