"""What the mask view shows: one packed row with all that its tokens teach, and how it is told to the page's script."""

import math
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import NamedTuple

from frisket.report.render import figure
from frisket.types import PADDING_SEGMENT, ROOT, Leaf

LEVELS = 5
"""Steps of colour between no weight and the largest weight that one sample gives a token."""

_MOST_INDENT = 8
_KINDS = ("weight", "where samples share a token, the sum of theirs:")
_PICTURES = {" ": "·", "\n": "↵", "\t": "→", "\x7f": "␡", "\u00a0": "⍽"}
_INVISIBLE = ("Cc", "Cf", "Cs", "Co", "Cn", "Zs", "Zl", "Zp")


class Target(NamedTuple):
    """One prediction made at a token: the next token, and the signed weight of getting it right."""

    piece: str
    token_id: int
    weight: float


@dataclass(frozen=True)
class PolicyView:
    """What one policy makes of the tokens of a row; all fields have the length of the row.

    Attributes:
        weights: weight of each token as a target, summed over the samples that share it; 0 = not taught.
        rules: the rules that gave each weight, in the order applied.
        targets: what is predicted at each token; at a branch there are several.
    """

    weights: Sequence[float]
    rules: Sequence[tuple[str, ...]]
    targets: Sequence[Sequence[Target]]


class Window(NamedTuple):
    """``windowed`` of ``layers`` attention layers see only the nearest ``tokens`` of a path, their own included."""

    tokens: int
    windowed: int
    layers: int


