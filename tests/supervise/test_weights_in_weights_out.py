"""Every weight that a policy gives arrives at a prediction, through every packing."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.models import VOCAB

from frisket.attend.pack import pack
from frisket.supervise.boilerplate import Phrase
from frisket.supervise.policies import POLICIES, Teaching, token_weights
from frisket.supervise.predictions import path_between, predictions
from frisket.supervise.settings import TeachSettings
from frisket.types import OWN_WEIGHT, PADDING_SEGMENT, Provenance, Sequence

ARRANGEMENTS = ("padded", "isolated", "forest", "mask-free", "alone")


def relatives(seed, count):
    """Samples of random provenance, weights of the data included, that share prefixes with one another."""
    rng = np.random.default_rng(seed)
    made: list[Sequence] = []
    for index in range(count):
        length = int(rng.integers(2, 14))
        ids, roles = rng.integers(3, VOCAB, length), np.sort(rng.integers(0, len(Provenance), length))
        turns = np.sort(rng.integers(-1, 3, length))
        if made and rng.random() < 0.7:
            other = made[int(rng.integers(len(made)))]
            shared = int(rng.integers(1, len(other) + 1))
            ids, roles, turns = (
                np.concatenate([theirs[:shared], mine])
                for theirs, mine in ((other.input_ids, ids), (other.roles, roles), (other.turns, turns))
            )
        said = np.where(rng.random(len(ids)) < 0.2, rng.normal(size=len(ids)).round(2), np.nan)
        own = np.where(rng.random(len(ids)) < 0.5, OWN_WEIGHT, 0)
        made.append(
            Sequence(
                f"s{index}",
                0,
                ids.astype(np.int32),
                roles.astype(np.uint8),
                turns.astype(np.int32),
                own.astype(np.uint32),
                said,
            )
        )
    return made


def wanted(weighted):
    """Weight by (what is read, what comes next), summed over the samples that agree on both."""
    found: Counter = Counter()
    for sequence, weights in weighted.values():
        ids = sequence.input_ids.tolist()
        for place in range(1, len(ids)):
            found[(*ids[:place],), ids[place]] += weights[place]
    return found


def arrived(batches, weighted):
    """The same, read off the predictions: what is read is the path of ancestors down to the hidden state."""
    found: Counter = Counter()
    for rows in batches:
        told = predictions(rows, weighted)
        flat, ids = rows.segment_ids.ravel(), rows.input_ids.ravel()
        for position, target, weight in zip(told.position, told.target_ids, told.weights, strict=True):
            first = next(leaf.first for leaf in rows.leaves if _is_on(rows, leaf, flat[position]))
            path = path_between(rows, first, int(flat[position]))
            read = [int(ids[p]) for p in np.flatnonzero(np.isin(flat, path)) if p <= position]
            found[(*read,), int(target)] += weight
    return found


def _is_on(rows, leaf, segment):
    return segment != PADDING_SEGMENT and segment in path_between(rows, leaf.first, leaf.last)


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 500),
    count=st.integers(1, 6),
    policy=st.sampled_from(sorted(POLICIES)),
    prompt_weight=st.sampled_from([0.0, 0.1, -0.5]),
)
def test_each_weight_arrives_once_at_the_state_that_read_what_precedes_it(
    arrangement, seed, count, policy, prompt_weight
):
    samples = relatives(seed, count)
    rule = {"roles": ["assistant", "user"], "turns": "last", "weight": 0.5}
    settings = TeachSettings(policy=policy, prompt_weight=prompt_weight, roles={"user": 0.3}, rules=[rule])
    ids = tuple(samples[0].input_ids[-2:].tolist())
    told = Teaching(settings, (Phrase(Provenance.USER, "end", ids, 9, 9),))
    weighted = {s.sample_id: (s, token_weights(s, told)) for s in samples}
    batches = pack(samples, arrangement, 24, 2)
    ours, truth = arrived(batches, weighted), wanted(weighted)
    for key in ours.keys() | truth.keys():
        assert abs(ours[key] - truth[key]) <= 1e-12, key
