"""Traps of published templates that the oracle of tests/templates found, each on the smallest template that has it."""

from itertools import groupby

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.data.conftest import make_tokenizer
from tokenizers import AddedToken

from frisket.data.chat import encode, load_template
from frisket.data.provenance import render_conversation
from frisket.data.tokens import codec_of
from frisket.types import Conversation, Message, Provenance

# The result's header names the tool again; a call ends with another token than an answer.
HARMONY = """{% set ns = namespace(name='') %}{% for m in messages %}
{%- if m.role == 'tool' %}{{ '<|im_start|>' + ns.name + ' says<|end_header_id|>' + m.content + '</s>' }}
{%- elif m.tool_calls %}{% set ns.name = m.tool_calls[0].function.name %}
{{- '<|im_start|>assistant to=' + ns.name + '<|start_header_id|>' }}
{{- m.tool_calls[0].function.arguments | tojson + '<|eot_id|>' }}
{%- else %}{{ '<|im_start|>' + m.role + '<|end_header_id|>' + m.content + '</s>' }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant' }}{% endif %}"""
# Text between special tokens inside a call; the call is followed by its result without an end token of its own.
QUOTED = """{% for m in messages %}{% if m.role == 'tool' %}{{ m.content + '<|end_header_id|>' }}
{%- else %}{{ '<s>' + m.role + '\n' }}{% for call in m.tool_calls or [] %}
{{- '[TOOL_CALLS]' + call.function.name + '{<|im_start|>' + call.function.arguments.city + '<|im_start|>}[/INST]' }}
{{- '<|start_header_id|>' }}{% endfor %}{{ m.content }}{% if m.content %}</s>{% endif %}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<s>assistant\n' }}{% endif %}"""
# The text that goes with a call stands after the call's result.
TEXT_LAST = """{% for m in messages %}{% if m.role == 'assistant' %}{{ '<s>model\n' }}
{%- for call in m.tool_calls or [] %}{{ '[TOOL_CALLS]' + call.function.name + '<|eot_id|>' }}
{{- (messages[2].content if messages | length > 2 else '') + '[/INST]' }}{% endfor %}{{ m.content }}
{%- if not m.tool_calls %}</s>{% endif %}
{%- elif m.role == 'user' %}{{ '<s>user\n' + m.content + '</s>' }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<s>model\n' }}{% endif %}"""
TWO_ENDS = """{% for m in messages %}{{ '<s>' + m.role + '\n' + m.content + '<|eot_id|></s>' }}{% endfor %}"""
# Keeps white space but for the newlines before an answer.
LSTRIP = """{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}
{{- m.content.lstrip('\n') + '<|im_end|>' }}{% endfor %}"""


def calling(arguments: dict, text: str = "", result: str = "dry") -> Conversation:
    call = {"type": "function", "function": {"name": "weather", "arguments": arguments}}
    messages = (
        Message("user", "Rome?"),
        Message("assistant", text, None, (call,)),
        Message("tool", result),
        Message("assistant", "No coat."),
    )
    return Conversation("0:1", 0, "chats.jsonl", 1, messages)


def talking(*answers: str) -> Conversation:
    messages = tuple(m for answer in answers for m in (Message("user", "q"), Message("assistant", answer)))
    return Conversation("0:1", 0, "chats.jsonl", 1, messages)


def taught(template: str, conversation: Conversation, tokenizer=None) -> list[tuple[str, int, str]]:
    """Runs of what the assistant wrote: (provenance, message, text)."""
    tokenizer = tokenizer or make_tokenizer(template)
    s = encode(conversation, load_template(None, tokenizer), tokenizer).sequence
    grouped = groupby(zip(s.roles, s.turns, s.input_ids, strict=True), key=lambda x: (x[0], x[1]))
    runs = [
        (Provenance(r).name.lower(), int(t), str(tokenizer.decode([int(x[2]) for x in g]))) for (r, t), g in grouped
    ]
    return [run for run in runs if run[0] in ("assistant", "reasoning", "tool_call", "end_of_turn")]


TOKENIZER = make_tokenizer()


def load_template_text(template: str):
    TOKENIZER.chat_template = template
    return load_template(None, TOKENIZER).render


@pytest.mark.parametrize("arguments", [{"city": "Rome"}, {}])
def test_the_name_of_a_tool_in_the_header_of_its_result_is_not_the_assistants(arguments):
    call = ' to=weather<|start_header_id|>{"city": "Rome"}' if arguments else " to=weather<|start_header_id|>{}"
    assert taught(HARMONY, calling(arguments)) == [
        ("tool_call", 1, call),
        ("end_of_turn", 1, "<|eot_id|>"),
        ("assistant", 3, "No coat."),
        ("end_of_turn", 3, "</s>"),
    ]


