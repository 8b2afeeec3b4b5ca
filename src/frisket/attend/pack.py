"""Laying samples into rows. Best-fit decreasing, so that rows are full; nothing is ever cut."""

from bisect import bisect_left, insort
from collections.abc import Iterator
from collections.abc import Sequence as Seq
from typing import Literal

import numpy as np

from frisket.types import PADDING_SEGMENT, ROOT, Leaf, Rows, Sequence

Arrangement = Literal["padded", "isolated", "alone"]


def pack(samples: Seq[Sequence], arrangement: Arrangement, row_tokens: int, micro_rows: int = 1) -> list[Rows]:
    """Lay samples into micro-batches.

    Args:
        samples: in any order; the result depends on it only where lengths tie.
        arrangement: ``padded`` puts one sample in a row, ``isolated`` as many as fit, ``alone`` one sample in a row
            and one row in a micro-batch (for layers that carry state from token to token).
        row_tokens: budget of a row; a longer sample gets a row of its own.
        micro_rows: rows of a micro-batch; with ``padded`` a micro-batch holds ``row_tokens * micro_rows`` tokens,
            padding included.

    Returns:
        One ``Rows`` for each micro-batch; every sample is in exactly one.
    """
    lengths = [len(sample) for sample in samples]
    if arrangement == "alone":
        batches = [[[i]] for i in range(len(samples))]
    elif arrangement == "padded":
        batches = padded_batches(lengths, row_tokens * micro_rows)
    else:
        bins = best_fit(lengths, row_tokens)
        batches = [bins[i : i + micro_rows] for i in range(0, len(bins), micro_rows)]
    return [lay([[samples[i] for i in row] for row in batch]) for batch in batches]


def padded_batches(lengths: Seq[int], budget: int) -> list[list[list[int]]]:
    """Batches of one-sample rows, longest first, at most ``budget`` tokens with padding."""
    batches: list[list[list[int]]] = []
    widest = 0
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if not batches or (len(batches[-1]) + 1) * widest > budget:
            batches.append([])
            widest = lengths[index]
        batches[-1].append([index])
    return batches


def best_fit(lengths: Seq[int], capacity: int) -> list[list[int]]:
    """Best-fit decreasing: the longest first, each into the fullest row that still takes it.

    Source: Ding et al., ICML 2024 (arXiv 2404.10830), section 3; a sample longer than a row is not split here.

    >>> best_fit([6, 3, 4, 2], capacity=8)
    [[0, 3], [2, 1]]
    """
    bins: list[list[int]] = []
    spaces: list[tuple[int, int]] = []  # (space left, bin), sorted
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        place = bisect_left(spaces, (lengths[index], -1))
        if place < len(spaces):
            space, target = spaces.pop(place)
        else:
            space, target = capacity, len(bins)
            bins.append([])
        bins[target].append(index)
        if space > lengths[index]:
            insort(spaces, (space - lengths[index], target))
    return bins


def lay(batch: Seq[Seq[Sequence]]) -> Rows:
    """Make ``Rows`` of isolated segments: ``batch[row]`` lists the samples of a row in order."""
    width = max(sum(len(sample) for sample in row) for row in batch)
    input_ids = np.zeros((len(batch), width), dtype=np.int64)
    position_ids = np.zeros_like(input_ids)
    segment_ids = np.full_like(input_ids, PADDING_SEGMENT)
    leaves: list[Leaf] = []
    for row, start, sample in _places(batch):
        span = slice(start, start + len(sample))
        input_ids[row, span] = sample.input_ids
        position_ids[row, span] = np.arange(len(sample))
        segment_ids[row, span] = len(leaves)
        leaves.append(Leaf(sample.sample_id, len(leaves), len(leaves)))
    parents = np.full(len(leaves), ROOT, dtype=np.int64)
    return Rows(input_ids, position_ids, segment_ids, parents, tuple(leaves))


def _places(batch: Seq[Seq[Sequence]]) -> Iterator[tuple[int, int, Sequence]]:
    for row, samples in enumerate(batch):
        start = 0
        for sample in samples:
            yield row, start, sample
            start += len(sample)
