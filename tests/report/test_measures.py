import doctest
import importlib

import pytest

from frisket.report.measures import Figure, Measure, forgotten, measures


def test_metrics_come_with_their_intervals_and_the_telling_ones_first():
    found = measures(
        {
            "before": {"loss": 2.0, "exact_match": 0.1, "exact_match_interval": [0.0, 0.2]},
            "after": {"loss": 1.0, "exact_match": 0.5, "kl": 0.01},
        }
    )
    assert [m.metric for m in found] == ["exact_match", "kl", "loss"]
    assert found[0].before == Figure(0.1, 0.0, 0.2)
    assert found[1].before is None
    assert found[2].change == "−1"


def texts(verdict: str | None, kl: float | None = 0.5) -> dict:
    """A set of forgetting as a run leaves it."""
    prose, before, after = "bits_per_character_prose", {}, {}
    if kl is not None:
        before, after = {"kl": 0.0}, {"kl": kl}
    difference = {} if verdict is None else {f"{prose}_verdict": verdict}
    return {"before": before | {prose: 2.0}, "after": after | {prose: 2.5}, "difference": difference}


@pytest.mark.parametrize(
    ("verdict", "told"),
    [
        ("worse", "Forgetting is clear: prose 2 → 2.5 bits per character (+25 %); KL from the base 0.5 nats a token"),
        ("same", "Forgetting: no clear loss: prose 2 → 2.5 bits per character (+25 %, no clear change); KL from"),
        ("better", "Forgetting: no clear loss: prose 2 → 2.5 bits per character (+25 %, better); KL from the base"),
        (None, "Forgetting: too few samples for a verdict: prose 2 → 2.5 bits per character (+25 %); KL from"),
    ],
)
def test_what_was_forgotten_is_one_sentence(verdict, told):
    assert forgotten("default", texts(verdict)).startswith(told)


def test_kl_alone_decides_nothing_and_other_sets_are_named():
    alone = {"before": {"kl": 0.0}, "after": {"kl": 0.5}, "difference": {"kl_verdict": "worse"}}
    assert forgotten("default", alone).startswith("Forgetting: no text was measured: KL from the base 0.5")
    assert forgotten("german", texts("worse", kl=None)).startswith("Forgetting (german) is clear: prose 2")
    assert forgotten("default", {}) == ""


@pytest.mark.parametrize(
    "entry", [{}, {"before": None, "after": None}, {"after": {"loss": None, "note": "x", "ok": True}}]
)
def test_what_was_not_measured_is_not_there(entry):
    assert measures(entry) == []


@pytest.mark.parametrize(
    ("metric", "before", "after", "change"),
    [
        ("exact_match", 0.1, 0.9, "+80.0 points"),
        ("exact_match", 0.9, 0.1, "−80.0 points"),
        ("loss", 2.0, 1.5, "−0.5"),
        ("bits_per_character", 2.0, 2.5, "+0.5"),
        ("loss", 2.0, 2.0, "±0"),
    ],
)
def test_change(metric, before, after, change):
    assert Measure(metric, Figure(before), Figure(after)).change == change


def test_paired_difference_and_its_verdict_are_taken_from_the_summary():
    difference = {"loss": -0.5, "loss_interval": [-0.7, 0.1], "loss_verdict": "same"}
    (measure,) = measures({"before": {"loss": 2.0}, "after": {"loss": 1.5}, "difference": difference})
    assert measure.verdict == "same"
    assert measure.difference == Figure(-0.5, -0.7, 0.1)
    assert measure.change_interval == "−0.7 to +0.1"


def test_what_is_not_finite_is_not_shown():
    nan = float("nan")
    (measure,) = measures({"before": {"loss": nan}, "after": {"loss": 1.5, "loss_interval": [nan, nan]}})
    assert measure.before is None
    assert measure.after == Figure(1.5)


def test_one_side_alone_has_no_change():
    measure = Measure("kl", None, Figure(0.04, 0.03, 0.05))
    assert (measure.change, measure.verdict, measure.change_interval) == ("", "", "")
    assert (measure.shown(measure.before), measure.shown(measure.after)) == ("—", "0.04")
    assert measure.interval(measure.after) == "0.03 to 0.05"
    assert measure.label == "KL from the base"


@pytest.mark.parametrize("name", ["render", "curves", "mask_data", "measures", "compare_page"])
def test_examples_in_docstrings(name):
    result = doctest.testmod(importlib.import_module(f"frisket.report.{name}"))
    assert result.attempted > 0
    assert result.failed == 0


def test_a_sentence_says_what_happened_and_whether_chance_could():
    better = Measure("exact_match", Figure(0.1), Figure(0.8), Figure(0.7, 0.6, 0.8), "better")
    assert better.sentence == (
        "Clearly better: exact match 10.0 % before, 80.0 % after; the change is +60.0 to +80.0 points (95 %)."
    )
    same = Measure("loss", Figure(2.0), Figure(1.9), Figure(-0.1, -0.3, 0.1), "same")
    assert same.sentence == "No clear change: loss 2 before, 1.9 after; the change is −0.3 to +0.1 (95 %)."
    assert Measure("loss", Figure(2.0), Figure(1.9)).sentence == ""
    one = Measure("loss", Figure(5.5), Figure(1.4), Figure(-4.1), units=1)
    assert one.sentence == "Measured: loss 5.5 before, 1.4 after; 1 sample: no interval."
    assert (one.change_interval, one.without_interval) == ("", "1 sample: no interval")
    assert better.without_interval == ""
    assert Measure("loss", None, Figure(1.9), Figure(0.1, 0.0, 0.2), "worse").sentence == ""
