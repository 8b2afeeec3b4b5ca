"""Spending a time budget on samples: measured, never guessed."""

import time
from collections.abc import Callable, Sequence

import numpy as np

FIRST = 16
_GROWTH = 4  # a larger batch costs less per sample, so the estimate is renewed before the whole rest is taken on


def shuffled(count: int, seed: int) -> list[int]:
    """All indices in a seeded order: any beginning of it is a fair subset."""
    return np.random.default_rng(seed).permutation(count).tolist()


def spend(
    units: Sequence[int],
    seconds: float | None,
    work: Callable[[Sequence[int]], None],
    clock: Callable[[], float] = time.perf_counter,
) -> int:
    """Work on as many units as fit, in growing parts; the first part is always done.

    Args:
        units: in the order in which they are wanted.
        seconds: budget; None does all in one part.
        work: called with consecutive parts.
        clock: seconds.

    Returns:
        How many units were worked on.
    """
    if seconds is None:
        work(units)
        return len(units)
    end = clock() + seconds
    done, size = 0, FIRST
    while done < len(units) and size > 0:
        part = units[done : done + size]
        started = clock()
        work(part)
        now = clock()
        done += len(part)
        each = max((now - started) / len(part), 1e-9)
        size = min(_GROWTH * size, max(0, int((end - now) / each)))
    return done
