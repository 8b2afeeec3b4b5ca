"""A graft through the whole run: found, kept, measured, merged, taken back; and through the command line."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.models import samples, tiny

from frisket.adapt import sparse
from frisket.adapt.graft import Graft
from frisket.attend.pack import pack
from frisket.cli.main import run_words
from frisket.errors import CheckError, ConfigError, UnsupportedError
from frisket.evaluate.calibration import calibration, expected_error
from frisket.evaluate.losses import Instruments, logits_at
from frisket.hf.quantised import refuse_method
from frisket.recipe import Recipe
from frisket.run import best, compare_runs, export, train, undo, undoing
from frisket.watch import Silent


class Heard(Silent):
    """A watcher that keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)

    warn = say


def recipe_of(base: Path, data: Path, steps: int, adapt: dict, rate: float, **sections) -> Recipe:
    settings = {"max_steps": steps, "step_tokens": 300, "learning_rate": rate, "compute": "fp32"}
    given = {
        "model": {"path": str(base)},
        "data": [{"path": str(data), "hold_out": 4}],
        "adapt": adapt,
        "train": settings,
        "evaluate": {"every": 2, "forgetting": [], "samples": 0},
    }
    for name, section in sections.items():
        given[name] = given[name] | section if isinstance(section, dict) else section
    return Recipe.model_validate(given)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "chats.jsonl"
    lines = [{"prompt": f"alpha {'beta ' * (n % 5)}", "completion": f"gamma {'delta ' * (n % 3)}"} for n in range(24)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def full(small_model, data, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "full"
    train(recipe_of(small_model, data, 12, {"method": "full", "l1_to_start": 1e-3}, 5e-3), out=out)
    return out


@pytest.fixture(scope="module")
def graft(small_model, data, full, tmp_path_factory) -> tuple[Path, dict, list[str]]:
    out, heard = tmp_path_factory.mktemp("runs") / "graft", Heard()
    adapt = {"method": "graft", "of": str(full), "keep": 0.02}
    summary = train(recipe_of(small_model, data, 6, adapt, 3e6), out=out, watcher=heard)
    return out, summary, heard.lines


def test_the_best_rounded_mask_is_kept_and_measured_against_what_it_was_made_of(graft):
    out, summary, lines = graft
    evaluations = [json.loads(line) for line in (out / "evaluations.jsonl").read_text().splitlines()]
    losses = {each["step"]: each["learning"]["hold-out"]["loss"] for each in evaluations}
    assert list(losses) == [0, 2, 4, 6]
    assert summary["best"]["kept"] == "best"
    assert summary["learning"]["hold-out"]["after"]["loss"] == pytest.approx(min(losses.values()), abs=1e-6)
    told = summary["graft"]
    sides = {name: side["loss"] for name, side in told["of"].items()}
    assert list(sides) == ["base", "fine-tuned", "most moved", "graft"]
    assert sides["base"] == pytest.approx(summary["learning"]["hold-out"]["before"]["loss"], abs=1e-5)
    assert sides["most moved"] == pytest.approx(losses[0], abs=1e-5)
    assert sides["graft"] == pytest.approx(min(losses.values()), abs=1e-5)
    assert sides["fine-tuned"] < sides["graft"] <= sides["most moved"] < sides["base"]
    gain = (sides["base"] - sides["graft"]) / (sides["base"] - sides["fine-tuned"])
    assert told["kept"] == pytest.approx(gain)
    assert told["entries"] == sparse.entries_of(sparse.read(out / "adapter")[0])
    assert told["entries"] == round(0.02 * told["among"]) - told["dropped"] + told["added"]
    assert told["added"] > 0
    assert all(0 <= side["error"] <= 1 and side["predictions"] > 0 for side in told["of"].values())
    assert any(line.startswith("graft ") and "others added" in line for line in lines)
    assert summary["checks"]["reload"].startswith("0 of")


def test_merged_and_taken_back_bit_for_bit_and_twice_refused_through_the_command_line(graft, small_model, capsys):
    out = graft[0]
    assert run_words(["export", str(out), "--to", "merged"]) == 0
    assert run_words(["export", str(out), "--undo", str(out / "merged")]) == 0
    base, merged, undone = (load_file(f / "model.safetensors") for f in (small_model, out / "merged", out / "undone"))
    entries = sparse.entries_of(sparse.read(out / "adapter")[0])
    assert set(undone) == set(base)
    assert sum(int((merged[name] != value).sum()) for name, value in base.items()) == entries
    assert all(torch.equal(undone[n].view(torch.int32), value.view(torch.int32)) for n, value in base.items())
    assert not (out / "undone" / "frisket.json").exists()
    capsys.readouterr()
    assert run_words(["export", str(out), "--undo", str(out / "undone"), "--into", str(out / "again")]) == 2
    assert "its tensors are the base's" in capsys.readouterr().err
    assert run_words(["export", str(out), "--undo", str(out / "merged"), "--push", "me/base"]) == 2
    assert "--undo gives the base back, which is not pushed" in capsys.readouterr().err
    assert run_words(["evaluate", str(out), "--json"]) == 0
    once = json.loads(capsys.readouterr().out)["learning"]["hold-out"]
    assert run_words(["evaluate", str(out), f"model.path={out / 'merged'}", "--json"]) == 0  # put on twice
    twice = json.loads(capsys.readouterr().out)["learning"]["hold-out"]
    assert twice["after"]["loss"] == pytest.approx(once["after"]["loss"], abs=1e-6)
    assert twice["before"]["loss"] == pytest.approx(once["before"]["loss"], abs=1e-6)


def test_a_change_is_taken_out_of_no_other_model(graft, full, small_model, tmp_path):
    out = graft[0]
    export(out, to="merged", into=tmp_path / "merged", watcher=Silent())
    with pytest.raises(UnsupportedError, match="--undo takes back what a sparse adapter changed"):
        undo(full, tmp_path / "merged", into=None, watcher=Silent())
    with pytest.raises(ConfigError, match=r"--undo .*none: there is no such folder"):
        undo(out, tmp_path / "none", into=None, watcher=Silent())
    with pytest.raises(ConfigError, match="holds no finished run"):
        undo(tmp_path, tmp_path / "merged", into=None, watcher=Silent())
    with pytest.raises(CheckError, match="does not hold this change"):
        undo(out, full / "model", into=tmp_path / "new", watcher=Silent())
    shutil.copytree(tmp_path / "merged", tmp_path / "less")
    file = tmp_path / "less" / "model.safetensors"
    tensors = load_file(file)
    name = next(iter(sparse.read(out / "adapter")[0]))
    save_file({n: v for n, v in tensors.items() if n != name}, file)
    with pytest.raises(CheckError, match=r"lacks 1 of the .* changed tensors, first"):
        undo(out, tmp_path / "less", into=tmp_path / "new", watcher=Silent())
    save_file(tensors | {name: tensors[name] + 1e-3}, file)  # trained further
    with pytest.raises(CheckError, match="does not hold this change"):
        undo(out, tmp_path / "less", into=tmp_path / "new", watcher=Silent())
    (tmp_path / "less" / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": dict.fromkeys(tensors, file.name)})
    )
    file.write_bytes(b"no")
    with pytest.raises(CheckError, match=r"model.safetensors cannot be read: "):
        undo(out, tmp_path / "less", into=tmp_path / "new", watcher=Silent())
    (tmp_path / "less" / "model.safetensors.index.json").unlink()
    with pytest.raises(CheckError, match="holds no readable model"):
        undo(out, tmp_path / "less", into=tmp_path / "new", watcher=Silent())
    assert not (tmp_path / "new").exists()


def test_what_is_written_wrongly_is_not_kept(graft, tmp_path, monkeypatch):
    out = graft[0]
    export(out, to="merged", into=tmp_path / "merged", watcher=Silent())
    monkeypatch.setattr(undoing, "save_file", lambda tensors, path, metadata: None)
    with pytest.raises(CheckError, match="was not written as the base has it"):
        undo(out, tmp_path / "merged", into=tmp_path / "new", watcher=Silent())
    assert not (tmp_path / "new").exists()


def test_trained_in_bf16_and_taken_out_of_an_fp32_model_bit_for_bit(small_model, data, full, tmp_path):
    """The artefact speaks of the base as it is stored, not of its rounding."""
    adapt = {"method": "graft", "of": str(full), "keep": 0.01}
    out = tmp_path / "graft"
    train(recipe_of(small_model, data, 2, adapt, 1e6, train={"compute": "bf16"}), out=out)
    export(out, to="merged", into=tmp_path / "merged", watcher=Silent())
    undo(out, tmp_path / "merged", into=tmp_path / "base", watcher=Silent())
    base, undone = load_file(small_model / "model.safetensors"), load_file(tmp_path / "base" / "model.safetensors")
    assert {value.dtype for value in base.values()} == {torch.float32}
    assert all(torch.equal(undone[n].view(torch.int32), value.view(torch.int32)) for n, value in base.items())


def test_a_search_that_finds_nothing_better_keeps_what_moved_most(small_model, data, full, tmp_path):
    adapt = {"method": "graft", "of": str(full), "keep": 0.02}
    summary = train(recipe_of(small_model, data, 2, adapt, 1.0), out=tmp_path / "out")
    assert summary["best"]["step"] == 0
    assert (summary["graft"]["dropped"], summary["graft"]["added"]) == (0, 0)


def test_without_evaluation_the_last_mask_is_the_result_and_that_is_said(small_model, data, full, tmp_path):
    heard = Heard()
    adapt = {"method": "graft", "of": str(full), "keep": 0.02}
    summary = train(recipe_of(small_model, data, 2, adapt, 3e6, evaluate="off"), out=tmp_path / "out", watcher=heard)
    assert "of" not in summary["graft"]
    assert any("the result is the last mask, not the best" in line for line in heard.lines)


def test_a_search_that_measures_nothing_or_counts_in_fp16_is_refused(small_model, data, full, tmp_path):
    adapt = {"method": "graft", "of": str(full), "keep": 0.02}
    never = recipe_of(small_model, data, 2, adapt, 3e6, evaluate={"every": 0})
    with pytest.raises(ConfigError, match=r"adapt.method=graft decides by a loss .*evaluate.every is 0\)\.\n.*=0.1"):
        train(never, out=tmp_path / "out")
    with pytest.raises(ConfigError, match=r"adapt.method=graft decides by .*there is no learning set"):
        best.rule_of(recipe_of(small_model, data, 2, adapt, 3e6), [])
    narrow = recipe_of(small_model, data, 2, adapt, 3e6, train={"compute": "fp16"})
    with pytest.raises(UnsupportedError, match=r"gradients of its scores are near 1e-11"):
        train(narrow, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_run_in_bf16_starts_with_the_entries_of_one_in_fp32(small_model, data, full, tmp_path):
    adapt = {"method": "graft", "of": str(full), "keep": 0.02}
    found = {}
    for compute in ("fp32", "bf16"):
        recipe = recipe_of(small_model, data, 2, adapt, 1.0, train={"compute": compute})
        train(recipe, out=tmp_path / compute)
        found[compute] = sparse.read(tmp_path / compute / "adapter")[0]
    assert set(found["fp32"]) == set(found["bf16"])
    for name, change in found["fp32"].items():
        assert torch.equal(change.indices, found["bf16"][name].indices)
        assert torch.equal(change.values, found["bf16"][name].values)


def test_a_stopped_search_ends_where_a_whole_one_does(small_model, data, full, graft, tmp_path):
    out = tmp_path / "graft"
    adapt = {"method": "graft", "of": str(full), "keep": 0.02}
    recipe = recipe_of(small_model, data, 6, adapt, 3e6, train={"save_every": 2})
    train(recipe, out=out)
    for path in [*out.glob("summary.json"), *out.glob("checkpoints/step-00000006")]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.rmtree(out / "adapter")
    train(recipe, out=out, resume=True)
    ours, theirs = (load_file(folder / "adapter" / "adapter.safetensors") for folder in (out, graft[0]))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_two_grafts_are_compared_entry_by_entry(graft, small_model, data, full, tmp_path, capsys):
    other = tmp_path / "wide"
    adapt = {"method": "graft", "of": str(full), "keep": 0.05}
    train(recipe_of(small_model, data, 6, adapt, 1.0), out=other)
    result = compare_runs([graft[0], other], page=tmp_path / "c.html")
    (pair,) = result["overlaps"]
    sets = [
        {(n, i) for n, c in sparse.read(run / "adapter")[0].items() for i in c.indices.tolist()}
        for run in (graft[0], other)
    ]
    assert pair["shared"] == len(sets[0] & sets[1])
    assert [arm["moving"] for arm in result["arms"]] == list(map(len, sets))  # not the scores
    assert pair["jaccard"] == pytest.approx(len(sets[0] & sets[1]) / len(sets[0] | sets[1]))
    assert pair["chance"] == pytest.approx(len(sets[0]) * len(sets[1]) / pair["among"])
    assert pair["jaccard"] > pair["chance_jaccard"]
    assert run_words(["compare", str(graft[0]), str(other), "--out", str(tmp_path / "c.html")]) == 0
    assert "Entries in common" in capsys.readouterr().out
    assert compare_runs([graft[0], full], page=tmp_path / "c.html", allow_unequal=True)["overlaps"] == []


def test_a_graft_keeps_its_best_step_so_arrangements_are_not_compared_at_one(small_model, data, full):
    adapt = {"method": "graft", "of": str(full)}
    recipe = recipe_of(small_model, data, 2, adapt, 1.0)
    assert best.rule_of(recipe, ["hold-out"]) == best.Rule("hold-out", None, "best")
    compared = recipe.model_copy(update={"attend": recipe.attend.model_copy(update={"compare": True})})
    with pytest.raises(ConfigError, match=r"adapt.method=graft would end two runs at different steps"):
        best.rule_of(compared, ["hold-out"])


def test_grafts_need_plain_weights():
    class Config:
        quantization_config = None

    with pytest.raises(UnsupportedError, match=r"model.load = 4bit: adapt.method = graft was not tried on them"):
        refuse_method("4bit", Config(), "graft", Graft.about.quantised)


def test_calibration_is_that_of_a_slow_count():
    model = tiny(dtype=torch.float64)
    sequences = samples(3, [9, 14, 6])
    weighted = [(s, np.r_[0.0, np.ones(len(s) - 1)]) for s in sequences]
    instruments = Instruments(None, (), 0, lambda chosen: pack(chosen, "isolated", 64), chunk_tokens=5)
    found = calibration(model, weighted, instruments)
    confidence, right, losses = [], [], []
    for sequence in sequences:
        (rows,) = pack([sequence], "alone", 1)
        with torch.no_grad():
            share = logits_at(model.eval(), rows, np.arange(len(sequence))).softmax(-1)
        for place, target in enumerate(sequence.input_ids[1:]):
            confidence.append(float(share[place].max()))
            right.append(int(share[place].argmax()) == target)
            losses.append(-float(share[place, target].log()))
    error = 0.0
    for low in range(15):
        inside = [i for i, c in enumerate(confidence) if low / 15 <= c < (low + 1) / 15]
        if inside:
            gap = np.mean([right[i] for i in inside]) - np.mean([confidence[i] for i in inside])
            error += len(inside) / len(confidence) * abs(gap)
    assert found.predictions == len(right) == 26
    assert found.error == pytest.approx(error, abs=1e-12)
    assert found.loss == pytest.approx(np.mean(losses), abs=1e-12)
    assert found.accuracy == np.mean(right)
    assert found.confidence == pytest.approx(np.mean(confidence), abs=1e-12)
    assert np.isnan(calibration(model, [], instruments).error)


def test_a_model_that_is_always_sure_and_always_right_has_no_error():
    assert expected_error(np.ones(4), np.ones(4, dtype=bool)) == 0
    assert expected_error(np.ones(4), np.zeros(4, dtype=bool)) == 1
