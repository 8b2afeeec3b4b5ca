"""Comparing finished runs: pairing by seed, verdicts, unequal budgets."""

import json
from pathlib import Path

import pytest

from frisket.errors import ConfigError
from frisket.recipe import Recipe, dump
from frisket.run.comparing import compare_runs, read_run

LOSSES = {8: (2.0, 2.4, 2.2), 16: (1.9, 2.25, 2.06)}


def run_folder(
    place: Path, *, rank: int = 8, seed: int = 0, loss: float = 2.0, tokens: int = 1000, data: str = "d", **sections
) -> Path:
    """The files of a finished run, without a run."""
    place.mkdir(parents=True)
    given = {"data": [{"path": "x.jsonl"}], "adapt": {"rank": rank}, "train": {"seed": seed}, **sections}
    (place / "recipe.yaml").write_text(dump(Recipe.model_validate(given)))
    (place / "environment.json").write_text(json.dumps({"data": data}))
    match = {"exact_match": 0.5 - loss / 10, "exact_match_interval": [0.1, 0.6]}
    after = {"loss": loss, "loss_interval": [loss - 0.1, loss + 0.1], **match}
    summary = {
        "model": {"path": "bundled", "parameters": 100, "moving": rank * 10, "method": "lora"},
        "steps": 5,
        "learning": {"hold-out": {"samples": 20, "after": after}},
        "forgetting": {"default": {"samples": 32, "after": {"kl": 0.1}}},
        "tokens": {"flat": tokens},
        "rates": {"real_tokens_per_second": 100.0},
        "seconds": {"total": 3.0},
    }
    (place / "summary.json").write_text(json.dumps(summary))
    return place


@pytest.fixture
def six(tmp_path: Path) -> list[Path]:
    """Two arms of three seeds each, in folders of their own."""
    return [
        run_folder(tmp_path / f"r{rank}-{seed}", rank=rank, seed=seed, loss=loss)
        for rank, losses in LOSSES.items()
        for seed, loss in enumerate(losses)
    ]


def test_seeds_are_paired(six, tmp_path) -> None:
    result = compare_runs(six, page=tmp_path / "compare.html")
    first, second = result["arms"]
    assert (first["name"], second["name"]) == ("r8-0", "r16-0")
    loss = second["measures"]["hold-out loss"]
    assert (loss["median"], loss["interval"]) == (2.06, [1.9, 2.25])
    # The arms overlap by far; the differences by seed, -0.10, -0.15 and -0.14, stay clear of 0.
    assert loss["difference"] == pytest.approx(-0.13)
    assert loss["difference_interval"] == pytest.approx([-0.1957, -0.0643], abs=1e-4)
    assert loss["verdict"] == "better"
    assert second["measures"]["hold-out exact match"]["verdict"] == "better"
    assert second["measures"]["forgetting: KL to the base"]["verdict"] == "same"
    assert result["judged"] == 3
    assert "3 comparisons, each at 95 %: were all arms equal, about 0.15" in (tmp_path / "compare.html").read_text()
    assert "difference" not in first["measures"]["hold-out loss"]


def test_arms_and_cells_of_a_grid_are_compared_as_what_they_are(six, tmp_path, monkeypatch) -> None:
    cells = []
    for folder in six:
        rank, _, seed = folder.name[1:].partition("-")
        place = tmp_path / "grid" / f"rank={rank}" / f"seed-{seed}"
        place.parent.mkdir(parents=True, exist_ok=True)
        folder.rename(place)
        cells.append({"folder": f"rank={rank}/seed-{seed}", "arm": f"rank={rank}"})
    (tmp_path / "grid" / "grid.json").write_text(json.dumps({"cells": cells}))
    monkeypatch.chdir(tmp_path)
    arms = [Path("grid/rank=16"), Path("grid/rank=8")]
    found = compare_runs(arms, page=tmp_path / "compare.html")["arms"]
    assert [(arm["name"], arm["seeds"]) for arm in found] == [("rank=16", [0, 1, 2]), ("rank=8", [0, 1, 2])]
    assert found[0]["folders"][0] == "grid/rank=16/seed-0"
    (single, other) = compare_runs([arm / "seed-1" for arm in arms], page=tmp_path / "compare.html")["arms"]
    assert (single["name"], single["seeds"], other["name"]) == ("rank=16", [1], "rank=8")
    for seed in range(3):
        (arms[0] / f"seed-{seed}" / "summary.json").unlink()
    with pytest.raises(ConfigError, match=r"no cell of this grid is finished\.\nGo on: frisket train grid --resume"):
        compare_runs(arms, page=tmp_path / "compare.html")


