"""What ships with frisket: a small base model, its instructions, and no leak between them."""

import hashlib
import json
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from frisket import bundled


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def hashes(samples, *parts):
    texts = ["\0".join(sample["messages"][part]["content"].strip().lower() for part in parts) for sample in samples]
    return [hashlib.sha256(text.encode()).hexdigest() for text in texts]


def test_no_held_out_prompt_or_pair_is_in_the_training_file():
    train = read(bundled.train_path())
    for path in (bundled.eval_path(), bundled.unseen_path()):
        held_out = read(path)
        assert not set(hashes(train, 0)) & set(hashes(held_out, 0))
        assert not set(hashes(train, 0, 1)) & set(hashes(held_out, 0, 1))
        assert len(set(hashes(held_out, 0))) == len(held_out)


def test_every_skill_has_enough_held_out_prompts():
    counts = Counter(sample["skill"] for sample in read(bundled.eval_path()))
    assert set(counts) == set(bundled.SKILLS)
    assert min(counts.values()) >= 50
    assert sum(counts.values()) >= 500
    assert {sample["skill"] for sample in read(bundled.unseen_path())} == {bundled.UNSEEN_SKILL}


def test_the_base_is_small_and_loads():
    assert (bundled.base_path() / "model.safetensors").stat().st_size <= 8_000_000
    model = AutoModelForCausalLM.from_pretrained(bundled.base_path())
    assert model.config.model_type == "llama"
    assert model.config.max_position_embeddings == 32768
    assert sum(p.numel() for p in model.parameters()) < 4_000_000


def test_the_card_says_what_was_measured():
    card = (bundled.base_path() / "README.md").read_text(encoding="utf-8")
    for skill in bundled.SKILLS:
        assert f"| {skill} |" in card


TOKENIZER = AutoTokenizer.from_pretrained(bundled.base_path())


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=60))
def test_any_text_survives_the_tokenizer(text):
    ids = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    assert TOKENIZER.decode(ids, clean_up_tokenization_spaces=False) == text or any(
        token in text for token in TOKENIZER.all_special_tokens
    )


def test_the_chat_template_speaks_of_tools_and_reasoning():
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "rain?"},
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "ask",
            "tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": {"town": "Ossel"}}}],
        },
        {"role": "tool", "content": "dry"},
        {"role": "assistant", "content": "No."},
    ]
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
    text = TOKENIZER.apply_chat_template(messages, tools=tools, tokenize=False)
    for part in ("be brief", "rain?", "ask", "weather", "Ossel", "dry", "No.", "<|end|>"):
        assert part in text
    assert TOKENIZER.pad_token != TOKENIZER.eos_token
