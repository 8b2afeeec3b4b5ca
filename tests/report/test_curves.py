import math
import re
import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frisket.report.curves import (
    HEIGHT,
    MOST_POINTS,
    WIDTH,
    before_after_bars,
    line_chart,
    loss_curve,
    nice_ticks,
    points_of,
    speeds,
)
from frisket.report.measures import Figure, Measure


def paths(chart: str) -> list[list[tuple[float, float]]]:
    drawn = [p.attrib for p in ET.fromstring(chart).iter("path")]
    lines = [p["d"][1:].split("L") for p in drawn if p["class"].startswith("curve")]
    return [[tuple(map(float, point.split())) for point in line] for line in lines]


def test_a_falling_loss_falls_in_the_drawing(metrics):
    curves = paths(loss_curve(metrics))
    assert len(curves) == 2
    single = curves[0]
    assert len(single) == len(metrics)
    assert all(a[1] <= b[1] and a[0] < b[0] for a, b in pairwise(single))
    assert "from 3.06 at step 1 to 0.3202 at step 60" in loss_curve(metrics)


def test_few_steps_have_no_average(metrics):
    assert len(paths(loss_curve(metrics[:10]))) == 1


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=60))
def test_a_curve_stays_inside_its_frame(values):
    for curve in paths(line_chart(list(enumerate(values)), label="x", smooth=True)):
        assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in curve)


def test_long_runs_are_thinned_and_keep_both_ends():
    points = [(float(i), float(i % 7)) for i in range(10_000)]
    (curve,) = paths(line_chart(points, label="x"))
    assert len(curve) == MOST_POINTS
    assert curve[0][0] < 60
    assert curve[-1][0] > 500


@pytest.mark.parametrize(
    "values", [[0.0, 5e-324], [5e-324, 5e-324], [3.0, 3.0], [0.0, 0.0], [1e6, 1e6 + 1e-10], [0, 3e-12]]
)
def test_curves_that_are_flat_or_nearly_so_are_drawn(values):
    (curve,) = paths(line_chart(list(enumerate(values)), label="x"))
    assert all(0 < y < HEIGHT for _, y in curve)


@pytest.mark.parametrize("points", [[], [(1.0, 2.0)], [(1.0, 2.0), (1.0, 3.0)]])
def test_nothing_to_draw_is_said(points):
    assert "fewer than two steps" in line_chart(points, label="loss")


def test_values_that_are_not_finite_are_left_out():
    records = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": math.nan}, {"step": 3}, {"step": 4, "loss": 1.0}]
    assert points_of(records, "loss") == [(1.0, 2.0), (4.0, 1.0)]


def test_speed_joins_tokens_and_seconds_by_step(metrics, timings):
    assert speeds(metrics, timings)[0] == (1.0, pytest.approx(9000.0))
    assert speeds(metrics, [{"event": "evaluation", "seconds": 3.0}]) == []


@settings(max_examples=60, deadline=None)
@given(st.floats(-1e5, 1e5), st.floats(1e-4, 1e5), st.integers(3, 8))
def test_ticks_enclose_the_values(low, width, most):
    high = low + width
    ticks = nice_ticks(low, high, most)
    assert ticks[0] <= low + 1e-6 * width
    assert ticks[-1] >= high - 1e-6 * width
    assert 2 <= len(ticks) <= most + 2


def test_bars_are_as_long_as_their_values():
    measure = Measure("exact_match", Figure(0.05), Figure(0.81, 0.75, 0.9))
    html = before_after_bars([("skills", 100, measure)])
    assert re.findall(r'class="fill" style="width:([\d.]+)%', html) == ["5.00", "81.00"]
    assert 'style="left:75.00%;width:15.00%"' in html
    assert 'title="after 81.0 % (75.0 % to 90.0 %)"' in html


def test_bars_of_a_loss_share_one_scale_that_holds_the_intervals():
    rows = [
        ("a", None, Measure("loss", Figure(2.0), Figure(1.0))),
        ("b", None, Measure("loss", Figure(3.0, 2.5, 4.0), None)),
    ]
    html = before_after_bars(rows)
    assert re.findall(r'class="fill" style="width:([\d.]+)%', html) == ["50.00", "25.00", "75.00"]
    assert "not measured" in html


def test_names_of_groups_are_escaped():
    html = before_after_bars([("<b onclick=x>", None, Measure("loss", Figure(1.0), None))])
    assert "<b onclick" not in html
    assert before_after_bars([]) == ""
