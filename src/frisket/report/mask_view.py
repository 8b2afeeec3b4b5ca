"""The mask view: sample rows in which every token shows what it teaches, whom it sees and why.

A token costs about eight bytes of markup: its colour is its element (``i`` not taught, ``b`` taught) and one short
class, its provenance that of the run around it. All else a reader may ask of it lies run-length encoded in one JSON
block, which ``view.js`` reads when a token is pointed at.
"""

import math
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

from markupsafe import Markup, escape

from frisket.report.render import count, figure, json_blob, page
from frisket.types import PADDING_SEGMENT, ROOT, Leaf

LEVELS = 5
"""Steps of colour between no weight and the largest weight of the page."""

_MOST_INDENT = 8
_PICTURES = {" ": "·", "\n": "↵", "\t": "→", "\x7f": "␡", "\u00a0": "⍽"}


class Target(NamedTuple):
    """One prediction made at a token: the next token, and the signed weight of getting it right."""

    piece: str
    token_id: int
    weight: float


@dataclass(frozen=True)
class RowView:
    """One packed row, ready to be shown; all per-token fields have one length.

    Attributes:
        pieces: decoded text of each token.
        ids: token ids.
        positions: position ids.
        segments: segment of each token, -1 at padding; the tokens of a segment lie together.
        parent_segments: parent of each segment of the micro-batch, -1 for a root (``Rows.parent_segment``).
        leaves: which sample ends where (``Rows.leaves``; those of other rows do no harm).
        places: ``file:line`` by sample id; a sample without one shows its id alone.
        provenance: name of each token's provenance.
        weights: weight of each token as a target; 0 = not taught.
        rules: name of the rule that gave each weight.
        targets: what is predicted at each token; at a branch there are several.
    """

    pieces: Sequence[str]
    ids: Sequence[int]
    positions: Sequence[int]
    segments: Sequence[int]
    parent_segments: Sequence[int]
    leaves: Sequence[Leaf]
    places: Mapping[str, str]
    provenance: Sequence[str]
    weights: Sequence[float]
    rules: Sequence[str]
    targets: Sequence[Sequence[Target]]

    def __post_init__(self) -> None:
        names = ("pieces", "ids", "positions", "segments", "provenance", "weights", "rules", "targets")
        lengths = {name: len(getattr(self, name)) for name in names}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"the fields of a RowView differ in length: {lengths}")

    def __len__(self) -> int:
        return len(self.pieces)


@dataclass(frozen=True)
class Total:
    """The tokens of one provenance on the page; ``negative`` ones are among the ``taught``."""

    name: str
    tokens: int
    taught: int
    negative: int
    weight: float


def mask_view(
    rows: Sequence[RowView], *, title: str, facts: Sequence[tuple[str, str]], truncated_note: str | None = None
) -> str:
    """One offline HTML page that shows the rows.

    Args:
        rows: the rows; the caller caps them.
        title: heading of the page.
        facts: (name, text) pairs put under the heading.
        truncated_note: said at the top where not everything is shown.
    """
    fragment = mask_fragment(rows, truncated_note=truncated_note)
    return page("mask_view.html.jinja", title=title, facts=facts, fragment=fragment)


def mask_fragment(rows: Sequence[RowView], *, truncated_note: str | None = None) -> Markup:
    """The rows with their legend, filter and totals, as a part of a page that carries ``style.css`` and ``view.js``."""
    scale = max((abs(w) for row in rows for w in row.weights), default=0.0)
    shown = [_row_html(row, number, scale) for number, row in enumerate(rows)]
    return Markup(
        page(
            "mask_fragment.html.jinja",
            note=truncated_note,
            legend=_legend(rows, scale),
            totals=totals(rows),
            padding=sum(1 for row in rows for s in row.segments if s == PADDING_SEGMENT),
            rows=[Markup(text) for text in shown],
            blob=json_blob([_facts_of(row) for row in rows]),
        )
    )


