import math

import pytest

from frisket.report.curves import draw
from frisket.report.plots import measured, run_charts, speed_of, steps_of


def side(match: float, loss: float) -> dict:
    return {"exact_match": match, "exact_match_interval": [match, match + 0.1], "loss": loss, "loss_interval": None}


LEARNING = {"skills": {"before": side(0.0, 3.0), "after": side(0.8, 0.5)}, "other": {"before": {"loss": 2.0}}}
EVALUATIONS = [
    {"step": 20, "learning": {"skills": side(0.3, 1.5)}},
    {"step": 40, "learning": {"skills": side(0.6, 0.9)}},
]


def charts(metrics, timings=(), learning=LEARNING, evaluations=EVALUATIONS) -> dict:
    return {chart.title: chart for chart in run_charts(steps_of(metrics), timings, learning, evaluations)}


def test_steps_lie_on_the_axis_of_tokens(metrics):
    steps = steps_of(metrics)
    assert (steps.tokens[0], steps.tokens[1], steps.tokens[60], steps.last) == (0, 900, 54_000, 60)
    assert steps.points("loss")[1] == (1800, metrics[1]["loss"])
    assert steps.readings("loss")[1] == (1800, f"step 2 · 1,800 tokens · {metrics[1]['loss']:.4g}")
    assert steps_of([]).last == 0


def test_values_that_are_not_finite_are_left_out():
    records = [
        {"step": s, "flat_tokens": 10, "loss": loss} for s, loss in ((1, 2.0), (2, math.nan), (3, None), (4, 1.0))
    ]
    steps = steps_of(records)
    assert steps.points("loss") == [(10, 2.0), (40, 1.0)]
    assert [x for x, _ in steps.readings("loss")] == [10, 40]


def test_what_was_measured_stands_at_its_tokens_with_both_ends(metrics):
    match, *others = measured(steps_of(metrics), LEARNING, EVALUATIONS, "exact_match")
    assert others == []
    assert match.points == [(0, 0.0), (18_000, 0.3), (36_000, 0.6), (54_000, 0.8)]
    assert match.intervals[1] == (0.3, pytest.approx(0.4))
    skills, other = measured(steps_of(metrics), LEARNING, EVALUATIONS, "loss")
    assert [y for _, y in skills.points] == [3.0, 1.5, 0.9, 0.5]
    assert all(math.isnan(low) for low, _ in skills.intervals)
    assert other.points == [(0, 2.0)]


def test_loss_and_measurements_share_one_chart_and_a_sentence_says_what_is_seen(metrics):
    loss = charts(metrics)["Loss"]
    assert [curve.name for curve in loss.curves] == ["training", "skills", "other"]
    first = sum(m["loss"] for m in metrics[:3]) / 3
    last = sum(m["loss"] for m in metrics[-3:]) / 3
    assert loss.sentence.startswith(
        f"Training loss fell from {first:.4g} to {last:.4g} over 54,000 tokens (means of the first and last 3 of 60 "
        "steps)."
    )
    assert "skills 3 before, 0.5 after" in loss.sentence


def test_sets_that_are_not_drawn_are_said(metrics):
    many = {f"set {i}": LEARNING["skills"] for i in range(5)}
    drawn = charts(metrics, learning=many, evaluations=[])
    assert [curve.name for curve in drawn["Loss"].curves] == ["training", "set 0", "set 1", "set 2"]
    assert [curve.name for curve in drawn["Exact match"].curves] == ["set 0", "set 1", "set 2"]
    told = "; 2 more sets are in the tables above."
    assert drawn["Loss"].sentence.endswith(told)
    assert drawn["Exact match"].sentence.endswith(told)


def test_a_loss_that_rose_or_stayed_is_not_said_to_fall(metrics):
    rising = [m | {"loss": float(m["step"])} for m in metrics]
    flat = [m | {"loss": 1.0} for m in metrics[:5]]
    assert charts(rising)["Loss"].sentence.startswith("Training loss rose from 2 to 59")
    assert charts(flat)["Loss"].sentence.startswith("Training loss stayed near 1 over 4,500 tokens (5 steps).")


def test_exact_match_is_a_share_and_absent_where_it_was_not_measured(metrics):
    match = charts(metrics)["Exact match"]
    assert match.sentence == "Measured: skills 0.0 % before, 80.0 % after."
    assert match.tick(0.25) == "25 %"
    assert "Exact match" not in charts(metrics, learning={}, evaluations=[])


def test_the_learning_rate_in_words(metrics):
    def told(rates: list[float]) -> str:
        return charts([m | {"rate": rate} for m, rate in zip(metrics, rates, strict=False)])["Learning rate"].sentence

    assert told([1e-3, 2e-3, 1e-3]) == "Rose to 0.002 over 1,800 tokens, then fell to 0.001."
    assert told([2e-3, 1e-3]) == "Started at 0.002, then fell to 0.001."
    assert told([1e-3, 2e-3]) == "Rose to 0.002 over 1,800 tokens."
    assert told([1e-3] * 4) == "Constant at 0.001."


def test_the_gradient_norm_in_words(metrics):
    assert charts(metrics)["Gradient norm"].sentence == "Between 0.01667 and 1, half of the steps below 0.0328."


def test_speed_joins_tokens_and_seconds_by_step(metrics, timings):
    steps = steps_of(metrics)
    assert speed_of(steps, timings, "flat_tokens")[0] == (900, pytest.approx(9000))
    assert speed_of(steps, [{"event": "evaluation", "seconds": 3.0}], "flat_tokens") == []
    assert "Tokens per second" not in charts(metrics)


def test_real_computed_and_supervised_tokens_per_second(metrics, timings):
    packed = [m | {"computed_tokens": 600, "supervised_tokens": 90} for m in metrics]
    speed = charts(packed, timings)["Tokens per second"]
    assert [curve.name for curve in speed.curves] == ["real", "computed", "supervised"]
    assert speed.sentence == "In a typical second: 9,000 tokens of samples, 6,000 through the model, 900 taught."
    same = charts([m | {"computed_tokens": 900} for m in metrics], timings)["Tokens per second"]
    assert [curve.name for curve in same.curves] == ["real"]
    assert same.sentence == "In a typical second: 9,000 tokens of samples, all of them computed."


def test_the_best_step_is_marked_and_the_result_stands_there(metrics, timings):
    best = {"step": 30, "loss": 1.2, "kept": "best", "of": 90, "stopped": True, "without_improvement": 3}
    evaluations = [*EVALUATIONS, {"step": 60, "learning": {"skills": {"loss": 1.9}}}]
    chart = run_charts(steps_of(metrics), timings, LEARNING, evaluations, best)[0]
    assert chart.mark == (27_000.0, "best")
    assert "Best at step 30 of 90: 1.2; its weights are the result. Stopped after 3 evaluations" in chart.sentence
    assert "1.9 at the last step" in chart.sentence
    skills = next(curve for curve in chart.curves if curve.name == "skills")
    assert dict(skills.points)[27_000.0] == LEARNING["skills"]["after"]["loss"]
    assert ">best</text>" in draw(chart)
    assert run_charts(steps_of(metrics), timings, LEARNING, EVALUATIONS)[0].mark is None
