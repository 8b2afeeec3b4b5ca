"""What a plan and a run say of dropped samples, of turns without an answer, of too few steps, of missing packages."""

import builtins
import json
from pathlib import Path

import pytest
from tests.run.test_training import recipe, records

from frisket.errors import ConfigError, UnsupportedError
from frisket.recipe import Recipe
from frisket.run import make_plan, train, view
from frisket.run.notices import dropped_line
from frisket.watch import Silent


class Heard(Silent):
    """Keeps what is said and what is warned of."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.warnings: list[str] = []

    def say(self, line: str) -> None:
        self.said.append(line)

    def warn(self, line: str) -> None:
        self.warnings.append(line)


USER, ASSISTANT = {"role": "user", "content": "alpha"}, {"role": "assistant", "content": "beta"}


def chats(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def told(plan_of: Recipe) -> list[str]:
    heard = Heard()
    make_plan(plan_of, watcher=heard)
    return [*heard.said, *heard.warnings]


def test_the_commonest_reason_is_said_with_its_first_place():
    why = "tokens are more than 512 (data.0.too_long=drop)"
    long = [{"place": f"a:{n}", "reason": f"{n},000 {why}"} for n in (3, 4, 7)]
    other = {"place": "a:1", "reason": "messages[0] is empty"}
    line = dropped_line([other, *long], 2_000, "here")
    assert line is not None
    assert line.startswith(
        "dropped 4 of 2,000 samples; the commonest reason (3): 3,000 tokens are more than 512 "
        "(data.0.too_long=drop) (a:3); all: here"
    )
    assert dropped_line([], 2_000, "here") is None
    assert "…" in str(dropped_line([{"place": "a:1", "reason": "x" * 999}], 1, "here"))


def test_plan_and_train_say_what_was_dropped(small_model, tmp_path):
    rows = [*records(30), {"messages": [USER, {"role": "assistant", "content": ""}]}, 5]
    asked = recipe(small_model, chats(tmp_path / "c.jsonl", *rows), train={"max_steps": 1})
    asked = asked.model_copy(update={"data": (asked.data[0].model_copy(update={"bad": "drop"}),)})
    heard = Heard()
    plan = make_plan(asked, watcher=heard, page=tmp_path / "plan.html")
    said = [line for line in heard.warnings if line.startswith("dropped")]
    assert len(said) == 1
    assert said[0].startswith("dropped 2 of 32 samples; the commonest reason (1): ")
    assert ", 2 dropped, longest" in dict(plan.facts())["samples"]
    assert [entry["place"].rpartition(":")[2] for entry in plan.as_dict()["dropped"]] == ["31", "32"]
    heard = Heard()
    train(asked, out=tmp_path / "run", watcher=heard)
    of_run = said[0].replace("frisket plan --json", "dropped.jsonl in the run's folder")
    assert of_run in heard.warnings
    assert plan.as_dict()["notices"] == said
    shown = "dropped 2 of 32 samples; the commonest reason (1): "
    assert shown in (tmp_path / "plan.html").read_text()
    assert shown in (tmp_path / "run" / "report.html").read_text()
    card = (tmp_path / "run" / "README.md").read_text()
    assert f"- {shown}" in card
    assert "Every token of the samples that could be read is accounted for" in card
    heard = Heard()
    view(asked, out=tmp_path / "view.html", watcher=heard)
    assert heard.warnings == said
    assert len((tmp_path / "run" / "dropped.jsonl").read_text().splitlines()) == 2


def test_turns_that_nothing_answers_are_a_warning_where_they_teach_nothing(small_model, tmp_path):
    rows = [*records(30), *[{"messages": [USER, ASSISTANT, USER]}] * 2]
    path = chats(tmp_path / "c.jsonl", *rows)
    asked = recipe(small_model, path)
    expected = f"2 conversations end without an answer, first {path}:31: the last turns teach nothing"
    assert expected in told(asked)
    everything = asked.model_copy(update={"supervise": asked.supervise.model_copy(update={"policy": "instructions"})})
    assert not any("without an answer" in line for line in told(everything))
    one = recipe(small_model, chats(path, *rows[:-1]))
    assert f"1 conversation ends without an answer, first {path}:31: the last turn teaches nothing" in told(one)


def test_few_steps_are_a_warning_and_its_overrides_make_more(small_model, tmp_path):
    path = chats(tmp_path / "c.jsonl", *records(60))
    settings = {"step_tokens": 32_768, "epochs": 1}
    (line,) = [line for line in told(recipe(small_model, path, train=settings)) if "only" in line]
    assert line.startswith("only 1 optimizer step, too few to learn much; for at least 20: train.")
    words = dict(word.split("=") for word in line.partition("20: ")[2].split())
    mended = settings | {key.removeprefix("train."): int(value) for key, value in words.items()}
    plan = make_plan(recipe(small_model, path, train=mended), watcher=Silent())
    assert plan.steps >= 20
    asked = recipe(small_model, path, train=settings | {"max_steps": 3})
    assert not any("optimizer step" in line for line in told(asked))


@pytest.fixture
def nothing_installed(monkeypatch):
    real = builtins.__import__

    def refuse(name, *arguments, **named):
        if name.partition(".")[0] in ("wandb", "bitsandbytes"):
            raise ImportError(f"No module named {name!r}")
        return real(name, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", refuse)


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"train": {"track": ["wandb"]}}, ConfigError, r"'wandb', and its .*\n.*leave it out: 'train\.track=\[\]'$"),
        ({"model": {"load": "4bit"}}, UnsupportedError, r"model\.load = 4bit"),
        ({"model": {"load": "8bit"}}, UnsupportedError, r"model\.load = 8bit"),
    ],
)
def test_a_plan_refuses_what_training_refuses(small_model, tmp_path, nothing_installed, changes, kind, message):
    given = {"data": [{"path": str(chats(tmp_path / "c.jsonl", *records(20)))}], "evaluate": "off"}
    model = {"path": str(small_model), **changes.pop("model", {})}
    asked = Recipe.model_validate({**given, "model": model, **changes})
    with pytest.raises(kind, match=message) as planned:
        make_plan(asked, watcher=Silent())
    with pytest.raises(kind) as trained:
        train(asked, out=tmp_path / "run")
    assert str(planned.value) == str(trained.value)
    assert not (tmp_path / "run").exists()


def test_a_spiel_whose_cycle_is_longer_than_the_run_says_so(small_model, tmp_path):
    chats = tmp_path / "chats.jsonl"
    chats.write_text("".join(json.dumps(record) + "\n" for record in records(20)))
    for steps, told in ((6, "! spiel: the first entries are chosen after step 5 of 6"), (10, None)):
        heard = Warned()
        wanted = recipe(small_model, chats, train={"max_steps": steps, "epochs": None}).model_dump(mode="json")
        make_plan(Recipe.model_validate(wanted | {"adapt": {"method": "spiel"}}), watcher=heard)
        found = [line for line in heard.lines if "spiel: " in line]
        assert len(found) == (told is not None)
        assert not told or found[0].startswith(told)


class Warned(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def warn(self, line: str) -> None:
        self.lines.append(f"! {line}")
