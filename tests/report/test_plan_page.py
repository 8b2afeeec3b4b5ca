from markupsafe import Markup

from frisket.report.plan_page import ConstantText, plan_page

FACTS = [("samples", "40 train, 2 held out"), ("rate", "0.004 (as the recipe says)")]
HOSTILE = "</script><img src=x onerror=alert(1)>"
HEADER = ConstantText("chats.jsonl", "user", "start", "Below is an instruction.\n", 0.61)
END = ConstantText("chats.jsonl", "user", "end", "### Response:", 1.0)
SET = {
    **dict.fromkeys(("samples", "duplicates", "same_prompt", "boilerplate"), 3),
    **{name: {"most": 1, "some": 2} for name in ("whole", "prompt", "answer")},
    "worst": [{"name": "a:1", "train": "b:2", "whole": 1.0, "prompt": 1.0, "answer": 0.5}],
    "sentence": "3 of 3 evaluation samples are in the training data word for word.",
}


def test_the_plan_says_everything_before_it_is_paid_for(ledgers, read, assert_offline):
    page = plan_page(
        "demo",
        FACTS,
        ledgers,
        version="0.1.0",
        advice=[("Teach the instructions too.", "arXiv 2405.14394")],
        overlap={"hold-out": SET},
        boilerplate=[HEADER, END],
        fragment=Markup('<div id="mask-data">rows</div>'),
    )
    outline = read(page)
    assert_offline(outline)
    text = " ".join(outline.text.split())
    for said in (
        "frisket 0.1.0 · plan of a run demo What training would do. Nothing has been trained.",
        "samples 40 train, 2 held out",
        "Teach the instructions too. arXiv 2405.14394",
        "1,050 read = 20 dropped + 80 held out + 330 taught + 620 not taught",
        "chats.jsonl: 2,000 flat = 1,500 computed + 500 shared",
        "assistant 310 tokens all taught",
        "chats.jsonl · 100.0 % of the user messages end with ### Response: chats.jsonl · 61.0 % of the user messages "
        "begin with Below is an instruction.↵",
        "hold-out: 3 of 3 evaluation samples are in the training data word for word.",
        "rows",
    ):
        assert said in text
    parts = ["facts", "advice", "tokens", "boilerplate", "overlap", "masks"]
    assert [target[1:] for target in outline.attributes("href")] == parts
    assert [i for i in outline.attributes("id") if i in parts] == parts
    assert len(outline.scripts) == 1


def test_what_was_not_found_has_no_part_and_what_was_not_compared_is_said(ledgers, read, assert_offline):
    outline = read(plan_page("demo", FACTS, ledgers, version="0.1.0"))
    assert_offline(outline)
    assert [target[1:] for target in outline.attributes("href")] == ["facts", "tokens", "overlap"]
    assert "Nothing was compared: the run has no evaluation samples." in outline.text
    assert outline.scripts == []


def test_nothing_in_it_is_markup(ledgers, read, assert_offline):
    page = plan_page(
        HOSTILE,
        [(HOSTILE, HOSTILE)],
        {HOSTILE: ledgers["chats.jsonl"]},
        version=HOSTILE,
        advice=[(HOSTILE, HOSTILE)],
        overlap={
            HOSTILE: SET | {"sentence": HOSTILE, "worst": [SET["worst"][0] | {"name": HOSTILE, "train": HOSTILE}]}
        },
        boilerplate=[ConstantText(HOSTILE, HOSTILE, "start", HOSTILE, 1.0)],
    )
    outline = read(page)
    assert_offline(outline)
    assert outline.scripts == []
    assert outline.text.count(HOSTILE) >= 15
