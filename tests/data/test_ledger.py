"""Every token of a source is counted where it goes, and a token that is lost is seen."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from tests.data.conftest import make_tokenizer
from tests.data.test_build import LONG, make, nothing_taught, pairs

from frisket.data.account import Account
from frisket.types import Ledger, Provenance, total

PREFERENCE = {"prompt": "Q", "chosen": "A", "rejected": "B and more"}


def completed(dataset) -> list[Ledger]:
    """The ledgers with what the training samples teach, counted token by token."""
    taught, untaught = ([Counter() for _ in dataset.ledgers] for _ in range(2))
    for index in dataset.train:
        sequence = dataset[int(index)]
        for place, role in enumerate(sequence.roles):
            is_taught = place > 0 and role in (Provenance.ASSISTANT, Provenance.END_OF_TURN)
            (taught if is_taught else untaught)[sequence.source][Provenance(role).name.lower()] += 1
    return [
        replace(ledger, taught=dict(a), untaught=dict(b))
        for ledger, a, b in zip(dataset.ledgers, taught, untaught, strict=True)
    ]


def messages(answer, weight=None):
    given = {} if weight is None else {"weight": weight}
    return {"role": "assistant", "content": answer, **given}


def everything(tokenizer):
    """Four sources that together have something under each term of the ledger."""
    bad = {"prompt": [{"role": "user", "content": "Q"}], "chosen": messages("A", 0), "rejected": messages("B")}
    sources = [
        ([*pairs(30), LONG], {"max_tokens": 50, "too_long": "truncate", "hold_out": 3}),
        ([*pairs(3), LONG], {"max_tokens": 50, "too_long": "split"}),
        ([*pairs(3), LONG], {"max_tokens": 50, "too_long": "drop"}),
        ([PREFERENCE, bad], {"bad": "drop"}),
    ]
    return [make(records, tokenizer, **knobs) for records, knobs in sources]


TERMS = {
    "read": 4,
    "read_rejected": 1,
    "read_again": 1,
    "drop": 2,
    "drop_rejected": 1,
    "truncate": 1,
    "hold_out": 1,
    "set_aside": 1,
}


def imbalances(datasets) -> list[int]:
    return [len(total(completed(dataset)).imbalances()) for dataset in datasets]


def test_all_terms_balance(tokenizer):
    datasets = everything(tokenizer)
    assert imbalances(datasets) == [0, 0, 0, 0]
    whole = total([ledger for dataset in datasets for ledger in dataset.ledgers])
    assert min(whole.read, whole.dropped, whole.truncated, whole.held_out, whole.other_objective) > 0


@pytest.mark.parametrize(("counter", "sources"), TERMS.items())
def test_a_counter_that_is_broken_is_seen(tokenizer, monkeypatch, counter, sources):
    monkeypatch.setattr(Account, counter, lambda self, tokens: None)
    assert sum(imbalances(everything(tokenizer))) == sources


def test_every_counter_is_broken_once():
    own = {name for name, value in vars(Account).items() if callable(value) and not name.startswith("_")}
    assert own - {"ledger"} == set(TERMS)


@pytest.mark.parametrize("adds_bos", [False, True])
@pytest.mark.parametrize("limit", [5, 16, 17])
def test_split_text_counts_the_tokens_that_pieces_repeat(adds_bos, limit):
    tokenizer = make_tokenizer(adds_bos=adds_bos)
    dataset = make([{"text": "The quick brown fox. " * 9}], tokenizer, max_tokens=limit)
    (ledger,) = dataset.ledgers
    whole = int(dataset.stores[0].lengths[0])
    assert ledger.read == whole + len(dataset) - 1
    assert total(completed(dataset)).imbalances() == []


def test_a_truncated_sample_that_is_dropped_is_counted_once(tokenizer):
    rows = [{"prompt": "long " * 60, "completion": "A"}, *pairs(2)]
    dataset = make(rows, tokenizer, max_tokens=50, too_long="truncate", bad="drop")
    (ledger,) = dataset.ledgers
    whole = int(dataset.stores[0].lengths[0])
    assert (ledger.dropped, ledger.truncated) == (50, whole - 50)
    assert dataset.dropped[0]["reason"].startswith("after truncation nothing in it is supervised")
    assert total(completed(dataset)).imbalances() == []


def test_a_rejected_answer_goes_with_its_sample(tokenizer):
    kept = make([PREFERENCE], tokenizer).ledgers[0]
    worse = {"prompt": "Q", "chosen": [messages("A", 0)], "rejected": "B and more"}
    dataset = make([PREFERENCE, worse], tokenizer, bad="drop")
    (ledger,) = dataset.ledgers
    assert ledger.other_objective == kept.other_objective > 0
    assert ledger.dropped == int(dataset.stores[0].lengths[1]) + kept.other_objective
    assert total(completed(dataset)).imbalances() == []


def test_a_rejected_answer_of_a_split_sample_is_counted_once(tokenizer):
    row = {"prompt": "Q", "chosen": "long " * 60, "rejected": "B and more"}
    dataset = make([row], tokenizer, max_tokens=50, too_long="split")
    assert len(dataset) > 2
    assert dataset.ledgers[0].other_objective == int(dataset.stores[0].rejected[0])
    assert total(completed(dataset)).imbalances() == []


def test_both_answers_are_samples(tokenizer):
    dataset = make([PREFERENCE], tokenizer, answers="both")
    assert dataset.ledgers[0].read == int(dataset.lengths.sum())
    assert list(dataset.sample_ids) == ["0:1/chosen", "0:1/rejected"]
    assert total(completed(dataset)).imbalances() == []


def test_a_sample_that_is_found_bad_with_its_tokens_was_read(tokenizer):
    begin = tokenizer.bos_token_id
    dataset = make([{"input_ids": [begin, begin, 5]}, {"input_ids": [begin, 5]}], tokenizer, bad="drop")
    assert (dataset.ledgers[0].read, dataset.ledgers[0].dropped) == (5, 3)
    assert dataset.dropped[0]["sample"] == "0:1"


def test_nothing_taught_is_what_the_tests_say_it_is(tokenizer):
    dataset = make(pairs(1), tokenizer)
    assert nothing_taught(dataset[0]) is None
    assert np.isnan(dataset[0].data_weights).all()
