"""The contamination meter against heads computed by hand, and against what the output projection is really given."""

import json
import math

import numpy as np
import pytest
import torch
from tests.models import samples, tiny

from frisket.adapt.full import Full
from frisket.adapt.lora import Lora
from frisket.attend.pack import lay, pack
from frisket.errors import CheckError, UnsupportedError
from frisket.evaluate.contamination import measure_contamination, split_layers
from frisket.hf.attention import own_attention
from frisket.hf.forward import hidden_states
from frisket.types import Leaf, Rows

QUERY_AND_VALUE = ["*.q_proj", "*.v_proj"]
LENGTHS = [9, 7, 5, 3]
CHAIN = pack(samples(0, LENGTHS), "mask-free", 64)[0]
TWO_ROWS = lay([samples(1, [6, 4]), samples(2, [5, 8, 4])], chained=True)
LATER = 7 + 5 + 3  # tokens of CHAIN after its first sample
PARTS = ("foreign", "own", "foreign_mass")
LAYERS = ("model.layers.0.self_attn", "model.layers.1.self_attn")


def adapted(family="llama", moved=True, where=QUERY_AND_VALUE, rank=4, **changes):
    """A model and its LoRA, in float64, with random factors or with B = 0."""
    model = tiny(family, **changes)
    attached = Lora(rank=rank, where=where).attach(model, torch.Generator().manual_seed(0))
    model.to(torch.float64)
    if moved:
        torch.manual_seed(1)
        for parameter in attached.parameters().values():
            torch.nn.init.normal_(parameter, 0, 0.2)
    return model, attached


def hooks_of(model):
    """The hooks of each module; the float64 fixture has some of its own."""
    return [list(module._forward_hooks) for module in model.modules()]


def parts_of(model, attached, rows, **words):
    seen = {}
    split_layers(model, attached, rows, seen.__setitem__, **words)
    return seen


def given_to_projections(model, layers, compute):
    """What the output projection of each of these layers is given by ``compute()``: [place, head, width]."""
    caught = []
    handles = [
        model.get_submodule(path).o_proj.register_forward_pre_hook(
            lambda _, words: caught.append(words[0].flatten(0, 1).unflatten(-1, (-1, 8)))
        )
        for path in layers
    ]
    with torch.no_grad():
        compute()
    for handle in handles:
        handle.remove()
    return caught


def later_places(rows):
    """Flat places of the samples after the first of each row."""
    return np.flatnonzero((rows.segment_ids != rows.segment_ids[:, :1]) & rows.is_real)


def close(a, b, bar=1e-12):
    return (a - b).norm() <= bar * b.norm()


