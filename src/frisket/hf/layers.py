"""The attention layers of a model, and computing one of them once more at the input that it just had."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from frisket.errors import CheckError, UnsupportedError
from frisket.hf.attention import Layout, counted
from frisket.hf.forward import backbone_of, hidden_states
from frisket.types import ROOT, Leaf, Rows

Again = Callable[[Layout], None]


@torch.no_grad()
def attention_layers(model: PreTrainedModel) -> dict[str, nn.Module]:
    """The modules whose forward comes through the seam, by dotted path, in the order in which they are computed.

    Found by a forward of one token.

    Raises:
        CheckError: there are none: the model uses another attention function.
    """
    zero = np.zeros((1, 1), dtype=np.int64)
    with counted() as count:
        hidden_states(model, Rows(zero, zero, zero, np.array([ROOT]), (Leaf("one token", 0, 0),)))
    if not count.calls:
        raise CheckError(
            f"no layer of {type(model).__name__} called frisket's attention.\nLoad the model with frisket, or put it "
            "on the seam: frisket.hf.load.ready(model)."
        )
    paths = {module: path for path, module in model.named_modules()}
    return {paths[module]: module for module in count.calls}


def refuse_other_towers(model: PreTrainedModel) -> None:
    """Refuse to move weights that no text reaches: the vision or audio towers of a model that has more than text.

    Raises:
        UnsupportedError: parameters that move lie in the backbone but not in its text part.
    """
    text = model.get_decoder()
    reached = {id(parameter) for parameter in text.parameters()}
    outside = [
        name
        for name, parameter in backbone_of(model).named_parameters()
        if parameter.requires_grad and id(parameter) not in reached
    ]
    if outside:
        name = next(path for path, module in model.named_modules() if module is text).rpartition(".")[2]
        raise UnsupportedError(
            f"adapt.where reaches {len(outside)} tensors of {type(model).__name__} that no text trains, first "
            f"{outside[0]}: frisket trains its text part only.\n"
            f"Keep to that: adapt.where='*{name}*'"
        )


@contextmanager
def after_each(layers: Mapping[str, nn.Module], look: Callable[[str, Again], None]) -> Iterator[None]:
    """Call ``look(path, again)`` after each forward of one of these layers, for as long as the context lasts.

    ``again(layout)`` computes the layer once more at the input that it just had, with its attention by ``layout``;
    the result is thrown away and the output of the layer stays what it was.
    """

    def hook_of(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, words: tuple, named: dict[str, Any], output: Any) -> None:
            def again(layout: Layout) -> None:
                module.forward(*words, **{**named, "rows": layout})  # past the hooks, so that this one is not called

            look(path, again)

        return hook

    handles = [layer.register_forward_hook(hook_of(path), with_kwargs=True) for path, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
