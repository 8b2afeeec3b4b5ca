"""`where`: patterns, words, layers; what matches nothing or cannot be meant is refused with the nearest name."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.models import tiny, tiny_gpt2

from frisket.adapt.full import Full
from frisket.adapt.lora import Lora
from frisket.adapt.peft import Ia3
from frisket.adapt.where import WORDS, Match, head_name, resolve, short_names
from frisket.errors import ConfigError, UnsupportedError

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
MLP = ["gate_proj", "up_proj", "down_proj"]


@pytest.fixture(scope="module")
def llama():
    return tiny()


def leaves(match: Match) -> set[str]:
    return {name.rpartition(".")[2] for name in match.modules}


@pytest.mark.parametrize(
    ("where", "modules", "parameters", "found"),
    [
        ("*.q_proj", 2, 2, {"q_proj"}),
        ("*.[qv]_proj", 4, 4, {"q_proj", "v_proj"}),
        (["*.q_proj", "*.up_proj"], 4, 4, {"q_proj", "up_proj"}),
        ("attention", 8, 8, {*ATTENTION}),
        ("mlp", 6, 6, {*MLP}),
        ("all-linear", 14, 14, {*ATTENTION, *MLP}),
        ("norms", 5, 5, {"input_layernorm", "post_attention_layernorm", "norm"}),
        ("embeddings", 1, 1, {"embed_tokens"}),
        ("head", 1, 1, {"lm_head"}),
        ("embeddings-and-head", 2, 2, {"embed_tokens", "lm_head"}),
        ("last-layer", 9, 9, {*ATTENTION, *MLP, "input_layernorm", "post_attention_layernorm"}),
        ("model.layers.1", 1, 9, {"1"}),
        (
            "all",
            21,
            21,
            {*ATTENTION, *MLP, "input_layernorm", "post_attention_layernorm", "norm", "embed_tokens", "lm_head"},
        ),
    ],
)
def test_what_each_word_and_pattern_finds(llama, where, modules, parameters, found):
    match = resolve(llama, where)
    assert len(match.modules) == modules
    assert len(match.parameters(llama)) == parameters
    assert leaves(match) == found


def test_the_report_counts_parameters_by_pattern(llama):
    assert resolve(llama, ["attention", "*.q_proj", "head"]).by_pattern == {"attention": 8, "*.q_proj": 2, "head": 1}


def test_layers_restrict_the_other_patterns_and_alone_mean_everything_in_them(llama):
    assert resolve(llama, ["attention", {"layers": 1}]).modules == tuple(
        f"model.layers.1.self_attn.{name}" for name in ATTENTION
    )
    assert len(resolve(llama, ["*.q_proj", {"layers": "0-1"}]).modules) == 2
    assert len(resolve(llama, ["*.q_proj", {"layers": 0}, {"layers": 1}]).modules) == 2
    assert len(resolve(llama, [{"layers": "1"}]).parameters(llama)) == 9


def test_all_includes_parameters_that_sit_beside_submodules():
    """The sinks of gpt-oss belong to the attention module itself, which has children."""
    model = tiny("gpt_oss", dtype=torch.float32)
    everything = [name for name, _ in model.named_parameters()]
    assert resolve(model, "all").parameters(model) == everything
    assert any("sinks" in name for name in everything)
    inside = resolve(model, ["all", {"layers": 0}]).parameters(model)
    assert inside == [name for name in everything if ".layers.0." in name]


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("*.qproj", "adapt.where = '*.qproj' matched 0 of 21 parameters. Nearest: '*.q_proj' (2). "
         "List them: frisket plan --names."),
        ("all-liner", "adapt.where = 'all-liner' matched 0 of 21 parameters. Nearest: 'all-linear' "
         f"({WORDS['all-linear']}). List them: frisket plan --names."),
        ("zzz", "adapt.where = 'zzz' matched 0 of 21 parameters. List them: frisket plan --names."),
        (["*.q_proj", {"layers": "7-9"}], "matched 0 of 21 parameters within layers 7-9."),
        (["*.q_proj", "*.c_attn"], "adapt.where = '*.c_attn' matched 0 of 21"),
        ("*.act_fn", "adapt.where = '*.act_fn' matched 0 of 21"),
    ],
)  # fmt: skip
def test_zero_matches_name_the_nearest(llama, where, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        resolve(llama, where)


def test_a_row_range_matches_those_rows_of_every_tensor_and_overlapping_ones_unite(llama):
    one = resolve(llama, ["*.q_proj[:4]", "model.layers.1.self_attn.q_proj[2:10]", "head[60:]"])
    assert one.rows == {
        "model.layers.0.self_attn.q_proj.weight": ((0, 4),),
        "model.layers.1.self_attn.q_proj.weight": ((0, 10),),
        "lm_head.weight": ((60, 64),),
    }
    assert one.parameters(llama) == list(one.rows)
    assert one.entries(llama) == (4 + 10 + 4) * 32
    assert one.by_pattern == {"*.q_proj[:4]": 2, "model.layers.1.self_attn.q_proj[2:10]": 1, "head[60:]": 1}
    assert one.notes == ("rows: 18 of 128 move, the others stay bit for bit",)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("head[60:65]", "adapt.where = 'head[60:65]': lm_head.weight has 64 rows, 0 to 63, and these are not "
         "among them.\nUse a range such as adapt.where='head[0:64]'"),
        ("head[4:4]", "adapt.where = 'head[4:4]': the range of rows is empty: it begins with its first row and ends "
         "behind its last.\nUse adapt.where='head[4:5]'"),
        ("head[:0]", "the range of rows is empty: it begins with its first row and ends behind its last.\n"
         "Use adapt.where='head[0:1]'"),
        ("head[20:10]", "the range of rows is reversed: it begins with its first row and ends behind its last.\n"
         "Use adapt.where='head[10:20]'"),
        ("head[90:80]", "reversed: it begins with its first row and ends behind its last.\n"
         "Use adapt.where='head[0:64]'"),
        ("head[90:]", "lm_head.weight has 64 rows, 0 to 63, and these are not among them."),
        ("head[abc]", "adapt.where = 'head[abc]': [abc] is not a range of rows, which is [first:end] or a part of it.\n"
         "Use adapt.where='head[0:64]'"),
        ("*.q_proj[-4:]", "'*.q_proj[-4:]': [-4:] is not a range of rows, which is [first:end] or a part of it.\n"
         "Use adapt.where='*.q_proj[0:32]'"),
        ("zzz[abc]", "adapt.where = 'zzz[abc]' matched 0 of 21"),
        ("attention[0:4]", "adapt.where = 'attention[0:4]': rows are meant, and the matched tensors have 16 "
         "to 32 of them."),
        (["head[0:4]", "head"], "adapt.where: one pattern claims lm_head.weight as a whole, another only rows of it."),
        ("*.qproj[0:4]", "adapt.where = '*.qproj' matched 0 of 21 parameters. Nearest: '*.q_proj'"),
    ],
)  # fmt: skip
def test_rows_that_are_not_there_or_claimed_twice_are_refused(llama, where, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        resolve(llama, where)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            {"layer": "1"},
            r"adapt.where: unknown entry .*'layer'.*; known are patterns, `layers: 4-7`, and the policies",
        ),
        ({"layers": "first"}, r"layers = 'first'.*is not a range such as 4-7 or a single layer such as 4"),
        ({"layers": "7-4"}, r"layers = '7-4'.*ends before it starts.*\nUse layers: 4-7\."),
    ],
)
def test_entries_that_say_nothing_are_refused(llama, entry, message):
    with pytest.raises(ConfigError, match=message):
        resolve(llama, ["attention", entry])


@pytest.mark.parametrize(("method", "where"), [(Full, "head"), (Ia3, "head"), (Ia3, "*")])
def test_a_tied_head_whose_weight_would_move_is_refused(method, where):
    model = tiny("llama", dtype=torch.float32, tie_word_embeddings=True)
    with pytest.raises(UnsupportedError, match="whose weight is tied to the input embedding"):
        method(where=where).attach(model, torch.Generator())


def test_lora_may_sit_on_a_tied_head_and_merging_unties_it():
    model = tiny("llama", dtype=torch.float32, tie_word_embeddings=True)
    embedding = model.get_input_embeddings().weight
    before = embedding.clone()
    attached = Lora(where="head", rank=2).attach(model, torch.Generator().manual_seed(0))
    assert attached.match.by_pattern == {"head": before.numel()}
    with torch.no_grad():
        for parameter in attached.parameters().values():
            parameter.normal_()
    attached.merge()
    head = model.get_output_embeddings().weight
    assert torch.equal(embedding, before)
    assert head is not embedding
    assert (head - before).abs().max() > 0.1
    assert not model.config.tie_word_embeddings


def test_a_tied_tensor_counts_once():
    model = tiny("llama", dtype=torch.float32, tie_word_embeddings=True)
    assert len(resolve(model, "all").parameters(model)) == 20


def test_conv1d_layers_are_linear():
    model = tiny_gpt2()
    assert leaves(resolve(model, "all-linear")) == {"c_attn", "c_proj", "c_fc"}
    assert len(resolve(model, "attention").modules) == len(resolve(model, "mlp").modules) == 4
    assert len(resolve(model, ["mlp", {"layers": 1}]).modules) == 2
    assert len(resolve(model, "norms").modules) == 5
    assert resolve(model, "embeddings").modules == ("transformer.wte",)


def test_leaf_names_stand_for_their_modules_only_where_they_are_unambiguous(llama):
    names = [name for name, _ in llama.named_modules() if name.endswith("q_proj")]
    assert short_names(llama, names) == ["q_proj"]
    assert short_names(llama, names[:1]) == names[:1]
    assert head_name(llama) == "lm_head"


@settings(max_examples=25, deadline=None)
@given(
    patterns=st.lists(
        st.sampled_from(["*.q_proj", "attention", "mlp", "norms", "head", "all"]), min_size=1, max_size=3, unique=True
    ),
    layer=st.sampled_from([None, 0, 1]),
)
def test_patterns_unite_and_layers_intersect(llama, patterns, layer):
    if layer is not None:
        patterns = [pattern for pattern in patterns if pattern != "head"] or ["all"]
    restricted = [*patterns, *([] if layer is None else [{"layers": layer}])]
    separate = {name for pattern in patterns for name in resolve(llama, pattern).parameters(llama)}
    if layer is not None:
        separate = {name for name in separate if f".layers.{layer}." in name}
    assert set(resolve(llama, restricted).parameters(llama)) == separate


@pytest.mark.parametrize("family", ["gemma3_image", "gemma4_image"])
def test_words_mean_the_language_model_not_the_towers_beside_it(family):
    model = tiny(family)
    for word in ("all", "all-linear", "attention", "mlp", "norms"):
        assert all("language_model" in name or name == "lm_head" for name in resolve(model, word).modules), word
    assert any("vision" in name for name in resolve(model, "*vision*").modules)  # a pattern is taken at its word


def test_blocks_are_told_apart_where_all_are_called_mixer():
    model = tiny("nemotron_h")
    assert leaves(resolve(model, "attention")) == set(ATTENTION)
    assert leaves(resolve(model, "mlp")) == {"up_proj", "down_proj"}


@pytest.mark.parametrize("family", ["falcon_h1", "nemotron_h"])
def test_the_outputs_of_mamba_are_left_out_aloud(family):
    match = resolve(tiny(family), "all-linear")
    assert {"in_proj", "q_proj"} <= leaves(match)
    assert "out_proj" not in leaves(match)
    assert "leaves out out_proj of" in match.notes[-1]
    assert "out_proj" in leaves(resolve(tiny(family), "*.out_proj"))
