"""Taking a sparse change out of model folders whose files have other names for the tensors than the model."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.models import tiny

from frisket.adapt import sparse
from frisket.errors import CheckError
from frisket.hf import load
from frisket.hf.settings import ModelSettings
from frisket.recipe import Recipe
from frisket.run import export, train, undo
from frisket.watch import Silent

NAMES = {
    "gemma3_image": ["model.language_model.layers.0.mlp.up_proj.weight", "model.language_model.norm.weight"],
    "nemotron_h": ["model.layers.0.norm.weight"],
    "mixtral": ["model.layers.0.mlp.gate.weight", "model.layers.1.mlp.gate.weight"],
}


def merged(folder: Path, family: str) -> tuple[Path, Path, Path]:
    """A base, a run's folder with a change of it, and the model that it was merged into."""
    tiny(family, dtype=torch.float32).save_pretrained(folder / "base")
    settings, cpu = ModelSettings(path=str(folder / "base")), torch.device("cpu")
    model = load.load_model(settings, torch.float32, cpu)
    own = dict(model.named_parameters())
    at = torch.tensor([2, 5, 7])
    changes = {name: sparse.change_of(own[name], "add", at, torch.tensor([0.5, -1.0, 2.0])) for name in NAMES[family]}
    sparse.write(folder / "run" / "adapter", "spiel", changes, {})
    (folder / "run" / "summary.json").write_text("{}")
    sparse.apply(own, changes)
    model.save_pretrained(folder / "merged")
    assert not set(NAMES[family]) & set(load_file(folder / "merged" / "model.safetensors"))
    return folder / "base", folder / "run", folder / "merged"


@pytest.mark.parametrize("family", NAMES)
def test_tensors_that_are_stored_under_other_names_are_found_by_what_they_hold(family, tmp_path):
    base, run, model = merged(tmp_path, family)
    told = undo(run, model, into=tmp_path / "undone", watcher=Silent())
    assert told["tensors"] == len(NAMES[family])
    expected, found = (load_file(folder / "model.safetensors") for folder in (base, tmp_path / "undone"))
    assert {n: v.view(torch.int32).tolist() for n, v in found.items()} == {
        n: v.view(torch.int32).tolist() for n, v in expected.items()
    }
    with pytest.raises(CheckError, match="its tensors are the base's"):
        undo(run, tmp_path / "undone", into=tmp_path / "again", watcher=Silent())


def test_under_another_name_a_tensor_that_holds_something_else_or_is_there_twice_is_refused(tmp_path):
    _, run, model = merged(tmp_path, "mixtral")
    for case in ("trained further", "twice"):
        folder = tmp_path / case
        shutil.copytree(model, folder)
        tensors = load_file(folder / "model.safetensors")
        name = next(name for name in tensors if name.endswith("layers.0.block_sparse_moe.gate.weight"))
        tensors |= {"other": tensors[name].clone()} if case == "twice" else {name: tensors[name] + 1e-3}
        save_file(tensors, folder / "model.safetensors")
        with pytest.raises(CheckError, match=r"lacks 1 of the 2 changed tensors, first model\.layers\.0\.mlp\.gate"):
            undo(run, folder, into=tmp_path / "new", watcher=Silent())
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("method", ["spiel", "mora"])
def test_trained_in_bf16_on_an_fp32_base_the_run_ends_with_an_adapter_of_that_base(method, small_model, tmp_path):
    """A base that is stored wider than it is computed with: what the run saves must load in either type."""
    data = tmp_path / "chats.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"alpha {n}", "completion": "gamma"}) + "\n" for n in range(12)))
    own = {"spiel": {"entries": 400, "reselect_every": 2, "accumulate": 1}, "mora": {"rank": 2}}[method]
    given = {
        "model": {"path": str(small_model)},
        "data": [{"path": str(data)}],
        "adapt": {"method": method} | own,
        "train": {"max_steps": 3, "step_tokens": 300, "learning_rate": 1e-2, "compute": "bf16"},
        "evaluate": "off",
    }
    out = tmp_path / "out"
    summary = train(Recipe.model_validate(given), out=out)
    assert summary["checks"]["reload"].startswith("0 of")
    export(out, to="merged", into=tmp_path / "merged", watcher=Silent())
    if method == "spiel":
        undo(out, tmp_path / "merged", into=tmp_path / "base", watcher=Silent())
        base, undone = (load_file(folder / "model.safetensors") for folder in (small_model, tmp_path / "base"))
        assert all(torch.equal(undone[n].view(torch.int32), value.view(torch.int32)) for n, value in base.items())
    else:
        told = json.loads((out / "adapter" / sparse.HEADER).read_text())["base"]
        assert all(next(iter(digests)) == "float32" for digests in told.values())
