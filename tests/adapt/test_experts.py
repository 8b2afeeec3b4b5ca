"""LoRA and full fine-tuning on the experts of a mixture, which are 3-D tensors and no modules."""

import re
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from tests.models import samples, tiny

from frisket.adapt.full import Full
from frisket.adapt.lora import Lora
from frisket.adapt.methods import load_adapter
from frisket.adapt.peft import Ia3, LnTuning, Peft
from frisket.adapt.where import expert_tensors, resolve, short_tensor_names
from frisket.attend.pack import pack
from frisket.errors import ConfigError, UnsupportedError
from frisket.hf.forward import hidden_states
from frisket.hf.heads import head_of
from frisket.supervise.loss import summed_loss
from frisket.supervise.predictions import predictions
from frisket.train.optim import Optimizer
from frisket.train.settings import TrainSettings
from frisket.train.step import Laying, lay_out, run_step

MIXTURES = ("qwen3_moe", "gpt_oss")
BOTH = ["attention", "experts"]
SEQUENCES = samples(0, [7, 3, 12, 5])
PAIRS = {s.sample_id: (s, np.r_[0.0, np.linspace(0.5, 1.5, len(s) - 1)]) for s in SEQUENCES}
PACKED = pack(SEQUENCES, "isolated", 64)
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


def attached_to(family, method, dtype=torch.float64):
    model = tiny(family, dtype=dtype)
    attached = method.attach(model, torch.Generator().manual_seed(0))
    return model.to(dtype), attached


def shake(attached):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in attached.parameters().values():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype))


def gradients(model, attached, batches):
    model.zero_grad()
    for rows in batches:
        summed_loss(hidden_states(model, rows), predictions(rows, PAIRS), head_of(model), 8).backward()
    return {name: parameter.grad.clone() for name, parameter in attached.parameters().items()}


@pytest.mark.parametrize(
    ("where", "modules", "tensors"),
    [
        ("*.experts.gate_up_proj", 0, ["gate_up_proj"]),
        ("experts", 0, ["gate_up_proj", "down_proj"]),
        (["*.q_proj", "experts"], 2, ["gate_up_proj", "down_proj"]),
    ],
)
def test_patterns_and_the_word_find_expert_tensors(where, modules, tensors):
    model = tiny("qwen3_moe", dtype=torch.float32)
    match = resolve(model, where)
    assert len(match.modules) == modules
    assert match.tensors == tuple(f"model.layers.{i}.mlp.experts.{name}" for i in (0, 1) for name in tensors)
    assert sum(match.by_pattern.values()) == modules + len(match.tensors)
    assert set(match.experts(model)) == set(match.tensors)


def test_layers_restrict_experts_too_and_a_matched_module_means_its_experts():
    model = tiny("qwen3_moe", dtype=torch.float32)
    assert resolve(model, ["experts", {"layers": 1}]).tensors == (
        "model.layers.1.mlp.experts.gate_up_proj",
        "model.layers.1.mlp.experts.down_proj",
    )
    assert resolve(model, "model.layers.0.mlp.experts").experts(model) == [
        "model.layers.0.mlp.experts.gate_up_proj",
        "model.layers.0.mlp.experts.down_proj",
    ]


def test_kernels_of_convolutions_are_no_experts():
    model = tiny("qwen3_5", dtype=torch.float32)
    assert any(p.dim() == 3 for p in model.parameters())
    assert not expert_tensors(model)


def test_a_model_without_experts_says_so():
    with pytest.raises(ConfigError, match=re.escape("adapt.where = 'experts' matched 0 of 21 parameters")):
        resolve(tiny(dtype=torch.float32), "experts")


def test_a_misspelled_tensor_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match=re.escape("Nearest: '*.gate_up_proj' (2)")):
        resolve(tiny("qwen3_moe", dtype=torch.float32), "*.experts.gate_up_prj")


def test_all_linear_says_that_it_leaves_experts_out():
    model = tiny("qwen3_moe", dtype=torch.float32)
    size = sum(tensor.numel() for tensor in expert_tensors(model).values())
    (note,) = resolve(model, "all-linear").notes
    assert note == (
        f"all-linear leaves out the experts: 4 3-D tensors with {size:,} parameters; with them: "
        "adapt.where='[all-linear, experts]'"
    )
    assert not resolve(model, ["all-linear", "experts"]).notes
    assert not resolve(model, "attention").notes
    assert not resolve(tiny(dtype=torch.float32), "all-linear").notes


def test_short_names_are_used_where_they_are_exact():
    model = tiny("qwen3_moe", dtype=torch.float32)
    every = list(expert_tensors(model))
    assert short_tensor_names(model, every) == ["experts.down_proj", "experts.gate_up_proj"]
    assert short_tensor_names(model, every[:2]) == every[:2]


