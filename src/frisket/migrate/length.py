"""How long the samples of local files are, without a tokenizer."""

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

_RECORDS = 500
_CHARACTERS_A_TOKEN = 4


def mean_tokens(paths: Sequence[str]) -> float | None:
    """Mean tokens of a sample, at four characters of its texts each, over the first records of each file.

    Returns:
        None unless every path is a JSON or JSONL file at hand.
    """
    sizes: list[int] = []
    for path in map(Path, paths):
        try:
            sizes += [sum(map(len, _texts(record))) for record in islice(_records(path), _RECORDS)]
        except (OSError, ValueError):
            return None
    return sum(sizes) / len(sizes) / _CHARACTERS_A_TOKEN if sizes else None


def _records(path: Path) -> Iterator[Any]:
    with path.open(encoding="utf-8") as file:
        if path.suffix == ".json":
            yield from json.load(file)
        else:
            yield from (json.loads(line) for line in file if line.strip())


def _texts(value: Any) -> Iterator[str]:
    """The texts of a record, without the names of its columns."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)
