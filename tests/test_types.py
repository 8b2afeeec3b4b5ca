"""The values check their shapes where they are made; ledgers add; hints name what is near."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frisket.errors import gather, nearest
from frisket.types import Conversation, Leaf, Ledger, Message, Predictions, Provenance, Rows, Sequence, total
from frisket.watch import Silent, StepRecord
from tests.models import samples


def test_a_sequence_has_arrays_of_one_length():
    good = samples(0, [4])[0]
    assert len(good) == 4
    with pytest.raises(ValueError, match=r"the arrays of sequence s0 differ in length: .*'turns': 3"):
        dataclasses.replace(good, turns=np.zeros(3, np.int32))


def rows(**changes):
    made = {
        "input_ids": np.zeros((2, 3), np.int64),
        "position_ids": np.zeros((2, 3), np.int64),
        "segment_ids": np.array([[0, 0, -1], [1, 1, 1]]),
        "parent_segment": np.array([-1, -1]),
        "leaves": (Leaf("a", 0, 0), Leaf("b", 1, 1)),
    }
    return Rows(**(made | changes))


def test_rows_know_what_is_padding():
    assert rows().is_real.tolist() == [[True, True, False], [True, True, True]]
    assert (rows().real_tokens, rows().computed_tokens) == (5, 6)


@pytest.mark.parametrize("field", ["input_ids", "position_ids", "segment_ids"])
def test_rows_of_different_shapes_are_refused(field):
    with pytest.raises(ValueError, match="input_ids, position_ids and segment_ids of Rows differ in shape"):
        rows(**{field: np.zeros((2, 4), np.int64)})


@pytest.mark.parametrize("parents", [[0, -1], [1, -1], [-1, 1]])
def test_a_parent_comes_before_its_child(parents):
    with pytest.raises(ValueError, match="a parent segment must come before its child"):
        rows(parent_segment=np.array(parents))


def test_predictions_have_arrays_of_one_length():
    assert len(Predictions(np.zeros(2, np.int64), np.zeros(2, np.int64), np.ones(2))) == 2
    with pytest.raises(ValueError, match=r"of Predictions differ in length: \(2, 3, 2\)"):
        Predictions(np.zeros(2, np.int64), np.zeros(3, np.int64), np.ones(2))


@pytest.mark.parametrize("value", [rows(), samples(0, [2])[0], Ledger(), Conversation("a", 0, "f", 1), Message("user")])
def test_values_are_frozen(value):
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(value, dataclasses.fields(value)[0].name, None)


def test_a_conversation_says_where_it_stands():
    assert Conversation("s", 0, "chats.jsonl", 417).place == "chats.jsonl:417"


counts = st.dictionaries(st.sampled_from(["user", "assistant", "bos"]), st.integers(0, 50), max_size=3)
ledgers = st.builds(
    Ledger,
    read=st.integers(0, 99),
    dropped=st.integers(0, 99),
    taught=counts,
    untaught=counts,
    samples=counts,
    flat=st.integers(0, 99),
    computed=st.integers(0, 99),
    shared=st.integers(0, 9),
)


@given(a=ledgers, b=ledgers, c=ledgers)
def test_ledgers_add_term_by_term(a, b, c):
    assert ((a + b) + c).as_dict() == (a + (b + c)).as_dict() == total([a, b, c]).as_dict()
    both = a + b
    assert both.read == a.read + b.read
    assert sum(both.taught.values()) == sum(a.taught.values()) + sum(b.taught.values())
    assert (a + Ledger()).as_dict() == a.as_dict()


def test_a_ledger_names_the_identity_that_does_not_hold():
    told = {"dropped": 1, "truncated": 2, "held_out": 3, "other_objective": 4}
    fine = Ledger(
        read=20, **told, taught={"assistant": 4, "end_of_turn": 1}, untaught={"user": 5}, flat=7, computed=5, shared=2
    )
    assert fine.imbalances() == []
    for name in told:
        wrong = dataclasses.replace(fine, **{name: told[name] + 1})
        assert wrong.imbalances() == ["20 tokens were read but 21 are accounted for"]
    assert dataclasses.replace(fine, shared=1).imbalances() == ["7 flat tokens are not 5 computed + 1 shared"]
    assert fine.as_dict()["taught"] == {"assistant": 4, "end_of_turn": 1}


def test_provenance_fits_a_byte_and_keeps_its_numbers():
    """The token store keeps these numbers: they must not change."""
    names = ["BOS", "TEMPLATE", "SYSTEM", "USER", "ASSISTANT"]
    names += ["REASONING", "TOOL_CALL", "TOOL_RESULT", "END_OF_TURN", "TEXT"]
    assert [Provenance[name].value for name in names] == list(range(10))
    assert Sequence.__dataclass_fields__.keys() >= {"roles", "turns", "marks", "data_weights"}


def test_nearest_says_nothing_where_nothing_is_near():
    assert nearest("lora_rnk", ["lora_rank", "alpha"]) == "lora_rank"
    assert nearest("zzz", ["lora_rank"]) is None


def test_many_problems_are_one_message():
    text = gather([f"line {n}" for n in range(1200)], "two things:", fix="data.0.bad=drop", shown=2)
    assert text.split("\n") == ["two things:", "  - line 0", "  - line 1", "  … and 1,198 more", "data.0.bad=drop"]
    assert gather(["one"], "a thing:") == "a thing:\n  - one"


def test_a_record_keeps_the_clock_out_of_the_mathematics():
    record = StepRecord(3, 10, 0.5, 1.5, 64.0, 1e-3, 0.9, 100, 120, 64, 2.5)
    mathematics = record.mathematics()
    assert mathematics == dataclasses.replace(record, seconds=9.0, total_steps=99).mathematics()
    assert mathematics["step"] == 3
    assert "seconds" not in mathematics


def test_the_silent_watcher_says_nothing(capsys):
    watcher = Silent()
    watcher.say("a")
    watcher.warn("b")
    watcher.step(StepRecord(1, 1, 1.0, 0.0, 1.0, 0.0, 0.0, 1, 1, 1, 0.0))
    with watcher.progress("long work", 3, "samples") as advance:
        advance(3)
    assert capsys.readouterr() == ("", "")
