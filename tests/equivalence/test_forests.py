"""Random forests equal the samples that they stand for: loss, gradients, in any order, with every backend."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.equivalence.test_arrangements import alone, assert_same, loss_and_gradients, weighted
from tests.models import PLAIN, VOCAB, sample, tiny

from frisket.attend.backends import groups, merged
from frisket.attend.forest import nodes_of, plant
from frisket.attend.pack import lay_forest, pack


@pytest.fixture(autouse=True, params=["merged", "flash", "gathered"])
def _small_blocks(request, monkeypatch):
    """Blocks small enough that rows of a test have several; trunks as spans, or put in front of the runs."""
    monkeypatch.setattr(groups, "QUERY_BLOCK", 5)
    monkeypatch.setattr(merged, "SPAN_SCORES", 40)
    monkeypatch.setattr(groups, "SPAN_PAIRS", 1 << 16 if request.param == "gathered" else 30)
    if request.param == "flash":
        monkeypatch.setattr(merged, "FLASH_PAIRS", 40)
        monkeypatch.setattr(merged, "FLASH_TOKENS", 2)


def relatives(seed, count, depth, branches=2, longest=7):
    """Samples that share prefixes: each follows a random path of a random tree, and ends anywhere on it."""
    rng = np.random.default_rng(seed)
    pieces = {}

    def piece(path):
        return pieces.setdefault(path, rng.integers(3, VOCAB, rng.integers(1, longest + 1)))

    made = []
    for number in range(count):
        path = tuple(int(b) for b in rng.integers(0, branches, rng.integers(1, depth + 1)))
        tokens = np.concatenate([piece(path[: level + 1]) for level in range(len(path))])
        if rng.random() < 0.3:  # ends inside a piece: an empty branch where another goes on
            tokens = tokens[: rng.integers(1, len(tokens) + 1)]
        made.append(replace(sample(rng, len(tokens), f"s{number}"), input_ids=tokens.astype(np.int32)))
    return made


def forest(samples, row_tokens, shortest, micro_rows=1):
    """``pack(..., "forest")`` with another least length of a shared piece."""
    trees = plant(samples, row_tokens, shortest)
    return [
        lay_forest([[tree] for tree in trees[i : i + micro_rows]], samples) for i in range(0, len(trees), micro_rows)
    ]


@pytest.mark.parametrize("family", PLAIN)
def test_forests_of_every_family_equal_their_samples(family):
    model = tiny(family)
    samples = relatives(3, 9, depth=4)
    pairs = weighted(samples, 4)
    truth = loss_and_gradients(model, alone(samples), pairs, backend="sdpa")
    for row_tokens, micro_rows in ((200, 1), (25, 1), (25, 3)):
        batches = forest(samples, row_tokens, 1, micro_rows)
        assert any((rows.parent_segment >= 0).any() for rows in batches)
        assert_same(loss_and_gradients(model, batches, pairs), truth)
        assert_same(loss_and_gradients(model, batches[::-1], pairs, backend="sdpa"), truth)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 10_000),
    count=st.integers(1, 10),
    depth=st.integers(1, 5),
    branches=st.integers(1, 3),
    longest=st.sampled_from([1, 3, 8]),
    row_tokens=st.integers(1, 60),
    shortest=st.integers(1, 4),
    micro_rows=st.integers(1, 3),
)
def test_random_forests_equal_their_samples(seed, count, depth, branches, longest, row_tokens, shortest, micro_rows):
    model = tiny("llama")
    samples = relatives(seed, count, depth, branches, longest)
    pairs = weighted(samples, seed + 1)
    if not any(weights.any() for _, weights in pairs.values()):
        return
    truth = loss_and_gradients(model, alone(samples), pairs)
    order = np.random.default_rng(seed).permutation(count)
    batches = forest([samples[i] for i in order], row_tokens, shortest, micro_rows)
    assert_same(loss_and_gradients(model, batches, pairs), truth)


@pytest.mark.parametrize("family", ["mistral", "gpt_oss"])
@pytest.mark.parametrize("seed", range(4))
def test_windows_are_counted_along_the_path(family, seed):
    model = tiny(family)
    samples = relatives(seed, 8, depth=5, longest=6)
    pairs = weighted(samples, seed)
    truth = loss_and_gradients(model, alone(samples), pairs, backend="sdpa")
    assert_same(loss_and_gradients(model, forest(samples, 200, 1), pairs), truth)


def test_two_samples_that_are_alike_are_computed_once_and_count_twice():
    model = tiny("llama")
    one = relatives(1, 1, depth=3)[0]
    two = [one, replace(one, sample_id="again")]
    weights = np.ones(len(one))
    weights[0] = 0
    pairs = {"s0": (two[0], weights), "again": (two[1], -0.25 * weights)}
    rows = forest(two, 100, 1)
    assert sum(r.real_tokens for r in rows) == len(one)
    assert_same(loss_and_gradients(model, rows, pairs), loss_and_gradients(model, alone(two), pairs))


def test_a_segment_that_fills_its_row_and_segments_of_one_token():
    model = tiny("llama")
    rng = np.random.default_rng(0)
    trunk = rng.integers(3, VOCAB, 30)
    ends = [[5], [6], [7, 8], []]
    samples = [
        replace(sample(rng, 30 + len(end), f"s{i}"), input_ids=np.array([*trunk, *end], np.int32))
        for i, end in enumerate(ends)
    ]
    pairs = weighted(samples, 1)
    truth = loss_and_gradients(model, alone(samples), pairs)
    for row_tokens in (30, 31, 100):
        assert_same(loss_and_gradients(model, forest(samples, row_tokens, 1), pairs), truth)
    assert [node.stop - node.start for node in nodes_of(plant(samples, 100, 1)[0])] == [30, 1, 1, 2]


def test_answers_with_advantages_that_sum_to_zero_equal_the_repeated_prefix():
    """What Prefix Grouper (arXiv 2506.05433) claims for a group of answers: the gradient of repeating the prompt."""
    model = tiny("qwen3")
    rng = np.random.default_rng(5)
    prompt = rng.integers(3, VOCAB, 20)
    answers = [rng.integers(3, VOCAB, length) for length in (6, 11, 1, 9)]
    advantages = np.array([0.9, -0.2, -1.1, 0.4])
    pairs = {}
    for number, answer in enumerate(answers):
        tokens = np.concatenate([prompt, answer]).astype(np.int32)
        weights = np.where(np.arange(len(tokens)) < 20, 0.0, advantages[number])
        pairs[f"s{number}"] = (replace(sample(rng, len(tokens), f"s{number}"), input_ids=tokens), weights)
    samples = [sequence for sequence, _ in pairs.values()]
    batches = pack(samples, "forest", 200)
    assert len(batches) == 1
    assert batches[0].real_tokens == 20 + sum(map(len, answers))
    assert_same(loss_and_gradients(model, batches, pairs), loss_and_gradients(model, alone(samples), pairs))


def test_a_chain_equals_plain_causal_attention_over_the_row():
    from frisket.hf.attention import own_attention
    from frisket.hf.forward import hidden_states

    model = tiny("llama").eval()
    samples = relatives(2, 5, depth=2)
    (rows,) = pack(samples, "mask-free", 200)
    import torch

    with torch.no_grad():
        ours = hidden_states(model, rows)
        dense = hidden_states(model, rows, "sdpa")
        with own_attention(model):
            theirs = model.model(torch.from_numpy(rows.input_ids), use_cache=False).last_hidden_state[0]
    assert (ours - theirs).abs().max() <= 1e-12
    assert (dense - theirs).abs().max() <= 1e-12


def test_a_chain_trains_no_sample_on_its_neighbour_and_differs_from_isolated():
    model = tiny("llama")
    samples = relatives(7, 5, depth=2)
    pairs = {s.sample_id: (s, np.ones(len(s))) for s in samples}
    chain, apart = pack(samples, "mask-free", 200), pack(samples, "isolated", 200)
    together = loss_and_gradients(model, chain, pairs)
    assert_same(together, loss_and_gradients(model, chain, pairs, backend="sdpa"))
    assert abs(together[0] - loss_and_gradients(model, apart, pairs)[0]) > 1e-3
    from frisket.supervise.predictions import predictions

    taught = sum(len(predictions(rows, pairs)) for rows in chain)
    assert taught == sum(len(s) - 1 for s in samples)
