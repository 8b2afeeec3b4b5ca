"""Records out of files, folders, the hub or memory, each with its place; then conversations (``formats.py``)."""

import csv
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from frisket import bundled
from frisket.data.formats import Reader, Record
from frisket.data.problem import Problem
from frisket.data.settings import SourceSettings
from frisket.errors import DataError
from frisket.types import Conversation

SUFFIXES = (".jsonl", ".json", ".parquet", ".csv", ".tsv")
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
# What changes neither records nor conversations, and so must not make a new token store.
_OTHER_KNOBS = {"path", "weight", "max_tokens", "too_long", "bad", "hold_out"}


@dataclass(frozen=True)
class SourceReading:
    """One source, read.

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
    """Read one source.

    Args:
        settings: what the recipe says about it.
        index: its place in the recipe's ``data`` list; names samples and errors.
        records: the records themselves, where Python code has them; ``settings.path`` then only names them.

    Raises:
        DataError: the source is missing, empty, or of no known format.
    """
    digest = hashlib.sha256()
    shots = _shots(settings, index)
    problems: list[Problem] = []
    reader = Reader(settings, index, shots.conversations if shots else [])
    found = 0
    for item in islice(_items(settings, records, digest), settings.limit):
        found += 1
        if isinstance(item, Problem):
            problems.append(item)
        else:
            problems += reader.read(item)
    if not found:
        raise DataError(f"{_name(settings, records)} holds no records; data.{index}.path needs at least one")
    kept = settings.model_dump(mode="json", exclude=_OTHER_KNOBS)
    parts = [digest.hexdigest(), shots.fingerprint if shots else "", json.dumps(kept, sort_keys=True)]
    fingerprint = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    return SourceReading(reader.conversations, problems, reader.format, reader.notes(), fingerprint)


def _shots(settings: SourceSettings, index: int) -> SourceReading | None:
    if settings.shots is None:
        return None
    plain = SourceSettings(
        path=settings.shots.path,
        prompt=settings.prompt,
        completion=settings.completion,
        messages=settings.messages,
        limit=settings.shots.count,
    )
    reading = read_conversations(plain, index)
    if reading.problems:
        raise DataError(f"data.{index}.shots: {reading.problems[0]}")
    return reading


def _name(settings: SourceSettings, records: Iterable[Mapping] | None) -> str:
    return "records" if records is not None else settings.path


def _items(settings: SourceSettings, records: Iterable[Mapping] | None, digest: Any) -> Iterator[Record | Problem]:
    if records is not None:
        return _from_memory(records, "records", digest)
    if settings.path == "bundled":
        return _from_file(Path(bundled.train_path()), "bundled", "", digest)
    path = Path(settings.path).expanduser()
    if path.is_dir():
        return _from_folder(path, settings.path, digest)
    if path.is_file():
        return _from_file(path, settings.path, "", digest)
    if path.suffix in SUFFIXES or not _HUB_ID.fullmatch(settings.path):
        raise DataError(f"'{settings.path}' does not exist; data.N.path must be a file, a folder or a hub id")
    return _from_memory(_hub(settings), settings.path, digest)


def _from_folder(folder: Path, name: str, digest: Any) -> Iterator[Record | Problem]:
    files = sorted(path for path in folder.rglob("*") if path.suffix in SUFFIXES and path.is_file())
    if not files:
        raise DataError(f"the folder '{name}' holds no data; it needs files ending in {', '.join(SUFFIXES)}")
    for path in files:
        inner = path.relative_to(folder).as_posix()
        yield from _from_file(path, f"{name.rstrip('/')}/{inner}", f"{inner}:", digest)


def _from_file(path: Path, name: str, prefix: str, digest: Any) -> Iterator[Record | Problem]:
    if path.suffix == ".parquet":
        yield from _parquet(path, name, prefix, digest)
    elif path.suffix in (".csv", ".tsv"):
        yield from _csv(path, name, prefix, digest)
    elif path.suffix not in SUFFIXES:
        raise DataError(f"'{name}' is of no known kind; a data file ends in {', '.join(SUFFIXES)}")
    elif _is_list(path):
        yield from _json_list(path, name, prefix, digest)
    else:
        yield from _json_lines(path, name, prefix, digest)


def _is_list(path: Path) -> bool:
    with path.open("rb") as file:
        while block := file.read(4096):
            text = block.removeprefix(b"\xef\xbb\xbf").lstrip()
            if text:
                return text.startswith(b"[")
    return False


def _json_lines(path: Path, name: str, prefix: str, digest: Any) -> Iterator[Record | Problem]:
    with path.open("rb") as file:
        for line, raw in enumerate(file, 1):
            digest.update(raw)
            if not raw.strip():
                continue
            try:
                value = json.loads(raw.decode("utf-8-sig"))
            except ValueError as error:
                yield Problem(f"{name}:{line}", _bad_json(error))
                continue
            yield _record(value, name, line, prefix)


def _json_list(path: Path, name: str, prefix: str, digest: Any) -> Iterator[Record | Problem]:
    raw = path.read_bytes()
    digest.update(raw)
    try:
        values = json.loads(raw.decode("utf-8-sig"))
    except ValueError as error:
        line = error.lineno if isinstance(error, json.JSONDecodeError) else 1
        yield Problem(f"{name}:{line}", _bad_json(error))
        return
    for number, value in enumerate(values, 1):
        yield _record(value, name, number, prefix)


def _csv(path: Path, name: str, prefix: str, digest: Any) -> Iterator[Record | Problem]:
    digest.update(path.read_bytes())
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


def _parquet(path: Path, name: str, prefix: str, digest: Any) -> Iterator[Record | Problem]:
    import pyarrow
    import pyarrow.parquet

    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    number = 0
    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=1024):
            for value in batch.to_pylist():
                number += 1
                yield _record(value, name, number, prefix)
    except pyarrow.ArrowException as error:
        raise DataError(f"'{name}' is not a readable Parquet file: {error}") from error


def _hub(settings: SourceSettings) -> Iterable[Mapping]:
    import datasets

    try:
        rows: Any = datasets.load_dataset(settings.path, settings.subset, split=settings.split)
        return rows
    except Exception as error:  # the hub library raises errors of many libraries for a missing network
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(
            f"'{settings.path}' is no file here, and as a hub data set it could not be loaded: {first}\n"
            "A hub id needs a network or a filled cache; otherwise data.N.path must be a file or a folder"
        ) from error


def _from_memory(records: Iterable[Mapping], name: str, digest: Any) -> Iterator[Record | Problem]:
    for number, value in enumerate(records, 1):
        digest.update(json.dumps(value, sort_keys=True, ensure_ascii=False, default=str).encode("utf-8", "replace"))
        yield _record(value, name, number, "")


def _record(value: Any, name: str, number: int, prefix: str) -> Record | Problem:
    if not isinstance(value, Mapping):
        return Problem(f"{name}:{number}", f"the record is {json.dumps(value)[:40]}; it must be an object with columns")
    return Record(name, number, f"{prefix}{number}", value)


def _bad_json(error: ValueError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"not valid JSON: {error.msg} at character {error.pos + 1}"
    return f"not valid UTF-8: {error}"
