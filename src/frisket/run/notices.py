"""What a plan and a run say of the data and the steps before anything is paid: lines that a person should not miss."""

import math
import re
from collections import Counter
from collections.abc import Sequence as Seq

import numpy as np
from jaxtyping import Int64

from frisket.adapt.spiel import Spiel
from frisket.errors import counted
from frisket.run.prepare import Prepared
from frisket.run.reused import reused_line
from frisket.watch import Watcher

FEW_STEPS = 20
_SMALL_STEP = 256
"""Tokens of the smallest step that is advised, about one long conversation or ten short ones."""
_REASON = 160  # characters of a reason on the screen; the file has all of it


ALL_OF_A_RUN = "dropped.jsonl in the run's folder"
_ALL_OF_A_PLAN = "frisket plan --json"


def notices(prepared: Prepared, all_dropped: str = _ALL_OF_A_PLAN) -> list[str]:
    """One line each, none where there is nothing to say.

    Of what was dropped, turns that nothing answers, held-out samples that were trained on before, too few steps.

    Args:
        all_dropped: where every dropped sample is named.
    """
    found = (*_of_data(prepared, all_dropped), reused_line(prepared), _few_steps(prepared), _cycle(prepared))
    return [line for line in found if line]


def tell(prepared: Prepared, watcher: Watcher, all_dropped: str = _ALL_OF_A_PLAN) -> None:
    """Warn of all that; warnings reach a person also where progress is not shown."""
    for line in notices(prepared, all_dropped):
        watcher.warn(line)


def tell_of_data(prepared: Prepared, watcher: Watcher) -> None:
    """Warn of the data alone, where nothing is to be trained."""
    for line in filter(None, _of_data(prepared, _ALL_OF_A_PLAN)):
        watcher.warn(line)


def _of_data(prepared: Prepared, all_dropped: str) -> tuple[str | None, str | None]:
    read = sum(ledger.samples["read"] for ledger in prepared.ledgers)
    return dropped_line(prepared.dataset.dropped, read, all_dropped), _unanswered(prepared)


def dropped_line(dropped: Seq[dict], read: int, all_dropped: str) -> str | None:
    """How many samples were left out, the commonest reason and its first place; None where there are none.

    Args:
        dropped: as ``dropped.jsonl`` holds them.
        read: samples that were read.
        all_dropped: where all of them are named.
    """
    if not dropped:
        return None
    kinds = Counter(_kind(entry["reason"]) for entry in dropped)
    kind, count = kinds.most_common(1)[0]
    first = next(entry for entry in dropped if _kind(entry["reason"]) == kind)
    reason = first["reason"] if len(first["reason"]) <= _REASON else f"{first['reason'][:_REASON]}…"
    return (
        f"dropped {len(dropped):,} of {counted(read, 'sample')}; the commonest reason ({count:,}): {reason} "
        f"({first['place']}); all: {all_dropped}"
    )


def _kind(reason: str) -> str:
    """A reason without its numbers and quoted values: samples of different lengths are too long for one reason."""
    return re.sub(r"\d[\d,]*|'[^']*'", "#", reason)


def _unanswered(prepared: Prepared) -> str | None:
    """Conversations whose end teaches nothing, because no answer follows it."""
    found = [int(index) for index in prepared.dataset.unanswered() if not _end_is_taught(prepared, int(index))]
    if not found:
        return None
    ends, turns = ("conversation ends", "turn teaches") if len(found) == 1 else ("conversations end", "turns teach")
    return (
        f"{len(found):,} {ends} without an answer, first {prepared.dataset.place(found[0])}: the last {turns} nothing"
    )


def _end_is_taught(prepared: Prepared, index: int) -> bool:
    sequence, weights = prepared.weighted(index)
    return bool(np.any(weights[sequence.turns == sequence.turns.max()]))


def _few_steps(prepared: Prepared) -> str | None:
    """Too few optimizer steps, where nobody asked for that number, and overrides that make more."""
    steps, train = prepared.total_steps, prepared.recipe.train
    if steps >= FEW_STEPS or train.max_steps is not None:
        return None
    lengths = np.concatenate([prepared.dataset.lengths[step.samples] for step in prepared.order.epoch(0)])
    fix = more_steps(lengths, train.epochs or 1.0, prepared.settled.step.tokens)
    return f"only {counted(steps, 'optimizer step')}, too few to learn much; for at least {FEW_STEPS}: {fix}"


def _cycle(prepared: Prepared) -> str | None:
    """A cycle of selections that is too long for the run (SpIEL)."""
    method = prepared.recipe.adapt
    told = method.cycle.too_long(prepared.total_steps) if isinstance(method, Spiel) else ""
    return f"spiel: {told}" if told else None


def more_steps(lengths: Int64[np.ndarray, "sample"], epochs: float, step_tokens: int) -> str:
    """Overrides that give a run enough steps: a smaller step; where the smallest is not enough, more epochs too.

    >>> samples = np.full(60, 100)
    >>> more_steps(samples, 2.0, 1024), more_steps(samples, 1.0, 1024), more_steps(samples[:9], 1.0, 1024)
    ('train.step_tokens=512', 'train.step_tokens=256', 'train.step_tokens=256 train.epochs=6')
    """
    enough = 1.05 * FEW_STEPS  # a step is seldom quite full
    sizes = [2**power for power in range(int(math.log2(step_tokens)), -1, -1) if 2**power >= _SMALL_STEP]
    sizes = sizes or [step_tokens]
    steps_of = {size: min(len(lengths), float(lengths.sum()) / size) for size in sizes}
    size = next((size for size in sizes if epochs * steps_of[size] >= enough), sizes[-1])
    smaller = f"train.step_tokens={size}" if size < step_tokens else ""
    more = f"train.epochs={math.ceil(enough / steps_of[size])}" if epochs * steps_of[size] < enough else ""
    return " ".join(filter(None, (smaller, more)))
