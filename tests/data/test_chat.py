"""Provenance of every token, on templates in the manner of published ones."""

from collections import Counter
from dataclasses import replace
from itertools import groupby

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from frisket.data.chat import encode, encode_many, load_template, prompt_ids, prompt_of
from frisket.data.problem import Problem
from frisket.data.settings import SourceSettings
from frisket.data.source import read_conversations
from frisket.data.tokens import STAND_IN, codec_of
from frisket.errors import ConfigError, DataError
from frisket.supervise.policies import POLICIES, Teaching, token_weights
from frisket.supervise.settings import TeachSettings
from frisket.types import Conversation, Message, Provenance

WRITTEN = st.characters(exclude_categories=["Cs"], exclude_characters=[STAND_IN])  # refused, with another test
ALL = ["chatml", "llama3", "mistral", "gemma", "qwen3", "plain"]
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome", "days": 3}}}
FAST = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def conversation(*pairs, **more) -> Conversation:
    messages = tuple(m if isinstance(m, Message) else Message(*m) for m in pairs)
    return Conversation("0:1", 0, "chats.jsonl", 1, messages, **more)


def runs(encoded, tokenizer) -> list[tuple[str, int, str]]:
    """Maximal runs of one provenance and message: (provenance, message, decoded text)."""
    s = encoded.sequence
    grouped = groupby(zip(s.roles, s.turns, s.input_ids, strict=True), key=lambda x: (x[0], x[1]))
    return [(Provenance(r).name.lower(), int(t), tokenizer.decode([int(x[2]) for x in g])) for (r, t), g in grouped]


def texts_of(encoded, tokenizer, role: str) -> list[str]:
    return [text for name, _, text in runs(encoded, tokenizer) if name == role]


def encoded_with(tokenizer, conversation):
    return encode(conversation, load_template(None, tokenizer), tokenizer)


def test_every_token_of_chatml_is_told(tokenizers):
    tokenizer = tokenizers["chatml"]
    found = runs(encoded_with(tokenizer, conversation(("system", "S"), ("user", "Hi"), ("assistant", "Yo"))), tokenizer)
    assert found == [
        ("template", -1, "<|im_start|>system\n"),
        ("system", 0, "S"),
        ("template", 0, "<|im_end|>"),
        ("template", 1, "\n<|im_start|>user\n"),
        ("user", 1, "Hi"),
        ("template", 1, "<|im_end|>"),
        ("template", 2, "\n<|im_start|>assistant\n"),
        ("assistant", 2, "Yo"),
        ("end_of_turn", 2, "<|im_end|>"),
        ("template", 2, "\n"),
    ]


@pytest.mark.parametrize("name", ALL)
@FAST
@given(
    answers=st.lists(st.text(min_size=1, max_size=12).filter(str.strip), min_size=1, max_size=3),
    question=st.text(min_size=1, max_size=12).filter(str.strip),
)
def test_each_answer_is_found_and_ended(tokenizers, name, answers, question):
    tokenizer = tokenizers[name]
    pairs = [pair for answer in answers for pair in (("user", question), ("assistant", answer))]
    encoded = encoded_with(tokenizer, conversation(*pairs))
    s = encoded.sequence
    for turn, answer in enumerate(answers):
        ids = s.input_ids[(s.turns == 2 * turn + 1) & (s.roles == Provenance.ASSISTANT)].tolist()
        if encoded.straddling == 0:
            assert tokenizer.decode(ids).strip() == answer.strip()
    ends = s.turns[s.roles == Provenance.END_OF_TURN].tolist()
    assert ends == [2 * turn + 1 for turn in range(len(answers))]


