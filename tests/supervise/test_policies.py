"""From provenance to weights, on one conversation written by hand."""

import re

import numpy as np
import pytest
from tests.models import samples

from frisket.supervise.policies import POLICIES, problem_of, rule_names, token_weights
from frisket.supervise.settings import SuperviseSettings
from frisket.types import Provenance, Sequence

P = Provenance
#        bos    header      user    header      think        answer       end
ROLES = [P.BOS, P.TEMPLATE, P.USER, P.TEMPLATE, P.ASSISTANT, P.END_OF_TURN]
ROLES += [P.TEMPLATE, P.USER, P.TEMPLATE, P.REASONING, P.ASSISTANT, P.TOOL_CALL, P.END_OF_TURN]
ROLES += [P.TEMPLATE, P.TOOL_RESULT]
TURNS = [-1, 0, 0, 1, 1, 1, 2, 2, 3, 3, 3, 3, 3, 4, 4]
NOTHING = [np.nan] * len(ROLES)


def sequence(roles=ROLES, turns=TURNS, said=None):
    said = [np.nan] * len(roles) if said is None else said
    return Sequence(
        "s",
        0,
        np.arange(len(roles), dtype=np.int32),
        np.array(roles, dtype=np.uint8),
        np.array(turns, dtype=np.int32),
        np.zeros(len(roles), dtype=np.uint32),
        np.array(said, dtype=np.float64),
    )


@pytest.mark.parametrize(
    ("policy", "taught"),
    [("assistant", [4, 5, 9, 10, 11, 12]), ("completion", [9, 10, 11, 12]), ("all", list(range(1, 15)))],
)
def test_what_each_policy_teaches(policy, taught):
    weights = token_weights(sequence(), SuperviseSettings(policy=policy))
    assert np.flatnonzero(weights).tolist() == taught
    assert set(weights[taught]) == {1.0}
    assert weights.dtype == np.float64


def test_raw_text_counts_as_written_by_the_assistant():
    text = sequence([P.BOS, P.TEXT, P.TEXT], [-1, 0, 0])
    for policy in POLICIES:
        assert token_weights(text, SuperviseSettings(policy=policy)).tolist() == [0, 1, 1]


def test_what_the_data_says_replaces_the_policy_on_any_token_and_with_any_sign():
    said = NOTHING.copy()
    said[2], said[4], said[10] = 0.5, 0.0, -2.0
    weights = token_weights(sequence(said=said), SuperviseSettings())
    assert weights.tolist() == [0, 0, 0.5, 0, 0, 1, 0, 0, 0, 1, -2, 1, 1, 0, 0]


def test_the_first_token_is_nobodys_target():
    said = [7.0] + [np.nan] * (len(ROLES) - 1)
    assert token_weights(sequence(said=said), SuperviseSettings(policy="all"))[0] == 0
    assert token_weights(sequence([], []), SuperviseSettings()).tolist() == []


def test_every_token_says_which_rule_weighed_it():
    said = NOTHING.copy()
    said[4] = 0.25
    names = rule_names(sequence(said=said), SuperviseSettings())
    assert names[0] == "first token: nothing predicts it"
    assert names[2] == "policy assistant: user is not taught"
    assert names[4] == "the data says 0.25"
    assert names[11] == "policy assistant: tool_call"
    assert rule_names(sequence([], []), SuperviseSettings()) == []


@pytest.mark.parametrize(
    ("roles", "turns", "reason"),
    [
        ([P.BOS, P.TEMPLATE, P.USER], [-1, 0, 0], "nothing is supervised under `assistant`: it ends with a user token"),
        ([P.BOS, P.TOOL_RESULT, P.TEMPLATE], [-1, 0, -1], "it ends with a tool result token"),
        ([P.BOS], [-1], "nothing is supervised under `assistant`$"),
        ([P.ASSISTANT], [0], "it ends with a assistant token"),
    ],
)
def test_why_a_sample_cannot_be_taught(roles, turns, reason):
    assert re.search(reason, problem_of(sequence(roles, turns), SuperviseSettings()) or "")


def test_a_sample_that_can_be_taught_is_no_problem():
    assert problem_of(samples(0, [3])[0], SuperviseSettings()) is None
    assert problem_of(sequence(), SuperviseSettings()) is None


def test_a_sample_whose_data_takes_every_weight_away_is_a_problem():
    assert problem_of(sequence(said=[0.0] * len(ROLES)), SuperviseSettings(policy="all"))
