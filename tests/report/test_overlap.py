import pytest

from frisket.evaluate.overlap import SampleText, overlaps
from frisket.report.overlap import overlap_html, overlap_rows

WORDS = " ".join(f"word{i}" for i in range(20))


@pytest.fixture
def overlap() -> dict:
    train = [SampleText("train.jsonl:1", WORDS, "yes"), SampleText("train.jsonl:2", "Hello", "there")]
    sets = {
        "<b>test": [SampleText("test.jsonl:7", WORDS, "no"), SampleText("test.jsonl:8", "Hello", "there")],
        "clean": [SampleText("clean.jsonl:1", "Bye", "now")],
    }
    return {name: each.as_dict() for name, each in overlaps(train, sets).items()}


def test_rows_hold_the_counts_in_order(overlap):
    assert overlap_rows(overlap) == [("<b>test", 2, 1, 2, 2, 2, 2, 2, 1, 1), ("clean", 1, 0, 0, 0, 0, 0, 0, 0, 0)]


def test_sentence_table_and_the_samples_that_share_most(overlap, read):
    outline = read(overlap_html(overlap))
    assert outline.broken == []
    assert "b" not in {tag for tag, attrs in outline.starts if attrs}
    assert overlap["<b>test"]["sentence"] in outline.text
    assert ["<b>test", "2", "1", "2", "2", "2", "2", "2", "1", "1"] in outline.cells
    assert ["test.jsonl:7", "train.jsonl:1", "95 %", "100 %", "0 %"] in outline.cells
    assert ["test.jsonl:8", "train.jsonl:2", "100 %", "100 %", "100 %"] in outline.cells
    assert outline.text.count("the samples that share most") == 1


def test_nothing_compared_is_no_part():
    assert overlap_html({}) == ""
