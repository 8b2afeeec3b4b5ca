"""The one file where off-by-one lives: which hidden state predicts which next token, with which weight."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float64

from frisket.types import PADDING_SEGMENT, ROOT, Predictions, Rows, Sequence

Weighted = tuple[Sequence, Float64[np.ndarray, "token"]]


def predictions(rows: Rows, samples: Mapping[str, Weighted]) -> Predictions:
    """List what is predicted in these rows.

    Made from the samples, never from neighbours in a row: a sample is its path of segments, and the token at depth d of
    the path predicts token d + 1 of the sample. Where several samples share a hidden state and its target, their
    weights add; where they share the state alone, it has several targets.

    Args:
        rows: the micro-batch.
        samples: sequence and weight of each token as a target, by sample id.
    """
    places = _places(rows)
    position, target_ids, weights = [], [], []
    for leaf in rows.leaves:
        sequence, token_weights = samples[leaf.sample_id]
        path = np.concatenate([places[s] for s in path_between(rows, leaf.first, leaf.last)])
        taught = 1 + np.flatnonzero(token_weights[1:])
        position.append(path[taught - 1])
        target_ids.append(sequence.input_ids[taught].astype(np.int64))
        weights.append(token_weights[taught])
    return _merged(np.concatenate(position), np.concatenate(target_ids), np.concatenate(weights))


def _places(rows: Rows) -> list[np.ndarray]:
    """Flat indices of each segment's tokens, in order."""
    flat = rows.segment_ids.ravel()
    order = np.argsort(flat, kind="stable")
    counts = np.bincount(flat[flat != PADDING_SEGMENT], minlength=len(rows.parent_segment))
    padding = flat.size - counts.sum()
    return np.split(order[padding:], np.cumsum(counts)[:-1])


def path_between(rows: Rows, first: int, last: int) -> list[int]:
    """Segments from ``first`` down to its descendant ``last``: the path that is a sample.

    Raises:
        ValueError: it is no descendant.
    """
    path = [last]
    while path[-1] != first:
        parent = int(rows.parent_segment[path[-1]])
        if parent == ROOT:
            raise ValueError(f"segment {first} is no ancestor of segment {last}")
        path.append(parent)
    return path[::-1]


def _merged(position: np.ndarray, target_ids: np.ndarray, weights: np.ndarray) -> Predictions:
    """Add the weights of equal (position, target) pairs; sorted by position, entries of weight 0 left out."""
    pairs, which = np.unique(np.stack([position, target_ids]), axis=1, return_inverse=True)
    summed = np.bincount(which.ravel(), weights=weights, minlength=pairs.shape[1])
    kept = summed != 0
    return Predictions(pairs[0][kept], pairs[1][kept], summed[kept])
