"""Provenance against the generation markers of published chat templates, and what no template may do unseen."""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tests.templates import oracle, page
from tests.templates.compare import (
    REASONS,
    differences,
    examine,
    outcome,
    record_of,
    recorded,
    talks,
    taught,
    template_of,
)
from tests.templates.families import BUILT_IN, installed, marked, published, tokenizer_of, trl_version, unmarked

from frisket.data.chat import Encoded, encode
from frisket.data.marks import Marker, Span
from frisket.data.provenance import _Structure
from frisket.types import Message, Provenance

TRL = pytest.mark.skipif(not installed(), reason="trl, whose published templates are the oracle, is not installed")
RENEW = "python -m tests.templates.page --record, and give each new difference its reason"
AT_LEAST = 30  # templates with markers that must be compared
SPELLS = "spells special tokens"
# Where transformers' own mask is wrong: it ends at the first token of the last marked character, so the other bytes of
# an emoji that ends a marked block are left out.
EMOJI_LAST = ("diffusion_gemma_training", "emoji and CJK")


def entries(part: str, name: str) -> list[dict]:
    return [entry for entry in recorded()[part] if entry["template"] == name]


@TRL
@pytest.mark.parametrize("name", marked())
def test_the_differences_from_the_markers_are_the_explained_ones(name):
    assert record_of([name], recorded())["differences"] == entries("differences", name), RENEW


@TRL
@pytest.mark.parametrize("name", [*BUILT_IN, *published()])
def test_what_a_template_cannot_render_is_refused_by_name(name):
    assert record_of([name], recorded())["refusals"] == entries("refusals", name), RENEW


@TRL
def test_enough_templates_are_compared_and_every_conversation_is_accounted_for():
    assert len([name for name in marked() if outcome(name).compared]) >= AT_LEAST
    assert {entry["template"] for part in recorded().values() for entry in part} <= set(published())
    for name in published():
        found = outcome(name)
        assert {*found.checked, *found.refused} == set(talks(name)), name
        assert set(found.compared) == (set(found.checked) if name in marked() else set()), name


@TRL
@pytest.mark.parametrize("name", [*BUILT_IN, *published()])
def test_every_sample_passes_the_checks(name):
    assert {kind: wrong for kind, wrong in outcome(name).checked.items() if wrong} == {}


@pytest.mark.parametrize("name", BUILT_IN)
def test_the_built_in_templates_render_every_conversation_and_pass_the_checks(name):
    found = examine(name)
    assert found.refused == {}
    assert found.checked == {kind: [] for kind in talks(name)}


@TRL
def test_a_template_without_markers_is_masked_as_its_twin_with_markers():
    twins = [equal for name in unmarked() for equal in outcome(name).twins.values()]
    assert len(twins) > 200
    assert all(twins)


@TRL
def test_every_difference_has_a_reason_and_every_reason_is_needed():
    assert {entry["reason"] for entry in recorded()["differences"]} == set(REASONS)


@TRL
@pytest.mark.parametrize("entry", recorded()["differences"], ids=lambda e: f"{e['template']} {e['text']!r}")
def test_a_reason_is_true_of_its_difference(entry):
    text, reason = entry["text"], entry["reason"]
    after_end = entry["place"] == "after an end"
    if reason == "newline":
        assert (text, after_end, entry["taught_by"]) == ("\n", True, "markers")
    elif reason == "empty think block":
        assert "".join(text.split()) == "<think></think>"
    elif reason == "prompt":
        assert any(text in prompt for kind in entry["in"] for prompt in prompts(entry["template"], kind))
    elif reason == "header of a bare answer":
        bare, _ = oracle.rendered(
            talks(entry["template"])["single turn"],
            published()[entry["template"]],
            tokenizer_of(entry["template"]).special_tokens_map,
        )
        assert text in bare
    else:
        special = {token.content for token in tokenizer_of(entry["template"]).added_tokens_decoder.values()}
        assert next((word for word in special if text.startswith(word)), None)


def prompts(name: str, kind: str) -> list[str]:
    """What the generation prompt of each assistant turn adds behind the message before it."""
    found = []
    conversation = talks(name)[kind]
    for turn, message in enumerate(conversation.messages):
        if message.role == "assistant" and turn:
            before = oracle.prompt(conversation, turn, published()[name], tokenizer_of(name).special_tokens_map)
            found.append(before.rpartition(conversation.messages[turn - 1].content.strip())[2])
    return found


