"""Mask fine-tuning against its formulas in slow dense code: counts, gradients, ties, what is saved."""

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tests.models import samples, tiny

from frisket.adapt import sparse
from frisket.adapt.methods import load_adapter
from frisket.adapt.mft import AttachedMft, Mft, switched_on
from frisket.adapt.rates import rate_of
from frisket.attend.pack import pack
from frisket.errors import CheckError, ConfigError, UnsupportedError
from frisket.hf.forward import hidden_states
from frisket.hf.heads import head_of
from frisket.recipe import Recipe
from frisket.supervise.loss import summed_loss
from frisket.supervise.predictions import predictions
from frisket.train.optim import Optimizer
from frisket.train.settings import TrainSettings
from frisket.train.step import Laying, lay_out, run_step

SEQUENCES = samples(0, [7, 3, 12, 5])
PAIRS = {s.sample_id: (s, np.r_[0.0, np.linspace(0.5, 1.5, len(s) - 1)]) for s in SEQUENCES}
(PACKED,) = pack(SEQUENCES, "isolated", 64)
LAYING = Laying("isolated", 20, 1, "grouped", 64)
BOTH = pytest.mark.parametrize("scope", ["local", "global"])


def put_on(method: Mft, dtype=torch.float32, seed: int = 0):
    model = tiny(dtype=dtype)
    return model, method.attach(model, torch.Generator().manual_seed(seed))


def weight_of(name: str) -> str:
    return name.replace(".parametrizations.weight.0.scores", ".weight")


def trained(model, attached, steps: int = 3, compute=torch.float32, check=lambda: None, rate=0.01) -> Optimizer:
    optimizer = Optimizer(attached.parameters(), TrainSettings(weight_decay=0.1), compute, (), attached)
    attached.begin(steps)
    step = lay_out(list(PAIRS.values()), LAYING, "weights")
    for number in range(1, steps + 1):
        run_step(model, attached, optimizer, step, LAYING, number=number, rate=rate)
        check()
    return optimizer


def masks_in_force(attached: AttachedMft) -> dict[str, torch.Tensor]:
    return {name: part.mask.clone() for name, part in attached._parts.items()}


def slow_mask(scores: list[float], keep: float) -> list[int]:
    """The sheet's rule, entry by entry: ascending by magnitude, of equal ones the first first, the first are off."""
    order = sorted(range(len(scores)), key=lambda i: (abs(scores[i]), i))
    off = set(order[: len(scores) - round(keep * len(scores))])
    return [int(i not in off) for i in range(len(scores))]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([-2.0, -1.0, 0.0, 0.5, 1.0, 3.0]), min_size=1, max_size=40), st.floats(0.01, 1.0))
def test_the_mask_is_that_of_a_stable_sort(scores, keep):
    found = switched_on(torch.tensor(scores).abs(), keep)
    assert found.int().tolist() == slow_mask(scores, keep)
    assert int((~found).sum()) == len(scores) - round(keep * len(scores))


def test_a_share_that_floats_cannot_hold_is_counted_right():
    """int((1 - 0.9) * 100) is 9."""
    assert int((~switched_on(torch.randn(100).abs(), 0.9)).sum()) == 10


@BOTH
def test_every_matched_matrix_has_the_stated_zeros_at_every_step_and_no_other_module_any(scope):
    model, attached = put_on(Mft(keep=0.85, scope=scope, where=["*.q_proj", "mlp", {"layers": 1}]))

    def check() -> None:
        counts = {name: (int((~m).sum()), m.numel()) for name, m in masks_in_force(attached).items()}
        if scope == "local":
            assert all(off == n - round(0.85 * n) for off, n in counts.values())
        n = sum(n for _, n in counts.values())
        if scope == "global":
            assert sum(off for off, _ in counts.values()) == n - round(0.85 * n)
            assert len({off / n for off, n in counts.values()}) > 1
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Linear) and name != "lm_head":
                inside = f"{name}.parametrizations.weight.0.scores" in counts
                assert ((module.weight == 0).sum() > 0) == inside, name

    check()
    start = masks_in_force(attached)
    trained(model, attached, check=check)
    now = masks_in_force(attached)
    assert len(now) == 4
    assert any(not torch.equal(start[name], now[name]) for name in now)
    assert sum(p.numel() for p in attached.parameters().values()) == 32 * 32 + 3 * 32 * 48


