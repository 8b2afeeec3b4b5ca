"""Exit codes, errors, help, and that stdout belongs to the program under ``--json``."""

import json
import os
import re
import subprocess
import sys
import time

import pytest

from frisket import __version__
from frisket.cli.main import VERBS, main
from frisket.errors import CheckError, ConfigError
from frisket.recipe import knobs

COMMANDS = [
    ("train", "--model", "m", "--data", "d"),
    ("plan", "--model", "m", "--data", "d"),
    ("plan", "--schema"),
    ("plan", "--names"),
    ("view", "--data", "d"),
    ("evaluate", "."),
    ("generate", ".", "--prompt", "hi", "--beside-base"),
    ("export", ".", "--to", "merged"),
]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_json_is_one_object_and_nothing_else(frisket_says, words) -> None:
    code, out, err = frisket_says(*words, "--json")
    assert code == 0
    assert isinstance(json.loads(out), dict)
    assert out.count("\n") == 1
    assert "--schema" in words or "a stray line" in err


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_without_json_people_get_lines(frisket_says, words) -> None:
    code, out, err = frisket_says(*words)
    assert (code, err) == (0, "")
    if "--schema" in words:
        assert json.loads(out)["title"] == "Recipe"
    else:
        assert out.startswith(f"frisket {__version__} · {words[0]}")


def test_not_a_number_becomes_null(frisket_says) -> None:
    assert json.loads(frisket_says("plan", "--data", "d", "--json")[1]) == {"steps": 12, "rate": None}


@pytest.mark.parametrize(
    ("words", "kind", "message"),
    [
        (("trian",), "ConfigError", "'trian' is no verb of frisket.\nDid you mean: frisket train"),
        (("wibble",), "ConfigError", "Verbs: train, plan"),
        (("train", "--bogus"), "ConfigError", "--bogus"),
        (("train", "--overfit", "0", "--data", "d"), "ConfigError", "--overfit"),
        (("train", "train.epohcs=1"), "ConfigError", "train.epochs=1"),
        (("train", "--model", "m"), "ConfigError", "No data is named.\nGive a file"),
        (("train", "stages=[{data: []}]", "--data", "d"), "ConfigError", "No data is named"),
        (("train", "a.yaml", "b.yaml"), "ConfigError", "only one recipe can be given"),
        (("evaluate",), "ConfigError", "No run folder is given"),
        (("generate", "out/x", "--prompt", "hi"), "ConfigError", "there is no such run folder"),
        (("export", ".", "--to", "mergd"), "ConfigError", "must be one of merged"),
        (("generate", ".", "--chat"), "ConfigError", "--chat reads from the keyboard"),
        (("generate", ".", "--file", "none.txt"), "ConfigError", "no such file of prompts"),
    ],
)
def test_user_errors_exit_2(frisket_says, run, words, kind, message) -> None:
    code, out, _ = frisket_says(*words, "--json")
    error = json.loads(out)["error"]
    assert (code, error["type"]) == (2, kind)
    assert message in error["message"]
    if words != ("generate", ".", "--chat"):
        code, _, err = frisket_says(*words)
        assert code == 2
        assert message in err
        assert "Traceback" not in err
        assert len(err.splitlines()) <= 4
    assert run.asked == []


def test_the_first_line_comes_before_the_recipe_is_loaded(frisket_says) -> None:
    code, out, err = frisket_says("train", "nothing.yaml")
    assert (code, out) == (2, f"frisket {__version__} · train · nothing.yaml\n")
    assert "no such recipe" in err


@pytest.mark.parametrize("error", [CheckError("reload differs by 3"), ConfigError("no")])
def test_errors_of_a_run_are_printed_without_traceback(frisket_says, run, error) -> None:
    run.fails = error
    code, _, err = frisket_says("train", "--data", "d")
    assert (code, err) == (2, f"{error}\n")


def test_a_failure_of_frisket_itself_keeps_its_traceback(frisket_says, run) -> None:
    run.fails = ZeroDivisionError("oh")
    with pytest.raises(ZeroDivisionError, match="oh"):
        frisket_says("train", "--data", "d")


def test_a_failure_of_frisket_itself_under_json(frisket_says, run) -> None:
    run.fails = ZeroDivisionError("oh")
    code, out, err = frisket_says("train", "--data", "d", "--json")
    assert (code, json.loads(out)) == (1, {"error": {"type": "ZeroDivisionError", "message": "oh"}})
    assert "Traceback" in err


