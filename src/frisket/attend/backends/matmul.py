"""Attention as two matmuls and a softmax, with everything that model families add to it."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable


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
    if knobs.is_plain:
        out = _Plain.apply(folded, key, value, ~mask, queries, knobs.scaling)  # pyright: ignore
        return out.view(batch, query_heads, queries, -1)
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


class _Plain(torch.autograd.Function):
    """Masked softmax attention, whose backward keeps the softmax alone and makes no pass for mask, scale or type.

    The scale is part of the products, so scores are rounded once. Torch's softmax of 16 bits computes in float32 inside
    and rounds its result once, as the product after it would.
    """

    @staticmethod
    def forward(ctx, folded, key, value, hidden, queries, scaling):
        scores = _product(folded, key.transpose(-1, -2), scaling)
        scores.view(*scores.shape[:2], -1, queries, scores.shape[-1]).masked_fill_(hidden, float("-inf"))
        shares = torch.softmax(scores, dim=-1)
        ctx.save_for_backward(folded, key, value, shares)
        ctx.scaling = scaling
        return shares @ value

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        folded, key, value, shares = ctx.saved_tensors
        d_value = shares.transpose(-1, -2) @ grad
        d_shares = grad @ value.transpose(-1, -2)
        d_scores = torch.ops.aten._softmax_backward_data(d_shares, shares, -1, shares.dtype)
        d_folded = _product(d_scores, key, ctx.scaling)
        d_key = _product(d_scores.transpose(-1, -2), folded, ctx.scaling)
        return d_folded, d_key, d_value, None, None, None


def _product(left: Tensor, right: Tensor, factor: float) -> Tensor:
    """``factor * left @ right`` of [batch, head, ...], without a pass for the factor."""
    batch, heads, rows, _ = left.shape
    nothing = left.new_empty(batch * heads, rows, right.shape[-1])
    found = torch.baddbmm(nothing, left.flatten(0, 1), right.flatten(0, 1), beta=0, alpha=factor)
    return found.view(batch, heads, rows, -1)
