"""Intervals: right coverage, paired, seeded; the shapes of the summary."""

import json
import math

import numpy as np
import pytest

from frisket.evaluate.compare import (
    T_QUANTILES,
    Measure,
    comparison,
    intervals,
    joined,
    one_side,
    t_interval,
    t_quantile,
    table,
    unmeasured,
    verdict,
)


def means(values) -> Measure:
    values = np.asarray(values, dtype=np.float64)
    return Measure(values, np.ones_like(values))


def test_value_is_a_ratio_of_sums():
    assert Measure(np.array([6.0, 1.0]), np.array([3.0, 1.0])).value == 7 / 4
    assert np.isnan(Measure(np.zeros(1), np.zeros(1)).value)


def test_interval_of_a_mean_is_that_of_the_normal_law():
    values = np.random.default_rng(1).normal(3.0, 2.0, 400)
    ((low, high),), _ = intervals([means(values)])
    half = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(2)
    covered = 0
    for seed in range(100):
        count = rng.integers(1, 9, 60).astype(float)
        ((low, high),), _ = intervals([Measure(count * rng.exponential(2.0, 60), count)], seed)
        covered += low <= 2.0 <= high
    assert 85 <= covered <= 99


def test_the_difference_is_paired():
    rng = np.random.default_rng(3)
    before = rng.normal(0, 10, 200)
    after = before - 0.5 + rng.normal(0, 0.1, 200)
    sides, (low, high) = intervals([means(before), means(after)])
    assert sides[0][1] - sides[0][0] > 2
    assert -0.55 < low < high < -0.45


def test_intervals_are_seeded_and_do_not_depend_on_blocks(monkeypatch):
    measure = means(np.random.default_rng(4).normal(size=50))
    first = intervals([measure])
    assert first == intervals([measure])
    assert first != intervals([measure], seed=1)
    monkeypatch.setattr("frisket.evaluate.compare._BLOCK", 1000)
    assert first == intervals([measure])


def test_comparison_has_the_shape_of_the_summary():
    counts = np.array([2.0, 3.0, 1.0] * 5)
    before = {"loss": Measure(np.array([4.0, 9.0, 2.0] * 5), counts), "exact_match": means([0, 0, 1] * 5)}
    after = {"loss": Measure(counts, counts), "exact_match": means([1] * 15)}
    found = comparison(before, after, ["b", "a", "b"] * 5)
    assert found["samples"] == 15
    assert found["before"]["loss"] == 15 / 6
    assert found["after"]["exact_match"] == 1.0
    assert found["difference"]["loss"] == 1.0 - 2.5
    assert list(found["groups"]) == ["b", "a"]
    assert found["groups"]["b"]["samples"] == 10
    assert found["groups"]["b"]["before"]["loss"] == 2.0
    low, high = found["before"]["loss_interval"]
    assert low <= found["before"]["loss"] <= high
    assert found["difference"]["loss_verdict"] == "better"
    json.dumps(found, allow_nan=False)
    rows = table("learning", {"taught": found})
    assert [(row["group"], row["measure"]) for row in rows][:2] == [("", "loss"), ("", "exact_match")]
    assert len(rows) == 6
    assert rows[1]["difference"] == pytest.approx(2 / 3)
    assert {row["samples"] for row in rows} == {5, 10, 15}


@pytest.mark.parametrize("units", [1, 4])
def test_too_few_units_have_neither_interval_nor_verdict(units):
    """The range of one figure is a point, and a point never holds 0."""
    found = comparison({"loss": means([5.5] * units)}, {"loss": means([1.4] * units)}, ["a"] * units)
    for part in (found, found["groups"]["a"]):
        assert part["before"] == {"loss": 5.5}
        assert part["after"] == {"loss": 1.4}
        assert part["difference"] == {"loss": pytest.approx(-4.1)}
    row = table("learning", {"x": found})[0]
    assert (row["interval"], row["verdict"]) == (None, "")
    assert one_side({"loss": means([5.5] * units)}) == {"loss": 5.5}


@pytest.mark.parametrize(("units", "trials"), [(5, 1000), (8, 400), (20, 400)])
def test_equal_sides_of_few_units_are_seldom_told_apart(units, trials):
    rng = np.random.default_rng(5)
    found = [intervals([means(np.zeros(units)), means(rng.normal(size=units))], seed)[1] for seed in range(trials)]
    assert np.mean([verdict("loss", each) != "same" for each in found]) <= 0.1


