"""The order of a run: families, steps, resume; a pure function of the data, the seed and the step size."""

from itertools import chain, islice, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frisket import prefixes
from frisket.data.loader import FILL, SHARED_TOKENS, Order, find_families, make_order, sample_hash


def after(prefix, *rest):
    """Token ids: a shared prefix, then what is the sample's own."""
    return np.array([*prefix, *rest], dtype=np.int64)


def families_of(ids, step_tokens):
    return [family.tolist() for family in find_families(ids, lengths_of(ids), np.arange(len(ids)), step_tokens)]


def lengths_of(ids):
    return np.array([len(own) for own in ids], dtype=np.int64)


HEADER = list(range(1000, 1100))
A, B = [*range(40)], [*range(200, 240)]


def test_a_family_shares_at_least_32_tokens():
    short, enough = [*range(SHARED_TOKENS - 1)], [*range(500, 500 + SHARED_TOKENS)]
    ids = [after(short, 1), after(short, 2), after(enough, 1), after(enough, 2)]
    assert families_of(ids, 10_000) == [[0], [1], [2, 3]]


def test_a_header_that_all_share_is_descended():
    """Eight samples under one header: as one family they would fill the step, so what they share beyond it counts."""
    ids = [after(HEADER + A, 1), after(HEADER + B, 1), after(HEADER + A, 2), after(HEADER + B, 2), after(HEADER, 7)]
    assert families_of(ids, 100_000) == [[0, 1, 2, 3, 4]]
    assert families_of(ids, 1000) == [[0, 2], [1, 3], [4]]


def test_what_is_shared_counts_from_the_header():
    """Beyond a header of 100 the two share only 20 tokens: no family."""
    twenty = [*range(20)]
    ids = [after(HEADER + twenty, 1), after(HEADER + twenty, 2), *(after(HEADER, n, n) for n in range(2, 9))]
    assert families_of(ids, 1000) == [[n] for n in range(9)]
    lone = [after(HEADER + twenty, 1), after(HEADER + twenty, 2)]
    assert families_of(lone, 1000) == [[0, 1]]


def test_headers_within_headers():
    inner = [*range(300, 340)]
    ids = [after(HEADER + inner + A, n) for n in range(3)] + [after(HEADER + inner + B, n) for n in range(3)]
    ids += [after(HEADER, n) for n in range(4)]
    found = families_of(ids, 1200)
    assert [0, 1, 2] in found
    assert [3, 4, 5] in found
    assert sorted(chain.from_iterable(found)) == list(range(10))


def test_twins_and_prefixes_are_families():
    long = [*range(50)]
    assert families_of([np.array(long), np.array(long), after(long, 9)], 1000) == [[0, 1, 2]]
    assert families_of([], 1000) == []
    assert families_of([np.array([5])], 1) == [[0]]


def test_ids_above_two_bytes_are_not_confused():
    a = np.full(40, 70_000)
    b = np.full(40, 70_000 + 65_536)
    assert families_of([a, b], 1000) == [[0], [1]]


trees = st.lists(
    st.tuples(st.sampled_from([[], HEADER, HEADER + A, HEADER + B, A, A[:20]]), st.integers(0, 5), st.integers(1, 30)),
    min_size=1,
    max_size=14,
)


def samples_of(tree):
    rng = np.random.default_rng(len(tree))
    return [after(prefix, first, *rng.integers(0, 3, length)) for prefix, first, length in tree]


@settings(max_examples=60, deadline=None)
@given(tree=trees, step_tokens=st.integers(50, 3000))
def test_families_are_a_partition_into_shared_prefixes(tree, step_tokens):
    ids = samples_of(tree)
    found = families_of(ids, step_tokens)
    assert sorted(chain.from_iterable(found)) == list(range(len(ids)))
    for family in found:
        if len(family) > 1:
            shared = min(common(ids[a], ids[b]) for a in family for b in family)
            assert shared >= SHARED_TOKENS
            assert sum(len(ids[i]) for i in family) <= step_tokens / 2


