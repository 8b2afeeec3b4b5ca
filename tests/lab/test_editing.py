"""The facts that the experiment on editing changes, and both ways of changing them."""

import json

import pytest
import torch
from lab.base.world import FACTS
from lab.editing import ARMS, EARLY, EDITS, EXPERIMENT, MATRIX, UNEDITED, breadth_first, depth_first, edits, files
from lab.experiment import Arm

from lab import editing


@pytest.fixture
def few(tmp_path, monkeypatch):
    """Six edits, three passes."""
    monkeypatch.setattr(editing, "WORK", tmp_path)
    monkeypatch.setattr(editing, "EDITS", 6)
    monkeypatch.setattr(editing, "EARLY", 2)
    monkeypatch.setattr(editing, "UNEDITED", 4)
    monkeypatch.setattr(editing, "PASSES", 3)
    monkeypatch.setattr(editing, "TEXT_TOKENS", 512)
    words = ["train.threads=1", "train.epochs=3"]
    monkeypatch.setattr(editing, "COMMON", [*editing.COMMON, *words])
    editing.judge.cache_clear()
    yield
    editing.judge.cache_clear()


def asked_of(exercise) -> tuple[str, str]:
    slots = dict(exercise.slots)
    return slots["town"], slots["attribute"]


def test_edits_give_known_facts_another_value_of_the_same_kind() -> None:
    changed, untouched = edits(0)
    assert (len(changed), len(untouched)) == (EDITS, UNEDITED)
    values = {attribute: {v for (_, a), v in FACTS.items() if a == attribute} for _, attribute in FACTS}
    for exercise in changed:
        assert exercise.answer != FACTS[asked_of(exercise)]
        assert exercise.answer in values[asked_of(exercise)[1]]
    assert all(exercise.answer == FACTS[asked_of(exercise)] for exercise in untouched)
    assert not {asked_of(each) for each in changed} & {asked_of(each) for each in untouched}
    assert edits(0) == edits(0) != edits(1)


def test_what_is_asked(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(editing, "WORK", tmp_path)
    rows = {n: [json.loads(x) for x in path.read_text().splitlines()] for n, path in files(0).items()}
    assert rows["early"] == rows["edited"][:EARLY]
    assert [row["completion"] for row in rows["rephrased"]] == [row["completion"] for row in rows["edited"]]
    assert not {row["prompt"] for row in rows["rephrased"]} & {row["prompt"] for row in rows["edited"]}


def test_arms_cross_order_and_place() -> None:
    assert {(arm["order"], arm["place"]) for arm in ARMS.values()} == {
        (order, place) for order in ("breadth", "depth") for place in editing.PLACES
    }
    assert {each.metric for each in EXPERIMENT.expectations} >= {"edited", "early", "unedited", "text"}


def test_the_picture_has_every_arm(tmp_path) -> None:
    runs = [{"arm": arm, "values": {"edited": 0.5, "unedited": kept}} for arm in ARMS for kept in (0.4, 0.6)]
    editing.picture({"arms": ARMS, "runs": runs}, tmp_path / "p.svg")
    text = (tmp_path / "p.svg").read_text(encoding="utf-8")
    assert all(arm in text for arm in ARMS)


def test_either_order_moves_the_one_matrix_alone(few) -> None:
    deep = depth_first(0, "one matrix", 3e-3)
    wide = breadth_first(0, "one matrix", 3e-3)
    base = editing.judge(0)[0].base
    assert set(deep) == {MATRIX}
    assert {n for n, value in wide.items() if not torch.equal(value.float(), base[n])} == {MATRIX}
    assert not torch.equal(deep[MATRIX].float(), base[MATRIX])
    assert deep[MATRIX].dtype == wide[MATRIX].dtype == torch.bfloat16


def test_the_last_edit_of_a_depth_first_run_holds(few, monkeypatch) -> None:
    monkeypatch.setattr(editing, "PASSES", 25)
    values = editing.measure(Arm("depth", {"order": "depth", "place": "all layers", "rate": 1e-3}), 0)
    assert values["edited"] >= 1 / 6
    assert {"early", "rephrased", "unedited", "text", "base_unedited", "base_text"} <= set(values)
