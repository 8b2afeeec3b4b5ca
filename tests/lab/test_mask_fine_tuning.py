"""Masks after a converged fine-tuning: the data, the arms, and one toy cell."""

import json
from dataclasses import replace

import pytest
from lab.experiment import Arm
from lab.mask_fine_tuning import (
    AGAIN,
    KEEP,
    LEARNT,
    MAGNITUDE,
    MATHS,
    NONE,
    RANDOM,
    SKILLS,
    STEPS,
    chosen,
    experiment,
    measure,
    picture,
    pilot,
)

from frisket.adapt.mft import Mft
from frisket.errors import ConfigError
from frisket.recipe import load_recipe
from lab import mask_fine_tuning


@pytest.fixture(autouse=True)
def _work(tmp_path, monkeypatch):
    monkeypatch.setattr(mask_fine_tuning, "WORK", tmp_path / "work")


def contents(lines: list[str]) -> set[str]:
    return {json.loads(line).get("prompt") or json.loads(line)["messages"][0]["content"] for line in lines}


def test_training_choosing_and_judging_share_no_prompt():
    parts = {name: file.read_text(encoding="utf-8").splitlines() for name, file in SKILLS.files(0).items()}
    assert [len(part) for part in parts.values()] == [SKILLS.samples, SKILLS.held_out, SKILLS.held_out]
    taught = contents([line for line in parts["train"] if json.loads(line)["skill"] != "facts"])
    assert not taught & (contents(parts["choose"]) | contents(parts["judge"]))
    assert not contents(parts["choose"]) & contents(parts["judge"])
    assert len({json.loads(line)["skill"] for line in parts["judge"]}) == 6
    assert SKILLS.files(1)["train"].read_text(encoding="utf-8").splitlines() != parts["train"]


def test_problems_of_mathematics_are_held_out_before_any_is_drawn(tmp_path):
    rows = [{"question": f"q{number}", "answer": f"a{number}"} for number in range(30)]
    (tmp_path / "gsm8k_train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = replace(MATHS, folder=tmp_path, samples=20, held_out=4).files(0)
    found = {name: contents(file.read_text(encoding="utf-8").splitlines()) for name, file in files.items()}
    assert found["choose"] == {"q0", "q2", "q4", "q6"}
    assert found["judge"] == {"q1", "q3", "q5", "q7"}
    assert len(found["train"]) == 20
    assert not found["train"] & {f"q{number}" for number in range(8)}


def test_arms_cover_keep_times_steps():
    arms = list(experiment(SKILLS, "2-3").arms.values())
    learnt = [(each["keep"], each["steps"]) for each in arms if each["kind"] == LEARNT]
    assert sorted(learnt) == sorted((keep, steps) for keep in KEEP for steps in STEPS)
    kinds = [each["kind"] for each in arms]
    assert [kinds.count(kind) for kind in (NONE, RANDOM, MAGNITUDE, AGAIN)] == [1, len(KEEP), len(KEEP), 1]
    asked = tuple({e.metric for e in experiment(content, "2-3").expectations} for content in (MATHS, SKILLS))
    assert asked == ({"loss"}, {"loss", "exact_match"})


def test_the_pilot_tries_every_group_of_layers_and_the_best_is_masked(tmp_path, monkeypatch):
    losses = {"0-1": 1.2, "2-3": 1.1, "0-3": 1.3}

    def masked(content: object, seed: int, mask: dict, by: str) -> dict:
        assert (content, seed, by) == (SKILLS, mask_fine_tuning.PILOT_SEED, "choose")
        found = {"none": {"loss": 1.0}, "learnt": {"loss": losses[mask["layers"]]}}
        return {"mask_tuning": {"sets": {by: found}}}

    monkeypatch.setattr(mask_fine_tuning, "RESULTS", tmp_path)
    monkeypatch.setattr(mask_fine_tuning, "masked", masked)
    with pytest.raises(ConfigError, match="the pilot chooses the layers"):
        chosen(SKILLS)
    assert {group: each["learnt"] for group, each in pilot(SKILLS)["losses"].items()} == losses
    assert chosen(SKILLS) == "2-3"
    masks = [each for each in experiment(SKILLS, "2-3").arms.values() if each["kind"] != AGAIN]
    assert {each["layers"] for each in masks} == {"2-3"}


def test_a_toy_cell_is_trained_once_for_all_candidates_and_drawn(tmp_path, monkeypatch):
    trained = []
    real = mask_fine_tuning.train_on_bundled
    monkeypatch.setattr(
        mask_fine_tuning, "train_on_bundled", lambda words, out: trained.append(words) or real(words, out)
    )
    monkeypatch.setattr(mask_fine_tuning, "COMMON", [*mask_fine_tuning.COMMON, "train.threads=1"])
    toy = replace(SKILLS, samples=60, held_out=12, epochs=1)
    arms = {
        kind: {"kind": kind, "keep": 0.9, "steps": 2, "layers": "2-3"} for kind in (NONE, RANDOM, MAGNITUDE, LEARNT)
    }
    found = {kind: measure(toy, Arm(kind, settings), 0) for kind, settings in arms.items()}
    assert len(trained) == 2, "the fine-tuning, and one mask"
    assert isinstance(load_recipe(None, trained[1], model="bundled", data=["x"]).adapt, Mft)
    assert len({values["loss"] for values in found.values()}) == len(found)
    assert found[LEARNT].keys() == {"loss", "exact_match", "shipped", "moved"}
    assert found[NONE].keys() == {"loss", "exact_match", "best_step", "loss_at_the_end"}
    assert measure(toy, Arm(AGAIN, {"kind": AGAIN, "steps": 2}), 0).keys() == {"loss", "exact_match"}
    assert len(trained) == 3
    runs = [{"arm": kind, "seed": 0, "values": values} for kind, values in found.items()]
    picture({"arms": arms, "runs": runs}, tmp_path / "masks.svg")
    assert "learnt, 2 steps" in (tmp_path / "masks.svg").read_text()
