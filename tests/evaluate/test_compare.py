"""Bootstrap intervals: right coverage, paired, seeded; the shapes of the summary."""

import json

import numpy as np
import pytest

from frisket.evaluate.compare import Measure, comparison, intervals, joined, one_side, table, unmeasured, verdict


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
    before = {"loss": Measure(np.array([4.0, 9.0, 2.0]), np.array([2.0, 3.0, 1.0])), "exact_match": means([0, 0, 1])}
    after = {"loss": Measure(np.array([2.0, 3.0, 1.0]), np.array([2.0, 3.0, 1.0])), "exact_match": means([1, 1, 1])}
    found = comparison(before, after, ["b", "a", "b"])
    assert found["samples"] == 3
    assert found["before"]["loss"] == 15 / 6
    assert found["after"]["exact_match"] == 1.0
    assert found["difference"]["loss"] == 1.0 - 2.5
    assert list(found["groups"]) == ["b", "a"]
    assert found["groups"]["b"]["samples"] == 2
    assert found["groups"]["b"]["before"]["loss"] == 2.0
    low, high = found["before"]["loss_interval"]
    assert low <= found["before"]["loss"] <= high
    assert found["difference"]["loss_verdict"] == "better"
    json.dumps(found, allow_nan=False)
    rows = table("learning", {"taught": found})
    assert [(row["group"], row["measure"]) for row in rows][:2] == [("", "loss"), ("", "exact_match")]
    assert len(rows) == 6
    assert rows[1]["difference"] == pytest.approx(2 / 3)
    assert {row["samples"] for row in rows} == {1, 2, 3}


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
    side = one_side({"loss": Measure(np.array([0.0, 4.0]), np.array([0.0, 2.0]))})
    assert side == {"loss": 2.0, "loss_interval": [2.0, 2.0]}, "resamples without weight are left out"


@pytest.mark.parametrize(
    ("total", "count", "why"),
    [
        ([0.0, 0.0], [0.0, 0.0], "nothing in it has a positive weight"),
        ([1.0, float("nan")], [1.0, 1.0], "it is not finite"),
        ([1.0, float("inf")], [1.0, 1.0], "it is not finite"),
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
