"""Masters, buffers and the four optimizers: frozen bytes, resume byte for byte, the schedule-free sequences."""

import math

import numpy as np
import pytest
import torch
from tests.models import samples, tiny
from torch import nn

from frisket.adapt.methods import Full, Lora
from frisket.errors import CheckError, ConfigError
from frisket.hf.load import cast_parameters, embedding_names
from frisket.train import checkpoint
from frisket.train.optim import Optimizer, has_own_masters, rate_at, shape_of, state_bytes
from frisket.train.scaling import GROW_AFTER, MOST_IN_A_ROW, START, LossScale
from frisket.train.settings import TrainSettings
from frisket.train.step import Laying, lay_out, run_step

NAMES = ("adamw", "adamw-8bit", "sgd", "schedule-free")
COMPUTE = (torch.float32, torch.bfloat16, torch.float16)
LAYING = Laying("isolated", 40, 1, "auto", 64)
RATES = {"sgd": 0.05}


class Tuned:
    """A tiny model under an optimizer, and its steps."""

    def __init__(self, name: str, compute: torch.dtype, method=None, **settings) -> None:
        self.model = tiny("llama", torch.float32, hidden_size=64, intermediate_size=96)
        method = method or Full(where=["*.down_proj", "*.q_proj", "embeddings", "norms"])
        self.attached = method.attach(self.model, torch.Generator().manual_seed(0))
        self.settings = TrainSettings(optimizer=name, **settings)
        names = embedding_names(self.model)
        self.optimizer = Optimizer(self.attached.parameters(), self.settings, compute, names)
        cast_parameters(self.model, compute)
        self.step_input = lay_out([(s, np.ones(len(s))) for s in samples(0, [30, 20, 25])], LAYING, "weights")
        self.rate = RATES.get(name, 3e-3)

    def steps(self, first: int, last: int) -> list[float]:
        run = (self.model, self.attached, self.optimizer, self.step_input, LAYING)
        return [run_step(*run, number=number, rate=self.rate).loss for number in range(first, last + 1)]

    def values(self) -> dict[str, torch.Tensor]:
        return {name: value.clone() for name, value in self.optimizer.masters.items()}


@pytest.mark.parametrize("compute", COMPUTE)
@pytest.mark.parametrize("name", NAMES)
def test_resume_is_byte_identical(tmp_path, name, compute):
    whole, first, second = (Tuned(name, compute, weight_decay=0.1) for _ in range(3))
    losses = whole.steps(1, 6)
    assert losses[-1] < losses[0]
    first.steps(1, 3)
    state = checkpoint.State(3, 0, 2, "", 6, "", "", 0.0, {})
    folder = checkpoint.save(tmp_path, state, first.optimizer.masters, first.optimizer.state(), 1)
    second.optimizer.load(*checkpoint.load_tensors(folder))
    assert second.steps(4, 6) == losses[3:]
    for ours, theirs in ((second.values(), whole.values()), (second.optimizer.state(), whole.optimizer.state())):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[n], theirs[n]) for n in ours)
    ours, theirs = second.model.state_dict(), whole.model.state_dict()
    assert all(torch.equal(ours[n], theirs[n]) for n in ours)


@pytest.mark.parametrize("compute", COMPUTE)
@pytest.mark.parametrize("name", NAMES)
def test_frozen_stays_frozen_under_decay_and_the_model_holds_the_masters(name, compute):
    tuned = Tuned(name, compute, weight_decay=0.5)
    before = {n: t.clone() for n, t in tuned.model.state_dict().items()}
    tuned.steps(1, 3)
    after = tuned.model.state_dict()
    assert {n for n in before if not torch.equal(before[n], after[n])} == set(tuned.optimizer.masters)
    for n, master in tuned.optimizer.masters.items():
        assert master.dtype == torch.float32
        assert torch.equal(after[n], master.to(compute))


@pytest.mark.parametrize("name", NAMES)
def test_lora_learns_under_every_optimizer(name):
    losses = Tuned(name, torch.float32, Lora(where="all-linear")).steps(1, 8)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", NAMES)
def test_stated_bytes_are_those_of_the_tensors(name):
    tuned = Tuned(name, torch.bfloat16)
    wide = embedding_names(tuned.model)
    assert wide == {"model.embed_tokens.weight"}
    shapes = {n: tuple(m.shape) for n, m in tuned.optimizer.masters.items()}
    stated = state_bytes(name, [s for n, s in shapes.items() if n not in wide], [shapes[n] for n in wide])
    assert stated == tuned.optimizer.state_bytes()


def test_bytes_per_entry():
    shape = [(4096, 4096)]
    assert state_bytes("sgd", shape) == 0
    assert state_bytes("adamw", shape) / 4096**2 == pytest.approx(8, abs=1e-3)
    assert state_bytes("schedule-free", shape) / 4096**2 == pytest.approx(8, abs=1e-3)
    assert state_bytes("adamw-8bit", shape) / 4096**2 == pytest.approx(2 + 8 / 256, abs=1e-3)
    assert state_bytes("adamw-8bit", [], shape) == state_bytes("adamw", shape)
    assert state_bytes("adamw-8bit", [(64, 63)]) == state_bytes("adamw", [(64, 63)])
    assert not has_own_masters("adamw", torch.float32)
    assert has_own_masters("adamw", torch.float16)
    assert has_own_masters("schedule-free", torch.float32)


def test_eight_bits_in_fp64_are_refused():
    with pytest.raises(ConfigError, match=r"adamw-8bit has fp32 masters.*fp64"):
        Optimizer({"a": nn.Parameter(torch.zeros(2))}, TrainSettings(optimizer="adamw-8bit"), torch.float64)


