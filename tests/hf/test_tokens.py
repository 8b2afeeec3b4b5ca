"""Added tokens, the padding token, and the chat template that lies beside trained weights."""

import json
import math
import re
from types import SimpleNamespace

import pytest
import torch
from tests.models import VOCAB, samples, tiny
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from frisket.attend.pack import pack
from frisket.data.chat import load_template
from frisket.data.tokens import codec_of
from frisket.errors import ConfigError
from frisket.hf import load, tokens
from frisket.hf.forward import hidden_states
from frisket.hf.heads import head_of, logits_of
from frisket.hf.settings import ModelSettings

WORDS = ["a", "b", "<unk>", "<s>", "</s>", *pre_tokenizers.ByteLevel.alphabet()]
BEFORE = len(set(WORDS))
ROWS = pack(samples(0, [9, 4]), "isolated", 64)[0]


def tokenizer(specials=("<s>", "</s>"), **names):
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(WORDS))}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=backend, **{"bos_token": "<s>", "eos_token": "</s>", **names})
    made.add_tokens([AddedToken(token, special=True, normalized=False) for token in specials], special_tokens=True)
    return made


def prepared(made, **settings):
    return tokens.prepare(made, ModelSettings(**settings))


def test_new_tokens_are_special_and_known_ones_are_said_and_left():
    made = prepared(tokenizer(), add_tokens=("<|x|>", "</s>", "<|y|>"))
    assert made.added == (BEFORE, BEFORE + 1)
    assert made.lines[:2] == (f"<|x|>: added as token {BEFORE:,}", f"<|y|>: added as token {BEFORE + 1:,}")
    assert made.lines[2] == "</s>: known to the tokenizer already, so not added; its rows stay as they are"
    assert made.tokenizer("a<|x|>b").input_ids == [0, BEFORE, 1]
    assert codec_of(made.tokenizer).knows("<|x|>")
    again = prepared(made.tokenizer, add_tokens=("<|x|>", "<|y|>"))
    assert again.added == ()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("<|x|>", ""), "model.add_tokens.1 = '' is empty: text cannot be searched for it."),
        ((" ",), "model.add_tokens.0 = ' ' is empty"),
        (("<|x|>", "<|y|>", "<|x|>"), "model.add_tokens.2 = '<|x|>' is given twice.\nLeave one of them out."),
    ],
)
def test_empty_and_repeated_tokens_are_refused(given, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        prepared(tokenizer(), add_tokens=given)


def test_added_tokens_change_the_key_of_the_token_store():
    plain, grown = (codec_of(prepared(tokenizer(), add_tokens=new).tokenizer) for new in ((), ("<|x|>",)))
    assert plain.fingerprint != grown.fingerprint


RESERVED = ("<s>", "</s>", "<|reserved_special_token_0|>", "<|reserved_special_token_1|>")


@pytest.mark.parametrize(
    ("specials", "names", "chosen", "said"),
    [
        (("<s>", "</s>", "<pad>"), {"pad_token": "<pad>"}, "<pad>", None),
        (("<s>", "</s>", "<pad>"), {}, "<pad>", "padding: the tokenizer has none; now <pad>"),
        (("<s>", "</s>", "<pad>"), {"pad_token": "</s>"}, "<pad>", "padding: </s> ends the text as well; now <pad>"),
        (RESERVED, {"pad_token": "</s>"}, RESERVED[2], "now <|reserved_special_token_0|>"),
        ((*RESERVED, "<|finetune_right_pad_id|>"), {}, "<|finetune_right_pad_id|>", "now <|finetune_right_pad_id|>"),
        (("<s>", "</s>"), {"unk_token": "<unk>"}, "<unk>", "padding: the tokenizer has none; now <unk>"),
        (("<s>", "</s>"), {"unk_token": "</s>"}, None, "left without one, since no token is free for it"),
        (("</s>",), {"bos_token": "</s>", "unk_token": "</s>", "pad_token": "</s>"}, None, "left without one"),
    ],
)
def test_padding_is_never_the_end(specials, names, chosen, said, tmp_path):
    made = prepared(tokenizer(specials, **names))
    assert made.tokenizer.pad_token == chosen
    assert made.lines == () if said is None else said in made.lines[0]
    made.tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.pad_token == chosen
    assert again.pad_token_id != again.eos_token_id


def test_padding_is_no_other_end_either(tmp_path):
    specials = ("<s>", "</s>", "<|end|>", "<pad>", "<|im_end|>")
    stop = tokens.prepare(tokenizer(specials, pad_token="<|end|>"), ModelSettings(), ends=(BEFORE, 4))
    assert tokenizer(specials).convert_tokens_to_ids("<|end|>") == BEFORE
    assert stop.lines == ("padding: <|end|> ends the text as well; now <pad>",)
    own = tokenizer(specials, pad_token="<|end|>")
    own.chat_template = "{{ messages[0].content + '<|end|>' }}"
    assert prepared(own).lines == ("padding: <|end|> is written by the chat template as well; now <pad>",)
    built_in = prepared(tokenizer(specials, pad_token="<|im_end|>"), template="chatml")
    assert built_in.tokenizer.pad_token == "<pad>"
    everything = tokens.prepare(tokenizer(specials, pad_token="<pad>"), ModelSettings(), ends=(BEFORE,))
    assert everything.tokenizer.pad_token is None
    assert prepared(tokenizer(specials, pad_token="<|end|>"), template=str(tmp_path / "gone")).lines == ()


def brought(**names):
    """As Qwen2's class brings ``<|endoftext|>``: a padding token behind all rows of a model with its own vocabulary."""
    made = tokenizer(("<|free|>", "<|reserved_0|>", "<|reserved_1|>", "<|brought|>"), **names)
    made.pad_token = "<|brought|>"
    return made


def test_padding_has_a_row():
    for names in ({}, {"unk_token": "<unk>"}):
        made = tokens.prepare(brought(**names), ModelSettings(), rows=BEFORE + 2)
        assert made.lines == ("padding: <|brought|> has no row; now <|reserved_0|>",)
        assert made.tokenizer.pad_token_id == BEFORE + 1
    made = tokens.prepare(brought(unk_token="<unk>"), ModelSettings(), rows=BEFORE)
    assert made.tokenizer.pad_token == "<unk>"
    made = tokens.prepare(tokenizer(RESERVED, unk_token=RESERVED[3]), ModelSettings(), rows=BEFORE)
    assert made.lines == ("padding: the tokenizer has none; left without one, since no token is free for it",)
    grown = tokens.prepare(tokenizer(("<|free|>",)), ModelSettings(add_tokens=("<pad>",)), rows=BEFORE + 1)
    assert (grown.tokenizer.pad_token, grown.tokenizer.pad_token_id) == ("<pad>", BEFORE + 1)


@pytest.mark.parametrize("is_stored", [False, True])
def test_the_rows_are_those_of_the_model_s_files(tmp_path, is_stored):
    """Beside trained weights a padding token may stand on a row that was added."""
    brought().save_pretrained(tmp_path / "tokenizer")
    tiny(dtype=torch.float32, vocab_size=BEFORE + 2).save_pretrained(tmp_path / "model")
    settings = ModelSettings(path=str(tmp_path / "model"), tokenizer=str(tmp_path / "tokenizer"))
    chosen = load.load_tokenizer(settings, is_stored=is_stored).pad_token
    assert chosen == ("<|brought|>" if is_stored else "<|reserved_0|>")
    nowhere = settings.model_copy(update={"path": str(tmp_path / "nowhere")})
    assert load.load_tokenizer(nowhere).pad_token == "<|brought|>"


def test_the_ends_of_a_model_are_those_of_its_generation_config(tmp_path):
    settings = ModelSettings(path=str(tmp_path))
    assert load.ending_ids(settings) == ()
    for told, ends in (([7, 9], (7, 9)), (7, (7,)), (None, ())):
        (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": told}))
        assert load.ending_ids(settings) == ends


def test_a_reserved_token_that_a_template_writes_is_not_free(tmp_path):
    own = tokenizer(RESERVED)
    own.chat_template = "{{ '<|reserved_special_token_0|>' }}"
    assert prepared(own).tokenizer.pad_token == "<|reserved_special_token_1|>"
    (tmp_path / "mine.jinja").write_text("{{ '<|reserved_special_token_1|>' }}")
    other = tokenizer(RESERVED, unk_token="<unk>")
    other.chat_template = "{{ '<|reserved_special_token_0|>' }}"
    assert prepared(other, template=str(tmp_path / "mine.jinja")).tokenizer.pad_token == "<unk>"


def test_saved_configurations_name_the_tokenizers_padding(tmp_path):
    end, unknown = WORDS.index("</s>"), WORDS.index("<unk>")
    for made, expected in ((tokenizer(unk_token="<unk>", pad_token="</s>"), unknown), (tokenizer(), None)):
        model = tiny(dtype=torch.float32, pad_token_id=end, eos_token_id=end)
        model.generation_config.pad_token_id = end
        load.save_model(model, prepared(made).tokenizer, tmp_path, torch.float32)
        for name in ("config.json", "generation_config.json"):
            saved = json.loads((tmp_path / name).read_text())
            assert saved["eos_token_id"] == end
            assert saved.get("pad_token_id") == expected


def test_the_row_of_the_padding_token_learns_like_any_other():
    """transformers drops its gradient, and where padding is the end token, that of the end token."""
    model = tiny(dtype=torch.float32, pad_token_id=5)
    assert model.get_input_embeddings().padding_idx == 5
    load.ready(model)
    ROWS.input_ids[0, 3] = 5
    hidden_states(model, ROWS).sum().backward()
    assert model.get_input_embeddings().weight.grad[5].norm() > 0


@pytest.mark.parametrize(
    ("family", "changes"),
    [("llama", {}), ("llama", {"tie_word_embeddings": True}), ("gemma3", {}), ("cohere", {}), ("qwen3", {})],
)
def test_new_rows_are_the_mean_and_known_ones_keep_their_bytes(family, changes):
    model = tiny(family, dtype=torch.float32, **changes)
    tables = [model.get_input_embeddings(), model.get_output_embeddings()]
    was = [table.weight.detach().clone() for table in tables]
    kind, tied = type(tables[0]), tables[0].weight is tables[1].weight
    tokens.grow(model, (VOCAB, VOCAB + 1))
    tables = [model.get_input_embeddings(), model.get_output_embeddings()]
    assert type(tables[0]) is kind
    assert (tables[0].weight is tables[1].weight) == tied
    assert model.config.get_text_config().vocab_size == VOCAB + 2
    for table, before in zip(tables, was, strict=True):
        assert torch.equal(table.weight[:VOCAB], before)
        assert torch.allclose(table.weight[VOCAB:], before.double().mean(0).float().expand(2, -1), atol=1e-7)


def test_a_base_with_room_is_not_resized():
    model = tiny(dtype=torch.float32)
    before = model.get_input_embeddings().weight.detach().clone()
    tokens.grow(model, (60, 61))
    after = model.get_input_embeddings().weight
    assert after.shape == before.shape
    assert torch.equal(after[:60], before[:60])
    assert torch.equal(after[62:], before[62:])
    assert torch.allclose(after[60], before[:60].mean(0), atol=1e-7)


def test_a_bias_of_the_head_gets_its_mean_too():
    model = tiny(dtype=torch.float32)
    model.set_output_embeddings(torch.nn.Linear(32, VOCAB))
    tokens.grow(model, (VOCAB,))
    bias = model.get_output_embeddings().bias
    assert bias.shape == (VOCAB + 1,)
    assert torch.allclose(bias[VOCAB], bias[:VOCAB].mean(), atol=1e-7)


def test_the_predictions_of_the_base_move_by_no_more_than_hewitts_bound():
    model = tiny()
    before = torch.log_softmax(head_of(model).logits(hidden_states(model, ROWS)), -1)
    tokens.grow(model, tuple(range(VOCAB, VOCAB + 4)))
    after = torch.log_softmax(head_of(model).logits(hidden_states(model, ROWS)), -1)
    moved = before - after[:, :VOCAB]
    assert 0 < moved.max() <= math.log(1 + 4 / VOCAB)
    assert (after[:, VOCAB:].exp() <= 1 / VOCAB).all()


def test_growing_by_nothing_does_nothing():
    model = tiny(dtype=torch.float32)
    before = model.get_input_embeddings().weight
    tokens.grow(model, ())
    assert model.get_input_embeddings().weight is before


TALK = [
    {"role": "system", "content": "s"},
    {"role": "user", "content": "u"},
    {"role": "assistant", "content": "a"},
    {"role": "user", "content": "v"},
]
OWN = "{{ bos_token }}{% for m in messages %}{{ m.role + ':' + m.content + eos_token }}{% endfor %}"


@pytest.mark.parametrize("choice", [None, "plain", "chatml", "file"])
def test_the_stored_template_renders_what_was_trained_on(choice, tmp_path):
    made = tokenizer(("<s>", "</s>", "<|im_end|>", "<|im_start|>"))
    made.chat_template = OWN
    (tmp_path / "mine.jinja").write_text(OWN.replace(":", "="))
    template = load_template(str(tmp_path / "mine.jinja") if choice == "file" else choice, made)
    expected = [template.render(TALK, [], last) for last in (False, True)]
    tokens.carry_template(made, template.text, template.variables)
    made.save_pretrained(tmp_path / "saved")
    again = AutoTokenizer.from_pretrained(tmp_path / "saved")
    stored = load_template(None, again)
    for last, text in zip((False, True), expected, strict=True):
        assert again.apply_chat_template(TALK, tokenize=False, add_generation_prompt=last) == text
        assert stored.render(TALK, [], last) == text


def test_plain_keeps_its_beginning_token_where_the_tokenizer_writes_one(tmp_path):
    from tokenizers.processors import TemplateProcessing

    made = tokenizer()
    made.backend_tokenizer.post_processor = TemplateProcessing("<s> $A", special_tokens=[("<s>", WORDS.index("<s>"))])
    template = load_template("plain", made)
    assert template.render(TALK, [], False).startswith("<s>")
    tokens.carry_template(made, template.text, template.variables)
    assert made.apply_chat_template(TALK, tokenize=False) == template.render(TALK, [], False)


def test_a_template_for_tools_is_carried_along(tmp_path):
    made = tokenizer()
    made.chat_template = {"default": "plain", "tool_use": "tools", "rag": "other"}
    template = load_template(None, made)
    tokens.carry_template(made, template.text, template.variables)
    assert made.chat_template == {"default": "plain", "tool_use": "tools", "rag": "other"}
    made.chat_template = None
    tokens.carry_template(made, template.text, template.variables)
    made.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.apply_chat_template(TALK, tokenize=False) == "plain"
    assert again.apply_chat_template(TALK, tools=[{"type": "function"}], tokenize=False) == "tools"


def test_the_lines_that_load_an_adapter_grow_the_base_only_where_it_has_no_room():
    from pathlib import Path

    with_room, without = (tokens.loading_lines(Path("adapter"), "base", rows) for rows in (None, 70))
    assert "resize" not in with_room
    assert "model.resize_token_embeddings(70, mean_resizing=False)\nmodel = PeftModel" in without


@pytest.mark.parametrize(("padding", "named"), [(5, 5), (None, None), (10**6, None)])
def test_a_padding_token_without_a_row_is_named_in_no_configuration(padding, named):
    model = tiny("qwen2", torch.float32)
    tokens.share_padding(model, SimpleNamespace(pad_token_id=padding))
    assert model.config.pad_token_id == model.generation_config.pad_token_id == named


def test_a_text_model_within_a_larger_one_keeps_the_row_that_it_puts_where_images_stand():
    model = tiny("gemma4_image", torch.float32, pad_token_id=3)
    tokens.share_padding(model, SimpleNamespace(pad_token_id=None))
    assert model.config.text_config.pad_token_id == 3
    assert model.config.pad_token_id is None
    assert logits_of(model, ROWS).isfinite().all()
    tokens.share_padding(model, SimpleNamespace(pad_token_id=5))
    assert model.config.text_config.pad_token_id == model.config.pad_token_id == 5
