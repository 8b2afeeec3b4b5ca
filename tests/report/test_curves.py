import math
import re
import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frisket.report.curves import (
    DENSE,
    HEIGHT,
    MOST_POINTS,
    MOST_READINGS,
    WIDTH,
    Chart,
    Curve,
    averaged,
    draw,
    nice_ticks,
)


def figure_of(*curves: Curve, **changes) -> ET.Element:
    return ET.fromstring(draw(Chart("Loss", "nats", curves, **changes)))


def paths(figure: ET.Element, style: str = "curve") -> list[list[tuple[float, float]]]:
    drawn = [p.attrib for p in figure.iter("path")]
    lines = [p["d"][1:].split("L") for p in drawn if style in p["class"].split()]
    return [[tuple(map(float, point.split())) for point in line] for line in lines]


def texts(figure: ET.Element) -> list[str]:
    return [text.text or "" for text in figure.iter("text")]


def test_a_falling_loss_falls_in_the_drawing():
    values = [(1000.0 * s, 3 * math.exp(-s / 12)) for s in range(1, 61)]
    figure = figure_of(Curve("training", values, is_noisy=True))
    single, mean = paths(figure)
    assert paths(figure, "faint") == [single]
    assert len(single) == len(mean) == 60
    assert all(a[1] <= b[1] and a[0] < b[0] for a, b in pairwise(single))


@pytest.mark.parametrize(("steps", "lines"), [(DENSE - 1, 1), (DENSE, 2)])
def test_few_steps_have_no_average(steps, lines):
    points = [(float(i), 1.0 + i) for i in range(steps)]
    assert len(paths(figure_of(Curve("", points, is_noisy=True)))) == lines
    assert len(paths(figure_of(Curve("", points)))) == 1


def test_the_average_does_not_lag_behind_and_smooths():
    line = [(float(i), 2.0 * i) for i in range(400)]
    assert [x for x, _ in averaged(line)] == [x for x, _ in line]
    assert [y for _, y in averaged(line)][10:-10] == pytest.approx([y for _, y in line][10:-10])
    steps = [(float(i), float(i >= 200)) for i in range(400)]
    assert [y for _, y in averaged(steps)][199:201] == [pytest.approx(10 / 21), pytest.approx(11 / 21)]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=60))
def test_a_curve_stays_inside_its_frame(values):
    points = [(float(i), v) for i, v in enumerate(values)]
    reach = [(v - 1, v + 2) for v in values]
    figure = figure_of(Curve("x", points, is_noisy=True), Curve("y", points, reach))
    for curve in paths(figure):
        assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in curve)
    for whisker in (p.attrib["d"] for p in figure.iter("path") if "reach" in p.attrib["class"]):
        assert all(0 <= float(y) <= HEIGHT for y in re.findall(r"[\d.]+", whisker)[1:])


def test_all_curves_begin_at_zero_tokens_and_share_one_scale():
    figure = figure_of(Curve("a", [(500.0, 1.0), (1000.0, 3.0)]), Curve("b", [(0.0, 0.0), (1000.0, 3.0)]))
    a, b = paths(figure)
    assert a[1] == b[1]
    assert a[0][0] == pytest.approx((b[0][0] + b[1][0]) / 2, abs=0.1)


@pytest.mark.parametrize(
    ("last", "title", "tick"),
    [(8000.0, "tokens seen", "4,000"), (90_000.0, "thousand tokens seen", "50"), (3e6, "million tokens seen", "2")],
)
def test_the_axis_of_tokens_is_written_in_plain_units(last, title, tick):
    told = texts(figure_of(Curve("", [(last / 2, 1.0), (last, 2.0)])))
    assert title in told
    assert tick in told
    assert "0" in told


def test_values_are_written_as_the_chart_says_and_the_floor_is_shown():
    told = texts(figure_of(Curve("", [(0.0, 0.9), (9.0, 1.0)]), tick=lambda v: f"{100 * v:.0f} %", floor=0.0))
    assert {"0 %", "100 %"} <= set(told)


def test_measured_points_are_dots_with_whiskers_and_unknown_intervals_have_none():
    curve = Curve("taught", [(0.0, 3.0), (5.0, 2.0)], [(2.5, 3.5), (math.nan, math.nan)])
    figure = figure_of(curve)
    assert len(list(figure.iter("circle"))) == 2
    assert len([p for p in figure.iter("path") if "reach" in p.attrib["class"]]) == 1
    assert len(paths(figure, "measured")) == 1


def test_readings_cover_the_chart_and_are_few():
    readings = [(10.0 * i, f"step {i}") for i in range(1000)]
    figure = figure_of(Curve("", [(0.0, 1.0), (9990.0, 2.0)]), readings=readings)
    strips = list(figure.iter("rect"))
    assert len(strips) == MOST_READINGS
    assert strips[0].find("title").text == "step 0"
    edges = [(float(r.attrib["x"]), float(r.attrib["width"])) for r in strips]
    assert all(a + width == pytest.approx(b, abs=0.11) for (a, width), (b, _) in pairwise(edges))


def test_names_and_sentences_are_escaped_and_read_aloud():
    hostile = "<b onclick=x>"
    html = draw(Chart(hostile, hostile, [Curve(hostile, [(0.0, 1.0), (1.0, 2.0)])], hostile, [(0.0, hostile)]))
    assert "<b onclick" not in html
    figure = ET.fromstring(html)
    assert next(figure.iter("svg")).attrib["aria-label"] == f"{hostile}. {hostile}"
    assert hostile in "".join(figure.itertext())


def test_the_key_follows_the_colours():
    points = [(0.0, 1.0), (1.0, 2.0)]
    html = draw(Chart("x", "", [Curve("one", points), Curve("", points), Curve("three", points)], first_tone=1))
    assert re.findall(r'class="in-key (s\d)">(\w+)', html) == [("s1", "one"), ("s3", "three")]
    assert 'class="curve s1"' in html
    assert 'class="curve s0"' not in html


def test_long_runs_are_thinned_and_keep_both_ends():
    points = [(float(i), float(i % 7)) for i in range(10_000)]
    (curve,) = paths(figure_of(Curve("", points)))
    assert len(curve) == MOST_POINTS
    assert curve[0][0] < 60
    assert curve[-1][0] > WIDTH - 20


@pytest.mark.parametrize(
    "values", [[0.0, 5e-324], [5e-324, 5e-324], [3.0, 3.0], [0.0, 0.0], [1e6, 1e6 + 1e-10], [0, 3e-12]]
)
def test_curves_that_are_flat_or_nearly_so_are_drawn(values):
    (curve,) = paths(figure_of(Curve("", [(float(i), v) for i, v in enumerate(values)])))
    assert all(0 < y < HEIGHT for _, y in curve)


@pytest.mark.parametrize("points", [[], [(1.0, 2.0)], [(1.0, 2.0), (1.0, 3.0)]])
def test_nothing_to_draw_is_said(points):
    assert "fewer than two steps" in draw(Chart("Loss", "", [Curve("", points)]))


@settings(max_examples=60, deadline=None)
@given(st.floats(-1e5, 1e5), st.floats(1e-4, 1e5), st.integers(3, 8))
def test_ticks_enclose_the_values(low, width, most):
    high = low + width
    ticks = nice_ticks(low, high, most)
    assert ticks[0] <= low + 1e-6 * width
    assert ticks[-1] >= high - 1e-6 * width
    assert 2 <= len(ticks) <= most + 2
