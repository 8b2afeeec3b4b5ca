"""The checks at the end of a run, and folders that cannot be used: each planted fault is seen."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from frisket.errors import CheckError, ConfigError, DataError, UnsupportedError
from frisket.generate.settings import GenerateSettings
from frisket.recipe import Recipe
from frisket.run import Given, export, finishing, folder, open_run, train
from frisket.run.opening import open_folder
from frisket.train.optim import Optimizer
from frisket.train.settings import TrainSettings
from frisket.watch import Silent


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    lines = [{"prompt": f"alpha {'beta ' * n}", "completion": f"gamma {'delta ' * (n % 3)}"} for n in range(1, 9)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def recipe(model: Path, data: Path, **sections) -> Recipe:
    settings = {"max_steps": 2, "step_tokens": 200, "learning_rate": 0.01, "compute": "fp32"}
    given = {"model": {"path": str(model)}, "data": [{"path": str(data)}], "train": settings, "evaluate": "off"}
    return Recipe.model_validate({**given, **sections})


def test_an_adapter_that_reads_back_otherwise_is_not_kept(small_model, data, tmp_path, monkeypatch):
    real = finishing.methods.load_adapter

    def half(model, place):
        attached = real(model, place)
        with torch.no_grad():
            for parameter in attached.parameters().values() or [p for n, p in model.named_parameters() if "lora_" in n]:
                parameter.mul_(3)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data.mul_(3)
        return attached

    monkeypatch.setattr(finishing.methods, "load_adapter", half)
    with pytest.raises(CheckError, match="loaded again it differs"):
        train(recipe(small_model, data), out=tmp_path / "out")
    assert not (tmp_path / "out" / "adapter").exists()


def test_a_trained_value_that_is_not_finite_is_not_saved():
    with pytest.raises(CheckError, match="are not finite, first a"):
        finishing.check_moved({"a": torch.zeros(2)}, {"a": torch.tensor([0.0, float("inf")])}, 1)


def test_a_merge_that_differs_is_not_kept(small_model, data, tmp_path, monkeypatch):
    out = tmp_path / "out"
    train(recipe(small_model, data), out=out)
    from frisket.adapt.peft import AttachedPeft

    monkeypatch.setattr(AttachedPeft, "merge", lambda self: self.detach())
    with pytest.raises(CheckError, match="nothing was kept"):
        export(out, to="merged", into=None, watcher=Silent())
    assert not (out / "merged").exists()
    assert not (out / "merged.partial").exists()


def test_what_holds_no_run_cannot_be_opened(small_model, data, tmp_path):
    with pytest.raises(ConfigError, match="holds no finished run"):
        open_folder(tmp_path)
    full = recipe(small_model, data, adapt={"method": "full"})
    out = tmp_path / "full"
    train(full, out=out)
    with pytest.raises(UnsupportedError, match="holds no adapter: the model itself was fine-tuned"):
        export(out, to="peft", into=None, watcher=Silent())
    chat = open_run(out, watcher=Silent())
    messages = [[{"role": "user", "content": "alpha"}]]
    short = GenerateSettings(max_new_tokens=3)
    assert len(chat.answer(messages, short)) == len(chat.answer(messages, short, base=True)) == 1


def test_a_lock_of_another_machine_and_a_race_are_refused(small_model, data, tmp_path):
    wanted = recipe(small_model, data)
    out = tmp_path / "out"
    out.mkdir()
    (out / folder.LOCK).write_text(json.dumps({"pid": 1, "host": "elsewhere"}))
    with pytest.raises(ConfigError, match="is in use on elsewhere"):
        folder.look(out, wanted, resume=True)
    with pytest.raises(ConfigError, match="was taken by another run meanwhile"), folder.claimed(out, wanted):
        raise AssertionError("the folder was claimed twice")


def test_a_checkpoint_of_other_tensors_is_refused():
    optimizer = Optimizer({"a": nn.Parameter(torch.zeros(2))}, TrainSettings(), torch.float32)
    with pytest.raises(CheckError, match="tensors are not those of this run"):
        optimizer.load_masters({"b": torch.zeros(2)})


def test_a_hold_out_that_is_not_there_cannot_be_measured(small_model, data, tmp_path):
    given = recipe(small_model, data).model_dump(mode="json")
    given["data"][0]["hold_out"] = 0
    given["evaluate"] = {"learning": [{"name": "mine"}], "forgetting": []}
    wanted = Recipe.model_validate(given)
    with pytest.raises(DataError, match="nothing is held out"):
        train(wanted, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_that_was_handed_over_is_not_believed_to_be_quantised(small_model, data, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    wanted = recipe(small_model, data)
    wanted = wanted.model_copy(update={"model": wanted.model.model_copy(update={"load": "4bit"})})
    model = AutoModelForCausalLM.from_pretrained(small_model)
    with pytest.raises(ConfigError, match="handed over is not quantised"):
        train(
            wanted, out=tmp_path / "out", given=Given(model=model, tokenizer=AutoTokenizer.from_pretrained(small_model))
        )
    assert not (tmp_path / "out").exists()
