"""Policies of `where`: halves, condition numbers, one place; which methods take them; what contradicts."""

import re
from typing import get_args

import pytest
import torch
from peft.helpers import find_kappa_target_modules
from tests.models import tiny, tiny_gpt2

from frisket.adapt import kappa
from frisket.adapt.base import MethodSettings
from frisket.adapt.full import Full
from frisket.adapt.lora import Lora
from frisket.adapt.methods import Method, attach
from frisket.adapt.policies import POLICIES, Place, asked, candidates, needs_weights, place_of, redraws, resolve
from frisket.adapt.where import expert_tensors, layer_of
from frisket.errors import ConfigError, UnsupportedError
from frisket.explain import method_name

METHODS: dict[str, type[MethodSettings]] = {method_name(kind): kind for kind in get_args(get_args(Method)[0])}
ASKING = {
    "layers": ["all", {"layers": 1}],
    "last-layer": "last-layer",
    "half": {"half": "category"},
    "kappa": {"kappa": 0.5},
    "locate": {"locate": {"layer": 1, "module": "mlp.down_proj"}},
    "rows": "embeddings[3:9]",
    "embeddings-and-head": "embeddings-and-head",
}


@pytest.fixture(scope="module")
def llama():
    return tiny(dtype=torch.float32, num_hidden_layers=4)


