"""The curve of learning against forgetting: points by hand, lengths that may differ, measures that are lacking."""

import json
from pathlib import Path

import pytest
from tests.run.test_comparing import run_folder

from frisket.errors import ConfigError
from frisket.recipe import GRID_FILE
from frisket.run.comparing import compare_runs

EVALUATE = {"learning": [{"name": "target", "path": "held.jsonl"}]}


def measured(place: Path, *, epochs: int, loss: float, kl: float, match: float | None = None, **given) -> Path:
    """A run that came from a loss of 3, an exact match of 0.1 and no KL."""
    run_folder(place, train={"seed": 0, **given.pop("train", {}), "epochs": epochs}, evaluate=EVALUATE, **given)
    file = place / "summary.json"
    summary = json.loads(file.read_text())
    sides = {"before": {"loss": 3.0, "loss_interval": [2.9, 3.1]}, "after": {"loss": loss, "loss_interval": [0.0, 9.0]}}
    if match is not None:
        sides["before"]["exact_match"], sides["after"]["exact_match"] = 0.1, match
    summary["learning"] = {"target": {"samples": 20, **sides}}
    summary["forgetting"]["default"]["before"] = {"kl": 0.0}
    summary["forgetting"]["default"]["after"] = {"kl": kl}
    file.write_text(json.dumps(summary | {"train": {"learning_rate": 0.1 / epochs, "learning_rate_why": "a rule"}}))
    return place


@pytest.fixture
def six(tmp_path: Path) -> list[Path]:
    """Two ranks of one and two epochs; the lower rank has two seeds at one epoch."""
    return [
        measured(tmp_path / "low-2", rank=4, epochs=2, loss=2.0, kl=0.5, tokens=2000),
        measured(tmp_path / "low-1", rank=4, epochs=1, loss=2.5, kl=0.25, tokens=1000),
        measured(tmp_path / "low-1b", rank=4, epochs=1, loss=2.25, kl=0.5, tokens=1000, train={"seed": 1}),
        measured(tmp_path / "high-1", rank=8, epochs=1, loss=1.5, kl=1.0, tokens=1000),
        measured(tmp_path / "high-2", rank=8, epochs=2, loss=1.0, kl=1.5, tokens=2000),
    ]


def test_points_are_means_of_changes_and_lines_go_through_growing_lengths(six, tmp_path) -> None:
    result = compare_runs(six, page=tmp_path / "compare.html")
    (drawing,) = result["curves"]
    assert (drawing["learned"], drawing["forgotten"]) == ("target loss", "forgetting: KL to the base")
    low, high = drawing["lines"]
    assert [(p["arm"], p["length"], p["x"], p["y"]) for p in low["points"]] == [
        ("low-1", "1 epoch", 0.625, 0.375),
        ("low-2", "2 epochs", 1.0, 0.5),
    ]
    assert (low["points"][0]["x_range"], low["points"][0]["y_range"]) == ([0.5, 0.75], [0.25, 0.5])
    assert [(p["arm"], p["x"], p["y"]) for p in high["points"]] == [("high-1", 1.5, 1.0), ("high-2", 2.0, 1.5)]
    text = (tmp_path / "compare.html").read_text()
    assert "A line joins separate runs of growing length" in text
    assert "low-1 · 1 epoch, 1,000 tokens · learned 0.625, forgotten 0.375" in text


def test_lengths_of_one_plan_are_no_unequal_budgets_and_are_compared_apart(six, tmp_path) -> None:
    result = compare_runs(six, page=tmp_path / "compare.html")
    assert result["unequal"] == []
    assert {arm["name"]: arm["against"] for arm in result["arms"]} == {
        "low-2": None,
        "low-1": None,
        "high-1": "low-1",
        "high-2": "low-2",
    }
    found = {arm["name"]: arm["measures"]["target loss"].get("difference") for arm in result["arms"]}
    assert found == {"low-2": None, "low-1": None, "high-1": -1.0, "high-2": -1.0}


def test_a_run_longer_than_all_others_that_is_on_no_line_is_refused(tmp_path) -> None:
    one = measured(tmp_path / "a", rank=4, epochs=1, loss=2.0, kl=0.5, tokens=1000)
    other = measured(tmp_path / "b", rank=8, epochs=2, loss=2.0, kl=0.5, tokens=2000)
    with pytest.raises(ConfigError, match="training tokens with seed 0: a 1,000, b 2,000"):
        compare_runs([one, other], page=tmp_path / "compare.html")


def test_tokens_that_differ_within_one_length_are_refused(six, tmp_path) -> None:
    more = measured(tmp_path / "most", rank=16, epochs=1, loss=2.0, kl=0.5, tokens=1500)
    with pytest.raises(ConfigError, match="training tokens with seed 0: low-1 1,000, high-1 1,000, most 1,500"):
        compare_runs([*six, more], page=tmp_path / "compare.html")


def test_an_arm_that_lacks_a_measure_is_named(six, tmp_path) -> None:
    file = six[-1] / "summary.json"
    summary = json.loads(file.read_text())
    del summary["forgetting"]["default"]["before"]
    file.write_text(json.dumps(summary))
    (drawing,) = compare_runs(six, page=tmp_path / "compare.html")["curves"]
    assert drawing["lacking"] == ["high-2"]
    assert "Not drawn, because a run lacks one of the two: high-2." in (tmp_path / "compare.html").read_text()


def test_exact_match_stands_for_learning_where_it_was_asked_for(tmp_path) -> None:
    places = [
        measured(tmp_path / f"r{rank}", rank=rank, epochs=1, loss=2.0, kl=0.5, match=rank / 10) for rank in (4, 8)
    ]
    (drawing,) = compare_runs(places, page=tmp_path / "compare.html")["curves"]
    assert drawing["learned"] == "target exact match"
    assert [p["x"] for line in drawing["lines"] for p in line["points"]] == pytest.approx([0.3, 0.7])
    assert "A line joins" not in (tmp_path / "compare.html").read_text()


def test_other_targets_are_drawn_apart_and_grids_are_called_by_name(tmp_path) -> None:
    for grid, path in (("code", "code.jsonl"), ("maths", "maths.jsonl")):
        for rank in (4, 8):
            place = measured(tmp_path / grid / f"rank={rank}", rank=rank, epochs=1, loss=2.0, kl=0.5)
            words = (place / "recipe.yaml").read_text()
            (place / "recipe.yaml").write_text(words.replace("held.jsonl", path))
        cells = [{"folder": f"rank={rank}", "arm": f"rank={rank}"} for rank in (4, 8)]
        (tmp_path / grid / GRID_FILE).write_text(json.dumps({"cells": cells}))
    places = [tmp_path / "code", tmp_path / "maths"]
    found = compare_runs(places, page=tmp_path / "compare.html", allow_unequal=True)
    targets = [drawing["target"] for drawing in found["curves"]]
    assert targets == ["code.jsonl, base bundled", "maths.jsonl, base bundled"]
    names = [arm["name"] for arm in found["arms"]]
    assert names == ["code rank=4", "code rank=8", "maths rank=4", "maths rank=8"]


def test_the_page_is_the_same_twice(six, tmp_path) -> None:
    pages = [tmp_path / name for name in ("one.html", "two.html")]
    for page in pages:
        compare_runs(six, page=page)
    assert pages[0].read_bytes() == pages[1].read_bytes()
