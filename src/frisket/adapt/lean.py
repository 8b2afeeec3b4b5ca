"""LoRA beside a frozen linear layer in fewer passes than PEFT's own forward: y = x W^T + b + s (x A^T) B^T.

PEFT adds the change in a pass of its own and scales it in another, forward and backward, and autograd adds the two
gradients of x in a third. Here scale and sums are part of the matrix products. The mathematics is the same; the bits
are not, because a product that adds rounds once less. Everything PEFT knows beyond that (dropout, DoRA and the other
variants, several adapters, a merged layer, quantised weights) is left to PEFT's forward.
"""

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def compute_lean(model: nn.Module) -> int:
    """Let every LoRA layer of a model that is of the plain kind compute itself in fewer passes.

    Returns:
        How many layers do.
    """
    from peft.tuners.lora.layer import Linear

    layers = [module for module in model.modules() if type(module) is Linear and _adapter_of(module) is not None]
    for layer in layers:
        layer.forward = MethodType(_forward, layer)
    return len(layers)


def _forward(layer: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    name = None if args or kwargs else _adapter_of(layer)
    if name is None or layer.disable_adapters or layer.merged:
        return type(layer).forward(layer, x, *args, **kwargs)
    base, down, up = layer.get_base_layer(), layer.lora_A[name].weight, layer.lora_B[name].weight
    if not x.dtype == base.weight.dtype == down.dtype == up.dtype or base.weight.requires_grad:
        return type(layer).forward(layer, x)
    return _PlainLora.apply(x, base.weight, base.bias, down, up, layer.scaling[name])  # pyright: ignore


def _adapter_of(layer: Any) -> str | None:
    """The one adapter of a plain layer; None where PEFT's forward does more than the formula above."""
    if len(layer.active_adapters) != 1 or type(layer.get_base_layer()) is not nn.Linear or layer.fan_in_fan_out:
        return None
    (name,) = layer.active_adapters
    plain = (
        name in layer.lora_A
        and name not in layer.lora_variant
        and type(layer.lora_dropout[name]) is nn.Identity
        and layer.lora_A[name].bias is None
        and layer.lora_B[name].bias is None
    )
    hooked = any(module._forward_hooks or module._forward_pre_hooks for module in layer.children())
    return name if plain and not hooked else None


class _PlainLora(torch.autograd.Function):
    """The formula, and its gradient for x, A and B."""

    @staticmethod
    def forward(ctx, x, weight, bias, down, up, scale):
        flat = x.reshape(-1, x.shape[-1])
        narrow = flat @ down.T
        y = torch.addmm(bias, flat, weight.T) if bias is not None else flat @ weight.T
        y.addmm_(narrow, up.T, alpha=scale)
        ctx.save_for_backward(flat, narrow, weight, down, up)
        ctx.scale = scale
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        flat, narrow, weight, down, up = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        g = grad.reshape(-1, grad.shape[-1])
        d_narrow = (g @ up).mul_(ctx.scale)
        d_down = d_narrow.T @ flat if wanted[3] else None
        d_up = (g.T @ narrow).mul_(ctx.scale) if wanted[4] else None
        d_x = (g @ weight).addmm_(d_narrow, down).view(*grad.shape[:-1], -1) if wanted[0] else None
        return d_x, None, None, d_down, d_up, None
