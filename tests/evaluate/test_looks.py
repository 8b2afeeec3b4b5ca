"""The best of several is judged by an interval that all of them hold together."""

import numpy as np
import pytest

from frisket.evaluate import compare
from frisket.evaluate.compare import Measure, intervals
from frisket.evaluate.looks import t_quantile, widened


@pytest.mark.parametrize("freedom", [1, 2, 4, 17, 30])
def test_quantiles_are_those_of_the_table(freedom):
    assert t_quantile(0.95, freedom) == pytest.approx(compare.t_quantile(freedom), rel=1e-4)


def test_one_look_changes_nothing_and_more_widen_about_the_figure():
    assert widened((-0.5, 0.25), 0.0, 1, 9) == (-0.5, 0.25)
    factor = t_quantile(1 - 0.05 / 10, 8) / t_quantile(0.95, 8)
    assert widened((-0.5, 0.25), 0.0, 10, 9) == pytest.approx((-0.5 * factor, 0.25 * factor))
    assert factor == pytest.approx(3.8325 / 2.3060, rel=1e-4)  # 99.75 % and 97.5 % of Student's t, from tables


def test_the_best_of_twelve_that_are_all_the_same_seldom_beats_none():
    """Plain intervals of the best of twelve leave 0 out far more often than the one time in forty that they promise."""
    rng, units, tries = np.random.default_rng(0), 30, 100
    plain = corrected = 0
    for _ in range(tries):
        samples = rng.normal(size=(12, units))
        best = samples[samples.mean(axis=1).argmin()]
        count = np.ones(units)
        _, found = intervals([Measure(np.zeros(units), count), Measure(best, count)])
        plain += found[1] < 0
        corrected += widened(found, float(best.mean()), 12, units)[1] < 0
    assert plain > 0.15 * tries
    assert corrected <= 0.08 * tries