def shapes(model):
    return {name: parameter.numel() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("policy", POLICIES)
def test_the_table_says_which_method_takes_which_policy(policy, method):
    settings = METHODS[method].model_construct(where=Full(where=ASKING[policy]).where)
    assert set(asked(settings.where)) == {policy}
    if method in POLICIES[policy]:
        settings.check()
        return
    with pytest.raises(
        UnsupportedError, match=rf"adapt\.method={method} (does not\.\nUse adapt\.method=|moves nothing of)"
    ):
        settings.check()


def test_every_name_in_the_table_is_a_method_and_every_policy_is_tried():
    assert set(ASKING) == set(POLICIES)
    assert all(known <= set(METHODS) | {"spiel", "graft", "mft", "mora"} for known in POLICIES.values())


@pytest.mark.parametrize("where", [{"half": "category"}, "embeddings[3:9]"])
def test_attaching_refuses_what_the_table_refuses(llama, where):
    for put_on in (Lora(where=where).attach, lambda model, rng: attach(Lora(where=where), model, rng)):
        with pytest.raises(UnsupportedError, match=r"adapt\.method=lora does not"):
            put_on(llama, torch.Generator())


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ([{"half": "category"}, {"kappa": 0.2}], "`half` and `kappa` both decide which weights move, and contradict"),
        ([{"kappa": 0.2}, "head[0:4]"], "`kappa` and `rows` both decide"),
        ([{"layers": 1}, {"locate": {"layer": 1}}], "`layers` and `locate` both decide"),
        ([{"kappa": 0.2}, {"kappa": 0.3}], "kappa is said twice"),
        ({"kappa": 0}, "kappa = 0 must be a share above 0 and of at most 1.\nUse adapt.where='{kappa: 0.2}'."),
        ({"kappa": 1.5}, "kappa = 1.5 must be a share"),
        ({"kappa": True}, "kappa = True must be a share"),
        ({"half": "model"}, "half = 'model' is not known.\nUse adapt.where='{half: category}'."),
        ({"locate": 6}, "locate = 6 names no place."),
        ({"locate": {"layer": -1}}, "names no place.\nUse adapt.where='{locate: {layer: 6, module: mlp.down_proj}}'"),
        ({"locate": {"layers": 1}}, "names no place"),
        ({"locate": {"layer": []}}, "names no place"),
        ({"quarter": 1}, "unknown entry 'quarter'; known are patterns, `layers: 4-7`, and the policies half, kappa"),
        ({"locate": {"layer": 9}}, "locate names layer 9, and the layers found here are 0 to 3."),
        ({"locate": {"layer": 1, "module": "mlp.down"}}, "locate names module 'mlp.down'"),
        ({"locate": {"layer": 1, "module": "mlp.dwn_proj"}}, "'mlp.dwn_proj', which the layers found here do not have. "
         "Nearest: 'mlp.down_proj'."),
        (["attention", {"locate": {"layer": 1, "module": "mlp.down_proj"}}], "locate names module 'mlp.down_proj'"),
    ],
)  # fmt: skip
def test_what_contradicts_or_says_nothing_is_refused(llama, where, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        Full(where=where).attach(llama, torch.Generator())


def test_half_is_a_strict_half_of_each_category_with_grouped_queries(llama):
    """Each layer has q and o of equal size, and k and v of half of that; an even number of layers halves the others."""
    sizes = shapes(llama)
    for seed in range(5):
        match = resolve(llama, Full(where={"half": "category"}).where, seed=seed)
        names = set(match.parameters(llama))
        for layer in range(4):
            drawn = {name.split(".")[4] for name in names if f"layers.{layer}.self_attn" in name}
            assert len(drawn & {"q_proj", "o_proj"}) == len(drawn & {"k_proj", "v_proj"}) == 1
        fed = [sum(f"layers.{layer}.mlp" in name for name in names) for layer in range(4)]
        assert sorted(fed) == [1, 1, 2, 2]
        assert sum("norm" in name for name in names) == 5  # of 9
        matrices = [name for name in sizes if "proj" in name]
        assert 2 * sum(sizes[name] for name in names if "proj" in name) == sum(sizes[name] for name in matrices)
        assert {"model.embed_tokens.weight", "lm_head.weight"} <= names
        assert re.search(r"half: .* \(50\.\d %\) move, and embeddings and head always", match.notes[-1])
        assert match.by_policy == {"half": len(names)}


def test_half_of_equal_sizes_is_any_two_of_four():
    model = tiny(dtype=torch.float32, num_key_value_heads=4)
    found = set()
    for seed in range(20):
        names = resolve(model, [{"half": "category"}], seed=seed).parameters(model)
        drawn = tuple(sorted(name.split(".")[4] for name in names if "layers.0.self_attn" in name))
        assert len(drawn) == 2
        found.add(drawn)
    assert len(found) > 4  # also q with o, which pairs would never give


def test_half_follows_the_seed_and_patterns_restrict_it(llama):
    one, same, other = (resolve(llama, [{"half": "category"}], seed=seed).parameters(llama) for seed in (1, 1, 2))
    assert one == same != other
    inside = resolve(llama, ["attention", {"layers": 2}, {"half": "category"}], seed=1).parameters(llama)
    assert len(inside) == 2
    assert all(name.startswith("model.layers.2.self_attn.") for name in inside)
    assert redraws([{"half": "category"}])
    assert not redraws("all")


@pytest.mark.parametrize("family", ["gpt_oss", "qwen3_moe", "falcon_h1"])
def test_half_of_unusual_layers_is_near_a_half_and_its_match_is_exact(family):
    model = tiny(family, dtype=torch.float32)
    sizes = shapes(model)
    match = resolve(model, [{"half": "category"}])
    names = match.parameters(model)
    always = sum(count for name, count in sizes.items() if "embed_tokens" in name or "lm_head" in name)
    share = (sum(sizes[name] for name in names) - always) / (sum(sizes.values()) - always)
    assert 0.4 < share < 0.6
    assert match.by_policy["half"] == len(names) < len(sizes)


def test_kappa_chooses_what_pefts_helper_does_without_the_head(llama):
    for share in (0.01, 0.2, 0.5, 1.0):
        match = Lora(where={"kappa": share}).resolve(llama)
        theirs = find_kappa_target_modules(llama.model, share, show_progress=False)["target_modules"]
        assert {f"model.{name}" for name in theirs or ()} == set(match.modules)
        assert len(match.modules) == max(1, int(28 * share))
    whole = find_kappa_target_modules(llama, 1.0, show_progress=False)["target_modules"]
    assert "lm_head" in (whole or ())  # what is left out


def test_kappa_knows_the_experts_of_a_mixture():
    model = tiny("qwen3_moe", dtype=torch.float32)
    match = Lora(where=["all-linear", "experts", {"kappa": 0.5}]).resolve(model)
    theirs = find_kappa_target_modules(model.model, 0.5, show_progress=False)
    assert {f"model.{name}" for name in theirs["target_modules"] or ()} == set(match.modules)
    assert {f"model.{name}" for name in theirs["target_parameters"] or ()} == set(match.tensors)
    assert match.experts(model) == list(match.tensors) != list(expert_tensors(model))


def test_kappa_orders_by_the_spectrum_and_patterns_restrict_it():
    model = tiny(dtype=torch.float32)
    names = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    with torch.no_grad():
        for rank, name in enumerate(names):
            weight = model.get_submodule(name).weight
            left, _, right = torch.linalg.svd(weight, full_matrices=False)
            weight.copy_(left @ torch.diag(torch.linspace(1.0, 2.0 + rank, min(weight.shape))) @ right)
    measured = kappa.condition_numbers(model).modules
    assert [measured[name] for name in names] == pytest.approx([2.0 + rank for rank in range(len(names))], rel=1e-3)
    match = Lora(where=["mlp", {"kappa": 0.34}]).resolve(model)
    assert match.modules == tuple(name for name in names if "mlp" in name)[:2]
    assert Full(where={"kappa": 1}).resolve(model).modules == tuple(name for name in names if name != "lm_head")


def test_condition_numbers_are_measured_once_for_each_base(monkeypatch, tmp_path):
    monkeypatch.setenv("FRISKET_CACHE", str(tmp_path))
    model = tiny(dtype=torch.float32)
    first = kappa.condition_numbers(model)
    assert len(list((tmp_path / "kappa").iterdir())) == 1
    monkeypatch.setattr(kappa, "_measured", lambda model: pytest.fail("measured again"))
    assert kappa.condition_numbers(tiny(dtype=torch.float32)) == first
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] += 1
    with pytest.raises(pytest.fail.Exception, match="measured again"):
        kappa.condition_numbers(model)


