"""Laying samples into rows. Best-fit decreasing, so that rows are full; nothing is ever cut."""

from collections.abc import Sequence as Seq
from heapq import heappop, heappush
from typing import Literal

import numpy as np

from frisket.attend.forest import Tree, nodes_of, plant
from frisket.types import PADDING_SEGMENT, ROOT, Leaf, Rows, Sequence

Arrangement = Literal["padded", "isolated", "forest", "mask-free", "alone"]


def pack(samples: Seq[Sequence], arrangement: Arrangement, row_tokens: int, micro_rows: int = 1) -> list[Rows]:
    """Lay samples into micro-batches.

    Args:
        samples: in any order; the result depends on it only where lengths tie.
        arrangement: ``padded`` puts one sample in a row, ``isolated`` as many as fit, ``forest`` trees of samples that
            share prefixes, ``mask-free`` as many as fit, each seeing those before it, ``alone`` samples of one length
            as rows of one micro-batch (for layers that carry state from token to token).
        row_tokens: budget of a row; a longer sample gets a row of its own.
        micro_rows: rows of a micro-batch; with ``padded`` and ``alone`` a micro-batch holds
            ``row_tokens * micro_rows`` tokens, padding included.

    Returns:
        One ``Rows`` for each micro-batch; every sample is in exactly one.
    """
    lengths = [len(sample) for sample in samples]
    if arrangement == "forest":
        trees = plant(samples, row_tokens)
        rows = _in_rows(best_fit([tree.size for tree in trees], row_tokens), micro_rows)
        return [lay_forest([[trees[i] for i in row] for row in batch], samples) for batch in rows]
    if arrangement == "alone":
        batches = equal_batches(lengths, row_tokens * micro_rows)
    elif arrangement == "padded":
        batches = padded_batches(lengths, row_tokens * micro_rows)
    else:
        batches = _in_rows(best_fit(lengths, row_tokens), micro_rows)
    chained = arrangement == "mask-free"
    return [lay([[samples[i] for i in row] for row in batch], chained=chained) for batch in batches]


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


def equal_batches(lengths: Seq[int], budget: int) -> list[list[list[int]]]:
    """Batches of one-sample rows of one length, longest first, at most ``budget`` tokens.

    >>> equal_batches([3, 5, 3, 3], budget=6)
    [[[1]], [[0], [2]], [[3]]]
    """
    batches: list[list[list[int]]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        same = bool(batches) and lengths[batches[-1][0][0]] == lengths[index]
        if not same or (len(batches[-1]) + 1) * lengths[index] > budget:
            batches.append([])
        batches[-1].append([index])
    return batches


def best_fit(lengths: Seq[int], capacity: int) -> list[list[int]]:
    """Best-fit decreasing: the longest first, each into the fullest row that still takes it.

    Source: Ding et al., ICML 2024 (arXiv 2404.10830), section 3; a sample longer than a row is not split here.

    >>> best_fit([6, 3, 4, 2], capacity=8)
    [[0, 3], [2, 1]]
    """
    bins: list[list[int]] = []
    rows_with: list[list[int]] = [[] for _ in range(capacity + 1)]  # by space left, as heaps: the oldest row first
    spaces = 0  # bit s is set where a row has s tokens left, so the best fit is the lowest bit from the length on
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[index]
        fitting = spaces >> length
        if fitting:
            space = length + (fitting & -fitting).bit_length() - 1
            target = heappop(rows_with[space])
            if not rows_with[space]:
                spaces ^= 1 << space
        else:
            space, target = capacity, len(bins)
            bins.append([])
        bins[target].append(index)
        if space > length:
            heappush(rows_with[space - length], target)
            spaces |= 1 << (space - length)
    return bins


def lay(batch: Seq[Seq[Sequence]], *, chained: bool = False) -> Rows:
    """Make ``Rows`` in which every sample is one segment: ``batch[row]`` lists the samples of a row in order.

    Args:
        chained: each sample of a row is the parent of the next, so that plain causal attention is what it gets.
    """
    laying = _Laying(len(batch), max(sum(len(sample) for sample in row) for row in batch))
    for row, samples in enumerate(batch):
        parent, depth = ROOT, 0
        for sample in samples:
            segment = laying.add(row, sample.input_ids, depth, parent)
            laying.leaves.append(Leaf(sample.sample_id, segment, segment))
            if chained:
                parent, depth = segment, depth + len(sample)
    return laying.rows()


def lay_forest(batch: Seq[Seq[Tree]], samples: Seq[Sequence]) -> Rows:
    """Make ``Rows`` of trees, depth first: ``batch[row]`` lists the trees of a row in order."""
    laying = _Laying(len(batch), max(sum(tree.size for tree in row) for row in batch))
    for row, trees in enumerate(batch):
        for tree in trees:
            first = len(laying.parents)
            for node in nodes_of(tree):
                tokens = samples[node.sample].input_ids[node.start : node.stop]
                parent = ROOT if node.parent == ROOT else first + node.parent
                segment = laying.add(row, tokens, node.start, parent)
                laying.leaves += [Leaf(samples[i].sample_id, first, segment) for i in node.ends]
    return laying.rows()


class _Laying:
    """Rows in the making; segments are appended to the end of a row."""

    def __init__(self, rows: int, width: int) -> None:
        self._input_ids = np.zeros((rows, width), dtype=np.int64)
        self._position_ids = np.zeros_like(self._input_ids)
        self._segment_ids = np.full_like(self._input_ids, PADDING_SEGMENT)
        self._used = [0] * rows
        self.parents: list[int] = []
        self.leaves: list[Leaf] = []

    def add(self, row: int, tokens: np.ndarray, depth: int, parent: int) -> int:
        """Append a segment whose first token stands at ``depth`` of its path, and return its number."""
        span = slice(self._used[row], self._used[row] + len(tokens))
        self._input_ids[row, span] = tokens
        self._position_ids[row, span] = np.arange(depth, depth + len(tokens))
        self._segment_ids[row, span] = len(self.parents)
        self._used[row] = span.stop
        self.parents.append(parent)
        return len(self.parents) - 1

    def rows(self) -> Rows:
        parents = np.array(self.parents, dtype=np.int64)
        return Rows(self._input_ids, self._position_ids, self._segment_ids, parents, tuple(self.leaves))


def _in_rows(bins: list[list[int]], micro_rows: int) -> list[list[list[int]]]:
    return [bins[i : i + micro_rows] for i in range(0, len(bins), micro_rows)]
