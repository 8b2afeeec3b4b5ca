"""Frozen linear layers kept in 4 or 8 bits and computed with in the run's own type.

``dequantised(model, dtype) -> model`` turns them into plain layers in place, for merging.

Source: Dettmers et al. 2023, arXiv 2305.14314 (NF4 in blocks of 64, section 3; the blocks' scales quantised again);
8 bits: Dettmers et al. 2022, arXiv 2208.07339, section 2 (one scale a row). bitsandbytes quantises and dequantises.
Differs: a layer dequantises its weight, in the forward and again in the backward, and multiplies in the run's type.
bitsandbytes' own 8-bit layers round activations, and keep columns with outliers anywhere in the batch apart, so that
samples of one row see each other (the isolation probe found 0.15 in a hidden state); its 4-bit layers compute in bf16
in evaluation mode on some CPUs, without a gradient. The embedding and the head stay as they are.
PEFT's ``prepare_model_for_kbit_training`` is not called: the base is frozen by the method, recomputing is ours and
needs no gradient of the inputs, and norms stay in the run's type, whose RMS norms compute in fp32 anyway.
"""

import math
from copy import copy
from functools import cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import BitsAndBytesConfig, PreTrainedModel

from frisket.errors import ConfigError, UnsupportedError

Load = Literal["none", "4bit", "8bit"]
_BITSANDBYTES = "bitsandbytes"


def stored_as(config: Any) -> Load:
    """How the model's own files are quantised by bitsandbytes.

    Raises:
        UnsupportedError: they are quantised by something else.
    """
    stored = getattr(config, "quantization_config", None) or {}
    stored = stored if isinstance(stored, dict) else stored.to_dict()
    by = stored.get("quant_method") or _BITSANDBYTES  # bitsandbytes' first files did not say
    if by != _BITSANDBYTES:
        by = str(getattr(by, "value", by))
        wide = " in bf16" if by == "mxfp4" else ""
        raise UnsupportedError(
            f"model.path: the model's files are quantised with {by}; frisket trains on bitsandbytes' layers only.\n"
            f"Give a checkpoint of the same model{wide} that is not quantised: model.path=…"
        )
    if stored.get("load_in_4bit"):
        return "4bit"
    return "8bit" if stored.get("load_in_8bit") else "none"


def refuse_method(load: Load, config: Any, method: str, works: bool) -> None:
    """Refuse methods that cannot be put on quantised layers.

    Args:
        works: what the method says of itself (``About.quantised``).

    Raises:
        UnsupportedError: the method moves the base's own weights, or was not tried on quantised ones.
    """
    if (load, stored_as(config)) == ("none", "none") or works:
        return
    why = "moves the base's own weights, of which too little is left" if method == "full" else "was not tried on them"
    given = f"model.load = {load}" if load != "none" else f"the model's files are quantised to {stored_as(config)}"
    fix = "model.load=none" if load != "none" else "a model.path with unquantised weights"
    raise UnsupportedError(f"{given}: adapt.method = {method} {why}.\nUse adapt.method=lora, or {fix}.")


def refuse_given(load: Load, model: nn.Module, stored: Load = "none") -> None:
    """Refuse a model that was handed over, and that the files would not be again when the run is opened or exported.

    Args:
        stored: how the files that the model was loaded from are quantised.

    Raises:
        ConfigError: it is quantised otherwise than the recipe says, or not with the codes that frisket makes.
    """
    kinds = {layer.weight.dtype for layer in quantised_layers(model).values()}
    found = "8bit" if torch.int8 in kinds else "4bit" if kinds else "none"
    wanted = stored if load == "none" else load
    if found not in ("none", wanted):
        raise ConfigError(
            f"model.load = {load}: the model that was handed over is {found} quantised, and the run would be opened "
            f"and exported on {'unquantised weights' if wanted == 'none' else f'a {wanted} base'}, which compute "
            f"something else.\nUse model.load={found}, or hand over the model unquantised."
        )
    if found != wanted:
        raise ConfigError(
            f"model.load = {load}: the model that was handed over is not quantised, and frisket quantises only what it "
            "loads itself.\nUse model.load=none, or give model.path and no model."
        )
    if found == "4bit" and stored == "none" and not _has_own_codes(model):
        raise ConfigError(
            "model.load = 4bit: the model that was handed over has other 4-bit codes than NF4 with double "
            "quantisation, with which the run is opened and exported.\nGive model.path and no model."
        )


def _has_own_codes(model: nn.Module) -> bool:
    states = [getattr(layer.weight, "quant_state", None) for layer in quantised_layers(model).values()]
    return all(state is not None and state.quant_type == "nf4" and state.nested for state in states)


def stored_type(config: Any) -> torch.dtype:
    """Type that the model's files declare; fp32 where they declare none."""
    declared = config.dtype
    return (getattr(torch, declared) if isinstance(declared, str) else declared) or torch.float32


def refuse_here(load: Load, config: Any, device: torch.device) -> None:
    """Refuse a quantised base that could not be loaded on this machine, before anything is paid.

    Raises:
        ConfigError: as `options_of`, which loading asks.
        UnsupportedError: likewise.
    """
    options_of(load, config, torch.float32, device)


