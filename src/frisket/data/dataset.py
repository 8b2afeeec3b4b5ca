"""The samples of a run: pieces of stored sequences, some of them held out."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from frisket.data.chat import NO_TURN
from frisket.data.store import TokenStore
from frisket.types import Ledger, Provenance, Sequence


@dataclass(frozen=True)
class Pieces:
    """Which part of which stored sequence each sample is; all arrays have one entry a sample.

    Attributes:
        source: index of the source.
        stored: index in the source's store.
        start: first token of the part.
        stop: end of the part.
        bos: beginning token that is put before a later part of raw text; -1 for none.
    """

    source: Int64[np.ndarray, "sample"]
    stored: Int64[np.ndarray, "sample"]
    start: Int64[np.ndarray, "sample"]
    stop: Int64[np.ndarray, "sample"]
    bos: Int64[np.ndarray, "sample"]

    @property
    def lengths(self) -> Int64[np.ndarray, "sample"]:
        """Tokens of each sample."""
        return self.stop - self.start + (self.bos >= 0)


@dataclass(frozen=True)
class Dataset:
    """All samples of a run.

    Attributes:
        stores: the token store of each source.
        train: samples that are trained on, as indices into this data set.
        held_out: samples that are kept for evaluation.
        ledgers: for each source every token but for what supervision and the order of the run decide.
        formats: format and columns of each source.
        notes: columns that nothing uses, and the like.
        dropped: what was left out: sample, place, reason, tokens (None where it has none).
        fingerprint: hash of everything above.
        pieces: which part of which stored sequence each sample is.
        sample_ids: name of each sample.
        places: ``file:line`` of each sample.
    """

    stores: tuple[TokenStore, ...]
    train: Int64[np.ndarray, "train"]
    held_out: Int64[np.ndarray, "held_out"]
    ledgers: tuple[Ledger, ...]
    formats: tuple[str, ...]
    notes: tuple[str, ...]
    dropped: list[dict]
    fingerprint: str
    pieces: Pieces
    sample_ids: tuple[str, ...]
    places: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.sample_ids)

    def __getitem__(self, index: int) -> Sequence:
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        pieces = self.pieces
        source = int(pieces.source[index])
        stored, start, stop, bos = (int(a[index]) for a in (pieces.stored, pieces.start, pieces.stop, pieces.bos))
        sequence = self.stores[source].sequence(stored, self.sample_ids[index], source, start, stop)
        return sequence if bos < 0 else with_bos(sequence, bos)

    def __iter__(self) -> Iterator[Sequence]:
        return (self[index] for index in range(len(self)))

    @property
    def lengths(self) -> Int64[np.ndarray, "sample"]:
        """Tokens of each sample."""
        return self.pieces.lengths

    @property
    def source_of(self) -> Int64[np.ndarray, "sample"]:
        """Source of each sample."""
        return self.pieces.source

    def place(self, index: int) -> str:
        """``file:line`` of a sample."""
        return self.places[index]


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
