"""AdamW whose two moments are kept in 8 bits an entry, in plain torch, so that it runs wherever torch does.

Source: Dettmers et al. 2021, arXiv 2110.02861: block-wise (section 2.1) dynamic quantisation (section 1.3, appendix
F.2), tensors below 4,096 entries in 32 bits. A block is 256 entries, as in bitsandbytes today (the paper: 2,048).
Differs: a second moment that is not 0 never becomes 0, where the paper's rounding lets it; an entry whose gradient then
stays away would move by its first moment over epsilon. No stable embedding layer (section 2.3), which would change the
model; its other half, 32-bit state for the embedding, is ``Optimizer``'s ``wide``.
"""

import math
from collections.abc import Iterable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 256
SMALLEST = 4096
_AT_ONCE = BLOCK * 2**14  # entries whose moments exist in 32 bits at one time


def is_quantised(entries: int) -> bool:
    """Whether a tensor of so many entries keeps its moments in 8 bits."""
    return entries >= SMALLEST


def moment_bytes(entries: int) -> int:
    """Bytes of one 8-bit moment: a code an entry, and the largest magnitude of each block."""
    return entries + 4 * math.ceil(entries / BLOCK)


@cache
def dynamic_map(signed: bool) -> Tensor:
    """The 256 values that a code stands for, ascending, as shares of its block's largest magnitude.

    Seven decades from 1e-6 to 1; decade i has 2^i values (unsigned: 2^(i+1)), the middles of equal parts of it; and 0
    and 1. Signed values have their mirror images, but for 1.
    """
    values = [0.0, 1.0]
    for i in range(7):
        edges = torch.linspace(0.1, 1, 2 ** (i if signed else i + 1) + 1, dtype=torch.float64)
        middles = (10.0 ** (i - 6) * (edges[1:] + edges[:-1]) / 2).tolist()
        values += middles
        values += [-middle for middle in middles] if signed else []
    return torch.tensor(sorted(values), dtype=torch.float32)


@cache
def _borders(signed: bool) -> Tensor:
    """Between which values a code is chosen: the nearest one, but only 0 itself becomes an unsigned 0."""
    values = dynamic_map(signed)
    borders = (values[1:] + values[:-1]) / 2
    if not signed:
        borders[0] = 0.0
    return borders


def quantise(values: Tensor, signed: bool) -> tuple[Tensor, Tensor]:
    """Codes (uint8, one an entry) and the largest magnitude of each block of a flat tensor."""
    padding = -len(values) % BLOCK
    blocks = F.pad(values, (0, padding)).view(-1, BLOCK)
    largest = blocks.abs().amax(1)
    shares = blocks / largest.clamp(min=torch.finfo(torch.float32).tiny)[:, None]
    codes = torch.bucketize(shares, _borders(signed).to(values.device), out_int32=True).to(torch.uint8)
    return codes.view(-1)[: len(values)], largest


def dequantise(codes: Tensor, largest: Tensor, signed: bool) -> Tensor:
    """The flat fp32 values that the codes stand for."""
    shares = F.embedding(codes.int(), dynamic_map(signed).to(codes.device)[:, None])[:, 0]
    scales = largest.repeat_interleave(BLOCK)[: len(codes)]
    return shares.mul_(scales)


class AdamW8bit(torch.optim.Optimizer):
    """AdamW with quantised moments; all state exists from the start.

    Args:
        groups: parameter groups of contiguous fp32 tensors, each with its ``weight_decay``; ``wide`` groups keep 32-bit
            moments.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], betas: tuple[float, float], eps: float) -> None:
        super().__init__(groups, {"lr": 0.0, "betas": betas, "eps": eps, "weight_decay": 0.0, "wide": False})
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter] = _fresh(parameter, quantised=not group["wide"])

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Move every parameter that has a gradient, a stretch of ``_AT_ONCE`` entries at a time."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                state["step"] += 1
                flat, grad = parameter.view(-1), parameter.grad.reshape(-1)
                for start in range(0, len(flat), _AT_ONCE):
                    part = slice(start, start + _AT_ONCE)
                    _move(flat[part], grad[part], _stretch(state, start), int(state["step"]), group)


def _fresh(parameter: Tensor, *, quantised: bool) -> dict[str, Tensor]:
    entries, device = parameter.numel(), parameter.device
    state = {"step": torch.zeros((), dtype=torch.float32)}
    for moment, signed in (("exp_avg", True), ("exp_avg_sq", False)):
        zeros = torch.zeros(entries, dtype=torch.float32, device=device)
        if quantised and is_quantised(entries):
            state[moment], state[f"{moment}_largest"] = quantise(zeros, signed)
        else:
            state[moment] = zeros
    return state


def _stretch(state: dict[str, Tensor], start: int) -> dict[str, Tensor]:
    """Views of the moments of one stretch."""
    part, blocks = slice(start, start + _AT_ONCE), slice(start // BLOCK, (start + _AT_ONCE) // BLOCK)
    return {name: value[blocks if name.endswith("largest") else part] for name, value in state.items() if value.dim()}


def _move(values: Tensor, grad: Tensor, state: dict[str, Tensor], step: int, group: dict[str, Any]) -> None:
    first, second = (_read(state, moment, signed) for moment, signed in (("exp_avg", True), ("exp_avg_sq", False)))
    beta1, beta2 = group["betas"]
    first.lerp_(grad, 1 - beta1)
    second.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    values.mul_(1 - group["lr"] * group["weight_decay"])
    root = second.sqrt().div_(math.sqrt(1 - beta2**step)).add_(group["eps"])
    values.addcdiv_(first, root, value=-group["lr"] / (1 - beta1**step))
    for moment, value, signed in (("exp_avg", first, True), ("exp_avg_sq", second, False)):
        if f"{moment}_largest" in state:
            codes, largest = quantise(value, signed)
            state[moment].copy_(codes)
            state[f"{moment}_largest"].copy_(largest)


def _read(state: dict[str, Tensor], moment: str, signed: bool) -> Tensor:
    """A moment in 32 bits: a copy where it is quantised, else the very state."""
    largest = state.get(f"{moment}_largest")
    return state[moment] if largest is None else dequantise(state[moment], largest, signed)
