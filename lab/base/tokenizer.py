"""The tokenizer of the base model: byte-level BPE with single digits, and the chat template."""

import random
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from . import corpus, world

VOCABULARY = 3072
BEGIN, END, PAD = "<|begin|>", "<|end|>", "<|pad|>"
ROLE_TOKENS = ("<|system|>", "<|user|>", "<|assistant|>", "<|tool|>")
CHAT_TEMPLATE = Path(__file__).with_name("chat_template.jinja")
SYNTHETIC_DOCUMENTS = 40_000
PROSE_COPIES = 4


def _texts(seed: int) -> Iterator[str]:
    texts = corpus.read(held_out=False)
    for _ in range(PROSE_COPIES):
        yield from texts.prose.values()
    yield from texts.code.values()
    rng = random.Random(seed)
    for _ in range(SYNTHETIC_DOCUMENTS):
        yield world.document(rng)


def build(seed: int, context: int) -> PreTrainedTokenizerFast:
    """Train the tokenizer on the texts that the base model reads.

    Args:
        seed: Seed of the synthetic texts.
        context: The longest sequence in tokens, written into the configuration.

    Returns:
        The tokenizer, which starts every plain text with ``<|begin|>``.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[BEGIN, END, PAD, *ROLE_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(seed), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", pair=f"{BEGIN} $A {BEGIN} $B", special_tokens=[(BEGIN, tokenizer.token_to_id(BEGIN))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PAD,
        extra_special_tokens=list(ROLE_TOKENS),
        chat_template=CHAT_TEMPLATE.read_text(encoding="utf-8"),
        model_max_length=context,
        clean_up_tokenization_spaces=False,
        padding_side="right",
    )
