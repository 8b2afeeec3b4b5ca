"""Ready-made tokens: what their columns say of each token's weight, and which ids are tokens at all."""

import re

import pytest
from tests.data.test_build import make
from tests.data.test_source import problem_of as problem_in
from tests.data.test_source import read

from frisket.data.chat import encode, load_template
from frisket.errors import DataError
from frisket.supervise.policies import Teaching, problem_of, token_weights
from frisket.supervise.settings import TeachSettings
from frisket.types import OWN_WEIGHT, Conversation, Provenance

_TOKEN_COLUMNS = ("labels", "weights", "loss_mask", "completion_mask", "assistant_masks")


@pytest.mark.parametrize(
    ("columns", "weights"),
    [
        ({"weights": [0.5, -1, 0]}, (0.5, -1.0, 0.0)),
        ({"weights": [0.5, -1, 2], "labels": [-100, 2, 3]}, (0.0, -1.0, 2.0)),
        ({"loss_mask": [0, 1, 1]}, (0.0, 1.0, 1.0)),
        ({"completion_mask": [False, True, 1.0]}, (0.0, 1.0, 1.0)),
        ({"assistant_masks": [0, 1, 0], "labels": [1, 2, -100]}, (0.0, 1.0, 0.0)),
        ({"weights": None, "loss_mask": [1, 0, 0]}, (1.0, 0.0, 0.0)),
        ({"weights": None}, None),
    ],
)
def test_a_column_weighs_ready_made_tokens(columns, weights):
    reading = read([{"input_ids": [1, 2, 3], **columns}])
    assert reading.conversations[0].token_weights == weights
    assert reading.notes == []
    assert reading.format == f"tokens (input_ids, {', '.join(c for c in _TOKEN_COLUMNS if c in columns)})"


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (
            {"input_ids": [1, 2], "weights": [1, 1], "loss_mask": [1, 1]},
            "there are two columns of token weights, 'weights' and 'loss_mask'; keep one of them",
        ),
        (
            {"input_ids": [1, 2], "weights": [1.0]},
            "weights has 1 entries and input_ids 2; they must be of one length",
        ),
        (
            {"input_ids": [1, 2], "weights": 0.5},
            "weights is 0.5; it must be a list of numbers, one for each token of input_ids",
        ),
        ({"input_ids": [1, 2], "weights": [1, float("nan")]}, "weights[1] is nan; it must be a finite number"),
        ({"input_ids": [1, 2], "weights": [float("-inf"), 1]}, "weights[0] is -inf; it must be a finite number"),
        ({"input_ids": [1, 2], "weights": [1, "1"]}, "weights[1] is '1'; it must be a finite number"),
        ({"input_ids": [1, 2], "weights": [None, 1]}, "weights[0] is None; it must be a finite number"),
        ({"input_ids": [1, 2], "weights": [10**400, 1]}, "weights[0] is 1000000000000"),
        (
            {"input_ids": [1, 2], "completion_mask": [1, 0.5]},
            "completion_mask[1] is 0.5; it must be 0 or 1 (other numbers go under 'weights')",
        ),
    ],
)
def test_bad_weights_name_the_column_the_place_and_the_value(record, message):
    assert message in problem_in(record)


def test_weights_of_ready_made_tokens_reach_the_loss_as_they_are(tokenizer):
    record = {"input_ids": [5, 6, 7, 8, 9], "labels": [-100, 6, 7, 8, -100], "weights": [1, 0.5, -1, 0, 3]}
    (sample,) = read([record]).conversations
    template = load_template(None, tokenizer)
    (stored,) = make([record], tokenizer)
    for s in (encode(sample, template, tokenizer).sequence, stored):
        assert s.data_weights.tolist() == [0, 0.5, -1, 0, 0]
        assert (s.marks == OWN_WEIGHT).all()
        assert (s.roles == Provenance.ASSISTANT).tolist() == [False, True, True, False, False]
        for policy in ("assistant", "all", "last-turn"):
            teaching = Teaching(TeachSettings(policy=policy))
            assert token_weights(s, teaching).tolist() == [0, 0.5, -1, 0, 0]
            assert problem_of(s, teaching, "tokens") is None
            assert "a weight is negative" in problem_of(s, teaching, "weights")


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        ([-4, 5, 6], "input_ids[0] = -4"),
        ([5, 999999], "input_ids[1] = 999999"),
        ([5, 6, 2**31], "input_ids[2] = 2147483648"),
        ([5, 2**70], f"input_ids[1] = {2**70}"),
    ],
)
def test_ready_made_tokens_are_the_tokenizers(tokenizer, ids, said):
    conversation = Conversation("0:1", 0, "tokens.jsonl", 1, input_ids=tuple(ids))
    with pytest.raises(DataError) as caught:
        encode(conversation, load_template(None, tokenizer), tokenizer)
    assert str(caught.value) == f"tokens.jsonl:1: {said} is no token of this tokenizer (0 to {len(tokenizer) - 1})"
    with pytest.raises(DataError, match=rf"1 of 2 samples cannot be used:\n.*records:2: {re.escape(said)} is no token"):
        make([{"input_ids": [5, 6]}, {"input_ids": ids}], tokenizer)
    assert len(make([{"input_ids": [0, len(tokenizer) - 1]}] * 2, tokenizer)) == 2