def common(a, b):
    n = min(len(a), len(b))
    differ = np.flatnonzero(a[:n] != b[:n])
    return int(differ[0]) if len(differ) else n


def order_of(ids, *, step_tokens=500, seed=0, weights=(1.0,), sources=None, keep=True):
    sources = np.zeros(len(ids), dtype=np.int64) if sources is None else np.asarray(sources)
    return make_order(
        ids,
        lengths_of(ids),
        np.arange(len(ids)),
        sources,
        weights,
        step_tokens=step_tokens,
        seed=seed,
        keep_families=keep,
    )


def taken(order, epoch=0):
    return [step.samples.tolist() for step in order.epoch(epoch)]


@settings(max_examples=60, deadline=None)
@given(
    tree=trees, step_tokens=st.integers(10, 2000), seed=st.integers(0, 5), epoch=st.integers(0, 3), keep=st.booleans()
)
def test_an_epoch_takes_every_sample_once_and_no_step_is_too_full(tree, step_tokens, seed, epoch, keep):
    ids = samples_of(tree)
    order = order_of(ids, step_tokens=step_tokens, seed=seed, keep=keep)
    steps = order.epoch(epoch)
    assert sorted(np.concatenate([s.samples for s in steps])) == list(range(len(ids)))
    for number, step in enumerate(steps):
        assert (step.epoch, step.index, step.of) == (epoch, number, len(steps))
        size = sum(len(ids[i]) for i in step.samples)
        assert size <= FILL * step_tokens or len(step.samples) == 1
    whole = [set(family.tolist()) for family in order.families]
    for family in whole:  # a family that fits is never cut
        if sum(len(ids[i]) for i in family) <= FILL * step_tokens:
            assert sum(1 for step in steps if family & set(step.samples.tolist())) == 1


def test_a_step_is_closed_only_where_the_next_family_would_not_fit():
    ids = [np.full(10, n) for n in range(30)]
    steps = taken(order_of(ids, step_tokens=102))
    assert [len(step) for step in steps] == [9, 9, 9, 3]  # 98 % of 102 is 99.96


def test_a_sample_larger_than_a_step_is_a_step():
    ids = [np.full(10, 1), np.full(500, 2), np.full(10, 3)]
    assert [1] in taken(order_of(ids, step_tokens=100))


def test_the_order_is_a_pure_function_of_data_and_seed():
    ids = [np.full(20, n) for n in range(40)]
    assert taken(order_of(ids)) == taken(order_of(ids))
    assert taken(order_of(ids)) != taken(order_of(ids, seed=1))
    assert taken(order_of(ids), 0) != taken(order_of(ids), 1)
    order = order_of(ids)
    order.epoch(3)
    assert taken(order) == taken(order_of(ids))


def test_members_of_a_family_are_shuffled_within_it():
    ids = [after(A, n) for n in range(9)]
    order = order_of(ids, step_tokens=1000)
    assert [family.tolist() for family in order.families] == [list(range(9))]
    assert len({tuple(taken(order, epoch)[0]) for epoch in range(4)}) > 1


def test_families_do_not_reach_across_sources():
    ids = [after(A, 1), after(A, 2), after(A, 3), after(A, 4)]
    order = order_of(ids, sources=[0, 1, 0, 1], weights=(1.0, 1.0))
    assert [family.tolist() for family in order.families] == [[0, 2], [1, 3]]
    alone = order_of(ids, sources=[0, 1, 0, 1], weights=(1.0, 1.0), keep=False)
    assert [len(family) for family in alone.families] == [1, 1, 1, 1]


@settings(max_examples=25, deadline=None)
@given(count=st.integers(1, 25), step_tokens=st.integers(20, 200), seed=st.integers(0, 3), stop=st.integers(0, 20))
def test_a_resumed_order_goes_on_exactly(count, step_tokens, seed, stop):
    ids = [np.full(5 + n % 7, n) for n in range(count)]
    order = order_of(ids, step_tokens=step_tokens, seed=seed)
    whole = list(islice(order.steps(), stop + 6))
    last = whole[stop]
    again = order_of(ids, step_tokens=step_tokens, seed=seed)
    rest = list(islice(again.steps(after=(last.epoch, last.index)), 5))
    assert [(s.epoch, s.index, s.samples.tolist()) for s in rest] == [
        (s.epoch, s.index, s.samples.tolist()) for s in whole[stop + 1 :]
    ]


