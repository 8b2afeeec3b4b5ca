"""Norms in fewer passes are transformers' norms; other kinds are left alone."""

import copy

import pytest
import torch
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from frisket.hf.norms import _Norm, compute_lean

KINDS = {torch.float64: 0.0, torch.float32: 2e-6, torch.bfloat16: 1.6e-2}


def made(kind: type, dtype: torch.dtype) -> torch.nn.Module:
    torch.manual_seed(0)
    norm = kind(48, eps=1e-5).to(dtype)
    torch.nn.init.normal_(norm.weight, 1.0, 0.3)
    return norm


def found(norm: torch.nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    x = x.clone().requires_grad_()
    y = norm(x)
    y.backward(torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y))
    return [y.detach(), x.grad, norm.weight.grad]


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("kind", [LlamaRMSNorm, Qwen3RMSNorm])
def test_output_and_gradients_are_transformers(kind, dtype):
    theirs = made(kind, dtype)
    ours = copy.deepcopy(theirs)
    assert compute_lean(ours) == 1
    x = (3 * torch.randn(2, 5, 48)).to(dtype)
    for mine, reference in zip(found(ours, x), found(theirs, x), strict=True):
        assert mine.dtype == reference.dtype
        assert (mine - reference).abs().max() <= KINDS[dtype] * reference.abs().max()


def test_the_output_in_16_bits_is_bit_for_bit_transformers():
    theirs = made(LlamaRMSNorm, torch.bfloat16)
    ours = copy.deepcopy(theirs)
    compute_lean(ours)
    x = torch.randn(64, 48).bfloat16()
    assert (ours(x) == theirs(x)).double().mean() > 0.999


def test_the_gradient_is_that_of_the_formula():
    x, weight = torch.randn(3, 48, dtype=torch.float64), torch.randn(48, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda x, weight: _Norm.apply(x, weight, 1e-5), (x.requires_grad_(), weight.requires_grad_())
    )


def test_a_norm_of_another_kind_is_left_alone():
    norm = made(GemmaRMSNorm, torch.float32)
    assert compute_lean(norm) == 0
    assert "forward" not in vars(norm)


def test_a_weight_of_another_type_than_its_input_is_transformers_business():
    norm = made(LlamaRMSNorm, torch.float32)
    reference = copy.deepcopy(norm)
    compute_lean(norm)
    x = torch.randn(3, 48).bfloat16()
    assert torch.equal(norm(x), reference(x))
