"""Prefix forests: what several samples begin with lies in their row once.

Samples in the order of their prefixes are the leaves of a tree, depth first. All that is needed of the tree is how many
tokens each leaf shares with the one before it (``joint``); segments are made of that at the very end.

Source: the serialisation is that of Tree Training (arXiv 2511.00413) and Prefix Grouper (arXiv 2506.05433, section 3),
for any depth; of preference pairs it is the sharing of Wang and Hegde 2024 (arXiv 2410.20305). Differs: trees are found
on tokens, a tree larger than a row is cut where least is computed twice, and weights are summed in
``supervise.predictions``.
"""

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Int64

from frisket.prefixes import sort_by_prefix
from frisket.types import ROOT, Sequence

BRANCH_TOKENS = 8  # a shorter shared piece costs more as a segment of its own than computing it twice


@dataclass(frozen=True)
class Tree:
    """Samples that lie together, in the order of their prefixes.

    Attributes:
        samples: their indices; depth first.
        lengths: tokens of each.
        joint: tokens that each shares with the one before it in this tree; 0 for the first.
    """

    samples: Int64[np.ndarray, "sample"]
    lengths: Int64[np.ndarray, "sample"]
    joint: Int64[np.ndarray, "sample"]

    @property
    def size(self) -> int:
        """Tokens that are computed."""
        return int((self.lengths - self.joint).sum())


@dataclass(frozen=True)
class Node:
    """A segment of a tree: tokens ``start`` to ``stop`` of a sample, and of all that share them.

    Attributes:
        start: depth of its first token.
        stop: depth after its last.
        parent: index of the parent node; -1 for a root.
        sample: a sample that holds these tokens.
        ends: the samples that end here.
    """

    start: int
    stop: int
    parent: int
    sample: int
    ends: tuple[int, ...]


def plant(samples: Seq[Sequence], row_tokens: int, shortest: int = BRANCH_TOKENS) -> list[Tree]:
    """Find the trees of a step's samples, none larger than a row unless it is one path.

    Args:
        samples: in any order.
        row_tokens: largest size of a tree; a larger one is cut where least is computed twice.
        shortest: shared pieces of fewer tokens are not shared.
    """
    order, shared = sort_by_prefix([sample.input_ids for sample in samples])
    lengths = np.array([len(samples[i]) for i in order], dtype=np.int64)
    joint = _worth_sharing(shared, lengths, shortest)
    trees = []
    starts = np.flatnonzero(joint == 0)
    for low, high in zip(starts, [*starts[1:], len(order)], strict=True):
        trees += _cut(Tree(order[low:high], lengths[low:high], joint[low:high]), row_tokens)
    return trees


def nodes_of(tree: Tree) -> list[Node]:
    """Segments of a tree, depth first, a parent before its children.

    Two samples that share 3 tokens, one of them no longer than that:

    >>> for node in nodes_of(Tree(np.array([7, 4]), np.array([3, 5]), np.array([0, 3]))):
    ...     print(node)
    Node(start=0, stop=3, parent=-1, sample=7, ends=(7,))
    Node(start=3, stop=5, parent=0, sample=4, ends=(4,))
    """
    nodes: list[Node] = []
    parts = [(0, len(tree.samples), 0, ROOT)]
    while parts:
        low, high, top, parent = parts.pop()
        depth = int(tree.joint[low + 1 : high].min()) if high - low > 1 else int(tree.lengths[low])
        if depth > top:
            ends = tuple(int(s) for s in tree.samples[low:high][tree.lengths[low:high] == depth])
            nodes.append(Node(top, depth, parent, int(tree.samples[low]), ends))
            parent = len(nodes) - 1
        low += int((tree.lengths[low:high] == depth).sum())  # those that end here come first
        cuts = [low, *(low + 1 + np.flatnonzero(tree.joint[low + 1 : high] == depth)), high]
        parts += [
            (int(a), int(b), depth, parent)
            for a, b in zip(reversed(cuts[:-1]), reversed(cuts[1:]), strict=True)
            if b > a
        ]
    return nodes


def _worth_sharing(shared: np.ndarray, lengths: np.ndarray, shortest: int) -> Int64[np.ndarray, "sample"]:
    """What neighbours share, without branches that would be shorter than ``shortest`` tokens.

    >>> _worth_sharing(np.array([0, 9, 10, 9]), np.array([12, 12, 12, 12]), shortest=4).tolist()
    [0, 9, 9, 9]
    """
    joint = np.zeros_like(shared)
    parts = [(0, len(lengths), 0)]
    while parts:
        low, high, top = parts.pop()
        if high - low < 2:
            continue
        inner = shared[low + 1 : high]
        depth = int(inner.min())
        splits = low + 1 + np.flatnonzero(inner == depth)
        below = depth if depth - top >= shortest else top
        joint[splits] = below
        cuts = [low, *splits, high]
        parts += [(int(a), int(b), below) for a, b in pairwise(cuts) if b - a > 1]
    return joint


def _cut(tree: Tree, row_tokens: int) -> list[Tree]:
    """Cut a tree into pieces of at most ``row_tokens``, so that the shared tokens computed again are fewest.

    Leaves stay in order, so a piece is a range of them, and a cut costs what the leaf after it shared: the cheapest
    cuts are a shortest path over the leaves, with the number of pieces breaking ties.
    """
    if tree.size <= row_tokens or len(tree.samples) == 1:
        return [tree]
    own = np.cumsum(tree.lengths - tree.joint)  # tokens up to and with each leaf
    before = own - (tree.lengths - tree.joint)
    count = len(own)
    cost = np.concatenate([[0.0], np.full(count, np.inf)])  # of the leaves before each place
    came = np.zeros(count + 1, dtype=np.int64)
    again = tree.joint + 1e-6  # a cut as such costs a little
    again[0] = 0
    low = 0
    for stop in range(1, count + 1):
        # A piece holds its first sample whole and the others' own tokens. One path is not cut: it needs its row anyway.
        most = max(row_tokens, tree.lengths[stop - 1])
        while low < stop - 1 and own[stop - 1] - before[low] + tree.joint[low] > most:
            low += 1
        options = cost[low:stop] + again[low:stop]
        best = int(np.argmin(options))
        cost[stop], came[stop] = options[best], low + best
    pieces, stop = [], count
    while stop:
        start = int(came[stop])
        joint = tree.joint[start:stop].copy()
        joint[0] = 0
        pieces.append(Tree(tree.samples[start:stop], tree.lengths[start:stop], joint))
        stop = start
    return pieces[::-1]
