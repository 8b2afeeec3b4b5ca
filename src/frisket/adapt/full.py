"""`full`: the weights that `where` names move themselves.

Of a row range only those rows are a parameter that moves, so that the optimizer knows nothing of the others: no state,
no decay. The base's whole tensor still gets its gradient; what belongs to the rows is handed on, the rest is dropped.
"""

import re
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

_ROWS = re.compile(r"(.+)\[(\d+):(\d+)\]")


class Full(MethodSettings):
    """Fine-tune the matched weights themselves."""

    rate: ClassVar[Declared] = FULL
    about: ClassVar[About] = About("the matched weights themselves", "plain fine-tuning")
    starts_wide: ClassVar[bool] = True  # it moves in float32

    method: Literal["full"] = "full"
    where: Where = knob("all", "which modules move; default: all")
    l1_to_start: float = knob(
        0.0,
        "strength of an L1 penalty on the change, so that few entries move far (for adapt.method=graft: 1e-3)",
        ge=0,
    )

    def attach(self, model: nn.Module, rng: torch.Generator) -> Attached:
        """Let the matched parameters move and freeze the others."""
        match = self.resolve(model, rng.initial_seed())
        freeze(model)
        chosen = set(match.parameters(model))
        moving: dict[str, nn.Parameter] = {}
        slices: list[_Slice] = []
        for name, parameter in model.named_parameters():
            if name not in chosen:
                continue
            parameter.requires_grad_(True)
            if name not in match.rows:
                moving[name] = parameter
                continue
            own = [_Slice(parameter, first, end) for first, end in match.rows[name]]
            parameter.register_post_accumulate_grad_hook(_HandedOn(own))
            slices += own
            moving |= {f"{name}[{each.first}:{each.end}]": each.moving for each in own}
        return AttachedFull(moving, match, slices, self.l1_to_start)


class _Slice:
    """Rows of a weight, as a parameter with storage of its own: both may be cast apart from each other."""

    def __init__(self, weight: nn.Parameter, first: int, end: int) -> None:
        self.weight, self.first, self.end = weight, first, end
        self.moving = nn.Parameter(weight.detach()[first:end].clone())


class _HandedOn:
    """What autograd calls when a weight has its gradient: the rows that move take their part."""

    def __init__(self, slices: list[_Slice]) -> None:
        self._slices = slices

    def __call__(self, weight: Tensor) -> None:
        if weight.grad is None:
            return
        for each in self._slices:
            part = weight.grad[each.first : each.end]
            each.moving.grad = part.clone() if each.moving.grad is None else each.moving.grad + part
        weight.grad = None


class AttachedFull(Attached):
    """The moving weights of the base itself, or rows of them."""

    def __init__(
        self, moving: dict[str, nn.Parameter], match: Match, slices: list[_Slice], l1_to_start: float = 0.0
    ) -> None:
        self._moving = moving
        self._slices = slices
        self.match = match
        self._l1_to_start = l1_to_start
        kept = moving if l1_to_start else {}
        self._start = {name: parameter.detach().clone() for name, parameter in kept.items()}

    def parameters(self) -> dict[str, nn.Parameter]:
        """The matched weights; rows under the name of their tensor with the range behind it."""
        return self._moving

    def load(self, values: Mapping[str, Tensor]) -> None:
        """Copy values in, and rows on into their tensors."""
        super().load(values)
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Write the rows that moved into their tensors."""
        for each in self._slices:
            each.weight[each.first : each.end].copy_(each.moving)

    def save(self, folder: Path, values: Mapping[str, Tensor]) -> None:
        """Write the moving tensors and rows alone; the whole model is written by ``hf.load.save_model``."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: value.contiguous() for name, value in values.items()}, folder / "moving.safetensors")

    def begin(self, total_steps: int) -> None:
        """Hold the start in the type that the model computes in."""
        self._start = {name: start.to(self._moving[name].dtype) for name, start in self._start.items()}

    def penalty(self) -> Tensor | None:
        """L1 norm of the change since attaching, an earlier stage's included, times its strength.

        Source: Panigrahi et al. 2023, arXiv 2302.06600, section 3 (1e-3 with AdamW). Of bf16 weights the change is that
        of the rounded ones: below their steps it is not seen.
        """
        if not self._start:
            return None
        changes = [(self._moving[name] - start).abs().sum(dtype=torch.float32) for name, start in self._start.items()]
        return self._l1_to_start * torch.stack(changes).sum()

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


@torch.no_grad()
def copy_into(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Copy what moved, tensors and rows under the names of ``parameters``, into another copy of the base."""
    parameters = dict(model.named_parameters())
    for name, value in values.items():
        found = _ROWS.fullmatch(name)
        target = parameters[name] if found is None else parameters[found[1]][int(found[2]) : int(found[3])]
        target.copy_(value)
