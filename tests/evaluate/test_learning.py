"""Loss and exact match of one set, on the same samples before and after."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from frisket.errors import ConfigError, DataError
from frisket.evaluate import learning
from frisket.evaluate.learning import LearningScores, compared, examples, is_match, learning_set, measure
from frisket.evaluate.settings import LearningSettings
from frisket.evaluate.text import plain_sequence
from frisket.types import Conversation, Message
from frisket.watch import Silent

NUMBER = r"#### (-?\d+)"


class Told(Silent):
    def __init__(self) -> None:
        self.lines = []

    def say(self, line: str) -> None:
        self.lines.append(line)


def conversation(line: int, answer: str | None = "thus #### 4", **fields) -> Conversation:
    messages = [Message("user", f"question {line}")] + ([] if answer is None else [Message("assistant", answer)])
    return Conversation(f"0:{line}", 0, "eval.jsonl", line, tuple(messages), fields=fields)


@pytest.fixture
def make(tokenizer):
    def prompt_ids(conversation) -> list[int]:
        last = max(i for i, m in enumerate(conversation.messages) if m.role == "assistant")
        return joined(conversation.messages[:last])

    def joined(messages) -> list[int]:
        return [0, *tokenizer("|".join(m.content for m in messages) + ">", add_special_tokens=False)["input_ids"]]

    def build(conversations, **settings):
        encoded = []
        for c in conversations:
            ids = joined(c.messages)
            encoded.append((plain_sequence(c.sample_id, ids), np.ones(len(ids))))
        settings = LearningSettings(**{"name": "taught", "metric": "exact_match", "max_new_tokens": 6} | settings)
        return learning_set(settings, conversations, encoded, prompt_ids, 0)

    return build


def test_matches():
    pattern = re.compile(NUMBER)
    assert is_match(" 7\n", "7", None)
    assert not is_match("7.", "7", None)
    assert is_match("a #### 12 b", "#### 12", pattern)
    assert not is_match("12", "#### 12", pattern), "no match is wrong"
    assert not is_match("12", "12", pattern), "no match on both sides is wrong too"
    assert not is_match("b", "#### 1", re.compile("b|#### (1)")), "a group that took no part is no match"


def test_the_question_is_all_before_the_last_answer(make, tokenizer):
    turns = ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"), ("user", "thanks")
    made = make([Conversation("0:1", 0, "f", 1, tuple(Message(*turn) for turn in turns))])
    (question,) = made.questions
    assert tokenizer.decode(question.ids, skip_special_tokens=True) == "a|b|c>"
    assert (question.text, question.reference) == ("c", "d")


def test_before_after_and_examples(make, model, other, instruments):
    told = [conversation(i, f"#### {i}", skill="add" if i % 3 else "sort") for i in range(1, 25)]
    taught = make(told, by="skill", extract=NUMBER)
    before = measure(model, taught, instruments)
    after = measure(other, taught, instruments, samples=before.samples)
    assert before.samples == after.samples == tuple(range(24))
    found = compared(taught, before, after)
    assert list(found)[:2] == ["samples", "metric"]
    assert found["samples"] == 24
    assert found["before"]["exact_match"] == 0.0
    assert found["groups"]["sort"]["samples"] == 8
    assert found["before"]["loss"] != found["after"]["loss"]
    assert found["before"]["loss"] == pytest.approx(before.measures["loss"].value)
    shown = examples(taught, before, after)
    assert [(e["group"], e["prompt"], e["reference"]) for e in shown] == [
        ("add", "question 1", "#### 1"),
        ("sort", "question 3", "#### 3"),
    ]
    assert shown[0]["before"] == before.answers[0] != after.answers[0] == shown[0]["after"]


def test_a_right_answer_counts(make, model, instruments):
    first = make([conversation(1)])
    (answer,) = measure(model, first, instruments).answers
    right = make([conversation(1, answer), conversation(2, "never")])
    assert measure(model, right, instruments).measures["exact_match"].total.tolist() == [1.0, 0.0]


def test_loss_alone_generates_nothing(make, model, instruments):
    made = make([conversation(i) for i in range(1, 4)], metric="loss")
    scores = measure(model, made, instruments)
    assert list(scores.measures) == ["loss"]
    assert scores.answers == ()
    assert examples(made, scores, scores) == []
    assert compared(made, scores, scores)["difference"]["loss"] == 0


def test_a_set_that_only_pushes_away_is_said_to_have_no_loss(make, model, instruments):
    made = make([conversation(1), conversation(2)], metric="loss", name="away")
    away = replace(made, samples=tuple((sequence, -weights) for sequence, weights in made.samples))
    told = Told()
    before = measure(model, away, replace(instruments, watcher=told))
    assert told.lines == ["away: loss is not measured: nothing in it has a positive weight"]
    after = measure(model, away, replace(instruments, watcher=told), samples=before.samples)
    assert len(told.lines) == 1, "once, before training"
    found = compared(away, before, after)
    json.dumps(found, allow_nan=False)
    assert found["not_measured"] == {"loss": "nothing in it has a positive weight"}


def test_the_budget_takes_a_seeded_subset_and_says_so(make, model, instruments, monkeypatch):
    monkeypatch.setattr("frisket.evaluate.budget.FIRST", 5)
    made = make([conversation(i) for i in range(1, 31)], metric="loss")
    told = Told()
    watched = type(instruments)(**vars(instruments) | {"watcher": told})
    some = measure(model, made, watched, seconds=0.0, seed=4)
    assert len(some.samples) == 5
    assert list(some.samples) == sorted(some.samples) != list(range(5))
    assert told.lines == ["taught: 5 of 30 samples (seeded) fit in 0 s; more with evaluate.budget_seconds"]
    whole = measure(model, made, watched)
    again = measure(model, made, watched, samples=some.samples)
    assert np.allclose(again.measures["loss"].total, whole.measures["loss"].total[list(some.samples)], rtol=1e-6)
    assert np.allclose(some.measures["loss"].total, again.measures["loss"].total, rtol=1e-6)
    assert compared(made, some, again)["of"] == 30
    assert measure(model, made, watched, seconds=0.0, seed=5).samples != some.samples


def test_parts_are_put_in_order(make, model, instruments):
    made = make([conversation(i) for i in range(1, 41)])
    in_parts = measure(model, made, instruments, seconds=1e6)
    at_once = measure(model, made, instruments)
    assert in_parts.samples == at_once.samples
    assert in_parts.answers == at_once.answers
    assert len(set(in_parts.answers)) > 3


def test_the_limit_takes_the_first(make):
    assert len(make([conversation(i) for i in range(1, 9)], limit=3).samples) == 3


def test_no_samples_are_refused(make):
    with pytest.raises(DataError, match=r"evaluate.learning.0 \(taught\) has no samples"):
        make([])


def test_conversations_without_an_answer_are_gathered(make):
    with pytest.raises(DataError, match=r"(?s)2 have none.*eval.jsonl:2: no assistant.*jsonl:3.*metric=loss"):
        make([conversation(1), conversation(2, None), conversation(3, None)])


def test_extract_is_checked(make):
    with pytest.raises(ConfigError, match=r"extract = '\(' is not a regular expression"):
        make([conversation(1)], extract="(")
    with pytest.raises(ConfigError, match=r"(?s)has no group.*extract='\(abc\)'"):
        make([conversation(1)], extract="abc")
    with pytest.raises(ConfigError, match=r"matches none of the 1 references"):
        make([conversation(1)], extract="Answer: (.*)")


def test_an_unknown_column_names_the_nearest(make):
    with pytest.raises(ConfigError, match=r"(?s)by = 'skil': eval.jsonl:1 has no such column.*by=skill"):
        make([conversation(1, skill="add")], by="skil")


def test_scores_of_parts_join_by_sample():
    parts = [LearningScores((2, 5), {}, ("c", "f")), LearningScores((0, 3), {}, ("a", "d"))]
    assert learning._in_order(parts).answers == ("a", "c", "d", "f")
