"""Whether a model's confidence in its next token is the share in which that token is right."""

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float64

from frisket.evaluate.losses import Instruments
from frisket.generate.sample import measuring
from frisket.hf.forward import hidden_states
from frisket.hf.heads import head_of
from frisket.supervise.predictions import predictions
from frisket.types import Sequence

BINS = 15


@dataclass(frozen=True)
class Calibration:
    """Next-token predictions of one model.

    Attributes:
        predictions: how many.
        loss: mean of -log p of the target, in nats.
        accuracy: share in which the likeliest token is the target.
        confidence: mean probability of the likeliest token.
        error: expected calibration error.
    """

    predictions: int
    loss: float
    accuracy: float
    confidence: float
    error: float


def calibration(
    model: Any, samples: Seq[tuple[Sequence, Float64[np.ndarray, "token"]]], instruments: Instruments
) -> Calibration:
    """Measure the predictions that have a weight above 0, each alike.

    Args:
        model: a causal language model of transformers on frisket's attention.
        samples: sequence, and weight of each of its tokens as a target; sample ids differ.
        instruments: how to lay out and compute.
    """
    by_id = {sequence.sample_id: (sequence, np.maximum(weights, 0.0)) for sequence, weights in samples}
    losses, confident, right = [], [], []
    with measuring(model):
        for rows in instruments.arrange([sequence for sequence, _ in samples]) if samples else []:
            listed = predictions(rows, by_id)
            hidden, head = hidden_states(model, rows, instruments.backend), head_of(model)
            place, target = (torch.from_numpy(each).to(hidden.device) for each in (listed.position, listed.target_ids))
            for p, t in zip(place.split(instruments.chunk_tokens), target.split(instruments.chunk_tokens), strict=True):
                known = torch.log_softmax(head.logits(hidden.index_select(0, p)).double(), dim=-1)
                likeliest = known.max(dim=-1)
                losses.append(-known.gather(1, t[:, None])[:, 0].cpu().numpy())
                confident.append(likeliest.values.exp().cpu().numpy())
                right.append((likeliest.indices == t).cpu().numpy())
    if not losses:
        return Calibration(0, *[float("nan")] * 4)
    confidence, is_right = np.concatenate(confident), np.concatenate(right)
    return Calibration(
        len(is_right),
        float(np.concatenate(losses).mean()),
        float(is_right.mean()),
        float(confidence.mean()),
        expected_error(confidence, is_right),
    )


def expected_error(
    confidence: Float64[np.ndarray, "prediction"], is_right: Bool[np.ndarray, "prediction"], bins: int = BINS
) -> float:
    """Expected calibration error (Guo et al. 2017, arXiv 1706.04599, equation 3), with bins of equal width.

    Of each bin the gap between its mean confidence and the share that is right, weighted by its part of all.

    >>> round(expected_error(np.array([0.9, 0.9, 0.3, 0.3]), np.array([True, False, True, False])), 3)
    0.3
    """
    place = np.minimum((np.asarray(confidence) * bins).astype(np.int64), bins - 1)
    gaps = np.bincount(place, np.asarray(is_right, dtype=np.float64) - confidence, bins)
    return float(np.abs(gaps).sum() / len(confidence))
