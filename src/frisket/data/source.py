"""Records out of files, folders, the hub or memory, each with its place; then conversations (``formats.py``).

A source is a stream: JSON lines, CSV and Parquet are read piece by piece and nothing is kept. A file that is one JSON
array has to be loaded as a whole.
"""

import csv
import hashlib
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from frisket import bundled
from frisket.data.formats import Reader, Record
from frisket.data.problem import Problem
from frisket.data.settings import SUFFIXES, SourceSettings
from frisket.errors import DataError, nearest
from frisket.types import Conversation

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_RECORD_NAME = re.compile(r"\d+:((?:.*:)?\d+)")  # of ``source:inner:line/suffix``
_BLOCK = 1 << 20
# What decides which conversations are made of the records; another value makes another token store.
_DECIDING = {
    "format",
    "split",
    "subset",
    "prompt",
    "completion",
    "messages",
    "text",
    "roles",
    "system",
    "without_prompt",
    "limit",
    "render",
    "answers",
    "expand",
    "shots",
}


class Source:
    """One source, read from its beginning each time it is iterated: conversations, and a problem for each bad record.

    Attributes:
        root: what the places of its samples begin with: its path, or ``records``.
        index: its place in the recipe's ``data`` list.
    """

    def __init__(self, settings: SourceSettings, index: int, records: Iterable[Mapping] | None = None) -> None:
        """Name a source; nothing is read yet.

        Args:
            settings: what the recipe says about it.
            index: its place in the recipe's ``data`` list; names samples and errors.
            records: the records themselves, where Python code has them; ``settings.path`` then only names them.
        """
        self.root = "records" if records is not None else settings.path
        self.index = index
        self._settings = settings
        # What can be read only once is kept: it is read for the fingerprint, and then for what it says.
        self._records = list(records) if isinstance(records, Iterator) else records
        self._shots = _shots(settings, index)
        self._reader = Reader(settings, index, self._shots.conversations if self._shots else [])

    def __iter__(self) -> Iterator[Conversation | Problem]:
        """Read all of it.

        Raises:
            DataError: the source is missing, empty, or of no known format.
        """
        found = False
        for item in islice(self._items(), self._settings.limit):
            found = True
            made = item if isinstance(item, Problem) else self._reader.read(item)
            if isinstance(made, Problem):
                yield made
            else:
                yield from made
        if not found:
            raise DataError(f"{self.root} holds no records; data.{self.index}.path needs at least one")

    def some(self, sample_ids: Collection[str]) -> dict[str, Conversation]:
        """Read only the conversations of these names; the other records are passed over.

        Raises:
            DataError: the source is missing or of no known format.
        """
        wanted, found, is_known = set(sample_ids), {}, False
        names = {match.group(1) for match in map(_RECORD_NAME.match, wanted) if match}
        for item in islice(self._items(), self._settings.limit):
            if isinstance(item, Problem) or (is_known and item.name not in names):
                continue
            is_known = True  # the first record decides the format
            made = self._reader.read(item)
            if not isinstance(made, Problem):
                found |= {each.sample_id: each for each in made if each.sample_id in wanted}
        return found

    @property
    def format(self) -> str:
        """The format and its columns, as shown to the user; known once it has been read."""
        return self._reader.format

    @property
    def unused(self) -> tuple[str, ...]:
        """Columns that nothing uses; known once it has been read."""
        return self._reader.unused

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the data and of the settings that decide what is made of them; reads all bytes, parses nothing.

        Raises:
            DataError: the source is missing.
        """
        digest = hashlib.sha256()
        if self._records is not None or self._is_hub:
            self._hash_records(digest)
        for path, inner in self._files:
            digest.update(f"{path.suffix}\0{inner}\0".encode())
            _hash_file(path, self._settings.limit, digest)
        kept = self._settings.model_dump(mode="json", include=_DECIDING)
        parts = [digest.hexdigest(), self._shots.fingerprint if self._shots else "", json.dumps(kept, sort_keys=True)]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    def _hash_records(self, digest: Any) -> None:
        for value in islice(self._memory, self._settings.limit):
            digest.update(json.dumps(value, sort_keys=True, ensure_ascii=False, default=str).encode("utf-8", "replace"))

    @property
    def _path(self) -> Path:
        if self._settings.path == "bundled":
            return Path(bundled.train_path())
        return Path(self._settings.path).expanduser()

    @property
    def _is_hub(self) -> bool:
        if self._records is not None or self._path.exists():
            return False
        if self._path.suffix in SUFFIXES or not _HUB_ID.fullmatch(self._settings.path):
            near = _near(self._path)
            if near:
                fix = f"Did you mean this? data.{self.index}.path={self._path.parent / near}"
            else:
                fix = f"Name a file, a folder or a hub id: data.{self.index}.path=FILE"
            raise DataError(f"'{self._settings.path}' does not exist\n{fix}")
        return True

    @cached_property
    def _memory(self) -> Iterable[Mapping]:
        return _hub(self._settings, self.index) if self._records is None else self._records

    @property
    def _files(self) -> list[tuple[Path, str]]:
        """The files, each with its path within the folder ("" for a file alone)."""
        if self._records is not None or self._is_hub:
            return []
        if not self._path.is_dir():
            return [(self._path, "")]
        files = sorted(path for path in self._path.rglob("*") if path.suffix in SUFFIXES and path.is_file())
        if not files:
            raise DataError(f"the folder '{self.root}' holds no data; it needs files ending in {', '.join(SUFFIXES)}")
        return [(path, path.relative_to(self._path).as_posix()) for path in files]

    def _items(self) -> Iterator[Record | Problem]:
        if self._records is not None or self._is_hub:
            for number, value in enumerate(self._memory, 1):
                yield _record(value, self.root, number, "")
        for path, inner in self._files:
            name = f"{self.root.rstrip('/')}/{inner}" if inner else self.root
            yield from _from_file(path, name, f"{inner}:" if inner else "")


@dataclass(frozen=True)
class SourceReading:
    """One source, read as a whole.

    Attributes:
        conversations: in the order of the file.
        problems: records that could not be read, with their places.
        format: the format and its columns, as shown to the user.
        notes: columns that nothing uses, and the like.
        fingerprint: hash of the bytes that were read and of the settings that decide what is made of them.
    """

    conversations: list[Conversation]
    problems: list[Problem]
    format: str
    notes: list[str]
    fingerprint: str


def read_conversations(settings: SourceSettings, index: int, records: Iterable[Mapping] | None = None) -> SourceReading:
    """Read one small source as a whole; the arguments are those of ``Source``.

    Raises:
        DataError: the source is missing, empty, or of no known format.
    """
    source = Source(settings, index, records)
    read = list(source)
    return SourceReading(
        [item for item in read if isinstance(item, Conversation)],
        [item for item in read if isinstance(item, Problem)],
        source.format,
        notes_of(index, source.unused),
        source.fingerprint,
    )


def notes_of(index: int, unused: Iterable[str]) -> list[str]:
    """What the user is told about columns that nothing uses."""
    names = ", ".join(unused)
    return [f"data.{index}: columns not used for training: {names}"] if names else []


def _shots(settings: SourceSettings, index: int) -> SourceReading | None:
    if settings.shots is None:
        return None
    plain = SourceSettings(
        path=settings.shots.path,
        prompt=settings.prompt,
        completion=settings.completion,
        messages=settings.messages,
        roles=settings.roles,
        limit=settings.shots.count,
    )
    reading = read_conversations(plain, index)
    if reading.problems:
        raise DataError(f"data.{index}.shots: {reading.problems[0]}")
    return reading


def _hash_file(path: Path, limit: int | None, digest: Any) -> None:
    """All bytes; of JSON lines only as many as are used."""
    is_lines = path.suffix in (".jsonl", ".json") and not _is_list(path)
    with path.open("rb") as file:
        if is_lines and limit is not None:
            for raw in islice((raw for raw in file if raw.strip()), limit):
                digest.update(raw)
        else:
            while block := file.read(_BLOCK):
                digest.update(block)


def _from_file(path: Path, name: str, prefix: str) -> Iterator[Record | Problem]:
    if path.suffix == ".parquet":
        yield from _parquet(path, name, prefix)
    elif path.suffix in (".csv", ".tsv"):
        yield from _csv(path, name, prefix)
    elif path.suffix not in SUFFIXES:
        raise DataError(f"'{name}' is of no known kind; a data file ends in {', '.join(SUFFIXES)}")
    elif _is_list(path):
        yield from _json_list(path, name, prefix)
    else:
        yield from _json_lines(path, name, prefix)


def _is_list(path: Path) -> bool:
    with path.open("rb") as file:
        while block := file.read(4096):
            text = block.removeprefix(b"\xef\xbb\xbf").lstrip()
            if text:
                return text.startswith(b"[")
    return False


def _json_lines(path: Path, name: str, prefix: str) -> Iterator[Record | Problem]:
    with path.open("rb") as file:
        for line, raw in enumerate(file, 1):
            if not raw.strip():
                continue
            try:
                value = json.loads(raw.decode("utf-8-sig").rstrip("\r\n"))
            except ValueError as error:
                yield Problem(f"{name}:{line}", _bad_json(error))
                continue
            yield _record(value, name, line, prefix)


def _json_list(path: Path, name: str, prefix: str) -> Iterator[Record | Problem]:
    try:
        values = json.loads(path.read_bytes().decode("utf-8-sig"))
    except ValueError as error:
        line = error.lineno if isinstance(error, json.JSONDecodeError) else 1
        yield Problem(f"{name}:{line}", _bad_json(error))
        return
    for number, value in enumerate(values, 1):
        yield _record(value, name, number, prefix)


def _csv(path: Path, name: str, prefix: str) -> Iterator[Record | Problem]:
    csv.field_size_limit(2**31 - 1)
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",")
        number = 0
        try:
            for number, row in enumerate(rows, 1):
                if None in row or None in row.values():
                    yield Problem(
                        f"{name}:{number}", f"this row does not have the {len(rows.fieldnames or [])} columns"
                    )
                else:
                    yield Record(name, number, f"{prefix}{number}", row)
        except (csv.Error, UnicodeDecodeError) as error:
            yield Problem(f"{name}:{number + 1}", f"not valid CSV: {error}")


def _parquet(path: Path, name: str, prefix: str) -> Iterator[Record | Problem]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=1024):
            for value in batch.to_pylist():
                number += 1
                yield _record(value, name, number, prefix)
    except pyarrow.ArrowException as error:
        raise DataError(f"'{name}' is not a readable Parquet file: {error}") from error


def _near(path: Path) -> str | None:
    """The data beside a path whose name is most like its own: a file of a known kind, or a folder."""
    names = [found.name for found in path.parent.glob("*") if found.suffix in SUFFIXES or found.is_dir()]
    return nearest(path.name, names)


def _hub(settings: SourceSettings, index: int) -> Iterable[Mapping]:
    import datasets

    try:
        rows: Any = datasets.load_dataset(settings.path, settings.subset, split=settings.split)
        return rows
    except Exception as error:  # the hub library raises errors of many libraries for a missing network
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        near = "bundled" if nearest(settings.path, ["bundled"]) else _near(Path(settings.path))
        meant = f"Did you mean data.{index}.path={Path(settings.path).parent / near}?\n" if near else ""
        raise DataError(
            f"'{settings.path}' is no file here, and as a hub data set it could not be loaded: {first}\n{meant}"
            "Where there is a network (a gated set needs a token: hf auth login): "
            f"hf download --repo-type dataset {settings.path} --local-dir FOLDER\nThen: data.{index}.path=FOLDER"
        ) from error


def _record(value: Any, name: str, number: int, prefix: str) -> Record | Problem:
    if not isinstance(value, Mapping):
        return Problem(f"{name}:{number}", f"the record is {json.dumps(value)[:40]}; it must be an object with columns")
    return Record(name, number, f"{prefix}{number}", value)


def _bad_json(error: ValueError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"not valid JSON: {error.msg.removesuffix(' at')} at character {error.colno}"
    return f"not valid UTF-8: {error}"
