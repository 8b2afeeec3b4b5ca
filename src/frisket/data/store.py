"""The token store: what tokenising a source made, in flat files, mapped read-only.

It holds provenance and what the data says about weights, never a policy's weights, so changing the policy tokenises
nothing again; and for each sequence the record that it came from, so that a source is read once. A store is written
under another name, flushed to the disk and renamed, so one that exists is whole; two writers of one store write the
same, and the second leaves the first's.
"""

import hashlib
import json
import mmap
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int64

from frisket.cache import cache_folder
from frisket.data.encoding import spread
from frisket.errors import DataError
from frisket.types import Provenance, Sequence

FORMAT = 4  # part of every key: raise it when the files or their meaning change
FILES = {
    "input_ids": np.dtype("<i4"),
    "offsets": np.dtype("<i8"),
    "run_offsets": np.dtype("<i8"),
    "run_sizes": np.dtype("<i4"),
    "run_roles": np.dtype("u1"),
    "run_turns": np.dtype("<i4"),
    "weighted": np.dtype("<i8"),
    "weights": np.dtype("<f8"),
    "is_own": np.dtype("?"),
    "straddling": np.dtype("<i4"),
    "removed": np.dtype("<i4"),
    "rejected": np.dtype("<i4"),
    "is_text": np.dtype("?"),
    "file": np.dtype("<i4"),
    "line": np.dtype("<i8"),
    "suffix": np.dtype("<i4"),
}


class StoredProblem(NamedTuple):
    """A record that cannot be used.

    Attributes:
        stored: its sequence, -1 where it has none.
        file: number of its file.
        line: its line or record.
        suffix: which of the record's samples; None where the record could not be read.
        message: what is wrong.
    """

    stored: int
    file: int
    line: int
    suffix: str | None
    message: str


@dataclass(frozen=True)
class Facts:
    """What is known of a source as a whole.

    Attributes:
        format: the format and its columns, as shown to the user.
        unused: columns that nothing uses.
        files: what is put behind the source's path to name each of its files.
        suffixes: what is put behind a record's name to name each of its samples.
        problems: records that cannot be used, in the order of the source.
        unknown: sequences with unknown tokens, such tokens, and the first such sequence.
    """

    format: str
    unused: tuple[str, ...]
    files: tuple[str, ...]
    suffixes: tuple[str, ...]
    problems: tuple[StoredProblem, ...]
    unknown: tuple[int, int, int]