def test_a_list_that_a_template_writes_as_python_does_is_followed():
    call = "{{ m.tool_calls[0].function.name + m.tool_calls[0].function.arguments | string }}"
    template = "{% for m in messages %}{{ '<s>' + m.role + '\n' }}{% if m.tool_calls %}" + call
    template += "{% endif %}{{ m.content + '</s>' }}{% endfor %}"
    template += "{% if add_generation_prompt %}{{ '<s>assistant\n' }}{% endif %}"
    assert taught(template, calling({"near": ["sea", "it's"]}))[0] == (
        "tool_call",
        1,
        """weather{'near': ['sea', "it's"]}""",
    )


def test_a_special_token_inside_a_call_does_not_end_the_turn():
    assert taught(QUOTED, calling({"city": "Rome"})) == [
        ("tool_call", 1, "[TOOL_CALLS]weather{<|im_start|>Rome<|im_start|>}[/INST]"),
        ("end_of_turn", 1, "<|start_header_id|>"),
        ("assistant", 3, "No coat."),
        ("end_of_turn", 3, "</s>"),
    ]


def test_text_that_stands_after_the_result_of_its_call_is_not_ended_by_the_next_header():
    assert taught(TEXT_LAST, calling({}, "Let me look.")) == [
        ("tool_call", 1, "[TOOL_CALLS]weather"),
        ("end_of_turn", 1, "<|eot_id|>"),
        ("assistant", 1, "Let me look."),
        ("assistant", 3, "No coat."),
        ("end_of_turn", 3, "</s>"),
    ]


def test_the_tokenizers_own_end_token_is_taught_where_another_stands_before_it():
    assert taught(TWO_ENDS, talking("a"))[-1] == ("end_of_turn", 1, "<|eot_id|></s>")


def test_white_space_is_taught_where_the_template_keeps_a_part_of_it():
    found = taught(LSTRIP, talking("    return x\n", "\n\n\ty = 2 \n"))
    answers = [text.removeprefix("\n") for role, _, text in found if role == "assistant"]  # "\n    " is one token
    assert answers == ["    return x\n", "\ty = 2 \n"]


TRIMS = {
    "m.content": lambda text: text,
    "m.content | trim": str.strip,
    "m.content.lstrip('\\n')": lambda text: text.lstrip("\n"),
    "m.content.rstrip()": str.rstrip,
    "m.content.strip(' ')": lambda text: text.strip(" "),
}
SPACE = st.text(alphabet=" \n\t", max_size=4)


@settings(max_examples=40, deadline=None)
@given(trim=st.sampled_from(sorted(TRIMS)), outer=st.lists(st.tuples(SPACE, SPACE), min_size=1, max_size=3))
def test_the_span_of_an_answer_is_what_the_template_leaves_of_it(trim, outer):
    header = "{{ '<|im_start|>' + m.role + '\n' + "
    template = "{% for m in messages %}" + header + "(" + trim + ") + '<|im_end|>\n' }}{% endfor %}"
    conversation = talking(*(f"{lead}a b{tail}" for lead, tail in outer))
    rendering = render_conversation(conversation, load_template_text(template), "t", codec_of(TOKENIZER))
    spans = [rendering.text[s.start : s.end] for s in rendering.spans if s.role == Provenance.ASSISTANT]
    assert spans == [TRIMS[trim](m.content) for m in conversation.messages if m.role == "assistant"]


def test_a_special_token_that_swallows_white_space_does_so_where_text_follows():
    template = "{% for m in messages %}{{ '[INST]\n' + m.content + '[/INST]\n' }}{% endfor %}"
    tokenizer = make_tokenizer(template)
    words = [AddedToken(word, special=True, normalized=False, rstrip=True) for word in ("[INST]", "[/INST]")]
    tokenizer.backend_tokenizer.add_special_tokens(words)
    conversation = talking("  return x ")
    s = encode(conversation, load_template(None, tokenizer), tokenizer).sequence
    plain = tokenizer("[INST]\nq[/INST]\n[INST]\n  return x [/INST]\n", add_special_tokens=False).input_ids
    assert s.input_ids.tolist() == plain
    assert taught(template, conversation, tokenizer) == [
        ("assistant", 1, "return x "),
        ("end_of_turn", 1, "[/INST]"),
    ]