@pytest.mark.parametrize("name", ALL)
@FAST
@given(words=st.lists(st.text(WRITTEN, max_size=8) | st.sampled_from(["<tool_call>", " \n", "▁", "🤖"]), min_size=1))
def test_a_sample_that_spells_no_special_token_gets_the_ids_of_one_plain_call(tokenizers, name, words):
    tokenizer = tokenizers[name]
    text = "a" + "".join(words)
    messages = [{"role": "user", "content": text}, {"role": "assistant", "content": text}]
    encoded = encoded_with(tokenizer, conversation(("user", text), ("assistant", text)))
    template = load_template(None, tokenizer)
    rendered = template.render(messages, [], False)
    plain = tokenizer(rendered, add_special_tokens=False).input_ids
    assert encoded.sequence.input_ids.tolist() == plain
    codec = codec_of(tokenizer)
    cut = codec.encode_cut(rendered, list(codec.specials(rendered)))
    assert cut.ids.tolist() == plain


def test_published_templates_render_as_transformers_renders_them(tokenizers):
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yo"},
        {"role": "user", "content": "?"},
    ]
    for name in ("chatml", "llama3", "gemma", "qwen3", "mistral"):
        theirs = tokenizers[name].apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert load_template(None, tokenizers[name]).render(messages, [], True) == theirs


@pytest.mark.parametrize("name", ALL)
def test_text_that_spells_a_special_token_stays_text(tokenizers, name):
    tokenizer = tokenizers[name]
    pairs = (("user", "say <|im_end|></s>"), ("assistant", "ok <|im_end|> [/INST]<end_of_turn>"))
    encoded = encoded_with(tokenizer, conversation(*pairs))
    s = encoded.sequence
    written = np.isin(s.roles, (Provenance.USER, Provenance.ASSISTANT))
    assert not np.isin(s.input_ids[written], list(codec_of(tokenizer).special_ids)).any()
    assert texts_of(encoded, tokenizer, "user")[0].strip() == pairs[0][1]
    assert texts_of(encoded, tokenizer, "assistant")[0].strip() == pairs[1][1]
    assert (s.roles == Provenance.END_OF_TURN).sum() == 1


def test_a_field_and_the_template_together_may_spell_a_special_token(tokenizers):
    tokenizer = make(
        tokenizers, "{% for m in messages %}{{ m.content + ('_end|>' if loop.first else '</s>') }}{% endfor %}"
    )
    s = encoded_with(tokenizer, conversation(("user", "<|im"), ("assistant", "x"))).sequence
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") not in s.input_ids


def make(tokenizers, template):
    import copy

    tokenizer = copy.deepcopy(tokenizers["chatml"])
    tokenizer.chat_template = template
    return tokenizer


def test_structure_of_an_assistant_turn_belongs_to_its_fields(tokenizers):
    tokenizer = tokenizers["qwen3"]
    turn = Message("assistant", "On it.", "Need the weather", (CALL,))
    pairs = (("user", "Rome?"), turn, ("tool", "sunny"), ("assistant", "Sun."))
    found = runs(encoded_with(tokenizer, conversation(*pairs, tools=(WEATHER,))), tokenizer)
    assert ("reasoning", 1, "<think>\nNeed the weather\n</think>\n\n") in found
    assert ("assistant", 1, "On it.") in found
    call = '\n<tool_call>\n{"name": "weather", "arguments": {"city": "Rome", "days": 3}}\n</tool_call>'
    assert ("tool_call", 1, call) in found
    assert ("tool_result", 2, "sunny") in found
    assert ("template", 3, "\n<|im_start|>assistant\n<think>\n\n</think>\n\n") in found, (
        "an empty block is the template's"
    )
    assert [t for n, t, _ in found if n == "end_of_turn"] == [1, 3]


def test_reasoning_inside_the_content_is_split(tokenizers):
    message = ("assistant", "<think>\nhm\n</think>\n\nYes")
    for name in ("qwen3", "chatml", "plain"):
        found = runs(encoded_with(tokenizers[name], conversation(("user", "?"), message)), tokenizers[name])
        assert [(n, text) for n, t, text in found if t == 1 and n in ("reasoning", "assistant")] == [
            ("reasoning", "<think>\nhm\n</think>\n\n"),
            ("assistant", "Yes"),
        ], name


