"""LoRA in fewer passes is PEFT's LoRA; where PEFT does more, PEFT does it."""

import copy

import pytest
import torch
from tests.models import tiny
from torch import nn

from frisket.adapt.lean import compute_lean
from frisket.adapt.lora import Lora

KINDS = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2e-2}


def pair(dtype: torch.dtype, *, bias: bool = True, **config) -> tuple[nn.Module, nn.Module]:
    """PEFT's layer and ours, with the same random weights."""
    from peft import LoraConfig, PeftModel

    torch.manual_seed(0)
    model = nn.ModuleDict({"layer": nn.Linear(24, 40, bias=bias)})
    PeftModel(model, LoraConfig(r=4, lora_alpha=6, target_modules=["layer"], **config))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("lora_" in name)
            parameter.normal_()
    theirs = model.to(dtype)["layer"]
    ours = copy.deepcopy(theirs)
    return theirs, ours


def gradients(layer: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    x = x.clone().requires_grad_()
    y = layer(x)
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
    moving = [p.grad for p in layer.parameters() if p.requires_grad]
    return [y.detach(), x.grad, *moving]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("rslora", [True, False])
def test_output_and_gradients_are_pefts(dtype, bias, rslora):
    theirs, ours = pair(dtype, bias=bias, use_rslora=rslora)
    assert compute_lean(ours) == 1
    x = torch.randn(2, 7, 24).to(dtype)
    for mine, reference in zip(gradients(ours, x), gradients(theirs, x), strict=True):
        scale = reference.abs().max()
        assert (mine - reference).abs().max() <= KINDS[dtype] * scale
        assert torch.nn.functional.cosine_similarity(mine.double().ravel(), reference.double().ravel(), 0) > 0.9999


def test_the_gradient_is_that_of_the_formula():
    _, layer = pair(torch.float64)
    compute_lean(layer)
    x = torch.randn(5, 24, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,))
    down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    assert torch.autograd.gradcheck(lambda a, b: _with(layer, a, b)(x.detach()), (down, up))


def _with(layer: nn.Module, down: torch.Tensor, up: torch.Tensor):
    def call(x):
        from frisket.adapt.lean import _PlainLora

        base = layer.get_base_layer()
        return _PlainLora.apply(x, base.weight, base.bias, down, up, layer.scaling["default"])

    return call


def test_no_gradient_is_made_for_an_input_that_needs_none():
    _, layer = pair(torch.float32)
    compute_lean(layer)
    y = layer(torch.randn(3, 24))
    assert y.grad_fn.next_functions[0][0] is None
    y.sum().backward()
    assert layer.lora_B["default"].weight.grad is not None


@pytest.mark.parametrize(
    "config", [{"lora_dropout": 0.1}, {"use_dora": True}, {"lora_bias": True}], ids=["dropout", "dora", "bias"]
)
def test_what_is_more_than_the_formula_stays_pefts(config):
    theirs, ours = pair(torch.float32, **config)
    assert compute_lean(ours) == 0
    x = torch.randn(3, 24)
    torch.manual_seed(1)
    expected = theirs(x)
    torch.manual_seed(1)
    assert torch.equal(ours(x), expected)


def test_switched_off_and_merged_layers_are_the_bases_and_the_merged():
    _, layer = pair(torch.float32)
    compute_lean(layer)
    x = torch.randn(3, 24)
    adapted = layer(x)
    layer.enable_adapters(False)
    assert torch.equal(layer(x), layer.get_base_layer()(x))
    layer.enable_adapters(True)
    layer.merge()
    torch.testing.assert_close(layer(x), adapted)
    layer.unmerge()
    torch.testing.assert_close(layer(x), adapted)


def test_a_hook_on_a_layer_inside_is_called():
    _, layer = pair(torch.float32)
    compute_lean(layer)
    seen = []
    layer.get_base_layer().register_forward_hook(lambda *_: seen.append(1))
    layer(torch.randn(3, 24))
    assert seen == [1]


def test_every_layer_of_a_model_is_computed_so():
    model = tiny()
    Lora().attach(model, torch.Generator().manual_seed(0))
    layers = [module for module in model.modules() if hasattr(module, "lora_A") and module.lora_A]
    assert layers
    assert all("forward" in vars(layer) for layer in layers)
