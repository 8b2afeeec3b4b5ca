"""Samples of random tokens: a prompt, then an answer of equal length that is taught."""

from collections.abc import Iterable

import numpy as np

from frisket.supervise.predictions import Weighted
from frisket.types import Provenance, Sequence


def samples(lengths: Iterable[int], vocabulary: int, seed: int = 0) -> list[Weighted]:
    """One sample of each length."""
    rng = np.random.default_rng(seed)
    return [sample(rng.integers(3, vocabulary, size).astype(np.int32), n) for n, size in enumerate(lengths)]


def sample(ids: np.ndarray, number: int) -> Weighted:
    """A sample of these tokens."""
    zeros = np.zeros(len(ids), np.int32)
    roles = np.full(len(ids), Provenance.ASSISTANT, np.uint8)
    sequence = Sequence(f"s{number}", 0, ids, roles, zeros, zeros.astype(np.uint32), np.full(len(ids), np.nan))
    return sequence, (np.arange(len(ids)) >= len(ids) // 2).astype(float)