def options_of(load: Load, config: Any, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """The type, and what else ``from_pretrained`` is told of quantised layers.

    Codes depend on the type that weights are quantised from, so that is the stored one, whatever is computed in: a
    base in fp32, trained in bf16 and merged in fp32, would have two sets of codes.

    Raises:
        ConfigError: the files are quantised already, and otherwise.
        UnsupportedError: bitsandbytes is missing, or has nothing for this device.
    """
    stored = stored_as(config)
    if (load, stored) == ("none", "none"):
        return {"dtype": dtype}
    if load != stored != "none":
        if load != "none":
            raise ConfigError(
                f"model.load = {load}: the model's files are quantised to {stored} already.\nUse model.load=none."
            )
        load = stored
    known = _bitsandbytes(load).supported_torch_devices
    if device.type not in known:
        raise UnsupportedError(
            f"model.load = {load}: bitsandbytes has nothing for device {device}; it knows {', '.join(sorted(known))}.\n"
            "Use model.load=none."
        )
    dtype, before = (torch.float32 if t == torch.float64 else t for t in (dtype, stored_type(config)))  # it has no fp64
    placing = {"device_map": {"": device}}
    if stored != "none":
        return placing | {"dtype": dtype}
    four = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": dtype}
    config = BitsAndBytesConfig(load_in_4bit=load == "4bit", load_in_8bit=load == "8bit", **four)
    return placing | {"dtype": before, "quantization_config": config}


def placed(model: PreTrainedModel, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """The model on its device, its quantised layers with a forward of our own."""
    if not quantised_layers(model):
        return model.to(device)  # pyright: ignore[reportArgumentType]
    compute_plainly(model)
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    return model


def compute_plainly(model: nn.Module) -> None:
    """Give quantised layers a forward of our own, in place."""
    for layer in quantised_layers(model).values():
        # The class alone decides the forward; PEFT looks for bitsandbytes' class, of which ours is one.
        layer.__class__ = _plain_class(type(layer))


def quantised_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """Layers with quantised weights, by dotted path."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not module.weight.is_floating_point()
    }


def dense_weight(layer: nn.Linear, dtype: torch.dtype) -> Tensor:
    """[out, in]: the values that a quantised layer's weight stands for."""
    weight: Any = layer.weight
    if weight.dtype == torch.int8:
        return (weight.data * (weight.SCB / 127)[:, None]).to(dtype)
    from bitsandbytes.functional import dequantize_4bit

    # As one row: bitsandbytes 0.50's CPU kernel takes wrong scales where rows of 32, 96 or 160 end within a block
    # (error 0.40 of the weights' norm at [64, 32], against 0.09).
    flat = copy(weight.quant_state)
    flat.shape = torch.Size((1, entries(weight)))
    return dequantize_4bit(weight.data, flat).view(weight.quant_state.shape).to(dtype)


@torch.no_grad()
def dequantised(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Replace, in place, every quantised layer by a plain one with the values that its weight stands for.

    Args:
        model: without adapters.
        dtype: fp32 or bf16; all parameters are cast to it.

    Returns:
        The same model, which saves and loads as a plain one.
    """
    for name, layer in quantised_layers(model).items():
        with torch.device("meta"):
            plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
        plain.weight = nn.Parameter(dense_weight(layer, torch.float32).to(dtype), requires_grad=False)
        plain.bias = layer.bias
        model.set_submodule(name, plain.train(layer.training))
    for mark in ("hf_quantizer", "quantization_method", "is_quantized", "is_loaded_in_4bit", "is_loaded_in_8bit"):
        if mark in vars(model):
            delattr(model, mark)
    if "quantization_config" in vars(model.config):
        delattr(model.config, "quantization_config")
    for parameter in model.parameters():
        if parameter.dtype != dtype:
            parameter.data = parameter.data.to(dtype)
    return model


def entries(parameter: Tensor) -> int:
    """Numbers that a parameter stands for: packed 4-bit weights hold two a byte."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else math.prod(state.shape)


def lines(model: PreTrainedModel) -> list[str]:
    """How much of the model is quantised, for the screen."""
    layers = quantised_layers(model).values()
    if not layers:
        return []
    inside, whole = (sum(map(entries, found)) for found in ((m.weight for m in layers), model.parameters()))
    kind = "LLM.int8 rows" if next(iter(layers)).weight.dtype == torch.int8 else "NF4, scales quantised again"
    return [f"load       {inside:,} of {whole:,} weights in {kind}; each layer multiplies with its dequantised weight"]


def _bitsandbytes(load: str) -> Any:
    try:
        import bitsandbytes
    except ImportError as error:
        raise UnsupportedError(
            f"model.load = {load} needs the package bitsandbytes: pip install 'frisket[quantised]'\n"
            "Or use model.load=none."
        ) from error
    return bitsandbytes


class _Product(torch.autograd.Function):
    """x W^T + b; the dense W lives only while it is multiplied."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: nn.Linear) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.layer = layer
        return F.linear(x, dense_weight(layer, x.dtype), layer.bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return grad @ dense_weight(ctx.layer, grad.dtype), None


@cache
def _plain_class(kind: type[nn.Linear]) -> type[nn.Linear]:
    """A subclass of bitsandbytes' layer whose forward is ``_Product``."""
    return (
        kind if kind.forward is _plain_forward else type(f"Plain{kind.__name__}", (kind,), {"forward": _plain_forward})
    )


def _plain_forward(layer: nn.Linear, x: Tensor) -> Tensor:
    return _Product.apply(x, layer)  # pyright: ignore[reportReturnType]
