"""The mask view: sample rows in which every token shows what it teaches, whom it sees and why.

A token costs about eight bytes of markup: its colour is its element (``i`` not taught, ``b`` taught) and one short
class, its provenance that of the run around it, its outline that of its segment. All else a reader may ask of it lies
run-length encoded in one JSON block, from which the page's scripts speak, draw the tree and the mask, and compare
policies.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import groupby

from markupsafe import Markup, escape

from frisket.report.mask_data import (
    LEVELS,
    RowView,
    Span,
    Total,
    depths,
    legend,
    level,
    on_one_line,
    page_facts,
    totals,
    visible,
)
from frisket.report.render import count, figure, json_blob, page
from frisket.types import ROOT

_HUES = (222, 285, 330, 80, 252, 45)
"""Of the segments' outlines, in turn; none is near the colours of the weights."""
_LINE_CHARACTERS = 110
_BLOCK, _MOST_BLOCK = 400, 800


def mask_view(
    rows: Sequence[RowView],
    *,
    title: str,
    facts: Sequence[tuple[str, str]],
    truncated_note: str | None = None,
    sources: Sequence[str] = (),
    opened: str | None = None,
) -> str:
    """One offline HTML page that shows the rows.

    Args:
        rows: the rows; the caller caps them. All have the same policies.
        title: heading of the page.
        facts: (name, text) pairs put under the heading.
        truncated_note: said at the top where not everything is shown.
        sources: names of the data sources; with several of them the page can be filtered.
        opened: sample at which the page opens.
    """
    fragment = mask_fragment(rows, truncated_note=truncated_note, sources=sources, opened=opened)
    return page("mask_view.html.jinja", title=title, facts=facts, fragment=fragment)


def mask_fragment(
    rows: Sequence[RowView],
    *,
    truncated_note: str | None = None,
    sources: Sequence[str] = (),
    opened: str | None = None,
) -> Markup:
    """The rows with their controls, legend and totals, as a part of a page with ``style.css`` and ``view.js``."""
    names = [on_one_line(name) for name in sources]
    facts = page_facts(rows, names, opened)
    wanted = [None, *range(len(names))] if len(names) > 1 else [None]
    tables = [[_lines(totals(rows, policy, source)) for source in wanted] for policy in facts["policies"]]
    scale = facts["scale"]
    return Markup(
        page(
            "mask_fragment.html.jinja",
            note=truncated_note,
            policies=facts["policies"],
            sources=names,
            legend=legend(rows, scale),
            totals=tables[0][0] if tables else _lines([]),
            padding=sum(len(row) - row.real_tokens for row in rows),
            rows=[Markup(_row_html(row, number, scale)) for number, row in enumerate(rows)],
            blob=json_blob({**facts, "totals": tables}),
        )
    )


def _lines(found: Sequence[Total]) -> list[list[str]]:
    """The table of totals as texts, the sum of all last; the last text of a line is the share taught in per cent."""
    sums = (sum(t.tokens for t in found), sum(t.taught for t in found), sum(t.negative for t in found))
    whole = Total("all", *sums, math.fsum(t.weight for t in found))
    return [
        [
            t.name.replace("_", " "),
            *map(count, (t.tokens, t.taught, t.negative)),
            figure(t.weight),
            f"{100 * t.taught / max(1, t.tokens):.1f}",
        ]
        for t in [*found, whole]
    ]


def _token_html(piece: str, weight: float, scale: float) -> str:
    """A newline token breaks the line; a plain space after each token is where lines may break (see style.css)."""
    parts = piece.split("\n")  # what follows the last newline may be nothing
    text = "↵<br>".join(str(escape(visible(part))) if part or len(parts) == 1 else "" for part in parts)
    step = level(weight, scale)
    if step == 0:
        return f"<i>{text}</i> "
    if weight < 0:
        return f"<b class=n{step}>{text}</b> "
    return f"<b>{text}</b> " if step == LEVELS else f"<b class=p{step}>{text}</b> "


