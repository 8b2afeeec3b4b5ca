"""Summed losses over predictions. Logits exist only where a weight is not zero, a chunk at a time.

The gradient is made in the forward, while a chunk's logits are there: 4 V H FLOPs a prediction with a frozen head
(logits and the gradient of the hidden state), 6 V H with a trained one. Sums are kept in the wider of float32 and the
input's type.

Source: logits are never whole, as in Cut Your Losses (arXiv 2411.09009, section 4). Differs: chunks of predictions with
library matmuls instead of a kernel over blocks of the vocabulary, and no gradient is skipped for being small.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from frisket.transfer import to_device
from frisket.types import Predictions


class LossRule(NamedTuple):
    """What one prediction of target t costs, where p is the model's distribution over V tokens.

    Attributes:
        kind: ``cross-entropy``: -log p_t; ``dft``: -p_t log p_t with the factor p_t held fixed (dynamic fine-tuning,
            Wu et al. 2025, arXiv 2508.05629, eq. 9).
        smoothing: s in (1 - s) (-log p_t) + s / V sum_v (-log p_v), cross-entropy only (Szegedy et al. 2016,
            arXiv 1512.00567, section 7; the target keeps its share of the spread part, as in torch).
    """

    kind: Literal["cross-entropy", "dft"] = "cross-entropy"
    smoothing: float = 0.0


CROSS_ENTROPY = LossRule()
LOGITS_BYTES = {"cpu": 1 << 25}
"""Of a chunk in float32, by device: on a CPU a softmax of what its cache holds takes half as long (docs/log.md)."""
OTHER_LOGITS_BYTES = 1 << 30


@dataclass(frozen=True)
class LowRank:
    """A low-rank change of the head: logits gain ``scale * (hidden @ down.T) @ up.T``.

    Attributes:
        down: [rank, hidden].
        up: [vocab, rank].
    """

    down: Tensor
    up: Tensor
    scale: float

    def narrowed(self, hidden: Float[Tensor, "prediction hidden"]) -> Float[Tensor, "prediction rank"]:
        """The hidden states in the low-rank space, scaled."""
        return hidden.to(self.down.dtype) @ self.down.T * self.scale


@dataclass(frozen=True)
class Head:
    """What turns hidden states into logits.

    Attributes:
        weight: [vocab, hidden].
        bias: [vocab] or None.
        scale: factor of the logits (Cohere, Granite).
        softcap: logits are bounded by ``softcap * tanh(logits / softcap)`` (Gemma 2).
        low_rank: an adapter on the head, or None.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None
    low_rank: LowRank | None = None

    def logits(self, hidden: Float[Tensor, "prediction hidden"]) -> Float[Tensor, "prediction vocab"]:
        """Logits in the wider of float32 and the input's type."""
        narrow, up = (None, None) if self.low_rank is None else (self.low_rank.narrowed(hidden), self.low_rank.up)
        return self.bounded(_raw_logits(hidden, self.weight, self.bias, narrow, up, self.scale))

    def bounded(self, raw: Tensor) -> Tensor:
        """Soft-capped logits."""
        return raw if self.softcap is None else self.softcap * torch.tanh(raw / self.softcap)


def summed_loss(
    hidden: Float[Tensor, "place hidden"],
    predictions: Predictions,
    head: Head,
    chunk_tokens: int = 1024,
    rule: LossRule = CROSS_ENTROPY,
) -> Float[Tensor, ""]:
    """Sum of ``weight * loss(target)`` over predictions; not divided by anything.

    Args:
        hidden: last hidden states of the flattened rows.
        chunk_tokens: predictions whose logits exist at one time; the result does not depend on it.
        rule: the loss of one prediction.
    """
    position, target_ids, weights = _on(predictions, hidden.device)
    chosen = hidden.index_select(0, position)
    wide = torch.promote_types(hidden.dtype, torch.float32)
    low = head.low_rank
    narrow, up = (None, None) if low is None else (low.narrowed(chosen), low.up)
    return _SummedLoss.apply(  # pyright: ignore
        chosen, head.weight, head.bias, narrow, up, target_ids, weights.to(wide), head, chunk_tokens, rule
    )


