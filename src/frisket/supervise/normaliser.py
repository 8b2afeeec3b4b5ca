"""What the summed loss of a step is divided by; known before the first forward, from the samples alone."""

from collections.abc import Sequence as Seq

import numpy as np

from frisket.errors import DataError


def normaliser(weights: Seq[np.ndarray], rule: str | float) -> float:
    """The divisor of one step.

    Args:
        weights: weights of each token as a target, one array a sample.
        rule: ``weights`` (their sum), ``tokens`` (how many are not 0), ``sequences``, or the number itself.

    Raises:
        DataError: ``weights`` where one is negative, or where they sum to nothing.
    """
    if isinstance(rule, int | float):
        return float(rule)
    if rule == "sequences":
        return float(len(weights))
    if rule == "tokens":
        divisor = float(sum(np.count_nonzero(w) for w in weights))
    else:
        if any((w < 0).any() for w in weights):
            raise DataError(
                "supervise.normaliser = 'weights', but a weight is negative: their sum says nothing about a step's "
                "size.\n"
                "Use supervise.normaliser=tokens."
            )
        divisor = float(sum(w.sum() for w in weights))
    if divisor <= 0:
        raise DataError(
            "a step has nothing to teach: every weight is 0.\nUse supervise.policy=all, or look with frisket view."
        )
    return divisor
