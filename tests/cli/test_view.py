"""What `frisket view` asks of `frisket.run`."""

from pathlib import Path

import pytest


def asked(run) -> dict:
    ((name, _, named),) = run.asked
    assert name == "view"
    return named


def test_by_default_a_page_is_written(frisket_says, run) -> None:
    code, out, _ = frisket_says("view", "--data", "d/chats.jsonl")
    named = asked(run)
    assert (code, named["out"], named["console"]) == (0, Path("out/chats-view.html"), None)
    assert (named["compare"], named["sample"], named["samples"]) == (None, None, None)
    assert out.rstrip().endswith("wrote out/chats-view.html")


def test_on_the_terminal_no_page_is_written_unless_asked_for(frisket_says, run) -> None:
    code, out, _ = frisket_says("view", "--data", "d", "--terminal")
    named = asked(run)
    assert (code, named["out"], named["samples"]) == (0, None, None)
    assert named["console"] is named["watcher"].console
    assert "wrote" not in out
    run.asked.clear()
    frisket_says("view", "--data", "d", "--terminal", "--out", "p.html", "--samples", "2")
    named = asked(run)
    assert (named["out"], named["samples"], named["console"] is None) == (Path("p.html"), 2, False)


@pytest.mark.parametrize(
    ("given", "wanted"), [("all", ["all"]), ("all, last-turn", ["all", "last-turn"]), ("", []), (None, None)]
)
def test_policies_and_a_sample_are_handed_over(frisket_says, run, given, wanted) -> None:
    frisket_says("view", "--data", "d", "--id", "0:17", *(() if given is None else ("--compare", given)))
    assert (asked(run)["compare"], asked(run)["sample"]) == (wanted, "0:17")
