"""A byte-level tokenizer trained here, small templates in the manner of published ones, and a cache of its own."""

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

SPECIALS = [
    "<s>",
    "</s>",
    "<|im_start|>",
    "<|im_end|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "[INST]",
    "[/INST]",
    "[TOOL_CALLS]",
    "<start_of_turn>",
    "<end_of_turn>",
]

CHATML = """{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

LLAMA3 = """{{ bos_token }}{% for m in messages %}
{{- '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim + '<|eot_id|>' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"""

MISTRAL = """{{ bos_token }}{% if messages[0].role == 'system' %}{% set system = messages[0].content + '\n\n' %}
{%- set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}
{%- for m in messages %}
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}
{%- if m.role == 'user' %}{{ '[INST] ' + (system if loop.last else '') + m.content + ' [/INST]' }}
{%- else %}{{ ' ' + m.content | trim + eos_token }}{% endif %}{% endfor %}"""

GEMMA = """{{ bos_token }}{% if messages[0].role == 'system' %}{% set first = messages[0].content | trim + '\n\n' %}
{%- set messages = messages[1:] %}{% else %}{% set first = '' %}{% endif %}
{%- for m in messages %}{% set role = 'model' if m.role == 'assistant' else m.role %}
{{- '<start_of_turn>' + role + '\n' + (first if loop.first else '') + m.content | trim }}
{{- '<end_of_turn>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"""

QWEN3 = """{%- if tools %}{{ '<|im_start|>system\n# Tools' }}
{%- for tool in tools %}{{ '\n' + tool | tojson }}{% endfor %}{{ '<|im_end|>\n' }}{% endif %}
{%- set ns = namespace(last=messages | length - 1) %}
{%- for m in messages[::-1] %}{% set i = messages | length - 1 - loop.index0 %}
{%- if m.role == 'user' and not ns.found %}{% set ns.last = i %}{% set ns.found = true %}{% endif %}{% endfor %}
{%- for m in messages %}{% set content = m.content %}{% set reasoning = m.reasoning_content or '' %}
{%- if m.role == 'assistant' and '</think>' in content %}
{%- set reasoning = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
{%- set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}
{%- if m.role == 'tool' %}{{ '<|im_start|>user\n<tool_response>\n' + content + '\n</tool_response><|im_end|>\n' }}
{%- elif m.role != 'assistant' %}{{ '<|im_start|>' + m.role + '\n' + content + '<|im_end|>\n' }}
{%- else %}{{ '<|im_start|>assistant\n' }}
{%- if loop.index0 > ns.last and (loop.last or reasoning) %}
{{- '<think>\n' + reasoning.strip('\n') + '\n</think>\n\n' }}{% endif %}{{ content }}
{%- for call in m.tool_calls or [] %}{% if content or not loop.first %}{{ '\n' }}{% endif %}
{{- '<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' + call.function.arguments | tojson }}
{{- '}\n</tool_call>' }}{% endfor %}{{ '<|im_end|>\n' }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

PUBLISHED = {"chatml": CHATML, "llama3": LLAMA3, "mistral": MISTRAL, "gemma": GEMMA, "qwen3": QWEN3}

CORPUS = [
    "The quick brown fox jumps over the lazy dog, and User: Assistant: system says <think> so.",
    '{"name": "weather", "arguments": {"city": "Rome", "days": 3}} naïve café 漢字',
    "def answer(x):\n    return x + 1\n\nYou are helpful. Hello there, what is 2 + 2? It is 4.",
]


def make_tokenizer(template=None, adds_bos=False) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator(CORPUS * 4, trainer)
    backend.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in SPECIALS])
    backend.add_tokens([AddedToken(word, special=False, normalized=False) for word in ("<tool_call>", "</tool_call>")])
    if adds_bos:
        from tokenizers.processors import TemplateProcessing

        bos = backend.token_to_id("<s>")
        backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture(scope="session")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="session")
def bos_tokenizer():
    """One that puts <s> before every text."""
    return make_tokenizer(adds_bos=True)


@pytest.fixture(scope="session")
def tokenizers():
    """One for each published manner, and one without a template."""
    return {**{name: make_tokenizer(text) for name, text in PUBLISHED.items()}, "plain": make_tokenizer()}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FRISKET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
