"""The dense meaning of rows, on cases small enough to write by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frisket.attend.reference import path_to, visible
from frisket.types import Leaf, Rows


def rows_of(segments, positions, parents):
    ids = np.zeros((1, len(segments)), dtype=np.int64)
    leaves = (Leaf("a", 0, len(parents) - 1),)
    return Rows(ids, np.array([positions]), np.array([segments]), np.array(parents), leaves)


def grid(text):
    return np.array([[int(mark) for mark in line.split()] for line in text.strip().splitlines()])


def test_a_forest_with_a_grandchild_and_padding():
    tree = rows_of([0, 0, 1, 2, 3, -1], [0, 1, 2, 3, 2, 0], [-1, 0, 1, 0])
    assert path_to(tree, 2) == [0, 1, 2]
    assert path_to(tree, 3) == [0, 3]
    expected = grid("""
        1 0 0 0 0 0
        1 1 0 0 0 0
        1 1 1 0 0 0
        1 1 1 1 0 0
        1 1 0 0 1 0
        0 0 0 0 0 0""")
    assert np.array_equal(visible(tree, 0), expected)


def test_a_window_looks_at_depth_and_not_at_places_in_the_row():
    """The second child lies three places after the root's last token, but follows it directly on its own path."""
    tree = rows_of([0, 0, 1, 1, 1, 2, 2], [0, 1, 2, 3, 4, 2, 3], [-1, 0, 0])
    expected = grid("""
        1 0 0 0 0 0 0
        1 1 0 0 0 0 0
        0 1 1 0 0 0 0
        0 0 1 1 0 0 0
        0 0 0 1 1 0 0
        0 1 0 0 0 1 0
        0 0 0 0 0 1 1""")
    assert np.array_equal(visible(tree, 0, window=2), expected)


def test_each_row_has_its_own_segments():
    two = Rows(
        np.zeros((2, 3), dtype=np.int64),
        np.array([[0, 1, 2], [0, 1, 0]]),
        np.array([[0, 0, 0], [1, 1, -1]]),
        np.array([-1, -1]),
        (Leaf("a", 0, 0), Leaf("b", 1, 1)),
    )
    assert np.array_equal(visible(two, 0), np.tril(np.ones((3, 3))))
    assert np.array_equal(visible(two, 1), grid("1 0 0\n1 1 0\n0 0 0"))


@settings(max_examples=30, deadline=None)
@given(lengths=st.lists(st.integers(1, 4), min_size=1, max_size=6), data=st.data())
def test_depth_first_rows_follow_the_interval_rule(lengths, data):
    """Token i may see token j exactly where j <= i < the end of the subtree of j's segment."""
    parents = [-1]
    for child in range(1, len(lengths)):
        parents.append(data.draw(st.sampled_from([*path_of(parents, child - 1), -1])))
    depth = [0] * len(lengths)
    segments, positions = [], []
    for segment, length in enumerate(lengths):
        if parents[segment] >= 0:
            depth[segment] = depth[parents[segment]] + lengths[parents[segment]]
        segments += [segment] * length
        positions += range(depth[segment], depth[segment] + length)
    seen = visible(rows_of(segments, positions, parents), 0)
    starts = np.cumsum([0, *lengths])
    ends = [starts[last_below(parents, segment) + 1] for segment in range(len(lengths))]
    for i in range(len(segments)):
        for j in range(len(segments)):
            assert seen[i, j] == (j <= i < ends[segments[j]])


def path_of(parents, segment):
    path = [segment]
    while parents[path[-1]] >= 0:
        path.append(parents[path[-1]])
    return path


def last_below(parents, segment):
    return max(child for child in range(len(parents)) if segment in path_of(parents, child))


def test_a_child_before_its_parent_is_refused():
    with pytest.raises(ValueError, match="a parent segment must come before its child"):
        rows_of([0, 1], [0, 1], [1, -1])
