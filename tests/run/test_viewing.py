"""`frisket view` on real data of several sources: what is shown, what is found, what is refused."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rich.console import Console
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoTokenizer,
    GptOssConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from frisket.attend.pack import pack
from frisket.bundled import base_path
from frisket.errors import ConfigError, DataError
from frisket.recipe import Recipe
from frisket.report.mask_data import RowView, Window
from frisket.run.prepare import Prepared, prepare
from frisket.run.viewing import (
    Explained,
    find_sample,
    other_policies,
    pieces_of,
    sample_rows,
    view,
    view_of_row,
    window_of,
)
from frisket.types import Provenance, Sequence
from frisket.watch import Silent

SHARED = "alpha beta gamma delta " * 10


@pytest.fixture(scope="module")
def recipe(small_model, tmp_path_factory) -> Recipe:
    folder = tmp_path_factory.mktemp("data")
    chats = [
        {"prompt": f"{SHARED}{'eta ' * (n % 7)}{n}", "completion": f"gamma {'delta ' * (n % 3)}"} for n in range(40)
    ]
    extra = [{"prompt": f"theta {n} \x1b[31m <script>", "completion": "iota"} for n in range(5)]
    for name, lines in (("chats.jsonl", chats), ("extra.jsonl", [*extra, {"prompt": "only", "completion": ""}])):
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = {
        "model": {"path": str(small_model)},
        "data": [{"path": str(folder / "chats.jsonl")}, {"path": str(folder / "extra.jsonl"), "bad": "drop"}],
        "attend": {"arrangement": "forest", "row_tokens": 600},
        "train": {"step_tokens": 900},
        "evaluate": {"learning": [{"name": "hold-out"}]},
    }
    return Recipe.model_validate(settings)


@pytest.fixture
def prepared(recipe) -> Prepared:
    return prepare(recipe, Silent())


def text_of(row: RowView, name: str) -> str:
    """The text of a sample of a row: that of the segments it is the path of."""
    return "".join("".join(row.pieces[s.start : s.stop]) for s in row.spans if name in s.samples)


def test_rows_hold_the_samples_and_what_each_policy_teaches(prepared):
    rows, note = sample_rows(prepared, 1000, 100_000, ["all"])
    assert note is None
    found = {name for row in rows for span in row.spans for name in span.samples}
    assert found == {prepared.dataset.sample_ids[i] for i in prepared.dataset.train}
    assert any(len(span.samples) > 2 for row in rows for span in row.spans)
    for policy, name in (("the recipe (assistant)", None), ("all", "all")):
        summed = sum(float(np.sum(row.policies[policy].weights)) for row in rows)
        assert summed == sum(prepared.explained(int(i), name)[1].sum() for i in prepared.dataset.train)
        predicted = sum(t.weight for row in rows for told in row.policies[policy].targets for t in told)
        assert predicted == summed
    for row in rows:
        for name in {name for span in row.spans for name in span.samples}:
            index = prepared.dataset.sample_ids.index(name)
            assert text_of(row, name) == prepared.tokenizer.decode(prepared.dataset[index].input_ids)
            assert row.places[name] == prepared.dataset.place(index)


def test_a_shared_token_says_that_weights_were_summed(prepared):
    rows, _ = sample_rows(prepared, 1000, 100_000, ["all"])
    row = next(row for row in rows if len(row.spans[0].samples) > 1)
    view, shared = row.policies["all"], row.spans[0]
    assert view.weights[1] == len(shared.samples)
    assert view.rules[1] == ("policy all", f"sum over the {len(shared.samples)} samples that share it and teach it")
    assert view.rules[0] == ("policy all", "first token: nothing predicts it")
    assert row.own.rules[1] == ("not taught by policy assistant",)


def test_caps_keep_the_first_samples_and_are_said(prepared):
    rows, note = sample_rows(prepared, 3, 100_000)
    found = {name for row in rows for span in row.spans for name in span.samples}
    first = [int(i) for step in prepared.order.epoch(0) for i in step.samples][:3]
    assert found == {prepared.dataset.sample_ids[i] for i in first}
    assert note.startswith(f"3 of {len(prepared.dataset.train)} samples are shown")
    assert len({s for row in sample_rows(prepared, 9, 1)[0] for span in row.spans for s in span.samples}) == 1


def test_a_sample_is_found_by_id_and_by_place(prepared):
    index = prepared.dataset.sample_ids.index("0:17")
    place = prepared.dataset.place(index)
    assert {find_sample(prepared, name) for name in ("0:17", place, Path(place).name)} == {index}


def test_an_unknown_sample_is_refused_with_the_nearest(prepared):
    with pytest.raises(DataError, match=r"--id 0:400: there is no such sample among \d+\.\nThe nearest: --id 0:40$"):
        find_sample(prepared, "0:400")


def test_a_sample_that_was_left_out_is_found_by_the_same_names(prepared):
    (entry,) = prepared.dataset.dropped
    for name in (entry["sample"], entry["place"], Path(entry["place"]).name):
        with pytest.raises(DataError, match=f"sample {name} was left out: "):
            find_sample(prepared, name)


def test_a_sample_is_shown_in_its_row_whatever_the_caps(recipe, prepared, tmp_path):
    last = prepared.order.epoch(0)[-1].samples[-1]
    name = prepared.dataset.sample_ids[last]
    facts = view(recipe, out=tmp_path / "one.html", watcher=Silent(), sample=name, samples=1)
    assert facts["rows"] == 1
    assert facts["note"].startswith(f"Only the row of {name} is shown: step")
    page = (tmp_path / "one.html").read_text()
    assert f'"open":"{name}"' in page
    assert facts["samples"] >= 1
    held = prepared.dataset.sample_ids[prepared.dataset.held_out[0]]
    assert view(recipe, out=None, watcher=Silent(), sample=held)["note"] == f"{held} alone: it is held out."


def test_the_policies_to_compare_with_can_be_named(recipe, tmp_path):
    def shown(**named) -> list[str]:
        view(recipe, out=tmp_path / "page.html", watcher=Silent(), samples=2, **named)
        page = (tmp_path / "page.html").read_text()
        return json.loads(page.partition('id="mask-data">')[2].partition("</script>")[0])["policies"]

    assert shown() == ["the recipe (assistant)", "all"]
    assert shown(compare=["completion", "instructions"]) == ["the recipe (assistant)", "completion", "instructions"]
    assert shown(compare=[]) == ["the recipe (assistant)"]
    with pytest.raises(ConfigError, match=r"--compare asistant: there is no such policy.*\n--compare assistant"):
        shown(compare=["asistant"])


def test_a_policy_is_offered_where_any_source_has_another(recipe):
    assert other_policies(recipe) == ["all"]
    first, second = recipe.data
    mixed = [first, second.model_copy(update={"supervise": type(recipe.supervise)(policy="all")})]
    assert other_policies(recipe.model_copy(update={"data": tuple(mixed)})) == ["all", "assistant"]
    both = [source.model_copy(update={"supervise": mixed[1].supervise}) for source in recipe.data]
    assert other_policies(recipe.model_copy(update={"data": tuple(both)})) == ["assistant"]


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        (LlamaConfig(num_hidden_layers=3), None),
        (Qwen2Config(num_hidden_layers=3, sliding_window=64), None),
        (MistralConfig(num_hidden_layers=3, sliding_window=64), Window(64, 3, 3)),
        (GptOssConfig(num_hidden_layers=5, sliding_window=128), Window(128, 3, 5)),
        (
            Qwen2Config(num_hidden_layers=4, sliding_window=64, use_sliding_window=True, max_window_layers=3),
            Window(64, 1, 4),
        ),
    ],
    ids=["none", "switched off", "every layer", "every other", "the last layers"],
)
def test_the_window_is_that_of_the_configuration(config, wanted):
    assert window_of(config) == wanted


def test_rows_know_the_window_of_the_model(recipe):
    windowed = prepare(recipe, Silent(), config=MistralConfig(num_hidden_layers=3, sliding_window=64))
    assert {row.window for row in sample_rows(windowed, 4, 10_000)[0]} == {Window(64, 3, 3)}


def test_rows_are_printed_where_a_terminal_is_given(recipe):
    file = io.StringIO()
    facts = view(recipe, out=None, watcher=Silent(), console=Console(file=file, width=90), samples=45)
    text = file.getvalue()
    assert "⟦" in text
    assert "‹assistant›" in text
    assert "shared by" in text
    assert "\x1b" not in text
    assert "␛[31m" in text
    assert facts["samples"] > 30
    assert view(recipe, out=None, watcher=Silent(), console=Console(file=io.StringIO()))["samples"] == 6


def test_a_sample_that_the_first_epoch_leaves_out_stands_alone(recipe):
    rare = recipe.model_copy(update={"data": (recipe.data[0], recipe.data[1].model_copy(update={"weight": 0.2}))})
    prepared = prepare(rare, Silent())
    used = {int(i) for step in prepared.order.epoch(0) for i in step.samples}
    left = next(int(i) for i in prepared.dataset.train if int(i) not in used)
    name = prepared.dataset.sample_ids[left]
    note = view(rare, out=None, watcher=Silent(), sample=name)["note"]
    assert note == f"{name} alone: the first epoch does not use it."


def byte_level() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(base_path())


def sentencepiece() -> PreTrainedTokenizerBase:
    """A space is U+2581; what is not an ASCII letter falls back to a token for each byte."""
    words = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", *map(chr, range(97, 123)), "日"]
    backend = Tokenizer(
        models.BPE({word: i for i, word in enumerate(words)}, [], unk_token="<unk>", byte_fallback=True)
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    inner = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(inner)
    backend.add_special_tokens([AddedToken("</s>", special=True, normalized=False)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")


TOKENIZERS = {"byte-level": byte_level(), "sentencepiece": sentencepiece()}
TEXTS = st.text("ab \n日本語한é👩\u200d👧\u0301\u0308🇩🇪🤖", max_size=12) | st.text(max_size=8)


def ids_of(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False).input_ids


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=50, deadline=None)
@given(text=TEXTS)
@example("日本語 👩\u200d👩\u200d👧\u200d👦 e\u0301 한글</s>日")
@example(" \ufffd日")
def test_pieces_join_to_the_text_and_no_piece_is_bytes(name, text):
    tokenizer = TOKENIZERS[name]
    ids = ids_of(tokenizer, text)
    pieces = pieces_of(tokenizer)(ids)
    assert len(pieces) == len(ids)
    joined = "".join(pieces).replace("\ufffd", "")
    wanted = text.replace("\u2581", " ") if name == "sentencepiece" else text
    assert joined in (wanted.replace("\ufffd", ""), " " + wanted.replace("\ufffd", ""))
    assert all(pieces)
    for stop in range(len(ids)):  # a prefix that samples share has the same pieces in each of them
        assert pieces_of(tokenizer)(ids[:stop]) == pieces[:stop]


@settings(max_examples=50, deadline=None)
@given(ids=st.lists(st.sampled_from(ids_of(TOKENIZERS["byte-level"], "日👩é a")), max_size=12))
def test_tokens_in_any_order_show_what_can_be_shown(ids):
    tokenizer = TOKENIZERS["byte-level"]
    pieces = pieces_of(tokenizer)(ids)
    assert "".join(pieces).replace("\ufffd", "") == tokenizer.decode(ids).replace("\ufffd", "")


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_character_stands_at_its_last_token(name):
    tokenizer = TOKENIZERS[name]
    pieces = pieces_of(tokenizer)
    ids = ids_of(tokenizer, "a本🤖b")
    shown = [piece for piece in pieces(ids) if piece != " "]
    assert [piece.strip() for piece in shown] == ["a", "�", "�", "本", "�", "�", "�", "🤖", "b"]
    assert [pieces([token]) for token in ids[-5:-1]] == [["�"]] * 4
    assert pieces([10**6]) == [tokenizer.decode([10**6])]


def test_a_token_may_end_one_character_and_begin_another():
    letters = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "Ġæ", "¥æ"]
    backend = Tokenizer(models.BPE({word: i for i, word in enumerate(letters)}, [("Ġ", "æ"), ("¥", "æ")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    ids, pieces = ids_of(tokenizer, " 日本a"), pieces_of(tokenizer)
    assert pieces(ids) == [" �", "�", "日�", "�", "本", "a"]
    assert pieces([ids[2], ids[5]]) == ["��", "a"]  # never ended: shown where it began


def test_samples_that_part_within_a_character_show_each_its_own():
    tokenizer = TOKENIZERS["byte-level"]
    texts = {"0:1": "yes " * 40 + "😀", "0:2": "yes " * 40 + "😁"}
    samples = []
    for name, text in texts.items():
        ids = np.array(ids_of(tokenizer, text), np.int32)
        size = len(ids)
        roles = np.full(size, Provenance.ASSISTANT, np.uint8)
        zeros = np.zeros(size, np.int32)
        samples.append(Sequence(name, 0, ids, roles, zeros, zeros.astype(np.uint32), np.full(size, np.nan)))
    (rows,) = pack(samples, "forest", 500)
    told = {s.sample_id: Explained(s, np.ones(len(s)), [("all",)] * len(s)) for s in samples}
    row = view_of_row(rows, 0, {"all": told}, {}, pieces_of(tokenizer))
    branch = next(span for span in row.spans if len(span.samples) == 2)
    assert row.pieces[branch.stop - 1] == "�"
    assert {name: text_of(row, name).replace("�", "") for name in texts} == texts
    assert [target.piece for target in row.own.targets[branch.stop - 1]] == ["�", "�"]
