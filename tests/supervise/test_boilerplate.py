"""Text that is constant across a source, found and left out."""

import numpy as np
import pytest

from frisket.errors import ConfigError
from frisket.supervise.boilerplate import LEAST_MESSAGES, Phrase, constant_text, find_phrases, phrases_of
from frisket.supervise.policies import Teaching, rule_names, token_weights
from frisket.supervise.settings import TeachSettings
from frisket.types import Provenance, Sequence

P = Provenance
HEAD, TAIL = [10, 11, 12, 13, 14], [20, 21, 22, 23]


def sample(asked, answer=(50, 51), system=(), name="s"):
    ids = [1, *system, *asked, *answer, 2]
    roles = [P.BOS, *[P.SYSTEM] * len(system), *[P.USER] * len(asked), *[P.ASSISTANT] * len(answer), P.END_OF_TURN]
    first = int(bool(system))
    turns = [-1, *[0] * len(system), *[first] * len(asked), *[first + 1] * (len(answer) + 1)]
    return Sequence(
        name,
        0,
        np.array(ids, np.int32),
        np.array(roles, np.uint8),
        np.array(turns, np.int32),
        np.zeros(len(ids), np.uint32),
        np.full(len(ids), np.nan),
    )


def source(count=40, head=HEAD, tail=TAIL, rng=None):
    rng = rng or np.random.default_rng(0)
    return [sample([*head, *rng.integers(100, 900, 3 + i % 5), *tail]) for i in range(count)]


def test_a_header_and_a_footer_are_found():
    found = find_phrases(source())
    assert [(p.role, p.side, list(p.ids), p.share) for p in found] == [
        (P.USER, "start", HEAD, 1.0),
        (P.USER, "end", TAIL, 1.0),
    ]


def test_two_headers_that_begin_alike_are_both_found_and_the_longest_fit_counts():
    other = [*HEAD[:1], 30, 31, 32, 33]
    samples = [*source(30), *source(20, head=other, rng=np.random.default_rng(7))]
    found = find_phrases(samples)
    assert [list(p.ids) for p in found if p.side == "start"] == [HEAD, other]
    assert [p.messages for p in found if p.side == "start"] == [30, 20]
    masks = [constant_text(s, found) for s in (samples[0], samples[-1])]
    assert [int(m.sum()) for m in masks] == [len(HEAD) + len(TAIL), len(other) + len(TAIL)]


def test_a_token_that_half_of_all_prompts_share_by_chance_is_not_taken_along():
    rng = np.random.default_rng(2)
    samples = [sample([*HEAD, *rng.integers(100, 900, 5), *([9] if i % 2 else []), *TAIL]) for i in range(40)]
    assert [list(p.ids) for p in find_phrases(samples) if p.side == "end"] == [TAIL]


def test_what_is_rare_or_short_is_no_boilerplate():
    rng = np.random.default_rng(1)
    assert find_phrases(source(LEAST_MESSAGES - 1)) == ()
    assert find_phrases([*source(10), *source(60, head=[], tail=[], rng=rng)]) == ()
    assert find_phrases(source(head=HEAD[:3], tail=TAIL[:2])) == ()
    assert find_phrases([]) == ()


def test_answers_are_never_boilerplate():
    asked = np.random.default_rng(0).integers(99, 999, (30, 4))
    samples = [sample(ids, answer=(60, 61, 62, 63, 64)) for ids in asked]
    assert find_phrases(samples) == ()


def test_a_system_prompt_that_never_changes_is_left_out_as_a_whole():
    samples = [sample([i, i + 1, i + 2], system=(5, 6, 7, 8)) for i in range(100, 130)]
    mask = constant_text(samples[0], find_phrases(samples))
    assert mask.tolist() == [False, True, True, True, True, *[False] * 6]


def test_constant_text_may_be_as_long_as_it_likes():
    system = tuple(range(1000, 6000))
    samples = [sample([i], system=system) for i in range(100, 112)]
    (phrase,) = find_phrases(samples)
    assert phrase.ids == system
    assert constant_text(samples[0], [phrase]).sum() == len(system)


def test_only_the_same_provenance_counts():
    phrase = Phrase(P.SYSTEM, "start", tuple(HEAD), 1, 1)
    assert not constant_text(source(1)[0], [phrase]).any()


def test_a_prompt_shorter_than_the_phrase_is_not_overrun():
    phrases = [Phrase(P.USER, "start", tuple(HEAD), 9, 9), Phrase(P.USER, "end", tuple(TAIL), 9, 9)]
    assert not constant_text(sample(HEAD[:3]), phrases).any()
    assert constant_text(sample(HEAD[:4]), phrases).sum() == 4
    assert not constant_text(sample([], answer=(1,)), phrases).any()


def test_an_end_whose_last_token_went_to_the_answer_is_still_found():
    phrases = [Phrase(P.USER, "end", (*TAIL, 99), 9, 9)]
    mask = constant_text(sample([700, *TAIL], answer=(42,)), phrases)
    assert np.flatnonzero(mask).tolist() == [2, 3, 4, 5]
    assert not constant_text(sample([700, *TAIL[:-1]], answer=(42,)), phrases).any()


def test_the_policy_teaches_what_is_left_and_says_why_not():
    samples = source()
    told = Teaching(TeachSettings(policy="boilerplate", prompt_weight=0.1), find_phrases(samples))
    weights = token_weights(samples[0], told)
    assert weights[1 : 1 + len(HEAD)].tolist() == [0.1] * len(HEAD)
    assert weights[1 + len(HEAD)] == 1
    assert rule_names(samples[0], told)[1] == (
        "policy boilerplate",
        "constant across the source",
        "not taught by policy boilerplate, prompt_weight 0.1",
    )


def test_given_texts_become_the_tokens_that_lie_inside_them():
    def decode(ids):
        return "".join(chr(96 + i % 26) * (1 + i % 2) for i in ids)

    samples = source(5)
    found = phrases_of([decode(HEAD), decode(TAIL)], samples, decode)
    assert {(p.side, p.ids) for p in found} == {("start", tuple(HEAD)), ("end", tuple(TAIL))}
    cut = phrases_of([decode(HEAD[:4])[:-1]], samples, decode)  # token 13 is two letters: the text ends inside it
    assert {p.ids for p in cut} == {tuple(HEAD[:3])}


def test_a_given_text_that_no_prompt_has_is_an_error():
    with pytest.raises(
        ConfigError,
        match=r"supervise.boilerplate: no prompt of the source begins or ends with 'Below'.\n.*frisket plan",
    ):
        phrases_of(["Below"], source(3), lambda ids: " ".join(map(str, ids)))
