"""Root-mean-square norms in fewer passes over activations than transformers' own code makes.

Only modules whose forward is, instruction by instruction, that of Llama's norm (most families copy it) are computed
here; the rest compute themselves. y = w n, n = x / sqrt(mean(x^2) + eps); with d = w g the gradient is
dx = (d - n mean(d n)) / sqrt(mean(x^2) + eps). The mean is taken in float32, as theirs is; float64 is left to theirs.
"""

from types import MethodType

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.models.llama.modeling_llama import LlamaRMSNorm


def compute_lean(model: nn.Module) -> int:
    """Let the norms of a model that are of this kind be computed here.

    Returns:
        How many are.
    """
    norms = [module for module in model.modules() if _is_llamas(module)]
    for norm in norms:
        norm.forward = MethodType(_forward, norm)
    return len(norms)


def _is_llamas(module: nn.Module) -> bool:
    own, llamas = (getattr(kind.forward, "__code__", None) for kind in (type(module), LlamaRMSNorm))
    if own is None or llamas is None or not hasattr(module, "variance_epsilon"):
        return False
    return (own.co_code, own.co_consts, own.co_names) == (llamas.co_code, llamas.co_consts, llamas.co_names)


def _forward(norm: nn.Module, hidden_states: Tensor) -> Tensor:
    if norm.weight.dtype != hidden_states.dtype or hidden_states.dtype == torch.float64:  # theirs is of float32 there
        return type(norm).forward(norm, hidden_states)
    return _Norm.apply(hidden_states, norm.weight, norm.variance_epsilon)  # pyright: ignore


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, epsilon):
        wide = x.to(torch.promote_types(x.dtype, torch.float32), copy=True)
        inverse = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().div_(x.shape[-1])
        inverse.add_(epsilon).rsqrt_()
        unit = wide.mul_(inverse).to(x.dtype)
        ctx.save_for_backward(unit, inverse, weight)
        return unit * weight

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        unit, inverse, weight = ctx.saved_tensors
        d_weight = d_x = None
        if ctx.needs_input_grad[1]:
            d_weight = (grad * unit).flatten(0, -2).sum(0, dtype=inverse.dtype).to(weight.dtype)
        if ctx.needs_input_grad[0]:
            d_unit = (grad * weight).to(inverse.dtype)
            along = torch.linalg.vecdot(d_unit, unit.to(inverse.dtype)).div_(unit.shape[-1]).unsqueeze(-1)
            d_x = d_unit.addcmul_(unit, along, value=-1).mul_(inverse).to(grad.dtype)
        return d_x, d_weight, None
