"""A tokenizer, prepared: ids with the characters they stand for, and special tokens that only a template may spell."""

import hashlib
import json
import re
from collections.abc import Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from tokenizers import AddedToken, Tokenizer

from frisket.data.alignment import METASPACE, Encoding, TokenBytes, token_bytes
from frisket.data.problem import BadSample

# Stands for a special token while the text around it is encoded with special tokens switched off. An added token
# splits the text just as the special token does, so a Metaspace that marks only the first piece behaves the same.
STAND_IN = "\U0010fffd"
_LARGEST_ID = 2**31 - 1  # ids are stored as int32


@dataclass(frozen=True)
class Special:
    """A special token that the template wrote: characters ``start`` to ``end`` of the rendering."""

    start: int
    end: int
    token_id: int


class Codec:
    """What rendering and encoding need of one tokenizer.

    The tokenizer's backend is copied: its post-processor goes (it adds tokens and trims offsets), and so do truncation
    and padding that earlier calls may have left on it.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._serialised: str = tokenizer.backend_tokenizer.to_str()
        self._plain = _copy(self._serialised)
        added = self._plain.get_added_tokens_decoder()
        self._specials = {token.content: token_id for token_id, token in added.items() if token.special}
        self._pattern = _pattern([token for token in added.values() if token.special])
        self.special_ids = frozenset(self._specials.values())
        self.names: dict[str, str] = {k: v for k, v in tokenizer.special_tokens_map.items() if isinstance(v, str)}
        self.bos_id: int | None = tokenizer.bos_token_id
        self.eos_id: int | None = tokenizer.eos_token_id
        self.unk_id: int = -1 if tokenizer.unk_token_id is None else tokenizer.unk_token_id
        first = tokenizer("a").input_ids[:1]
        self.adds_bos = self.bos_id is not None and first == [self.bos_id]

    @cached_property
    def fingerprint(self) -> str:
        """Hash of everything that decides which ids a text gets."""
        parts = [self._serialised, json.dumps(self.names, sort_keys=True), str(self.adds_bos)]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    @cached_property
    def _cutting(self) -> Tokenizer:
        backend = _copy(self._serialised)
        backend.add_tokens([AddedToken(STAND_IN, special=False, normalized=False)])
        backend.encode_special_tokens = True
        return backend

    @cached_property
    def _bytes(self) -> TokenBytes | None:
        return token_bytes(self._plain, json.loads(self._serialised)["decoder"])

    def decode(self, ids: Seq[list[int]]) -> list[str]:
        """Text of each run of tokens."""
        return self._plain.decode_batch(list(ids), skip_special_tokens=False)

    def normalised(self, text: str) -> str:
        """Text as the tokenizer sees it, and as its decoder gives it back."""
        normaliser = self._plain.normalizer
        seen = normaliser.normalize_str(text) if normaliser else text
        return seen.replace(METASPACE, " ") if self._marks_space else seen

    def is_same(self, decoded: str, text: str) -> bool:
        """Whether decoded tokens are ``text``; a decoder of marked spaces may lose those at the beginning."""
        expected = self.normalised(text)
        return decoded == expected or (self._marks_space and decoded.lstrip(" ") == expected.lstrip(" "))

    @cached_property
    def _marks_space(self) -> bool:
        return self._bytes is not None and self._bytes.marks_space

    @cached_property
    def size(self) -> int:
        """How many ids the tokenizer has, added tokens included."""
        return self._plain.get_vocab_size()

    def has_token(self, token_id: int) -> bool:
        """Whether ``token_id`` is one of them; a vocabulary may have gaps."""
        return 0 <= token_id <= _LARGEST_ID and self._plain.id_to_token(token_id) is not None

    def knows(self, token: str) -> bool:
        """Whether ``token`` is one special token."""
        return token in self._specials

    def specials(self, text: str, start: int = 0, end: int | None = None) -> Iterator[Special]:
        """Find the special tokens that ``text[start:end]`` spells, with the white space that they swallow."""
        for match in self._pattern.finditer(text, start, len(text) if end is None else end):
            word = match.group()
            token_id = self._specials[word] if word in self._specials else self._specials[word.strip()]
            yield Special(match.start(), match.end(), token_id)

    def ids_of(self, texts: Seq[bytes]) -> list[list[int]]:
        """Encode as ``tokenizer(text, add_special_tokens=False)`` does; other threads may run meanwhile."""
        batch = self._plain.encode_batch_fast([text.decode() for text in texts], add_special_tokens=False)
        return [found.ids for found in batch]

    def placed(self, texts: Seq[bytes], ids: Seq[list[int]]) -> list[tuple[Encoding, bool]]:
        """Where the tokens of ``ids_of`` lie in their texts, and whether the tokens' own bytes prove it.

        A text that they do not prove is encoded again, for the offsets that the tokenizer gives.
        """
        aligned = self._bytes.align(texts, ids) if self._bytes else [None] * len(texts)
        others = [i for i, found in enumerate(aligned) if found is None]
        batch = self._plain.encode_batch([texts[i].decode() for i in others], add_special_tokens=False)
        again = dict(zip(others, map(_encoding, batch), strict=True))
        return [(again[i], False) if found is None else (found, True) for i, found in enumerate(aligned)]

    def encode_plain(self, text: str) -> Encoding:
        """Encode one text as ``tokenizer(text, add_special_tokens=False)`` does.

        Raises:
            BadSample: it cannot be encoded.
        """
        data = [utf8(text)]
        ((encoding, _),) = self.placed(data, self.ids_of(data))
        return encoding

    def encode_cut(self, text: str, specials: Seq[Special]) -> Encoding:
        """Encode with only ``specials`` as special tokens: everything else is text, whatever it spells.

        Raises:
            BadSample: the text cannot be encoded without making a special token of it.
        """
        if STAND_IN in text:
            raise BadSample(f"the text holds U+{ord(STAND_IN):X}, which frisket needs to keep special tokens apart")
        pieces, starts, ends, at = [], [], [], 0
        for special in specials:
            between = np.arange(at, special.start)
            pieces += [text[at : special.start], STAND_IN]
            starts += [between, [special.start]]
            ends += [between + 1, [special.end]]
            at = special.end
        between = np.arange(at, len(text))
        pieces.append(text[at:])
        start_of, end_of = np.concatenate([*starts, between]), np.concatenate([*ends, between + 1])
        found = _encoding(self._cutting.encode(utf8("".join(pieces)).decode(), add_special_tokens=False))
        ids = found.ids.copy()
        is_cut = ids == self._cutting.token_to_id(STAND_IN)
        if np.isin(ids[~is_cut], list(self.special_ids)).any():
            raise BadSample("the text spells a special token, and this tokenizer cannot encode that as plain text")
        ids[is_cut] = [special.token_id for special in specials]
        last = np.maximum(found.ends - 1, found.starts)
        return Encoding(ids, start_of[found.starts].astype(np.int32), end_of[last].astype(np.int32))


def utf8(text: str) -> bytes:
    """Text as UTF-8.

    Raises:
        BadSample: it holds half of a surrogate pair, which is no character.
    """
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise BadSample(
            f"the text holds U+{ord(text[error.start]):X}, half of a surrogate pair: no character"
        ) from error


_codecs: WeakKeyDictionary[Any, tuple[int, Codec]] = WeakKeyDictionary()


def codec_of(tokenizer: Any) -> Codec:
    """The prepared form of a tokenizer; made once, and again when tokens have been added to it."""
    known = _codecs.get(tokenizer)
    if known is None or known[0] != len(tokenizer):
        known = (len(tokenizer), Codec(tokenizer))
        _codecs[tokenizer] = known
    return known[1]


def _copy(serialised: str) -> Tokenizer:
    backend = Tokenizer.from_str(serialised)
    backend.post_processor = None  # type: ignore[assignment]
    backend.no_truncation()
    backend.no_padding()
    return backend


def _pattern(tokens: Seq[AddedToken]) -> re.Pattern[str]:
    if not tokens:
        return re.compile(r"(?!)")
    words = []
    for token in sorted(tokens, key=lambda t: len(t.content), reverse=True):
        word = re.escape(token.content)
        word = rf"(?<!\w){word}(?!\w)" if token.single_word else word
        words.append((r"\s*" if token.lstrip else "") + word + (r"\s*" if token.rstrip else ""))
    return re.compile("|".join(words))


def _encoding(found: Any) -> Encoding:
    offsets = np.array(found.offsets, np.int32).reshape(-1, 2)
    return Encoding(np.array(found.ids, np.int32), offsets[:, 0], offsets[:, 1])
