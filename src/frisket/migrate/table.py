"""What the tables are made of: an answer for each key of another tool, and the recipe that grows from the answers.

Only plain values here: the recipe's loader reads these tables to answer unknown keys, so they import nothing heavy.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

Outcome = Literal["mapped", "default", "not needed", "not supported", "unknown"]
OUTCOMES: tuple[Outcome, ...] = ("mapped", "default", "not needed", "not supported", "unknown")
_INDEX = re.compile(r"\[\d+\]")


class Answer(NamedTuple):
    """What became of one key of one file; the text is a knob with its value, or the reason."""

    outcome: Outcome
    text: str


NOTHING = Answer("default", "nothing is given")
"""What becomes of a key without a value."""


class Row(NamedTuple):
    """What becomes of a key in any file.

    Attributes:
        outcome: the answer where the key says something; a value that says nothing (null, false) is a default.
        text: the knob, where mapped, else the reason and what to do instead.
        note: how the value is converted, where it is not taken over as it is; for a default, the values it is for.
        convert: writes into the draft and answers.
        refused: the whole file is refused where this key says something.
    """

    outcome: Outcome
    text: str
    note: str = ""
    convert: "Convert | None" = None
    refused: bool = False


class Draft:
    """A recipe while it grows from a file.

    Attributes:
        given: the file.
        folder: where it lies.
        knobs: dotted knob → value.
        comments: dotted knob → the comment that stands beside it.
        checks: what a person should look at before training.
        flags: words for the command line of ``frisket train``.
        shared: knobs that every source of data gets.
    """

    def __init__(self, given: Mapping[str, Any], folder: Path) -> None:
        self.given, self.folder = given, folder
        self.knobs: dict[str, Any] = {}
        self.comments: dict[str, str] = {}
        self.checks: list[str] = []
        self.flags: dict[str, str] = {}
        self.shared: dict[str, Any] = {}

    def get(self, name: str, default: Any = None) -> Any:
        """The file's value of a top-level key; ``default`` where it is missing or null."""
        value = self.given.get(name)
        return default if value is None else value

    def put(self, knob: str, value: Any, comment: str = "") -> Answer:
        """Set a knob, and answer with it."""
        self.knobs[knob] = value
        if comment:
            self.comments[knob] = comment
        return Answer("mapped", f"{knob} = {shown(value)}" + (f" ({comment})" if comment else ""))

    def share(self, name: str, value: Any, comment: str = "") -> Answer:
        """Set a knob of every source of data."""
        self.shared[name] = value
        if comment:
            self.comments[f"data.0.{name}"] = comment
        return Answer("mapped", f"data.N.{name} = {shown(value)}" + (f" ({comment})" if comment else ""))

    def settings(self) -> dict[str, Any]:
        """All knobs so far; those of every source as ``data.N``."""
        return {**self.knobs, **{f"data.N.{name}": value for name, value in self.shared.items()}}

    def check(self, line: str) -> None:
        """Note what a person should look at."""
        if line not in self.checks:
            self.checks.append(line)

    def sources(self) -> int:
        """How many sources of data the recipe has so far."""
        numbers = [int(knob.split(".")[1]) for knob in self.knobs if knob.startswith("data.")]
        return max(numbers, default=-1) + 1


Convert = Callable[[Draft, str, Any], Answer]
"""Draft, path of the key in the file (``datasets[0].type``), value."""


@dataclass(frozen=True)
class Tool:
    """One tool whose configurations are read.

    Attributes:
        name: as ``--from`` takes it.
        title: as it calls itself.
        version: the release, or the commit of its main branch, whose keys the table was held against.
        rows: key → row; ``a[].b`` is a key of the entries of a list, ``a.*`` everything below ``a``.
        defaults: what the tool does where the file is silent and frisket would do otherwise.
        null_says: keys where an explicit null is a value of its own, not the default.
        older_names: key of ``defaults`` → its former name, which says it too.
    """

    name: str
    title: str
    version: str
    rows: Mapping[str, Row]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    null_says: frozenset[str] = frozenset()
    older_names: Mapping[str, str] = field(default_factory=dict)

    def row_name(self, path: str) -> str | None:
        """The key of the row of a key in a file: its own, or that of what it lies below."""
        name = _INDEX.sub("[]", path)
        if name in self.rows:
            return name
        while "." in name:
            name = name.rpartition(".")[0]
            if f"{name}.*" in self.rows:
                return f"{name}.*"
        return None

    def row(self, path: str) -> Row | None:
        """The row of a key in a file; None where no row has it."""
        name = self.row_name(path)
        return None if name is None else self.rows[name]


def mapped(knob: str, convert: Convert | None = None, note: str = "") -> Row:
    """A key that becomes a knob; without ``convert`` its value is taken over."""
    return Row("mapped", knob, note, convert or _take_over(knob))


def default(reason: str) -> Row:
    """A key that asks for what frisket does anyway."""
    return Row("default", reason)


def default_for(values: Collection[Any], reason: str, otherwise: str) -> Row:
    """A key that asks for what frisket does anyway with these values, and with others for what it does not do.

    Args:
        otherwise: what holds for other values, and what to do instead.
    """

    def convert(draft: Draft, path: str, value: Any) -> Answer:
        return Answer("default", reason) if value in values else Answer("not supported", f"{shown(value)}: {otherwise}")

    return Row("default", reason, " or ".join(map(shown, values)), convert)


def unneeded(reason: str) -> Row:
    """A key that has no work left here."""
    return Row("not needed", reason)


def lacking(reason: str) -> Row:
    """A key that asks for what frisket does not do; the reason ends with what to do instead."""
    return Row("not supported", reason)


def refused(reason: str) -> Row:
    """A key that makes the whole file a job that frisket does not do."""
    return Row("not supported", reason, refused=True)


def rows(names: str, row: Row) -> dict[str, Row]:
    """The same row for several keys, given as words."""
    return dict.fromkeys(names.split(), row)


def says_nothing(value: Any) -> bool:
    """Whether a value switches nothing on: null, false, an empty text, list or mapping, ``none``."""
    return value is None or value is False or value in ("", [], {}) or (isinstance(value, str) and value in _OFF)


def is_off(value: Any) -> bool:
    """Whether a value of something that frisket lacks leaves it off: it says nothing, or it is 0."""
    return says_nothing(value) or (isinstance(value, int | float) and value == 0)


_OFF = frozenset({"none", "None", "no", "off", "false", "False", "null"})


def shown(value: Any) -> str:
    """A value as YAML would have it, at most 60 characters."""
    text = {None: "null", True: "true", False: "false"}.get(value) if _is_scalar(value) else None
    if isinstance(value, Mapping):
        text = f"{{{', '.join(f'{name}: {inner}' for name, inner in value.items())}}}"
    text = text or (f"[{', '.join(map(str, value))}]" if isinstance(value, list) else f"{value}")
    return text if len(text) <= 60 else f"{text[:59]}…"


def _is_scalar(value: Any) -> bool:
    return value is None or isinstance(value, bool)


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every key of a file with its value: ``a.b``, ``a[0].b``; a list of plain values is one value."""
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from leaves(inner, f"{path}.{name}" if path else str(name))
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        for index, inner in enumerate(value):
            yield from leaves(inner, f"{path}[{index}]")
    else:
        yield path, value


def _take_over(knob: str) -> Convert:
    return lambda draft, path, value: draft.put(knob, value)
