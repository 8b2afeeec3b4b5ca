"""The Modelfile: its template, run by an evaluator of Go's template language, renders what the chat template does."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import trl
from hypothesis import given, settings
from hypothesis import strategies as st

from frisket.data.chat import Template
from frisket.errors import UnsupportedError
from frisket.recipe import Recipe
from frisket.run import export, ollama, train
from frisket.run.go_template import GoTemplate, go_template, trims
from frisket.run.system_message import SystemMessage
from frisket.watch import Silent

PUBLISHED = sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja"))
TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "begin": True}
BUILT_IN = Path(ollama.__file__).parents[1] / "data" / "templates"
CONVERSATIONS = [
    [("user", "Who?")],
    [("user", "one\n\ntwo"), ("assistant", "{{ three }}"), ("user", "four")],
    [("system", "Be brief."), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"), ("user", "e")],
]


def template(name: str, text: str) -> Template:
    return Template(name, text, TOKENS)


def run_go(text: str, turns: list[tuple[str, str]]) -> str:
    """Evaluate the part of Go's text/template that we write: range, if, else if, else, end, eq, and, fields."""
    parts = re.split(r"\{\{ (.*?) \}\}", text)
    nodes = [("text", part) if i % 2 == 0 else ("action", part) for i, part in enumerate(parts) if part or i % 2]
    root, rest = parse(nodes, 0)
    assert rest == len(nodes), "an end without a beginning"
    system = "".join(content for role, content in turns if role == "system")
    return evaluate(root, {"turns": turns, "system": system})


def parse(nodes: list, at: int) -> tuple[list, int]:
    """The nodes up to the end of this block, and where it ends."""
    found = []
    while at < len(nodes):
        kind, word = nodes[at]
        if kind == "action" and (word == "end" or word.startswith("else")):
            return found, at
        if kind == "action" and word.startswith(("if ", "range ")):
            branches, at = [], at
            while nodes[at][1] != "end":
                head = nodes[at][1]
                body, at = parse(nodes, at + 1)
                branches.append((head.removeprefix("else ") if head != "else" else "else", body))
            found.append(("block", branches))
        else:
            found.append((kind, word))
        at += 1
    return found, at


def evaluate(nodes: list, scope: dict) -> str:
    out = ""
    for kind, value in nodes:
        if kind == "text":
            out += value
        elif kind == "block" and value[0][0].startswith("range"):
            assert value[0][0] == "range $i, $m := .Messages"
            for i, (role, content) in enumerate(scope["turns"]):
                out += evaluate(value[0][1], {**scope, "i": i, "role": role, "content": content})
        elif kind == "block":
            body = next((body for head, body in value if head == "else" or is_true(head[3:], scope)), [])
            out += evaluate(body, scope)
        elif value == "$m.Content":
            out += scope["content"]
        else:
            assert re.fullmatch(r'"\{"', value), value
            out += "{"
    return out


def is_true(condition: str, scope: dict) -> bool:
    if condition == "and $.System (eq $i 1)":
        return bool(scope["system"]) and scope["i"] == 1
    if match := re.fullmatch(r"eq \$i (\d+)", condition):
        return scope["i"] == int(match[1])
    match = re.fullmatch(r'eq \$m\.Role "(\w+)"', condition)
    assert match, condition
    return scope["role"] == match[1]


def wanted(chosen: Template, turns: list[tuple[str, str]]) -> str:
    messages = [{"role": role, "content": content} for role, content in turns]
    return chosen.render(messages, [], add_generation_prompt=True).removeprefix("<s>")


@pytest.mark.parametrize("path", [*BUILT_IN.glob("*.jinja"), *PUBLISHED], ids=lambda path: path.stem)
def test_the_derived_template_renders_the_same_or_is_refused(path):
    chosen = template(path.stem, path.read_text())
    try:
        derived = go_template(chosen, "<s>")
    except UnsupportedError:
        return  # which may be refused is the next test
    for turns in CONVERSATIONS:
        if turns[0][0] == "system" and derived.system is None:
            continue
        assert run_go(derived.text(), turns) == wanted(chosen, turns)
        assert derived.render(turns) == wanted(chosen, turns)


def test_most_published_templates_are_carried():
    """Those that are not: they write today's date, or take contents only as lists of parts."""
    refused = set()
    for path in PUBLISHED:
        try:
            go_template(template(path.stem, path.read_text()), "<s>")
        except UnsupportedError:
            refused.add(path.stem.removesuffix("_training"))
    assert not refused & {"llama3", "llama3_1", "qwen2_5", "qwen3", "gemma", "gemma3", "phi3", "cohere", "deepseekv3"}
    assert len(refused) <= 0.15 * len(PUBLISHED)


pieces = st.text(st.sampled_from(list('a {}<|"\n')), max_size=6)


@settings(max_examples=50, deadline=None)
@given(pieces, pieces, pieces, pieces, pieces)
def test_any_text_around_contents_survives_go(system, first, user, answer, ask):
    derived = GoTemplate((system, first), first, (user, answer), (answer, system), ask)
    for turns in CONVERSATIONS:
        assert run_go(derived.text(), turns) == derived.render(turns)


