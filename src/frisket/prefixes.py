"""What token sequences share at their beginnings: found on tokens, never on messages."""

from collections.abc import Sequence as Seq
from itertools import pairwise

import numpy as np
from jaxtyping import Int64


def sort_by_prefix(
    ids: Seq[np.ndarray],
) -> tuple[Int64[np.ndarray, "sample"], Int64[np.ndarray, "sample"]]:
    """Sort samples so that those with a common beginning lie side by side; equal ones keep their order.

    Args:
        ids: token ids of each sample.

    Returns:
        The order, and for each place in it the number of tokens shared with the sample before (0 for the first).

    >>> order, shared = sort_by_prefix([np.array([5, 6, 7]), np.array([4]), np.array([5, 6])])
    >>> order.tolist(), shared.tolist()
    ([1, 2, 0], [0, 0, 2])
    """
    keys = [np.asarray(tokens).astype(">u4").tobytes() for tokens in ids]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    shared = [0, *(_common(keys[a], keys[b]) // 4 for a, b in pairwise(order))]
    return np.array(order, dtype=np.int64), np.array(shared[: len(order)], dtype=np.int64)


def distinct_tokens(ids: Seq[np.ndarray]) -> int:
    """Tokens of one prefix tree that holds all samples.

    >>> distinct_tokens([np.array([5, 6, 7]), np.array([5, 6, 8, 9])])
    5
    """
    return sum(len(tokens) for tokens in ids) - int(sort_by_prefix(ids)[1].sum())


def _common(a: bytes, b: bytes) -> int:
    """Length of the common prefix of two byte strings."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
