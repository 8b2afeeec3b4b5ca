"""What each verb asks of `frisket.run`, and what it prints."""

import io
import json
import sys
from pathlib import Path

import pytest

from frisket.watch import Watcher


def test_train_hands_over_the_recipe_and_its_options(frisket_says, run) -> None:
    words = ("train", "--model", "m", "--data", "a", "--data", "b", "--out", "o", "--overfit", "8", "train.epochs=2e0")
    code, out, _ = frisket_says(*words, "--json")
    ((name, (recipe,), named),) = run.asked
    assert (code, name, recipe.model.path, recipe.train.epochs) == (0, "train", "m", 2.0)
    assert [source.path for source in recipe.data] == ["a", "b"]
    assert {key: named[key] for key in ("out", "resume", "overfit")} == {
        "out": Path("o"),
        "resume": False,
        "overfit": 8,
    }
    assert json.loads(out)["out"] == "o"


def test_the_default_folder_bears_the_name_of_the_recipe_or_data(frisket_says, run) -> None:
    Path("mine.yaml").write_text("data: [{path: d}]\n")
    frisket_says("train", "mine.yaml")
    frisket_says("train", "--data", "some/chats.jsonl")
    frisket_says("view", "mine.yaml")
    frisket_says("view", "mine.yaml", "--out", "p.html")
    outs = [named["out"] for _, _, named in run.asked]
    assert outs == [Path("out/mine"), Path("out/chats"), Path("out/mine-view.html"), Path("p.html")]


def test_resume_of_a_run_folder_writes_into_it(frisket_says, run) -> None:
    Path("old").mkdir()
    Path("old/recipe.yaml").write_text("name: mine\ndata: [{path: d}]\n")
    frisket_says("train", "old", "--resume")
    frisket_says("train", "old", "--resume", "--out", "new")
    frisket_says("train", "old")
    told = [(str(named["out"]), named["resume"]) for _, _, named in run.asked]
    assert told == [("old", True), ("new", True), ("out/mine", False)]


def test_options_and_words_may_be_mixed(frisket_says, run) -> None:
    Path("mine.yaml").write_text("data: [{path: d}]\n")
    frisket_says("train", "train.epochs=2", "--model", "m", "mine.yaml", "--out", "o", "adapt.rank=4")
    ((_, (recipe,), _),) = run.asked
    assert (recipe.train.epochs, recipe.model.path, recipe.adapt.rank) == (2.0, "m", 4)


def test_evaluate_and_export_ask_for_the_folder(frisket_says, run) -> None:
    code, out, _ = frisket_says("evaluate", ".", "evaluate.every=3")
    assert "exact match" in out
    assert "91.3 %" in out
    assert "largest difference  1.00e-06" in frisket_says("export", ".", "--into", "m")[1]
    (_, evaluated, asked), (_, exported, named) = run.asked
    assert (code, evaluated, asked["overrides"]) == (0, (Path(),), ["evaluate.every=3"])
    assert (exported, named["to"], named["into"]) == ((Path(),), "merged", Path("m"))


def test_names_need_no_data(frisket_says) -> None:
    assert "1,024  model.layers.0.q_proj" in frisket_says("plan", "--names")[1]


def test_generate_takes_prompts_from_options_files_and_stdin(frisket_says, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("p.txt").write_text("one\n\ntwo\n")
    chat = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]
    Path("p.jsonl").write_text(json.dumps({"prompt": "three"}) + "\n" + json.dumps({"messages": chat}) + "\n")
    _, out, _ = frisket_says("generate", ".", "--prompt", "zero", "--file", "p.txt", "--json")
    assert [entry["answer"] for entry in json.loads(out)["answers"]] == ["tuned: zero", "tuned: one", "tuned: two"]
    _, out, _ = frisket_says("generate", ".", "--file", "p.jsonl", "--beside-base", "--json")
    told = json.loads(out)["answers"]
    assert [entry["base"] for entry in told] == ["base: three", "base: u"]
    assert told[1]["messages"] == chat[:2]
    monkeypatch.setattr(sys, "stdin", io.StringIO("piped\nin\n"))
    assert json.loads(frisket_says("generate", ".", "--json")[1])["answers"][0]["answer"] == "tuned: piped\nin"
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    code, _, err = frisket_says("generate", ".")
    assert (code, "No prompt is given" in err) == (2, True)


