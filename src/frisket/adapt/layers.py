"""The linear layers that a method of our own is put on, found and refused alike for all of them."""

from torch import nn

from frisket.adapt.where import Match, head_name, refuse_tied_head
from frisket.errors import ConfigError, UnsupportedError


def linear_layers(model: nn.Module, match: Match, method: str) -> dict[str, nn.Module]:
    """Linear layers at or below the matched modules, by dotted path.

    Raises:
        UnsupportedError: `where` reaches expert tensors, or the output head.
        ConfigError: no linear layer is among them.
    """
    experts = match.experts(model)
    if experts:
        raise UnsupportedError(
            f"adapt.where reaches {len(experts)} expert tensors, and {method} adapts linear layers only.\n"
            "Use adapt.method=lora, or adapt.where=all-linear without the experts."
        )
    names = match.linears(model)
    if not names:
        raise ConfigError(
            f"adapt.where matched {len(match.modules)} modules but no linear layer, and {method} adapts no others.\n"
            "Use adapt.where=all-linear, or adapt.method=full."
        )
    refuse_tied_head(model, names)
    if head_name(model) in names:
        raise UnsupportedError(
            f"adapt.where reaches the output head, whose weight the loss reads itself: {method} would be passed by.\n"
            "Use adapt.where=all-linear, or adapt.method=lora."
        )
    return {name: model.get_submodule(name) for name in names}


def sizes_of(layer: nn.Module) -> tuple[int, int]:
    """Inputs and outputs of a linear layer; a Conv1D keeps its weight as [inputs, outputs]."""
    if isinstance(layer, nn.Linear):  # also where its weight is packed into 4 bits
        return layer.in_features, layer.out_features
    inputs, outputs = layer.get_parameter("weight").shape
    return inputs, outputs