class Span(NamedTuple):
    """One segment of a row.

    Attributes:
        segment: its number in the micro-batch.
        parent: number of its parent, -1 for a root.
        start: its first token's place in the row.
        stop: end of its tokens.
        samples: ids of the samples that it is a part of.
    """

    segment: int
    parent: int
    start: int
    stop: int
    samples: tuple[str, ...]


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
        sources: index of the data source by sample id; 0 where it is missing.
        provenance: name of each token's provenance.
        policies: by the name of the policy; the recipe's own weights come first.
        window: the model's sliding window; None where every layer sees all that the row allows.
    """

    pieces: Sequence[str]
    ids: Sequence[int]
    positions: Sequence[int]
    segments: Sequence[int]
    parent_segments: Sequence[int]
    leaves: Sequence[Leaf]
    places: Mapping[str, str]
    sources: Mapping[str, int]
    provenance: Sequence[str]
    policies: Mapping[str, PolicyView]
    window: Window | None = None

    def __post_init__(self) -> None:
        lengths = {n: len(getattr(self, n)) for n in ("pieces", "ids", "positions", "segments", "provenance")}
        for policy, view in self.policies.items():
            lengths |= {f"{n} of {policy}": len(getattr(view, n)) for n in ("weights", "rules", "targets")}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"the fields of a RowView differ in length: {lengths}")

    def __len__(self) -> int:
        return len(self.pieces)

    @property
    def own(self) -> PolicyView:
        """What the recipe itself makes of the row."""
        return next(iter(self.policies.values()))

    @cached_property
    def spans(self) -> list[Span]:
        """Its segments in the order of the row, without padding."""
        samples = self._samples_by_segment()
        spans, start = [], 0
        for segment, group in groupby(int(s) for s in self.segments):
            stop = start + sum(1 for _ in group)
            if segment != PADDING_SEGMENT:
                parent = int(self.parent_segments[segment])
                spans.append(Span(segment, parent, start, stop, tuple(samples.get(segment, ()))))
            start = stop
        return spans

    @property
    def real_tokens(self) -> int:
        """Tokens without padding."""
        return sum(span.stop - span.start for span in self.spans)

    @property
    def flat_tokens(self) -> int:
        """Tokens of its samples, each counted as often as it is used."""
        return sum((span.stop - span.start) * max(1, len(span.samples)) for span in self.spans)

    def source_of(self, span: Span) -> int:
        """Where the first sample of a segment comes from; what several share counts for it."""
        return self.sources.get(span.samples[0], 0) if span.samples else 0

    def _samples_by_segment(self) -> dict[int, list[str]]:
        """Which samples a segment is a part of: each is the path from its last segment up to its first."""
        found: dict[int, list[str]] = {}
        for leaf in self.leaves:
            segment = leaf.last
            while segment != ROOT:
                found.setdefault(segment, []).append(leaf.sample_id)
                segment = ROOT if segment == leaf.first else int(self.parent_segments[segment])
        return found


class Total(NamedTuple):
    """The tokens of one provenance on the page; ``negative`` ones are among the ``taught``."""

    name: str
    tokens: int
    taught: int
    negative: int
    weight: float


def totals(rows: Iterable[RowView], policy: str | None = None, source: int | None = None) -> list[Total]:
    """Tokens, taught tokens and summed weight by provenance, without padding, in order of first appearance.

    Args:
        rows: what is counted; a token that several samples share is there once.
        policy: whose weights; default: the recipe's own.
        source: count only tokens of this source.
    """
    tokens: Counter[str] = Counter()
    taught: Counter[str] = Counter()
    negative: Counter[str] = Counter()
    weights: dict[str, list[float]] = {}
    for row in rows:
        view = row.own if policy is None else row.policies[policy]
        for span in row.spans:
            if source is not None and row.source_of(span) != source:
                continue
            for place in range(span.start, span.stop):
                name, weight = row.provenance[place], float(view.weights[place])
                tokens[name] += 1
                taught[name] += weight != 0
                negative[name] += weight < 0
                weights.setdefault(name, []).append(weight)
    return [Total(name, n, taught[name], negative[name], math.fsum(weights[name])) for name, n in tokens.items()]


def largest_weight(rows: Iterable[RowView]) -> float:
    """The largest weight that one sample gives a token on the page, under any policy; the scale of the colours.

    A token that k samples share carries the sum of their weights; its k-th part counts here, so that a prefix shared by
    sixty samples does not make all others pale.
    """
    return max(
        (
            abs(float(weight)) / max(1, len(span.samples))
            for row in rows
            for view in row.policies.values()
            for span in row.spans
            for weight in set(view.weights[span.start : span.stop])
        ),
        default=0.0,
    )


def level(weight: float, scale: float) -> int:
    """Step of colour of a weight: 0 where it is 0, else 1 to ``LEVELS``."""
    return min(max(math.ceil(LEVELS * abs(weight) / scale - 1e-9), 1), LEVELS) if weight else 0


def legend(rows: Sequence[RowView], scale: float) -> list[tuple[str, str]]:
    """(class, such as ``p5`` or ``n2``; words) of each colour under any policy, from negative to positive.

    What one sample gives a token and the sums on tokens that several samples share are told apart: of chats that begin
    alike and count 1 the beginning may count 21.
    """
    found: dict[str, dict[bool, list[float]]] = {}
    for weight, is_shared in sorted(_weights(rows)):
        name = f"{'n' if weight < 0 else 'p'}{level(weight, scale)}"
        found.setdefault(name, {False: [], True: []})[is_shared].append(weight)
    return [
        (name, "; ".join(f"{words} {_range(each)}" for words, each in zip(_KINDS, kinds.values(), strict=True) if each))
        for name, kinds in found.items()
    ]


def _weights(rows: Sequence[RowView]) -> set[tuple[float, bool]]:
    """Every weight but 0 under any policy, and whether it is of a token that several samples share."""
    return {
        (float(weight), len(span.samples) > 1)
        for row in rows
        for span in row.spans
        for view in row.policies.values()
        for weight in set(view.weights[span.start : span.stop])
        if weight
    }


def _range(weights: Sequence[float]) -> str:
    return figure(weights[0]) if len(weights) == 1 else f"{figure(weights[0])} to {figure(weights[-1])}"


def depths(row: RowView) -> dict[int, int]:
    """Depth of each segment of the micro-batch in branchings, to indent it by: a chain is not indented."""
    children = Counter(int(parent) for parent in row.parent_segments if parent != ROOT)
    found: dict[int, int] = {}
    for segment, parent in enumerate(map(int, row.parent_segments)):
        found[segment] = 0 if parent == ROOT else found[parent] + (children[parent] > 1)
    return {segment: min(depth, _MOST_INDENT) for segment, depth in found.items()}


def visible(piece: str) -> str:
    """The text of a token with everything that would not be seen made visible.

    >>> visible(" the\\n"), visible("a\\tb\\x00"), visible("\\u200b"), visible("")
    ('·the↵', 'a→b␀', '⟨U+200B⟩', '∅')
    """
    if not piece:
        return "∅"
    text = piece if piece.isascii() and piece.isalnum() else "".join(map(_visible_character, piece))
    return "◌" + text if unicodedata.combining(text[0]) else text


def on_one_line(text: str) -> str:
    """A name from outside with everything made visible but its plain spaces.

    >>> on_one_line("my chats\\x1b[31m.jsonl")
    'my chats␛[31m.jsonl'
    """
    return "".join(c if c == " " else _visible_character(c) for c in text)


def page_facts(rows: Sequence[RowView], sources: Sequence[str], opened: str | None) -> dict:
    """What the page's script says and draws; lists by token are run-length encoded: value, length, value, length …

    Args:
        sources: names of the data sources.
        opened: sample at which the page opens.
    """
    rules: dict[tuple[str, ...], int] = {}
    names: dict[str, int] = {}
    told = [_row_facts(row, rules, names) for row in rows]
    return {
        "policies": list(rows[0].policies) if rows else [],
        "scale": largest_weight(rows),
        "levels": LEVELS,
        "rules": [[on_one_line(text) for text in each] for each in rules],
        "from": list(names),
        "sources": list(sources),
        "samples": list(_samples(rows)),
        "open": opened,
        "rows": told,
    }


def _samples(rows: Sequence[RowView]) -> Iterator[list]:
    """Id, place, source, row and last segment's place in the row, of each sample on the page."""
    for number, row in enumerate(rows):
        index = {span.segment: i for i, span in enumerate(row.spans)}
        for leaf in row.leaves:
            if leaf.last in index:
                name = leaf.sample_id
                place, source = row.places.get(name, ""), row.sources.get(name, 0)
                yield [on_one_line(name), on_one_line(place), source, number, index[leaf.last]]


