"""docs/papers.md says what is cited, and nothing that is not there."""

from collections import Counter

import pytest

from tests.docs import papers


def test_the_page_is_up_to_date():
    assert papers.PAGE.read_text(encoding="utf-8") == papers.page(), "python -m tests.docs.papers"


def test_every_citation_is_listed_once():
    listed = Counter(paper.id for paper in papers.papers())
    assert [number for number, count in listed.items() if count > 1] == []
    assert sorted(set(papers.citations()) - set(listed)) == []


@pytest.mark.parametrize("paper", papers.papers(), ids=lambda paper: paper.id)
def test_what_is_said_to_be_here_is_cited_and_tested(paper):
    assert paper.status in papers.STATUS
    assert [path for path in paper.tests if not (papers.ROOT / path).exists()] == []
    if paper.status in ("works", "idea", "advice", "protocol"):
        assert paper.id in papers.citations(), "no docstring cites it"
    if paper.status in ("works", "idea", "PEFT", "library"):
        assert paper.tests
