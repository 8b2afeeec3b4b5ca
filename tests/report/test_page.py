import json

import pytest
from markupsafe import Markup

from frisket.report.page import report_page

RECIPE = "model:\n  path: bundled\n"
ENVIRONMENT = {"python": "3.11.2", "threads": 2, "gpu": None, "packages": {"torch": "2.13.0"}}
PARTS = ["learning", "forgetting", "examples", "curves", "tokens", "rates", "checks", "files", "recipe", "environment"]
FRAGMENT = Markup('<div id="rows">Shown: 2 rows of 90.</div>')
HOSTILE = "</script><img src=x onerror=alert(1)>"


@pytest.fixture
def report(summary, metrics, timings, read):
    def make(evaluations=(), contamination=(), **changes) -> object:
        page = report_page(
            summary | changes,
            metrics,
            timings,
            FRAGMENT,
            RECIPE,
            ENVIRONMENT,
            evaluations=evaluations,
            contamination=contamination,
        )
        return read(page)

    return make


def test_report_has_all_its_parts_and_loads_nothing(report, assert_offline):
    outline = report()
    assert_offline(outline)
    identities = outline.attributes("id")
    assert [i for i in identities if i in [*PARTS, "masks"]] == [*PARTS, "masks"]
    assert len(identities) == len(set(identities))
    assert {target[1:] for target in outline.attributes("href")} == {*PARTS, "masks"}


def test_report_says_the_figures_of_the_summary(report):
    text = " ".join(report().text.split())
    for said in (
        "140,000 of 2,800,000 parameters moved (5 %) in 60 steps",
        "1.0 % → 81.0 %",
        "+80.0 points",
        "76.0 % to 86.0 %",
        "0.043",
        "skills 100 of 500 samples",
        "+80.0 points +70.0 to +90.0 better",
        "+0.05 −0.01 to +0.1 same",
        "KL from the base 32 samples",
        "bits per character 4 samples",
        "KL: exact",
        "1,050 read = 20 dropped + 80 held out + 330 taught + 620 not taught",
        "8,812",
        "2 min 22 s",
        "largest difference 3.1e-06",
        "isolation identical",
        "frisket generate out/demo --chat",
        "packages · torch",
        "path: bundled",
        "Shown: 2 rows of 90.",
    ):
        assert said in text


def test_examples_stand_side_by_side(report):
    text = " ".join(report().text.split())
    assert "copy Copy: ink before the of after ✓ equals the reference ink reference ink" in text
    assert "before (empty) after iink reference iinnkk" in text


def test_the_key_of_bars_stands_where_bars_are(report, summary):
    assert [c for c in report().attributes("class") if c == "key"] == ["key"]
    loss = {"samples": 8, "before": {"loss": 2.0}, "after": {"loss": 1.0}}
    assert [c for c in report(learning={"hold-out": loss}).attributes("class") if c == "key"] == []


def test_each_group_and_the_whole_have_bars(report):
    whole = [c for c in report().attributes("class") if c == "bar before"]
    assert len(whole) == 3


def test_a_run_without_evaluation_says_so(report):
    text = report(learning={}, forgetting={}, examples=[]).text
    assert "evaluation switched off or no held-out samples" in text
    assert "Not measured." in text


def test_curves_run_over_tokens_and_hold_what_was_measured_on_the_way(report):
    evaluations = [{"step": 30, "learning": {"skills": {"loss": 1.25, "exact_match": 0.4}}}]
    text = " ".join(report(evaluations).text.split())
    assert "thousand tokens seen" in text
    assert "over 54,000 tokens (means of the first and last 3 of 60 steps)" in text
    assert "step 30 · 27,000 tokens · " in text
    assert "27,000 tokens · 40.0 %" in text
    assert "27,000 tokens · 40.0 %" not in " ".join(report().text.split())
    assert "900 tokens seen · 9,000 real tokens per second" in text


def test_each_set_says_in_a_sentence_what_happened(report):
    text = " ".join(report().text.split())
    assert (
        "skills 100 of 500 samples Clearly better: exact match 1.0 % before, 81.0 % after; the change is +70.0 to "
        "+90.0 points (95 %)." in text
    )
    assert "default No clear change: bits per character 2.1 before, 2.15 after;" in text


def test_contamination_and_overlap_have_parts_of_their_own(report, assert_offline):
    meter = {"tokens": 512, "foreign_mass": 0.5, "foreign_norm": 0.8, "attenuation": -0.1}
    share = {"most": 0, "some": 1}
    overlap = dict.fromkeys(("whole", "prompt", "answer"), share) | {"worst": [], "boilerplate": 0}
    overlap |= {"samples": 9, "duplicates": 0, "same_prompt": 0, "sentence": "Nothing to fear."}
    verdict = {"quality": {}, "seconds_per_step": {"mask_free": 1, "isolated": 2}, "recommendation": "use it"}
    outline = report(
        contamination=[meter | {"step": 0}, meter | {"step": 60}], overlap={"skills": overlap}, verdict=verdict
    )
    assert_offline(outline)
    found = [i for i in outline.attributes("id") if i in ("overlap", "contamination")]
    assert found == ["overlap", "contamination"]
    assert {"#overlap", "#contamination"} <= set(outline.attributes("href"))
    text = " ".join(outline.text.split())
    assert "skills: Nothing to fear." in text
    assert "Verdict: use it." in text


def test_report_without_rows_has_no_script(summary, read, assert_offline):
    outline = read(report_page(summary, [], [], None, RECIPE, {}))
    assert_offline(outline)
    assert outline.scripts == []
    assert "masks" not in outline.attributes("id")
    assert "fewer than two steps were recorded" in outline.text


def test_nothing_that_a_run_writes_is_markup(summary, metrics, timings, read, assert_offline):
    poisoned = json.loads(
        json.dumps(summary), object_hook=lambda d: {k: HOSTILE if isinstance(v, str) else v for k, v in d.items()}
    )
    poisoned["learning"] = {HOSTILE: summary["learning"]["skills"] | {"groups": {HOSTILE: {"after": {"loss": 1.0}}}}}
    poisoned["checks"] = {HOSTILE: {HOSTILE: HOSTILE}}
    outline = read(report_page(poisoned, metrics, timings, None, HOSTILE, {HOSTILE: HOSTILE}))
    assert_offline(outline)
    assert outline.scripts == []
    assert outline.text.count(HOSTILE) >= 20
