"""Packing: every sample once, no row over its budget, rows well filled."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.models import samples

from frisket.attend.pack import best_fit, lay, pack, padded_batches
from frisket.attend.settings import AttendSettings

LENGTHS = st.lists(st.integers(1, 30), min_size=1, max_size=25)


def contents(batches):
    """Sample ids and their token ids as they lie in the rows."""
    found = []
    for rows in batches:
        for leaf in rows.leaves:
            assert leaf.first == leaf.last
            where = rows.segment_ids == leaf.first
            assert len(set(np.nonzero(where)[0])) == 1
            assert np.array_equal(rows.position_ids[where], np.arange(where.sum()))
            found.append((leaf.sample_id, rows.input_ids[where].tolist()))
    return sorted(found)


@settings(max_examples=60, deadline=None)
@given(
    lengths=LENGTHS,
    arrangement=st.sampled_from(["padded", "isolated", "alone"]),
    row_tokens=st.integers(1, 60),
    micro_rows=st.integers(1, 4),
)
def test_every_sample_lies_in_exactly_one_row_whole_and_in_order(lengths, arrangement, row_tokens, micro_rows):
    sequences = samples(0, lengths)
    batches = pack(sequences, arrangement, row_tokens, micro_rows)
    assert contents(batches) == sorted((s.sample_id, s.input_ids.tolist()) for s in sequences)
    assert sum(rows.real_tokens for rows in batches) == sum(lengths)
    for rows in batches:
        assert (rows.parent_segment == -1).all()
        assert (rows.input_ids[~rows.is_real] == 0).all()
        segments_of_row = [set(row[row >= 0]) for row in rows.segment_ids]
        if arrangement == "alone":
            assert len(rows.leaves) == len(rows.input_ids)
            assert rows.is_real.all()
            assert rows.computed_tokens <= row_tokens * micro_rows or len(rows.leaves) == 1
        elif arrangement == "padded":
            assert all(len(segments) == 1 for segments in segments_of_row)
            assert rows.computed_tokens <= row_tokens * micro_rows or len(rows.leaves) == 1
        else:
            assert len(rows.input_ids) <= micro_rows
            for segments, real in zip(segments_of_row, rows.is_real.sum(1), strict=True):
                assert real <= row_tokens or len(segments) == 1


@settings(max_examples=60, deadline=None)
@given(lengths=LENGTHS, capacity=st.integers(1, 60))
def test_best_fit_opens_a_row_only_where_no_row_had_room(lengths, capacity):
    bins = best_fit(lengths, capacity)
    assert sorted(i for members in bins for i in members) == list(range(len(lengths)))
    used = [sum(lengths[i] for i in members) for members in bins]
    for later in range(1, len(bins)):
        first = lengths[bins[later][0]]  # the longest of its bin came first, when all bins before it were no emptier
        for earlier in range(later):
            before = sum(lengths[i] for i in bins[earlier] if lengths[i] >= first)
            assert before + first > capacity
    assert sum(1 for size in used if 2 * size <= capacity) <= 1


def test_best_fit_takes_the_fullest_row_that_still_has_room():
    assert best_fit([5, 4, 3], capacity=8) == [[0, 2], [1]]
    assert best_fit([5, 6, 2, 3], capacity=8) == [[1, 2], [0, 3]]
    assert best_fit([9, 4, 4], capacity=8) == [[0], [1, 2]]


def test_real_lengths_fill_their_rows():
    lengths = np.random.default_rng(0).lognormal(5, 0.8, 400).astype(int).clip(1, 2048).tolist()
    rows = best_fit(lengths, 2048)
    assert sum(lengths) / (2048 * len(rows)) > 0.98


def test_padded_batches_go_from_long_to_short():
    assert padded_batches([3, 9, 2, 8], budget=20) == [[[1], [3]], [[0], [2]]]
    assert padded_batches([30, 2], budget=20) == [[[0]], [[1]]]


def test_rows_of_different_lengths_are_padded_at_the_end():
    a, b, c = samples(0, [2, 1, 4])
    rows = lay([[a, b], [c]])
    assert rows.segment_ids.tolist() == [[0, 0, 1, -1], [2, 2, 2, 2]]
    assert rows.position_ids.tolist() == [[0, 1, 0, 0], [0, 1, 2, 3]]
    assert (rows.real_tokens, rows.computed_tokens) == (7, 8)


@pytest.mark.parametrize("field", ["row_tokens", "micro_rows"])
def test_budgets_are_positive(field):
    with pytest.raises(ValueError, match="greater than 0"):
        AttendSettings(**{field: 0})
