"""A frozen linear layer with a sparse addition to its weight, of which nothing dense outlives one layer's backward."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from frisket.adapt.support import largest


class SparseLinear(nn.Module):
    """y = x (W + D)^T + b, where D has ``values`` at ``indices`` and is 0 elsewhere.

    It may watch candidates: other entries, chosen by the first gradient that it sees, whose gradients it sums up.

    Args:
        base: the layer itself, which is left as it is.
        indices: [entry] flat, in the stored weight; unique.
        watches: whether there is room for as many candidates.

    Attributes:
        values: [entry], 0 at the start; float32 or wider.
        candidates: [entry] flat indices, ascending.
        sums: [entry] of the candidates' gradients, one for each step.
        squares: [entry] of the same, squared.
        steps: [] how many steps they are of; 0: there are no candidates yet.
        master: [entry] what the values are rounded from; taken in their stead, so that W + D is rounded once, as it is
            where a saved adapter is added to the base.
        is_on: whether D is added.
        is_watching: whether gradients are looked at.
    """

    indices: Int[Tensor, "entry"]
    candidates: Int[Tensor, "entry"]
    sums: Float[Tensor, "entry"]
    squares: Float[Tensor, "entry"]
    steps: Int[Tensor, ""]
    _pending: Float[Tensor, "entry"]

    def __init__(self, base: nn.Module, indices: Tensor, *, watches: bool) -> None:
        super().__init__()
        self.base = base
        weight = base.get_parameter("weight")
        wide = torch.promote_types(weight.dtype, torch.float32)
        room = len(indices) if watches else 0
        self.values = nn.Parameter(torch.zeros(len(indices), dtype=wide, device=weight.device))
        kept = {"indices": indices, "candidates": torch.zeros_like(indices[:room])}
        kept |= {name: torch.zeros(room, dtype=wide, device=weight.device) for name in ("sums", "squares", "_pending")}
        for name, tensor in (kept | {"steps": torch.zeros((), dtype=torch.int64, device=weight.device)}).items():
            self.register_buffer(name, tensor, persistent=False)
        self.master: Tensor | None = None
        self.is_on, self.is_watching, self._is_chosen = True, False, False

    @property
    def weight(self) -> Tensor:
        """W + D in the stored shape, rounded once to W's type; made anew at every call."""
        own = self.base.get_parameter("weight").detach()
        if not self.is_on:
            return own
        added = self.values.detach() if self.master is None else self.master.detach()
        flat, at = own.flatten().clone(), self.indices.long()
        flat[at] = (flat[at].to(added.dtype) + added).to(own.dtype)
        return flat.view_as(own)

    @property
    def bias(self) -> Tensor | None:
        """The base's."""
        return self.base.bias  # pyright: ignore[reportReturnType]

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output with D."""
        return _Product.apply(x, self.values, self) if self.is_on else self.base(x)  # pyright: ignore

    def matrix(self) -> Float[Tensor, "out in"]:
        """W + D as it multiplies; a Conv1D keeps it as [in, out]."""
        return self.weight if isinstance(self.base, nn.Linear) else self.weight.T

    def watch(self, gradient: Tensor) -> None:
        """Look at the dense gradient of one backward, in the stored shape."""
        if not self.is_watching:
            return
        flat = gradient.flatten()
        if not self._is_chosen:
            self.candidates.copy_(largest(flat.abs(), len(self.candidates)))
            self._is_chosen = True
        self._pending.add_(flat.index_select(0, self.candidates))

    def end_step(self) -> None:
        """Count what was seen in the micro-batches of one step as one gradient."""
        if self.is_watching and self._is_chosen:
            self.sums.add_(self._pending)
            self.squares.addcmul_(self._pending, self._pending)
            self.steps += 1
            self._pending.zero_()

    def forget(self) -> None:
        """Have no candidates."""
        for tensor in (self.candidates, self.sums, self.squares, self.steps, self._pending):
            tensor.zero_()
        self._is_chosen = False

    def resumed(self) -> None:
        """Go on with candidates that were copied in from outside, where there were any."""
        self._is_chosen = bool(self.steps)


class _Product(torch.autograd.Function):
    """The product with W + D; backward makes W + D again, and of the dense gradient keeps what is at the indices."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, layer: SparseLinear) -> Tensor:  # pyright: ignore
        ctx.save_for_backward(x)
        ctx.layer = layer
        return F.linear(x, layer.matrix(), layer.bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, None]:  # pyright: ignore
        (x,), layer = ctx.saved_tensors, ctx.layer
        to_input = grad @ layer.matrix() if ctx.needs_input_grad[0] else None
        rows, inputs = grad.flatten(0, -2), x.flatten(0, -2)
        dense = rows.T @ inputs if isinstance(layer.base, nn.Linear) else inputs.T @ rows
        layer.watch(dense)
        return to_input, dense.flatten().index_select(0, layer.indices).to(layer.values.dtype), None
