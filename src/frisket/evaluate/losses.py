"""Losses sample by sample, through the same rows, predictions and head as training."""

from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from frisket.evaluate.compare import Measure
from frisket.generate.sample import measuring
from frisket.hf.forward import hidden_states
from frisket.hf.heads import head_of
from frisket.supervise.loss import token_losses
from frisket.supervise.predictions import predictions
from frisket.types import Rows, Sequence
from frisket.watch import Silent, Watcher


@dataclass(frozen=True)
class Instruments:
    """What measuring needs besides the model and the samples.

    Attributes:
        tokenizer: a fast tokenizer of transformers.
        stop_ids: tokens that end a generated answer.
        pad_id: any token id, for padding while generating.
        arrange: lays sequences into micro-batches in which each sample is one segment (``attend.pack``).
        batch_tokens: tokens of a batch while generating.
        backend: attention backend of the rows.
        chunk_tokens: predictions whose logits exist at one time.
        watcher: is told what is measured.
    """

    tokenizer: Any
    stop_ids: tuple[int, ...]
    pad_id: int
    arrange: Callable[[Seq[Sequence]], list[Rows]]
    batch_tokens: int = 8192
    backend: str = "auto"
    chunk_tokens: int = 1024
    watcher: Watcher = Silent()  # noqa: RUF009  it holds nothing


def sample_losses(
    model: Any,
    samples: Seq[tuple[Sequence, Float64[np.ndarray, "token"]]],
    instruments: Instruments,
    progress: Callable[[int], None] = lambda done: None,
) -> Measure:
    """Weighted loss and weight of each sample, in nats, summed over its tokens, in the order given.

    Measured are the predictions with a weight above 0, with these weights. A negative weight asks that a token be
    less likely: its loss has no part in a mean of what is to become likely, and would take the count to 0 or below.
    A sample without a positive weight has total and count 0.

    Args:
        model: a causal language model of transformers on frisket's attention.
        samples: sequence, and weight of each of its tokens as a target; sample ids differ.
        instruments: how to lay out and compute.
        progress: told how many samples were finished since its last call.
    """
    by_id = {sequence.sample_id: (sequence, np.maximum(weights, 0.0)) for sequence, weights in samples}
    order = {sample_id: index for index, sample_id in enumerate(by_id)}
    total, count = np.zeros(len(samples)), np.zeros(len(samples))
    with measuring(model):
        for rows in instruments.arrange([sequence for sequence, _ in samples]) if samples else []:
            listed = predictions(rows, by_id)
            hidden = hidden_states(model, rows, instruments.backend)
            losses = token_losses(hidden, listed, head_of(model), instruments.chunk_tokens).numpy()
            of_segment = _samples_of_segments(rows, order)
            sample = of_segment[rows.segment_ids.ravel()[listed.position]]
            np.add.at(total, sample, losses * listed.weights)
            np.add.at(count, sample, listed.weights)
            progress(len(rows.leaves))
    return Measure(total, count)


def logits_at(
    model: Any, rows: Rows, position: Int64[np.ndarray, "prediction"], backend: str = "auto"
) -> Float[Tensor, "prediction vocab"]:
    """Logits at some places of the flattened rows."""
    hidden = hidden_states(model, rows, backend)
    return head_of(model).logits(hidden.index_select(0, torch.from_numpy(position).to(hidden.device)))


def flat_places(rows: Rows) -> dict[str, Int64[np.ndarray, "token"]]:
    """Flat index of each token of each sample, where every sample is one segment."""
    flat = rows.segment_ids.ravel()
    return {leaf.sample_id: np.flatnonzero(flat == leaf.last) for leaf in rows.leaves}


def _samples_of_segments(rows: Rows, order: Mapping[str, int]) -> np.ndarray:
    of_segment = np.full(len(rows.parent_segment), -1)
    for leaf in rows.leaves:
        of_segment[leaf.last] = order[leaf.sample_id]
    return of_segment
