"""Held-out samples that the run before was trained on are warned of; a hold-out that is the same one is not."""

import json

import pytest
from tests.run.test_training import recipe, records

from frisket.recipe import Recipe
from frisket.run import make_plan, train
from frisket.watch import Silent

MEASURED = {"every": 1, "forgetting": [], "samples": 0}


@pytest.fixture(scope="module")
def chats(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "chats.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records(40)))
    return path


def wanted(model, chats, adapt, evaluate, **train_settings) -> Recipe:
    given = recipe(model, chats, train={"max_steps": 1, "save_every": 0} | train_settings).model_dump(mode="json")
    given["data"][0]["hold_out"] = None
    return Recipe.model_validate(given | {"adapt": adapt, "evaluate": evaluate})


@pytest.fixture(scope="module")
def runs(small_model, chats, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    for name, evaluate in (("all", "off"), ("split", MEASURED)):
        train(wanted(small_model, chats, {"method": "full"}, evaluate), out=out / name)
    return out


def told(asked: Recipe) -> list[str]:
    return [line for line in make_plan(asked, watcher=Silent()).notices if "held-out" in line]


def test_a_graft_of_a_run_that_was_trained_on_everything_says_so(runs, small_model, chats, tmp_path):
    (line,) = told(wanted(small_model, chats, {"method": "graft", "of": str(runs / "all")}, MEASURED))
    assert line.startswith(f"8 held-out samples of 8 were trained on by {runs / 'all'}, which this run starts from")
    summary = train(
        wanted(small_model, chats, {"method": "graft", "of": str(runs / "all" / "model")}, MEASURED),
        out=tmp_path / "out",
    )
    assert line in summary["notices"]
    assert "trained on by" in (tmp_path / "out" / "report.html").read_text()


def test_the_same_hold_out_is_no_matter_and_another_seed_is(runs, small_model, chats):
    graft = {"method": "graft", "of": str(runs / "split")}
    assert told(wanted(small_model, chats, graft, MEASURED)) == []
    assert told(wanted(small_model, chats, graft, "off")) == []
    (line,) = told(wanted(small_model, chats, graft, MEASURED, seed=1))
    assert "trained on by" in line


def test_a_mask_over_a_model_that_a_run_made_is_compared_too(runs, chats):
    mask = {"method": "mft"}
    assert "trained on by" in told(wanted(runs / "all" / "model", chats, mask, MEASURED))[0]
    assert told(wanted(runs / "split" / "model", chats, mask, MEASURED)) == []


def test_what_cannot_be_compared_is_said(runs, small_model, chats, tmp_path):
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("recipe.yaml", "summary.json"):
        (moved / name).write_text((runs / "all" / name).read_text().replace(str(chats), str(tmp_path / "gone.jsonl")))
    (moved / "model").symlink_to(runs / "all" / "model")
    (line,) = told(wanted(small_model, chats, {"method": "graft", "of": str(moved)}, MEASURED))
    assert line.startswith(f"whether {moved} was trained on the held-out samples cannot be said: ")