@pytest.mark.parametrize("seeds", [3, 5])
def test_equal_arms_are_told_apart_as_often_as_the_interval_says(seeds):
    rng = np.random.default_rng(6)
    found = [t_interval(rng.normal(size=seeds)) for _ in range(4000)]
    assert np.mean([verdict("loss", each) != "same" for each in found]) == pytest.approx(0.05, abs=0.01)


def test_the_table_of_t_is_that_of_its_density():
    for freedom in range(1, 61):
        end = t_quantile(freedom)
        assert end == (T_QUANTILES[freedom - 1] if freedom <= 30 else pytest.approx(end))
        x = np.linspace(0.0, end, 20_001)
        constant = math.gamma((freedom + 1) / 2) / (math.sqrt(freedom * math.pi) * math.gamma(freedom / 2))
        density = constant * (1 + x**2 / freedom) ** (-(freedom + 1) / 2)
        assert 0.5 + np.trapezoid(density, x) == pytest.approx(0.975, abs=5e-6 if freedom <= 30 else 2e-4)
    assert t_quantile(10**9) == pytest.approx(1.959964, abs=1e-6)


def test_the_t_interval_of_what_does_not_spread():
    assert t_interval(np.zeros(3)) == (0.0, 0.0)
    for values in ([0.125, 0.125, 0.125], [0.3 - 0.2, 0.4 - 0.3, 0.1], [1.0], []):
        assert np.isnan(t_interval(np.array(values))).all()
    # scipy.stats.t.interval(0.95, 2, loc=2, scale=sem([1, 2, 3]))
    assert t_interval(np.array([1.0, 2.0, 3.0])) == pytest.approx((-0.4841377, 4.4841377), abs=1e-4)


def test_verdicts_need_an_interval_without_zero():
    assert verdict("kl", (0.0, 0.1)) == "same"
    assert verdict("kl", (0.01, 0.1)) == "worse"
    assert verdict("exact_match", (-0.3, -0.1)) == "worse"
    assert verdict("loss", (float("nan"), float("nan"))) == "same"


def test_sides_of_different_units_are_refused():
    with pytest.raises(ValueError, match="not of the same units"):
        comparison({"loss": means([1, 2])}, {"loss": means([1])})
    with pytest.raises(ValueError, match="not of the same units"):
        comparison({"loss": means([1])}, {"kl": means([1])})
    with pytest.raises(ValueError, match="differ in shape"):
        Measure(np.zeros(2), np.zeros(3))


def test_nothing_measured_has_no_interval():
    ((low, high),), difference = intervals([means([])])
    assert np.isnan([low, high, *difference]).all()
    weights = np.array([0.0] * 10 + [2.0] * 5)
    side = one_side({"loss": Measure(2 * weights, weights)})
    assert side == {"loss": 2.0, "loss_interval": [2.0, 2.0]}, "resamples without weight are left out"
    assert one_side({"loss": Measure(2 * weights[:11], weights[:11])}) == {"loss": 2.0}, "one unit has weight"


@pytest.mark.parametrize(
    ("total", "count", "why"),
    [
        ([0.0] * 5, [0.0] * 5, "nothing in it has a positive weight"),
        ([*[1.0] * 4, float("nan")], [1.0] * 5, "it is not finite"),
        ([*[1.0] * 4, float("inf")], [1.0] * 5, "it is not finite"),
        ([], [], "nothing in it has a positive weight"),
    ],
)
def test_what_has_no_value_is_left_out_and_named(total, count, why):
    """NaN is no JSON: a summary with one could be read by few programs."""
    broken, good = Measure(np.array(total), np.array(count)), means([1.0] * len(total))
    assert unmeasured({"loss": broken}) == {"loss": why}
    found = one_side({"loss": broken})
    assert found == {"not_measured": {"loss": why}}
    for before, after in ((broken, good), (good, broken), (broken, broken)):
        if len(total):
            sides = ({"loss": before, "kl": good}, {"loss": after, "kl": good})
            found = comparison(*sides, ["a"] * len(total))
            json.dumps(found, allow_nan=False)
            assert found["not_measured"] == found["groups"]["a"]["not_measured"] == {"loss": why}
            assert list(found["before"]) == list(found["after"]) == ["kl", "kl_interval"]
            assert list(found["difference"]) == ["kl", "kl_interval", "kl_verdict"]
            assert [row["measure"] for row in table("learning", {"x": found})] == ["kl", "kl"]
    assert "not_measured" not in comparison({"loss": means([1.0])}, {"loss": means([1.0])})


def test_joined_units_keep_their_order():
    assert joined([means([1, 2]), means([3])]).total.tolist() == [1, 2, 3]