class TokenStore:
    """The tokens of one source.

    Attributes:
        key: names everything that decided its content.
        facts: what is known of the source as a whole.
    """

    def __init__(self, key: str, facts: Facts, arrays: dict[str, np.ndarray], maps: list[mmap.mmap]) -> None:
        self.key = key
        self.facts = facts
        self._arrays = arrays
        self._maps = maps

    def __len__(self) -> int:
        return len(self._arrays["line"])

    @property
    def lengths(self) -> Int64[np.ndarray, "sequence"]:
        """Tokens of each sequence."""
        return np.diff(self._arrays["offsets"])

    @property
    def straddling(self) -> np.ndarray:
        """Of each sequence, tokens whose characters belong to two provenances."""
        return self._arrays["straddling"]

    @property
    def removed(self) -> np.ndarray:
        """Of each sequence, characters that the template took out."""
        return self._arrays["removed"]

    @property
    def rejected(self) -> np.ndarray:
        """Of each sequence, tokens of the answer that its preference row declares worse."""
        return self._arrays["rejected"]

    @property
    def is_text(self) -> Bool[np.ndarray, "sequence"]:
        """Whether a sequence is raw text."""
        return self._arrays["is_text"]

    @property
    def last_roles(self) -> Int64[np.ndarray, "sequence"]:
        """Provenance of what was written last in each sequence, template tokens apart; -1 where nothing was."""
        arrays = self._arrays
        ends = arrays["run_offsets"][1:]
        written = ~np.isin(arrays["run_roles"], (Provenance.BOS, Provenance.TEMPLATE))
        # One entry before the first run, for a sequence without any.
        last = np.concatenate([[-1], np.maximum.accumulate(np.where(written, np.arange(len(written)), -1))])[ends]
        roles = np.append(arrays["run_roles"].astype(np.int64), -1)
        return np.where(last >= arrays["run_offsets"][:-1], roles[last], -1)

    @property
    def records(self) -> Int64[np.ndarray, "sequence"]:
        """Number of the record that each sequence was made of; equal for those of one record."""
        file, line = self._arrays["file"], self._arrays["line"]
        new = np.ones(len(self), bool)
        new[1:] = (np.diff(file) != 0) | (np.diff(line) != 0)
        return np.cumsum(new)

    def name(self, index: int) -> str:
        """Name of a sequence within its source: ``file:line``, or the line alone, and which of the record's samples."""
        file = self.facts.files[self._arrays["file"][index]].removeprefix("/")
        suffix = self.facts.suffixes[self._arrays["suffix"][index]]
        return f"{file}{':' if file else ''}{self._arrays['line'][index]}{suffix}"

    def place(self, index: int) -> str:
        """What names the place of a sequence when it is put behind the source's path."""
        return f"{self.facts.files[self._arrays['file'][index]]}:{self._arrays['line'][index]}"

    def sequence(self, index: int, sample_id: str, source: int, start: int = 0, stop: int | None = None) -> Sequence:
        """Tokens ``start`` to ``stop`` of sequence ``index``; the ids are a view of the mapped file."""
        arrays = self._arrays
        offset, end = arrays["offsets"][index : index + 2].tolist()
        low, high = arrays["run_offsets"][index : index + 2].tolist()
        sizes = arrays["run_sizes"][low:high]
        first, last = offset + start, end if stop is None else offset + stop
        part = slice(start, stop)
        weights, marks = self._said(first, last)
        return Sequence(
            sample_id,
            source,
            arrays["input_ids"][first:last],
            arrays["run_roles"][low:high].repeat(sizes)[part],
            arrays["run_turns"][low:high].repeat(sizes)[part],
            marks,
            weights,
        )

    def ids(self, index: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Token ids ``start`` to ``stop`` of sequence ``index``, as a view of the mapped file."""
        offset, end = self._arrays["offsets"][index : index + 2].tolist()
        return self._arrays["input_ids"][offset + start : end if stop is None else offset + stop]

    def release(self) -> None:
        """Give back the memory of the pages that were read; what is read again comes from the file."""
        if sys.platform != "win32":
            for each in self._maps:
                each.madvise(mmap.MADV_DONTNEED)

    def _said(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """What the data says that tokens ``first`` to ``last`` of the store teach with, and their marks."""
        at = self._arrays["weighted"]
        low, high = np.searchsorted(at, (first, last)) if len(at) else (0, 0)
        part = slice(low, high)
        return spread(last - first, at[part] - first, self._arrays["weights"][part], self._arrays["is_own"][part])


def store_key(parts: Iterable[str]) -> str:
    """Name of the store that these facts (data, tokenizer, template …) decide."""
    return hashlib.sha256("\0".join([str(FORMAT), *parts]).encode()).hexdigest()[:40]


def open_store(key: str) -> TokenStore | None:
    """Map the store ``key``; None where there is none, or one that is not whole."""
    folder = _folder(key)
    maps: list[mmap.mmap] = []
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        arrays = {name: _mapped(folder / name, dtype, meta["bytes"][name], maps) for name, dtype in FILES.items()}
        facts = Facts(
            meta["format"],
            tuple(meta["unused"]),
            tuple(meta["files"]),
            tuple(meta["suffixes"]),
            tuple(StoredProblem(*problem) for problem in meta["problems"]),
            tuple(meta["unknown"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return TokenStore(key, facts, arrays, maps)


class StoreWriter:
    """Writes one store; used as a context: on a clean exit the store is there, otherwise nothing is.

    Raises:
        DataError: the cache folder cannot be written.
    """

    def __init__(self, key: str) -> None:
        self._key = key
        self._target = _folder(key)
        self._facts: dict[str, Any] = {}
        self._open: dict[str, IO[bytes]] = {}
        self._temporary = Path()

    def __enter__(self) -> "StoreWriter":
        try:
            self._target.parent.mkdir(parents=True, exist_ok=True)
            self._temporary = Path(tempfile.mkdtemp(prefix=f".{self._key[:8]}-", dir=self._target.parent))
            self._open = {name: (self._temporary / name).open("wb") for name in FILES}
        except OSError as error:
            raise _unwritable(error) from error
        self.append({"offsets": np.zeros(1), "run_offsets": np.zeros(1)})
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        except OSError as failure:
            raise _unwritable(failure) from failure
        finally:
            for file in self._open.values():
                file.close()
            shutil.rmtree(self._temporary, ignore_errors=True)

    def append(self, arrays: dict[str, np.ndarray]) -> None:
        """Append to the files of these names."""
        try:
            for name, values in arrays.items():
                self._open[name].write(np.ascontiguousarray(values, FILES[name]).data)
        except OSError as error:
            raise _unwritable(error) from error

    def tell(self, facts: Facts) -> None:
        """Say what is known of the source as a whole; the last thing before the end."""
        self._facts = {name: getattr(facts, name) for name in facts.__dataclass_fields__}

    def _finish(self) -> None:
        sizes = {}
        for name, file in self._open.items():
            file.flush()
            os.fsync(file.fileno())
            sizes[name] = file.tell()
        with (self._temporary / "meta.json").open("w", encoding="utf-8") as meta:
            json.dump({**self._facts, "bytes": sizes}, meta)
            meta.flush()
            os.fsync(meta.fileno())
        if self._target.exists() and open_store(self._key) is None:
            self._target.rename(self._temporary / "torn")
        try:
            self._temporary.rename(self._target)
        except OSError:
            if open_store(self._key) is None:  # otherwise another process wrote the same store first
                raise


def _folder(key: str) -> Path:
    return cache_folder() / "stores" / key


def _mapped(path: Path, dtype: np.dtype, size: int, maps: list[mmap.mmap]) -> np.ndarray:
    if path.stat().st_size != size:
        raise ValueError(f"{path} was not written to its end")
    if not size:
        return np.zeros(0, dtype)
    with path.open("rb") as file:
        maps.append(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    return np.frombuffer(maps[-1], dtype)


def _unwritable(error: OSError) -> DataError:
    return DataError(
        f"the token store cannot be written in {cache_folder()}: {error.strerror or error}\n"
        "It needs a folder with free space: set FRISKET_CACHE=FOLDER"
    )
