"""A step is queued without a look at the device: one read, when everything is queued, is all it may do.

Meta tensors hold no values and refuse ``item``, ``tolist``, ``cpu`` and whatever else needs them, so a read in the
forward, the loss, the backward or the norm fails there, and would stall an accelerator. Methods are attached on a CPU,
since attaching may read; of their steps the operations are counted that need values.
"""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tests.adapt.cases import CASES, OPTIONS, made, put
from tests.models import samples, tiny
from torch.utils._python_dispatch import TorchDispatchMode

from frisket.errors import DataError
from frisket.hf.load import cast_parameters
from frisket.train import step as step_module
from frisket.train.loop import _Loader
from frisket.train.optim import Optimizer
from frisket.train.settings import TrainSettings
from frisket.train.step import Laying, lay_out, run_step

PAIRS = [(s, np.r_[0.0, np.ones(len(s) - 1)]) for s in samples(0, [14, 3, 17, 5])]
for _sequence, _ in PAIRS[::2]:
    _sequence.input_ids[:10] = PAIRS[0][0].input_ids[:10]  # shared, so that a forest has branches
ISOLATED = Laying("isolated", 40, 1, "grouped", 16)
READS = ("spiel", "spiel momentum")  # the ages of its entries, and how many are chosen in a phase that chooses
OWN = [name for name in CASES if name not in (*OPTIONS, *READS, "graft")]


class ReadError(Exception):
    """The step has come to its one read."""


class Values(TorchDispatchMode):
    """Which operations needed values on the host: ``item``, ``nonzero``, a mask as an index and the like."""

    TAGS = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(tag in func.tags for tag in self.TAGS) and not _is_queued(func, args, kwargs or {}):
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


def _is_queued(func, args, kwargs) -> bool:
    """Whether an operation with such a tag needs nothing here: ``x[numbers]``, or repeats whose sum is given."""
    if func is torch.ops.aten.repeat_interleave.Tensor:
        return kwargs.get("output_size") is not None
    return func is torch.ops.aten.index.Tensor and all(at is None or at.dtype != torch.bool for at in args[1])


def queue_on_meta(laying: Laying, compute: torch.dtype, monkeypatch) -> None:
    """Queue a step; ends in ``ReadError``."""

    def read(losses, norm):
        assert all(value.is_meta for value in (*losses, norm))
        raise ReadError

    monkeypatch.setattr(step_module, "_read", read)
    model = tiny("llama", torch.float32).to("meta")
    attached = made("lora", rank=4).attach(model, torch.Generator().manual_seed(0))
    optimizer = Optimizer(attached.parameters(), TrainSettings(), compute, method=attached)
    cast_parameters(model, compute)
    run_step(model.train(), attached, optimizer, lay_out(PAIRS, laying, "weights"), laying, number=1, rate=1e-3)


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", ["grouped", "sdpa"])
@pytest.mark.parametrize("arrangement", ["isolated", "padded", "forest", "mask-free"])
def test_a_step_is_queued_without_a_read(arrangement, backend, compute, monkeypatch):
    with pytest.raises(ReadError):
        queue_on_meta(Laying(arrangement, 40, 1, backend, 16), compute, monkeypatch)


def test_a_planted_read_is_found(monkeypatch):
    real = step_module.micro_batch_loss

    def looking(*given):
        loss = real(*given)
        assert loss.item() > 0
        return loss

    monkeypatch.setattr(step_module, "micro_batch_loss", looking)
    with pytest.raises(RuntimeError, match="meta"):
        queue_on_meta(ISOLATED, torch.float32, monkeypatch)


@pytest.mark.parametrize("name", OWN)
def test_no_method_needs_values_in_an_ordinary_step(name):
    assert not values_needed(name, number=2)


def test_values_are_seen():
    with Values() as seen:
        torch.ones(3)[torch.tensor([True, False, True])]
    assert "aten.index.Tensor" in seen.found


def values_needed(name: str, number: int) -> list[str]:
    """Operations of a step that needed values."""
    method = put(name, None, Path()).method
    model = tiny("llama", torch.float32)
    attached = method.attach(model, torch.Generator().manual_seed(0))
    optimizer = Optimizer(attached.parameters(), TrainSettings(), torch.float32, method=attached)
    step = lay_out(PAIRS, ISOLATED, "weights")
    attached.begin(8)
    run_step(model.train(), attached, optimizer, step, ISOLATED, number=number - 1, rate=1e-3)
    with Values() as seen:
        run_step(model, attached, optimizer, step, ISOLATED, number=number, rate=1e-3)
    return seen.found


def test_what_is_wrong_with_the_next_step_does_not_cost_this_one():
    """Found while a step is computed, an error is raised where its own step is taken."""

    def weighted(index):
        if index == 2:
            raise DataError("sample 2")
        return PAIRS[index]

    order = SimpleNamespace(steps=lambda after: iter([SimpleNamespace(samples=[0, 1]), SimpleNamespace(samples=[2])]))
    loader = _Loader(SimpleNamespace(order=order, weighted=weighted, laying=ISOLATED, normaliser="weights"), None, 2)
    step, laid = loader.take()
    assert step.samples == [0, 1]
    assert laid.sample_ids == tuple(sequence.sample_id for sequence, _ in PAIRS[:2])
    loader.prefetch()
    with pytest.raises(DataError, match="sample 2"):
        loader.take()
