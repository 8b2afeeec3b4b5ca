"""KL(base ‖ tuned) of next-token distributions: exact, or a lower bound from what was kept of the base."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

KEPT = 64
_CHUNK = 64  # distributions that exist in float64 at one time: 64 of 150,000 tokens are 77 MB


@dataclass(frozen=True)
class Kept:
    """The largest log-probabilities of each distribution, on the CPU; all other tokens together are one bucket.

    Attributes:
        ids: tokens, the likeliest first.
        log_probabilities: of these tokens.
        log_rest: of the bucket; minus infinity where every token is kept.
    """

    ids: Int64[Tensor, "prediction kept"]
    log_probabilities: Float64[Tensor, "prediction kept"]
    log_rest: Float64[Tensor, "prediction"]


def exact_kl(
    base: Float[Tensor, "prediction vocab"], tuned: Float[Tensor, "prediction vocab"]
) -> Float64[Tensor, "prediction"]:
    """Sum over the whole vocabulary of ``p (log p - log q)``, in nats, from logits.

    Args:
        base: logits that make p.
        tuned: logits that make q.
    """
    parts = []
    for ours, theirs in zip(base.split(_CHUNK), tuned.split(_CHUNK), strict=True):
        log_p, log_q = torch.log_softmax(ours.double(), -1), torch.log_softmax(theirs.double(), -1)
        parts.append((log_p.exp() * (log_p - log_q)).sum(-1).cpu())
    return torch.cat(parts)


def keep(logits: Float[Tensor, "prediction vocab"], count: int = KEPT) -> Kept:
    """Keep the largest ``count`` log-probabilities of each distribution."""
    ids, largest, rest = [], [], []
    for part in logits.split(_CHUNK):
        log_p = torch.log_softmax(part.double(), -1)
        found = log_p.topk(min(count, log_p.shape[-1]))
        ids.append(found.indices.cpu())
        largest.append(found.values.cpu())
        rest.append(_log_rest(log_p, found.indices).cpu())
    return Kept(torch.cat(ids), torch.cat(largest), torch.cat(rest))


def bucketed_kl(base: Kept, tuned: Float[Tensor, "prediction vocab"]) -> Float64[Tensor, "prediction"]:
    """KL of the distributions over the kept tokens and the bucket, in nats; never more than the exact KL.

    Source: log-sum inequality (Cover and Thomas, Elements of Information Theory, 2nd edition, theorem 2.7.1).
    """
    parts = []
    kept = (base.ids.split(_CHUNK), base.log_probabilities.split(_CHUNK), base.log_rest.split(_CHUNK))
    for ids, log_p, log_rest_p, logits in zip(*kept, tuned.split(_CHUNK), strict=True):
        log_q = torch.log_softmax(logits.double(), -1)
        rest = log_rest_p.exp() * (log_rest_p - _log_rest(log_q, ids.to(log_q.device)).cpu())
        inside = log_p.exp() * (log_p - log_q.gather(1, ids.to(log_q.device)).cpu())
        parts.append(inside.sum(-1) + torch.where(log_rest_p > -torch.inf, rest, 0.0))
    return torch.cat(parts)


def _log_rest(log_p: Tensor, ids: Tensor) -> Tensor:
    # Summed over the other tokens themselves: 1 - sum loses every digit where the kept ones hold nearly all.
    return log_p.scatter(1, ids, -torch.inf).logsumexp(-1)
