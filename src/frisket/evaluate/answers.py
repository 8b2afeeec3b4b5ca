"""The base's own greedy answers, and how far the tuned model's distributions on them are from the base's."""

from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from frisket.evaluate.compare import Measure
from frisket.evaluate.divergence import Kept, bucketed_kl, exact_kl, keep
from frisket.evaluate.losses import Instruments, flat_places, logits_at
from frisket.evaluate.text import plain_sequence
from frisket.generate.sample import generate, measuring
from frisket.generate.settings import GenerateSettings
from frisket.types import Sequence

SwitchedOff = Callable[[], AbstractContextManager[None]]
_AT_ONCE = 256  # distributions whose logits exist at one time, twice: 2 x 154 MB in float32 for 150,000 tokens


@dataclass(frozen=True)
class Answered:
    """A prompt with the base's own greedy answer.

    Attributes:
        sequence: both.
        first: place of the last prompt token, whose hidden state predicts the answer's first token.
        count: distributions that are compared: one a token of the answer, and the one that ended it.
    """

    sequence: Sequence
    first: int
    count: int


def base_answers(
    model: Any, prompts: Seq[list[int]], indices: Seq[int], answer_tokens: int, instruments: Instruments
) -> list[Answered]:
    """Answer some of the prompts greedily.

    Args:
        model: the base.
        prompts: token ids of all prompts.
        indices: which of them; they name the sequences.
        answer_tokens: longest answer.
        instruments: how to compute.
    """
    new = generate(
        model,
        [prompts[index] for index in indices],
        stop_ids=instruments.stop_ids,
        pad_id=instruments.pad_id,
        settings=GenerateSettings(max_new_tokens=answer_tokens),
        batch_tokens=instruments.batch_tokens,
    )
    answered = []
    for index, answer in zip(indices, new, strict=True):
        sequence = plain_sequence(f"kl:{index}", [*prompts[index], *answer])
        answered.append(Answered(sequence, len(prompts[index]) - 1, min(len(answer) + 1, answer_tokens)))
    return answered


def kept_of(model: Any, answered: Seq[Answered], instruments: Instruments) -> list[Kept]:
    """The model's largest log-probabilities along each answer."""
    return [keep(logits) for group in _groups(answered) for logits in _logits(model, group, instruments)]


def divergences(
    model: Any, answered: Seq[Answered], instruments: Instruments, base: Seq[Kept] | SwitchedOff
) -> Measure:
    """KL(base ‖ model) summed over each answer, in nats, and its number of distributions.

    Args:
        model: the tuned model.
        answered: the base's answers.
        instruments: how to compute.
        base: what was kept of the base (a lower bound), or a context that makes the model the base (exact).
    """
    totals: list[float] = []
    for group in _groups(answered):
        tuned = _logits(model, group, instruments)
        if callable(base):
            with base():
                ours = _logits(model, group, instruments)
            found = [exact_kl(p, q) for p, q in zip(ours, tuned, strict=True)]
        else:
            found = [bucketed_kl(base[len(totals) + i], q) for i, q in enumerate(tuned)]
        totals += [float(per_token.sum()) for per_token in found]
    return Measure(np.array(totals), np.array([float(a.count) for a in answered]))


def _groups(answered: Seq[Answered]) -> Iterator[Seq[Answered]]:
    size = max(1, _AT_ONCE // max((a.count for a in answered), default=1))
    for start in range(0, len(answered), size):
        yield answered[start : start + size]


def _logits(model: Any, group: Seq[Answered], instruments: Instruments) -> list[Float[Tensor, "prediction vocab"]]:
    """Of each answer, in the order of the group."""
    by_id: dict[str, Tensor] = {}
    wanted = {a.sequence.sample_id: a for a in group}
    with measuring(model):
        for rows in instruments.arrange([a.sequence for a in group]):
            places = flat_places(rows)
            spans = {name: p[wanted[name].first :][: wanted[name].count] for name, p in places.items()}
            logits = logits_at(model, rows, np.concatenate(list(spans.values())), instruments.backend)
            by_id |= dict(zip(spans, logits.split([len(span) for span in spans.values()]), strict=True))
    return [by_id[a.sequence.sample_id] for a in group]
