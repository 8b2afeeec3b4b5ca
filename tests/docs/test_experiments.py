"""docs/experiments.md says what lab/results holds."""

import json

import pytest

from tests.docs import experiments

RESULTS = {
    "name": "mask-free-toy",
    "question": "Does it?",
    "arms": {"a": ["x=1", "y=2"], "b": ["x=1", "y=3"], "c": ["x=1"]},
    "expectations": [
        {"arm": "a", "against": "b", "metric": "m", "good": "higher", "expected": "better", "smallest": 0.5},
        {"arm": "b", "against": "a", "metric": "m", "good": "higher", "expected": "better", "smallest": 0.5},
        {"arm": "c", "against": "a", "metric": "m", "good": "lower", "expected": "worse", "smallest": 0.5},
    ],
    "runs": [{"arm": "a", "values": {"m": [1.0, 3.0]}}, {"arm": "b", "values": {"m": 1.0}}],
}


def compared(arm: str, against: str, as_expected: bool | None) -> dict:
    return {
        "arm": arm,
        "against": against,
        "metric": "m",
        "seeds": [0, 1, 2],
        "difference": 1.0,
        "interval": [0.5, 1.5],
        "verdict": "better",
        "as_expected": as_expected,
    }


@pytest.fixture
def lab(tmp_path, monkeypatch):
    monkeypatch.setattr(experiments, "RESULTS", tmp_path)
    monkeypatch.setattr(experiments, "meaning_of", lambda name: f"{name} means it.")
    return tmp_path


def test_the_page_is_up_to_date():
    assert experiments.PAGE.read_text(encoding="utf-8") == experiments.page(), "python -m tests.docs.experiments"


def test_the_drawings_are_up_to_date():
    drawn = {file.name: file.read_text(encoding="utf-8") for file in experiments.RESULTS.glob("*.svg")}
    assert {f.name: f.read_text(encoding="utf-8") for f in experiments.PLOTS.glob("*.svg")} == drawn, (
        "run the generator"
    )


def test_verdicts_arms_and_the_plot_are_told(lab):
    results = RESULTS | {"comparisons": [compared("a", "b", True), compared("b", "a", False)]}
    (lab / "toy.json").write_text(json.dumps(results))
    text = experiments.page()
    assert "experiments/mask-free-toy.svg" not in text
    (lab / "mask-free-toy.svg").write_text("<svg/>")
    assert "](experiments/mask-free-toy.svg)" in experiments.page()
    lines = text.splitlines()
    assert "| a | `y=2` | 1 | 2 (2 to 2) |" in lines
    assert "| c | – | 0 | – |" in lines
    assert "Common to all: `x=1`" in lines
    ends = [line.rsplit("|", 3)[1:3] for line in lines if " − " in line]
    assert [verdict.strip() for _, verdict in ends] == ["**held**", "**did not hold**", "**cannot be tested here**"]
    assert "+1 (+0.5 to +1.5) | better (3 seeds)" in text
    assert "mask-free-toy means it." in text


def test_what_was_not_compared_is_left_out(lab):
    (lab / "toy.json").write_text(json.dumps(RESULTS | {"comparisons": []}))
    (lab / "rates.json").write_text(json.dumps({"question": "of another format"}))
    assert experiments.page() == experiments.HEAD


def test_results_without_a_meaning_are_refused():
    with pytest.raises(KeyError, match="belongs to no module"):
        experiments.meaning_of("nobody-knows")
    with pytest.raises(KeyError, match="has no 'mask-free-nothing'"):
        experiments.meaning_of("mask-free-nothing")
