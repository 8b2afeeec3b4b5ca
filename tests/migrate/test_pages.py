"""The pages for users of other tools say what the tables say now."""

import pytest
from tests.migrate.page import filled, page_of

from frisket.migrate.tables import TOOLS


@pytest.mark.parametrize("name", TOOLS)
def test_the_generated_parts_are_up_to_date(name: str) -> None:
    page = page_of(TOOLS[name]).read_text(encoding="utf-8")
    assert page == filled(page, TOOLS[name]), "run: python -m tests.migrate.page"


@pytest.mark.parametrize("name", TOOLS)
def test_every_key_stands_on_the_page(name: str) -> None:
    page = page_of(TOOLS[name]).read_text(encoding="utf-8")
    assert [key for key in TOOLS[name].rows if f"`{key}`" not in page] == []
