"""A tiny model on frisket's attention, a byte tokenizer, and the instruments to measure with."""

from functools import partial

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from frisket.attend.pack import pack
from frisket.evaluate.losses import Instruments
from frisket.hf.attention import NAME


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {"<bos>": 0, "<end>": 1} | {c: i + 2 for i, c in enumerate(alphabet)}
    backend = Tokenizer(models.BPE(vocab, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<bos>", eos_token="<end>")


def random_llama(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=258,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=1,
        attn_implementation=NAME,
    )
    return LlamaForCausalLM(config).to(torch.float64).eval()


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return random_llama()


@pytest.fixture(scope="module")
def other() -> LlamaForCausalLM:
    return random_llama(1)


def laid_out(tokenizer, arrangement: str) -> Instruments:
    arrange = partial(pack, arrangement=arrangement, row_tokens=150)
    return Instruments(tokenizer, (1,), 0, arrange, batch_tokens=600)


@pytest.fixture
def instruments(tokenizer) -> Instruments:
    return laid_out(tokenizer, "isolated")


@pytest.fixture(params=["isolated", "padded"])
def each_arrangement(request, tokenizer) -> Instruments:
    return laid_out(tokenizer, request.param)
