"""The data, the arms and one toy run of the experiment on learning and forgetting."""

import json
from pathlib import Path

import pytest
import torch
from lab.experiment import MOST_TOKENS, Arm

from frisket.errors import ConfigError
from frisket.hf.load import load_model
from frisket.recipe import load_recipe
from lab import learning_and_forgetting as lab


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files in the form of the public ones."""
    monkeypatch.setattr(lab, "WORK", tmp_path / "work")
    monkeypatch.setattr(lab, "TRAINED", 6)
    monkeypatch.setattr(lab, "HELD_OUT", 3)
    sums = [{"question": f"What is {n} plus {n}?", "answer": f"It is {2 * n}. #### {2 * n}"} for n in range(12)]
    (tmp_path / "gsm8k_train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*sums, sums[0]]))
    code = [{"instruction": f"Print {n}", "input": "", "output": f"print({n})"} for n in range(12)]
    code.append({"instruction": "Print more", "input": "", "output": "x" * lab.LONGEST})
    (tmp_path / "codealpaca.json").write_text(json.dumps(code))
    return tmp_path


@pytest.mark.parametrize("setting", lab.QUESTIONS)
def test_no_sample_is_trained_on_and_held_out(setting, folder):
    train, held = ([json.loads(line) for line in path.read_text().splitlines()] for path in lab.files(folder, setting))
    assert (len(train), len(held)) == (6, 3)
    assert not {json.dumps(row) for row in train} & {json.dumps(row) for row in held}
    assert all(set(row) == ({"text"} if setting == "maths-text" else {"prompt", "completion"}) for row in train)
    again = [json.loads(line) for line in lab.files(folder, setting, shuffle=1)[0].read_text().splitlines()]
    assert again != train


def moving(name: str) -> int:
    """How many entries an arm moves on the bundled base."""
    recipe = load_recipe(None, lab.METHODS[name], model="bundled", data=["bundled"])
    model = load_model(recipe.model, torch.float32, torch.device("cpu"))
    attached = recipe.adapt.attach(model, torch.Generator().manual_seed(0))
    return sum(parameter.numel() for parameter in attached.parameters().values())


@pytest.mark.parametrize("name", lab.METHODS)
def test_every_arm_moves_something_on_the_base(name):
    recipe = load_recipe(None, [*lab.COMMON, *lab.METHODS[name]], model="bundled", data=["bundled"])
    assert moving(name) > 0
    assert recipe.train.max_steps == lab.STEPS


def test_the_sparse_arm_has_as_many_entries_as_the_lowest_rank_has_parameters():
    assert moving("SpIEL") == pytest.approx(moving("LoRA 4"), rel=1e-3)


def pilot(file: Path, monkeypatch: pytest.MonkeyPatch, factors: tuple[float, ...] = lab.FACTORS) -> None:
    """A pilot in which the second of the rates was the best."""
    runs = [{"arm": a, "rate": i, "after": (i - 1) ** 2} for a in lab.MIDDLE for i, _ in enumerate(factors)]
    file.write_text(json.dumps({"runs": runs}))
    monkeypatch.setattr(lab, "PILOT", file)


def test_the_best_rate_of_a_whole_pilot_is_taken(tmp_path, monkeypatch):
    pilot(tmp_path / "pilot.json", monkeypatch)
    assert lab.rate_of("LoRA 16 + embeddings") == 1
    pilot(tmp_path / "pilot.json", monkeypatch, factors=(1.0,))
    with pytest.raises(ConfigError, match="holds 1 of 5 rates of 'full'"):
        lab.rate_of("full")


@pytest.mark.parametrize("setting", lab.QUESTIONS)
def test_every_expectation_names_arms_that_are_there(setting, folder, tmp_path, monkeypatch):
    pilot(tmp_path / "pilot.json", monkeypatch)
    experiment = lab.experiment(folder, setting)
    assert {e.metric for e in experiment.expectations} == {"learned", "forgotten", "forgotten a bit"}
    assert all(any(word.startswith("train.learning_rate=") for word in arm) for arm in experiment.arms.values())
    assert lab.STEPS * lab.STEP_TOKENS <= MOST_TOKENS
    assert sum(lab.BUDGETS.values()) <= 2 * 960


def test_a_toy_run_is_measured_in_bits_per_character(folder):
    small = ["train.max_steps=1", "train.step_tokens=64", "evaluate.forgetting.0.prompts=1"]
    small += ["evaluate.forgetting.0.answer_tokens=2", "evaluate.forgetting.0.text_tokens=256"]
    words = [word for word in lab.COMMON if word.partition("=")[0] not in [each.partition("=")[0] for each in small]]
    found = lab.measure(folder, "maths", Arm("LoRA 4", [*words, *small, *lab.METHODS["LoRA 4"]]), 0)
    assert found["forgotten"] == pytest.approx((found["forgotten prose"] + found["forgotten code"]) / 2)
    assert found["forgotten a bit"] == pytest.approx(found["forgotten"] / found["learned"])
    assert 0 < found["target before"] < 20
    assert found["learned"] < found["target before"]
