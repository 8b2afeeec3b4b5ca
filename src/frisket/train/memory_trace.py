"""What a step allocates, found without computing a number: one micro-batch on the meta device, under a meter.

A tensor on the meta device has a shape and a type but no data, so the model's own code, the method's layers, the loss
and the backward run in about a second whatever their size, and every allocation and release is seen in its order.
"""

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from frisket.hf.forward import Model, hidden_states
from frisket.hf.heads import head_of
from frisket.hf.load import decoder_layers
from frisket.supervise.loss import LossRule, summed_loss
from frisket.train.products import uses_onednn
from frisket.types import MicroBatch

_ATEN = torch.ops.aten
_SUMMED = (_ATEN.addmm.default, _ATEN.addmm_.default, _ATEN.baddbmm.default)
_MATMULS = (_ATEN.mm.default, _ATEN.mm.out, _ATEN.bmm.default, *_SUMMED)


@dataclass(frozen=True)
class Trace:
    """Bytes of one micro-batch beyond the model's own tensors.

    Attributes:
        tokens: that go through the model, padding included.
        kept: what the forward has left for the backward when it ends.
        layers: of this, what each decoder layer keeps.
        inputs: bytes of the hidden states that enter a layer: what a recomputed layer keeps.
        forward: most that the forward holds at one time beyond what it keeps.
        loss: most that the loss holds beyond what the forward has kept: logits, their gradient, gradients of the head.
        backward: most that the backward holds beyond that, gradients of moving parameters included.
        matmuls: different shapes of matmuls that oneDNN would compute on a CPU, forward and backward.
        forward_matmuls: of these, those of the forward alone.
    """

    tokens: int
    kept: int
    layers: tuple[int, ...]
    inputs: int
    forward: int
    loss: int
    backward: int
    matmuls: int
    forward_matmuls: int

    def kept_with(self, recomputed: int) -> int:
        """Bytes kept where the first layers are computed again in the backward."""
        return self.kept - sum(max(0, kept - self.inputs) for kept in self.layers[:recomputed])

    def largest(self, recomputed: int) -> int:
        """Bytes of the largest layer among those that are computed again: it exists whole for a moment."""
        return max(self.layers[:recomputed], default=0)


def trace(model: Model, micro_batch: MicroBatch, backend: str, chunk_tokens: int, rule: LossRule) -> Trace:
    """Run a micro-batch forward and backward on the meta device.

    Args:
        model: on the meta device, in the run's type, with the method on it; its gradients are cleared.
    """
    own = [*model.parameters(), *model.buffers()]
    with _Meter(own) as meter, _FlashOnMeta(), _watched(decoder_layers(model), meter) as layers:
        hidden = hidden_states(model, micro_batch.rows, backend)
        kept, forward, forward_matmuls = meter.live, meter.restart(), len(meter.matmuls)
        loss = summed_loss(hidden, micro_batch.predictions, head_of(model), chunk_tokens, rule)
        of_loss = meter.restart()
        del hidden
        if loss.requires_grad:
            loss.backward()
        backward = meter.restart()
    model.zero_grad(set_to_none=True)
    inputs = micro_batch.rows.computed_tokens * model.config.get_text_config().hidden_size * model.dtype.itemsize
    return Trace(
        micro_batch.rows.computed_tokens,
        kept,
        tuple(layers.values()),
        inputs,
        max(0, forward - kept),
        max(0, of_loss - kept),
        max(0, backward - kept),
        len(meter.matmuls),
        forward_matmuls,
    )


class _Meter(TorchDispatchMode):
    """Counts the bytes of storages on the meta device that exist at one time, but for those given."""

    def __init__(self, own: Sequence[Tensor]) -> None:
        super().__init__()
        self._own = {tensor.untyped_storage()._cdata for tensor in own}
        self._sizes: dict[int, int] = {}
        self.live = self._peak = 0
        self.matmuls: set[tuple] = set()

    def restart(self) -> int:
        """Most bytes since the last call."""
        peak, self._peak = self._peak, self.live
        return peak

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in _MATMULS and uses_onednn(out.dtype):
            self.matmuls.add((func, *((a.shape, a.stride()) for a in args if isinstance(a, Tensor))))
        for made in tree_leaves(out):
            if isinstance(made, Tensor) and made.device.type == "meta":
                self._see(made.untyped_storage())
        return out

    def _see(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._sizes or key in self._own:
            return
        self._sizes[key] = storage.nbytes()
        self.live += storage.nbytes()
        self._peak = max(self._peak, self.live)
        weakref.finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        self.live -= self._sizes.pop(key)


@contextmanager
def _watched(layers: Sequence[nn.Module], meter: _Meter) -> Iterator[dict[nn.Module, int]]:
    """What each layer has added to what lives, from its start to its end."""
    before: dict[nn.Module, int] = {}
    kept: dict[nn.Module, int] = {}

    def start(layer: nn.Module, inputs: Any) -> None:
        before[layer] = meter.live

    def stop(layer: nn.Module, inputs: Any, output: Any) -> None:
        kept[layer] = meter.live - before[layer]

    handles = [
        h for layer in layers for h in (layer.register_forward_pre_hook(start), layer.register_forward_hook(stop))
    ]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()


class _Flash(torch.autograd.Function):
    """What torch's flash kernels allocate: the output and its log-sum-exp; on the meta device SDPA has no such form."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:  # pyright: ignore
        batch, heads, tokens, _ = query.shape
        out = query.new_empty(batch, tokens, heads, value.shape[-1]).transpose(1, 2)
        sums = query.new_empty(batch, heads, tokens, dtype=torch.promote_types(query.dtype, torch.float32))
        ctx.save_for_backward(query, key, value, out, sums)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # pyright: ignore
        query, key, value, _, _ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


class _FlashOnMeta(TorchFunctionMode):
    """Puts that in the place of SDPA, which on the meta device would keep all scores."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping | None = None) -> Any:
        if func is F.scaled_dot_product_attention:
            return _Flash.apply(*args[:3])
        return func(*args, **(kwargs or {}))
