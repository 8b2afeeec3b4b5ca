"""What a run that was stopped says: where it goes on, and which figures are of this part and which of the whole."""

import json
import re

import pytest
from tests.run.test_training import chats, recipe, stop_at

from frisket.run import Given, train, where_stopped

__all__ = ["chats"]


def test_a_stopped_run_names_its_step_and_a_resumed_one_tells_its_parts_apart(small_model, chats, tmp_path):
    evaluate = {"every": 0, "forgetting": [], "samples": 3, "sample_tokens": 4}
    given = recipe(small_model, chats, evaluate=evaluate, train={"max_steps": 4, "save_every": 1})
    wanted = given.model_copy(update={"data": (given.data[0].model_copy(update={"hold_out": 4}),)})
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        train(wanted, out=out, given=Given(on_step=stop_at(3)))
    assert where_stopped(out) == "It goes on after step 3 of 4"
    assert where_stopped(tmp_path) == "It goes on after step 3 of 4 of out"

    first = json.loads((out / "checkpoints" / "step-00000003" / "state.json").read_text())["seconds"]
    summary = train(wanted, out=out, resume=True)
    resumed = summary["resumed"]
    assert (resumed["step"], resumed["steps"], summary["steps"]) == (3, 1, 4)
    assert resumed["seconds"] == pytest.approx(summary["seconds"]["steps"] - first, abs=2e-3)
    assert "No checkpoint" in where_stopped(out)  # it is finished, so there is nothing to go on from
    page = (out / "report.html").read_text()
    for told in ("total since the resume at step 3", "all 4 steps", "the 1 since the resume"):
        assert told in page

    shown = summary["samples"]["examples"]
    lines = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    answers = {(line["step"], line["prompt"]): line["answer"] for line in lines}
    assert len(shown) == 3
    assert [(e["before"], e["after"]) for e in shown] == [
        (answers[0, e["prompt"]], answers[4, e["prompt"]]) for e in shown
    ]


def test_the_environment_names_a_system_and_no_machine(small_model, chats, tmp_path):
    summary = train(recipe(small_model, chats, evaluate="off", train={"max_steps": 1}), out=tmp_path / "out")
    assert "resumed" not in summary
    assert "samples" not in summary
    told = json.loads((tmp_path / "out" / "environment.json").read_text())
    assert re.fullmatch(r"\w+( \d+(\.\d+)?)? \w+", told["platform"])
