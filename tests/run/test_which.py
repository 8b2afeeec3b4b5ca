"""Which weights move: the same words in a plan, a run and on both pages."""

import json

import pytest
from tests.run.test_training import recipe, records

from frisket.recipe import Recipe
from frisket.run import make_plan, train
from frisket.watch import Silent


class Heard(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


@pytest.fixture(scope="module")
def chats(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "chats.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records(20)))
    return path


@pytest.mark.parametrize(
    ("adapt", "shown"),
    [
        ({"method": "lora", "rank": 2, "where": ["mlp", {"layers": "0"}]}, "mlp, {layers: 0}"),
        ({"method": "full", "where": "norms"}, "norms"),
        ({"method": "prompt", "tokens": 3}, "none of the base"),
    ],
    ids=["lora", "norms", "prompt"],
)
def test_a_plan_and_a_run_say_which_weights_move_in_the_same_words(adapt, shown, small_model, chats, tmp_path):
    wanted = recipe(small_model, chats, train={"max_steps": 1, "save_every": 0}).model_dump(mode="json")
    wanted = Recipe.model_validate(wanted | {"adapt": adapt, "evaluate": "off"})
    heard = Heard()
    summary = train(wanted, out=tmp_path / "out", watcher=heard)
    plan = make_plan(wanted, watcher=Silent(), page=tmp_path / "plan.html")
    (said,) = [line for line in heard.lines if line.startswith("adapt ")]
    assert said in plan.lines()
    assert said.startswith(f"adapt      {adapt['method']}: ")
    assert plan.as_dict()["adapt"] == summary["adapt"]
    for page in (tmp_path / "plan.html", tmp_path / "out" / "report.html"):
        text = page.read_text()
        assert "Which weights move" in text
        assert shown in text
        assert plan.settled.rate.why.replace("'", "&#39;") in text


def test_entries_are_counted_by_kind_of_module(small_model, chats):
    wanted = recipe(small_model, chats, adapt={"method": "full", "where": ["mlp", "embeddings[0:10]"]})
    plan = make_plan(wanted, watcher=Silent())
    told = plan.as_dict()["adapt"]
    assert [group["name"] for group in told["groups"]] == ["embed_tokens", "gate_proj", "up_proj", "down_proj"]
    assert told["entries"] == sum(group["entries"] for group in told["groups"]) == plan.moving
    assert told["tensors"] == sum(group["tensors"] for group in told["groups"])
    assert told["notes"]
