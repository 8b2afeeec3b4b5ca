"""What only a CUDA device can show; left out where there is none."""

import numpy as np
import pytest
import torch
from tests.models import samples, tiny

from frisket.adapt.methods import Lora
from frisket.hf.load import cast_parameters
from frisket.train import step as step_module
from frisket.train.optim import Optimizer
from frisket.train.settings import TrainSettings
from frisket.train.step import Laying, lay_out, run_step
from frisket.transfer import to_device

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
LAYING = Laying("isolated", 40, 1, "grouped", 16)
STEP = lay_out([(s, np.r_[0.0, np.ones(len(s) - 1)]) for s in samples(0, [14, 3, 17, 5])], LAYING, "weights")


def losses(device: str, compute: torch.dtype, steps: int = 4) -> list[float]:
    """Of a few steps of LoRA."""
    model = tiny("llama", torch.float32).to(device)
    attached = Lora(method="lora", rank=4).attach(model.train(), torch.Generator().manual_seed(0))
    optimizer = Optimizer(attached.parameters(), TrainSettings(), compute, method=attached)
    cast_parameters(model, compute)
    return [
        run_step(model, attached, optimizer, STEP, LAYING, number=number, rate=1e-2).loss
        for number in range(1, steps + 1)
    ]


def test_the_device_computes_what_the_cpu_computes():
    assert losses("cuda", torch.float32) == pytest.approx(losses("cpu", torch.float32), rel=1e-4)
    assert losses("cuda", torch.bfloat16) == pytest.approx(losses("cpu", torch.float32), rel=2e-2)


def test_a_step_waits_for_the_device_once(monkeypatch):
    """Torch raises at every wait but those of the one read."""
    losses("cuda", torch.bfloat16, 2)  # first touches
    read = step_module._read

    def allowed(*given):
        torch.cuda.set_sync_debug_mode("default")
        try:
            return read(*given)
        finally:
            torch.cuda.set_sync_debug_mode("error")

    model = tiny("llama", torch.bfloat16).to("cuda")
    attached = Lora(method="lora", rank=4).attach(model.train(), torch.Generator().manual_seed(0))
    optimizer = Optimizer(attached.parameters(), TrainSettings(), torch.bfloat16, method=attached)
    monkeypatch.setattr(step_module, "_read", allowed)
    torch.cuda.set_sync_debug_mode("error")
    try:
        run_step(model, attached, optimizer, STEP, LAYING, number=1, rate=1e-2)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_host_array_comes_through_pinned_memory():
    found = to_device(np.arange(7), torch.device("cuda"))
    assert found.device.type == "cuda"
    assert found.tolist() == list(range(7))