def test_without_weights_the_largest_matrices_stand_for_those_that_will_be_chosen(llama):
    with torch.device("meta"):
        model = tiny_meta()
    match = Full(where={"kappa": 0.5}).resolve(model)
    assert all(
        layer.rpartition(".")[2] in {"gate_proj", "up_proj", "down_proj", "q_proj", "o_proj"} for layer in match.modules
    )
    assert "largest matrices are counted" in match.notes[-1]
    assert needs_weights([{"kappa": 0.5}])
    assert not needs_weights("all")


def tiny_meta():
    from tests.models import configuration
    from transformers import AutoModelForCausalLM

    from frisket.hf.attention import NAME

    return AutoModelForCausalLM.from_config(configuration("llama"), attn_implementation=NAME)


def test_kappa_of_a_family_without_plain_linear_layers_is_refused():
    with pytest.raises(ConfigError, match=r"kappa found no matrix to rank: .*\nName modules instead"):
        Lora(where={"kappa": 0.2}).resolve(tiny_gpt2())


def test_locate_is_one_place_by_whole_segments():
    model = tiny(dtype=torch.float32, num_hidden_layers=12)
    match = Full(where={"locate": {"layer": 1, "module": "mlp.down_proj"}}).resolve(model)
    assert match.parameters(model) == ["model.layers.1.mlp.down_proj.weight"]  # and not of layers 10 and 11
    assert match.modules == ("model.layers.1.mlp.down_proj",)
    whole = Lora(where={"locate": {"layer": 1}}).resolve(model)
    assert {layer_of(name) for name in whole.parameters(model)} == {1}
    assert len(whole.linears(model)) == 7
    assert Full(where=["mlp", {"locate": {"layer": 3}}]).resolve(model).modules == tuple(
        f"model.layers.3.mlp.{name}" for name in ("gate_proj", "up_proj", "down_proj")
    )


def test_a_place_that_is_to_be_searched_for_has_candidates_and_cannot_be_attached_yet(llama):
    assert place_of([{"locate": "search"}]) == Place((), "mlp.down_proj")
    place = place_of([{"locate": {"layer": [0, 3], "module": "mlp", "steps": 5}}])
    assert place == Place((0, 3), "mlp", 5)
    assert candidates(llama, place) == [0, 3]
    assert candidates(llama, Place((), "mlp.down_proj")) == [0, 1, 2, 3]
    with pytest.raises(ConfigError, match="locate names layer 7"):
        candidates(llama, Place((0, 7), "mlp"))
    with pytest.raises(UnsupportedError, match="no layer is chosen yet"):
        Full(where={"locate": "search"}).attach(llama, torch.Generator())


def test_lora_moves_only_what_a_policy_left(llama):
    model = tiny(dtype=torch.float32)
    attached = Lora(where={"locate": {"layer": 1, "module": "mlp.down_proj"}}, rank=2).attach(model, torch.Generator())
    assert list(attached.parameters()) == [f"model.layers.1.mlp.down_proj.lora_{side}.default.weight" for side in "AB"]
