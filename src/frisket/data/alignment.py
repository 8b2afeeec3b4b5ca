"""Where each token lies in its text, proved from the tokens' own bytes.

The bytes of a text's tokens, one after the other, are compared with the bytes of the text. Where they are equal, every
token's place follows from the lengths alone, and every run of tokens decodes to the slice that it stands for: nothing
that the tokenizer says about offsets is believed. A text for which they differ (its tokenizer normalises it, or has no
token for some of it) is left to the caller.
"""

import re
from collections.abc import Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from jaxtyping import Int32, Int64, UInt8
from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel

METASPACE = "\u2581"
_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


@dataclass(frozen=True)
class Encoding:
    """Token ids and the characters each stands for (several tokens of one character share its place)."""

    ids: Int32[np.ndarray, "token"]
    starts: Int32[np.ndarray, "token"]
    ends: Int32[np.ndarray, "token"]


@dataclass(frozen=True)
class TokenBytes:
    """The bytes that each token of a vocabulary stands for.

    Attributes:
        data: of all tokens, one after the other.
        starts: where each token's bytes begin.
        lengths: bytes of each token; 0 where they are not known.
        marks_space: whether a space is put before a text (and a decoder takes it away again).
    """

    data: UInt8[np.ndarray, "byte"]
    starts: Int32[np.ndarray, "vocab"]
    lengths: Int32[np.ndarray, "vocab"]
    marks_space: bool

    def align(self, texts: Seq[bytes], ids: Seq[list[int]]) -> list[Encoding | None]:
        """Find the characters of each token.

        Args:
            texts: UTF-8.
            ids: the tokens of each text.

        Returns:
            For each text its tokens and their places, or None where their bytes are not the text's.
        """
        counts = np.fromiter(map(len, ids), np.int64, len(ids))
        flat = np.fromiter(chain.from_iterable(ids), np.int32, int(counts.sum()))
        lengths = self.lengths[flat]
        sizes = np.fromiter(map(len, texts), np.int64, len(texts))
        spare = _sums(lengths, counts) - sizes
        fits = (spare == 0) | ((spare == 1) & self.marks_space)
        fits &= _sums(lengths == 0, counts) == 0
        parts = [b" " + text if more else text for text, more, fit in zip(texts, spare, fits, strict=True) if fit]
        tokens = np.repeat(fits, counts)
        found = _places(self, flat[tokens], lengths[tokens], b"".join(parts), (sizes + spare)[fits])
        same = iter(found)
        encodings: list[Encoding | None] = []
        at = 0
        for count, fit, lead in zip(counts.tolist(), fits.tolist(), spare.tolist(), strict=True):
            places = next(same) if fit else None
            if places is None:
                encodings.append(None)
            else:
                starts, ends = (np.maximum(side - lead, 0) for side in places) if lead else places
                encodings.append(Encoding(flat[at : at + count], starts, ends))
            at += count
        return encodings


def _places(
    table: TokenBytes, ids: np.ndarray, lengths: np.ndarray, text: bytes, sizes: Int64[np.ndarray, "text"]
) -> list[tuple[np.ndarray, np.ndarray] | None]:
    """First and last character (exclusive) of the tokens of each text, where their bytes are the text's."""
    wanted = np.frombuffer(text, np.uint8)
    stops = np.cumsum(lengths, dtype=np.int32)
    starts = stops - lengths
    spelled = table.data[np.repeat(table.starts[ids] - starts, lengths) + np.arange(len(wanted), dtype=np.int32)]
    bounds = np.concatenate([[0], np.cumsum(sizes)])
    cuts = np.searchsorted(starts, bounds).tolist()
    wrong = set((np.searchsorted(bounds, np.flatnonzero(spelled != wanted), side="right") - 1).tolist())
    if text.isascii():
        first, last, begins = starts, stops, bounds
    else:
        character = np.cumsum((wanted & 0xC0) != 0x80, dtype=np.int32) - 1
        first, last = character[starts], character[stops - 1] + 1
        begins = np.append(character, character[-1] + 1)[bounds]
    result: list[tuple[np.ndarray, np.ndarray] | None] = []
    for number, (low, high, begin) in enumerate(zip(cuts[:-1], cuts[1:], begins.tolist(), strict=False)):
        result.append(None if number in wrong else (first[low:high] - begin, last[low:high] - begin))
    return result


def _sums(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Sum of each run of ``counts`` values."""
    total = np.concatenate([[0], np.cumsum(values, dtype=np.int64)])
    ends = np.cumsum(counts)
    return total[ends] - total[ends - counts]


def token_bytes(backend: Tokenizer, decoder: Any) -> TokenBytes | None:
    """The bytes of every token, for byte-level tokenizers and those that write a space as U+2581; else None.

    Args:
        backend: the tokenizer.
        decoder: its serialised decoder, which tells which of the two it is.
    """
    said = str(decoder)
    vocabulary = backend.get_vocab(with_added_tokens=True)
    if "'ByteLevel'" in said:
        alphabet = _byte_level_alphabet()
        by_id = {i: _byte_level(word, alphabet) for word, i in vocabulary.items()}
    elif METASPACE in said:
        by_id = {i: _metaspace(word) for word, i in vocabulary.items()}
    else:
        return None
    by_id |= {i: token.content.encode() for i, token in backend.get_added_tokens_decoder().items()}
    return _table([by_id.get(i, b"") for i in range(max(by_id, default=-1) + 1)], METASPACE in said)


def _table(words: Iterable[bytes], marks_space: bool) -> TokenBytes:
    words = list(words)
    lengths = np.fromiter(map(len, words), np.int32, len(words))
    starts = (np.cumsum(lengths) - lengths).astype(np.int32)
    return TokenBytes(np.frombuffer(b"".join(words), np.uint8), starts, lengths, marks_space)


def _byte_level_alphabet() -> dict[int, int]:
    """Character to byte, as GPT-2 writes bytes: printable ones as themselves, the others from U+0100 on, in order."""
    letters = sorted(map(ord, ByteLevel.alphabet()))
    own = [letter for letter in letters if letter < 256]
    others = sorted(set(range(256)) - set(own))
    return {letter: letter for letter in own} | dict(zip(letters[len(own) :], others, strict=True))


def _byte_level(word: str, alphabet: dict[int, int]) -> bytes:
    if any(ord(letter) not in alphabet for letter in word):
        return b""
    return word.translate(alphabet).encode("latin-1")


def _metaspace(word: str) -> bytes:
    byte = _BYTE_TOKEN.fullmatch(word)
    return bytes([int(byte[1], 16)]) if byte else word.replace(METASPACE, " ").encode("utf-8", "replace")
