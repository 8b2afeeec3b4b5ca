"""Prefix forests: nothing lost, nothing doubled, shared where it is worth it, cut where it costs least."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.equivalence.test_forests import relatives
from tests.models import sample

from frisket.attend.forest import BRANCH_TOKENS, Tree, nodes_of, plant
from frisket.attend.pack import pack
from frisket.attend.reference import path_to
from frisket.prefixes import distinct_tokens


def spelled(text, name):
    """A sample whose tokens are letters."""
    base = sample(np.random.default_rng(0), len(text), name)
    return replace(base, input_ids=np.array([ord(c) for c in text], np.int32))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 9999),
    count=st.integers(1, 25),
    depth=st.integers(1, 5),
    longest=st.sampled_from([2, 12, 30]),
    row_tokens=st.integers(1, 120),
    micro_rows=st.integers(1, 3),
)
def test_every_sample_is_the_path_to_its_leaf(seed, count, depth, longest, row_tokens, micro_rows):
    samples = {s.sample_id: s for s in relatives(seed, count, depth, longest=longest)}
    batches = pack(list(samples.values()), "forest", row_tokens, micro_rows)
    found = [leaf.sample_id for rows in batches for leaf in rows.leaves]
    assert sorted(found) == sorted(samples)
    for rows in batches:
        for leaf in rows.leaves:
            path = path_to(rows, leaf.last)
            assert path[0] == leaf.first
            at = np.isin(rows.segment_ids, path)
            assert rows.input_ids[at].tolist() == samples[leaf.sample_id].input_ids.tolist()
            assert rows.position_ids[at].tolist() == list(range(len(samples[leaf.sample_id])))
        for row in range(len(rows.input_ids)):
            inside = {int(s) for s in rows.segment_ids[row] if s >= 0}
            assert all(parent in inside for parent in rows.parent_segment[sorted(inside)] if parent >= 0)
            path = max((path_to(rows, leaf.last) for leaf in rows.leaves if leaf.last in inside), key=len)
            assert rows.is_real[row].sum() <= row_tokens or set(path) == inside


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 9999), count=st.integers(1, 25), depth=st.integers(1, 5))
def test_in_one_wide_row_every_token_is_computed_once(seed, count, depth):
    samples = relatives(seed, count, depth)
    trees = plant(samples, 10_000, shortest=1)
    assert sum(tree.size for tree in trees) == distinct_tokens([s.input_ids for s in samples])


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 9999), order=st.randoms())
def test_the_order_of_the_samples_changes_nothing(seed, order):
    samples = relatives(seed, 12, depth=4)
    shuffled = list(samples)
    order.shuffle(shuffled)
    one, two = (sorted(rows.input_ids.tolist() for rows in pack(each, "forest", 60)) for each in (samples, shuffled))
    assert one == two


def test_short_branches_are_not_worth_a_segment():
    samples = [spelled("system prompt, " + end, end) for end in ("also one", "also two", "another", "new")]
    (tree,) = plant(samples, 1000)
    parts = {node.stop - node.start: node.parent for node in nodes_of(tree)}
    assert BRANCH_TOKENS == 8
    assert len(nodes_of(tree)) == 5  # the trunk and four ends: "a", "al", "also " would be shorter than 8
    assert parts[15] == -1
    (exact,) = plant(samples, 1000, shortest=1)
    assert exact.size < tree.size


def _least_cut(tree: Tree, row_tokens: int) -> int:
    """Fewest computed tokens over all ways to cut the leaves of a tree into ranges that fit a row; by trying them."""
    best = 10**9
    places = range(1, len(tree.samples))
    for count in range(len(tree.samples)):
        for cuts in combinations(places, count):
            total, fits = 0, True
            for low, high in zip((0, *cuts), (*cuts, len(tree.samples)), strict=True):
                size = int((tree.lengths[low:high] - tree.joint[low:high]).sum() + tree.joint[low])
                fits &= size <= row_tokens or size == tree.lengths[low:high].max()
                total += size
            if fits:
                best = min(best, total)
    return best


@pytest.mark.parametrize("seed", range(25))
def test_a_tree_larger_than_a_row_is_cut_where_least_is_computed_twice(seed):
    samples = relatives(seed, 9, depth=4, longest=9)
    row_tokens = 25
    for tree in plant(samples, 10_000, shortest=1):
        pieces = plant([samples[i] for i in tree.samples], row_tokens, shortest=1)
        assert sum(piece.size for piece in pieces) == _least_cut(tree, row_tokens)
        assert all(piece.size <= row_tokens or piece.size == piece.lengths.max() for piece in pieces)


def test_a_path_longer_than_a_row_is_not_cut():
    samples = [spelled("ab" * length, str(length)) for length in (10, 30, 50, 70)]
    (tree,) = plant(samples, 80)
    assert tree.size == 140


def test_a_trunk_recurs_in_every_row_that_needs_it():
    samples = [spelled("x" * 20 + chr(65 + i) * 4, str(i)) for i in range(12)]
    pieces = plant(samples, 40, shortest=1)
    assert len(pieces) == 3
    assert all(piece.size <= 40 for piece in pieces)
    assert sum(piece.size for piece in pieces) == 3 * 20 + 12 * 4
