"""A forest as intervals of its flat rows: what a backend needs in place of a mask, made on the host.

Laid out depth first, token ``i`` sees token ``j`` iff ``j <= i < end(j)``, with ``end(j)`` the end of what grows from
j's segment. Everything here is a few integers a segment; no mask is ever built.

Source: the interval form of the mask is that of FlashMask (arXiv 2410.01359) and Tree Training (arXiv 2511.00413).
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32, Int64

from frisket.errors import UnsupportedError
from frisket.types import PADDING_SEGMENT, ROOT, Rows


@dataclass(frozen=True)
class Runs:
    """Stretches of the flat rows in which a token sees all earlier ones: segments, single children joined on.

    Attributes:
        starts: place of the first token.
        lengths: tokens.
        ends: place after the last token that grows from it (its own, where nothing does).
        depths: runs above it.
        parents: the run it grows from; -1 for none.
    """

    starts: Int64[np.ndarray, "run"]
    lengths: Int64[np.ndarray, "run"]
    ends: Int64[np.ndarray, "run"]
    depths: Int64[np.ndarray, "run"]
    parents: Int64[np.ndarray, "run"]


@dataclass(frozen=True)
class DepthCall:
    """One call of a variable-length kernel: run ``i`` of the queries attends to run ``i`` of the keys.

    Attributes:
        queries: places of the queries, run after run.
        keys: places of the keys.
        query_ends: cumulative lengths of the queries, from 0.
        key_ends: cumulative lengths of the keys, from 0.
        causal: whether a query sees only keys at or before it (the call of runs with themselves).
    """

    queries: Int64[np.ndarray, "query"]
    keys: Int64[np.ndarray, "key"]
    query_ends: Int32[np.ndarray, "run_and_one"]
    key_ends: Int32[np.ndarray, "run_and_one"]
    causal: bool


def runs_of(rows: Rows) -> Runs:
    """Join single children to their parents, and find where each run's descendants end.

    Raises:
        UnsupportedError: the descendants of a segment are not the stretch that follows it.
    """
    starts, lengths = _segments(rows)
    parents = rows.parent_segment
    children = np.bincount(parents[parents != ROOT], minlength=len(parents))
    run_of = np.arange(len(parents))
    ends = starts + lengths
    for segment, parent in enumerate(parents):
        if parent != ROOT and children[parent] == 1 and starts[segment] == starts[parent] + lengths[parent]:
            run_of[segment] = run_of[parent]
    for segment in range(len(parents) - 1, -1, -1):
        if parents[segment] != ROOT:
            ends[parents[segment]] = max(ends[parents[segment]], ends[segment])
    _check_depth_first(rows, starts, lengths, ends)
    heads = np.flatnonzero(run_of == np.arange(len(parents)))
    joined = np.bincount(run_of, weights=lengths, minlength=len(parents)).astype(np.int64)
    depths = np.zeros(len(parents), dtype=np.int64)
    for segment in heads:
        if parents[segment] != ROOT:
            depths[segment] = depths[run_of[parents[segment]]] + 1
    number = np.full(len(parents), ROOT)
    number[heads] = np.arange(len(heads))
    above = np.array([number[run_of[parents[head]]] if parents[head] != ROOT else ROOT for head in heads])
    return Runs(starts[heads], joined[heads], ends[heads], depths[heads], above.astype(np.int64))


def subtree_ends(rows: Rows) -> Int32[np.ndarray, "place"]:
    """``end(j)`` of every place of the flat rows; the place itself at padding, which nothing sees.

    >>> from frisket.types import Leaf
    >>> ids = np.zeros((1, 6), dtype=np.int64)
    >>> rows = Rows(ids, np.array([[0, 1, 2, 2, 3, 0]]), np.array([[0, 0, 1, 2, 2, -1]]), np.array([-1, 0, 0]),
    ...             (Leaf("a", 0, 1), Leaf("b", 0, 2)))
    >>> subtree_ends(rows).tolist()
    [5, 5, 3, 5, 5, 5]
    """
    runs = runs_of(rows)
    ends = np.arange(rows.segment_ids.size, dtype=np.int32)
    for start, length, end in zip(runs.starts, runs.lengths, runs.ends, strict=True):
        ends[start : start + length] = end
    return ends


def depth_calls(rows: Rows) -> list[DepthCall]:
    """The calls that a variable-length kernel needs: all runs with themselves, then for each depth the trunks there.

    Merging their outputs by log-sum-exp gives the attention of the forest.
    """
    runs = runs_of(rows)
    stops = runs.starts + runs.lengths
    calls = [_call(list(zip(runs.starts, stops, runs.starts, stops, strict=True)), causal=True)]
    for depth in range(int(runs.depths.max(initial=0)) + 1):
        trunks = np.flatnonzero((runs.depths == depth) & (runs.ends > stops))
        if len(trunks):
            spans = zip(stops[trunks], runs.ends[trunks], runs.starts[trunks], stops[trunks], strict=True)
            calls.append(_call(list(spans), causal=False))
    return calls


def _call(pieces: list[tuple[int, int, int, int]], *, causal: bool) -> DepthCall:
    queries = [np.arange(first, last) for first, last, _, _ in pieces]
    keys = [np.arange(first, last) for _, _, first, last in pieces]
    ends = [np.cumsum([0, *(len(part) for part in parts)]).astype(np.int32) for parts in (queries, keys)]
    return DepthCall(np.concatenate(queries), np.concatenate(keys), ends[0], ends[1], causal)


def _segments(rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    """Start and length of each segment in the flat rows."""
    flat = rows.segment_ids.ravel()
    is_real = flat != PADDING_SEGMENT
    lengths = np.bincount(flat[is_real], minlength=len(rows.parent_segment))
    starts = np.full(len(lengths), flat.size, dtype=np.int64)
    np.minimum.at(starts, flat[is_real], np.flatnonzero(is_real))
    return starts, lengths


def _check_depth_first(rows: Rows, starts: np.ndarray, lengths: np.ndarray, ends: np.ndarray) -> None:
    size = lengths.copy()
    for segment in range(len(size) - 1, -1, -1):
        if rows.parent_segment[segment] != ROOT:
            size[rows.parent_segment[segment]] += size[segment]
    wrong = np.flatnonzero(starts + size != ends)
    if len(wrong):
        raise UnsupportedError(
            f"what grows from segment {int(wrong[0])} is not the stretch of its row that follows it.\n"
            "A forest must be laid out depth first, as attend.pack does; use attend.backend=sdpa for any other order."
        )
