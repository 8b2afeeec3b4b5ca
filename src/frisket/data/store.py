"""The token store: what tokenising a source made, in flat files, mapped read-only.

It holds provenance and what the data says about weights, never a policy's weights, so changing the policy tokenises
nothing again. A store is written under another name, flushed to the disk and renamed, so one that exists is whole;
two writers of one store write the same, and the second leaves the first's.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

import numpy as np

from frisket.data.chat import Encoded
from frisket.data.problem import Problem
from frisket.errors import DataError
from frisket.types import Sequence

FORMAT = 1  # part of every key: raise it when the files or their meaning change
_FILES = {
    "input_ids": np.dtype("<i4"),
    "roles": np.dtype("u1"),
    "turns": np.dtype("<i4"),
    "marks": np.dtype("<u4"),
    "offsets": np.dtype("<i8"),
    "conversations": np.dtype("<i8"),
    "counts": np.dtype("<i8"),
    "weighted": np.dtype("<i8"),
    "weights": np.dtype("<f8"),
}


@dataclass(frozen=True)
class TokenStore:
    """The tokens of one source.

    Attributes:
        key: names everything that decided its content.
        conversations: which conversation of the source each sequence was made of.
        counts: for each sequence: straddling tokens, characters that the template removed, tokens of the answer that a
            preference row declares worse.
        problems: conversations that could not be tokenised: (which, why).
    """

    key: str
    conversations: np.ndarray
    counts: np.ndarray
    problems: tuple[tuple[int, str], ...]
    _arrays: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.conversations)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each sequence."""
        return np.diff(self._arrays["offsets"])

    def sequence(self, index: int, sample_id: str, source: int, start: int = 0, stop: int | None = None) -> Sequence:
        """Tokens ``start`` to ``stop`` of sequence ``index``; arrays are views of the mapped files."""
        offset, end = self._arrays["offsets"][index : index + 2]
        first = int(offset) + start
        last = int(end) if stop is None else int(offset) + stop
        return Sequence(
            sample_id,
            source,
            self._arrays["input_ids"][first:last],
            self._arrays["roles"][first:last],
            self._arrays["turns"][first:last],
            self._arrays["marks"][first:last],
            self._data_weights(first, last),
        )

    def _data_weights(self, first: int, last: int) -> np.ndarray:
        weights = np.full(last - first, np.nan)
        at = self._arrays["weighted"]
        begin, end = np.searchsorted(at, (first, last))
        weights[at[begin:end] - first] = self._arrays["weights"][begin:end]
        return weights


def store_key(parts: Iterable[str]) -> str:
    """Name of the store that these facts (data, tokenizer, template …) decide."""
    return hashlib.sha256("\0".join([str(FORMAT), *parts]).encode()).hexdigest()[:40]


def cache_folder() -> Path:
    """``$FRISKET_CACHE``, or frisket's part of the user's cache folder."""
    if os.environ.get("FRISKET_CACHE"):
        return Path(os.environ["FRISKET_CACHE"]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "frisket"


def open_store(key: str) -> TokenStore | None:
    """Map the store ``key``; None where there is none, or one that is not whole."""
    folder = _folder(key)
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        arrays = {name: _mapped(folder / name, dtype, meta["bytes"][name]) for name, dtype in _FILES.items()}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    problems = tuple((int(index), str(message)) for index, message in meta["problems"])
    return TokenStore(key, arrays["conversations"], arrays["counts"].reshape(-1, 3), problems, arrays)


class StoreWriter:
    """Writes one store; used as a context: on a clean exit the store is there, otherwise nothing is.

    Raises:
        DataError: the cache folder cannot be written.
    """

    def __init__(self, key: str) -> None:
        self._key = key
        self._target = _folder(key)
        self._tokens = 0
        self._offsets = [0]
        self._conversations: list[int] = []
        self._counts: list[tuple[int, int, int]] = []
        self._problems: list[tuple[int, str]] = []
        self._open: dict[str, IO[bytes]] = {}
        self._temporary = Path()

    def __enter__(self) -> "StoreWriter":
        try:
            self._target.parent.mkdir(parents=True, exist_ok=True)
            self._temporary = Path(tempfile.mkdtemp(prefix=f".{self._key[:8]}-", dir=self._target.parent))
            self._open = {name: (self._temporary / name).open("wb") for name in _FILES}
        except OSError as error:
            raise _unwritable(error) from error
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

    def add(self, conversation: int, encoded: Encoded, other_tokens: int) -> None:
        """Append the tokens of conversation number ``conversation``."""
        sequence = encoded.sequence
        try:
            for name in ("input_ids", "roles", "turns", "marks"):
                self._open[name].write(getattr(sequence, name).astype(_FILES[name]).tobytes())
            given = np.flatnonzero(~np.isnan(sequence.data_weights))
            self._open["weighted"].write((given + self._tokens).astype(_FILES["weighted"]).tobytes())
            self._open["weights"].write(sequence.data_weights[given].astype(_FILES["weights"]).tobytes())
        except OSError as error:
            raise _unwritable(error) from error
        self._tokens += len(sequence)
        self._offsets.append(self._tokens)
        self._conversations.append(conversation)
        self._counts.append((encoded.straddling, encoded.removed_characters, other_tokens))

    def add_problem(self, conversation: int, problem: Problem) -> None:
        """Note a conversation that could not be tokenised."""
        self._problems.append((conversation, problem.message))

    def _finish(self) -> None:
        for name, values in (
            ("offsets", self._offsets),
            ("conversations", self._conversations),
            ("counts", self._counts),
        ):
            self._open[name].write(np.array(values, _FILES[name]).tobytes())
        sizes = {}
        for name, file in self._open.items():
            file.flush()
            os.fsync(file.fileno())
            sizes[name] = file.tell()
        with (self._temporary / "meta.json").open("w", encoding="utf-8") as meta:
            json.dump({"format": FORMAT, "bytes": sizes, "problems": self._problems}, meta)
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


def _mapped(path: Path, dtype: np.dtype, size: int) -> np.ndarray:
    if path.stat().st_size != size:
        raise ValueError(f"{path} was not written to its end")
    return np.asarray(np.memmap(path, dtype, mode="r")) if size else np.zeros(0, dtype)


def _unwritable(error: OSError) -> DataError:
    return DataError(
        f"the token store cannot be written in {cache_folder()}: {error.strerror or error}\n"
        "It needs a folder with free space: set FRISKET_CACHE=FOLDER"
    )
