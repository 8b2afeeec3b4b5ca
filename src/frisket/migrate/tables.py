"""The tables of all tools, and what they say of one key."""

from frisket.migrate.axolotl import AXOLOTL
from frisket.migrate.llama_factory import LLAMA_FACTORY, LLAMA_FACTORY_1
from frisket.migrate.table import Row, Tool
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


def _said(row: Row) -> str:
    if row.outcome == "mapped":
        return f"is {row.text}{f': {row.note}' if row.note else ''}"
    words = {"default": "is done here without a key", "not needed": "is not needed"}
    return f"{words.get(row.outcome, 'is not supported')}: {row.text}"
