"""`--overfit N`: can these samples be learned at all; if not, which mask stops it."""

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from frisket.errors import counted
from frisket.run.prepare import Prepared
from frisket.train.loop import Totals

if TYPE_CHECKING:
    from frisket.run.training import Loaded

GOOD_LOSS = 0.05


@dataclass(frozen=True)
class Verdict:
    """Whether the samples were learned, and what to do where they were not."""

    fitted: bool
    text: str


def explain(prepared: Prepared, loaded: "Loaded", totals: Totals) -> Verdict:
    """Say what stopped the loss where it did not fall below 0.05.

    Three things are looked at, in this order: what the data makes impossible (the same context with different targets
    under the same mask has a lowest loss that no model gets below), what the schedule did not give time for, and what
    moves.
    """
    loss = totals.last.loss if totals.last else math.inf
    count = len(prepared.order.families.flat)
    samples, steps = counted(count, "sample"), counted(totals.step, "step")
    if loss < GOOD_LOSS:
        return Verdict(True, f"{samples} learned to a loss of {loss:.3f} in {steps}")
    floor = lowest_loss(prepared)
    head = f"{samples}: the loss is still {loss:.3f} after {steps} (wanted: below {GOOD_LOSS})."
    if floor > GOOD_LOSS:
        return Verdict(
            False,
            f"{head}\nsupervise: the same context is taught with different next tokens, so no model gets below "
            f"{floor:.3f}.\n"
            "Teach less of it: supervise.policy=completion, or look at the samples with frisket view.",
        )
    moving = sum(master.numel() for master in loaded.optimizer.masters.values())
    supervised = totals.last.supervised_tokens if totals.last else 0
    if moving < 64 * supervised:
        return Verdict(
            False,
            f"{head}\nadapt: {moving:,} weights move for {supervised:,} taught tokens, too few to hold them.\n"
            "Move more: adapt.rank=64 adapt.where=all-linear, or adapt.method=full.",
        )
    rate = totals.last.rate if totals.last else 0.0
    return Verdict(
        False,
        f"{head}\ntrain: no mask stands in the way (lowest possible loss {floor:.3f}, {moving:,} weights move).\n"
        f"Give it more: train.learning_rate={3 * rate:g} or train.max_steps={4 * totals.step}.",
    )


def lowest_loss(prepared: Prepared) -> float:
    """The entropy that is left when every context predicts its own targets perfectly, per unit of weight, in nats.

    Two samples that agree up to a token and differ there give that context two targets.
    """
    targets: dict[bytes, dict[int, float]] = defaultdict(lambda: defaultdict(float))
    for index in prepared.order.families.flat:
        sequence, weights = prepared.weighted(int(index))
        ids = sequence.input_ids
        for place in weights.nonzero()[0]:
            targets[ids[:place].tobytes()][int(ids[place])] += float(weights[place])
    total = lowest = 0.0
    for counts in targets.values():
        weight = sum(counts.values())
        total += weight
        lowest -= sum(w * math.log(w / weight) for w in counts.values() if w > 0 and weight > 0)
    return lowest / total if total else 0.0