@BOTH
def test_only_scores_move_and_only_they_have_optimizer_state(scope):
    model, attached = put_on(Mft(scope=scope))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = trained(model, attached)
    after = model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == set(attached.parameters())
    assert set(optimizer.masters) == moved
    assert {name.rpartition("/")[0] for name in optimizer.state()} == moved
    assert not any(attached.decays(name) for name in moved)
    attached.detach()
    base = tiny(dtype=torch.float32).state_dict()
    assert model.state_dict().keys() == base.keys()
    assert all(torch.equal(tensor, base[name]) for name, tensor in model.state_dict().items())


@BOTH
def test_the_model_computes_with_multiplied_weights_and_scores_get_the_gradient_of_the_formula(scope):
    model, attached = put_on(Mft(keep=0.7, scope=scope), torch.float64)
    dense = tiny()
    weights = dict(dense.named_parameters())
    plain = {name: weights[weight_of(name)].detach().clone() for name in attached.parameters()}
    with torch.no_grad():
        for name, mask in masks_in_force(attached).items():
            weights[weight_of(name)].mul_(mask)
    losses = []
    for each in (model, dense):
        hidden = hidden_states(each, PACKED)
        losses.append(summed_loss(hidden, predictions(PACKED, PAIRS), head_of(each), 8))
        losses[-1].backward()
    assert torch.equal(*losses)
    for name, scores in attached.parameters().items():
        expected = weights[weight_of(name)].grad * plain[name] * torch.sign(scores.detach())
        assert scores.grad is not None
        assert torch.equal(scores.grad, expected), name
        assert expected.norm() > 0
    still = [name for name, p in model.named_parameters() if p.grad is not None and name not in attached.parameters()]
    assert not still


def test_everything_kept_is_the_base_exactly_whatever_the_scores():
    base = hidden_states(tiny(dtype=torch.float32), PACKED)
    model, attached = put_on(Mft(keep=1))
    trained(model, attached)
    assert torch.equal(hidden_states(model, PACKED), base)
    attached.merge()
    assert torch.equal(hidden_states(model, PACKED), base)


def test_switched_off_is_the_base_and_other_masks_last_as_long_as_the_context():
    base = hidden_states(tiny(dtype=torch.float32), PACKED)
    model, attached = put_on(Mft())
    masked = hidden_states(model, PACKED)
    with attached.switched_off():
        assert torch.equal(hidden_states(model, PACKED), base)
    with attached.masked_by({name: ~mask for name, mask in masks_in_force(attached).items()}):
        assert not torch.equal(hidden_states(model, PACKED), masked)
    assert torch.equal(hidden_states(model, PACKED), masked)
    assert not torch.equal(masked, base)


@BOTH
@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
def test_what_is_saved_is_the_mask_in_force_and_loaded_gives_the_same_logits(scope, compute, tmp_path: Path):
    """In bf16 many scores share few values, and masters, saved as they are, would rank otherwise."""
    model, attached = put_on(Mft(scope=scope), compute)
    optimizer = trained(model, attached, compute=compute, rate=1e-4)
    model.eval()
    ours = head_of(model).logits(hidden_states(model, PACKED))
    attached.save(tmp_path, optimizer.masters)
    changes, kept = sparse.read(tmp_path)
    for name, mask in masks_in_force(attached).items():
        assert torch.equal(changes[weight_of(name)].indices, (~mask).flatten().nonzero()[:, 0])
    assert kept["keep"] == 0.9
    again = tiny(dtype=compute).eval()
    loaded = load_adapter(again, tmp_path)
    assert torch.equal(head_of(again).logits(hidden_states(again, PACKED)), ours)
    base = tiny(dtype=compute).state_dict()
    with loaded.switched_off():
        assert all(torch.equal(tensor, base[name]) for name, tensor in again.state_dict().items())
    attached.merge()
    assert torch.equal(head_of(model).logits(hidden_states(model, PACKED)), ours)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())
    loaded.merge()
    loaded.detach()
    assert all(torch.equal(tensor, base[name]) for name, tensor in again.state_dict().items())
    assert not loaded.parameters()
    with pytest.raises(UnsupportedError, match="not written again"):
        loaded.save(tmp_path, {})


def test_a_mask_costs_one_bit_an_entry_or_less(tmp_path: Path):
    for keep, kind in ((0.9, "bits"), (0.99, "indices")):
        _, attached = put_on(Mft(keep=keep))
        attached.save(tmp_path, attached.state())
        tensors = load_file(tmp_path / sparse.VALUES)
        for name, scores in attached.parameters().items():
            n = scores.numel()
            wanted = math.ceil(n / 8) if kind == "bits" else n - round(keep * n)
            assert tensors[f"{weight_of(name)}.{kind}"].numel() == wanted