@pytest.mark.parametrize(("weight", "low", "high"), [(2.0, 40, 40), (0.5, 1, 19), (1.5, 21, 39), (1.0, 20, 20)])
def test_weights_say_how_often_an_epoch_uses_a_sample(weight, low, high):
    ids = [np.full(10, n) for n in range(40)]
    order = order_of(ids, sources=[0] * 20 + [1] * 20, weights=(1.0, weight))
    epochs = [np.bincount(np.concatenate(taken(order, epoch)), minlength=40) for epoch in range(40)]
    for counts in epochs:
        assert (counts[:20] == 1).all()
        assert low <= counts[20:].sum() <= high
        assert set(counts[20:]) <= {int(np.floor(weight)), int(np.ceil(weight))}
    assert np.mean([counts[20:].mean() for counts in epochs]) == pytest.approx(weight, abs=0.06)


def test_samples_that_an_epoch_does_not_draw_make_no_empty_step():
    order = order_of([np.full(10, n) for n in range(5)], weights=(0.1,), step_tokens=10)
    for epoch in range(20):
        assert all(len(step.samples) for step in order.epoch(epoch))


@pytest.mark.parametrize(("epochs", "steps"), [(1, 4), (2, 8), (0.5, 2), (0.3, 2), (1.25, 5), (0.01, 1)])
def test_a_fraction_of_an_epoch_is_rounded_up_to_a_step(epochs, steps):
    ids = [np.full(10, n) for n in range(12)]
    order = order_of(ids, step_tokens=31)
    assert order.count(1) == 4
    assert order.count(epochs) == steps


def test_the_hash_chains_steps_and_sees_their_order():
    one = sample_hash(["a", "b"])
    assert sample_hash(["a", "b"]) == one != sample_hash(["b", "a"])
    assert sample_hash(["c"], one) != sample_hash(["c"])
    assert sample_hash(["c"], one) == sample_hash(["c"], sample_hash(["a", "b"]))


def test_ranks_and_arrangements_are_no_part_of_it():
    decided_by = {name for name, field in Order.__dataclass_fields__.items() if field.compare}
    assert decided_by == {"families", "lengths", "repeats", "step_tokens", "seed"}


def test_a_header_that_all_share_is_passed_at_once(monkeypatch):
    """Of 50 samples under 3,000 shared tokens each is read once for the header, not once for every 16 tokens."""
    header, reads = [*range(3000)], []
    ids = [after(header, n % 7, n) for n in range(50)]

    class Counted(list):
        def __getitem__(self, index):
            reads.append(index)
            return super().__getitem__(index)

    monkeypatch.setattr(prefixes, "AT_ONCE", 10)
    order, shared = prefixes.sort_by_prefix(Counted(ids))
    assert order.tolist() == sorted(range(50), key=lambda i: tuple(ids[i].tolist()))
    assert shared.tolist() == [0, *(common(ids[a], ids[b]) for a, b in pairwise(order))]
    assert len(reads) < 4 * 50


@settings(max_examples=60, deadline=None)
@given(tree=trees, at_once=st.integers(1, 6))
def test_sorting_by_blocks_is_sorting_by_all_tokens(tree, at_once):
    """Beyond so many samples blocks of tokens are compared; by hand: sorted tuples, and what neighbours share."""
    ids = samples_of(tree) * 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefixes, "AT_ONCE", at_once)
        order, shared = prefixes.sort_by_prefix(ids)
    assert order.tolist() == sorted(range(len(ids)), key=lambda i: tuple(ids[i].tolist()))
    assert shared.tolist() == [0, *(common(ids[a], ids[b]) for a, b in pairwise(order))]