def test_reasoning_of_earlier_turns_that_the_template_takes_out_is_counted(tokenizers):
    pairs = (("user", "a"), Message("assistant", "b", "secret"), ("user", "c"), Message("assistant", "d", "kept"))
    encoded = encoded_with(tokenizers["qwen3"], conversation(*pairs))
    assert encoded.removed_characters == len("secret")
    assert texts_of(encoded, tokenizers["qwen3"], "reasoning") == ["<think>\nkept\n</think>\n\n"]


def test_a_template_that_drops_a_message_is_refused(tokenizers):
    text = "{% for m in messages if m.role != 'tool' %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
    pairs = (("user", "a"), ("assistant", "b"), ("tool", "result"), ("assistant", "c"))
    with pytest.raises(DataError, match=r"chats.jsonl:1: template .* leaves out the content of messages\[2\] \(tool\)"):
        encoded_with(make(tokenizers, text), conversation(*pairs))


def test_a_template_that_ignores_tools_is_refused(tokenizers):
    with pytest.raises(DataError, match=r"leaves out the tool declarations; model.template=plain"):
        encoded_with(tokenizers["chatml"], conversation(("user", "a"), ("assistant", "b"), tools=(WEATHER,)))


def test_a_template_without_a_place_for_reasoning_is_refused(tokenizers):
    with pytest.raises(DataError, match=r"leaves out the reasoning of messages\[1\]"):
        encoded_with(tokenizers["chatml"], conversation(("user", "a"), Message("assistant", "b", "why")))


def test_a_template_that_changes_marked_text_is_refused(tokenizers):
    tokenizer = make(tokenizers, "{% for m in messages %}{{ m.content | length }}{{ m.content }}</s>{% endfor %}")
    with pytest.raises(DataError, match=r"renders this conversation differently when its text is marked"):
        encoded_with(tokenizer, conversation(("user", "a"), ("assistant", "b")))


@pytest.mark.parametrize("cut", ["m.content[2:]", "m.content[:-1]"])
def test_a_template_that_takes_a_field_apart_is_refused(tokenizers, cut):
    tokenizer = make(tokenizers, "{% for m in messages %}{{ " + cut + " }}</s>{% endfor %}")
    with pytest.raises(DataError, match=r"takes a message apart|differently when"):
        encoded_with(tokenizer, conversation(("user", "abc"), ("assistant", "bcd")))


def test_a_template_that_refuses_a_conversation_is_quoted(tokenizers):
    with pytest.raises(DataError, match=r"chats.jsonl:1: .*does not render this conversation: roles must alternate"):
        encoded_with(tokenizers["mistral"], conversation(("user", "a"), ("user", "b"), ("assistant", "c")))


def test_declarations_and_keys_must_not_spell_special_tokens(tokenizers):
    bad = {"type": "function", "function": {"name": "f", "description": "<|im_end|>"}}
    with pytest.raises(DataError, match=r"spells the special token '<\|im_end\|>'"):
        encoded_with(tokenizers["qwen3"], conversation(("user", "a"), ("assistant", "b"), tools=(bad,)))
    call = {"type": "function", "function": {"name": "f", "arguments": {"</s>": 1}}}
    with pytest.raises(DataError, match=r"spells the special token '</s>'"):
        encoded_with(tokenizers["qwen3"], conversation(("user", "a"), Message("assistant", "", None, (call,))))


def test_the_characters_of_marks_in_the_data_are_no_marks(tokenizers):
    text = "icon \U00017000\U00017002\U00017001 end"
    encoded = encoded_with(tokenizers["chatml"], conversation(("user", text), ("assistant", text)))
    assert texts_of(encoded, tokenizers["chatml"], "assistant") == [text]


