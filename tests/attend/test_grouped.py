"""`grouped` against plain softmax attention under the reference's booleans; and that it takes the path it should."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.models import samples

from frisket.attend.backends import dense, grouped, groups
from frisket.attend.backends.matmul import Knobs
from frisket.attend.pack import lay, pack
from frisket.attend.reference import visible
from frisket.errors import UnsupportedError
from frisket.types import Leaf, Rows

CPU = torch.device("cpu")
HEADS, KEY_HEADS, WIDTH = 4, 2, 6


def inputs(rows, seed=0, requires_grad=False):
    generator = torch.Generator().manual_seed(seed)
    shape = rows.input_ids.shape
    return [
        torch.randn(shape[0], heads, shape[1], WIDTH, dtype=torch.float64, generator=generator).requires_grad_(
            requires_grad
        )
        for heads in (HEADS, KEY_HEADS, KEY_HEADS)
    ]


def by_hand(rows, query, key, value, knobs):
    """Softmax attention, one row and one head at a time."""
    out = torch.zeros(*rows.input_ids.shape, HEADS, WIDTH, dtype=torch.float64)
    for row in range(len(rows.input_ids)):
        mask = torch.from_numpy(visible(rows, row, knobs.window))
        for head in range(HEADS):
            k, v = key[row, head * KEY_HEADS // HEADS], value[row, head * KEY_HEADS // HEADS]
            scores = query[row, head] @ k.T * knobs.scaling
            if knobs.softcap is not None:
                scores = knobs.softcap * torch.tanh(scores / knobs.softcap)
            powers = torch.exp(scores) * mask
            total = powers.sum(-1, keepdim=True)
            if knobs.sinks is not None:
                total = total + torch.exp(knobs.sinks[head])
            is_real = torch.from_numpy(rows.is_real[row])
            out[row, is_real, head] = (powers[is_real] / total[is_real]) @ v
    return out


KNOBS = {
    "plain": Knobs(0.3),
    "window": Knobs(0.3, window=3),
    "softcap": Knobs(0.9, softcap=1.5),
    "sinks": Knobs(0.3, sinks=torch.tensor([0.5, -1.0, 2.0, 0.0], dtype=torch.float64)),
    "all": Knobs(0.5, 4, 2.0, torch.tensor([0.5, -1.0, 2.0, 0.0], dtype=torch.float64)),
}


@pytest.mark.parametrize("knobs", KNOBS.values(), ids=KNOBS)
@pytest.mark.parametrize("backend", [grouped, dense], ids=["grouped", "dense"])
@pytest.mark.parametrize("batch", [[[1]], [[1, 1, 1]], [[7, 3, 1], [12]], [[5, 5], [5, 5]], [[9], [9]]], ids=str)
def test_backends_equal_softmax_under_the_booleans(batch, backend, knobs):
    sequences = iter(samples(0, [length for row in batch for length in row]))
    rows = lay([[next(sequences) for _ in row] for row in batch])
    out = backend.prepare(rows, CPU).attend(*inputs(rows), knobs)
    is_real = torch.from_numpy(rows.is_real)
    assert (out - by_hand(rows, *inputs(rows), knobs))[is_real].abs().max() <= 1e-12


@settings(max_examples=20, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=10),
    row_tokens=st.integers(1, 60),
    name=st.sampled_from(sorted(KNOBS)),
)
def test_grouped_and_dense_have_the_same_gradients(lengths, row_tokens, name):
    for rows in pack(samples(1, lengths), "isolated", row_tokens, 2):
        ours, theirs = inputs(rows, 2, requires_grad=True), inputs(rows, 2, requires_grad=True)
        weights = torch.randn(*rows.input_ids.shape, HEADS, WIDTH, dtype=torch.float64)
        weights *= torch.from_numpy(rows.is_real)[..., None, None]
        (grouped.prepare(rows, CPU).attend(*ours, KNOBS[name]) * weights).sum().backward()
        (dense.prepare(rows, CPU).attend(*theirs, KNOBS[name]) * weights).sum().backward()
        assert all((a.grad - b.grad).abs().max() <= 1e-12 for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("window", [None, 1, 100, 256, 257, 300])
def test_long_segments_are_cut_into_blocks_of_queries(window):
    rows = lay([samples(0, [520])])
    knobs = Knobs(0.3, window, softcap=3.0)  # soft-capping keeps the stock kernel away
    difference = grouped.prepare(rows, CPU).attend(*inputs(rows), knobs) - by_hand(rows, *inputs(rows), knobs)
    assert difference.abs().max() <= 1e-12


def test_blocks_are_causal_and_as_wide_as_the_window(monkeypatch):
    monkeypatch.setattr(groups, "QUERY_BLOCK", 3)
    grouping = grouped.prepare(lay([samples(0, [5])]), CPU).grouping
    (first, second) = grouping.blocks(0, 2)
    assert (second.queries, second.keys) == (slice(3, 5), slice(2, 5))
    assert first.mask.int().tolist() == [[[1, 0, 0], [1, 1, 0], [0, 1, 1]]]
    assert second.mask.int().tolist() == [[[1, 1, 0], [0, 1, 1]]]


@pytest.mark.parametrize(
    ("batch", "in_order"),
    [([[5]], True), ([[5], [5]], True), ([[5, 5]], False), ([[5], [4]], False), ([[9, 2]], False)],
)
def test_rows_that_are_their_segments_are_not_moved(batch, in_order):
    sequences = iter(samples(0, [length for row in batch for length in row]))
    rows = lay([[next(sequences) for _ in row] for row in batch])
    assert grouped.prepare(rows, CPU).grouping.in_order is in_order


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(1, 500), min_size=1, max_size=40))
def test_groups_hold_like_lengths_and_every_segment_once(lengths):
    layout = grouped.prepare(lay([samples(0, lengths)]), CPU).grouping
    assert sum(group.runs for group in layout.groups) == len(lengths)
    left = sorted(lengths, reverse=True)
    for group in layout.groups:
        members, left = left[: group.runs], left[group.runs :]
        assert members[0] == group.length
        assert members[-1] >= groups.LIKE_LENGTH * members[0]
        assert group.runs == 1 or group.runs * group.length**2 <= groups.GROUP_SCORES
    places = layout.back[layout.back < sum(g.runs * g.length for g in layout.groups)]
    assert len(set(places.tolist())) == sum(lengths)


def test_padding_comes_out_as_zero():
    rows = lay([[samples(0, [5])[0]], samples(1, [2])])
    out = grouped.prepare(rows, CPU).attend(*inputs(rows), Knobs(0.3))
    assert not out[1, 2:].any()


def test_a_forest_that_is_not_laid_depth_first_is_refused():
    rows = Rows(
        np.zeros((1, 4), dtype=np.int64),
        np.array([[0, 0, 1, 1]]),
        np.array([[0, 1, 2, 3]]),
        np.array([-1, -1, 0, 1]),
        (Leaf("a", 0, 2), Leaf("b", 1, 3)),
    )
    with pytest.raises(UnsupportedError, match=r"grows from segment 0 is not the stretch.*\n.*depth first"):
        grouped.prepare(rows, CPU)
