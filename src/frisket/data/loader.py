"""The order of a run: families, epochs, steps. A pure function of the data, the seed and the step size.

Never of ranks, workers or the arrangement, so padded, isolated and forest runs make the same updates from the same
samples, and a resumed run can recompute where it was.
"""

import hashlib
from collections.abc import Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

import numpy as np
from jaxtyping import Int64

from frisket.prefixes import sort_by_prefix

SHARED_TOKENS = 32  # what a family shares beyond the header above it
FILL = 0.98  # of step_tokens: the next family would usually not fit


@dataclass(frozen=True)
class Step:
    """The samples of one optimizer step.

    Attributes:
        epoch: 0-based.
        index: 0-based within the epoch.
        of: steps of the epoch.
        samples: global sample indices, family by family.
    """

    epoch: int
    index: int
    of: int
    samples: Int64[np.ndarray, "sample"]


@dataclass(frozen=True)
class Order:
    """What decides which samples make which step.

    Attributes:
        families: arrays of global sample indices; every sample is in exactly one.
        lengths: tokens of every sample, by global index.
        repeats: how often an epoch uses each sample; the fraction is drawn anew each epoch.
        step_tokens: flat tokens of a step.
        seed: of the shuffles.
    """

    families: tuple[Int64[np.ndarray, "sample"], ...]
    lengths: Int64[np.ndarray, "sample"]
    repeats: np.ndarray
    step_tokens: int
    seed: int
    _known: dict[int, list[Step]] = field(default_factory=dict, compare=False, repr=False)

    def epoch(self, number: int) -> list[Step]:
        """All steps of one epoch (0-based); the last one asked for is kept."""
        if number not in self._known:
            self._known.clear()
            self._known[number] = self._made(number)
        return self._known[number]

    def _made(self, number: int) -> list[Step]:
        rng = np.random.Generator(np.random.Philox(key=[self.seed, number]))
        families = [rng.permutation(family) for family in self.families]
        if not self._is_uniform:
            families = [self._drawn(family, rng) for family in families]
        shuffled = [families[i] for i in rng.permutation(len(families)) if len(families[i])]
        cut = _cut_into_steps(shuffled, self.lengths, self.step_tokens)
        return [Step(number, i, len(cut), samples) for i, samples in enumerate(cut)]

    def steps(self, after: tuple[int, int] | None = None) -> Iterator[Step]:
        """Steps without end, epoch after epoch; from the one after (epoch, index) where given."""
        epoch, index = (0, -1) if after is None else after
        while True:
            yield from self.epoch(epoch)[index + 1 :]
            epoch, index = epoch + 1, -1

    def count(self, epochs: float) -> int:
        """Steps in a number of epochs; a fraction of an epoch is rounded up to a whole step."""
        whole = int(epochs)
        steps = sum(len(self.epoch(number)) for number in range(whole))
        return steps + int(np.ceil((epochs - whole) * len(self.epoch(whole)))) if epochs > whole else steps

    @cached_property
    def _is_uniform(self) -> bool:
        return bool((self.repeats == 1).all())

    def _drawn(self, family: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        whole = np.floor(self.repeats[family])
        extra = rng.random(len(family)) < self.repeats[family] - whole
        return np.repeat(family, (whole + extra).astype(np.int64))


def make_order(
    ids: Seq[np.ndarray],
    samples: np.ndarray,
    sources: np.ndarray,
    weights: Seq[float],
    *,
    step_tokens: int,
    seed: int,
    keep_families: bool,
) -> Order:
    """Find the families of a data set and fix the order of its epochs.

    Args:
        ids: token ids of every sample, by global index.
        samples: the global indices that train.
        sources: source of every sample, by global index.
        weights: how often an epoch uses the samples of each source.
        keep_families: False makes every sample its own family.
    """
    lengths = np.array([len(tokens) for tokens in ids], dtype=np.int64)
    families: list[np.ndarray] = []
    for source in range(len(weights)):
        members = samples[sources[samples] == source]
        families += (
            find_families(ids, members, step_tokens)
            if keep_families
            else [members[i : i + 1] for i in range(len(members))]
        )
    repeats = np.asarray(weights, dtype=np.float64)[sources]
    return Order(tuple(families), lengths, repeats, step_tokens, seed)


def find_families(ids: Seq[np.ndarray], members: np.ndarray, step_tokens: int) -> list[np.ndarray]:
    """Samples of one source that share a long prefix, found on tokens.

    Walks the prefix tree from its root. A node that holds more than half of ``step_tokens`` is a header: descend. A
    family is the highest smaller node that shares at least 32 tokens more than the header above it. What is left stands
    alone.

    >>> shared, other = np.arange(40), np.arange(50, 60)
    >>> ids = [np.append(shared, 1), other, np.append(shared, 2)]
    >>> [family.tolist() for family in find_families(ids, np.arange(3), step_tokens=1000)]
    [[0, 2], [1]]
    """
    if not len(members):
        return []
    order, shared = sort_by_prefix([ids[i] for i in members])
    members = members[order]
    tokens = np.concatenate([[0], np.cumsum([len(ids[i]) for i in members])])
    families: list[np.ndarray] = []
    nodes = [(0, len(members), 0)]
    while nodes:
        low, high, header = nodes.pop()
        if high - low == 1:
            families.append(members[low:high])
            continue
        depth = int(shared[low + 1 : high].min())
        is_header = tokens[high] - tokens[low] > step_tokens / 2
        if not is_header and depth - header >= SHARED_TOKENS:
            families.append(np.sort(members[low:high]))
            continue
        cuts = [low, *(low + 1 + np.flatnonzero(shared[low + 1 : high] == depth)), high]
        below = depth if is_header else header
        nodes += [(int(a), int(b), below) for a, b in pairwise(cuts)]
    return sorted(families, key=lambda family: int(family[0]))


def sample_hash(sample_ids: Seq[str], so_far: str = "") -> str:
    """Hash of the samples taken, chained step by step; a checkpoint stores it, resume recomputes it."""
    return hashlib.sha256("\n".join([so_far, *sample_ids]).encode()).hexdigest()


def _cut_into_steps(families: list[np.ndarray], lengths: np.ndarray, step_tokens: int) -> list[np.ndarray]:
    budget = FILL * step_tokens
    steps: list[list[int]] = []
    used = np.inf
    for family in families:
        size = int(lengths[family].sum())
        parts = [family] if size <= budget else [family[i : i + 1] for i in range(len(family))]
        for part in parts:
            part_size = int(lengths[part].sum())
            if used + part_size > budget:
                steps.append([])
                used = 0
            steps[-1].extend(part)
            used += part_size
    return [np.array(step, dtype=np.int64) for step in steps]
