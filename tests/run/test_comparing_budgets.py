"""Budgets of runs that share no seed, and of runs in stages."""

import json
from pathlib import Path

import pytest
from tests.run.test_comparing import run_folder

from frisket.errors import ConfigError
from frisket.run.comparing import compare_runs

EVALUATE = {"learning": [{"name": "hold-out", "path": "y.jsonl"}]}


def staged(place: Path, *tokens: int, **given) -> Path:
    """A finished run whose stages were trained on so many tokens each; the run's own figures are the last stage's."""
    run_folder(place, tokens=tokens[-1], **given)
    summary = json.loads((place / "summary.json").read_text())
    stages = [{**summary, "tokens": {"flat": count}, "steps": 5 * number} for number, count in enumerate(tokens, 1)]
    (place / "summary.json").write_text(json.dumps(summary | {"stages": stages, "steps": stages[-1]["steps"]}))
    return place


def test_unequal_tokens_of_arms_without_a_common_seed_are_refused(tmp_path) -> None:
    one = run_folder(tmp_path / "a", rank=4, seed=0, tokens=206, evaluate=EVALUATE)
    other = run_folder(tmp_path / "b", rank=8, seed=1, tokens=2092, evaluate=EVALUATE)
    with pytest.raises(ConfigError, match="training tokens, no seed in common: a 206, b 2,092"):
        compare_runs([one, other], page=tmp_path / "compare.html")
    more = run_folder(tmp_path / "c", rank=8, seed=2, tokens=207, evaluate=EVALUATE)
    assert compare_runs([one, more], page=tmp_path / "compare.html")["unequal"] == []


def test_the_stages_of_a_run_are_counted_together(tmp_path) -> None:
    one, other = staged(tmp_path / "a", 500, 500, rank=4), staged(tmp_path / "b", 5000, 500, rank=8)
    with pytest.raises(ConfigError, match="training tokens with seed 0: a 1,000, b 5,500"):
        compare_runs([one, other], page=tmp_path / "compare.html")
    whole = run_folder(tmp_path / "c", rank=16, tokens=1000)
    arms = compare_runs([one, whole], page=tmp_path / "compare.html")["arms"]
    assert [(arm["tokens"], arm["steps"]) for arm in arms] == [(1000, 15), (1000, 5)]