@pytest.mark.parametrize("where", [BOTH, "experts", "*.experts.down_proj", ["experts", {"layers": 1}]])
@pytest.mark.parametrize("family", MIXTURES)
def test_lora_on_experts_starts_at_the_base_packs_exactly_and_merges(family, where):
    model = tiny(family)
    before = hidden_states(model, PACKED[0])
    attached = Lora(rank=2, where=where).attach(model, torch.Generator().manual_seed(0))
    model.to(torch.float64)
    assert attached.packs
    assert torch.equal(hidden_states(model, PACKED[0]), before)
    shake(attached)
    packed, alone = gradients(model, attached, PACKED), gradients(model, attached, pack(SEQUENCES, "alone", 1))
    for name, gradient in alone.items():
        assert gradient.norm() > 0
        assert (packed[name] - gradient).norm() <= 1e-10 * gradient.norm(), name
    with attached.switched_off():
        assert torch.equal(hidden_states(model, PACKED[0]), before)
    moved = hidden_states(model, PACKED[0])
    assert (moved - before).abs().max() > 1e-2
    attached.merge()
    assert (hidden_states(model, PACKED[0]) - moved).abs().max() <= 1e-10
    assert set(model.state_dict()) == set(tiny(family).state_dict())


@pytest.mark.parametrize("family", MIXTURES)
def test_the_rank_is_that_of_each_expert(family):
    model, attached = attached_to(family, Lora(rank=3, where="*.experts.gate_up_proj"))
    weight = expert_tensors(tiny(family))["model.layers.0.mlp.experts.gate_up_proj"]
    down, up = (p for name, p in attached.parameters().items() if ".layers.0." in name)
    assert len(down) == up.shape[1] == 3 * len(weight)
    shake(attached)
    wrapper = model.model.layers[0].mlp.experts
    change = wrapper.get_delta_weight("default")
    assert change.shape == weight.shape
    assert {int(torch.linalg.matrix_rank(expert)) for expert in change} == {3}


@pytest.mark.parametrize("family", MIXTURES)
def test_plain_peft_computes_with_the_saved_masters(family, tmp_path: Path):
    model, attached = attached_to(family, Lora(rank=2, where=BOTH), torch.float32)
    shake(attached)
    masters = {name: 1.5 * value for name, value in attached.state().items()}
    attached.save(tmp_path, masters)
    attached.load(masters)
    ours = head_of(model).logits(hidden_states(model.eval(), PACKED[0]))
    fresh, again = tiny(family, dtype=torch.float32).eval(), tiny(family, dtype=torch.float32).eval()
    peft.PeftModel.from_pretrained(fresh, str(tmp_path))
    load_adapter(again, tmp_path)
    for other in (fresh, again):
        assert (head_of(other).logits(hidden_states(other, PACKED[0])) - ours).abs().max() <= 1e-5


def three_steps(model, attached):
    optimizer = Optimizer(attached.parameters(), TrainSettings(weight_decay=0.1), torch.float64)
    laying = Laying("isolated", 20, 1, "grouped", 64)
    step = lay_out(list(PAIRS.values()), laying, "weights")
    for number in (1, 2, 3):
        run_step(model, attached, optimizer, step, laying, number=number, rate=1e-2)


@pytest.mark.parametrize("family", MIXTURES)
@pytest.mark.parametrize("where", ["experts", "*.experts.gate_up_proj", ["experts", "norms", {"layers": 0}]])
def test_full_moves_the_stated_experts_and_no_other_byte(family, where):
    model, attached = attached_to(family, Full(where=where))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    three_steps(model, attached)
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == set(attached.parameters()) == set(attached.match.parameters(model))
    assert moved >= set(attached.match.tensors)
    assert len(attached.match.tensors) == (4 if where == "experts" else 2)


@pytest.mark.parametrize("family", MIXTURES)
def test_lora_leaves_the_experts_own_bytes_alone(family):
    base = tiny(family).state_dict()
    model, attached = attached_to(family, Lora(rank=2, where=BOTH))
    started = attached.state()
    three_steps(model, attached)
    assert all(not torch.equal(value, started[name]) for name, value in attached.state().items())
    attached.detach()
    assert model.state_dict().keys() == base.keys()
    assert all(torch.equal(tensor, base[name]) for name, tensor in model.state_dict().items())


def test_what_it_costs_is_said_and_true():
    """Autograd keeps the changed copy of every adapted tensor from the forward to the backward."""
    model, attached = attached_to("qwen3_moe", Lora(rank=2, where=BOTH))
    sizes = {name: tensor.numel() for name, tensor in expert_tensors(tiny("qwen3_moe")).items()}
    assert f"makes a changed copy of {sum(sizes.values()):,} parameters and keeps it" in attached.match.notes[0]
    kept: dict[int, int] = {}

    def keep(tensor):
        if tensor.dim() in (2, 3) and not isinstance(tensor, torch.nn.Parameter):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden_states(model, PACKED[0])
    large = [bytes_kept for bytes_kept in kept.values() if bytes_kept in {8 * size for size in sizes.values()}]
    assert sorted(large) == sorted(8 * size for size in sizes.values())


def test_dora_on_experts_is_refused():
    with pytest.raises(UnsupportedError, match=r"adapt\.dora: PEFT has no DoRA for expert tensors, and .* reaches 4"):
        attached_to("qwen3_moe", Lora(dora=True, where=BOTH))


@pytest.mark.parametrize("method", [Ia3(where=BOTH), LnTuning(where="experts"), Peft(peft_type="VERA", where="all")])
def test_other_methods_refuse_experts_by_name(method):
    with pytest.raises(UnsupportedError, match=f"only LoRA adapts those, not {method.label}"):
        attached_to("qwen3_moe", method)
