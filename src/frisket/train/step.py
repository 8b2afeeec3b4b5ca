"""One optimizer step: rows, predictions, summed loss, one division, one move."""

import math
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from frisket.adapt.base import Attached
from frisket.attend.pack import Arrangement, pack
from frisket.errors import CheckError
from frisket.hf.forward import Model, hidden_states
from frisket.hf.heads import head_of
from frisket.supervise.loss import CROSS_ENTROPY, LossRule, summed_loss
from frisket.supervise.normaliser import normaliser
from frisket.supervise.predictions import Weighted, predictions
from frisket.train.optim import Optimizer
from frisket.types import MicroBatch


@dataclass(frozen=True)
class Laying:
    """How the samples of a step become micro-batches, and how their attention and their loss are computed.

    Attributes:
        virtual_tokens: what the method puts in front of every row; counted as computed, beside ``row_tokens``.
    """

    arrangement: Arrangement
    row_tokens: int
    micro_rows: int
    backend: str
    chunk_tokens: int
    loss: LossRule = CROSS_ENTROPY
    virtual_tokens: int = 0


@dataclass(frozen=True)
class StepInput:
    """All of a step that is known before its first forward.

    Attributes:
        divisor: what the summed loss is divided by.
        flat_tokens: tokens of the samples.
        computed_tokens: tokens that go through the model, padding and virtual ones included.
        supervised_tokens: targets with weight != 0, each sample's own.
    """

    micro_batches: tuple[MicroBatch, ...]
    divisor: float
    flat_tokens: int
    computed_tokens: int
    supervised_tokens: int
    sample_ids: tuple[str, ...]


def lay_out(samples: Seq[Weighted], laying: Laying, rule: str | float) -> StepInput:
    """Do the host's part of a step: rows, predictions, normaliser.

    Args:
        samples: each sequence with its weights as targets.
        rule: the normaliser's name or number.
    """
    named = {sequence.sample_id: (sequence, weights) for sequence, weights in samples}
    batches = pack([sequence for sequence, _ in samples], laying.arrangement, laying.row_tokens, laying.micro_rows)
    micro_batches = tuple(
        MicroBatch(rows, predictions(rows, named), sum(len(named[leaf.sample_id][0]) for leaf in rows.leaves))
        for rows in batches
    )
    weights = [w for _, w in samples]
    return StepInput(
        micro_batches,
        normaliser(weights, rule),
        sum(len(sequence) for sequence, _ in samples),
        sum(rows.computed_tokens + len(rows.input_ids) * laying.virtual_tokens for rows in batches),
        sum(int(np.count_nonzero(w)) for w in weights),
        tuple(sequence.sample_id for sequence, _ in samples),
    )


class Moved(NamedTuple):
    """What one step came to.

    Attributes:
        loss: sum over the normaliser.
        norm: of the gradient, before clipping.
        skipped: gradients that were not finite in fp16 and were computed again with a smaller scale.
    """

    loss: float
    norm: float
    skipped: int


def run_step(
    model: Model,
    attached: Attached,
    optimizer: Optimizer,
    step: StepInput,
    laying: Laying,
    *,
    number: int,
    rate: float,
    meanwhile: Callable[[], None] = lambda: None,
) -> Moved:
    """Move the weights once.

    The host reads from the device once, when all forwards and backwards are queued.

    Args:
        meanwhile: host work that is done before that read, while the device computes.

    Raises:
        CheckError: the loss or the gradient is not finite; nothing has moved.
    """
    optimizer.to_gradient_point()
    told = _gradient(model, attached, optimizer, step, laying)
    meanwhile()
    loss, norm = _read(*told)
    skipped = 0
    while optimizer.scale is not None and math.isfinite(loss) and not math.isfinite(norm):
        optimizer.clear()
        optimizer.scale.lower(number)
        skipped += 1
        loss, norm = _read(*_gradient(model, attached, optimizer, step, laying))
    if not (math.isfinite(norm) and math.isfinite(loss)):
        optimizer.clear()
        optimizer.write_back()
        raise CheckError(
            f"step {number}: loss {loss:g}, gradient norm {norm:g}; the weights were not moved.\n"
            f"Its samples: {', '.join(step.sample_ids[:5])}{' …' if len(step.sample_ids) > 5 else ''}.\n"
            "Start again with another --out and a lower train.learning_rate, or train.compute=fp32."
        )
    optimizer.clip(norm)
    attached.before_update()
    optimizer.update(rate)
    attached.after_update(number)
    optimizer.write_back()
    return Moved(loss, norm, skipped)


def _gradient(
    model: Model, attached: Attached, optimizer: Optimizer, step: StepInput, laying: Laying
) -> tuple[list[Tensor], Tensor]:
    """Queue a step's gradient into the optimizer's buffers: the loss of each micro-batch, and the norm, on the device.

    In fp16 the methods' ``after_backward`` sees scaled gradients.
    """
    scale = 1.0 if optimizer.scale is None else optimizer.scale.factor
    losses = []
    for index, micro_batch in enumerate(step.micro_batches):
        part = micro_batch_loss(model, attached, micro_batch, laying) / step.divisor
        penalty = attached.penalty() if index == 0 else None
        ((part if penalty is None else part + penalty) * scale).backward()
        losses.append(part.detach())
        attached.after_backward(index)
        optimizer.accumulate()
    return losses, optimizer.norm()


def _read(losses: list[Tensor], norm: Tensor) -> tuple[float, float]:
    """Loss and norm as numbers, in one read."""
    *parts, size = torch.stack([*losses, norm]).tolist()
    return sum(parts), size


def micro_batch_loss(model: Model, attached: Attached, micro_batch: MicroBatch, laying: Laying) -> Tensor:
    """Summed loss of a micro-batch, the method's own included."""
    hidden = hidden_states(model, micro_batch.rows, laying.backend)
    loss = summed_loss(hidden, micro_batch.predictions, head_of(model), laying.chunk_tokens, laying.loss)
    extra = attached.extra_loss(micro_batch.rows)
    return loss if extra is None else loss + extra
