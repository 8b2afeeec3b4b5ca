"""A grid that goes on later: from what its folder holds, whatever became of the recipe's file or the directory."""

import json
from pathlib import Path

import pytest
import torch
from tests.run.test_grid import RANKS, file
from tests.run.test_training import recipe, records

from frisket.errors import CheckError, ConfigError
from frisket.recipe import dump
from frisket.run import grid as grids
from frisket.run import make_grid, train_grid, training

__all__ = ["file"]


def fail_at(monkeypatch, rank: int, error: Exception):
    """Let cells of one rank fail, until undone."""
    whole = training.train_one

    def failing(given, *rest):
        if given.adapt.rank == rank:
            raise error
        return whole(given, *rest)

    monkeypatch.setattr(training, "train_one", failing)
    return lambda: monkeypatch.setattr(training, "train_one", whole)


@pytest.fixture
def half_done(file, tmp_path, monkeypatch) -> Path:
    """A grid whose second cell has failed."""
    mend = fail_at(monkeypatch, 4, CheckError("a planted fault"))
    assert train_grid(make_grid(file, [], [RANKS], None), out=tmp_path / "out")["exit_code"] == 1
    mend()
    return tmp_path / "out"


def test_a_resumed_grid_trains_the_recipe_that_it_began_with(file, half_done) -> None:
    changed = Path(file).read_text().replace("learning_rate: 0.01", "learning_rate: 0.02")
    assert changed != Path(file).read_text()
    Path(file).write_text(changed)
    result = train_grid(grids.load_grid(half_done), out=half_done, resume=True)
    assert [arm["learning_rate"] for arm in result["arms"]] == [0.01, 0.01]
    with pytest.raises(ConfigError, match=r"train\.learning_rate is 0\.01 there and 0\.02 here"):
        train_grid(make_grid(file, [], [RANKS], None), out=half_done, resume=True)
    Path(file).unlink()
    assert train_grid(grids.load_grid(half_done), out=half_done, resume=True)["exit_code"] == 0


def test_a_finished_cell_of_another_recipe_is_refused(half_done) -> None:
    stored = half_done / "rank=2" / "seed-0" / "recipe.yaml"
    stored.write_text(stored.read_text().replace("learning_rate: 0.01", "learning_rate: 0.02"))
    with pytest.raises(ConfigError, match="holds a run of another recipe"):
        train_grid(grids.load_grid(half_done), out=half_done, resume=True)


def test_a_grid_goes_on_from_another_directory(small_model, tmp_path, monkeypatch) -> None:
    home, other = tmp_path / "home", tmp_path / "other"
    home.mkdir()
    other.mkdir()
    monkeypatch.chdir(home)
    Path("chats.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records(16)))
    wanted = recipe(small_model, Path("chats.jsonl"), train={"max_steps": 1, "epochs": None})
    Path("tiny.yaml").write_text(dump(wanted))
    mend = fail_at(monkeypatch, 4, CheckError("a planted fault"))
    train_grid(make_grid("tiny.yaml", [], [RANKS], None), out=Path("out"))
    mend()
    monkeypatch.chdir(other)
    again = train_grid(grids.load_grid(home / "out"), out=home / "out", resume=True)
    assert (again["exit_code"], again["unequal"]) == (0, [])
    named = make_grid("../home/tiny.yaml", [], [RANKS], None)
    assert train_grid(named, out=home / "out", resume=True)["exit_code"] == 0


def test_a_cell_without_memory_leaves_the_others_alone(file, tmp_path, monkeypatch) -> None:
    fail_at(monkeypatch, 2, torch.OutOfMemoryError("tried to allocate 2 GiB"))
    result = train_grid(make_grid(file, [], [RANKS], None), out=tmp_path / "out")
    assert [arm["name"] for arm in result["arms"]] == ["rank=4"]
    (failed,) = result["failed"]
    assert failed["folder"] == "rank=2/seed-0"
    assert "attend.row_tokens=" in failed["error"]


@pytest.mark.parametrize(
    "key", ["data", "evaluate", "stages", "train", "model", "stages.1.data.0.limit", "stages.0.train.max_steps"]
)
def test_whole_sections_and_stages_make_unequal_budgets_too(key: str, file) -> None:
    with pytest.raises(ConfigError, match="a comparison of unequal budgets says little"):
        make_grid(file, [], [(key, ("1", "2"))], None)


def test_a_stage_may_differ_in_what_is_no_budget(file) -> None:
    axis = ("stages.0.train.learning_rate", ("0.1", "0.2"))
    assert len(make_grid(file, ["stages=[{train: {clip: 1.0}}]"], [axis], None).cells()) == 2
