"""Intervals and cumulative lengths say the same as the reference's booleans."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.equivalence.test_forests import forest, relatives

from frisket.attend.intervals import depth_calls, runs_of, subtree_ends
from frisket.attend.pack import pack
from frisket.attend.reference import visible

FORESTS = {
    "seed": st.integers(0, 9999),
    "count": st.integers(1, 10),
    "depth": st.integers(1, 5),
    "row_tokens": st.integers(1, 60),
    "micro_rows": st.integers(1, 3),
}


def dense(rows):
    """[place, place] booleans of the flat rows."""
    width = rows.input_ids.shape[1]
    whole = np.zeros((rows.input_ids.size,) * 2, dtype=bool)
    for row in range(len(rows.input_ids)):
        at = slice(row * width, (row + 1) * width)
        whole[at, at] = visible(rows, row)
    return whole


@settings(max_examples=40, deadline=None)
@given(**FORESTS)
def test_an_end_for_each_key_is_the_whole_mask(seed, count, depth, row_tokens, micro_rows):
    for rows in forest(relatives(seed, count, depth), row_tokens, 1, micro_rows):
        ends, place = subtree_ends(rows), np.arange(rows.input_ids.size)
        assert np.array_equal((place[None] <= place[:, None]) & (place[:, None] < ends[None]), dense(rows))


@settings(max_examples=40, deadline=None)
@given(**FORESTS)
def test_the_calls_of_all_depths_cover_every_pair_once(seed, count, depth, row_tokens, micro_rows):
    for rows in forest(relatives(seed, count, depth), row_tokens, 1, micro_rows):
        seen = np.zeros((rows.input_ids.size,) * 2, dtype=int)
        for call in depth_calls(rows):
            assert call.query_ends.dtype == call.key_ends.dtype == np.int32
            assert (call.query_ends[-1], call.key_ends[-1]) == (len(call.queries), len(call.keys))
            for run in range(len(call.query_ends) - 1):
                queries = call.queries[call.query_ends[run] : call.query_ends[run + 1]]
                keys = call.keys[call.key_ends[run] : call.key_ends[run + 1]]
                own = np.tril(np.ones((len(queries), len(keys)), dtype=int)) if call.causal else 1
                seen[np.ix_(queries, keys)] += own
        assert np.array_equal(seen, dense(rows).astype(int))


@pytest.mark.parametrize(("arrangement", "depths"), [("mask-free", {0}), ("isolated", {0}), ("padded", {0})])
def test_chains_and_roots_need_one_call(arrangement, depths):
    samples = relatives(1, 6, depth=1)
    for rows in pack(samples, arrangement, 100):
        runs = runs_of(rows)
        assert set(runs.depths.tolist()) == depths
        assert len(depth_calls(rows)) == 1
        assert len(runs.starts) == (1 if arrangement == "mask-free" else len(rows.leaves))
