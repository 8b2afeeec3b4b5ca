"""The order of a run: families, epochs, steps. A pure function of the data, the seed and the step size.

Never of ranks, workers or the arrangement, so padded, isolated and forest runs make the same updates from the same
samples, and a resumed run can recompute where it was.
"""

import hashlib
from collections.abc import Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from jaxtyping import Int64

from frisket.data.dataset import Made
from frisket.data.ragged import Ragged
from frisket.prefixes import sort_by_prefix

SHARED_TOKENS = 32  # what a family shares beyond the header above it
FILL = 0.98  # of step_tokens: the next family would usually not fit


@dataclass(frozen=True, slots=True)
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
        families: global sample indices; every sample is in exactly one.
        lengths: tokens of every sample, by global index.
        repeats: how often an epoch uses each sample; the fraction is drawn anew each epoch.
        step_tokens: flat tokens of a step.
        seed: of the shuffles.
    """

    families: Ragged
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
        families = _shuffled_within(self.families, rng)
        if not self._is_uniform:
            families = self._drawn(families, rng)
        order = rng.permutation(len(families))
        shuffled = families.taken(order[families.sizes[order] > 0])
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

    def _drawn(self, families: Ragged, rng: np.random.Generator) -> Ragged:
        repeats = self.repeats[families.flat]
        whole = np.floor(repeats)
        times = (whole + (rng.random(len(repeats)) < repeats - whole)).astype(np.int64)
        of_each = np.concatenate([[0], np.cumsum(times)])[families.starts]
        return Ragged(np.repeat(families.flat, times), of_each)


def make_order(
    ids: Seq[np.ndarray],
    lengths: np.ndarray,
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
        lengths: tokens of every sample.
        samples: the global indices that train.
        sources: source of every sample, by global index.
        weights: how often an epoch uses the samples of each source.
        keep_families: False makes every sample its own family.
    """
    of_source = [samples[sources[samples] == source] for source in range(len(weights))]
    families = Ragged.joined(
        find_families(ids, lengths, members, step_tokens) if keep_families else _alone(members) for members in of_source
    )
    repeats = np.asarray(weights, dtype=np.float64)[sources]
    return Order(families, lengths, repeats, step_tokens, seed)


def _alone(members: np.ndarray) -> Ragged:
    return Ragged.of(members, np.ones(len(members), dtype=np.int64))


def find_families(ids: Seq[np.ndarray], lengths: np.ndarray, members: np.ndarray, step_tokens: int) -> Ragged:
    """Samples of one source that share a long prefix, found on tokens.

    Walks the prefix tree from its root. A node that holds more than half of ``step_tokens`` is a header: descend. A
    family is the highest smaller node that shares at least 32 tokens more than the header above it. What is left stands
    alone.

    >>> shared, other = np.arange(40), np.arange(50, 60)
    >>> ids = [np.append(shared, 1), other, np.append(shared, 2)]
    >>> [family.tolist() for family in find_families(ids, np.array([41, 10, 41]), np.arange(3), step_tokens=1000)]
    [[0, 2], [1]]
    """
    order, shared = sort_by_prefix(Made(len(members), lambda i: ids[members[i]]))
    members = members[order]
    tokens = np.concatenate([[0], np.cumsum(lengths[members])])
    alone, families = [members[:0]], []
    nodes = [(0, len(members), 0)] if len(members) > 1 else []
    if len(members) == 1:
        alone.append(members)
    while nodes:
        low, high, header = nodes.pop()
        depth = int(shared[low + 1 : high].min())
        is_header = tokens[high] - tokens[low] > step_tokens / 2
        if not is_header and depth - header >= SHARED_TOKENS:
            families.append(np.sort(members[low:high]))
            continue
        cuts = np.concatenate([[low], low + 1 + np.flatnonzero(shared[low + 1 : high] == depth), [high]])
        below = depth if is_header else header
        is_alone = np.diff(cuts) == 1
        alone.append(members[cuts[:-1][is_alone]])
        nodes += [(int(a), int(b), below) for a, b in zip(cuts[:-1][~is_alone], cuts[1:][~is_alone], strict=True)]
    every = Ragged.joined(
        [_alone(np.concatenate(alone)), *(Ragged.of(family, np.array([len(family)])) for family in families)]
    )
    return every.taken(np.argsort(every.flat[every.starts[:-1]]))


def sample_hash(sample_ids: Seq[str], so_far: str = "") -> str:
    """Hash of the samples taken, chained step by step; a checkpoint stores it, resume recomputes it."""
    return hashlib.sha256("\n".join([so_far, *sample_ids]).encode()).hexdigest()


def _shuffled_within(families: Ragged, rng: np.random.Generator) -> Ragged:
    """Each family's members in a random order; one alone draws nothing."""
    flat = families.flat.copy()
    for i in np.flatnonzero(families.sizes > 1):
        own = slice(families.starts[i], families.starts[i + 1])
        flat[own] = rng.permutation(flat[own])
    return Ragged(flat, families.starts)


def _cut_into_steps(families: Ragged, lengths: np.ndarray, step_tokens: int) -> list[np.ndarray]:
    """Families in order, step after step; one that is larger than a step sample by sample."""
    budget = FILL * step_tokens
    is_whole = np.repeat(families.sums(lengths) <= budget, families.sizes)
    is_start = np.zeros(len(families.flat), dtype=bool)
    is_start[families.starts[:-1]] = True
    starts = np.flatnonzero(is_start | ~is_whole)
    parts = Ragged(families.flat, np.append(starts, len(families.flat)))
    cuts, used = [], 0
    for start, size in zip(starts.tolist(), parts.sums(lengths).tolist(), strict=True):
        if used + size > budget and start:
            cuts.append(start)
            used = 0
        used += size
    return np.split(families.flat, cuts) if len(families.flat) else []
