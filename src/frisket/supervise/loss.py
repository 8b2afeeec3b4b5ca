"""Summed cross-entropy over predictions. Logits exist only where a weight is not zero, a chunk at a time.

The gradient is made in the forward, while a chunk's logits are there: 4 V H FLOPs a prediction with a frozen head
(logits and the gradient of the hidden state), 6 V H with a trained one. Sums are kept in the wider of float32 and the
input's type.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from frisket.types import Predictions


@dataclass(frozen=True)
class Head:
    """What turns hidden states into logits.

    Attributes:
        weight: [vocab, hidden].
        bias: [vocab] or None.
        scale: factor of the logits (Cohere, Granite).
        softcap: logits are bounded by ``softcap * tanh(logits / softcap)`` (Gemma 2).
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def logits(self, hidden: Float[Tensor, "prediction hidden"]) -> Float[Tensor, "prediction vocab"]:
        """Logits in the wider of float32 and the input's type."""
        return self.bounded(_raw_logits(hidden, self.weight, self.bias, self.scale))

    def bounded(self, raw: Tensor) -> Tensor:
        """Soft-capped logits."""
        return raw if self.softcap is None else self.softcap * torch.tanh(raw / self.softcap)


def summed_loss(
    hidden: Float[Tensor, "place hidden"], predictions: Predictions, head: Head, chunk_tokens: int = 1024
) -> Float[Tensor, ""]:
    """Sum of ``weight * -log p(target)`` over predictions; not divided by anything.

    Args:
        hidden: last hidden states of the flattened rows.
        chunk_tokens: predictions whose logits exist at one time; the result does not depend on it.
    """
    position, target_ids, weights = _on(predictions, hidden.device)
    chosen = hidden.index_select(0, position)
    wide = torch.promote_types(hidden.dtype, torch.float32)
    return _SummedLoss.apply(chosen, head.weight, head.bias, target_ids, weights.to(wide), head, chunk_tokens)  # pyright: ignore


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
    position, target_ids, weights = (torch.from_numpy(array).to(device) for array in arrays)
    return position, target_ids, weights


def _raw_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    raw = hidden @ weight.T
    if bias is not None:
        raw = raw + bias
    return raw.to(torch.promote_types(hidden.dtype, torch.float32)) * scale


class _SummedLoss(torch.autograd.Function):
    """Loss and gradients in one pass over chunks; backward only scales them."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, target_ids, weights, head, chunk_tokens):
        wide = torch.promote_types(hidden.dtype, torch.float32)
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        loss = torch.zeros((), dtype=wide, device=hidden.device)
        d_hidden = torch.empty_like(hidden) if needs_hidden else None
        d_weight = torch.zeros(weight.shape, dtype=wide, device=weight.device) if needs_weight else None
        d_bias = torch.zeros(bias.shape, dtype=wide, device=bias.device) if needs_bias else None
        for start in range(0, len(hidden), chunk_tokens):
            part = slice(start, start + chunk_tokens)
            loss_part, d_raw = _chunk(hidden[part], target_ids[part], weights[part], head)
            loss += loss_part
            d_raw = d_raw.to(hidden.dtype)
            if d_hidden is not None:
                torch.mm(d_raw, weight, out=d_hidden[part])
            if d_weight is not None:
                d_weight += d_raw.T @ hidden[part]
            if d_bias is not None:
                d_bias += d_raw.sum(0, dtype=wide)
        ctx.save_for_backward(d_hidden, d_weight, d_bias)
        ctx.dtypes = (weight.dtype, None if bias is None else bias.dtype)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        d_hidden, d_weight, d_bias = ctx.saved_tensors
        weight_dtype, bias_dtype = ctx.dtypes
        return (
            None if d_hidden is None else d_hidden * grad.to(d_hidden.dtype),
            None if d_weight is None else (d_weight * grad).to(weight_dtype),
            None if d_bias is None else (d_bias * grad).to(bias_dtype),
            None,
            None,
            None,
            None,
        )


def _chunk(hidden: Tensor, target_ids: Tensor, weights: Tensor, head: Head) -> tuple[Tensor, Tensor]:
    """Weighted loss of a chunk, and its gradient with respect to ``hidden @ weight.T + bias``."""
    raw = _raw_logits(hidden, head.weight, head.bias, head.scale)
    bounded = head.bounded(raw)
    highest = bounded.amax(-1, keepdim=True)
    powers = (bounded - highest).exp_()  # exp(bounded - logsumexp) would be half as exact, and one more pass
    total = powers.sum(-1, keepdim=True)
    loss = ((total.log() + highest - bounded.gather(1, target_ids[:, None]))[:, 0] * weights).sum()
    d_bounded = powers.div_(total)
    d_bounded.scatter_add_(1, target_ids[:, None], d_bounded.new_full((len(target_ids), 1), -1.0))
    d_bounded *= weights[:, None]
    if head.softcap is not None:
        d_bounded *= 1 - (bounded / head.softcap) ** 2
    return loss, d_bounded * head.scale
