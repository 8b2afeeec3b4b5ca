"""The mask view on a terminal: segments as boxes, tokens on the colour of their weight, or in brackets."""

from collections.abc import Sequence

from rich.console import Console
from rich.padding import Padding
from rich.panel import Panel
from rich.style import Style
from rich.text import Text

from frisket.report.mask_data import RowView, Span, depths, largest_weight, legend, level, on_one_line, visible
from frisket.report.render import count, figure
from frisket.types import ROOT

_INK = "#101418"
_TEACH = ("#e3f3f6", "#c5e6ec", "#a5d8e1", "#82c9d6", "#5cbacb")
_PUSH = ("#fbe6da", "#f8cdb5", "#f5b48f", "#f29b69", "#ee8143")
_BORDERS = ("blue", "magenta", "bright_magenta", "green", "bright_blue", "yellow")
_UNNAMED = ("template", "bos", "end_of_turn")
"""Provenances that their own text shows: a label before each would only be noise."""


def print_rows(rows: Sequence[RowView], console: Console, *, note: str | None = None) -> None:
    """Print rows under the recipe's own weights.

    Without colour (``NO_COLOR``, or no terminal) taught tokens stand in ``⟦…⟧``, a weight other than 1 before them.

    Args:
        note: printed last, where not everything is shown.
    """
    scale = largest_weight(rows)
    coloured = console.color_system is not None and not console.no_color
    console.print(_key(rows, scale, coloured), soft_wrap=True)
    for number, row in enumerate(rows):
        told = f"{count(row.real_tokens)} tokens · {count(_taught(row, 0, len(row)))} taught"
        shared = row.flat_tokens - row.real_tokens
        told += f" · {count(shared)} more saved by sharing prefixes" if shared else ""
        console.print(Text.assemble("\n", (f"Row {number + 1}", "bold"), f"  {told}"))
        indents = depths(row)
        for index, span in enumerate(row.spans):
            box = Panel(
                _tokens(row, span, scale, coloured),
                title=_title(row, span),
                title_align="left",
                border_style=_BORDERS[index % len(_BORDERS)],
                padding=(0, 1),
            )
            console.print(Padding(box, (0, 0, 0, 2 * indents[span.segment])))
    if note is not None:
        console.print(Text(note, style="yellow"), soft_wrap=True)


def _key(rows: Sequence[RowView], scale: float, coloured: bool) -> Text:
    has_parts = any("\ufffd" in piece for row in rows for piece in row.pieces)
    parts = "; \ufffd part of a character" if has_parts else ""
    if not coloured:
        return Text(f"⟦taught⟧ with weight 1, ⟦0.5: taught⟧ with another; ‹provenance›; all else is not taught{parts}")
    key = Text.assemble((" abc ", "dim"), " not taught")
    for name, words in legend(rows, scale):
        key.append("   ").append(" abc ", _style(-1.0 if name[0] == "n" else 1.0, int(name[1]))).append(f" {words}")
        key.append(" (pushed away)" if name[0] == "n" else "")
    return key.append(parts)


def _title(row: RowView, span: Span) -> Text:
    names = [on_one_line(row.places.get(name, name)) for name in span.samples]
    who = ", ".join(names[:2]) + (f" and {count(len(names) - 2)} more" if len(names) > 2 else "")
    if len(names) > 1:
        who = f"shared by {count(len(names))}: {who}"
    below = "" if span.parent == ROOT else f" under {span.parent}"
    told = f" · segment {span.segment}{below} · {count(_taught(row, span.start, span.stop))} taught"
    return Text.assemble((who, "bold"), (told, "default"))


def _taught(row: RowView, start: int, stop: int) -> int:
    return sum(1 for weight in row.own.weights[start:stop] if weight != 0)


def _tokens(row: RowView, span: Span, scale: float, coloured: bool) -> Text:
    text = Text(overflow="fold")
    weights = [float(weight) for weight in row.own.weights[span.start : span.stop]]
    names = row.provenance[span.start : span.stop]
    for place, (weight, name) in enumerate(zip(weights, names, strict=True)):
        is_new = place == 0 or weight != weights[place - 1]
        if name not in _UNNAMED and (place == 0 or names[place - 1] != name):
            text.append(f"‹{name.replace('_', ' ')}›", "bold cyan").append(" ")
        if is_new and weight and not coloured:
            text.append("⟦" if weight == 1 else f"⟦{figure(weight)}: ")
        style = _style(weight, level(weight, scale)) if coloured else Style()
        _append(text, row.pieces[span.start + place], style)
        if weight and not coloured and (place + 1 == len(weights) or weights[place + 1] != weight):
            text.append("⟧")
    text.rstrip()
    return text


def _append(text: Text, piece: str, style: Style) -> None:
    """One token, its newlines as such; spaces with nothing else show as dots."""
    for number, part in enumerate(piece.split("\n")):
        if number:
            text.append("↵", style).append("\n")
        if part or not piece:
            text.append(on_one_line(part) if part.strip() else visible(part), style)


def _style(weight: float, step: int) -> Style:
    if step == 0:
        return Style(dim=True)
    return Style(color=_INK, bgcolor=(_PUSH if weight < 0 else _TEACH)[step - 1])