def chunk_of(vocabulary: int, device: torch.device) -> int:
    """Predictions of a chunk where the recipe does not say.

    >>> [chunk_of(vocabulary, torch.device("cpu")) for vocabulary in (4_096, 32_000, 151_936)]
    [2048, 262, 128]
    """
    return min(4096, max(128, LOGITS_BYTES.get(device.type, OTHER_LOGITS_BYTES) // (4 * vocabulary)))


@torch.no_grad()
def token_losses(
    hidden: Float[Tensor, "place hidden"], predictions: Predictions, head: Head, chunk_tokens: int = 1024
) -> Float[Tensor, "prediction"]:
    """``-log p(target)`` of each prediction, unweighted, in float64 on the CPU."""
    position, target_ids, _ = _on(predictions, hidden.device)
    losses = [
        -torch.log_softmax(head.logits(hidden.index_select(0, p)), dim=-1).gather(1, t[:, None])[:, 0].double().cpu()
        for p, t in zip(position.split(chunk_tokens), target_ids.split(chunk_tokens), strict=True)
    ]
    return torch.cat(losses) if losses else torch.zeros(0, dtype=torch.float64)


def _on(predictions: Predictions, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    arrays = (predictions.position, predictions.target_ids, predictions.weights)
    position, target_ids, weights = (to_device(array, device) for array in arrays)
    return position, target_ids, weights


def _raw_logits(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, narrow: Tensor | None, up: Tensor | None, scale: float
) -> Tensor:
    raw = hidden @ weight.T
    if bias is not None:
        raw = raw + bias
    if narrow is not None and up is not None:
        raw = raw + narrow @ up.T
    return raw.to(torch.promote_types(hidden.dtype, torch.float32)) * scale


class _SummedLoss(torch.autograd.Function):
    """Loss and gradients in one pass over chunks; backward only scales them."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, narrow, up, target_ids, weights, head, chunk_tokens, rule):
        wide = torch.promote_types(hidden.dtype, torch.float32)
        loss = torch.zeros((), dtype=wide, device=hidden.device)
        inputs = (hidden, weight, bias, narrow, up)
        d_hidden, d_weight, d_bias, d_narrow, d_up = (
            _room(tensor, wide if number in (1, 2, 4) else None) if needed else None
            for number, (tensor, needed) in enumerate(zip(inputs, ctx.needs_input_grad[:5], strict=True))
        )
        space = _Space(min(chunk_tokens, len(hidden)), weight)
        for start in range(0, len(hidden), chunk_tokens):
            part = slice(start, min(start + chunk_tokens, len(hidden)))
            raw = space.logits(hidden[part], bias, None if narrow is None else narrow[part], up)
            loss_part, d_raw = _chunk(raw, space, target_ids[part], weights[part], head, rule)
            loss += loss_part
            if d_hidden is not None:
                torch.mm(d_raw, weight, out=d_hidden[part])
            if d_weight is not None:
                d_weight += d_raw.T @ hidden[part]
            if d_bias is not None:
                d_bias += d_raw.sum(0, dtype=wide)
            if d_narrow is not None:
                torch.mm(d_raw.to(up.dtype), up, out=d_narrow[part])
            if d_up is not None:
                d_up += d_raw.to(up.dtype).T @ narrow[part]  # pyright: ignore[reportOptionalSubscript]
        ctx.save_for_backward(d_hidden, d_weight, d_bias, d_narrow, d_up)
        ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in inputs]
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        found = [
            None if made is None else (made * grad.to(made.dtype)).to(dtype)
            for made, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return (*found, None, None, None, None, None)


def _room(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Where a gradient is summed over chunks (``dtype`` given) or written chunk by chunk."""
    return torch.empty_like(tensor) if dtype is None else torch.zeros(tensor.shape, dtype=dtype, device=tensor.device)


class _Space:
    """Room for the logits of a chunk, used again by the next: fresh pages would cost more than the softmax.

    Attributes:
        raw: [prediction, vocab] logits, then their gradient, in the type of the matmuls.
        wide: [prediction, vocab] logits in the wider of float32 and that type.
        shares: [prediction, vocab] their softmax.
    """

    def __init__(self, rows: int, weight: Tensor) -> None:
        wide = torch.promote_types(weight.dtype, torch.float32)
        self._weight = weight
        self.raw = weight.new_empty(rows, len(weight))
        self.wide = self.raw if wide == weight.dtype else weight.new_empty(rows, len(weight), dtype=wide)
        self.shares = torch.empty_like(self.wide)

    def logits(self, hidden: Tensor, bias: Tensor | None, narrow: Tensor | None, up: Tensor | None) -> Tensor:
        """Logits before scale and soft-cap, in the wide type."""
        raw = torch.mm(hidden, self._weight.T, out=self.raw[: len(hidden)])
        if bias is not None:
            raw += bias
        if narrow is not None and up is not None:
            raw += narrow @ up.T
        return self.wide[: len(hidden)].copy_(raw)


def _chunk(
    logits: Tensor, space: _Space, target_ids: Tensor, weights: Tensor, head: Head, rule: LossRule
) -> tuple[Tensor, Tensor]:
    """Weighted loss of a chunk of logits, and its gradient with respect to the logits before scale and soft-cap."""
    targets, rows = target_ids[:, None], slice(0, len(target_ids))
    bounded = head.bounded(logits.mul_(head.scale) if head.scale != 1 else logits)
    shares = torch.softmax(bounded, dim=-1, out=space.shares[rows])
    # The largest share is at least 1 / vocab, so its logarithm is exact where a target's own would be lost.
    log_total = bounded.amax(-1) - shares.amax(-1).log()
    losses = log_total - bounded.gather(1, targets)[:, 0]
    if rule.kind == "dft":
        weights = weights * shares.gather(1, targets)[:, 0]
    if rule.smoothing:
        losses = (1 - rule.smoothing) * losses + rule.smoothing * (log_total - bounded.mean(-1))
        shares -= rule.smoothing / bounded.shape[1]
    shares.scatter_add_(1, targets, shares.new_full((len(target_ids), 1), rule.smoothing - 1.0))
    shares *= (weights * head.scale)[:, None]
    if head.softcap is not None:
        shares *= 1 - (bounded / head.softcap) ** 2
    return (losses * weights).sum(), space.raw[rows].copy_(shares)
