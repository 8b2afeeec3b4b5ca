"""The race to learn random identifiers: its data, its measures, and one toy run."""

import re

import numpy as np
import pytest
import torch
from lab.experiment import Arm
from lab.memorising import (
    ARMS,
    AUTO,
    FACTORS,
    KEY,
    MOMENTS,
    PAIRS,
    VALUE,
    arms,
    chosen,
    experiment,
    measure,
    pairs,
    picture,
    pilot,
    race,
)
from transformers import AutoModelForCausalLM

from frisket import bundled
from frisket.adapt.layers import sizes_of
from frisket.adapt.lora import Lora
from frisket.adapt.rates import rate_of
from frisket.errors import ConfigError
from frisket.recipe import load_recipe
from lab import memorising


def test_pairs_are_random_different_and_drawn_from_the_seed():
    found = pairs(3)
    assert len({pair["prompt"] for pair in found}) == len(found) == PAIRS
    assert all(re.fullmatch(rf"[0-9a-f]{{{KEY}}}=", pair["prompt"]) for pair in found)
    assert all(re.fullmatch(rf"[0-9a-f]{{{VALUE}}}", pair["completion"]) for pair in found)
    assert pairs(3) == found
    assert not {pair["completion"] for pair in pairs(4)} & {pair["completion"] for pair in found}


def test_characters_count_at_their_places_and_moments_are_kept_apart():
    references = {"a": "12345678", "b": "abcdef01"}
    answers = {0: ("", ""), MOMENTS[0]: ("1234", "bcdef01a"), MOMENTS[1]: ("12345678", "abcdef02")}
    answers |= dict.fromkeys(MOMENTS[2:], ("12345678", "abcdef01"))
    lines = [
        {"step": step, "answer": answer, "reference": references[name]}
        for step, given in answers.items()
        for name, answer in zip("ab", given, strict=True)
    ]
    found = race(lines)
    assert found["characters"][:3] == [0.25, 0.9375, 1.0]
    assert found["exact"][:3] == [0.0, 0.5, 1.0]
    assert len(found["exact"]) == len(MOMENTS)


def test_arms_are_recipes_and_the_large_rank_is_the_largest_that_all_targets_allow():
    recipes = {
        arm: load_recipe(None, words, model="bundled", data=["x"]) for arm, words in experiment(AUTO).arms.items()
    }
    assert list(recipes) == list(ARMS)
    method = recipes["LoRA r=128"].adapt
    assert isinstance(method, Lora)
    model = AutoModelForCausalLM.from_pretrained(bundled.base_path(), dtype=torch.float32)
    layers = method.resolve(model).linears(model)
    assert method.rank == min(min(sizes_of(model.get_submodule(name))) for name in layers)


def test_a_toy_race_is_measured_and_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(memorising, "MOMENTS", (1, 2))
    monkeypatch.setattr(memorising, "pairs", lambda seed: pairs(seed, 8))
    toy = ["train.max_steps=2", "evaluate.every=1", "train.step_tokens=64", "train.threads=1"]
    found = measure(Arm("MoRA r=8", [*arms(AUTO)["MoRA r=8"], *toy]), 0)
    assert [np.size(found[name]) for name in ("characters", "exact", "loss")] == [2, 2, 2]
    first, second = np.asarray(found["loss"])
    assert first > second > 0
    assert found["parameters"] == 140_768
    runs = [{"arm": "MoRA r=8", "seed": seed, "values": found} for seed in (0, 1)]
    picture({"arms": arms(AUTO), "runs": runs}, tmp_path / "race.svg")
    assert "MoRA r=8 (141 k)" in (tmp_path / "race.svg").read_text()


def test_the_pilot_tries_every_arm_alike_and_the_best_rate_is_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(memorising, "PILOT", tmp_path / "pilot.json")
    tried = []

    def measured(arm: Arm, seed: int) -> dict:
        assert seed == memorising.PILOT_SEED
        tried.append(arm.name)
        rate = float(load_recipe(None, arm.settings, model="bundled", data=["x"]).train.learning_rate)
        best = AUTO[arm.name] if arm.name == "full" else 3 * AUTO[arm.name]
        return {"characters": [0.5, 1.0], "loss": [abs(rate - best)], "rate": rate}

    monkeypatch.setattr(memorising, "measure", measured)
    found = pilot()["runs"]
    assert sorted(tried) == sorted([*ARMS] * len(FACTORS))
    assert pilot()["runs"] == found
    assert len(tried) == len(found)
    rates = chosen(found)
    assert rates["full"] == AUTO["full"]
    assert rates["MoRA r=8"] == pytest.approx(3 * AUTO["MoRA r=8"], rel=0.05)
    with pytest.raises(ConfigError, match="has not tried all 4 rates of MoRA r=8"):
        chosen([run for run in found if run["arm"] != "MoRA r=8"])


def test_the_rates_called_auto_are_what_auto_settles_on():
    for name, settings in ARMS.items():
        method = load_recipe(None, settings, model="bundled", data=["x"]).adapt
        assert rate_of(method.declared_rate, 256, memorising.STEPS).value == AUTO[name]
