"""`frisket methods` says of every method what is so, counted on the model that is asked about."""

import json

import pytest
import torch
from tests.adapt.cases import METHODS

from frisket.adapt.lora import Lora
from frisket.adapt.mora import Mora
from frisket.adapt.peft import PACKS
from frisket.adapt.peft_types import ABOUT
from frisket.cli.main import run_words
from frisket.hf import load
from frisket.hf.settings import ModelSettings
from frisket.run import listing
from frisket.run.listing import list_methods
from frisket.train.optim import Optimizer
from frisket.train.settings import TrainSettings

BUNDLED = ModelSettings(path="bundled")
pytestmark = pytest.mark.filterwarnings("ignore:.*CUDA extension.*:UserWarning", "ignore:Setting boft:UserWarning")


@pytest.fixture(scope="module")
def listed():
    return {each.name: each for each in list_methods(BUNDLED)}


def test_every_method_is_listed_and_every_type_of_peft_that_packs(listed):
    assert set(METHODS) - {"peft"} == {name for name in listed if not name.startswith("peft: ")}
    own = {"LORA", "IA3", "LN_TUNING"}
    assert {name.removeprefix("peft: ") for name in listed if name.startswith("peft: ")} == PACKS - own
    assert all(each.parameters or each.why_not for each in listed.values())
    assert listed["graft"].why_not == "needs adapt.of"
    with torch.device("meta"):
        model = load.empty_model(load.load_config(BUNDLED))
    linears = (m for name, m in model.named_modules() if isinstance(m, torch.nn.Linear) and name != "lm_head")
    assert listed["graft"].parameters == sum(linear.weight.numel() for linear in linears)
    assert listed["graft"].optimizer_bytes == 0  # plain SGD


@pytest.mark.parametrize("method", [Lora(), Mora()], ids=["lora", "mora"])
def test_the_counts_are_those_of_a_real_run(listed, method):
    model = load.load_model(BUNDLED, torch.float32, torch.device("cpu"))
    attached = method.attach(model, torch.Generator())
    optimizer = Optimizer(attached.parameters(), TrainSettings(), torch.float32, (), attached)
    told = listed[method.method]
    assert told.parameters == sum(p.numel() for p in attached.parameters().values())
    assert told.optimizer_bytes == optimizer.state_bytes()
    assert told.merges
    assert told.quantised
    assert told.packs


def test_the_verb_prints_the_same_for_a_program_and_for_a_person(capsys, listed):
    assert run_words(["methods", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["methods"] == [each.as_dict() for each in listed.values()]
    assert run_words(["methods", "--model", "bundled"]) == 0
    out = capsys.readouterr().out
    assert f"{listed['mora'].parameters:,}" in out
    assert "arXiv 2405.12130" in out
    heads = out.splitlines()
    assert "forest" in heads[2]
    assert "rate of" in heads[1]
    assert max(len(line.rstrip()) for line in heads if " yes " in line) <= 80


def test_every_row_says_what_moves_and_where_that_is_from(listed):
    assert set(ABOUT) == {name.removeprefix("peft: ") for name in listed if name.startswith("peft: ")}
    assert all(each.moves and each.source for each in listed.values())
    assert "two vectors" in listed["peft: VERA"].moves
    assert (
        listed["peft: SHIRA"].parameters == listed["lora"].parameters
    )  # needs weights, and gets some to be counted on
    assert "must be divisible by" in listed["peft: VBLORA"].why_not
    assert listed["full"].share == 1.0


@pytest.mark.parametrize(
    ("words", "name", "times"),
    [
        (["adapt.rank=64"], "lora", 2),
        (["adapt.where=mlp"], "lora", None),
        (["adapt.method=peft", "adapt.peft_type=lokr"], "peft: LOKR", 1),
        (["adapt.method=peft", "adapt.peft_type=LILY"], "peft: LILY", None),
    ],
)
def test_a_recipes_own_settings_are_priced_in_the_row_of_its_method(capsys, listed, words, name, times):
    assert run_words(["methods", "--json", *words]) == 0
    said = {each["name"]: each for each in json.loads(capsys.readouterr().out)["methods"]}
    assert [each["name"] for each in said.values() if each["is_own"]] == [name]
    own = said.pop(name)
    assert own["parameters"] > 0
    assert times is None or own["parameters"] == times * listed[name].parameters
    assert name not in listed or times == 1 or own["parameters"] != listed[name].parameters
    assert all(each == listed[other].as_dict() for other, each in said.items())


def test_a_recipe_from_a_file_and_a_model_too_large_to_be_made_only_to_count(tmp_path, monkeypatch, capsys):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("adapt: {method: mora, rank: 8}\nmodel: {path: bundled}\n")
    monkeypatch.setattr(listing, "SMALL", 1)
    assert run_words(["methods", str(recipe)]) == 0
    out = capsys.readouterr().out
    assert "mora *" in out
    assert "needs weights to be built, and they are counted only up to 1" in " ".join(out.split())