def test_three_seeds_that_only_lean_one_way_have_no_verdict(tmp_path) -> None:
    """Three differences of one sign are found in a quarter of all comparisons of equal arms."""
    folders = [
        run_folder(tmp_path / f"r{rank}-{seed}", rank=rank, seed=seed, loss=loss)
        for rank, losses in {8: (2.0, 2.0, 2.0), 16: (1.99, 1.9, 1.8)}.items()
        for seed, loss in enumerate(losses)
    ]
    loss = compare_runs(folders, page=tmp_path / "compare.html")["arms"][1]["measures"]["hold-out loss"]
    assert loss["verdict"] == "same"
    assert loss["difference_interval"][0] < 0 < loss["difference_interval"][1]


def test_runs_that_measured_nothing_show_their_training_loss(tmp_path) -> None:
    folders = []
    for rank in (8, 16):
        for seed in range(3):
            place = run_folder(tmp_path / f"r{rank}-{seed}", rank=rank, seed=seed, evaluate="off")
            summary = json.loads((place / "summary.json").read_text())
            summary |= {"learning": {}, "forgetting": {}, "loss": 30 / rank + seed / rank}
            (place / "summary.json").write_text(json.dumps(summary))
            folders.append(place)
    result = compare_runs(folders, page=tmp_path / "compare.html")
    (name,) = result["arms"][1]["measures"]
    found = result["arms"][1]["measures"][name]
    assert (name, found["median"], found["difference"]) == ("training loss", 31 / 16, -31 / 16)
    assert (result["judged"], "verdict" in found) == (0, False)
    page = (tmp_path / "compare.html").read_text()
    assert "Nothing was measured (evaluate=off)" in page
    assert page.count('class="dot') == 6


@pytest.mark.parametrize(
    ("section", "name", "measure", "told"),
    [
        ("learning", "hold-out", "exact_match", "hold-out exact match"),
        ("forgetting", "default", "bits_per_character_prose", "forgetting: bits per character, prose"),
        ("forgetting", "german", "kl", "forgetting, german: KL to the base"),
    ],
)
def test_measures_are_named_in_words(section, name, measure, told, tmp_path) -> None:
    place = run_folder(tmp_path / "r")
    summary = json.loads((place / "summary.json").read_text())
    (place / "summary.json").write_text(json.dumps(summary | {section: {name: {"after": {measure: 0.5}}}}))
    assert told in read_run(place, "").measured()


def test_fewer_seeds_have_no_verdict(six, tmp_path) -> None:
    result = compare_runs([six[0], six[1], six[3], six[4]], page=tmp_path / "compare.html")
    loss = result["arms"][1]["measures"]["hold-out loss"]
    assert loss["difference"] == pytest.approx(-0.125)
    assert not {"verdict", "difference_interval"} & set(loss)
    assert "No verdict: that takes at least 3 seeds" in (tmp_path / "compare.html").read_text()


def test_a_single_run_keeps_its_own_interval(six, tmp_path) -> None:
    result = compare_runs([six[0], six[3]], page=tmp_path / "compare.html")
    assert result["arms"][0]["measures"]["hold-out loss"]["interval"] == [1.9, 2.1]


def test_settings_that_differ_are_shown_and_those_that_nobody_asked_for_named(tmp_path) -> None:
    folders = []
    for rank, rate in ((8, 0.012), (16, 0.0059)):
        train = {"seed": 0, "learning_rate": rate, "save_every": 0.1 * rank}
        place = run_folder(tmp_path / f"r{rank}", rank=rank, train=train)
        summary = json.loads((place / "summary.json").read_text())
        settled = {"learning_rate": rate, "learning_rate_why": "the method's own", "step_tokens": 1024}
        (place / "summary.json").write_text(json.dumps(summary | {"train": settled}))
        folders.append(place)
    result = compare_runs(folders, page=tmp_path / "compare.html")
    assert [(each["name"], list(each["values"].values()), each["asked"]) for each in result["settings"]] == [
        ("adapt.rank", ["8", "16"], True),
        ("adapt.alpha", ["16", "32"], False),
        ("train.learning_rate", ["0.012", "0.0059"], False),
    ]
    assert result["unasked"] == (
        "adapt.alpha and train.learning_rate differ too, though nobody asked for that. "
        "To hold them: adapt.alpha=16 train.learning_rate=0.012"
    )
    page = (tmp_path / "compare.html").read_text()
    assert "follows from the others" in page
    assert "To hold them: adapt.alpha=16" in page


