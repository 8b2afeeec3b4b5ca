"""Windows of text, and bits per character against a count by hand."""

import math

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from frisket.errors import DataError
from frisket.evaluate import text
from frisket.evaluate.losses import sample_losses
from frisket.evaluate.text import Text, file_windows, standard_windows, windows
from frisket.hf.attention import own_attention

POEM = "Tyger Tyger, burning bright,\nIn the forests of the night; naïve → ÿ\n" * 3


def test_windows_cut_the_text_without_loss(tokenizer):
    made = windows("text", [[Text("poem", POEM)]], tokenizer, None, 50)
    whole = [i for s in made.sequences for i in s.input_ids[1:]]
    assert whole == tokenizer(POEM, add_special_tokens=False)["input_ids"]
    assert all(s.input_ids[0] == tokenizer.bos_token_id and len(s) <= 50 for s in made.sequences)
    assert made.characters.sum() == pytest.approx(len(POEM), abs=3), "only a character cut by a window counts twice"


def test_bits_per_character_by_hand(model, tokenizer, instruments):
    content = "plain text, one byte a character"
    made = windows("text", [[Text("line", content)]], tokenizer, None, 100)
    ids = torch.tensor([[0, *tokenizer(content, add_special_tokens=False)["input_ids"]]])
    with torch.no_grad(), own_attention(model):
        log_p = torch.log_softmax(model(input_ids=ids, use_cache=False).logits[0], -1)
    bits = -sum(float(log_p[i, ids[0, i + 1]]) for i in range(len(content))) / math.log(2)
    losses = sample_losses(model, made.weighted(), instruments)
    measure = made.bits(losses, np.arange(1))
    assert measure.value == pytest.approx(bits / len(content), rel=1e-6)
    assert made.measure_name == "bits_per_character_text"


def test_without_bos_the_first_token_is_neither_predicted_nor_counted(tokenizer):
    without = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    made = windows("text", [[Text("poem", "abcdefgh")]], without, None, 5)
    assert [len(s) for s in made.sequences] == [5, 3]
    assert made.characters.tolist() == [4, 2]


def test_windows_come_in_turn_and_from_preferred_texts_first(tokenizer):
    groups = [[Text("a", "a" * 25), Text("b", "b" * 15)], [Text("c", "c" * 100)]]
    made = windows("text", groups, tokenizer, 45, 11)
    heads = [tokenizer.decode(s.input_ids[1:2]) for s in made.sequences]
    assert heads == ["a", "b", "a", "b", "a"]
    assert made.texts == ("a", "b")
    assert windows("text", groups, tokenizer, 60, 11).texts == ("a", "b", "c")


def test_the_running_python_has_prose_and_code(tokenizer):
    prose, code = standard_windows(tokenizer, 4000)
    assert (prose.name, code.name) == ("prose", "code")
    assert set(code.texts) <= set(text.CODE[0])
    assert prose.texts[0] == "assert"
    assert prose.version.count(".") == 2
    for made in (prose, code):
        assert 4000 <= sum(len(s) for s in made.sequences) <= 4000 + text.WINDOW_TOKENS
        assert len({s.sample_id for s in made.sequences}) == len(made.sequences)
    assert standard_windows(tokenizer, 0) == []


def test_what_this_python_lacks_is_left_out(tokenizer, monkeypatch):
    monkeypatch.setattr(text, "PROSE", (("no-such-topic",),))
    monkeypatch.setattr(text, "CODE", (("heapq.py", "no_such_module.py"),))
    (code,) = standard_windows(tokenizer, 1000)
    assert code.texts == ("heapq.py",)


def test_an_own_text_file(tokenizer, tmp_path):
    path = tmp_path / "poem.txt"
    path.write_text(POEM, encoding="utf-8")
    made = file_windows(str(path), tokenizer, None)
    assert made.texts == (str(path),)
    assert made.version == ""


def test_a_file_that_cannot_be_used(tokenizer, tmp_path):
    path = tmp_path / "x.txt"
    with pytest.raises(DataError, match=r"x.txt: No such file or directory.\nName a UTF-8 text file"):
        file_windows(str(path), tokenizer, None)
    path.write_bytes(b"abc\xff")
    with pytest.raises(DataError, match="byte 3 is not UTF-8"):
        file_windows(str(path), tokenizer, None)
    path.write_text(" \n")
    with pytest.raises(DataError, match="holds no text"):
        file_windows(str(path), tokenizer, None)