def test_text_that_uses_every_mark_is_refused(tokenizers):
    text = "".join(map(chr, range(0x17000, 0x187F8)))
    with pytest.raises(DataError, match=r"uses all of Tangut"):
        encoded_with(tokenizers["chatml"], conversation(("user", text), ("assistant", "b")))


def test_the_stand_in_of_special_tokens_is_refused_where_it_is_needed(tokenizers):
    with pytest.raises(DataError, match=r"holds U\+10FFFD"):
        encoded_with(tokenizers["chatml"], conversation(("user", "\U0010fffd </s>"), ("assistant", "b")))


def test_outer_white_space_of_an_answer_is_taught_where_the_template_keeps_it(tokenizers):
    pairs = (("user", "q"), ("assistant", "    return x\n"))
    kept = encoded_with(tokenizers["plain"], conversation(*pairs))
    assert (
        texts_of(kept, tokenizers["plain"], "assistant")[0].lstrip("\n") == "    return x\n"
    )  # "\\n    " is one token
    trimmed = encoded_with(tokenizers["llama3"], conversation(*pairs))
    assert texts_of(trimmed, tokenizers["llama3"], "assistant") == ["return x"]


def test_bos_is_there_once(tokenizers, bos_tokenizer):
    for tokenizer in (tokenizers["llama3"], bos_tokenizer):
        s = encoded_with(tokenizer, conversation(("user", "a"), ("assistant", "b"))).sequence
        assert (s.input_ids == tokenizer.bos_token_id).sum() == 1
        assert s.roles[0] == Provenance.BOS
        assert s.turns[0] == -1


def test_a_message_weight_replaces_the_policy_on_that_message(tokenizers):
    pairs = (
        ("user", "a"),
        Message("assistant", "b c", weight=0.5),
        Message("user", "d", weight=2.0),
        ("assistant", "e"),
    )
    s = encoded_with(tokenizers["chatml"], conversation(*pairs)).sequence
    answer = (s.turns == 1) & np.isin(s.roles, (Provenance.ASSISTANT, Provenance.END_OF_TURN))
    assert answer.sum() >= 3
    assert (s.data_weights[answer] == 0.5).all()
    assert (s.data_weights[(s.turns == 2) & (s.roles == Provenance.USER)] == 2.0).all()
    assert np.isnan(s.data_weights[(s.turns == 3) | (s.roles == Provenance.TEMPLATE)]).all()


