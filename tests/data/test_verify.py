"""What is checked of every sample while its text is there: each fault is planted, and named with its place."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.data.conftest import CHATML, CORPUS, SPECIALS, make_tokenizer
from tests.data.test_build import make, pairs
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from frisket.data import alignment
from frisket.data.alignment import Encoding
from frisket.data.tokens import Codec, _encoding, codec_of
from frisket.errors import DataError
from frisket.types import Provenance

ROBOT = [{"prompt": "the fox", "completion": "the \U0001f916 fox"}]


def sentencepiece(byte_fallback: bool) -> PreTrainedTokenizerFast:
    """A tokenizer that writes a space as U+2581, with or without tokens for single bytes."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=byte_fallback, fuse_unk=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    inner = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(inner)
    letters = sorted({letter for text in CORPUS for letter in text if letter.isascii()} | {"\n"})
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)] if byte_fallback else []
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<unk>", *bytes_], initial_alphabet=letters, limit_alphabet=90,
        show_progress=False,
    )  # fmt: skip
    backend.train_from_iterator([text for text in CORPUS if text.isascii()] * 4, trainer)
    backend.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in SPECIALS])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )


def normalising(normaliser) -> PreTrainedTokenizerFast:
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normaliser
    return tokenizer


@pytest.mark.parametrize(
    "tokenizer",
    [
        make_tokenizer(),
        sentencepiece(byte_fallback=True),
        normalising(normalizers.Lowercase()),
        normalising(normalizers.NFKC()),
        normalising(normalizers.Replace("o", "")),
    ],
    ids=["byte-level", "metaspace", "lowercase", "nfkc", "drops a letter"],
)
@settings(max_examples=20, deadline=None)
@given(text=st.text(max_size=12) | st.sampled_from(["\ufb01ne e\u0301", " \u2581 x", "A\u0301 \U0001f916\U0001f916 o"]))
def test_what_a_tokenizer_really_does_is_accepted(tokenizer, text, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FRISKET_CACHE", str(tmp_path_factory.mktemp("cache")))
        rows = [{"prompt": f"a {text}b", "completion": f"c{text} d"}]
        assert len(make(rows, tokenizer)) == 1


@pytest.mark.parametrize("tokenizer", [make_tokenizer(), sentencepiece(True)], ids=["byte-level", "metaspace"])
@settings(max_examples=60, deadline=None)
@given(texts=st.lists(st.text(max_size=10) | st.sampled_from(["", " ", "<s> a", "\U0001f916x", "\u2581"]), max_size=6))
def test_places_proved_from_bytes_are_those_of_the_tokenizer(tokenizer, texts):
    """The last character, which decides the provenance; the tokenizer itself gives them, more slowly."""
    codec = codec_of(tokenizer)
    data = [text.encode() for text in texts]
    found = codec.placed(data, codec.ids_of(data))
    for (own, _), theirs in zip(found, codec._plain.encode_batch(texts, add_special_tokens=False), strict=True):
        expected = _encoding(theirs)
        assert own.ids.tolist() == expected.ids.tolist()
        for one in (own, expected):
            assert one.ids.dtype == one.starts.dtype == np.int32
        assert np.array_equal(np.maximum(own.ends - 1, own.starts), np.maximum(expected.ends - 1, expected.starts))
    assert all(proved for _, proved in found) or "Metaspace" in codec._serialised


def test_a_tokenizer_of_another_kind_is_read_by_its_own_offsets():
    backend = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>"))
    assert alignment.token_bytes(backend, None) is None


def shifted(codec: Codec, by: int):
    def placed(texts, ids):
        batch = codec._plain.encode_batch([text.decode() for text in texts], add_special_tokens=False)
        found = [_encoding(each) for each in batch]
        return [(Encoding(e.ids, np.maximum(e.starts - by, 0), np.maximum(e.ends - by, 0)), False) for e in found]

    return placed


def test_shifted_offsets_are_told(monkeypatch):
    tokenizer = make_tokenizer()
    codec = codec_of(tokenizer)
    monkeypatch.setattr(codec, "placed", shifted(codec, 0))
    assert len(make(pairs(1), tokenizer)) == 1
    monkeypatch.setattr(codec, "placed", shifted(codec, 1))
    with pytest.raises(
        DataError, match=r"records:1: the tokens of messages\[\d\] \((user|assistant)\) read '.*' where the"
    ):
        make(pairs(2, "other")[1:], tokenizer)


def test_a_decoder_that_loses_text_is_told():
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.backend_tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip("!", 0, 1)])
    with pytest.raises(
        DataError,
        match=r"records:1: the tokens of messages\[1\] \(assistant\) read '.*' where the rendering has '.*gone!'",
    ):
        make([{"prompt": "Q", "completion": "It is gone!"}], tokenizer)


def test_unknown_tokens_are_counted_and_said_once():
    rows = [{"prompt": "the fox", "completion": "is lazy"}] * 2 + ROBOT * 2
    dataset = make(rows, sentencepiece(byte_fallback=False))
    assert len(dataset) == 4
    assert dataset.notes == (
        "data.0: text that the tokenizer has no token for in 2 samples; it writes <unk> (2 tokens; the first at "
        "records:3)",
    )
    assert make(rows, sentencepiece(byte_fallback=True)).notes == ()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("m.content | upper", r"messages\[0\] \(user\): it writes 'QUESTION 0\?' where the data has 'Question 0\?'"),
        ("m.content | replace('Question', 'Frage')", r"messages\[0\] \(user\): it writes 'Frage 0\?' where"),
    ],
)
def test_a_template_that_changes_what_was_written_is_told(change, said):
    tokenizer = make_tokenizer()
    with pytest.raises(DataError, match=rf"records:1: the template changes the content of {said}"):
        make(pairs(1), tokenizer, template=CHATML.replace("m.content", f"({change})"))


def test_a_tool_result_may_be_written_as_json():
    result = {"role": "tool", "content": 'say "hi"\n\u6f22'}
    rows = [{"messages": [{"role": "user", "content": "Q"}, result, {"role": "assistant", "content": "A"}]}]
    template = CHATML.replace("m.content", "(m.content | tojson if m.role == 'tool' else m.content)")
    dataset = make(rows, make_tokenizer(), template=template)
    assert (dataset[0].roles == Provenance.TOOL_RESULT).any()


def test_half_a_surrogate_pair_is_no_text():
    with pytest.raises(DataError, match=r"records:1: the text holds U\+D83D, half of a surrogate pair"):
        make([{"prompt": "Q", "completion": "\ud83d"}], make_tokenizer())


def test_a_text_without_tokens_is_told():
    tokenizer = normalising(normalizers.Replace("x", ""))
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(DataError, match=r"records:1: it has no tokens"):
        make([{"prompt": "x", "completion": "x"}], tokenizer, template=template)


def test_cut_samples_are_checked_too(tokenizer):
    template = "{{ bos_token }}{{ bos_token }}" + CHATML
    with pytest.raises(DataError, match=r"two beginning tokens"):
        make(pairs(1), tokenizer, template=template, max_tokens=10, too_long="truncate")
