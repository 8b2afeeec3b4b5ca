"""One suite over every method: what moves, what does not, and that packed rows give the gradients of lone samples."""

from pathlib import Path

import numpy as np
import peft
import pytest
import torch
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
from frisket.train.step import Laying, lay_out, run_step

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

OPTIONS = {
    "VERA": {"r": 4},
    "LOHA": {"r": 4},
    "LOKR": {"r": 4},
    "OFT": {"oft_block_size": 4},
    "BOFT": {"boft_block_size": 4},
    "FOURIERFT": {"n_frequency": 16},
    "HRA": {"r": 4},
    "RANDLORA": {"r": 4},
    "MISS": {"r": 4},
    "DELORA": {"r": 4},
    "C3A": {"block_size": 4},
    "DEFT": {"r": 4},
    "GLORA": {"r": 4},
    "GRALORA": {"r": 4, "gralora_k": 2},
    "HIRA": {"r": 4},
    "PEANUT": {"r": 4},
    "ROAD": {"group_size": 4},
    "SHIRA": {"r": 1},
    "TINYLORA": {"r": 2},
    "VBLORA": {"r": 2, "num_vectors": 8, "vector_length": 4, "topk": 2},
    "WAVEFT": {"n_frequency": 16},
}
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
ROUNDS = {"FOURIERFT", "C3A", "DEFT"}  # PEFT computes these changes in float32, whatever the model's type
STARTS_ELSEWHERE = {"FOURIERFT", "C3A", "VBLORA"}  # PEFT's default initialisation is not the base
SAME_WHATEVER_THE_SEED = {  # they start at constants, or draw what is frozen from a seed in their own options
    *("ia3", "ln_tuning", "VERA", "OFT", "BOFT", "RANDLORA", "MISS", "ROAD", "SHIRA", "TINYLORA", "WAVEFT")
}
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


@pytest.mark.parametrize("name", ADAPTERS | FULL)
def test_three_steps_with_decay_move_the_stated_weights_and_no_other_byte(name):
    method = (ADAPTERS | FULL)[name]
    model, attached = attached_to(method)
    optimizer = Optimizer(attached.parameters(), TrainSettings(weight_decay=0.1), torch.float64)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    laying = Laying("isolated", 20, 1, "grouped", 64)
    step = lay_out(list(PAIRS.values()), laying, "weights")
    assert len(step.micro_batches) > 1
    for number in (1, 2, 3):
        run_step(model, attached, optimizer, step, laying, number=number, rate=1e-2)
    after = model.state_dict()
    moved = {n for n in before if not torch.equal(before[n], after[n])}
    shared = {id(p) for p in attached.parameters().values()}
    stated = {n for n, p in model.named_parameters(remove_duplicate=False) if id(p) in shared}
    assert moved == stated
    assert set(attached.parameters()) <= stated
    if name in ADAPTERS:
        attached.detach()
        base = tiny().state_dict()
        assert all(torch.equal(tensor, base[n]) for n, tensor in model.state_dict().items())


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
def test_attaching_starts_at_the_base_and_detaching_gives_it_back(name):
    model = tiny()
    base = {n: t.clone() for n, t in model.state_dict().items()}
    before = hidden_states(model, PACKED[0])
    attached = ADAPTERS[name].attach(model, torch.Generator().manual_seed(0))
    model.to(torch.float64)
    started = (hidden_states(model, PACKED[0]) - before).abs().max()
    if name in STARTS_ELSEWHERE:
        assert started > 1e-3
    else:
        assert started <= (1e-5 if name in ROUNDS else 1e-12)
    if name in TYPED:
        assert started == 0
    shake(attached)
    assert not torch.equal(hidden_states(model, PACKED[0]), before)
    with attached.switched_off():
        assert torch.equal(hidden_states(model, PACKED[0]), before)
    attached.detach()
    assert model.state_dict().keys() == base.keys()
    assert all(torch.equal(tensor, base[n]) for n, tensor in model.state_dict().items())
    assert torch.equal(hidden_states(model, PACKED[0]), before)


@pytest.mark.parametrize("name", ADAPTERS)
def test_merged_equals_attached(name):
    for dtype, bar in ((torch.float64, 1e-5 if name in ROUNDS else 1e-10), (torch.float32, 1e-4)):
        model, attached = attached_to(ADAPTERS[name], dtype)
        shake(attached)
        names = set(tiny(dtype=dtype).state_dict())
        before = hidden_states(model, PACKED[0])
        attached.merge()
        assert (hidden_states(model, PACKED[0]) - before).abs().max() <= bar
        assert set(model.state_dict()) == names


@pytest.mark.parametrize("name", ADAPTERS)
def test_packed_rows_give_the_gradients_of_one_sample_at_a_time(name):
    """What puts a type on the list PACKS."""
    model, attached = attached_to(ADAPTERS[name])
    assert attached.packs
    shake(attached)
    packed = gradients(model, attached, PACKED)
    alone = gradients(model, attached, pack(SEQUENCES, "alone", 1))
    bar = 1e-5 if name in ROUNDS else 1e-10
    for parameter, gradient in alone.items():
        assert gradient.norm() > 0
        assert (packed[parameter] - gradient).norm() <= bar * gradient.norm(), parameter


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
def test_the_seed_decides_and_the_global_generator_is_not_touched(name):
    before = torch.get_rng_state()
    first, again, other = (attached_to(ADAPTERS[name], torch.float32, seed)[1].state() for seed in (0, 0, 1))
    torch.manual_seed(0)  # `tiny` itself seeds; what follows looks at attaching alone
    model = tiny(dtype=torch.float32)
    state = torch.get_rng_state()
    ADAPTERS[name].attach(model, torch.Generator().manual_seed(5))
    assert torch.equal(torch.get_rng_state(), state)
    torch.set_rng_state(before)
    assert all(torch.equal(value, again[n]) for n, value in first.items())
    differs = any(not torch.equal(value, other[n]) for n, value in first.items())
    assert differs == (name not in SAME_WHATEVER_THE_SEED)


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
