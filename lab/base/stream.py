"""The training tokens of the base model: real and synthetic documents, shuffled, in one long stream."""

import random
from collections.abc import Iterator

import numpy as np
from transformers import PreTrainedTokenizerFast

from . import corpus, world
from .tokenizer import PROSE_COPIES

PIECE_TOKENS = 1024
_BATCH = 2000


def _encode(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[np.ndarray]:
    """Encode documents, each between the begin and the end token."""
    end = tokenizer.eos_token_id
    encodings = tokenizer.backend_tokenizer.encode_batch(texts)
    return [np.array([*encoding.ids, end], dtype=np.uint16) for encoding in encodings]


def _pieces(document: np.ndarray, begin: int) -> Iterator[np.ndarray]:
    """Cut a long document so that shuffling mixes it; every piece starts with the begin token."""
    yield document[:PIECE_TOKENS]
    for start in range(PIECE_TOKENS, len(document), PIECE_TOKENS):
        yield np.concatenate([np.array([begin], dtype=np.uint16), document[start : start + PIECE_TOKENS]])


def _real(tokenizer: PreTrainedTokenizerFast, tokens: int) -> list[np.ndarray]:
    """Repeat the pieces of the real texts until there are enough tokens."""
    texts = corpus.read(held_out=False)
    documents = _encode(tokenizer, [*list(texts.prose.values()) * PROSE_COPIES, *texts.code.values()])
    pieces = [piece for document in documents for piece in _pieces(document, tokenizer.bos_token_id)]
    passes = -(-tokens // sum(map(len, pieces)))
    return pieces * passes


def _synthetic(
    tokenizer: PreTrainedTokenizerFast, lesson: world.Lesson, tokens: int, rng: random.Random
) -> list[np.ndarray]:
    documents: list[np.ndarray] = []
    count = 0
    while count < tokens:
        batch = _encode(tokenizer, [world.document(rng, lesson) for _ in range(_BATCH)])
        documents += batch
        count += sum(map(len, batch))
    return documents


def _shuffled(documents: list[np.ndarray], tokens: int, generator: np.random.Generator) -> list[np.ndarray]:
    """Shuffle documents and keep the first so many tokens of them."""
    chosen = []
    count = 0
    for index in generator.permutation(len(documents)):
        if count >= tokens:
            break
        chosen.append(documents[index])
        count += len(documents[index])
    return chosen


def build(tokenizer: PreTrainedTokenizerFast, lesson: world.Lesson, tokens: int, seed: int) -> np.ndarray:
    """Build the stream of a lesson, part of its tokens real and part synthetic.

    Args:
        tokenizer: The tokenizer of the base model.
        lesson: What the synthetic part practises, and how large it is.
        tokens: Length of the stream in tokens.
        seed: Seed of the synthetic texts and of the order.

    Returns:
        ``tokens`` token ids, uint16.
    """
    generator = np.random.default_rng(seed)
    share = int(tokens * lesson.real) + PIECE_TOKENS
    real = _shuffled(_real(tokenizer, share), share, generator)
    rest = tokens - int(tokens * lesson.real) + PIECE_TOKENS
    documents = real + _synthetic(tokenizer, lesson, rest, random.Random(seed))
    order = generator.permutation(len(documents))
    return np.concatenate([documents[index] for index in order])[:tokens]
