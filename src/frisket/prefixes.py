"""What token sequences share at their beginnings: found on tokens, never on messages."""

from collections.abc import Sequence as Seq
from itertools import pairwise

import numpy as np
from jaxtyping import Int64

AT_ONCE = 4096  # so many sequences are held in memory whole; of more only the next block of tokens
BLOCK = 16  # tokens


def sort_by_prefix(
    ids: Seq[np.ndarray],
) -> tuple[Int64[np.ndarray, "sample"], Int64[np.ndarray, "sample"]]:
    """Sort samples so that those with a common beginning lie side by side; equal ones keep their order.

    Memory grows with the number of samples, not with their tokens: while more than 4,096 agree, they are compared by
    16 tokens at a time.

    Args:
        ids: token ids of each sample, below 2^32 - 1; read more than once where many samples agree.

    Returns:
        The order, and for each place in it the number of tokens shared with the sample before (0 for the first).

    >>> order, shared = sort_by_prefix([np.array([5, 6, 7]), np.array([4]), np.array([5, 6])])
    >>> order.tolist(), shared.tolist()
    ([1, 2, 0], [0, 0, 2])
    """
    order, shared = np.arange(len(ids)), np.zeros(len(ids), dtype=np.int64)
    agreeing = [(0, len(ids), 0)]  # stretches of the order whose samples agree in so many tokens
    while agreeing:
        low, high, depth = agreeing.pop()
        members = order[low:high]
        if high - low > AT_ONCE:
            depth = _agreed(ids, members, depth)
            places, common, is_open = _by_block(ids, members, depth)
            edges = np.flatnonzero(np.concatenate([[True], ~is_open[1:], [True]]))
            agreeing += [(low + int(a), low + int(b), depth + BLOCK) for a, b in pairwise(edges) if b - a > 1]
        else:
            places, common = _by_whole(ids, members, depth)
        order[low:high] = members[places]
        shared[low + 1 : high] = depth + common[1:]
    return order, shared


def distinct_tokens(ids: Seq[np.ndarray]) -> int:
    """Tokens of one prefix tree that holds all samples.

    >>> distinct_tokens([np.array([5, 6, 7]), np.array([5, 6, 8, 9])])
    5
    """
    return sum(len(tokens) for tokens in ids) - int(sort_by_prefix(ids)[1].sum())


def _agreed(ids: Seq[np.ndarray], members: np.ndarray, depth: int) -> int:
    """How far all agree, if that is more than a block beyond ``depth``: a header that all share is passed at once."""
    first = ids[int(members[0])]
    common = len(first)
    for member in members[1:].tolist():
        own = ids[member][:common]
        differs = own[depth:] != first[depth : len(own)]
        common = depth + int(differs.argmax()) if differs.any() else len(own)
        if common - depth < BLOCK:
            return depth
    return common


def _by_block(ids: Seq[np.ndarray], members: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Order by the tokens of one block, what each shares there with the one before, and whether it may share more."""
    block = np.zeros((len(members), BLOCK), dtype=">u4")
    for row, member in enumerate(members.tolist()):
        own = ids[member][depth : depth + BLOCK]
        block[row, : len(own)] = own + np.uint32(1)  # so that an end comes before every token
    order = np.argsort(block.view(f"V{4 * BLOCK}")[:, 0], kind="stable")
    block = block[order]
    differs = block[1:] != block[:-1]
    is_equal = ~differs.any(axis=1)
    ends = np.minimum((block != 0).sum(1)[1:], (block != 0).sum(1)[:-1])
    common = np.where(is_equal, ends, differs.argmax(axis=1))
    return order, np.append(0, common), np.append(False, is_equal & (ends == BLOCK))


def _by_whole(ids: Seq[np.ndarray], members: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
    """Order by all tokens from a depth on, and what each shares there with the one before."""
    keys = [np.asarray(ids[member][depth:]).astype(">u4").tobytes() for member in members.tolist()]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    common = [0, *(_common(keys[a], keys[b]) // 4 for a, b in pairwise(order))]
    return np.array(order, dtype=np.int64), np.array(common[: len(order)], dtype=np.int64)


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
