"""Lines over a plane of two measures."""

import re
from xml.etree import ElementTree

import pytest
from lab.figure import draw

from frisket.errors import DataError
from frisket.report.plane import LEFT, RIGHT, TONES, WIDTH, Line, Plane, Spot, drawn


def plane(*points: tuple[float, float], log_x: bool = False) -> Plane:
    return Plane("t", "x", "y", [Line("a", [Spot(x, y, (x, x), (y, y)) for x, y in points])], log_x)


def dots(markup: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r'cx="([\d.]+)" cy="([\d.]+)" r="3.6"><title>', markup)]


def test_a_point_is_where_its_values_are():
    low, middle, high = dots(drawn(plane((0.0, 1.0), (1.0, 2.0), (2.0, 3.0))))
    assert low[0] == LEFT
    assert high[0] == WIDTH - RIGHT
    assert middle == pytest.approx(((low[0] + high[0]) / 2, (low[1] + high[1]) / 2), abs=0.1)
    assert low[1] > high[1], "upwards is more"


def test_powers_of_ten_are_equally_far_apart():
    one, ten, hundred = (x for x, _ in dots(drawn(plane((1, 1), (10, 1), (100, 1), log_x=True))))
    assert ten - one == pytest.approx(hundred - ten, abs=0.2)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (Plane("t", "x", "y", []), "has no points to draw"),
        (plane((1.0, float("nan"))), "nan cannot be drawn"),
        (plane((0.0, 1.0), log_x=True), "0.0 cannot be drawn on an axis of powers of ten"),
    ],
)
def test_what_cannot_be_drawn_is_refused(given, message):
    with pytest.raises(DataError, match=message):
        drawn(given)


def test_the_drawing_of_an_experiment_is_one_document_with_its_own_colours(tmp_path):
    file = tmp_path / "a.svg"
    lines = {f"arm <{i}>": [(1.0, i, i - 0.5, i + 0.5)] for i in range(TONES + 1)}
    draw(file, "A & B", "steps", "loss", lines)
    text = file.read_text(encoding="utf-8")
    root = ElementTree.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "prefers-color-scheme:dark" in text
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")
    assert text.count("hollow") > text.count(".hollow"), "the ninth line is told from the first"
    draw(tmp_path / "b.svg", "A & B", "steps", "loss", lines)
    assert (tmp_path / "b.svg").read_text(encoding="utf-8") == text


def test_names_are_escaped_and_long_ones_cut():
    text = drawn(Plane("t", "x", "y", [Line("<b>" + "n" * 40, [Spot(1, 1, (1, 1), (1, 1))])]))
    assert "<b>" not in text
    assert "…nnn" in text