def test_only_the_taught_turn_of_an_expanded_conversation_teaches(tokenizers):
    pairs = (("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
    s = encoded_with(tokenizers["chatml"], conversation(*pairs, taught_turn=3)).sequence
    assert (s.data_weights[s.turns <= 1] == 0).all(), "the first exchange was taught by a sample of its own"
    assert np.isnan(s.data_weights[s.turns > 1]).all()
    first = encoded_with(tokenizers["chatml"], conversation(*pairs[:2], taught_turn=1)).sequence
    assert np.isnan(first.data_weights).all()


TEXTS = st.sampled_from(["a", "the quick fox", "naïve 2 + 2?"])
MESSAGES = st.lists(
    st.builds(
        lambda role, content, weight: {"role": role, "content": content, "weight": weight},
        st.sampled_from(["user", "assistant", "assistant", "tool"]),
        TEXTS,
        st.sampled_from([None, None, None, 0, 0.5]),
    ),
    min_size=1,
    max_size=6,
)


def taught_by_message(messages, tokenizer, policy: str, **knobs) -> Counter:
    """Taught tokens by (message, provenance), summed over the samples that one record makes."""
    read = read_conversations(SourceSettings(path="memory", **knobs), 0, [{"messages": messages}])
    roles = {"assistant": 1.0, "user": 0.5} if policy == "roles" else {}
    teaching = Teaching(TeachSettings(policy=policy, roles=roles))
    found: Counter = Counter()
    for each in read.conversations:
        s = encoded_with(tokenizer, each).sequence
        taught = token_weights(s, teaching) != 0
        found.update(zip(s.turns[taught].tolist(), s.roles[taught].tolist(), strict=True))
    return found


@pytest.mark.parametrize("name", ["chatml", "llama3", "gemma"])
@pytest.mark.parametrize("policy", POLICIES)
@FAST
@given(system=st.booleans(), messages=MESSAGES)
def test_expanded_samples_teach_each_message_once(tokenizers, name, policy, system, messages):
    """As often as without ``expand``; the template's tokens too, but for what it writes behind a last message."""
    head = [{"role": "system", "content": "S"}] if system and name != "gemma" else []
    messages = [*head, *messages]
    answers = [i for i, m in enumerate(messages) if m["role"] == "assistant" and m["weight"] != 0]
    last = answers[-1] if answers else len(messages)
    # These two choose among the assistant's turns; every sample of one turn is the last of its own.
    usual = "assistant" if policy in ("completion", "last-turn") and answers else policy
    whole = taught_by_message(messages, tokenizers[name], usual)
    expanded = taught_by_message(messages, tokenizers[name], policy, expand="turns")
    for turn in range(-1, len(messages)):
        for role in Provenance:
            times = expanded[turn, role]
            if turn > last:
                assert times == 0, "no sample reaches beyond the last taught answer"
            elif role == Provenance.TEMPLATE:
                newline = name != "llama3" and turn in answers
                assert times - whole[turn, role] in ((0, 1) if newline else (0,))
            else:
                assert times == whole[turn, role]


@pytest.mark.parametrize("render", ["raw", "alpaca"])
def test_joined_rendering_is_prompt_completion_and_end_token(bos_tokenizer, render):
    tokenizer = bos_tokenizer
    pairs = (("user", "Q: 2 + 2?\nA:"), ("assistant", " 4 </s>"))
    encoded = encoded_with(tokenizer, conversation(*pairs, render=render))
    found = runs(encoded, tokenizer)
    assert found == [
        ("bos", -1, "<s>"),
        ("user", 0, "Q: 2 + 2?\nA:"),
        ("assistant", 1, " 4 </s>"),
        ("end_of_turn", 1, "</s>"),
    ]
    assert (encoded.sequence.input_ids == tokenizer.eos_token_id).sum() == 1, "the written </s> stays text"


def test_joined_rendering_has_no_place_for_calls(tokenizer):
    with pytest.raises(DataError, match=r"messages\[1\] has reasoning or tool calls, which only render=chat"):
        encoded_with(tokenizer, conversation(("user", "a"), Message("assistant", "", None, (CALL,)), render="raw"))


def test_raw_text_and_ready_made_tokens(tokenizer):
    text = encoded_with(tokenizer, conversation(text="Once upon </s> a time"))
    assert runs(text, tokenizer) == [("text", 0, "Once upon </s> a time"), ("end_of_turn", 0, "</s>")]
    ready = encoded_with(tokenizer, conversation(input_ids=(5, 6, 7), token_weights=(0.0, 1.0, 1.0))).sequence
    assert ready.roles.tolist() == [Provenance.USER, Provenance.ASSISTANT, Provenance.ASSISTANT]
    assert ready.data_weights.tolist() == [0, 1, 1]
    unlabelled = encoded_with(tokenizer, conversation(input_ids=(5, 6))).sequence
    assert np.isnan(unlabelled.data_weights).all()


@pytest.mark.parametrize("name", ALL)
def test_a_prompt_is_the_beginning_of_the_sample(tokenizers, name):
    tokenizer = tokenizers[name]
    template = load_template(None, tokenizer)
    sample = conversation(("user", "What is 2 + 2?"), ("assistant", "It is 4."))
    ids = prompt_ids(sample.messages[:1], template, tokenizer)
    assert encode(sample, template, tokenizer).sequence.input_ids[: len(ids)].tolist() == ids
    assert prompt_of(sample, template, tokenizer) == ids
    with_hole = prompt_of(replace(sample, render="raw"), template, tokenizer)
    assert with_hole == tokenizer("What is 2 + 2?", add_special_tokens=False).input_ids


def test_a_prompt_that_cannot_be_rendered_is_refused(tokenizers):
    messages = [Message("user", "a"), Message("user", "b")]
    with pytest.raises(DataError, match=r"a prompt of 2 messages: .*roles must alternate"):
        prompt_ids(messages, load_template(None, tokenizers["mistral"]), tokenizers["mistral"])


def test_straddling_tokens_follow_their_last_character(tokenizers):
    tokenizer = make(
        tokenizers, "{% for m in messages %}{{ 'It ' if m.role == 'assistant' }}{{ m.content }}</s>{% endfor %}"
    )
    encoded = encoded_with(tokenizer, conversation(("user", "a"), ("assistant", "is so")))
    assert encoded.straddling == 1
    assert texts_of(encoded, tokenizer, "assistant") == [" is so"]


def test_many_are_encoded_in_order_and_the_bad_are_problems(tokenizers):
    good = conversation(("user", "a"), ("assistant", "b"))
    bad = conversation(("user", "a"), ("user", "b"))
    results = list(encode_many([good, bad, good], load_template(None, tokenizers["mistral"]), tokenizers["mistral"]))
    assert isinstance(results[1], Problem)
    assert results[0].sequence.input_ids.tolist() == results[2].sequence.input_ids.tolist()


def test_generation_tags_are_passed_through(tokenizers):
    text = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}</s>{% endfor %}"
    assert load_template(None, make(tokenizers, text)).render([{"role": "user", "content": "x"}], [], False) == "x</s>"


def test_templates_by_name_file_and_dictionary(tokenizers, tmp_path):
    tokenizer = tokenizers["chatml"]
    assert load_template(None, tokenizers["plain"]).name == "plain"
    assert load_template(None, tokenizer).name == "the tokenizer's own"
    assert load_template("chatml", tokenizer).render([], [], True) == "<|im_start|>assistant\n"
    file = tmp_path / "mine.jinja"
    file.write_text("{{ messages[0].content }}!")
    assert load_template(str(file), tokenizer).render([{"role": "user", "content": "x"}], [], False) == "x!"
    both = load_template(None, make(tokenizers, {"default": "plain", "tool_use": "tools"}))
    assert (both.render([], [], False), both.render([], [{}], False)) == ("plain", "tools")


def test_templates_that_cannot_be_used_are_refused(tokenizers, tmp_path):
    tokenizer = tokenizers["chatml"]
    with pytest.raises(ConfigError, match=r"model.template = 'nope' is neither a file nor one of plain, chatml"):
        load_template("nope", tokenizer)
    with pytest.raises(ConfigError, match=r"none named 'default'"):
        load_template(None, make(tokenizers, {"rag": "x"}))
    for text, message in (("{% if %}", "Expected an expression"), ("{{ raise_exception('never') }}", "never")):
        file = tmp_path / "broken.jinja"
        file.write_text(text)
        with pytest.raises(
            ConfigError, match=rf"template '.*broken.jinja' does not render this conversation: .*{message}"
        ):
            load_template(str(file), tokenizer)


def test_built_in_templates_need_their_end_token():
    from tests.data.conftest import make_tokenizer

    tokenizer = make_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ConfigError, match=r"template 'plain' ends turns with the tokenizer's end token"):
        load_template("plain", tokenizer)
    template = load_template("chatml", tokenizer)
    with pytest.raises(DataError, match=r"no end token to put after the text"):
        encode(conversation(text="a"), template, tokenizer)


def test_chatml_needs_its_tokens():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), eos_token="</s>")
    with pytest.raises(ConfigError, match=r"'chatml' ends turns with <\|im_end\|>"):
        load_template("chatml", tokenizer)