@TRL
@pytest.mark.parametrize("name", marked())
def test_the_oracle_is_the_mask_of_transformers(name):
    tokenizer = tokenizer_of(name)
    for kind in outcome(name).compared:
        conversation = talks(name)[kind]
        if kind == SPELLS:  # transformers makes special tokens of what the text spells
            continue
        theirs: Any = tokenizer.apply_chat_template(
            oracle.as_dicts(conversation.messages),
            tools=[dict(tool) for tool in conversation.tools] or None,
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        found = oracle.marked(conversation, tokenizer, published()[name])
        assert theirs["input_ids"] == found.ids.tolist(), kind
        equal = theirs["assistant_masks"] == found.taught.astype(int).tolist()
        assert equal == ((name, kind) != EMOJI_LAST), kind


def faulty(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Break frisket's provenance."""
    read = Marker.read

    def shifted(marker: Marker, text: str) -> tuple[str, list[Span]]:
        plain, spans = read(marker, text)
        answers = [span.role == Provenance.ASSISTANT for span in spans]
        return plain, [s._replace(start=s.start + a, end=s.end + a) for s, a in zip(spans, answers, strict=True)]

    def cut(marker: Marker, text: str) -> tuple[str, list[Span]]:
        plain, spans = read(marker, text)
        return plain, [s._replace(end=s.end - (s.role == Provenance.ASSISTANT)) for s in spans]

    if fault == "no end of turn":
        monkeypatch.setattr(_Structure, "_end_turn", lambda *_: None)
    else:
        monkeypatch.setattr(Marker, "read", shifted if fault == "answer shifted by a character" else cut)


FAULTS = ["answer shifted by a character", "answer cut by a character", "no end of turn"]


@TRL
@pytest.mark.parametrize("name", marked())
@pytest.mark.parametrize("fault", [*FAULTS, "header painted"])
def test_a_planted_fault_is_seen_on_every_template(name, fault, monkeypatch):
    kind = "several turns"
    known = outcome(name).compared.get(kind)
    if known is None:
        assert kind in outcome(name).refused
        return
    conversation, tokenizer = talks(name)[kind], tokenizer_of(name)
    if fault != "header painted":
        faulty(fault, monkeypatch)
    encoded = encode(conversation, template_of(name), tokenizer)
    if fault == "header painted":
        roles = encoded.sequence.roles.copy()
        roles[np.flatnonzero(taught(encoded))[0] - 1] = Provenance.ASSISTANT
        encoded = replace(encoded, sequence=replace(encoded.sequence, roles=roles))
    assert differences(encoded, oracle.marked(conversation, tokenizer, published()[name])) != known


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", BUILT_IN)
def test_a_planted_fault_is_seen_by_the_checks(name, fault, monkeypatch):
    faulty(fault, monkeypatch)
    found = examine(name)
    if fault == "no end of turn":
        assert set(found.refused) == set(talks(name))
        assert all("no end token follows messages" in why for why in found.refused.values())
    else:
        assert found.checked.get("several turns") != []


def test_the_built_in_templates_teach_what_the_assistant_wrote():
    call = '{"name": "weather", "arguments": {"city": "Rome", "days": 3, "near": {"sea": true, "towns": ["Ostia", '
    call += '"Tivoli"]}, "for": ["today", "it\'s late"], "limit": 0.5}}'
    expected = {
        "plain": [
            f"<think>\nI need the weather.\n</think>\n\n<tool_call>{call}</tool_call><|end|>",
            "<think>\n12 degrees is mild.\n</think>\n\nNo coat.<|end|>",
        ],
        "chatml": [
            f"<think>\nI need the weather.\n</think>\n\n<tool_call>\n{call}\n</tool_call><|im_end|>",
            "<think>\n12 degrees is mild.\n</think>\n\nNo coat.<|im_end|>",
        ],
    }
    for name in BUILT_IN:
        tokenizer = tokenizer_of(name)
        encoded = encode(talks(name)["reasoning and a call"], template_of(name), tokenizer)
        assert texts_of(encoded, tokenizer.decode) == expected[name]


def texts_of(encoded: Encoded, decode: Callable) -> list[str]:
    """What is taught, message by message."""
    s, mask = encoded.sequence, taught(encoded)
    return [decode(s.input_ids[mask & (s.turns == turn)].tolist()) for turn in np.unique(s.turns[mask])]


@TRL
def test_the_page_is_up_to_date():
    written = page.PAGE.read_text(encoding="utf-8")
    version = re.search(r"TRL (\S+) ships", written)
    assert version
    if version.group(1) != trl_version():
        pytest.skip(f"the page was written with TRL {version.group(1)}, and {trl_version()} is installed")
    assert page.page(trl_version()) == written, "python -m tests.templates.page"


def test_messages_are_handed_to_transformers_as_its_users_write_them():
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    found = oracle.as_dicts([Message("assistant", "a", "why", (call,))])
    assert found == [{"role": "assistant", "content": "a", "reasoning_content": "why", "tool_calls": [call]}]
