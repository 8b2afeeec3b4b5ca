import io
from dataclasses import replace

import pytest
from rich.console import Console

from frisket.report.mask_terminal import print_rows
from frisket.types import Leaf


def printed(rows, *, colours: bool, note: str | None = None, width: int = 100) -> str:
    file = io.StringIO()
    console = Console(
        file=file, width=width, force_terminal=colours, color_system="truecolor" if colours else None, no_color=False
    )
    print_rows(rows, console, note=note)
    return file.getvalue()


def test_without_colour_taught_tokens_stand_in_brackets(rows):
    text = printed(rows, colours=False, note="Not all.")
    assert "‹assistant› ⟦She sold 48 + 24 = 72 clips.↵" in text
    assert "#### 72<|end|>⟧" in text
    assert "⟦0.25: fig→pear<|end|>⟧" in text
    assert "⟦-0.5: No way, sir<|end|>⟧" in text
    assert "‹user› How many clips did Natalia sell altogether?<|end|>" in text
    assert "chats.jsonl:2 · segment 1 · 3 taught" in text
    assert text.rstrip().endswith("Not all.")
    assert "\x1b" not in text


def test_with_colour_taught_tokens_stand_on_it(rows):
    text = printed(rows, colours=True)
    assert "⟦" not in text
    assert "48;2;92;186;203m" in text  # weight 1: the darkest of the five steps
    assert "48;2;245;180;143m" in text  # weight -0.5 of 1
    assert "weight -0.5" in text
    assert "(pushed away)" in text


@pytest.mark.parametrize("colours", [True, False])
def test_the_key_names_parts_of_characters_where_there_are_any(packed, sample_tokens, colours):
    whole, part = (packed([sample_tokens("one", word, 1.0)]) for word in ("two", "\ufffd\u65e5"))
    assert "; � part of a character\n" in printed([whole, part], colours=colours)
    assert "part of a character" not in printed([whole], colours=colours)


def test_no_color_is_obeyed(rows, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NO_COLOR", "1")
    file = io.StringIO()
    print_rows(rows, Console(file=file, width=100, force_terminal=True, color_system="truecolor"))
    assert "⟦0.25: fig→pear" in file.getvalue()


def test_a_forest_is_indented_and_its_prefix_stands_once(packed, sample_tokens):
    row = packed([sample_tokens("one", "two", 1.0)] * 3)
    leaves = [Leaf("0:2", 0, 1), Leaf("0:3", 0, 2)]
    text = printed([replace(row, parent_segments=[-1, 0, 0], leaves=leaves)], colours=False)
    assert "\n╭─ shared by 2: chats.jsonl:2, chats.jsonl:3 · segment 0" in text
    assert "\n  ╭─ chats.jsonl:3 · segment 2 under 0" in text
    assert "9 more saved by sharing prefixes" in text


def test_nothing_of_a_sample_commands_the_terminal(packed):
    evil = "\x1b[2J\x07\u202e[red]\x9b31m"
    row = packed([[(evil, "user", 0.0), (evil, "assistant", 1.0)]])
    row = replace(row, places={"0:1": evil})
    text = printed([row], colours=False)
    assert not set(text) & set("\x1b\x07\u202e\x9b")
    assert text.count("␛[2J␇⟨U+202E⟩[red]⟨U+009B⟩31m") == 3
