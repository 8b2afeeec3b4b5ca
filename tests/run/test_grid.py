"""A grid of runs: its cells, what is skipped, what fails, what is compared."""

import json
from pathlib import Path

import pytest
from tests.run.test_training import recipe, records

from frisket.errors import CheckError, ConfigError, FrisketError
from frisket.recipe import dump
from frisket.run import grid as grids
from frisket.run import make_grid, train_grid
from frisket.watch import Silent

RANKS = ("adapt.rank", ("2", "4"))


class Told(Silent):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)

    def warn(self, line: str) -> None:
        self.lines.append(line)


@pytest.fixture
def file(small_model, tmp_path) -> str:
    """A recipe of one step on sixteen samples, four of them held out."""
    chats = tmp_path / "chats.jsonl"
    chats.write_text("".join(json.dumps(record) + "\n" for record in records(16)))
    evaluate = {"every": 0, "forgetting": [], "learning": [{"name": "hold-out"}]}
    wanted = recipe(small_model, chats, train={"max_steps": 1, "epochs": None, "save_every": 0}, evaluate=evaluate)
    given = wanted.model_copy(update={"data": (wanted.data[0].model_copy(update={"hold_out": 0.25}),)})
    path = tmp_path / "tiny.yaml"
    path.write_text(dump(given))
    return str(path)


def test_cells_are_the_product_seed_by_seed(file) -> None:
    grid = make_grid(file, ["train.clip=0.5"], [RANKS, ("train.schedule", ("cosine", "linear"))], 2)
    cells = grid.cells()
    assert [cell.folder for cell in cells[:4]] == [
        "rank=2,schedule=cosine/seed-0",
        "rank=2,schedule=linear/seed-0",
        "rank=4,schedule=cosine/seed-0",
        "rank=4,schedule=linear/seed-0",
    ]
    assert [cell.seed for cell in cells] == [0] * 4 + [1] * 4
    made = grid.recipes()[5]
    assert (made.adapt.rank, made.train.schedule, made.train.seed, made.train.clip) == (2, "linear", 1, 0.5)
    assert [cell.folder for cell in make_grid(file, [], [], 2).cells()] == ["seed-0", "seed-1"]
    assert make_grid(file, ["train.seed=7"], [RANKS], None).cells()[0].folder == "rank=2/seed-7"


def test_a_grid_trains_compares_and_goes_on(file, tmp_path, monkeypatch) -> None:
    out, told = tmp_path / "out", Told()
    grid = make_grid(file, [], [RANKS], 2)
    result = train_grid(grid, out=out, watcher=told)
    assert [arm["name"] for arm in result["arms"]] == ["rank=2", "rank=4"]
    assert result["arms"][1]["seeds"] == [0, 1]
    assert set(result["arms"][1]["measures"]["hold-out loss"]) >= {"median", "interval", "difference"}
    assert (result["failed"], result["unequal"], result["exit_code"]) == ([], [], 0)
    assert json.loads((out / "summary.json").read_text())["arms"] == json.loads(json.dumps(result["arms"]))
    page = (out / "compare.html").read_text()
    assert page.count('class="dot') == 4
    assert len(told.lines) == 4
    assert ["about" in line for line in told.lines] == [True] * 3 + [False]

    # One cell is taken away: a resumed grid trains that one alone.
    (out / "rank=4" / "seed-1" / "summary.json").unlink()
    trained = []
    whole = grids.train
    monkeypatch.setattr(grids, "train", lambda *a, **k: trained.append(k["out"]) or whole(*a, **k))
    assert grids.load_grid(out) == grid
    again = train_grid(grids.load_grid(out), out=out, resume=True)
    assert trained == [out / "rank=4" / "seed-1"]
    measures = [[arm["measures"]["hold-out loss"]["median"] for arm in found["arms"]] for found in (result, again)]
    assert measures[0] == measures[1]
    with pytest.raises(ConfigError, match=r"is not empty\.\nTo train what it lacks of this grid: --resume"):
        train_grid(grid, out=out)

    # One seed more: its cells alone are trained, and the grid is the larger one from then on.
    trained.clear()
    grown = train_grid(make_grid(file, [], [RANKS], 3), out=out, resume=True)
    assert trained == [out / f"rank={rank}" / "seed-2" for rank in (2, 4)]
    assert [arm["seeds"] for arm in grown["arms"]] == [[0, 1, 2]] * 2
    assert grids.load_grid(out).seeds == (0, 1, 2)
    with pytest.raises(ConfigError, match="another grid: it has a cell rank=2/seed-2, which this one has not"):
        train_grid(grid, out=out, resume=True)
    with pytest.raises(ConfigError, match=r"cell rank=2/seed-0 train\.clip is 1 there and 0\.5 here"):
        train_grid(make_grid(file, ["train.clip=0.5"], [RANKS], 3), out=out, resume=True)
    (out / "grid.json").unlink()
    with pytest.raises(ConfigError, match="holds no grid"):
        train_grid(grid, out=out, resume=True)


