"""An answer while it is made: its text in pieces, how fast it came, and why it ended."""

import time
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Literal

Decode = Callable[[list[int]], str]
Ended = Literal["end", "length", "context", "stopped"]
PART = "\ufffd"
"""What bytes decode to that are no whole character yet."""


def as_text(decode: Decode, tokens: Iterable[int]) -> Iterator[str]:
    """Turn tokens into pieces of text that, joined, are what ``decode`` gives for all of them.

    A character spread over several tokens comes when it is complete. Everything is decoded again for each token, since
    only the whole is sure to be right (leading spaces, incomplete bytes). One case cannot be told ahead: where
    a tokenizer falls back to bytes and a broken one follows whole ones, ``decode`` gives up the whole run of bytes.
    """
    ids: list[int] = []
    shown = ""
    for token in tokens:
        ids.append(token)
        whole = decode(ids).rstrip(PART)
        if len(whole) > len(shown) and whole.startswith(shown):
            yield whole[len(shown) :]
            shown = whole
    rest = decode(ids)[len(shown) :]
    if rest:
        yield rest


class Reply:
    """One answer; iterate over it for its text, once.

    Args:
        tokens: new tokens, without the one that ends the answer; closed when the reader leaves.
        decode: token ids to text.
        limit: most tokens that can come.
        is_context: the limit is what the model's context leaves, not what was asked for.

    Attributes:
        seconds: from the first request to the last token, reading the prompt included.
        ended: why, once it is over: ``end`` (the model ended its turn), ``length`` (as long as asked), ``context`` (the
            model takes no more), ``stopped`` (the reader left).
    """

    def __init__(self, tokens: Generator[int], decode: Decode, limit: int, is_context: bool = False) -> None:
        self._source, self._decode = tokens, decode
        self._limit, self._is_context = limit, is_context
        self._ids: list[int] = []
        self.seconds = 0.0
        self.ended: Ended | None = None

    @property
    def tokens(self) -> int:
        """How many tokens there are."""
        return len(self._ids)

    @property
    def text(self) -> str:
        """What they decode to."""
        return self._decode(self._ids)

    def __iter__(self) -> Generator[str]:
        try:
            yield from as_text(self._decode, self._counted())
            self.ended = "end" if self.tokens < self._limit else "context" if self._is_context else "length"
        finally:
            self._source.close()  # ends decoding now: the next answer must not meet a model that is still in use
            self.ended = self.ended or "stopped"

    def _counted(self) -> Iterator[int]:
        began = time.perf_counter()
        for token in self._source:
            self._ids.append(token)
            self.seconds = time.perf_counter() - began
            yield token
