"""Stages that change how weights move: each on the merged result of the one before, drawn with a seed of its own."""

import io
import json

import pytest
import torch
from safetensors.torch import load_file
from tests.run.test_training import recipe, records
from transformers import AutoModelForCausalLM, AutoTokenizer

import frisket
from frisket.adapt.full import Full
from frisket.errors import UnsupportedError
from frisket.hf import load
from frisket.hf.settings import ModelSettings
from frisket.recipe import Recipe
from frisket.run import Given, train
from frisket.run.folder import read_json
from frisket.run.merging import trained
from frisket.run.opening import open_folder
from frisket.run.training import stage_seed


@pytest.fixture(scope="module")
def chats(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "chats.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records(40)))
    return path


def staged(small_model, chats, stages, **sections):
    wanted = recipe(small_model, chats, train={"max_steps": 2, "save_every": 0}, **sections)
    return Recipe.model_validate({**wanted.model_dump(mode="json"), "evaluate": "off", "stages": stages})


def weights(folder):
    return load_file(folder / "model.safetensors")


LORA_THEN_FULL_THEN_LORA = [
    {},
    {"adapt": {"method": "full", "where": "norms"}},
    {"adapt": {"method": "lora", "rank": 2}},
    {},
]


def test_a_stage_with_another_method_starts_from_the_merged_result(small_model, chats, tmp_path):
    asked = staged(small_model, chats, [*LORA_THEN_FULL_THEN_LORA[:3], {"adapt": {"method": "lora", "rank": 2}}])
    out = tmp_path / "out"
    summary = train(asked, out=out)
    merged, model = out / "stage-1" / "merged", out / "stage-2" / "model"
    paths = [stage["model"]["path"] for stage in summary["stages"]]
    assert paths == [str(small_model), str(merged.resolve()), str(model.resolve()), str(model.resolve())]
    before, after = weights(merged), weights(model)
    assert {name for name in before if not torch.equal(before[name], after[name])} == {n for n in after if "norm" in n}
    assert any(not torch.equal(before[name], value) for name, value in weights(small_model).items())
    first, second = (load_file(out / f"stage-{n}" / "adapter" / "adapter_model.safetensors") for n in (3, 4))
    assert first.keys() == second.keys()  # the last two share their method, and so their adapter
    assert read_json(out / "stage-4" / "adapter" / "adapter_config.json")["base_model_name_or_path"] == str(
        model.resolve()
    )


def test_the_whole_run_is_opened_and_exported_on_the_base_that_its_last_stage_had(small_model, chats, tmp_path):
    out = tmp_path / "out"
    train(staged(small_model, chats, [{}, {"adapt": {"rank": 2}}]), out=out)
    opened = open_folder(out)
    merged = str((out / "stage-1" / "merged").resolve())
    assert opened.recipe.model.path == trained(out).recipe.model.path == merged
    one = {name: parameter.detach().clone() for name, parameter in opened.model.named_parameters()}
    two = dict(open_folder(out / "stage-2").model.named_parameters())
    assert all(torch.equal(value, two[name]) for name, value in one.items())


def test_halves_are_drawn_anew_for_each_stage_and_the_first_is_the_runs_own(small_model, chats, tmp_path):
    out = tmp_path / "out"
    half = {"method": "full", "where": {"half": "category"}}
    train(staged(small_model, chats, [{}, {}], adapt=half), out=out)
    base = load.load_model(ModelSettings(path=str(small_model)), torch.float32, torch.device("cpu"))
    moved = []
    for index, folders in enumerate(
        [(small_model, out / "stage-1" / "model"), (out / "stage-1" / "model", out / "model")]
    ):
        before, after = map(weights, folders)
        moved.append({name for name in before if not torch.equal(before[name], after[name])})
        seed = stage_seed(0, index)
        drawn = Full(where={"half": "category"}).attach(base, torch.Generator().manual_seed(seed)).parameters()
        assert moved[-1] == set(drawn)
    assert moved[0] != moved[1]
    assert stage_seed(7, 0) == 7
    assert stage_seed(7, 1) != stage_seed(7, 2) != stage_seed(8, 2)


def test_a_stop_in_a_later_stage_is_gone_on_with(small_model, chats, tmp_path):
    asked = staged(small_model, chats, LORA_THEN_FULL_THEN_LORA[:2])
    train(asked, out=tmp_path / "whole")
    seen = []

    def stop_in_the_second(record):
        seen.append(record.step)
        if seen == [1, 2, 1]:
            raise KeyboardInterrupt

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        train(asked, out=out, given=Given(on_step=stop_in_the_second))
    train(asked, out=out, resume=True)
    whole, resumed = weights(tmp_path / "whole" / "model"), weights(out / "model")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_loaded_model_cannot_be_merged_between_stages(small_model, chats, tmp_path):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(small_model), AutoTokenizer.from_pretrained(small_model)
    with pytest.raises(UnsupportedError, match=r"stages\.1 starts from the merged result .*\n.*model\.path=FOLDER"):
        frisket.finetune(
            {"stages": [{}, {"adapt": {"rank": 2}}]}, model=model, tokenizer=tokenizer, data=records(4),
            out=tmp_path / "out",
        )  # fmt: skip


def test_a_staged_run_is_told_as_a_whole(small_model, chats, tmp_path):
    from rich.console import Console

    from frisket.cli.final import summary_screen

    out = tmp_path / "out"
    summary = train(staged(small_model, chats, [{}, {"adapt": {"method": "full", "where": "norms"}}]), out=out)
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(summary_screen(summary, out, 140))
    screen = console.export_text()
    card, page = (out / "README.md").read_text(), (out / "report.html").read_text()
    for text in (screen, card, page):
        assert str(small_model) in text.replace("\\_", "_")
        for method, where in (("lora", "all-linear"), ("full", "norms")):
            assert method in text
            assert where in text
    title = card.split("\n# ")[1].split("## ")[0].replace("\\_", "_")
    assert f"{small_model}, fine-tuned with frisket" in title
    assert "| 1 | " in card
    assert "| 2 | " in card
    assert summary["serving"].endswith(f"vllm serve {out}/model")
    assert summary["next"] == f"frisket generate {out} --chat"
    for text in (card, page):
        assert "stages: []" not in text
        assert "stage-2 --" not in text
    assert "earlier" not in summary["stages"][0]
    assert "Stages" not in (out / "stage-1" / "report.html").read_text()


def test_a_stage_that_goes_on_with_spiel_begins_a_cycle_of_its_own(small_model, chats, tmp_path, monkeypatch):
    from frisket.adapt.spiel import AttachedSpiel

    begun, own = [], AttachedSpiel.begin
    monkeypatch.setattr(
        AttachedSpiel, "begin", lambda self, total: begun.append(self._done.tolist()) or own(self, total)
    )
    adapt = {"adapt": {"method": "spiel", "reselect_every": 3, "accumulate": 1}}
    wanted = staged(small_model, chats, [{}, {}]).model_dump(mode="json") | adapt
    train(Recipe.model_validate(wanted), out=tmp_path / "out")
    assert begun == [[0, 0], [0, 1]]
