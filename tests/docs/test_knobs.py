"""docs/recipe.md lists the knobs that there are."""

from tests.docs import knobs


def test_the_page_is_up_to_date():
    assert knobs.PAGE.read_text(encoding="utf-8") == knobs.page(), "python -m tests.docs.knobs"


def test_every_knob_is_listed():
    text = knobs.page()
    assert [knob.name for knob in knobs.knobs() if f"| `{knob.name}` |" not in text] == []
