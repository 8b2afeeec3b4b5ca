"""Which words open a grid, and what the command line does with one."""

from pathlib import Path

import pytest

from frisket.cli.axes import split_axes
from frisket.cli.compare import _spread_of
from frisket.recipe import dump, load_recipe

RESULT = {
    "against": "rank=2",
    "unequal": [],
    "settings": [{"name": "adapt.rank", "values": {"rank=2": "2", "rank=4": "4"}, "asked": True}],
    "unasked": "train.learning_rate differs too, though nobody asked for that. To hold it: train.learning_rate=0.01",
    "judged": 1,
    "curves": [],
    "failed": [{"folder": "rank=8/seed-0", "error": "too large"}],
    "exit_code": 1,
    "page": "out/x/compare.html",
    "arms": [
        {
            "name": f"rank={rank}",
            "against": None if rank == 2 else "rank=2",
            "seeds": [0, 1, 2],
            "moving": 100 * rank,
            "learning_rate": 0.002,
            "steps": 5,
            "tokens": 1000,
            "tokens_per_second": 99.0,
            "seconds": 1.5,
            "measures": {
                "hold-out exact match": {"median": 0.5, "by_seed": {"0": 0.5}, "measure": "exact_match", **more}
            },
        }
        for rank, more in ((2, {}), (4, {"difference": 0.1, "difference_interval": [0.05, 0.2], "verdict": "better"}))
    ],
}


class FakeGrid:
    name = "mine"


@pytest.fixture
def grids(run, monkeypatch: pytest.MonkeyPatch):
    """The fake of `frisket.run`, with grids."""
    for name, result in (
        ("make_grid", FakeGrid()),
        ("load_grid", FakeGrid()),
        ("train_grid", RESULT),
        ("compare_runs", RESULT),
    ):
        monkeypatch.setattr(run, name, run._told(name, result), raising=False)
    return run


@pytest.mark.parametrize(
    "word",
    [
        "train.betas=[0.9, 0.99]",
        "adapt.where=q_proj,v_proj",
        "data.0.path=a,b.jsonl",
        r"evaluate.learning.0.extract=#### (-?[\d,.]+)",
        "no.such.knob=1,2",
        "train.epochs=1",
    ],
)
def test_a_comma_is_left_alone_where_the_knob_takes_text_or_a_list(word: str) -> None:
    assert split_axes([word]) == ([], [word])


def test_a_comma_opens_a_grid_elsewhere() -> None:
    axes, others = split_axes(["adapt.rank=8, 16", "train.learning_rate=1e-3,auto", "adapt.dora=true,false", "name=x"])
    assert axes == [
        ("adapt.rank", ("8", "16")),
        ("train.learning_rate", ("1e-3", "auto")),
        ("adapt.dora", ("true", "false")),
    ]
    assert others == ["name=x"]


def test_train_hands_over_a_grid_and_tells_by_its_exit_code(frisket_says, grids) -> None:
    code, out, _ = frisket_says("train", "--data", "d", "--seeds", "3", "adapt.rank=2,4", "train.clip=0.5")
    (made, (place, words, axes, seeds), named), (trained, _, how) = grids.asked
    assert (made, trained, code) == ("make_grid", "train_grid", 1)
    assert (place, words, axes, seeds, named["data"]) == (
        None,
        ["train.clip=0.5"],
        [("adapt.rank", ("2", "4"))],
        3,
        ["d"],
    )
    assert (how["out"], how["resume"]) == (Path("out/mine"), False)
    for part in ("rank=4", "50.0 %", "+10.0 % (+5.0 % to +20.0 %)", "better", "400", "compare.html"):
        assert part in out
    assert "failed   rank=8/seed-0: too large" in out
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "adapt.rank rank=2: 2, rank=4: 4" in lines
    assert any(line.startswith("train.learning_rate differs too, though nobody asked for that.") for line in lines)


def test_a_grid_folder_is_resumed_as_the_grid_that_it_is(frisket_says, grids) -> None:
    Path("old").mkdir()
    Path("old/grid.json").write_text("{}")
    frisket_says("train", "old", "--resume")
    assert [name for name, _, _ in grids.asked] == ["load_grid", "train_grid"]
    assert grids.asked[1][2]["out"] == Path("old")


def test_a_cell_is_a_run_folder_though_it_holds_an_equals_sign(frisket_says, run) -> None:
    cell = Path("grid/rank=4/seed-0")
    cell.mkdir(parents=True)
    (cell / "recipe.yaml").write_text(dump(load_recipe(None, ["adapt.rank=4"], data=["chats.jsonl"])))
    for words in (("train", str(cell), "--resume"), ("plan", str(cell)), ("view", str(cell))):
        code, out, _ = frisket_says(*words, "adapt.alpha=8")
        assert (code, out.splitlines()[0].partition(" · ")[2]) == (0, f"{words[0]} · {cell}")
    recipes = [args[0] for _, args, _ in run.asked]
    assert [(recipe.adapt.rank, recipe.adapt.alpha) for recipe in recipes] == [(4, 8)] * 3
    assert run.asked[0][2]["out"] == cell
    frisket_says("evaluate", str(cell))
    assert run.asked[-1][1] == (cell,)
    assert frisket_says("generate", str(cell), "hi")[1].splitlines()[0].endswith(f"generate · {cell}")
    code, _, err = frisket_says("train", f"adapt.target={'x' * 5000}", "--data", "d")
    assert (code, "there is no such key" in err) == (2, True)


@pytest.mark.parametrize(
    ("seeds", "told"),
    [((1, 1), "95 % interval"), ((3, 3), "range of seeds"), ((1, 3), "range of seeds, of one seed 95 % interval")],
)
def test_the_table_says_what_stands_beside_the_medians(seeds, told) -> None:
    assert _spread_of([{"seeds": list(range(count))} for count in seeds]) == told


def test_a_grid_cannot_be_an_overfit(frisket_says, grids) -> None:
    code, _, err = frisket_says("train", "--data", "d", "--seeds", "2", "--overfit", "4")
    assert (code, "--overfit tries one recipe" in err) == (2, True)


def test_compare_asks_for_its_folders(frisket_says, grids) -> None:
    for name in ("a", "b"):
        Path(name).mkdir()
    code, out, _ = frisket_says("compare", "a", "b", "--allow-unequal")
    ((_, (folders,), named),) = grids.asked
    assert (folders, named["allow_unequal"], named["page"]) == ([Path("a"), Path("b")], True, Path("out/compare.html"))
    assert "against rank=2" in out
    code, _, _ = frisket_says("compare", "a")
    assert grids.asked[-1][2]["page"] == Path("a/compare.html")
    code, _, err = frisket_says("compare")
    assert (code, "No run folder is given" in err) == (2, True)
    code, _, err = frisket_says("compare", "a", "none")
    assert (code, "there is no such run folder" in err) == (2, True)
