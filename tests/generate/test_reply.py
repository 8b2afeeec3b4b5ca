"""An answer in pieces: its text is what decoding gives, and it knows why it ended."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from frisket.generate.reply import Reply, as_text

BYTES = [f"<0x{n:02X}>" for n in range(256)]
WORDS = ["▁the", "▁a", "b", "▁", "é", "<0xF0>"]


def spaced() -> Tokenizer:
    """In the manner of Llama 2: a byte that is no word falls back, and the first space is dropped."""
    pieces = [*BYTES, *(word for word in WORDS if word not in BYTES)]
    tokenizer = Tokenizer(models.BPE({piece: n for n, piece in enumerate(pieces)}, []))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


TOKENIZER = spaced()


def decode(ids: list[int]) -> str:
    return TOKENIZER.decode(ids)


@given(st.lists(st.integers(0, len(BYTES) + len(WORDS) - 2), max_size=12))
def test_the_pieces_of_any_tokens_are_what_decoding_gives(ids):
    """But where broken bytes follow whole ones without a word between; the reply's text is right there, too."""
    reply = Reply((i for i in ids), decode, 99)
    shown = "".join(reply)
    assert reply.text == decode(ids)
    assert shown == decode(ids) or "\ufffd" in decode(ids)


@given(st.text(max_size=8))
def test_characters_of_several_bytes_come_whole(text):
    """From bytes alone; a first space is dropped by the tokenizer itself."""
    pieces = list(as_text(decode, text.encode()))
    assert "".join(pieces) == text.removeprefix(" ")
    assert all(piece in text for piece in pieces)
    assert "\ufffd" in text or all("\ufffd" not in piece for piece in pieces)


def test_a_character_that_stays_incomplete_is_shown_as_decoding_shows_it():
    ids = [*b"ab", 0xE2, 0x82]
    assert list(as_text(decode, ids)) == ["a", "b", decode(ids)[2:]]
    assert decode(ids)[2:]


@pytest.mark.parametrize(
    ("tokens", "limit", "is_context", "ended"),
    [(b"abc", 9, False, "end"), (b"abc", 3, False, "length"), (b"abc", 3, True, "context"), (b"", 3, False, "end")],
)
def test_a_reply_knows_why_it_ended(tokens, limit, is_context, ended):
    reply = Reply((i for i in tokens), decode, limit, is_context)
    assert reply.ended is None
    assert "".join(reply) == tokens.decode()
    assert (reply.tokens, reply.ended) == (len(tokens), ended)
    assert (reply.seconds > 0) == bool(tokens)


def test_a_reply_that_is_left_was_stopped():
    left = []

    def tokens():
        try:
            yield from b"abcdef"
        finally:
            left.append("closed")

    reply = Reply(tokens(), decode, 9)
    pieces = iter(reply)
    assert next(pieces) == "a"
    pieces.close()
    assert left == ["closed"]
    assert (reply.tokens, reply.ended) == (1, "stopped")
