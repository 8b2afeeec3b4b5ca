"""What is measured after a resume: the very samples that fitted into the budget at the first start."""

import json

import pytest
from tests.run.test_training import chats, recipe, stop_at

from frisket.evaluate import forgetting, learning
from frisket.run import Given, train

__all__ = ["chats"]
FEW = 3


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_resumed_run_measures_what_fitted_at_the_first_start(method, small_model, chats, tmp_path, monkeypatch):
    entries = [{"name": "hold-out", "metric": "exact_match", "max_new_tokens": 2}]
    known = [{"prompts": 6, "answer_tokens": 2, "text_tokens": 4096}]
    evaluate = {"every": 1, "learning": entries, "forgetting": known, "samples": 0, "stop_after": 3}
    train_settings = {"max_steps": 4, "learning_rate": 0.001}
    given = recipe(small_model, chats, adapt={"method": method}, evaluate=evaluate, train=train_settings)
    wanted = given.model_copy(update={"data": (given.data[0].model_copy(update={"hold_out": 8}),)})

    def slow(units, seconds, work):
        work(units if seconds is None else units[:FEW])
        return len(units) if seconds is None else FEW

    with monkeypatch.context() as patched:
        for module in (learning, forgetting):
            patched.setattr(module, "spend", slow)
        whole = train(wanted, out=tmp_path / "whole")
        with pytest.raises(KeyboardInterrupt):
            train(wanted, out=tmp_path / "again", given=Given(on_step=stop_at(2)))
    measured = json.loads((tmp_path / "again" / "baseline.json").read_text())
    assert [len(entry["samples"]) for entry in measured["learning"]] == [FEW]

    again = train(wanted, out=tmp_path / "again", resume=True)
    assert again["learning"]["hold-out"]["samples"] == FEW
    assert again["learning"] == whole["learning"]
    assert again["forgetting"] == whole["forgetting"]
    assert again["examples"] == whole["examples"]
    lines = [(tmp_path / name / "evaluations.jsonl").read_text() for name in ("again", "whole")]
    assert lines[0] == lines[1]


def test_other_sets_are_measured_anew(small_model, chats, tmp_path):
    evaluate = {"every": 0, "learning": [{"name": "one", "path": str(chats), "limit": 4}], "forgetting": []}
    wanted = recipe(small_model, chats, evaluate=evaluate, train={"max_steps": 2})
    with pytest.raises(KeyboardInterrupt):
        train(wanted, out=tmp_path / "out", given=Given(on_step=stop_at(2)))
    assert wanted.evaluate is not None
    entries = [{"name": "other", "path": str(chats), "limit": 6}]
    changed = recipe(small_model, chats, evaluate=evaluate | {"learning": entries}, train={"max_steps": 2})
    summary = train(changed, out=tmp_path / "out", resume=True)
    assert summary["learning"]["other"]["samples"] == 6