def test_a_mask_for_another_base_or_a_broken_file_is_refused(tmp_path: Path):
    _, attached = put_on(Mft())
    attached.save(tmp_path, attached.state())
    other = tiny(dtype=torch.float32)
    with torch.no_grad():
        other.model.layers[1].mlp.up_proj.weight[0, 0] += 1
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(CheckError, match=r"up_proj.weight is not the tensor that this change was made for"):
        load_adapter(other, tmp_path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())
    save_file({"x": torch.zeros(1)}, tmp_path / sparse.OLD)
    with pytest.raises(CheckError, match="holds no whole sparse adapter"):
        load_adapter(tiny(dtype=torch.float32), tmp_path)


def test_a_stopped_and_resumed_run_has_the_scores_and_masks_of_a_whole_one():
    whole, attached = put_on(Mft(keep=0.8), torch.bfloat16)
    step = lay_out(list(PAIRS.values()), LAYING, "weights")
    optimizer = trained(whole, attached, 2, torch.bfloat16)
    saved = [{name: value.clone() for name, value in part.items()} for part in (optimizer.moving(), optimizer.state())]
    run_step(whole, attached, optimizer, step, LAYING, number=3, rate=0.01)
    again, resumed = put_on(Mft(keep=0.8), torch.bfloat16)
    second = Optimizer(resumed.parameters(), TrainSettings(weight_decay=0.1), torch.bfloat16, (), resumed)
    second.load(*saved)
    run_step(again, resumed, second, step, LAYING, number=3, rate=0.01)
    assert all(torch.equal(value, second.masters[name]) for name, value in optimizer.masters.items())
    masks = masks_in_force(resumed)
    assert all(torch.equal(mask, masks[name]) for name, mask in masks_in_force(attached).items())


def test_the_seed_draws_the_scores_and_their_spread_is_as_stated():
    first, again, other = (put_on(Mft(score_spread=0.5), seed=seed)[1].state() for seed in (3, 3, 4))
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert all(not torch.equal(value, other[name]) for name, value in first.items())
    values = torch.cat([value.flatten() for value in first.values()])
    assert abs(float(values.std()) - 0.5) < 0.02


def test_the_declared_rates_of_a_run_sum_to_three_spreads():
    for spread, steps in ((0.02, 100), (0.5, 37)):
        rate = rate_of(Mft(score_spread=spread).declared_rate, 256, steps)
        peaks = [0.5 * (1 + math.cos(math.pi * step / steps)) for step in range(steps)]
        assert rate.value * sum(peaks) == pytest.approx(3 * spread, rel=0.06)
        assert f"{3 * spread:g} in {steps:,} steps" in rate.why


def test_scaling_scores_and_rate_together_changes_no_mask():
    found = []
    for factor in (1, 64):
        model, attached = put_on(Mft(score_spread=factor / 64), torch.float64)
        trained(model, attached, compute=torch.float64, rate=0.005 * factor)
        found.append(masks_in_force(attached))
    assert all(torch.equal(mask, found[1][name]) for name, mask in found[0].items())


@pytest.mark.parametrize("keep", [0, -0.1, 1.01])
def test_a_share_outside_0_to_1_is_refused(keep):
    with pytest.raises(ConfigError, match=r"adapt.keep = .* must be") as refused:
        Recipe.model_validate({"adapt": {"method": "mft", "keep": keep}})
    assert "adapt.keep=" in str(refused.value).splitlines()[-1]


def test_what_holds_no_linear_layer_is_refused_and_what_is_left_out_is_said():
    with pytest.raises(ConfigError, match="no linear layer, and mft"):
        put_on(Mft(where="norms"))
    with pytest.raises(UnsupportedError, match="expert tensors, and mft"):
        Mft(where="experts").attach(tiny("qwen3_moe"), torch.Generator())
    _, attached = put_on(Mft(where=["norms", "mlp"]))
    assert attached.match.notes == ("5 matched modules are no linear layers: not masked",)


def test_it_stands_on_a_model_without_weights_for_a_forecast():
    with torch.device("meta"):
        model = tiny("llama", dtype=torch.float32)
    attached = Mft(scope="global").attach(model, torch.Generator().manual_seed(0))
    assert all(scores.is_meta for scores in attached.parameters().values())


def test_more_of_the_mask_moves_the_more_the_rates_sum_to():
    moved = []
    for rate in (1e-4, 1e-3, 1e-2):
        model, attached = put_on(Mft())
        start = masks_in_force(attached)
        trained(model, attached, rate=rate)
        moved.append(sum(int((start[name] != mask).sum()) for name, mask in masks_in_force(attached).items()))
    assert all(a < b for a, b in pairwise([0, *moved]))
