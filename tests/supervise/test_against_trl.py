"""Policy `completion` beside TRL's own completion mask, made by TRL's own trainer; every difference is explained.

The differences, all of them: TRL counts everything after the prompt as completion, so it also teaches what the template
writes behind an end-of-turn token or before a later message, and what a tool answers between two
messages of the assistant. Those tokens are never the model's to write.
"""

import copy
from importlib.util import find_spec

import numpy as np
import pytest
from tests.models import tiny
from transformers import AutoTokenizer

from frisket.bundled import base_path
from frisket.data.chat import encode, load_template
from frisket.data.messages import read_messages
from frisket.supervise.policies import Teaching, token_weights
from frisket.supervise.settings import TeachSettings
from frisket.types import Conversation, Provenance

pytestmark = [
    pytest.mark.skipif(find_spec("trl") is None, reason="TRL is not installed (pip install trl)"),
    pytest.mark.filterwarnings("ignore"),  # those of TRL and datasets
]

CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": 2}}}
CASES = {
    "one turn": ([{"role": "user", "content": "Hi there"}], [{"role": "assistant", "content": "Yes, hello."}]),
    "a history and a system prompt": (
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "1 + 1?"},
            {"role": "assistant", "content": "2"},
            {"role": "user", "content": "And 2 + 2?"},
        ],
        [{"role": "assistant", "content": "4, I think 😀"}],
    ),
    "a tool in between": (
        [{"role": "user", "content": "1 + 2?"}],
        [
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
            {"role": "tool", "content": "3"},
            {"role": "assistant", "content": "It is 3."},
        ],
    ),
}
MORE = {
    "one turn": "\n",
    "a history and a system prompt": "\n",
    "a tool in between": "\n<|im_start|>tool\n3<|im_end|>\n<|im_start|>assistant\n\n",
}
"""Text that TRL teaches and frisket does not: newlines behind end tokens, a tool's answer, headers between messages."""


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = AutoTokenizer.from_pretrained(base_path())
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.eos_token = "<|im_end|>"
    tokenizer.chat_template = load_template("chatml", tokenizer).text
    return tokenizer


@pytest.fixture(scope="module")
def trl_rows(tokenizer, tmp_path_factory):
    """``input_ids`` and labels of each case, as TRL's trainer prepares them."""
    from datasets import Dataset, disable_progress_bars
    from trl import SFTConfig, SFTTrainer

    disable_progress_bars()
    trainer = SFTTrainer(
        tiny("llama", vocab_size=len(tokenizer)),
        args=SFTConfig(
            output_dir=str(tmp_path_factory.mktemp("trl")), use_cpu=True, bf16=False, report_to="none", max_length=None
        ),
        train_dataset=Dataset.from_list([{"prompt": p, "completion": c} for p, c in copy.deepcopy(CASES).values()]),
        processing_class=copy.deepcopy(tokenizer),
    )
    batches = trainer.data_collator([trainer.train_dataset[i] for i in range(len(CASES))])
    return dict(zip(CASES, zip(batches["input_ids"].tolist(), batches["labels"].tolist(), strict=True), strict=True))


@pytest.mark.parametrize("name", CASES)
def test_trl_teaches_what_we_teach_and_template_tokens_and_tool_results(name, tokenizer, trl_rows):
    prompt, completion = CASES[name]
    conversation = Conversation("s", 0, "f", 1, read_messages([*prompt, *completion]))
    sequence = encode(conversation, load_template("chatml", tokenizer), tokenizer).sequence
    ours = token_weights(sequence, Teaching(TeachSettings(policy="completion"))) != 0
    ids, labels = trl_rows[name]
    assert ids[: len(sequence)] == sequence.input_ids.tolist()
    theirs = np.array(labels[: len(sequence)]) != -100
    assert ours.any()
    assert not (ours & ~theirs).any()
    more = theirs & ~ours
    allowed = [Provenance.TEMPLATE, Provenance.TOOL_RESULT]
    assert np.isin(sequence.roles[more], allowed).all()
    assert tokenizer.decode(sequence.input_ids[more]) == MORE[name]
