import re

from frisket.report.bars import before_after_bars, taught_bars
from frisket.report.measures import Figure, Measure
from frisket.types import Ledger


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


def test_bars_of_provenance_are_as_long_as_its_tokens_and_filled_as_far_as_taught():
    html = taught_bars(Ledger(taught={"assistant": 30, "end_of_turn": 4}, untaught={"user": 100, "assistant": 10}))
    names = re.findall(r'class="who">([\w ]+) <', html)
    widths = re.findall(r'class="track" style="width:([\d.]+)%', html)
    fills = re.findall(r'class="fill" style="width:([\d.]+)%', html)
    assert (names, widths, fills) == (
        ["user", "assistant", "end of turn"],
        ["100.00", "40.00", "4.00"],
        ["0.00", "75.00", "100.00"],
    )
    assert re.findall(r"not taught|all taught|75.0 % taught", html) == ["not taught", "75.0 % taught", "all taught"]