def _row_html(row: RowView, number: int, scale: float) -> str:
    known: dict[tuple[str, float], str] = {}
    indents = depths(row)
    parts = []
    for index, span in enumerate(row.spans):
        taught = _taught(row, span.start, span.stop)
        style = f"--depth:{indents[span.segment]};--hue:{_HUES[index % len(_HUES)]}"
        body = "".join(
            f'<p class="tokens" tabindex="0" role="group" aria-label="tokens of segment {span.segment}"'
            f' data-row={number} data-segment={index} style="--lines:{_lines_of(row, start, stop)}">'
            f"{''.join(_runs_html(row, start, stop, scale, known))}</p>"
            for start, stop in _blocks(row, span)
        )
        parts.append(
            f'<section class="segment{"" if taught else " empty"}" id="segment-{number}-{index}" style="{style}">'
            f"{_segment_head(row, span, taught)}{body}</section>"
        )
    leaves = len({span.segment for span in row.spans} - {span.parent for span in row.spans})
    padding = len(row) - row.real_tokens
    if padding:
        parts.append(f'<p class="pad">{count(padding)} padding tokens</p>')
    return (
        f'<details class="row" id="row-{number}" open><summary>{_row_facts(row, number)}</summary>'
        f'<div class="columns" style="--leaves:{leaves}"><aside class="side" data-row={number}></aside>'
        f'<div class="segments">{"".join(parts)}</div></div></details>'
    )


def _row_facts(row: RowView, number: int) -> str:
    samples = len({name for span in row.spans for name in span.samples})
    shared = row.flat_tokens - row.real_tokens
    told = [
        f"{count(samples)} sample{'' if samples == 1 else 's'}",
        f"{count(row.real_tokens)} tokens",
        *([f"{count(shared)} more saved by sharing prefixes"] if shared else []),
        f'<span class="taught">{count(_taught(row, 0, len(row)))}</span> taught',
        f"{count(len(row) - row.real_tokens)} padding",
    ]
    return f"<b>Row {number + 1}</b> {' · '.join(told)}"


def _taught(row: RowView, start: int, stop: int) -> int:
    return sum(1 for weight in row.own.weights[start:stop] if weight != 0)


def _blocks(row: RowView, span: Span) -> Iterator[tuple[int, int]]:
    """A segment in blocks, after a newline where there is one: what a browser restyles at once stays small."""
    start = span.start
    for place in range(span.start, span.stop):
        size = place + 1 - start
        if size == _MOST_BLOCK or (size >= _BLOCK and "\n" in row.pieces[place]):
            yield start, place + 1
            start = place + 1
    if start < span.stop:
        yield start, span.stop


def _lines_of(row: RowView, start: int, stop: int) -> int:
    """Lines of text that a block will take, roughly: the browser guesses the height of what is off the screen by it."""
    texts = "".join(row.pieces[start:stop]).split("\n")
    return sum(1 + len(text) // _LINE_CHARACTERS for text in texts)


def _runs_html(row: RowView, start: int, stop: int, scale: float, known: dict[tuple[str, float], str]) -> Iterator[str]:
    weights = row.own.weights
    for name, run in groupby(range(start, stop), key=lambda i: row.provenance[i]):
        places = list(run)
        text = escape(name.replace("_", " "))
        none = "" if any(weights[i] for i in places) else " none"
        yield f'<span class="run{none}" data-from="{text}" title="{text}">'
        for i in places:
            key = (row.pieces[i], weights[i])
            if key not in known:
                known[key] = _token_html(*key, scale)
            yield known[key]
        yield "</span>"


def _segment_head(row: RowView, span: Span, taught: int) -> str:
    named = [_sample_name(row, name) for name in span.samples]
    who = ", ".join(named[:3]) if named else "no sample"
    if len(named) > 3:
        who += f" and {count(len(named) - 3)} more"
    if len(named) > 1:
        who = f"shared by {count(len(named))} samples <small>{who}</small>"
    seen = "root" if span.parent == ROOT else f"child of segment {span.parent}"
    return (
        f'<h4><span class="sample">{who}</span> <span class="quiet">segment {span.segment}, {seen} · '
        f'{count(span.stop - span.start)} tokens · <span class="taught">{count(taught)}</span> taught</span></h4>'
    )


def _sample_name(row: RowView, name: str) -> str:
    place = row.places.get(name)
    text = escape(on_one_line(name))
    if not place:
        return str(text)
    is_line = place.rpartition(":")[2] == name.rpartition(":")[2]  # else it is one of several samples of its line
    return str(escape(on_one_line(place))) if is_line else f"{escape(on_one_line(place))} ({text})"
