"""`frisket evaluate OUT` measures a run again, also one whose stages alone have data."""

import json

import pytest

from frisket.recipe import Recipe
from frisket.run import train
from frisket.run.again import evaluate_run
from frisket.watch import Silent


def test_a_run_whose_stages_alone_have_data_is_measured_with_the_last_ones_recipe(small_model, tmp_path):
    for name in ("first", "last"):
        lines = [json.dumps({"prompt": f"alpha {name} {n}", "completion": "beta gamma"}) for n in range(24)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    stages = [{"data": [{"path": str(tmp_path / f"{name}.jsonl"), "hold_out": 4}]} for name in ("first", "last")]
    given = {
        "model": {"path": str(small_model), "device": "cpu"},
        "train": {"max_steps": 1, "step_tokens": 200, "compute": "fp32", "learning_rate": 0.01},
        "evaluate": {"forgetting": [], "samples": 0, "every": 0},
        "stages": stages,
    }
    summary = train(Recipe.model_validate(given), out=tmp_path / "out")
    measured = evaluate_run(tmp_path / "out", watcher=Silent())
    told, again = (found["learning"]["hold-out"]["after"]["loss"] for found in (summary, measured))
    assert again == pytest.approx(told, rel=1e-5)
