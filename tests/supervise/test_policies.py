"""From provenance to weights, on one conversation written by hand."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.models import samples

from frisket.errors import ConfigError
from frisket.supervise.normaliser import normaliser
from frisket.supervise.policies import POLICIES, Teaching, check, problem_of, rule_names, token_weights
from frisket.supervise.settings import Rule, SuperviseSettings, TeachSettings
from frisket.types import OWN_WEIGHT, Provenance, Sequence

P = Provenance
#        bos    header      user    header      answer       end
ROLES = [P.BOS, P.TEMPLATE, P.USER, P.TEMPLATE, P.ASSISTANT, P.END_OF_TURN]
#         header      user    header      think        answer       call         end
ROLES += [P.TEMPLATE, P.USER, P.TEMPLATE, P.REASONING, P.ASSISTANT, P.TOOL_CALL, P.END_OF_TURN]
ROLES += [P.TEMPLATE, P.TOOL_RESULT, P.TEMPLATE, P.ASSISTANT, P.END_OF_TURN]
TURNS = [-1, 0, 0, 1, 1, 1, 2, 2, 3, 3, 3, 3, 3, 4, 4, 5, 5, 5]
NOTHING = [np.nan] * len(ROLES)


def sequence(roles=ROLES, turns=TURNS, said=None, own=False):
    said = [np.nan] * len(roles) if said is None else said
    return Sequence(
        "s",
        0,
        np.arange(len(roles), dtype=np.int32),
        np.array(roles, dtype=np.uint8),
        np.array(turns, dtype=np.int32),
        np.full(len(roles), OWN_WEIGHT if own else 0, dtype=np.uint32),
        np.array(said, dtype=np.float64),
    )


def teaching(**knobs):
    return Teaching(TeachSettings(**knobs))


def weights_of(said=None, own=False, **knobs):
    return token_weights(sequence(said=said, own=own), teaching(**knobs))


EVERYTHING = list(range(1, 18))
ANSWERS = [4, 5, 9, 10, 11, 12, 16, 17]


@pytest.mark.parametrize(
    ("policy", "taught"),
    [
        ("assistant", ANSWERS),
        ("completion", [9, 10, 11, 12, 16, 17]),
        ("last-turn", [16, 17]),
        ("instructions", [2, 4, 5, 7, 9, 10, 11, 12, 14, 16, 17]),
        ("boilerplate", [2, 4, 5, 7, 9, 10, 11, 12, 14, 16, 17]),
        ("all", EVERYTHING),
    ],
)
def test_what_each_policy_teaches(policy, taught):
    weights = weights_of(policy=policy)
    assert np.flatnonzero(weights).tolist() == taught
    assert set(weights[taught]) == {1.0}
    assert weights.dtype == np.float64


def test_every_policy_has_its_row_above():
    rows = test_what_each_policy_teaches.pytestmark[0].args[1]
    assert {name for name, _ in rows} | {"roles"} == set(POLICIES)


def test_raw_text_counts_as_written_by_the_assistant():
    text = sequence([P.BOS, P.TEXT, P.TEXT], [-1, 0, 0])
    for policy in set(POLICIES) - {"roles"}:
        assert token_weights(text, teaching(policy=policy)).tolist() == [0, 1, 1]


def test_the_prompts_weight_goes_to_what_the_policy_does_not_teach():
    weights = weights_of(prompt_weight=0.25, answer_weight=2)
    assert set(weights[ANSWERS]) == {2.0}
    assert set(np.delete(weights, [0, *ANSWERS])) == {0.25}


def test_a_prompt_weight_of_one_is_all_and_of_zero_is_the_policy():
    assert np.array_equal(weights_of(prompt_weight=1), weights_of(policy="all"))
    assert np.array_equal(weights_of(prompt_weight=0), weights_of())


def test_weighted_instruction_tuning_divides_by_a_count_so_that_half_of_both_weights_is_half_the_step():
    full, half = weights_of(prompt_weight=0.4, answer_weight=0.6), weights_of(prompt_weight=0.2, answer_weight=0.3)
    assert normaliser([full], "tokens") == normaliser([half], "tokens") == len(EVERYTHING)
    assert np.allclose(full / normaliser([full], "tokens"), 2 * half / normaliser([half], "tokens"))


def test_a_prompt_weight_near_zero_is_nearly_none():
    tiny, none = weights_of(prompt_weight=1e-12), weights_of()
    assert np.abs(tiny / normaliser([tiny], "weights") - none / normaliser([none], "weights")).max() <= 1e-12


def test_instruction_modelling_is_the_sum_of_both_halves():
    """loss(instructions) x its tokens = loss(prompt alone) x its tokens + loss(answers) x theirs."""
    prompt = weights_of(policy="roles", roles={"user": 1, "tool_result": 1})
    assert np.array_equal(weights_of(policy="instructions"), prompt + weights_of())


def test_roles_replace_the_policys_weights():
    weights = weights_of(roles={"reasoning": 0, "tool_result": 0.5})
    assert (weights[9], weights[14], weights[10]) == (0, 0.5, 1)
    only = weights_of(policy="roles", roles={"tool_result": 0.5})
    assert np.flatnonzero(only).tolist() == [14]


def test_what_a_message_says_replaces_the_policy_on_any_token_and_with_any_sign():
    said = NOTHING.copy()
    said[2], said[4], said[10] = 0.5, 0.0, -2.0
    weights = weights_of(said=said)
    assert weights.tolist() == [0, 0, 0.5, 0, 0, 1, 0, 0, 0, 1, -2, 1, 1, 0, 0, 0, 1, 1]


def test_rules_multiply_in_order_after_the_messages_weights():
    said = NOTHING.copy()
    said[4] = 0.0
    said[10] = 4.0
    rules = ({"roles": ["assistant"], "weight": 0.5}, {"turns": "earlier", "weight": 0.1})
    weights = weights_of(said=said, rules=rules)
    assert weights[4] == 0
    assert np.allclose([weights[10], weights[9], weights[16], weights[17]], [0.2, 0.1, 0.5, 1])
    assert weights_of(rules=({"turns": "last", "weight": 3},))[ANSWERS].tolist() == [1] * 6 + [3, 3]


def test_a_tokens_own_weight_replaces_all():
    said = [0.25] * len(ROLES)
    assert weights_of(said=said, own=True, policy="all", rules=({"weight": 10},)).tolist() == [0] + [0.25] * 17


def test_the_first_token_is_nobodys_target():
    said = [7.0] + [np.nan] * (len(ROLES) - 1)
    assert weights_of(said=said, policy="all")[0] == 0
    assert token_weights(sequence([], []), teaching()).tolist() == []


def test_every_token_says_which_rules_weighed_it_in_order():
    said = NOTHING.copy()
    said[4] = 0.25
    rules = (Rule(roles=("assistant",), weight=2),)
    names = rule_names(sequence(said=said), teaching(rules=rules, prompt_weight=0.1, roles={"tool_call": 0.5}))
    assert names[0][-1] == "first token: nothing predicts it"
    assert names[2] == ("not taught by policy assistant, prompt_weight 0.1",)
    assert names[4] == ("policy assistant", "the message's weight 0.25", "rule 1: × 2")
    assert names[11] == ("policy assistant", "roles.tool_call = 0.5")
    assert rule_names(sequence([], []), teaching()) == []
    assert rule_names(sequence(said=[1.0] * 18, own=True), teaching())[5][-1] == "the token's own weight"


@given(
    st.lists(st.sampled_from(list(P)), min_size=1, max_size=12), st.sampled_from(sorted(POLICIES)), st.integers(0, 9)
)
def test_each_token_has_at_least_one_rule_and_the_folded_weight(roles, policy, seed):
    rng = np.random.default_rng(seed)
    said = np.where(rng.random(len(roles)) < 0.3, rng.integers(0, 3, len(roles)) / 2, np.nan)
    one = sequence(roles, np.sort(rng.integers(-1, 3, len(roles))), said)
    told = teaching(policy=policy, rules=({"turns": "last", "weight": 0.5},))
    assert all(rule_names(one, told))
    assert np.isfinite(token_weights(one, told)).all()


@pytest.mark.parametrize(
    ("roles", "turns", "reason"),
    [
        (
            [P.BOS, P.TEMPLATE, P.USER],
            [-1, 0, 0],
            "nothing is supervised under `assistant`: its last written token is of the user",
        ),
        ([P.BOS, P.TOOL_RESULT, P.TEMPLATE], [-1, 0, -1], "its last written token is of the tool result"),
        ([P.BOS], [-1], "nothing is supervised under `assistant`$"),
        ([P.ASSISTANT], [0], "every token that `assistant` teaches has weight 0"),
    ],
)
def test_why_a_sample_cannot_be_taught(roles, turns, reason):
    assert re.search(reason, problem_of(sequence(roles, turns), teaching()) or "")


def test_a_sample_that_can_be_taught_is_no_problem():
    assert problem_of(samples(0, [3])[0], teaching()) is None
    for policy in set(POLICIES) - {"roles"}:
        assert problem_of(sequence(), teaching(policy=policy)) is None


def test_a_sample_whose_data_takes_every_weight_away_is_a_problem():
    reason = problem_of(sequence(said=[0.0] * len(ROLES)), teaching(policy="all"))
    assert reason == "every token that `all` teaches has weight 0, by the data or by the recipe"


def test_an_answer_without_its_end_token_is_a_problem_unless_asked_for():
    silent = {"policy": "roles", "roles": {"assistant": 1}}
    reason = problem_of(sequence(), teaching(**silent))
    assert reason == "messages[1] (assistant) is taught without its end token; the model would not stop"
    elsewhere = NOTHING.copy()
    elsewhere[2] = 0.5
    assert problem_of(sequence(said=elsewhere), teaching(**silent)) == reason
    assert problem_of(sequence(), teaching(policy="roles", roles={"assistant": 1, "end_of_turn": 0})) is None
    assert problem_of(sequence(), teaching(rules=({"roles": ["end_of_turn"], "weight": 0},))) is None


def test_negative_weights_need_another_normaliser():
    negative = teaching(prompt_weight=-0.1)
    assert "use tokens" in (problem_of(sequence(), negative) or "")
    assert problem_of(sequence(), negative, "tokens") is None


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"policy": "roles"}, r"data.1.supervise.policy = 'roles' teaches only what .*\nSay which: data.1.supervise"),
        ({"boilerplate": ["Below is"]}, r"only policy 'boilerplate' leaves them out.\nUse data.1.supervise.policy="),
    ],
)
def test_settings_that_contradict_one_another_are_refused(knobs, message):
    with pytest.raises(ConfigError, match=message):
        check(TeachSettings(**knobs), "data.1.supervise")


def test_the_recipes_section_is_a_teaching_of_its_own():
    assert token_weights(sequence(), Teaching(SuperviseSettings(policy="all"))).sum() == len(EVERYTHING)