def test_a_rate_that_was_asked_for_is_no_surprise(tmp_path) -> None:
    adapt = {"method": "lora", "rank": 8, "alpha": 16}
    one, other = (
        run_folder(tmp_path / str(rate), adapt=adapt, train={"learning_rate": rate, "seed": 0}) for rate in (0.01, 0.02)
    )
    result = compare_runs([one, other], page=tmp_path / "compare.html")
    assert [(each["name"], each["asked"]) for each in result["settings"]] == [("train.learning_rate", True)]
    assert result["unasked"] == ""


UNEQUAL = {
    "training tokens with seed 0: a 1,000, b 1,020": {"tokens": 1020},
    "base model: a bundled, b other": {"model": {"path": "other"}},
    "evaluation sets: a hold-out .20 samples. . default": {
        "evaluate": {"learning": [{"name": "hold-out", "path": "y"}]}
    },
    "the hold-out with seed 0, drawn from the training data, .* .fingerprints.: a d, b 0123456789$": {
        "data": "0123456789" * 6
    },
    "seeds, which draw the hold-out, none in common": {"seed": 1},
}


@pytest.mark.parametrize("named", UNEQUAL)
def test_unequal_budgets_are_refused_unless_asked_for(named: str, tmp_path) -> None:
    pair = [run_folder(tmp_path / "a", rank=4), run_folder(tmp_path / "b", **UNEQUAL[named])]
    with pytest.raises(ConfigError, match=f"(?m){named}".replace("+", r"\+")) as caught:
        compare_runs(pair, page=tmp_path / "compare.html")
    assert str(caught.value).endswith("To compare them anyway: --allow-unequal")
    result = compare_runs(pair, page=tmp_path / "compare.html", allow_unequal=True)
    assert len(result["unequal"]) == 1
    assert "unequal, so nothing is judged" in (tmp_path / "compare.html").read_text()


def test_a_few_tokens_more_are_the_same_budget(tmp_path) -> None:
    pair = [run_folder(tmp_path / "a", rank=4), run_folder(tmp_path / "b", tokens=1009)]
    assert compare_runs(pair, page=tmp_path / "compare.html")["unequal"] == []


def test_hold_outs_of_other_files_need_not_be_of_the_same_data(tmp_path) -> None:
    own = {"learning": [{"name": "hold-out", "path": "eval.jsonl"}]}
    pair = [run_folder(tmp_path / "a", rank=4, evaluate=own), run_folder(tmp_path / "b", data="e", evaluate=own)]
    assert compare_runs(pair, page=tmp_path / "compare.html")["unequal"] == []


def test_the_same_recipe_and_seed_twice_are_two_arms(tmp_path) -> None:
    pair = [run_folder(tmp_path / "one" / "r"), run_folder(tmp_path / "two" / "r")]
    names = [arm["name"] for arm in compare_runs(pair, page=tmp_path / "compare.html")["arms"]]
    assert names == [str(place) for place in pair]


def test_folders_without_a_finished_run_are_refused(tmp_path) -> None:
    done = run_folder(tmp_path / "done")
    (tmp_path / "begun").mkdir()
    with pytest.raises(ConfigError, match="holds no finished run"):
        compare_runs([done, tmp_path / "begun"], page=tmp_path / "compare.html")
    with pytest.raises(ConfigError, match="1 finished run is nothing to compare"):
        compare_runs([done], page=tmp_path / "compare.html")
    (tmp_path / "begun" / "grid.json").write_text(json.dumps({"cells": [{"folder": "x", "arm": "x"}]}))
    with pytest.raises(ConfigError, match="no cell of this grid is finished"):
        compare_runs([tmp_path / "begun"], page=tmp_path / "compare.html")