def test_a_cell_that_fails_is_told_of_and_the_others_go_on(file, tmp_path, monkeypatch) -> None:
    whole, told = grids.train, Told()

    def failing(recipe, **named):
        if recipe.adapt.rank == 2:
            raise CheckError("a planted fault")
        return whole(recipe, **named)

    monkeypatch.setattr(grids, "train", failing)
    result = train_grid(make_grid(file, [], [RANKS], None), out=tmp_path / "out", watcher=told)
    assert result["exit_code"] == 1
    assert result["failed"] == [{"folder": "rank=2/seed-0", "error": "a planted fault"}]
    assert [arm["name"] for arm in result["arms"]] == ["rank=4"]
    assert any("rank=2/seed-0 failed: a planted fault" in line for line in told.lines)
    monkeypatch.setattr(grids, "train", lambda *a, **k: failing(a[0].model_copy(update={"adapt": RANK_2}), **k))
    with pytest.raises(ConfigError, match="every cell failed"):
        train_grid(make_grid(file, [], [RANKS], None), out=tmp_path / "none")


RANK_2 = grids.load_recipe(None, ["adapt.rank=2"]).adapt


def test_wrong_cells_are_all_named_before_any_is_trained(file, tmp_path) -> None:
    grid = make_grid(file, [], [("adapt.rank", ("0", "2", "x"))], None)
    with pytest.raises(ConfigError, match=" cells are wrong:") as caught:
        train_grid(grid, out=tmp_path / "out")
    assert str(caught.value).startswith("2 of 3 cells are wrong:")
    assert "rank=0/seed-0: adapt.rank = 0" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_warnings_of_cells_reach_the_grid_once(file, tmp_path, monkeypatch) -> None:
    whole, told = grids.train, Told()

    def warned(recipe, *, watcher, **named):
        watcher.say("a line of one cell")
        watcher.warn("dropped 1 of 16 samples")
        return whole(recipe, watcher=watcher, **named)

    monkeypatch.setattr(grids, "train", warned)
    train_grid(make_grid(file, [], [RANKS], None), out=tmp_path / "out", watcher=told)
    assert told.lines.count("dropped 1 of 16 samples") == 1
    assert "a line of one cell" not in told.lines


def test_data_that_cannot_be_read_leaves_nothing_behind(file, tmp_path) -> None:
    wrong = tmp_path / "none.jsonl"
    for words, axes in (
        ([f"data.0.path={wrong}"], [RANKS]),
        ([f"evaluate.learning.0.path={wrong}"], [RANKS]),
        ([], [("data.0.path", (str(tmp_path / "chats.jsonl"), str(wrong)))]),
    ):
        grid = make_grid(file, words, axes, 2, allow_unequal=True)
        with pytest.raises(FrisketError, match=r"none\.jsonl"):
            train_grid(grid, out=tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_data_that_the_cells_share_are_read_once(file, monkeypatch) -> None:
    read = []
    whole = grids.prepare
    monkeypatch.setattr(grids, "prepare", lambda recipe, watcher: read.append(recipe) or whole(recipe, watcher))
    grids._read_data(make_grid(file, [], [RANKS, ("train.schedule", ("cosine", "linear"))], 3).recipes())
    assert len(read) == 1


@pytest.mark.parametrize("axis", ["data.0.limit", "evaluate.budget_seconds"])
def test_cells_of_unequal_budgets_are_refused_unless_asked_for(axis: str, file) -> None:
    with pytest.raises(ConfigError, match="a comparison of unequal budgets says little"):
        make_grid(file, [], [(axis, ("1", "2"))], None)
    assert len(make_grid(file, [], [(axis, ("1", "2"))], None, allow_unequal=True).cells()) == 2


@pytest.mark.parametrize("axis", ["train.max_steps", "train.epochs"])
def test_lengths_may_differ_because_a_line_goes_through_them(axis: str, file) -> None:
    assert len(make_grid(file, [], [(axis, ("1", "2"))], None).cells()) == 2


def test_what_makes_no_grid_is_refused(file) -> None:
    with pytest.raises(ConfigError, match="a value of a grid is empty or named twice") as caught:
        make_grid(file, [], [("adapt.rank", ("2", "4", "2", ""))], None)
    assert str(caught.value).endswith("Name each once: adapt.rank=2,4")
    with pytest.raises(ConfigError, match="a knob has two lists of values in this grid: "):
        make_grid(file, [], [RANKS, RANKS], None)
    with pytest.raises(ConfigError, match="seeds of a grid are counted from 0"):
        make_grid(file, ["train.seed=3"], [], 2)
    with pytest.raises(ConfigError, match="seeds of a grid are counted from 0"):
        make_grid(file, [], [("train.seed", ("1", "2"))], None)
    with pytest.raises(ConfigError, match="Use fewer values: at most "):
        make_grid(file, [], [RANKS], 1001)


def test_values_with_a_slash_stay_one_folder_deep(file) -> None:
    grid = make_grid(file, [], [("train.compute", ("a/b", "c"))], None)
    assert Path(grid.cells()[0].folder).parts == ("compute=a-b", "seed-0")
