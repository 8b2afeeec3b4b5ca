"""PEFT's methods as PEFT itself loads them, and the list of its types; what all methods keep to: test_invariants.py."""

from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from tests.adapt.cases import OPTIONS
from tests.models import samples, tiny

from frisket.adapt.full import Full
from frisket.adapt.lora import Lora
from frisket.adapt.methods import load_adapter
from frisket.adapt.peft import NEEDS_OWN_LOOP, PACKS, SOFT_PROMPTS, Ia3, LnTuning, Peft
from frisket.attend.pack import pack
from frisket.hf.forward import hidden_states
from frisket.hf.heads import head_of
from frisket.supervise.loss import summed_loss
from frisket.supervise.predictions import predictions
from frisket.train.optim import Optimizer
from frisket.train.settings import TrainSettings

pytestmark = [  # plain PEFT warns of these, and torch once of what SHIRA does
    pytest.mark.filterwarnings(f"ignore:{message}")
    for message in (
        "`is_gradient_checkpointing`:FutureWarning",
        "Unsupported layer type:UserWarning",
        "Failed to load the CUDA extension:UserWarning",
        "Setting boft_n_butterfly_factor:UserWarning",
        "Sparse invariant checks:UserWarning",
    )
]

TYPED = {
    "lora": Lora(rank=4),
    "lora+dora": Lora(rank=4, dora=True),
    "lora+rslora": Lora(rank=4, rslora=True),
    "lora of layer 1": Lora(rank=4, where=["*.q_proj", "mlp", {"layers": 1}]),
    "ia3": Ia3(),
    "ln_tuning": LnTuning(),
}
OTHERS = {name: Peft(peft_type=name, options=options) for name, options in OPTIONS.items()}
ADAPTERS = TYPED | OTHERS
FULL = {"full": Full(), "full of layer 0": Full(where=["attention", {"layers": 0}]), "full head": Full(where="head")}
SEQUENCES = samples(0, [7, 3, 12, 5])
PAIRS = {s.sample_id: (s, np.r_[0.0, np.linspace(0.5, 1.5, len(s) - 1)]) for s in SEQUENCES}
PACKED = pack(SEQUENCES, "isolated", 64)


def attached_to(method, dtype=torch.float64, seed=0):
    model = tiny(dtype=dtype)
    attached = method.attach(model, torch.Generator().manual_seed(seed))
    return model.to(dtype), attached


def shake(attached):
    """Move every parameter, so that zero factors do not hide a fault."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in attached.parameters().values():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(0.05 * noise.to(parameter.dtype))


def gradients(model, attached, batches):
    model.zero_grad()
    for rows in batches:
        guesses = predictions(rows, PAIRS)
        summed_loss(hidden_states(model, rows), guesses, head_of(model), 8).backward()
    return {name: parameter.grad.clone() for name, parameter in attached.parameters().items()}


@pytest.mark.parametrize(
    ("name", "stated"),
    [
        ("lora of layer 1", {"self_attn.q_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}),
        ("full of layer 0", {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"}),
    ],
)
def test_what_moves_is_what_where_names(name, stated):
    _, attached = attached_to((ADAPTERS | FULL)[name])
    layer = "model.layers.1." if name.endswith("1") else "model.layers.0."
    assert all(parameter.startswith(layer) for parameter in attached.parameters())
    assert {".".join(parameter.removeprefix(layer).split(".")[:2]) for parameter in attached.parameters()} == stated
    assert {module.removeprefix(layer) for module in attached.match.modules} == stated


@pytest.mark.parametrize("name", ADAPTERS)
def test_the_saved_masters_are_what_plain_peft_computes_with(name, tmp_path: Path):
    model, attached = attached_to(ADAPTERS[name], torch.float32)
    shake(attached)
    masters = {n: 1.5 * value for n, value in attached.state().items()}
    attached.save(tmp_path, masters)
    attached.load(masters)
    ours = head_of(model).logits(hidden_states(model.eval(), PACKED[0]))
    fresh = tiny(dtype=torch.float32).eval()
    peft.PeftModel.from_pretrained(fresh, str(tmp_path))
    theirs = head_of(fresh).logits(hidden_states(fresh, PACKED[0]))
    assert (ours - theirs).abs().max() <= 1e-5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    again = tiny(dtype=torch.float32).eval()
    loaded = load_adapter(again, tmp_path)
    assert loaded.packs
    assert (head_of(again).logits(hidden_states(again, PACKED[0])) - ours).abs().max() <= 1e-5


@pytest.mark.parametrize("name", ADAPTERS)
def test_under_a_bf16_base_what_moves_has_fp32_masters(name):
    model = tiny(dtype=torch.bfloat16)
    attached = ADAPTERS[name].attach(model, torch.Generator().manual_seed(0))
    if name != "ln_tuning":  # PEFT copies the norm itself, whose bf16 values an fp32 master holds exactly
        assert {p.dtype for p in attached.parameters().values()} == {torch.float32}
    created = attached.state()
    optimizer = Optimizer(attached.parameters(), TrainSettings(), torch.bfloat16)
    assert {p.dtype for p in attached.parameters().values()} == {torch.bfloat16}
    assert all(torch.equal(optimizer.masters[n], value.float()) for n, value in created.items())


def test_every_type_of_the_list_is_in_this_suite():
    assert set(OPTIONS) | {"LORA", "IA3", "LN_TUNING"} == PACKS
    assert not PACKS & (SOFT_PROMPTS | NEEDS_OWN_LOOP)


def test_a_type_that_is_not_on_the_list_says_so():
    _, attached = attached_to(Peft(peft_type="PSOFT", options={"r": 4}), torch.float32)
    assert not attached.packs
