"""`full`: the weights that `where` names move themselves."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from frisket.adapt.base import About, Attached, MethodSettings, freeze
from frisket.adapt.rates import FULL, Declared
from frisket.adapt.where import Match, Where
from frisket.errors import UnsupportedError
from frisket.settings import knob


class Full(MethodSettings):
    """Fine-tune the matched weights themselves."""

    rate: ClassVar[Declared] = FULL
    about: ClassVar[About] = About("the matched weights themselves", "plain fine-tuning")

    method: Literal["full"] = "full"
    where: Where = knob("all", "which modules move; default: all")

    def attach(self, model: nn.Module, rng: torch.Generator) -> Attached:
        """Let the matched parameters move and freeze the others."""
        match = self.resolve(model)
        freeze(model)
        chosen = set(match.parameters(model))
        moving = {name: parameter for name, parameter in model.named_parameters() if name in chosen}
        for parameter in moving.values():
            parameter.requires_grad_(True)
        return AttachedFull(moving, match)


class AttachedFull(Attached):
    """The moving weights of the base itself."""

    def __init__(self, moving: dict[str, nn.Parameter], match: Match) -> None:
        self._moving = moving
        self.match = match

    def parameters(self) -> dict[str, nn.Parameter]:
        """The matched weights."""
        return self._moving

    def save(self, folder: Path, values: Mapping[str, Tensor]) -> None:
        """Write the moving tensors alone; the whole model is written by ``hf.load.save_model``."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: value.contiguous() for name, value in values.items()}, folder / "moving.safetensors")

    def merge(self) -> None:
        """Nothing to fold in: the base itself has moved."""

    def detach(self) -> None:
        """Refused: there is nothing to take off."""
        raise UnsupportedError(
            "full fine-tuning changes the base's own weights: nothing can be detached. Load the base again."
        )

    @contextmanager
    def switched_off(self) -> Iterator[None]:
        """Refused: the base is no longer there."""
        raise UnsupportedError(
            "full fine-tuning changes the base's own weights: the base is no longer in memory. Load it again."
        )
        yield
