"""The comparison with spans worked out by hand: it holds on small files written here, and sees every planted fault."""

import json
from dataclasses import replace

import numpy as np
import pytest
from benchmarks.masks import (
    EXPECTED,
    POLICIES,
    SOURCES,
    WAYS,
    Finding,
    compare_file,
    counted,
    expected_runs,
    ledgers_of,
    messages_of,
    problems,
    recipe_of,
    sums,
)

from frisket.run.prepare import Prepared, prepare
from frisket.types import Ledger
from frisket.watch import Silent

CALL = {"name": "add", "arguments": {"a": 1, "b": [2, "zwei"]}}
TALK = {
    "conversations": [
        {"from": "human", "value": "Größe?"},
        {"from": "gpt", "value": "Ja."},
        {"from": "human", "value": "1 + 2"},
        {"from": "function_call", "value": json.dumps(CALL)},
        {"from": "observation", "value": "3"},
        {"from": "gpt", "value": "It is 3."},
    ],
    "tools": json.dumps([{"name": "add", "description": "adds", "parameters": {}}]),
}
TALK_SPANS = {
    "assistant": [[1, 0, 3], [3, "tool_call"], [5, 0, 8]],
    "completion": [[3, "tool_call"], [5, 0, 8]],
    "last-turn": [[5, 0, 8]],
    "instructions": [[0, 0, 6], [1, 0, 3], [2, 0, 5], [3, "tool_call"], [4, 0, 1], [5, 0, 8]],
    "boilerplate": [[0, 0, 6], [1, 0, 3], [2, 0, 5], [3, "tool_call"], [4, 0, 1], [5, 0, 8]],
    "all": [[0, 0, 6], [1, 0, 3], [2, 0, 5], [3, "tool_call"], [4, 0, 1], [5, 0, 8]],
}
WORDS = ("Add", "Bake", "Cut", "Draw", "Eat", "Find", "Give", "Hide", "Jump", "Keep")


def prepared_file(tmp_path, name: str, records: list[dict], render: str) -> Prepared:
    (tmp_path / name).write_text(json.dumps(records), encoding="utf-8")
    source = {"path": name, "render": render}
    return prepare(recipe_of(source, tmp_path, "boilerplate", "whole"), Silent())


def findings(tmp_path, prepared: Prepared, name: str, spans: dict, render: str) -> dict[str, Finding]:
    cases = [
        {"file": name, "record": 1, "render": render, "policy": policy, "taught": places}
        for policy, places in spans.items()
    ]
    return {f.policy: f for f in compare_file(prepared, tmp_path / name, render, cases)}


@pytest.fixture
def talk(tmp_path):
    return prepared_file(tmp_path, "talk.json", [TALK, TALK], "chat")


@pytest.fixture
def alpaca(tmp_path):
    records = [{"instruction": f"{word} {word[::-1]}", "input": "", "output": f"{word}ed"} for word in WORDS]
    return prepared_file(tmp_path, "alpaca.json", records, "alpaca")


def test_every_policy_teaches_the_spans_worked_out_by_hand(tmp_path, talk):
    found = findings(tmp_path, talk, "talk.json", TALK_SPANS, "chat")
    assert set(found) == set(POLICIES)
    assert {f.verdict for f in found.values()} == {"equal"}


@pytest.mark.parametrize(
    ("policy", "place", "planted"),
    [
        ("assistant", 0, [1, 1, 3]),
        ("assistant", 2, [5, 0, 7]),
        ("completion", 1, [4, 0, 1]),
        ("instructions", 0, [0, 0, 5]),
        ("instructions", 2, [2, 1, 5]),
        ("all", 1, [1, 0, 2]),
    ],
)
def test_a_span_moved_by_one_character_is_seen(tmp_path, talk, policy, place, planted):
    spans = [*TALK_SPANS[policy]]
    spans[place] = planted
    (found,) = findings(tmp_path, talk, "talk.json", {policy: spans}, "chat").values()
    assert found.verdict == "differs"
    assert found.found != found.expected
    results = {
        "files": {"talk": {"ledger": {"ways": {}, "same_read": True}, "policies": {}, "spans": counted([found])}}
    }
    assert problems(results) == [f"talk:1, {policy}: expected {spans}, found {found.found}"]
    assert "Größe" not in json.dumps(found.found, ensure_ascii=False)


@pytest.mark.parametrize("policy", [policy for policy in POLICIES if policy != "all"])
def test_a_missing_span_is_seen(tmp_path, talk, policy):
    (found,) = findings(tmp_path, talk, "talk.json", {policy: TALK_SPANS[policy][1:]}, "chat").values()
    assert found.verdict == "differs"