def test_an_interrupted_run_says_how_to_go_on(frisket_says, run, tmp_path) -> None:
    run.fails = KeyboardInterrupt()
    run.where_stopped = lambda folder: "It goes on after step 12 of 30"
    code, _, err = frisket_says("train", "--data", "d", "--out", str(tmp_path))
    told = "Stopped. It goes on after step 12 of 30: frisket train"
    assert (code, err.replace("\n", "")) == (130, f"{told} {tmp_path} --resume")
    (spaced := tmp_path / "my run").mkdir()
    code, _, err = frisket_says("train", "--data", "d", "--out", str(spaced), "--overfit", "4")
    assert err.replace("\n", "").endswith(f": frisket train '{spaced}' --resume --overfit 4")
    code, _, err = frisket_says("train", "--data", "d", "--out", "out/x")
    assert (code, err) == (130, "Stopped before the first checkpoint. Nothing was left behind.\n")
    code, out, _ = frisket_says("plan", "--data", "d", "--json")
    assert (code, json.loads(out)["error"]) == (130, {"type": "Interrupted", "message": "Stopped."})


@pytest.mark.parametrize(("before", "after"), [(None, "error"), ("info", "info")])
def test_the_hubs_library_is_quiet_unless_asked(monkeypatch, before, after) -> None:
    monkeypatch.setenv("HF_HUB_VERBOSITY", "")  # so that what is set here goes again
    monkeypatch.delenv("HF_HUB_VERBOSITY")
    if before:
        monkeypatch.setenv("HF_HUB_VERBOSITY", before)
    monkeypatch.setattr(sys, "argv", ["frisket", "--version"])
    with pytest.raises(SystemExit):
        main()
    assert os.environ["HF_HUB_VERBOSITY"] == after


def test_help(frisket_says) -> None:
    for words in (["help"], ["--help"], ["-h"]):
        code, out, _ = frisket_says(*words)
        assert code == 0
        assert all(f"  {verb} " in out for verb in VERBS)
        assert "frisket --version" in out
    assert frisket_says("--version")[1] == f"frisket {__version__}\n"


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_has_help_with_an_example(frisket_says, verb) -> None:
    code, out, _ = frisket_says(verb, "--help")
    assert code == 0
    assert frisket_says(verb, "-h") == (0, out, "")
    assert "--json" in out
    assert f"\n  frisket {verb} " in out
    assert not re.search(r"<(str|bool|int|float|path|list)\b|\[\[", out), "a type of Python"
    flags = [line for line in out.splitlines() if re.match(r" +--(resume|json|help|chat|names|terminal) ", line)]
    assert all(re.match(r" +--\w+ {2,}\w", line) for line in flags)
    assert len(flags) >= 2


def test_the_help_of_a_grid_names_a_knob_that_is_one(frisket_says) -> None:
    _, out, _ = frisket_says("train", "--help")
    (shown,) = set(re.findall(r"(\S+)=8,16\b", out.replace("\n", " ")))
    assert shown in {knob.name for knob in knobs()}
    assert "Usage: frisket train [RECIPE] [KEY=VALUE ...] [OPTIONS]" in out


def test_the_help_tells_what_must_be_given_from_what_may(frisket_says) -> None:
    assert "Usage: frisket migrate FILE [OPTIONS]" in frisket_says("migrate", "--help")[1]
    _, out, _ = frisket_says("generate", "--help")
    assert "Usage: frisket generate OUT [PROMPT ...] [OPTIONS]" in out
    assert re.search(r"--temperature X +0: the most likely token each time. \[default: 0.0\]", out)


def test_top_level_help_is_quick_and_loads_nothing_heavy() -> None:
    heavy = "{'torch', 'transformers', 'peft', 'pydantic', 'typer', 'rich', 'numpy'}"
    script = (
        f"import sys; from frisket.cli.main import run_words; run_words(['--help']); print({heavy} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"
    times = []
    for _ in range(5):
        begun = time.perf_counter()
        subprocess.run([sys.executable, "-m", "frisket", "--help"], capture_output=True, check=True)
        times.append(time.perf_counter() - begun)
    assert min(times) <= 0.3


def test_alone_it_greets_with_the_three_commands_that_matter(frisket_says) -> None:
    code, out, _ = frisket_says()
    commands = [line.split("   ")[0].split() for line in out.splitlines() if line.startswith("  frisket")]
    assert code == 0
    assert [words[1] for words in commands] == ["plan", "train", "generate"]
    assert all(words[1] in VERBS for words in commands)


def test_a_reader_that_goes_away_gets_no_traceback() -> None:
    words = [sys.executable, "-m", "frisket", "plan", "--schema"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        said = process.stderr.read()
    assert "Traceback" not in said
