"""What training samples have in common is found from their tokens, and only where it renders to the same again."""

import json
from pathlib import Path

import pytest

from frisket.recipe import Recipe
from frisket.run import open_run, train
from frisket.run.prepare import prepare
from frisket.run.system_message import SystemMessage, shared_system, system_of
from frisket.watch import Silent

LONG = "alpha beta.\n\n  gamma <|end|> {delta} é "


def chats(path: Path, *systems: str | None) -> Path:
    rows = []
    for number, system in enumerate(systems):
        told = [] if system is None else [{"role": "system", "content": system}]
        turns = [{"role": "user", "content": f"eta {number}"}, {"role": "assistant", "content": "theta"}]
        rows.append(json.dumps({"messages": [*told, *turns]}) + "\n")
    path.write_text("".join(rows))
    return path


def recipe(base: Path, data: Path, template: Path | None = None) -> Recipe:
    given = {"model": {"path": str(base), "template": template and str(template)}, "data": [{"path": str(data)}]}
    settings = {"max_steps": 1, "step_tokens": 200, "learning_rate": 0.01, "compute": "fp32"}
    return Recipe.model_validate({**given, "evaluate": "off", "train": settings})


def found(base: Path, data: Path, template: Path | None = None) -> dict | None:
    return shared_system(prepare(recipe(base, data, template), Silent()))


@pytest.mark.parametrize("text", ["alpha", LONG, "alpha.", "User: beta\n"])
def test_the_text_is_exactly_the_one_of_the_data(small_model, tmp_path, text):
    data = chats(tmp_path / "chats.jsonl", *[text] * 5)
    assert found(small_model, data) == {"text": text, "samples": 5, "of": 5}


def test_where_the_template_strips_the_text_is_the_stripped_one(small_model, tmp_path):
    template = tmp_path / "strips.jinja"
    template.write_text(
        "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>\n{{ m.content | trim }}{{ eos_token }}\n{% endfor %}"
    )
    data = chats(tmp_path / "chats.jsonl", *["  alpha beta\n"] * 5)
    assert found(small_model, data, template) == {"text": "alpha beta", "samples": 5, "of": 5}


def test_a_space_of_the_template_is_not_taken_for_the_text_s(small_model, tmp_path):
    """` alpha` is one token: its first character is the template's."""
    template = tmp_path / "after-a-space.jinja"
    template.write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}\n{% endfor %}")
    data = chats(tmp_path / "chats.jsonl", *["alpha beta"] * 5)
    assert found(small_model, data, template) == {"text": "alpha beta", "samples": 5, "of": 5}


def test_a_character_in_a_token_with_the_template_is_not_lost(small_model, tmp_path):
    """This tokenizer merges `in` and what follows: one token whose last character is the template's."""
    template = tmp_path / "runs-on.jinja"
    template.write_text(
        "{% for m in messages %}{{ m.content }}{% if m.role == 'system' %}n{% endif %}"
        "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %} {% endfor %}"
    )
    data = chats(tmp_path / "chats.jsonl", *["the of i"] * 5)
    assert found(small_model, data, template) == {"text": "the of i", "samples": 5, "of": 5}


def test_most_is_said_and_few_are_not(small_model, tmp_path):
    mostly = chats(tmp_path / "mostly.jsonl", *["alpha"] * 6, "beta", None, "alpha.")
    assert found(small_model, mostly) == {"text": "alpha", "samples": 6, "of": 9}
    for number, systems in enumerate([["alpha"] * 2 + [None] * 3, [None] * 4, [f"eta {n}" for n in range(5)]]):
        assert found(small_model, chats(tmp_path / f"few{number}.jsonl", *systems)) is None
    assert SystemMessage("a", 5, 5).is_everywhere
    assert not SystemMessage("a", 4, 5).is_everywhere


def test_a_run_remembers_it_and_an_older_run_has_none(small_model, tmp_path):
    data = chats(tmp_path / "chats.jsonl", *["alpha beta"] * 5)
    train(recipe(small_model, data), out=tmp_path / "out")
    assert open_run(tmp_path / "out", watcher=Silent()).system == SystemMessage("alpha beta", 5, 5)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    del summary["system"]
    (tmp_path / "out" / "summary.json").write_text(json.dumps(summary))
    assert system_of(tmp_path / "out") is None