@pytest.mark.parametrize("rows", [CHAIN, TWO_ROWS], ids=["one row", "two rows with padding"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral", "gemma2", "gpt_oss"])
def test_the_sides_add_up_to_the_output_of_the_head(family, rows):
    model, attached = adapted(family)
    seen = parts_of(model, attached, rows)
    assert tuple(seen) == LAYERS
    ordinary = given_to_projections(model, LAYERS, lambda: hidden_states(model.eval(), rows, "sdpa"))
    for layer, given in zip(seen.values(), ordinary, strict=True):
        real = given[later_places(rows)]
        assert close(layer.adapted.own + layer.adapted.foreign, real)
        assert layer.adapted.foreign.norm() > 0.05 * real.norm()


@pytest.mark.parametrize("path", LAYERS)
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_the_frozen_parts_are_the_base_layer_at_the_adapted_input(family, path):
    model, attached = adapted(family)
    attention, inputs = model.get_submodule(path), []
    handle = attention.register_forward_pre_hook(lambda _, *words: inputs.append(words), with_kwargs=True)
    with torch.no_grad():
        hidden_states(model.eval(), CHAIN, "sdpa")
    handle.remove()
    words, named = inputs[0]
    with attached.switched_off():
        (given,) = given_to_projections(model, [path], lambda: attention(*words, **named))
    expected = given[later_places(CHAIN)]
    layer = parts_of(model, attached, CHAIN)[path]
    assert close(layer.frozen.own + layer.frozen.foreign, expected)
    assert not close(layer.adapted.own + layer.adapted.foreign, expected, 1e-2)


def rotated(x, positions, theta=10000.0):
    """Rotary embedding of [token, width], as Llama's."""
    half = x.shape[1] // 2
    angles = positions[:, None] * theta ** (-np.arange(half) / half)
    first, second = x[:, :half], x[:, half:]
    cos, sin = np.cos(angles), np.sin(angles)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=1)


def by_hand(x, weights, head, rows):
    """(own, foreign, mass) of one head of a row, token by token; two query heads share a key head."""
    w_q, w_k, w_v = weights
    of = head // 2
    q, k = (x @ w[i * 8 : i * 8 + 8].T for w, i in ((w_q, head), (w_k, of)))
    v = x @ w_v[of * 8 : of * 8 + 8].T
    q, k = rotated(q, rows.position_ids[0]), rotated(k, rows.position_ids[0])
    segments = rows.segment_ids[0]
    found = []
    for i in later_places(rows):
        scores = np.exp([q[i] @ k[j] / math.sqrt(8) for j in range(i + 1)])
        shares = scores / scores.sum()
        own = sum(shares[j] * v[j] for j in range(i + 1) if segments[j] == segments[i])
        foreign = sum(shares[j] * v[j] for j in range(i + 1) if segments[j] != segments[i])
        found.append((own, foreign, sum(shares[j] for j in range(i + 1) if segments[j] != segments[i])))
    return [np.array(part) for part in zip(*found, strict=True)]


@pytest.mark.parametrize("head", range(4))
def test_a_head_computed_by_hand(head):
    model, attached = adapted(rope_parameters={"rope_type": "default", "rope_theta": 10000.0})
    layer = parts_of(model, attached, CHAIN)[LAYERS[0]]
    attention = model.model.layers[0].self_attn
    with torch.no_grad():
        x = model.model.layers[0].input_layernorm(model.model.embed_tokens(torch.from_numpy(CHAIN.input_ids)))[0]
    base = [getattr(attention, name).weight.detach().numpy() for name in ("q_proj", "k_proj", "v_proj")]
    lora = [
        w + attention.get_submodule(name).get_delta_weight("default").detach().numpy() if name != "k_proj" else w
        for w, name in zip(base, ("q_proj", "k_proj", "v_proj"), strict=True)
    ]
    for weights, split in ((base, layer.frozen), (lora, layer.adapted)):
        own, foreign, mass = by_hand(x.numpy(), weights, head, CHAIN)
        np.testing.assert_allclose(split.own[:, head].numpy(), own, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(split.foreign[:, head].numpy(), foreign, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(split.foreign_mass[:, head].numpy(), mass, rtol=1e-5)


def test_the_figures_are_the_formulas_over_the_parts():
    model, attached = adapted()
    found = measure_contamination(model, attached, [CHAIN, TWO_ROWS])
    a, b = parts_of(model, attached, CHAIN), parts_of(model, attached, TWO_ROWS)
    assert found.tokens == LATER + 4 + 8 + 4
    assert found.layers == LAYERS
    of_heads, flat = [], []
    for layer, path in enumerate(LAYERS):
        (frozen, frozen_own, frozen_mass), (full, own, mass) = (
            [torch.cat([getattr(getattr(s[path], side), part) for s in (a, b)]) for part in PARTS]
            for side in ("frozen", "adapted")
        )
        flat += [(frozen, full - frozen, frozen_own, own - frozen_own)]
        of_heads += [(mass.mean(0), frozen_mass.mean(0))]
        np.testing.assert_allclose(found.foreign_mass[layer], mass.mean(0), rtol=1e-12)
        np.testing.assert_allclose(found.foreign_mass_frozen[layer], frozen_mass.mean(0), rtol=1e-12)
        share = (full.norm(dim=-1) / (full + own).norm(dim=-1)).mean(0)
        np.testing.assert_allclose(found.foreign_share[layer], share, rtol=1e-12)
        for head in range(4):
            cosine = torch.cosine_similarity(frozen[:, head].flatten(), (full - frozen)[:, head].flatten(), dim=0)
            assert found.cosine[layer, head] == pytest.approx(float(cosine), abs=1e-12)
    told = found.summary()
    mass, frozen_mass = (float(torch.stack(side).mean()) for side in zip(*of_heads, strict=True))
    assert told["foreign_mass"] == pytest.approx(mass, rel=1e-12)
    assert told["foreign_mass_frozen"] == pytest.approx(frozen_mass, rel=1e-12)
    frozen, lora, frozen_own, lora_own = (torch.cat(part).flatten() for part in zip(*flat, strict=True))
    assert told["attenuation"] == pytest.approx(float(torch.cosine_similarity(frozen, lora, dim=0)), abs=1e-12)
    assert told["own_cosine"] == pytest.approx(float(torch.cosine_similarity(frozen_own, lora_own, dim=0)), abs=1e-12)
    assert told["foreign_norm"] == pytest.approx(float((frozen + lora).norm() / frozen.norm()), rel=1e-9)
    assert told["own_norm"] == pytest.approx(float((frozen_own + lora_own).norm() / frozen_own.norm()), rel=1e-9)
    assert told["lora_foreign"] == pytest.approx(math.sqrt(float(lora.square().sum()) / found.tokens / 8), rel=1e-12)


def test_lora_that_undoes_the_values_has_cosine_minus_one():
    model, attached = adapted(where=["*.v_proj"], rank=16)
    for layer in model.model.layers:
        values = layer.self_attn.v_proj  # scaled by alpha / rank = 2
        with torch.no_grad():
            values.lora_A["default"].weight.copy_(values.weight)
            values.lora_B["default"].weight.copy_(-torch.eye(16) / 2)
    found = measure_contamination(model, attached, [CHAIN])
    assert found.cosine == pytest.approx(np.full((2, 4), -1.0), abs=1e-12)
    told = found.summary()
    assert told["attenuation"] == pytest.approx(-1, abs=1e-12)
    assert told["foreign_norm"] == pytest.approx(0, abs=1e-6)
    assert told["foreign_mass"] == told["foreign_mass_frozen"]
    assert "cosine -1.00: LoRA works against what comes from other samples" in found.lines()[0]
    assert told["foreign_share"] == 0  # nothing is left of the output
    assert "cosine below 0 in 8 of 8 heads" in found.lines()[1]


def test_lora_that_doubles_the_values_adds_to_it():
    model, attached = adapted(where=["*.v_proj"], rank=16)
    for layer in model.model.layers:
        values = layer.self_attn.v_proj
        with torch.no_grad():
            values.lora_A["default"].weight.copy_(values.weight)
            values.lora_B["default"].weight.copy_(torch.eye(16) / 2)
    found = measure_contamination(model, attached, [CHAIN])
    assert found.summary()["foreign_norm"] == pytest.approx(2, rel=1e-12)
    assert "cosine 1.00: LoRA adds to what comes from other samples" in found.lines()[0]


def test_a_negative_cosine_without_less_of_it_is_not_called_attenuation():
    model, attached = adapted(where=["*.v_proj"], rank=16)
    for layer in model.model.layers:
        values = layer.self_attn.v_proj
        with torch.no_grad():  # the values become -1.5 times what they were
            values.lora_A["default"].weight.copy_(values.weight)
            values.lora_B["default"].weight.copy_(-1.25 * torch.eye(16))
    found = measure_contamination(model, attached, [CHAIN])
    assert found.summary()["foreign_norm"] == pytest.approx(1.5, rel=1e-12)
    assert found.summary()["own_norm"] == pytest.approx(1.5, rel=1e-12)
    assert "cosine -1.00: LoRA changes what comes from other samples and does not weaken it" in found.lines()[0]


def test_lora_that_has_not_moved_has_no_part_and_no_cosine():
    model, attached = adapted(moved=False)
    found = measure_contamination(model, attached, [CHAIN])
    assert not found.lora_own.any()
    assert not found.lora_foreign.any()
    assert np.isnan(found.cosine).all()
    told = found.summary()
    assert told["attenuation"] is None
    assert told["by_layer"]["attenuation"] == [None, None]
    assert told["foreign_norm"] == 1
    assert told["foreign_mass"] == told["foreign_mass_frozen"] > 0.1
    assert "LoRA has not moved the attention heads yet" in found.lines()[0]
    assert found.lines()[1] == f"measured at {LATER} tokens in 2 layers of 4 heads"


def test_isolated_rows_have_no_foreign_part():
    model, attached = adapted()
    rows = pack(samples(0, LENGTHS), "isolated", 64)[0]
    found = measure_contamination(model, attached, [rows])
    assert found.tokens == LATER
    for name in ("foreign_mass", "foreign_mass_frozen", "foreign_share", "frozen_foreign", "lora_foreign"):
        assert not getattr(found, name).any(), name
    assert found.frozen_own.all()
    assert found.lora_own.all()
    assert found.lines()[0] == "foreign mass 0.00: nothing comes from other samples"


def test_rows_of_one_sample_have_nothing_to_measure():
    model, attached = adapted()
    found = measure_contamination(model, attached, pack(samples(0, LENGTHS), "padded", 64))
    assert found.tokens == 0
    assert found.summary()["foreign_mass"] is None
    assert found.lines() == ["contamination: no row holds two samples, so there is nothing to measure"]


def test_the_summary_is_json_of_plain_numbers():
    model, attached = adapted()
    told = measure_contamination(model, attached, [CHAIN]).summary()
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    assert {len(values) for values in told["by_layer"].values()} == {2}
    assert told["by_layer"].keys() == told.keys() - {"tokens", "layers", "by_layer"}


def test_a_diverged_adapter_is_told_as_such():
    model, attached = adapted()
    with torch.no_grad():
        next(iter(attached.parameters().values())).fill_(torch.nan)
    found = measure_contamination(model, attached, [CHAIN])
    assert found.summary()["foreign_mass"] is None
    assert found.lines()[0].startswith("foreign mass nan")


def test_a_window_bounds_what_is_foreign():
    model, attached = adapted("mistral")  # a window of 5 tokens in both layers
    layer = parts_of(model, attached, CHAIN)[LAYERS[0]]
    depth = np.concatenate([np.arange(length) for length in LENGTHS[1:]])
    sees_others = layer.adapted.foreign_mass.numpy().all(axis=1)
    np.testing.assert_array_equal(sees_others, depth < 4)


@pytest.mark.parametrize("tokens", [1, 4, 15, 99])
def test_of_a_long_row_evenly_spaced_tokens_are_measured(tokens):
    model, attached = adapted()
    whole = parts_of(model, attached, CHAIN)
    some = parts_of(model, attached, CHAIN, tokens_a_row=tokens)
    chosen = np.linspace(0, LATER - 1, min(tokens, LATER)).round().astype(int)
    for path, layer in some.items():
        assert close(layer.adapted.foreign, whole[path].adapted.foreign[chosen])
        assert close(layer.frozen.own, whole[path].frozen.own[chosen])
    assert measure_contamination(model, attached, [CHAIN], tokens_a_row=tokens).tokens == len(chosen)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_oss"])
def test_measuring_leaves_the_model_as_it_was(family):
    model, attached = adapted(family)
    hooks = hooks_of(model)
    moving, bits = set(attached.parameters()), {n: p.detach().clone() for n, p in model.named_parameters()}
    during = states_while_measuring(model, attached)
    assert model.training
    after = hidden_states(model, CHAIN, "sdpa")
    assert torch.equal(during, after)
    assert after.requires_grad
    assert set(attached.parameters()) == moving
    assert all(torch.equal(bits[name], p) for name, p in model.named_parameters())
    assert hooks_of(model) == hooks


def states_while_measuring(model, attached):
    during = []
    handle = model.model.register_forward_hook(
        lambda module, _, out: during.append((module.training, out.last_hidden_state.flatten(0, 1)))
    )
    measure_contamination(model, attached, [CHAIN])
    handle.remove()
    assert not any(training for training, _ in during)
    return during[-1][1]


def test_layers_that_share_keys_and_values_still_get_the_adapted_ones():
    kinds = ["sliding_attention", "full_attention"] * 2
    shape = {"num_hidden_layers": 4, "num_kv_shared_layers": 2, "layer_types": kinds, "sliding_window": 5}
    sizes = {"intermediate_size": [48] * 4, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 64}
    model = tiny("gemma3n_text", torch.float32, activation_sparsity_pattern=[0.0] * 4, **shape, **sizes)
    attached = Lora(rank=4, where=QUERY_AND_VALUE).attach(model, torch.Generator().manual_seed(0))
    for parameter in attached.parameters().values():
        torch.nn.init.normal_(parameter, 0, 0.2)
    before = hidden_states(model, CHAIN, "sdpa")
    assert torch.equal(states_while_measuring(model, attached), before)


def test_parts_of_a_bf16_model_are_float32():
    model = tiny(dtype=torch.bfloat16)
    attached = Lora(rank=4, where=QUERY_AND_VALUE).attach(model, torch.Generator().manual_seed(0))
    model.to(torch.bfloat16)
    layer = parts_of(model, attached, CHAIN)[LAYERS[1]]
    assert layer.frozen.own.dtype == layer.adapted.foreign_mass.dtype == torch.float32


def test_a_method_that_cannot_be_switched_off_is_refused_and_leaves_no_hook():
    model = tiny()
    attached, hooks = Full(where="all").attach(model, torch.Generator().manual_seed(0)), hooks_of(model)
    with pytest.raises(UnsupportedError, match="full fine-tuning changes the base's own weights"):
        measure_contamination(model, attached, [CHAIN])
    assert model.training
    assert hooks_of(model) == hooks


def test_a_prefix_forest_is_refused():
    model, attached = adapted()
    ids, segments = np.arange(6)[None] + 3, np.array([[0, 0, 1, 1, 2, 2]])
    positions = np.array([[0, 1, 2, 3, 2, 3]])
    forest = Rows(ids, positions, segments, np.array([-1, 0, 0]), (Leaf("a", 0, 1), Leaf("b", 0, 2)))
    with pytest.raises(UnsupportedError, match="needs rows whose segments are whole samples; segment 0 is none"):
        measure_contamination(model, attached, [forest])


def test_a_model_that_is_not_on_the_seam_is_refused():
    model, attached = adapted()
    with own_attention(model), pytest.raises(CheckError, match="no layer of LlamaForCausalLM called frisket's"):
        measure_contamination(model, attached, [CHAIN])
