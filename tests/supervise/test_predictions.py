"""Which hidden state predicts which token: small cases written by hand, and a slow second way for any."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.models import samples

from frisket.attend.pack import lay, pack
from frisket.supervise.predictions import predictions
from frisket.types import Leaf, Rows


def weighed(sequences, *weights):
    return {s.sample_id: (s, np.array(w, dtype=np.float64)) for s, w in zip(sequences, weights, strict=True)}


def entries(found):
    return list(zip(found.position.tolist(), found.target_ids.tolist(), found.weights.tolist(), strict=True))


def test_a_token_is_predicted_by_the_state_before_it():
    (sample,) = samples(0, [4])
    a, b, c, d = sample.input_ids.tolist()
    assert a is not None
    found = predictions(lay([[sample]]), weighed([sample], [0, 1, 0, 0.5]))
    assert entries(found) == [(0, b, 1.0), (2, d, 0.5)]
    assert c not in {target for _, target, _ in entries(found)} or c in (b, d)


def test_a_neighbour_in_the_row_is_never_a_target():
    sequences = samples(0, [3, 2])
    x, y = (s.input_ids.tolist() for s in sequences)
    found = predictions(lay([sequences]), weighed(sequences, [9, 1, 1], [9, 2]))  # weight of a first token: ignored
    assert entries(found) == [(0, x[1], 1.0), (1, x[2], 1.0), (3, y[1], 2.0)]


def test_padding_shifts_nothing():
    sequences = samples(0, [2, 4])
    rows = lay([[sequences[0]], [sequences[1]]])
    found = predictions(rows, weighed(sequences, [0, 1], [0, 0, 0, 1]))
    assert found.position.tolist() == [0, 6]


def tree_of_two():
    """s0 = p q r a, s1 = p q r b c: three tokens in common."""
    s0, s1 = samples(0, [4, 5])
    s0.input_ids[:] = [11, 12, 13, 21]
    s1.input_ids[:] = [11, 12, 13, 31, 32]
    rows = Rows(
        np.array([[11, 12, 13, 21, 31, 32]]),
        np.array([[0, 1, 2, 3, 3, 4]]),
        np.array([[0, 0, 0, 1, 2, 2]]),
        np.array([-1, 0, 0]),
        (Leaf("s0", 0, 1), Leaf("s1", 0, 2)),
    )
    return rows, [s0, s1]


def test_at_a_branch_one_state_has_several_targets_and_shared_tokens_the_sum_of_their_weights():
    rows, sequences = tree_of_two()
    found = predictions(rows, weighed(sequences, [0, 1, 0, 2], [0, 0.5, 3, 4, 5]))
    assert entries(found) == [(0, 12, 1.5), (1, 13, 3.0), (2, 21, 2.0), (2, 31, 4.0), (4, 32, 5.0)]


def test_weights_that_cancel_leave_nothing():
    rows, sequences = tree_of_two()
    found = predictions(rows, weighed(sequences, [0, 1, 0, 0], [0, -1, 0, 0, 1]))
    assert entries(found) == [(4, 32, 1.0)]


def test_two_samples_may_end_in_one_segment():
    rows, (s0, _) = tree_of_two()
    twins = Rows(
        rows.input_ids[:, :4],
        rows.position_ids[:, :4],
        np.array([[0, 0, 0, 1]]),
        np.array([-1, 0]),
        (Leaf("s0", 0, 1), Leaf("twin", 0, 1)),
    )
    pairs = {"s0": (s0, np.array([0, 0, 0, 1.0])), "twin": (s0, np.array([0, 0, 0, 2.0]))}
    assert entries(predictions(twins, pairs)) == [(2, 21, 3.0)]


def test_in_a_chain_no_sample_predicts_the_next_one():
    sequences = samples(0, [3, 2])
    rows = lay([sequences])
    chain = Rows(rows.input_ids, np.arange(5)[None], rows.segment_ids, np.array([-1, 0]), rows.leaves)
    pairs = weighed(sequences, [0, 1, 1], [1, 1])
    assert entries(predictions(chain, pairs)) == entries(predictions(rows, pairs))


def test_under_a_virtual_root_samples_start_at_its_child():
    (sample,) = samples(0, [2])
    rows = Rows(
        np.array([[0, 0, *sample.input_ids]]),
        np.arange(4)[None],
        np.array([[0, 0, 1, 1]]),
        np.array([-1, 0]),
        (Leaf("s0", 1, 1),),
    )
    assert entries(predictions(rows, weighed([sample], [0, 1]))) == [(2, int(sample.input_ids[1]), 1.0)]


def test_a_path_that_does_not_lead_back_is_an_error():
    rows, sequences = tree_of_two()
    lost = Rows(rows.input_ids, rows.position_ids, rows.segment_ids, rows.parent_segment, (Leaf("s0", 1, 2),))
    with pytest.raises(ValueError, match="segment 1 is no ancestor of segment 2"):
        predictions(lost, weighed(sequences, [0, 1, 1, 1], [0, 1, 1, 1, 1]))


def test_samples_that_teach_nothing_give_no_entries():
    sequences = samples(0, [1, 3])
    assert len(predictions(lay([sequences]), weighed(sequences, [1], [0, 0, 0]))) == 0


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=8), row_tokens=st.integers(1, 20), seed=st.integers(0, 9)
)
def test_any_packing_predicts_each_token_once_with_its_weight(lengths, row_tokens, seed):
    rng = np.random.default_rng(seed)
    sequences = samples(seed, lengths)
    pairs = {s.sample_id: (s, rng.normal(size=len(s)) * (rng.random(len(s)) < 0.6)) for s in sequences}
    found = []
    for rows in pack(sequences, "isolated", row_tokens, 2):
        flat_ids, flat_depth = rows.input_ids.ravel(), rows.position_ids.ravel()
        owner = {leaf.first: leaf.sample_id for leaf in rows.leaves}
        for position, target, weight in entries(predictions(rows, pairs)):
            name, depth = owner[int(rows.segment_ids.ravel()[position])], int(flat_depth[position]) + 1
            assert flat_ids[position + 1] == target
            found.append((name, depth, target, weight))
    wanted = [
        (name, depth, int(sequence.input_ids[depth]), float(weights[depth]))
        for name, (sequence, weights) in pairs.items()
        for depth in range(1, len(sequence))
        if weights[depth]
    ]
    assert sorted(found) == sorted(wanted)
