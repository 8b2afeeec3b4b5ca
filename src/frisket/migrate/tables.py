"""The tables of all tools, and what they say of one key."""

import shlex
from pathlib import Path
from typing import Any

from frisket.migrate.axolotl import AXOLOTL
from frisket.migrate.convert import BadValueError, OtherJobError
from frisket.migrate.llama_factory import LLAMA_FACTORY, LLAMA_FACTORY_1
from frisket.migrate.table import Draft, Row, Tool, shown
from frisket.migrate.trl import TRL

TOOLS = {tool.name: tool for tool in (TRL, AXOLOTL, LLAMA_FACTORY)}
VARIANTS = {"llama-factory": (LLAMA_FACTORY_1, "model")}
"""A tool's second dialect, and the key that gives it away."""


def tools_of(key: str) -> list[Tool]:
    """The tools that have a top-level key of this name."""
    return [tool for tool in TOOLS.values() if key in tool.rows]


def answer_for(key: str) -> str | None:
    """What became of another tool's top-level key, on one line; None where no table has it."""
    found = tools_of(key)
    if not found:
        return None
    row = found[0].rows[key]
    named = ", ".join(tool.title for tool in found if tool.rows[key].text == row.text)
    return f"{key} ({named}) {_said(row)}"


def conversion_of(key: str) -> str | None:
    """The arithmetic by which another tool's top-level key becomes a knob, where there is any."""
    rows = [(tool.title, tool.rows[key]) for tool in tools_of(key)]
    return next((f"{title}: {row.text} = {row.note}" for title, row in rows if "×" in row.note), None)


def override_for(key: str, value: Any) -> tuple[str, str] | None:
    """The override that says what another tool's top-level key says with this value, and the table's note on it.

    None where the value alone does not decide: it becomes several knobs, or is reckoned with other keys.
    """
    for tool in tools_of(key):
        row, draft = tool.rows[key], Draft({key: value}, Path())
        if row.convert is None or "×" in row.note:
            continue
        try:
            outcome, _ = row.convert(draft, key, value)
        except (BadValueError, OtherJobError):
            continue
        # A knob with a comment was reckoned, perhaps with keys that are not at hand here.
        if outcome == "mapped" and len(draft.settings()) == 1 and not draft.comments:
            knob, found = next(iter(draft.settings().items()))
            return shlex.quote(f"{knob.replace('.N.', '.0.')}={shown(found)}"), row.note
    return None


def _said(row: Row) -> str:
    if row.outcome == "mapped":
        return f"is {row.text}{f': {row.note}' if row.note else ''}"
    words = {"default": "is done here without a key", "not needed": "is not needed"}
    return f"{words.get(row.outcome, 'is not supported')}: {row.text}"
