"""The answers to the same prompts over time, as a table: a row a prompt, a column a step, changes marked."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from markupsafe import Markup

from frisket.report.render import count, page

MOST_COLUMNS = 6
"""More do not fit beside each other; of the rest every so many are shown, the first and the last always."""
_WORD = re.compile(r"\s+|\w+|[^\w\s]")


@dataclass(frozen=True)
class Cell:
    """One answer.

    Attributes:
        parts: (text, whether the answer before had nothing of it).
        is_same: it is the answer before, but for space around it.
        is_reference: it is the sample's own answer.
    """

    parts: list[tuple[str, bool]]
    is_same: bool
    is_reference: bool


@dataclass(frozen=True)
class Row:
    """One prompt with its answers over time."""

    prompt: str
    reference: str
    cells: list[Cell]


def samples_html(records: Sequence[Mapping], best: Mapping | None = None) -> Markup:
    """The table as an HTML fragment; empty without records.

    Args:
        records: of ``samples.jsonl``.
        best: of ``summary.json``; its step is always shown, and named.
    """
    if not records:
        return Markup("")
    steps = sorted({record["step"] for record in records})
    shown = columns(steps, None if best is None else best["step"])
    by_id: dict[str, dict[int, Mapping]] = {}
    for record in records:
        by_id.setdefault(record["id"], {})[record["step"]] = record
    rows = [_row([found[step] for step in shown if step in found]) for found in by_id.values()]
    heads = [(_head(step), best is not None and step == best["step"]) for step in shown]
    return Markup(page("samples.html.jinja", heads=heads, rows=rows, left_out=len(steps) - len(shown)))


def columns(steps: Sequence[int], best: int | None, most: int = MOST_COLUMNS) -> list[int]:
    """The steps that are shown: the first, the last, the best, and others evenly between.

    >>> columns([0, 10, 20, 30, 40, 50, 60, 70], best=20, most=4)
    [0, 20, 40, 70]
    """
    if len(steps) <= most:
        return list(steps)
    must = set(steps) & {best} - {steps[0], steps[-1]}
    places = max(most - len(must), 2)
    even = {steps[round(n * (len(steps) - 1) / (places - 1))] for n in range(places)}
    return sorted(even | must)


def changes(before: str, after: str) -> list[tuple[str, bool]]:
    """Cut a text into stretches that the one before had and stretches that it had not.

    >>> changes("the old ink", "the new ink")
    [('the ', False), ('new', True), (' ink', False)]
    """
    old, new = _WORD.findall(before), _WORD.findall(after)
    matcher = SequenceMatcher(None, old, new, autojunk=False)
    return [("".join(new[c:d]), tag != "equal") for tag, _, _, c, d in matcher.get_opcodes() if d > c]


def _row(records: Sequence[Mapping]) -> Row:
    reference = records[0]["reference"]
    cells = []
    for place, record in enumerate(records):
        answer = record["answer"].strip()
        before = records[place - 1]["answer"].strip() if place else None
        parts = changes(answer if before is None else before, answer)
        cells.append(Cell(parts, answer == before, answer == reference.strip()))
    return Row(records[0]["prompt"], reference, cells)


def _head(step: int) -> str:
    return f"step {count(step)}" if step else "before"
