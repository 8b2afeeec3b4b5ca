"""Marks around the fields of a conversation: put in before it is rendered, found and taken out afterwards."""

import re
from collections.abc import Sequence as Seq
from functools import lru_cache
from typing import NamedTuple

from frisket.data.problem import BadSample
from frisket.types import Provenance

_NO_FIELD = -1
# Tangut: no white space, no case, and printable, so a list that a template writes as Python's repr keeps the marks
# (repr and JSON write a private-use character as its number).
_FIRST_MARK, _LAST_MARK = 0x17000, 0x187F7
_MARKS = 12  # opening, closing, ten digits


class Span(NamedTuple):
    """Characters ``start`` to ``end`` of a rendering, written by field number ``field`` of message ``turn``."""

    start: int
    end: int
    role: Provenance
    turn: int
    field: int = _NO_FIELD


class Field(NamedTuple):
    """One field of message ``turn``: ``what`` it is, as errors name it, and the text between its marks."""

    turn: int
    role: Provenance
    what: str
    core: str


class Marker:
    """Puts numbered marks around fields and reads them back.

    Attributes:
        fields: what was marked, by number.
        wide: whether the outer white space of answers stands between the marks too.
    """

    def __init__(self, first: int, wide: bool = False) -> None:
        self.fields: list[Field] = []
        self.wide = wide
        self._open, self._close = chr(first), chr(first + 1)
        self._digits, self._numbers, self._pattern = _mark_tables(first)

    def __call__(self, turn: int, role: Provenance, what: str, text: str) -> str:
        """Put marks into one field; a blank one stays as it is."""
        core = text.strip()
        if not core:
            return text
        lead = len(text) - len(text.lstrip())
        if self.wide and role == Provenance.ASSISTANT:
            lead = lead if what == "answer" else 0
            core = text[lead:]
        number = str(len(self.fields)).translate(self._digits)
        self.fields.append(Field(turn, role, what, core))
        return f"{text[:lead]}{self._open}{number}{core}{self._close}{text[lead + len(core) :]}"

    def read(self, marked: str) -> tuple[str, list[Span]]:
        """Take the marks out: the text, and the spans of the fields that came back."""
        pieces, spans = [], []
        length = at = 0
        begun: tuple[int, int] | None = None
        for match in self._pattern.finditer(marked):
            pieces.append(marked[at : match.start()])
            length += match.start() - at
            at = match.end()
            if match.group(1) and begun is None:
                begun = (length, int(match.group(1).translate(self._numbers)))
            elif not match.group(1) and begun is not None:
                start, number = begun
                spans.append(Span(start, length, self.fields[number].role, self.fields[number].turn, number))
                begun = None
            else:
                raise BadSample("the template takes a message apart, so who wrote what cannot be located")
        if begun is not None:
            raise BadSample("the template takes a message apart, so who wrote what cannot be located")
        return "".join([*pieces, marked[at:]]), spans


@lru_cache
def _mark_tables(first: int) -> tuple[dict[int, int], dict[int, int], re.Pattern[str]]:
    """Digits to marks, marks to digits, and the pattern of a mark."""
    digits = {ord("0") + digit: first + 2 + digit for digit in range(10)}
    pattern = re.compile(f"{chr(first)}([{chr(first + 2)}-{chr(first + 11)}]+)|{chr(first + 1)}")
    return digits, {mark: digit for digit, mark in digits.items()}, pattern


def free_marks(text: str) -> int:
    """The first of a run of characters for marks that ``text`` does not hold.

    Raises:
        BadSample: it holds them all.
    """
    if text.isascii():
        return _FIRST_MARK
    for first in range(_FIRST_MARK, _LAST_MARK - _MARKS, _MARKS):
        if not re.search(f"[{chr(first)}-{chr(first + _MARKS - 1)}]", text):
            return first
    raise BadSample("the text uses all of Tangut (U+17000 to U+187F7), with whose characters frisket marks fields")


def with_kept_space(
    text: str, spans: Seq[Span], wide_text: str, wide_spans: Seq[Span], fields: Seq[Field]
) -> list[Span]:
    """Widen answers by the outer white space that a template keeps while it takes other away.

    Between the marks of a wide rendering stands what the template itself writes there; what ``text`` has beyond that
    is the end of one answer's white space and the beginning of the next one's.
    """
    if [span.field for span in spans] != [span.field for span in wide_spans]:
        return list(spans)
    found = list(spans)
    lasts, nexts = [None, *range(len(spans))], [*range(len(spans)), None]
    for left, right in zip(lasts, nexts, strict=True):
        gap = _between(text, spans, left, right)
        own = _between(wide_text, wide_spans, left, right)
        tail = "" if left is None else _outer_space(fields[spans[left].field])[1]
        lead = "" if right is None else _outer_space(fields[spans[right].field])[0]
        for kept in range(min(len(tail), len(gap) - len(own)) + 1):
            rest = len(gap) - len(own) - kept
            if rest <= len(lead) and gap == tail[:kept] + own + lead[len(lead) - rest :]:
                if left is not None:
                    found[left] = found[left]._replace(end=found[left].end + kept)
                if right is not None:
                    found[right] = found[right]._replace(start=found[right].start - rest)
                break
    return found


def _between(text: str, spans: Seq[Span], left: int | None, right: int | None) -> str:
    return text[0 if left is None else spans[left].end : None if right is None else spans[right].start]


def _outer_space(field: Field) -> tuple[str, str]:
    """White space at both ends of a field that was marked with it."""
    core = field.core
    return core[: len(core) - len(core.lstrip())], core[len(core.rstrip()) :]
