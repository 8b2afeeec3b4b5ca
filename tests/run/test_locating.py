"""`{locate: search}`: a run for each candidate on the user's own data; the lowest loss plus KL is chosen."""

import json

import pytest
import torch
from safetensors.torch import load_file
from tests.run.test_training import recipe, records

from frisket.errors import ConfigError
from frisket.recipe import Recipe, load_recipe
from frisket.run import make_plan, train
from frisket.run.folder import read_json
from frisket.watch import Silent

SEARCH = [{"locate": {"layer": "search", "module": "mlp.down_proj", "steps": 2}}]
EVALUATE = {"every": 0, "samples": 0, "forgetting": []}


class Listener(Silent):
    """Keeps what is said."""

    def __init__(self):
        self.lines = []

    def say(self, line):
        self.lines.append(line)


@pytest.fixture(scope="module")
def chats(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "chats.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records(60)))
    return path


def asked(small_model, chats, method="full", where=SEARCH, evaluate=EVALUATE):
    return recipe(
        small_model, chats, adapt={"method": method, "where": where}, evaluate=evaluate,
        train={"max_steps": 2, "save_every": 0},
    )  # fmt: skip


def test_the_chosen_layer_is_the_best_and_the_only_one_that_moves(small_model, chats, tmp_path):
    out, listener = tmp_path / "out", Listener()
    train(asked(small_model, chats), out=out, watcher=listener)
    found = read_json(out / "located.json")
    best = min(found["candidates"], key=lambda entry: entry["score"])
    assert found["place"] == {"layer": best["layer"], "module": "mlp.down_proj"}
    assert [entry["layer"] for entry in found["candidates"]] == [0, 1]
    assert all(entry["score"] == entry["loss"] + entry["kl"] > 0 < entry["kl"] for entry in found["candidates"])
    before, after = load_file(small_model / "model.safetensors"), load_file(out / "model" / "model.safetensors")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {f"model.layers.{best['layer']}.mlp.down_proj.weight"}
    assert [line.split(":")[0] for line in listener.lines if line.startswith("locate")] == [
        "locate     mlp.down_proj", "locate     layer 0", "locate     layer 1", f"locate     layer {best['layer']}",
    ]  # fmt: skip
    assert load_recipe(out).adapt.where == [{"locate": found["place"]}]
    for layer in (0, 1):  # what was tried stays as a report, without weights
        place = out / "search" / f"layer-{layer}"
        assert read_json(place / "summary.json")["steps"] == 2
        assert not any((place / name).exists() for name in ("model", "checkpoints"))


def test_a_finished_search_is_not_made_again(small_model, chats, tmp_path, monkeypatch):
    from frisket.run import locating

    out = tmp_path / "out"
    wanted = asked(small_model, chats, "lora")
    with pytest.raises(KeyboardInterrupt):
        _stopped_run(wanted, out, monkeypatch)
    monkeypatch.setattr(locating, "_tried", lambda *words: pytest.fail("searched again"))
    assert train(wanted, out=out, resume=True)["steps"] == 2


def _stopped_run(wanted, out, monkeypatch):
    """The search ends, and the run itself is stopped at its first step."""
    from frisket.run import training

    with monkeypatch.context() as patch:
        patch.setattr(training, "load_ready", _stopping_outside_of_search(training.load_ready))
        train(wanted, out=out)


def _stopping_outside_of_search(load_ready):
    def call(recipe, *rest):
        if recipe.train.max_steps == 2 and recipe.evaluate.forgetting == ():
            raise KeyboardInterrupt
        return load_ready(recipe, *rest)

    return call


def test_planning_a_search_counts_one_candidate_and_says_so(small_model, chats):
    listener = Listener()
    plan = make_plan(asked(small_model, chats), watcher=listener)
    assert plan.moving == 32 * 48
    assert "locate     2 runs of 2 steps will choose the layer; planned here is layer 1" in listener.lines


@pytest.mark.parametrize(
    ("where", "evaluate", "message"),
    [
        (SEARCH, "off", r"decides by what is measured, and evaluate is off\.\nLeave evaluate out"),
        ([{"locate": {"layer": [0, 9], "module": "mlp"}}], EVALUATE, r"locate names layer 9.* are 0 to 1"),
        ([{"locate": {"layer": "search", "module": "fc1"}}], EVALUATE, r"locate names module 'fc1'"),
    ],
)
def test_what_cannot_be_searched_is_refused_before_training(small_model, chats, tmp_path, where, evaluate, message):
    with pytest.raises(ConfigError, match=message):
        train(asked(small_model, chats, where=where, evaluate=evaluate), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_stages_that_share_a_search_take_one_choice(small_model, chats, tmp_path):
    wanted = asked(small_model, chats).model_dump(mode="json") | {"stages": [{}, {"train": {"max_steps": 1}}]}
    out, listener = tmp_path / "out", Listener()
    train(Recipe.model_validate(wanted), out=out, watcher=listener)
    assert len([line for line in listener.lines if line.startswith("locate     mlp.down_proj")]) == 1
    assert read_json(out / "stage-1" / "located.json") == read_json(out / "stage-2" / "located.json")
    assert load_recipe(out / "stage-1").adapt.where == load_recipe(out / "stage-2").adapt.where
    assert not (out / "stage-2" / "search").exists()
