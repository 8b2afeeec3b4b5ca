"""The verdicts of the experiment on default rates, on losses that were made up here."""

import io
import json

import pytest
from lab.default_rates import ARMS, FILES, GRID, TRL, conduct, show, verdicts
from rich.console import Console

from lab import default_rates


def runs(name: str, default: float, best: float, trl: float) -> list[dict]:
    """One set: all of the grid at 3.0 but its second point."""
    loss = {"default": default, **dict.fromkeys(GRID, 3.0), **dict.fromkeys(TRL, trl), list(GRID)[1]: best}
    return [{"set": name, "arm": arm, "tokens": 10, "shuffle": 0, "loss": loss[arm]} for arm in ARMS]


@pytest.mark.parametrize(
    ("default", "trl", "within", "not_worse"),
    [(2.03, 2.5, True, True), (2.05, 2.5, False, True), (1.9, 1.89, True, False)],
)
def test_the_default_is_held_against_the_best_point_and_every_trl_run(default, trl, within, not_worse) -> None:
    (found,) = verdicts(runs("GSM8K", default, 2.0, trl), tokens=10)
    assert (found["within"], found["not_worse"], found["best"]) == (within, not_worse, list(GRID)[1])
    assert found["gap"] == pytest.approx(default / 2.0 - 1)


def test_an_incomplete_set_is_not_judged() -> None:
    whole = runs("GSM8K", 2.0, 2.0, 2.5)
    assert verdicts(whole[:-1], tokens=10) == verdicts(whole, tokens=11) == verdicts(whole, 10, shuffle=1) == []
    assert verdicts(whole[1:], tokens=10) == []
    (without_trl,) = verdicts(whole[: -len(TRL)], tokens=10)
    assert without_trl["trl"] == {}


def test_the_table_counts_sets() -> None:
    console = Console(file=io.StringIO(), width=200)
    show(verdicts(runs("GSM8K", 2.0, 2.0, 2.5) + runs("Alpaca", 2.2, 2.0, 2.5), tokens=10), console)
    told = console.file.getvalue()
    assert "within 2 % on 1 of 2 sets" in told
    assert "not worse than TRL on 2 of 2 sets" in told


def test_what_is_finished_is_not_run_again(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(default_rates, "RESULTS", tmp_path / "r.json")
    monkeypatch.setattr(default_rates, "files", lambda *given: None)
    done = [run for name in FILES for run in runs(name, 2.0, 2.0, 2.5)]
    (tmp_path / "r.json").write_text(json.dumps({"runs": done}))
    assert conduct(tmp_path, 10, list(FILES), ARMS, 1)["runs"] == done