def test_a_template_without_a_system_turn_leaves_it_out():
    path = next(path for path in PUBLISHED if path.stem == "gemma")
    derived = go_template(template("gemma", path.read_text()), "<s>")
    assert derived.system is None
    without = [("user", "a")]
    assert run_go(derived.text(), [("system", "s"), *without]) == run_go(derived.text(), without)


def test_templates_that_cannot_be_written_are_refused():
    date = template("dated", "{{ strftime_now('%d') }}{{ messages[0].content }}")
    with pytest.raises(UnsupportedError, match="writes today's date"):
        go_template(date, "")
    last = template(
        "last", "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% if loop.last %}!{% endif %}{% endfor %}"
    )
    assert go_template(last, "").render([("user", "x")]) == "[user]x!"
    loud = template("loud", "{% for m in messages %}{{ m.role }}{{ m.content | upper }}{% endfor %}")
    with pytest.raises(UnsupportedError, match="cannot be written in Ollama's language: 'user"):
        go_template(loud, "")
    once = template("once", "{{ messages[0].content }}")
    with pytest.raises(UnsupportedError, match="so it cannot be written in Ollama's language"):
        go_template(once, "")


def test_quotation_marks_that_end_a_text_are_refused(monkeypatch):
    class Tokenizer:
        bos_token = "<s>"

    monkeypatch.setattr(ollama, "codec_of", lambda tokenizer: SimpleNamespace(adds_bos=False))
    text = '{% for m in messages %}"""{{ m.role }}{{ m.content }}{% endfor %}'
    run = SimpleNamespace(tokenizer=Tokenizer(), template=template("quoted", text))
    with pytest.raises(UnsupportedError, match="holds three quotation marks"):
        ollama.ollama_template(run)  # pyright: ignore[reportArgumentType]


def test_trimming_is_noticed():
    assert trims(template("t", "{{ messages[0].content | trim }}"))
    assert not trims(template("t", "{{ messages[0].content }}"))


@pytest.fixture(scope="module")
def run(small_model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    (folder / "d.jsonl").write_text("".join(f'{{"prompt": "alpha {n}", "completion": "beta"}}\n' for n in range(8)))
    given = {"model": {"path": str(small_model)}, "data": [{"path": str(folder / "d.jsonl")}], "evaluate": "off"}
    settings = {"max_steps": 1, "step_tokens": 100, "compute": "fp32"}
    train(Recipe.model_validate({**given, "train": settings}), out=folder / "my run")
    return folder / "my run"


def test_the_modelfile_of_a_run(run, tmp_path, monkeypatch):
    monkeypatch.setattr(ollama, "find_converter", lambda: None)
    facts = export(run, to="ollama", into=None, watcher=Silent())
    text = (run / "ollama" / "Modelfile").read_text()
    assert facts["create"] == f"ollama create 'my run' -f '{run / 'ollama' / 'Modelfile'}'"
    assert "\nFROM ../merged\n" in text
    assert "# ADAPTER ../adapter\n" in text
    assert str(run) not in text
    assert 'PARAMETER stop "<|end|>"' in text
    go = text.split('TEMPLATE """')[1].split('"""')[0]
    # The small model's tokenizer writes no begin token itself, so its template's stays.
    assert run_go(go, [("user", "a")]) == "<|begin|><|user|>\na<|end|>\n<|assistant|>\n"
    export(run, to="ollama", into=tmp_path / "else" / "where", watcher=Silent())
    elsewhere = (tmp_path / "else" / "where" / "Modelfile").read_text()
    assert f"\nFROM {run / 'merged'}\n" in elsewhere
    assert "# ADAPTER ./adapter\n" in elsewhere


@pytest.mark.parametrize(("text", "has_it"), [("Be brief.\nBe kind.", True), ('Say """.', False), ('Say "yes"', False)])
def test_the_shared_system_message_is_in_the_modelfile(run, tmp_path, monkeypatch, text, has_it):
    warned: list[str] = []
    watcher = Silent()
    monkeypatch.setattr(watcher, "warn", warned.append)
    monkeypatch.setattr(ollama, "find_converter", lambda: None)
    monkeypatch.setattr(ollama, "system_of", lambda folder: SystemMessage(text, 3, 4))
    export(run, to="ollama", into=tmp_path / "o", watcher=watcher)
    lines = (tmp_path / "o" / "Modelfile").read_text()
    assert lines.endswith(f'# 3 of 4 training samples have it.\nSYSTEM """{text}"""\n') is has_it
    assert any("cannot hold this run's system message: send" in line for line in warned) is not has_it


def test_a_family_that_ollama_does_not_import_is_named(run, tmp_path, monkeypatch):
    heard: list[str] = []
    watcher = Silent()
    monkeypatch.setattr(watcher, "warn", heard.append)
    monkeypatch.setattr(ollama, "find_converter", lambda: None)
    monkeypatch.setattr(ollama, "IMPORTED", ("Gemma",))
    export(run, to="ollama", into=tmp_path / "o", watcher=watcher)
    assert any("not known to import LlamaForCausalLM" in line for line in heard)
