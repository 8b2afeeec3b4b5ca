"""8-bit moments: the map of the paper, its errors, and an AdamW that comes close to the one in 32 bits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from frisket.train.adam8bit import BLOCK, AdamW8bit, dequantise, dynamic_map, moment_bytes, quantise


def test_the_map_has_seven_decades_of_middles():
    signed, unsigned = dynamic_map(True), dynamic_map(False)
    for values, smallest, parts in ((signed, 0.55e-6, 64), (unsigned, 0.325e-6, 128)):
        assert len(values) == 256 == len(values.unique())
        assert values[-1] == 1
        assert (values == 0).sum() == 1
        assert float(values[values > 0].min()) == pytest.approx(smallest)
        assert int(((values > 0.1) & (values < 1)).sum()) == parts
    assert (unsigned >= 0).all()
    assert torch.equal(signed[signed < 0], -signed[(signed > 0) & (signed < 1)].flip(0))


def test_the_map_is_that_of_bitsandbytes():
    functional = pytest.importorskip("bitsandbytes.functional", reason="bitsandbytes is not installed")
    for signed in (True, False):
        torch.testing.assert_close(dynamic_map(signed), functional.create_dynamic_map(signed), rtol=1e-5, atol=0)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 3 * BLOCK), st.floats(-12, 6), st.booleans())
def test_an_entry_becomes_the_nearest_value_of_the_map(seed, entries, power, signed):
    generator = torch.Generator().manual_seed(seed)
    spread = 10 ** (-5 * torch.rand(entries, generator=generator))
    values = 10.0**power * torch.randn(entries, generator=generator) * spread
    values = values if signed else values.abs()
    codes, largest = quantise(values, signed)
    assert codes.dtype == torch.uint8
    assert (len(codes), len(largest)) == (entries, -(-entries // BLOCK))
    scales = largest.repeat_interleave(BLOCK)[:entries]
    shares = values / scales
    nearest = (shares[:, None] - dynamic_map(signed)).abs().amin(1)
    errors = ((dequantise(codes, largest, signed) - values) / scales).abs()
    allowed = nearest * (1 + 1e-4) + (1e-7 if signed else 4e-7)  # an unsigned entry never becomes 0
    assert (errors <= allowed).all()
    top = shares.abs() >= 0.1
    assert (errors[top] <= 0.9 / 2 / (64 if signed else 128) + 1e-6).all()  # half a part of the first decade


def test_zero_stays_zero_and_a_second_moment_never_becomes_zero():
    values = torch.zeros(BLOCK + 3)
    values[0], values[1] = 1.0, 1e-12
    codes, largest = quantise(values, signed=False)
    back = dequantise(codes, largest, signed=False)
    assert back[0] == 1
    assert back[1] > 0
    assert not back[2:].any()
    codes, largest = quantise(torch.zeros(7), signed=True)
    assert not dequantise(codes, largest, signed=True).any()


def _train(update_of, steps: int = 60) -> tuple[float, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, target = torch.randn(64, 80, generator=generator), torch.randn(64, 70, generator=generator)
    weight = nn.Parameter(torch.zeros(80, 70))  # 5,600 entries: quantised, with a last block that is not full
    update = update_of(weight)
    for _ in range(steps):
        loss = (x @ weight - target).square().mean()
        loss.backward()
        update.step()
        update.zero_grad()
    return (x @ weight - target).square().mean().item(), weight.detach()


def _eight(weight, *, wide=False):
    update = AdamW8bit([{"params": [weight], "weight_decay": 0.1, "wide": wide}], (0.9, 0.999), 1e-8)
    update.param_groups[0]["lr"] = 1e-2
    return update


def test_eight_bits_come_close_to_adamw_and_wide_is_adamw():
    exact, reference = _train(lambda w: torch.optim.AdamW([w], lr=1e-2, betas=(0.9, 0.999), weight_decay=0.1))
    close, quantised = _train(_eight)
    same, wide = _train(lambda w: _eight(w, wide=True))
    torch.testing.assert_close(wide, reference, rtol=1e-4, atol=1e-6)
    assert same == pytest.approx(exact, rel=1e-4)
    assert close == pytest.approx(exact, rel=0.02)
    assert not torch.equal(quantised, reference)
    assert float((quantised - reference).norm() / reference.norm()) < 0.05


def test_a_stretch_more_changes_nothing(monkeypatch):
    _, whole = _train(_eight, steps=5)
    monkeypatch.setattr("frisket.train.adam8bit._AT_ONCE", 4 * BLOCK)
    _, pieces = _train(_eight, steps=5)
    assert torch.equal(whole, pieces)


def test_bytes_of_a_moment_are_those_of_its_tensors():
    weight = nn.Parameter(torch.zeros(81, 70))
    state = _eight(weight).state[weight]
    assert sum(v.nbytes for name, v in state.items() if name != "step") == 2 * moment_bytes(weight.numel())