def totals(rows: Iterable[RowView]) -> list[Total]:
    """Tokens, taught tokens and summed weight by provenance, without padding, in order of first appearance."""
    tokens: Counter[str] = Counter()
    taught: Counter[str] = Counter()
    negative: Counter[str] = Counter()
    weights: dict[str, list[float]] = {}
    for row in rows:
        for name, segment, weight in zip(row.provenance, row.segments, row.weights, strict=True):
            if segment == PADDING_SEGMENT:
                continue
            tokens[name] += 1
            taught[name] += int(weight != 0)
            negative[name] += int(weight < 0)
            weights.setdefault(name, []).append(float(weight))
    return [Total(name, n, taught[name], negative[name], math.fsum(weights[name])) for name, n in tokens.items()]


def visible(piece: str) -> str:
    """The text of a token with everything that would not be seen made visible.

    >>> visible(" the\\n"), visible("a\\tb\\x00"), visible("\\u200b"), visible("")
    ('·the↵', 'a→b␀', '⟨U+200B⟩', '∅')
    """
    if not piece:
        return "∅"
    text = piece if piece.isascii() and piece.isalnum() else "".join(map(_visible_character, piece))
    return "◌" + text if unicodedata.combining(text[0]) else text


def _visible_character(character: str) -> str:
    if character in _PICTURES:
        return _PICTURES[character]
    if character < " ":
        return chr(0x2400 + ord(character))
    if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zs", "Zl", "Zp"):
        return f"⟨U+{ord(character):04X}⟩"
    return character


def _level(weight: float, scale: float) -> int:
    return min(max(math.ceil(LEVELS * abs(weight) / scale - 1e-9), 1), LEVELS)


def _token_html(piece: str, weight: float, scale: float) -> str:
    """A newline token breaks the line; a plain space after each token is where lines may break (see style.css)."""
    text = str(escape(visible(piece)))
    if "\n" in piece:
        text = text.replace("↵", "↵<br>")
    if weight == 0:
        return f"<i>{text}</i> "
    level = _level(weight, scale)
    if weight < 0:
        return f"<b class=n{level}>{text}</b> "
    return f"<b>{text}</b> " if level == LEVELS else f"<b class=p{level}>{text}</b> "


def _row_html(row: RowView, number: int, scale: float) -> str:
    known: dict[tuple[str, float], str] = {}
    samples, indents = _samples_by_segment(row), _indents(row)
    parts, start = [], 0
    for segment, group in groupby(int(s) for s in row.segments):
        end = start + sum(1 for _ in group)
        if segment == PADDING_SEGMENT:
            parts.append(f'<p class="pad">{count(end - start)} padding tokens</p>')
        else:
            head = _segment_head(row, segment, samples.get(segment, []), end - start, _taught(row, start, end))
            body = "".join(_runs_html(row, start, end, scale, known))
            empty = "" if _taught(row, start, end) else " empty"
            parts.append(
                f'<section class="segment{empty}" style="--depth:{indents.get(segment, 0)}">{head}'
                f'<p class="tokens" tabindex="0" role="group" aria-label="tokens of segment {segment}: arrow keys move"'
                f" data-row={number} data-start={start}>{body}</p></section>"
            )
        start = end
    real = sum(1 for s in row.segments if s != PADDING_SEGMENT)
    facts = f"{count(real)} tokens · {count(_taught(row, 0, len(row)))} taught · {count(len(row) - real)} padding"
    return f'<details class="row" open><summary><b>Row {number + 1}</b> {facts}</summary>{"".join(parts)}</details>'


def _taught(row: RowView, start: int, end: int) -> int:
    return sum(1 for i in range(start, end) if row.weights[i] != 0)


