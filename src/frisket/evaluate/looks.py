"""Intervals of what was chosen among several by the very samples that it is judged on."""

import math

import numpy as np

from frisket.evaluate.compare import LEVEL, Interval


def widened(interval: Interval, figure: float, looks: int, units: int) -> Interval:
    """The 95 % interval of a figure that was the best of so many, as wide as makes all of them hold together.

    Bonferroni: each is to miss with probability 0.05 / looks. The interval reaches further out by the ratio of the
    quantiles of Student's t, since resamples are too few for tails so thin.

    Args:
        units: that it was measured on, at least 2.

    Returns:
        As it is after one look.
    """
    if looks == 1:
        return interval
    factor = t_quantile(1 - (1 - LEVEL) / looks, units - 1) / t_quantile(LEVEL, units - 1)
    return figure - factor * (figure - interval[0]), figure + factor * (interval[1] - figure)


def t_quantile(level: float, freedom: int) -> float:
    """How far from 0 Student's t stays with probability ``level``, by integration: with t = tan(a) sqrt(freedom) its
    density goes with cos(a) ^ (freedom - 1).

    >>> [round(t_quantile(0.95, freedom), 3) for freedom in (4, 30, 1000)], round(t_quantile(0.995, 4), 3)
    ([2.776, 2.042, 1.962], 5.598)
    """
    angles = np.linspace(0.0, np.pi / 2, 200_001)
    density = np.cos(angles) ** (freedom - 1)
    below = np.concatenate(([0.0], np.cumsum(density[1:] + density[:-1])))
    return math.sqrt(freedom) * math.tan(float(np.interp(level, below / below[-1], angles)))