def test_a_prompt_may_stand_behind_the_folder(frisket_says) -> None:
    _, out, _ = frisket_says("generate", ".", "What is a frisket?", "--prompt", "And this?", "--json")
    assert [entry["answer"][7:] for entry in json.loads(out)["answers"]] == ["What is a frisket?", "And this?"]
    code, _, err = frisket_says("generate", "runs/a b", "Who?")
    assert (code, "no such run folder" in err) == (2, True)
    code, _, err = frisket_says("generate", ".", "What", "is", "it?")
    assert (code, "a prompt is one word for the shell" in err) == (2, True)
    assert "Put it in quotation marks: frisket generate . --prompt 'What is it?'" in err
    code, _, err = frisket_says("generate", ".", "temperature=0.7")
    assert code == 2
    assert "generate has options where other verbs have key=value.\nWrite --temperature 0.7\n" in err
    assert json.loads(frisket_says("generate", ".", "x=3?", "--json")[1])["answers"][0]["answer"] == "tuned: x=3?"
    code, _, err = frisket_says("generate", ".", "x", "--chat")
    assert (code, "it takes no --json, prompt or --file" in err) == (2, True)


def test_exports_are_told_in_words_and_commands_are_never_broken(frisket_says, run, monkeypatch) -> None:
    long = f"ollama create {'a' * 90} -f out/ollama/Modelfile"
    facts = {"stop": ["<|end|>", "</s>"], "serving": {"reasons": []}, "create": long, "commands": ["one", "two"]}
    monkeypatch.setattr(run, "export", lambda *given, **named: facts | {"exit_code": 2}, raising=False)
    code, out, _ = frisket_says("export", ".", "--to", "ollama")
    assert code == 2
    assert "<|end|>, </s>" in out
    assert not any(sign in out for sign in "[]{}")
    assert {long, "one", "two"} <= set(out.splitlines())
    assert json.loads(frisket_says("export", ".", "--json")[1])["stop"] == facts["stop"]


def test_bad_lines_of_a_prompt_file_are_gathered(frisket_says) -> None:
    Path("p.jsonl").write_text('{"prompt": "x"}\n{"prompt": 3}\nnot json\n{"messages": []}\n')
    code, _, err = frisket_says("generate", ".", "--file", "p.jsonl")
    assert code == 2
    assert "3 lines hold no prompt" in err
    assert "p.jsonl:2: neither a text 'prompt' nor a list 'messages'" in err
    assert "p.jsonl:3:" in err


def test_answers_stand_beside_those_of_the_base(frisket_says) -> None:
    _, out, _ = frisket_says("generate", ".", "--prompt", "hi", "--beside-base")
    line = next(line for line in out.splitlines() if "base: hi" in line)
    assert "tuned: hi" in line


def test_an_answer_that_was_cut_short_is_marked(frisket_says) -> None:
    words = ("generate", ".", "--prompt", "hi", "--beside-base", "--max-new-tokens", "4")
    _, out, _ = frisket_says(*words)
    assert "base: hi… (cut)" in out
    assert "tuned: hi… (cut)" not in out
    assert "… (cut): --max-new-tokens 4 was reached; longer: --max-new-tokens 8" in " ".join(out.split())
    assert "(cut)" not in frisket_says("generate", ".", "--prompt", "hi")[1]
    (told,) = json.loads(frisket_says(*words, "--json")[1])["answers"]
    assert (told["cut"], told["base_cut"]) == (False, True)


def test_a_prompt_may_hold_what_unicode_calls_the_end_of_a_line(frisket_says) -> None:
    Path("p.jsonl").write_text('{"prompt": "one\u2028two\u0085"}\n', encoding="utf-8")
    _, out, _ = frisket_says("generate", ".", "--file", "p.jsonl", "--json")
    assert json.loads(out)["answers"][0]["answer"] == "tuned: one\u2028two\u0085"


def test_the_screen_is_a_watcher(frisket_says, run) -> None:
    frisket_says("plan", "--data", "d")
    watcher: Watcher = run.asked[0][2]["watcher"]
    with watcher.progress("read", 3, "samples") as advance:
        advance(3)
