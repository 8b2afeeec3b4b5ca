"""MoRA: a square matrix beside each layer, with operators around it that have no parameters."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from frisket.adapt import dense
from frisket.adapt.base import About, Attached, MethodSettings, freeze
from frisket.adapt.layers import linear_layers, sizes_of
from frisket.adapt.rates import MORA, Declared
from frisket.adapt.where import Match, is_linear
from frisket.errors import CheckError, ConfigError
from frisket.settings import knob

_MATRIX = "mora"  # what the matrix is called among its layer's own parameters


class Mora(MethodSettings):
    """MoRA (Jiang et al. 2024, arXiv 2405.12130, section 4): y = W x + f_out(M f_in(x)), M square and 0 at the start.

    M has R rows, R = floor(sqrt((in + out) rank) + 1/2): as many parameters as LoRA of that rank, but a change of rank
    R, or of full rank with rotation. `truncation` (equation 5) takes the first R inputs to the first R outputs;
    `sharing` (6, 7) sums the inputs of a group and copies outputs, groups being i mod R or, with `sharing-contiguous`,
    neighbours; `decoupling` (8) gives each stretch of R inputs to the same M; `rotation` (9 to 11) turns stretch k by
    RoPE's angles of position k before. There is no alpha. The code advises rotation at rank 8, sharing at 256.

    As in the authors' code (kongds/MoRA, types 1, 2 and 6): R is even for rotation; where R does not divide the inputs,
    sharing and rotation go on with the first inputs again. Differs: decoupling, which is not in the code, does so too;
    R above a layer's inputs or outputs is refused (there the code's merge is not its forward); no restarts (ReMoRA).
    """

    rate: ClassVar[Declared] = MORA
    about: ClassVar[About] = About("a square matrix beside each layer", "arXiv 2405.12130, section 4", quantised=True)

    method: Literal["mora"] = "mora"
    rank: int = knob(8, "rank of the LoRA that has as many parameters", was=("r", "lora_r", "lora_rank"), gt=0)
    compression: Literal["truncation", "sharing", "sharing-contiguous", "decoupling", "rotation"] = knob(
        "rotation", "how inputs reach the square matrix", was=("mora_type",)
    )

    def attach(self, model: nn.Module, rng: torch.Generator) -> Attached:
        """Freeze the model and put a matrix beside each matched linear layer.

        Raises:
            UnsupportedError: `where` reaches expert tensors or a tied head.
            ConfigError: no linear layer is matched, or a matrix would be larger than its layer.
        """
        match = self.resolve(model, rng.initial_seed())
        sizes = {name: sizes_of(layer) for name, layer in linear_layers(model, match, "mora").items()}
        squares = {name: self._square(*both) for name, both in sizes.items()}
        for name, square in squares.items():
            if square.side > min(sizes[name]):
                fitting = min(math.ceil((min(both) + 0.5) ** 2 / sum(both)) - 1 for both in sizes.values())
                raise ConfigError(
                    f"adapt.rank = {self.rank}: the matrix for {name} would have {square.side} rows, and that layer "
                    f"has {square.inputs:,} inputs and {square.outputs:,} outputs.\n"
                    + (f"Use adapt.rank={fitting}." if fitting else "Leave that layer out of adapt.where.")
                )
        freeze(model)
        return AttachedMora(model, match, squares)

    def _square(self, inputs: int, outputs: int) -> "Square":
        side = int(math.sqrt((inputs + outputs) * self.rank) + 0.5)
        side -= side % 2 if self.compression == "rotation" else 0
        return Square(self.compression, inputs, outputs, side)


@dataclass(frozen=True)
class Square:
    """The operators around one layer's matrix of ``side`` rows and columns."""

    compression: str
    inputs: int
    outputs: int
    side: int

    def __call__(self, x: Float[Tensor, "*n inputs"], matrix: Tensor) -> Float[Tensor, "*n outputs"]:
        """What is added to the layer's output."""
        if self.compression == "truncation":
            return F.pad(F.linear(x[..., : self.side], matrix), (0, self.outputs - self.side))
        if self.compression == "sharing-contiguous":
            return F.linear(self._sums_of_neighbours(x), matrix)[..., self._neighbours(x.device)]
        parts = self._parts(x)
        if self.compression == "sharing":
            parts = parts.sum(-2, keepdim=True)
        together = F.linear(_turned(parts) if self.compression == "rotation" else parts, matrix).flatten(-2)
        return torch.cat([together] * -(-self.outputs // together.shape[-1]), -1)[..., : self.outputs]

    def change(self, matrix: Float[Tensor, "side side"]) -> Float[Tensor, "outputs inputs"]:
        """The same as a change of the weight: what the operators, which are linear, make of unit vectors."""
        return self(torch.eye(self.inputs, dtype=matrix.dtype, device=matrix.device), matrix).T

    def _parts(self, x: Tensor) -> Float[Tensor, "*n part side"]:
        """Stretches of the matrix' size; the last goes on with the first inputs."""
        missing = -self.inputs % self.side
        return torch.cat((x, x[..., :missing]), -1).unflatten(-1, (-1, self.side))

    def _sums_of_neighbours(self, x: Tensor) -> Float[Tensor, "*n side"]:
        """Sums over neighbouring inputs; the first groups have one more where the sizes do not divide."""
        size, longer = divmod(self.inputs, self.side)
        first, second = x.tensor_split([longer * (size + 1)], -1)
        sums = first.unflatten(-1, (longer, size + 1)).sum(-1), second.unflatten(-1, (-1, size)).sum(-1)
        return torch.cat(sums, -1)

    def _neighbours(self, device: torch.device) -> Tensor:
        """Group of each output."""
        groups, (size, longer) = torch.arange(self.side, device=device), divmod(self.outputs, self.side)
        return groups.repeat_interleave(size + (groups < longer), output_size=self.outputs)


class AttachedMora(Attached):
    """A further parameter of each matched layer, and a hook that adds what it gives."""

    def __init__(self, model: nn.Module, match: Match, squares: Mapping[str, Square]) -> None:
        self.match, self._is_on = match, True
        self._squares = dict(squares)
        self._layers = {name: model.get_submodule(name) for name in squares}
        for name, layer in self._layers.items():
            side, device = squares[name].side, layer.get_parameter("weight").device
            layer.register_parameter(_MATRIX, nn.Parameter(torch.zeros(side, side, device=device)))
        self._hooks = [layer.register_forward_hook(partial(self._add, squares[n])) for n, layer in self._layers.items()]

    def parameters(self) -> dict[str, nn.Parameter]:
        """The matrices."""
        return {f"{name}.{_MATRIX}": layer.get_parameter(_MATRIX) for name, layer in self._layers.items()}

    def save(self, folder: Path, values: Mapping[str, Tensor]) -> None:
        """Write the matrices and a header that names the operators."""
        compression = next(iter(self._squares.values())).compression
        sizes = {name: (square.inputs, square.outputs) for name, square in self._squares.items()}
        dense.write(folder, "mora", values, {"compression": compression, "sizes": sizes}, self._layers)

    @torch.no_grad()
    def merge(self) -> None:
        """Add the changes to the weights."""
        for name, layer in self._layers.items():
            weight: Any = layer.weight
            change = self._squares[name].change(layer.get_parameter(_MATRIX))
            weight += change if isinstance(layer, nn.Linear) else change.T
        self.detach()

    def detach(self) -> None:
        """Take hooks and matrices off."""
        for hook, layer in zip(self._hooks, self._layers.values(), strict=True):
            hook.remove()
            delattr(layer, _MATRIX)

    @contextmanager
    def switched_off(self) -> Iterator[None]:
        """The base's outputs while the context lasts."""
        self._is_on = False
        try:
            yield
        finally:
            self._is_on = True

    def _add(self, square: Square, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output + square(inputs[0], layer.get_parameter(_MATRIX)) if self._is_on else output


def load_mora(model: nn.Module, folder: Path) -> AttachedMora:
    """Put saved matrices on a freshly loaded base.

    Raises:
        CheckError: the model has not the layers that they were made for, or has other weights there.
    """
    values, settings = dense.read(folder)
    layers, squares = dict(model.named_modules()), {}
    for name, value in values.items():
        path = name.removesuffix(f".{_MATRIX}")
        size = settings["sizes"][path]
        if path not in layers or not is_linear(layers[path]) or [*sizes_of(layers[path])] != size:
            raise CheckError(
                f"the adapter has a matrix for {path} of {size[0]} x {size[1]}, and this model has no layer of that "
                "name and size.\nUse the base that the adapter was trained on."
            )
        squares[path] = Square(settings["compression"], *sizes_of(layers[path]), len(value))
    dense.check_base(folder, {path: layers[path] for path in squares})
    attached = AttachedMora(model, Match(tuple(squares), {}), squares)
    attached.load(values)
    return attached


def _turned(parts: Float[Tensor, "*n part side"]) -> Float[Tensor, "*n part side"]:
    """RoPE: stretch k turned by its number; place i is paired with i + side / 2."""
    wide, side = torch.promote_types(parts.dtype, torch.float32), parts.shape[-1]
    frequencies = 10_000.0 ** (-torch.arange(0, side, 2, device=parts.device, dtype=wide) / side)
    angles = torch.arange(parts.shape[-2], device=parts.device, dtype=wide)[:, None] * frequencies
    cos, sin = angles.cos().to(parts.dtype), angles.sin().to(parts.dtype)
    first, second = parts.chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)