def _row_facts(row: RowView, rules: dict[tuple[str, ...], int], names: dict[str, int]) -> dict:
    index = {span.segment: i for i, span in enumerate(row.spans)}
    return {
        "ids": [int(i) for i in row.ids],
        "offset": _encoded(int(p) - i for i, p in enumerate(row.positions)),
        "from": _encoded(names.setdefault(name, len(names)) for name in row.provenance),
        "segments": [
            [
                span.segment,
                index.get(span.parent, ROOT),
                span.start,
                span.stop,
                len(span.samples),
                sorted({row.sources.get(name, 0) for name in span.samples}),
            ]
            for span in row.spans
        ],
        "policies": [_policy_facts(row, view, rules) for view in row.policies.values()],
        "window": row.window,
    }


def _policy_facts(row: RowView, view: PolicyView, rules: dict[tuple[str, ...], int]) -> dict:
    return {
        "weight": _encoded(_short(w) for w in view.weights),
        "rule": _encoded(rules.setdefault(told, len(rules)) for told in view.rules),
        "predicts": _encoded(_predicted(row, view, i) for i in range(len(row))),
    }


def _predicted(row: RowView, view: PolicyView, i: int) -> list | int:
    """0 = nothing; 1 = exactly the next token of the row with that token's weight; else a list of predictions."""
    told = view.targets[i]
    if not told:
        return 0
    if len(told) == 1 and i + 1 < len(row):
        target = told[0]
        if target.token_id == row.ids[i + 1] and target.weight == view.weights[i + 1]:
            return 1
    return [[visible(t.piece), int(t.token_id), _short(t.weight)] for t in told]


def _short(weight: float) -> float | int:
    """Nine digits are more than anyone reads; a whole number needs no point."""
    rounded = round(float(weight), 9)
    return int(rounded) if rounded == int(rounded) else rounded


def _encoded(values: Iterable) -> list:
    pairs = ((value, sum(1 for _ in group)) for value, group in groupby(values))
    return [part for pair in pairs for part in pair]


def _visible_character(character: str) -> str:
    if character in _PICTURES:
        return _PICTURES[character]
    if character < " ":
        return chr(0x2400 + ord(character))
    if unicodedata.category(character) in _INVISIBLE:
        return f"⟨U+{ord(character):04X}⟩"
    return character
