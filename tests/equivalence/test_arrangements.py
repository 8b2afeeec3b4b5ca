"""Alone, padded, isolated, in any order of rows and for any signed weights: one loss, one gradient."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.models import PLAIN, gradients, samples, tiny

from frisket.attend.pack import lay, pack
from frisket.hf.forward import hidden_states
from frisket.hf.heads import head_of
from frisket.supervise.loss import summed_loss
from frisket.supervise.predictions import predictions
from frisket.types import Rows


def alone(sequences):
    """One row for each sample, one at a time."""
    return pack(sequences, "alone", 1)


LENGTHS = [7, 3, 12, 1, 9, 5, 16, 2]


def weighted(sequences, seed):
    rng = np.random.default_rng(seed)
    pairs = {}
    for sequence in sequences:
        weights = rng.normal(size=len(sequence)) * (rng.random(len(sequence)) < 0.7)
        weights[:1] = 0
        pairs[sequence.sample_id] = (sequence, weights)
    return pairs


def loss_and_gradients(model, batches: list[Rows], pairs, backend="grouped", chunk=5):
    model.zero_grad()
    total = 0.0
    for rows in batches:
        guesses = predictions(rows, {leaf.sample_id: pairs[leaf.sample_id] for leaf in rows.leaves})
        loss = summed_loss(hidden_states(model, rows, backend), guesses, head_of(model), chunk)
        loss.backward()
        total += loss.item()
    return total, {name: grad.clone() for name, grad in gradients(model)}


def assert_same(a, b, bar=1e-10):
    assert abs(a[0] - b[0]) <= bar * max(1.0, abs(b[0]))
    assert a[1].keys() == b[1].keys()
    for name, grad in a[1].items():
        other = b[1][name]
        assert (grad - other).norm() <= bar * other.norm() + 1e-13, name


@pytest.mark.parametrize("family", PLAIN)
def test_alone_padded_isolated_and_dense_agree(family):
    model = tiny(family)
    sequences = samples(1, LENGTHS)
    pairs = weighted(sequences, 2)
    truth = loss_and_gradients(model, alone(sequences), pairs, backend="sdpa")
    for arrangement, row_tokens, micro_rows in (
        ("padded", 32, 1),
        ("isolated", 20, 1),
        ("isolated", 20, 3),
        ("isolated", 64, 1),
    ):
        batches = pack(sequences, arrangement, row_tokens, micro_rows)
        assert_same(loss_and_gradients(model, batches, pairs), truth)
        assert_same(loss_and_gradients(model, batches[::-1], pairs, backend="sdpa"), truth)


@settings(max_examples=15, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=9),
    row_tokens=st.integers(1, 40),
    micro_rows=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_any_lengths_any_rows_any_weights(lengths, row_tokens, micro_rows, seed):
    model = tiny("llama")
    sequences = samples(seed, lengths)
    pairs = weighted(sequences, seed + 1)
    if not any(weights.any() for _, weights in pairs.values()):
        return
    truth = loss_and_gradients(model, alone(sequences), pairs)
    for arrangement in ("padded", "isolated"):
        assert_same(loss_and_gradients(model, pack(sequences, arrangement, row_tokens, micro_rows), pairs), truth)


def test_long_segments_use_the_flash_path_and_agree():
    model = tiny("llama", max_position_embeddings=1024)
    sequences = samples(3, [300, 270, 40])
    pairs = weighted(sequences, 4)
    truth = loss_and_gradients(model, alone(sequences), pairs, backend="sdpa")
    assert_same(loss_and_gradients(model, pack(sequences, "isolated", 700), pairs), truth)


@pytest.mark.parametrize("family", ["mistral", "gemma2", "gpt_oss"])
def test_long_segments_with_windows_caps_and_sinks_agree(family):
    changes = {"sliding_window": 290} if family == "mistral" else {"sliding_window": 40}
    model = tiny(family, max_position_embeddings=1024, **changes)
    sequences = samples(3, [300, 270, 40])
    pairs = weighted(sequences, 4)
    truth = loss_and_gradients(model, alone(sequences), pairs, backend="sdpa")
    assert_same(loss_and_gradients(model, pack(sequences, "isolated", 700), pairs), truth)


def test_a_chain_differs():
    """Mask-free rows are not isolated rows: the test above could see a leak."""
    model = tiny("llama")
    sequences = samples(1, [7, 9])
    pairs = weighted(sequences, 2)
    rows = lay([sequences])
    chain = Rows(rows.input_ids, np.arange(16)[None], rows.segment_ids, np.array([-1, 0]), rows.leaves)
    apart, _ = loss_and_gradients(model, [rows], pairs, backend="sdpa")
    together, _ = loss_and_gradients(model, [chain], pairs, backend="sdpa")
    assert abs(apart - together) > 1e-3


def test_hugging_faces_loss_is_ours_over_its_tokens():
    model = tiny("llama", dtype=torch.float32)
    sequence = samples(5, [20])[0]
    ones = np.ones(20)
    ones[0] = 0
    ours, _ = loss_and_gradients(model, alone([sequence]), {"s0": (sequence, ones)})
    ids = torch.from_numpy(sequence.input_ids.astype(np.int64))[None]
    from frisket.hf.attention import own_attention

    with own_attention(model):
        theirs = model(ids, labels=ids).loss.item()
    assert abs(ours / 19 - theirs) <= 1e-6 * theirs


def test_a_shared_prefix_sums_the_weights_of_its_samples():
    """The dense reference already carries forests: what later backends are held to."""
    model = tiny("llama")
    from frisket.types import Leaf

    a, b = samples(6, [8, 8])
    b.input_ids[:5] = a.input_ids[:5]
    pairs = weighted([a, b], 7)
    ids = np.concatenate([a.input_ids, b.input_ids[5:]]).astype(np.int64)[None]
    positions = np.array([[*range(8), 5, 6, 7]])
    segments = np.array([[0] * 5 + [1] * 3 + [2] * 3])
    tree = Rows(ids, positions, segments, np.array([-1, 0, 0]), (Leaf("s0", 0, 1), Leaf("s1", 0, 2)))
    truth = loss_and_gradients(model, alone([a, b]), pairs)
    assert_same(loss_and_gradients(model, [tree], pairs, backend="sdpa"), truth)
