"""The samples of a run: pieces of stored sequences, some of them held out."""

from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar, overload

import numpy as np
from jaxtyping import Int64

from frisket.data.provenance import NO_TURN
from frisket.data.store import TokenStore
from frisket.types import Ledger, Provenance, Sequence

Item = TypeVar("Item", covariant=True)
WALKED_TOKENS = 1 << 20  # after so many the pages that were read are given back


@dataclass(frozen=True)
class Pieces:
    """Which part of which stored sequence each sample is; all arrays have one entry a sample.

    Attributes:
        source: index of the source.
        stored: index in the source's store.
        start: first token of the part.
        stop: end of the part.
        bos: beginning token that is put before a later part of raw text; -1 for none.
        part: which piece of a split sequence this is, from 1; 0 for one that was not split.
    """

    source: Int64[np.ndarray, "sample"]
    stored: Int64[np.ndarray, "sample"]
    start: Int64[np.ndarray, "sample"]
    stop: Int64[np.ndarray, "sample"]
    bos: Int64[np.ndarray, "sample"]
    part: Int64[np.ndarray, "sample"]

    @cached_property
    def lengths(self) -> Int64[np.ndarray, "sample"]:
        """Tokens of each sample."""
        return self.stop - self.start + (self.bos >= 0)


class Made(Seq[Item]):
    """A sequence whose items are made when they are asked for; nothing is kept."""

    def __init__(self, count: int, make: Callable[[int], Item]) -> None:
        self._count, self._make = count, make

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Item: ...

    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...

    def __getitem__(self, index: int | slice) -> Item | list[Item]:
        if isinstance(index, slice):
            return [self._make(i) for i in range(self._count)[index]]
        return self._make(range(self._count)[index])


@dataclass(frozen=True)
class Dataset:
    """All samples of a run.

    Attributes:
        stores: the token store of each source.
        roots: what the places of each source begin with.
        train: samples that are trained on, as indices into this data set.
        held_out: samples that are kept for evaluation.
        ledgers: for each source every token but for what supervision and the order of the run decide.
        formats: format and columns of each source.
        notes: columns that nothing uses, and the like.
        dropped: what was left out: sample, place, reason, tokens (None where it has none).
        fingerprint: hash of everything above.
        pieces: which part of which stored sequence each sample is.
    """

    stores: tuple[TokenStore, ...]
    roots: tuple[str, ...]
    train: Int64[np.ndarray, "train"]
    held_out: Int64[np.ndarray, "held_out"]
    ledgers: tuple[Ledger, ...]
    formats: tuple[str, ...]
    notes: tuple[str, ...]
    dropped: list[dict]
    fingerprint: str
    pieces: Pieces

    def __len__(self) -> int:
        return len(self.pieces.source)

    def __getitem__(self, index: int) -> Sequence:
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        pieces = self.pieces
        source = int(pieces.source[index])
        stored, start, stop, bos = (int(a[index]) for a in (pieces.stored, pieces.start, pieces.stop, pieces.bos))
        sequence = self.stores[source].sequence(stored, self.sample_ids[index], source, start, stop)
        return sequence if bos < 0 else with_bos(sequence, bos)

    def __iter__(self) -> Iterator[Sequence]:
        return self.walk(range(len(self)))

    def walk(self, samples: Iterable[int]) -> Iterator[Sequence]:
        """Samples one after the other, in little memory: pages of the stores that were read are given back."""
        seen = 0
        for index in samples:
            sequence = self[int(index)]
            yield sequence
            seen += len(sequence)
            if seen >= WALKED_TOKENS:
                self.release()
                seen = 0

    def unanswered(self) -> Int64[np.ndarray, "sample"]:
        """Training samples that hold the end of a conversation whose last message no answer follows."""
        found = []
        for source, store in enumerate(self.stores):
            is_open = np.isin(store.last_roles, (Provenance.USER, Provenance.SYSTEM, Provenance.TOOL_RESULT))
            mine = self.train[self.source_of[self.train] == source]
            stored = self.pieces.stored[mine]
            found.append(mine[is_open[stored] & (self.pieces.stop[mine] == store.lengths[stored])])
        return np.concatenate(found)

    def release(self) -> None:
        """Give back the memory of the pages that were read; what is read again comes from the file."""
        for store in self.stores:
            store.release()

    @property
    def sample_ids(self) -> Seq[str]:
        """Name of each sample."""
        return Made(len(self), self._sample_id)

    @property
    def places(self) -> Seq[str]:
        """``file:line`` of each sample."""
        return Made(len(self), self.place)

    @property
    def token_ids(self) -> Seq[np.ndarray]:
        """Token ids of each sample, as views of the stores where no beginning token is put before it.

        However many are read, pages of the stores are given back as in ``walk``.
        """
        seen = 0

        def make(index: int) -> np.ndarray:
            nonlocal seen
            ids = self._token_ids(index)
            seen += len(ids)
            if seen >= WALKED_TOKENS:
                self.release()
                seen = 0
            return ids

        return Made(len(self), make)

    def place(self, index: int) -> str:
        """``file:line`` of a sample."""
        source = int(self.pieces.source[index])
        return self.roots[source].rstrip("/") + self.stores[source].place(int(self.pieces.stored[index]))

    def _sample_id(self, index: int) -> str:
        source, part = int(self.pieces.source[index]), int(self.pieces.part[index])
        name = f"{source}:{self.stores[source].name(int(self.pieces.stored[index]))}"
        return f"{name}/part{part}" if part else name

    def _token_ids(self, index: int) -> np.ndarray:
        pieces = self.pieces
        stored, start, stop, bos = (int(a[index]) for a in (pieces.stored, pieces.start, pieces.stop, pieces.bos))
        ids = self.stores[int(pieces.source[index])].ids(stored, start, stop)
        return ids if bos < 0 else np.insert(ids, 0, bos)

    @property
    def lengths(self) -> Int64[np.ndarray, "sample"]:
        """Tokens of each sample."""
        return self.pieces.lengths

    @property
    def source_of(self) -> Int64[np.ndarray, "sample"]:
        """Source of each sample."""
        return self.pieces.source


def with_bos(sequence: Sequence, bos: int) -> Sequence:
    """Put a beginning token before a later part of raw text."""
    return Sequence(
        sequence.sample_id,
        sequence.source,
        np.insert(sequence.input_ids, 0, bos),
        np.insert(sequence.roles, 0, Provenance.BOS),
        np.insert(sequence.turns, 0, NO_TURN),
        np.insert(sequence.marks, 0, 0),
        np.insert(sequence.data_weights, 0, np.nan),
    )