def _runs_html(row: RowView, start: int, end: int, scale: float, known: dict[tuple[str, float], str]) -> Iterable[str]:
    for name, run in groupby(range(start, end), key=lambda i: row.provenance[i]):
        text = escape(name)
        yield f'<span class="run" data-from="{text}" title="{text}">'
        for i in run:
            key = (row.pieces[i], row.weights[i])
            if key not in known:
                known[key] = _token_html(*key, scale)
            yield known[key]
        yield "</span>"


def _segment_head(row: RowView, segment: int, samples: list[str], tokens: int, taught: int) -> str:
    parent = int(row.parent_segments[segment])
    seen = "root" if parent == ROOT else f"child of segment {parent}"
    named = [f"{place} ({name})" if (place := row.places.get(name)) else name for name in samples]
    rest = f" and {count(len(named) - 3)} more samples" if len(named) > 3 else ""
    who = escape(", ".join(named[:3]) + rest) if named else "no sample"
    return (
        f'<h4><span class="sample">{who}</span> <span class="quiet">segment {segment}, {seen}'
        f" · {count(tokens)} tokens · {count(taught)} taught</span></h4>"
    )


def _samples_by_segment(row: RowView) -> dict[int, list[str]]:
    """Which samples a segment is a part of: each is the path from its last segment up to its first."""
    found: dict[int, list[str]] = {}
    for leaf in row.leaves:
        segment = leaf.last
        while segment != ROOT:
            found.setdefault(segment, []).append(leaf.sample_id)
            segment = ROOT if segment == leaf.first else int(row.parent_segments[segment])
    return found


def _indents(row: RowView) -> dict[int, int]:
    """Depth of each segment counted in branchings: a chain, whose segments have one child each, is not indented."""
    children = Counter(int(parent) for parent in row.parent_segments if parent != ROOT)
    depths: dict[int, int] = {}
    for segment, parent in enumerate(map(int, row.parent_segments)):
        depths[segment] = 0 if parent == ROOT else depths[parent] + (children[parent] > 1)
    return {segment: min(depth, _MOST_INDENT) for segment, depth in depths.items()}


def _legend(rows: Sequence[RowView], scale: float) -> list[tuple[str, str]]:
    """(class of the swatch, words) for each colour on the page, from negative to positive."""
    weights = {float(w) for row in rows for w in row.weights if w != 0}
    found: dict[str, list[float]] = {}
    for weight in sorted(weights):
        found.setdefault(f"{'n' if weight < 0 else 'p'}{_level(weight, scale)}", []).append(weight)
    return [
        (name, f"weight {figure(each[0])}" if len(each) == 1 else f"weights {figure(each[0])} to {figure(each[-1])}")
        for name, each in found.items()
    ]


def _facts_of(row: RowView) -> dict[str, list]:
    """What ``view.js`` says of a token; every list but ``ids`` is run-length encoded: value, length, value, length …"""
    weights = [round(float(w), 9) for w in row.weights]
    return {
        "ids": [int(i) for i in row.ids],
        "offset": _encoded(int(p) - i for i, p in enumerate(row.positions)),
        "segment": _encoded(int(s) for s in row.segments),
        "from": _encoded(row.provenance),
        "weight": _encoded(weights),
        "rule": _encoded(row.rules),
        "predicts": _encoded(_predicted(row, i) for i in range(len(row))),
    }


def _predicted(row: RowView, i: int) -> list | int:
    """0 = nothing; 1 = exactly the next token of the row with that token's weight; else a list of predictions."""
    told = row.targets[i]
    if not told:
        return 0
    if len(told) == 1 and i + 1 < len(row):
        target = told[0]
        if target.token_id == row.ids[i + 1] and target.weight == row.weights[i + 1]:
            return 1
    return [[visible(t.piece), int(t.token_id), round(float(t.weight), 9)] for t in told]


def _encoded(values: Iterable) -> list:
    pairs = ((value, sum(1 for _ in group)) for value, group in groupby(values))
    return [part for pair in pairs for part in pair]