def _noise(seed: int) -> torch.Tensor:
    return torch.randn(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_schedule_free_is_the_authors_package(decay):
    package = pytest.importorskip("schedulefree", reason="schedulefree is not installed")
    ours, theirs = nn.Parameter(_noise(0)), nn.Parameter(_noise(0))
    settings = TrainSettings(optimizer="schedule-free", weight_decay=decay, clip=0)
    optimizer = Optimizer({"w": ours}, settings, torch.float64)
    other = package.AdamWScheduleFree([theirs], lr=0.05, weight_decay=decay, warmup_steps=4)
    other.train()
    for number in range(1, 12):
        optimizer.to_gradient_point()
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
        for weight in (ours, theirs):
            (weight * _noise(number)).sum().add((weight - 1).pow(4).sum()).backward()
        optimizer.accumulate()
        optimizer.update(0.05 * min(1.0, number / 4))
        optimizer.write_back()
        other.step()
        other.zero_grad()
        other.eval()
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)  # x, outside of a step
        assert torch.equal(ours, optimizer.masters["w"])
        other.train()


def test_schedule_free_starts_again_where_masters_are_put_in():
    tuned = Tuned("schedule-free", torch.bfloat16)
    tuned.steps(1, 3)
    tuned.optimizer.load_masters(tuned.values())
    tuned.optimizer.to_gradient_point()
    for name, parameter in tuned.attached.parameters().items():
        assert torch.equal(parameter, tuned.optimizer.masters[name].bfloat16())


def test_the_rate_of_schedule_free_does_not_fall_and_a_stated_schedule_is_told():
    auto, plain = TrainSettings(optimizer="schedule-free"), TrainSettings()
    assert (shape_of(auto), shape_of(plain)) == ("constant", "cosine")
    assert rate_at(100, 100, 1e-3, auto) == 1e-3 > rate_at(100, 100, 1e-3, plain)
    told = Tuned("schedule-free", torch.float32, schedule="cosine").optimizer.lines()
    assert "train.schedule=cosine has no effect" in told[1]
    assert len(Tuned("schedule-free", torch.float32, schedule="constant").optimizer.lines()) == 1
    assert not Tuned("adamw", torch.float32, schedule="linear").optimizer.lines()


def test_fp16_gradients_are_those_of_fp32():
    norms = []
    for compute in (torch.float32, torch.float16):
        tuned = Tuned("sgd", compute, clip=0)
        run_step(tuned.model, tuned.attached, tuned.optimizer, tuned.step_input, LAYING, number=1, rate=1.0)
        start = dict(tiny("llama", torch.float32, hidden_size=64, intermediate_size=96).named_parameters())
        norms.append({n: start[n].detach() - m.detach() for n, m in tuned.optimizer.masters.items()})
    for name, gradient in norms[0].items():
        assert float((norms[1][name] - gradient).norm() / gradient.norm()) < 0.01, name


def test_small_gradients_survive_in_fp16_only_scaled():
    tuned = Tuned("sgd", torch.float16, clip=0)
    tuned.step_input = lay_out([(s, np.ones(len(s))) for s in samples(0, [30])], LAYING, 1e8)
    before = tuned.values()
    tuned.optimizer.scale.state[0] = 1.0
    tuned.steps(1, 1)
    assert all(torch.equal(master, before[n]) for n, master in tuned.optimizer.masters.items())
    again = Tuned("sgd", torch.float16, clip=0)
    again.step_input = tuned.step_input
    again.rate = 1e8
    before = again.values()
    again.steps(1, 1)
    assert all(not torch.equal(master, before[n]) for n, master in again.optimizer.masters.items())


def test_a_gradient_beyond_fp16_is_computed_again_with_half_the_scale():
    tuned, plain = Tuned("adamw", torch.float16), Tuned("adamw", torch.float16)
    tuned.optimizer.scale.state[0] = 2.0**30
    run = (tuned.model, tuned.attached, tuned.optimizer, tuned.step_input, LAYING)
    moved = run_step(*run, number=1, rate=1e-3)
    assert moved.skipped > 5
    assert tuned.optimizer.scale.factor == 2.0 ** (30 - moved.skipped)
    assert math.isfinite(moved.norm)
    assert run_step(*run, number=2, rate=1e-3).skipped == 0
    moved = run_step(plain.model, plain.attached, plain.optimizer, plain.step_input, LAYING, number=1, rate=1e-3)
    assert moved.skipped == 0


def test_a_scale_that_finds_no_finite_gradient_is_an_error():
    tuned = Tuned("adamw", torch.float16)
    before = {n: t.clone() for n, t in tuned.model.state_dict().items()}
    for parameter in tuned.attached.parameters().values():
        parameter.register_hook(lambda grad: grad * math.inf)
    with pytest.raises(CheckError, match=r"in fp16 was not finite 17 times in a row.*\n.*train\.compute=fp32"):
        tuned.steps(1, 1)
    after = tuned.model.state_dict()
    assert all(torch.equal(before[n], after[n]) for n in before)


def test_the_scale_grows_after_many_good_steps_and_gives_up_in_the_end():
    scale = LossScale()
    for _ in range(GROW_AFTER):
        scale.passed()
    assert scale.state.tolist() == [2 * START, 0.0]
    scale.state[0] = 2.0**100
    for _ in range(MOST_IN_A_ROW):
        scale.lower(1)
    with pytest.raises(CheckError, match=f"{MOST_IN_A_ROW + 1} times in a row"):
        scale.lower(1)
