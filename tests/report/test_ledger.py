from dataclasses import replace

import pytest

from frisket.report.ledger import ledger_columns, ledger_html, ledger_identities, ledger_table, read_ledgers
from frisket.types import Ledger, total


def test_rows_hold_each_source_and_their_sum(ledgers):
    assert ledger_columns(ledgers) == ["chats.jsonl", "extra.csv", "all sources"]
    rows = {row[0]: row[1:] for row in ledger_table(ledgers)}
    assert rows["read"] == (1000, 50, 1050)
    assert rows["taught: assistant"] == (300, 10, 310)
    assert rows["taught: end of turn"] == (20, 0, 20)
    assert rows["shared"] == (500, 0, 500)
    assert all(a + b == both for a, b, both in rows.values())


def test_rows_add_up_to_what_was_read(ledgers):
    rows = ledger_table(ledgers)
    parts = [
        r[-1] for r in rows if r[0] in ("dropped", "cut off", "held out", "not this objective") or "taught" in r[0]
    ]
    assert sum(parts) == 1050


def test_rows_of_zeros_are_left_out_but_for_those_of_the_identities(ledgers):
    names = [row[0] for row in ledger_table(ledgers)]
    assert "cut off" not in names
    assert "removed characters" not in names
    assert [row[0] for row in ledger_table({"empty": Ledger()})] == ["read", "flat", "computed", "shared"]


def test_one_source_has_no_column_of_sums(ledgers):
    one = {"chats.jsonl": ledgers["chats.jsonl"]}
    assert ledger_columns(one) == ["chats.jsonl"]
    assert ledger_table(one)[0] == ("read", 1000)


def test_identities_in_words(ledgers):
    (read, read_holds), (flat, flat_holds), *each = ledger_identities(ledgers)
    assert read == "1,050 read = 20 dropped + 80 held out + 330 taught + 620 not taught"
    assert flat == "2,050 flat = 1,550 computed + 500 shared"
    assert read_holds
    assert flat_holds
    assert [text for text, _ in each] == [
        "chats.jsonl: 1,000 read = 20 dropped + 80 held out + 320 taught + 580 not taught",
        "chats.jsonl: 2,000 flat = 1,500 computed + 500 shared",
        "extra.csv: 50 read = 10 taught + 40 not taught",
        "extra.csv: 50 flat = 50 computed + 0 shared",
    ]
    assert all(holds for _, holds in each)
    alone = ledger_identities({"extra.csv": ledgers["extra.csv"]})
    assert [text for text, _ in alone] == ["50 read = 10 taught + 40 not taught", "50 flat = 50 computed + 0 shared"]


def test_two_wrong_sources_that_cancel_out_are_still_told(ledgers):
    names = list(ledgers)
    wrong = {names[0]: replace(ledgers[names[0]], read=1001), names[1]: replace(ledgers[names[1]], read=49)}
    assert [holds for _, holds in ledger_identities(wrong)] == [False, True] * 3
    assert "does not hold" in ledger_html(wrong)
    assert "does not hold" not in ledger_html(ledgers)
    lost = {"a": replace(ledgers[names[0]], shared=0)}
    assert [holds for _, holds in ledger_identities(lost)] == [True, False]


def test_html_holds_the_same_numbers(ledgers, read):
    outline = read(ledger_html(ledgers))
    assert outline.broken == []
    shown = {line[0]: line[1:] for line in outline.cells if line[0] != "read"}
    assert shown["not taught: user"] == ["500", "40", "540"]
    assert shown["flat"] == ["2,000", "50", "2,050"]


def test_names_of_sources_are_escaped(ledgers, read):
    outline = read(ledger_html({"<img src=x>": ledgers["extra.csv"]}))
    assert "img" not in outline.tags()
    assert "<img src=x>" in outline.text


def test_ledgers_come_back_from_the_summary(ledgers, summary):
    assert read_ledgers(summary["tokens"], list(ledgers)) == ledgers


@pytest.mark.parametrize(
    ("names", "called"),
    [(["a.jsonl", "a.jsonl"], ["0: a.jsonl", "1: a.jsonl"]), (["a.jsonl"], ["source 0", "source 1"])],
)
def test_sources_are_told_apart(summary, names, called):
    assert list(read_ledgers(summary["tokens"], names)) == called


def test_a_summary_without_sources_is_one_ledger(ledgers):
    whole = total(list(ledgers.values()))
    assert read_ledgers(whole.as_dict(), ["both"]) == {"both": whole}
