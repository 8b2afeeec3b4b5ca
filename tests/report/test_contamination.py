import json

import pytest

from frisket.report.contamination import contamination_html
from frisket.report.plots import steps_of

STEPS = steps_of([{"step": s, "flat_tokens": 1000} for s in range(1, 5)])


def record(step: int, **changes) -> dict:
    found = {"foreign_mass": 0.5, "foreign_share": 0.4, "foreign_norm": 1.0, "own_norm": 1.0}
    return {"step": step, "tokens": 512, **found, "attenuation": None, "own_cosine": None, **changes}


MOVED = {"attenuation": -0.3, "own_cosine": 0.1}
RECORDS = [
    record(0),
    record(2, foreign_norm=0.9, own_norm=1.1, **MOVED),
    record(4, foreign_mass=0.25, foreign_norm=0.6, own_norm=1.2, **MOVED),
]
VERDICT = {
    "quality": {"taught exact_match": {"mask_free": 0.1, "isolated": 0.4, "interval": [0.3, 0.5], "told": "worse"}},
    "seconds_per_step": {"mask_free": 0.28, "isolated": 0.15, "ratio": 1.9},
    "recommendation": "use attend.arrangement=isolated: <mask-free> is worse",
}


def test_the_meter_is_told_in_a_sentence_curves_and_a_table(read):
    html = contamination_html(RECORDS, STEPS, None)
    outline = read(html)
    text = " ".join(outline.text.split())
    assert (
        "50.0 % of the attention went to other samples of the row before training, 25.0 % after it. The adapter "
        "weakens what comes from them: 0.60 × the size it has in the frozen model." in text
    )
    assert "At the end other samples 0.60 ×, own sample 1.20 ×." in text
    assert "At the end other samples −0.30, own sample +0.10." in text
    assert html.count("<svg") == 2
    assert ["attention that goes to other samples", "50.0 %", "25.0 %"] in outline.cells
    assert ["cosine of the adapter's part with the frozen one: other samples", "—", "−0.30"] in outline.cells
    assert "at 512 tokens of one row" in text
    assert outline.broken == []


@pytest.mark.parametrize(
    ("last", "told"),
    [
        (record(4, foreign_norm=1.2, **MOVED), "The adapter does not weaken what comes from them: 1.20 ×"),
        (record(4), "The adapter has not moved the attention heads."),
        (record(4, foreign_mass=0.0, foreign_norm=None), "Nothing comes from other samples of a row."),
    ],
)
def test_the_sentence_says_what_the_adapter_does(read, last, told):
    assert told in " ".join(read(contamination_html([record(0), last], STEPS, None)).text.split())


def test_the_verdict_stands_beside_what_it_rests_on(read):
    outline = read(contamination_html([], STEPS, VERDICT))
    assert "Verdict: use attend.arrangement=isolated: <mask-free> is worse." in outline.text
    assert ["taught exact match", "0.1", "0.4", "0.3 to 0.5", "worse"] in outline.cells
    assert ["seconds a step", "0.28", "0.15", "", ""] in outline.cells


def test_a_run_without_either_has_no_such_part():
    assert contamination_html([], STEPS, None) == ""


def test_records_are_read_as_the_meter_writes_them(read):
    written = [json.loads(json.dumps({**each, "layers": ["a"], "by_layer": {}})) for each in RECORDS]
    assert contamination_html(written, STEPS, None) == contamination_html(RECORDS, STEPS, None)