def test_under_all_the_first_token_must_not_teach(tmp_path, talk, monkeypatch):
    explained = Prepared.explained

    def planted(prepared, index, policy=None):
        sequence, weights, names = explained(prepared, index, policy)
        return sequence, np.ones_like(weights), names

    monkeypatch.setattr(Prepared, "explained", planted)
    (found,) = findings(tmp_path, talk, "talk.json", {"all": TALK_SPANS["all"]}, "chat").values()
    assert found.verdict == "differs"


def test_an_end_token_that_does_not_teach_is_seen(tmp_path, talk, monkeypatch):
    explained = Prepared.explained

    def planted(prepared, index, policy=None):
        sequence, weights, names = explained(prepared, index, policy)
        return sequence, np.where(sequence.input_ids == prepared.tokenizer.eos_token_id, 0, weights), names

    monkeypatch.setattr(Prepared, "explained", planted)
    found = findings(tmp_path, talk, "talk.json", {"last-turn": TALK_SPANS["last-turn"]}, "chat")
    assert found["last-turn"].verdict == "differs"


def test_alpacas_header_is_found_and_does_not_teach(tmp_path, alpaca):
    (teaching,) = alpaca.teaching
    assert {(p.role.name, p.side, p.share) for p in teaching.phrases} == {("USER", "start", 1.0), ("USER", "end", 1.0)}
    spans = {
        "assistant": [[1, 0, 5]],
        "instructions": [[0, 0, 146], [1, 0, 5]],
        "boilerplate": [[0, 124, 131], [1, 0, 5]],
    }
    assert {f.verdict for f in findings(tmp_path, alpaca, "alpaca.json", spans, "alpaca").values()} == {"equal"}
    spans["boilerplate"] = [[0, 123, 131], [1, 0, 5]]
    assert findings(tmp_path, alpaca, "alpaca.json", spans, "alpaca")["boilerplate"].verdict == "differs"


def test_what_tokens_cannot_do_is_counted_apart(tmp_path, alpaca):
    case = {"file": "alpaca.json", "record": 1, "render": "alpaca", "policy": "assistant", "taught": [[1, 1, 5]]}
    (found,) = compare_file(alpaca, tmp_path / "alpaca.json", "alpaca", [{**case, "tokens": [[1, 0, 5]]}])
    assert found.verdict == "as explained"
    (found,) = compare_file(alpaca, tmp_path / "alpaca.json", "alpaca", [{**case, "tokens": [[1, 2, 5]]}])
    assert found.verdict == "differs"


def test_spans_that_touch_are_one_run_only_where_nothing_stands_between():
    messages = messages_of({"instruction": "Say x", "input": "", "output": "x"}, "alpaca")
    whole = [[0, 0, len(messages[0].text)], [1, 0, 1]]
    assert len(expected_runs(whole, messages, joined=True)) == 1
    assert len(expected_runs(whole, messages, joined=False)) == 2
    assert len(expected_runs([[0, 0, 3], [1, 0, 1]], messages, joined=True)) == 2


def test_the_ledger_adds_up_in_each_way_and_a_broken_counter_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(WAYS, "truncated", {**WAYS["truncated"], "max_tokens": 24})
    monkeypatch.setitem(WAYS, "long ones dropped", {**WAYS["long ones dropped"], "max_tokens": 24})
    records = [
        {"instruction": f"{word} it", "input": "", "output": "so " * (3 * n + 3)} for n, word in enumerate(WORDS)
    ]
    (tmp_path / "file.json").write_text(json.dumps(records * 3))
    told = ledgers_of({"path": "file.json", "render": "chat"}, tmp_path)
    ways = told["ways"]
    assert told["same_read"]
    assert all(way["adds_up"] for way in ways.values())
    assert ways["whole"]["held_out"] > 0
    assert ways["truncated"]["truncated"] > 0
    assert ways["long ones dropped"]["dropped"] > 0
    results = {"files": {"file": {"ledger": told, "policies": {}, "spans": counted([])}}}
    assert problems(results) == []
    broken = sums(replace(Ledger(), read=7, dropped=6))
    ways["whole"] |= {"sums": broken, "adds_up": broken["read = told"][0] == broken["read = told"][1]}
    assert problems(results) == ["file, whole: {'read = told': [7, 6], 'flat = computed + shared': [0, 0]}"]


def test_five_samples_of_every_file_are_recorded_under_every_policy_without_text():
    cases = json.loads(EXPECTED.read_text())
    for source in SOURCES:
        mine = [c for c in cases if (c["file"], c["render"]) == (source["path"], source["render"])]
        assert len({c["record"] for c in mine}) == 5
        assert len(mine) == 5 * len(POLICIES)
    for case in cases:
        for _, *place in [*case["taught"], *case.get("tokens", [])]:
            assert place == ["tool_call"] or all(isinstance(offset, int) for offset in place)
        assert ("tokens" in case) == ("because" in case)
