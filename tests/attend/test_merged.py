"""Merged attention in every type, with narrow values, and bit for bit the same each time."""

import numpy as np
import pytest
import torch

from frisket.attend.backends import dense, grouped, groups, merged
from frisket.attend.backends.matmul import Knobs
from frisket.types import Leaf, Rows

CPU = torch.device("cpu")
LEAVES = [90, 70, 300, 12, 1]


def star(trunk: int, leaves: list[int]) -> Rows:
    """One trunk and what grows from it."""
    segments = np.repeat(np.arange(len(leaves) + 1), [trunk, *leaves])[None]
    positions = np.concatenate([np.arange(trunk), *(np.arange(trunk, trunk + leaf) for leaf in leaves)])[None]
    ends = tuple(Leaf(str(i), 0, i + 1) for i in range(len(leaves)))
    return Rows(np.zeros_like(segments), positions, segments, np.array([-1] + [0] * len(leaves)), ends)


def outputs_and_gradients(backend, rows, dtype, value_width=16, sinks=False):
    generator = torch.Generator().manual_seed(0)
    shapes = [(4, 16), (2, 16), (2, value_width)]
    drawn = [torch.randn(1, heads, rows.input_ids.size, width, generator=generator) for heads, width in shapes]
    drawn += [torch.randn(4, generator=generator)] if sinks else []
    inputs = [x.to(dtype).requires_grad_() for x in drawn]
    knobs = Knobs(0.25, sinks=inputs[3] if sinks else None)
    out = backend.prepare(rows, CPU).attend(*inputs[:3], knobs)
    weights = torch.randn(out.shape, generator=generator).to(dtype)
    return [out.detach(), *torch.autograd.grad((out * weights).sum(), inputs)]


# Relative error in norm that a type may make; bf16 rounds each piece's output, and the shares, to 8 bits.
BARS = {torch.float64: 1e-13, torch.float32: 2e-6, torch.bfloat16: 2e-2}


@pytest.mark.parametrize("dtype", BARS, ids=str)
@pytest.mark.parametrize("sinks", [False, True], ids=["", "sinks"])
@pytest.mark.parametrize("trunk", [20, 400, 900], ids=["gathered", "matmul", "flash"])
def test_a_forest_differs_from_the_reference_by_no_more_than_its_type_allows(dtype, sinks, trunk):
    rows = star(trunk, LEAVES)
    grouping = grouped.prepare(rows, CPU).grouping
    pairs = trunk * sum(LEAVES)
    assert bool(grouping.spans) is (pairs >= groups.SPAN_PAIRS)
    assert (pairs >= merged.FLASH_PAIRS) is (trunk == 900)
    ours = outputs_and_gradients(grouped, rows, dtype, sinks=sinks)
    exact = outputs_and_gradients(dense, rows, torch.float64, sinks=sinks)
    for mine, true in zip(ours, exact, strict=True):
        assert (mine.double() - true).norm() <= BARS[dtype] * true.norm()


@pytest.mark.parametrize("trunk", [400, 900])
def test_values_may_be_narrower_than_queries(trunk):
    rows = star(trunk, LEAVES)
    ours = outputs_and_gradients(grouped, rows, torch.float64, value_width=6)
    for mine, true in zip(ours, outputs_and_gradients(dense, rows, torch.float64, value_width=6), strict=True):
        assert (mine - true).norm() <= 1e-12 * true.norm()


@pytest.mark.parametrize("trunk", [20, 400, 900])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_two_threads_give_the_same_bits_each_time(trunk, dtype):
    rows = star(trunk, LEAVES)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        first, *others = [outputs_and_gradients(grouped, rows, dtype) for _ in range(4)]
    finally:
        torch.set_num_threads(threads)
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
