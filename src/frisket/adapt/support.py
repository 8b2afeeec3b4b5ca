"""Where the entries of a sparse addition are: the budget, the random start, the cycle, who goes and who comes."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from frisket.errors import ConfigError, UnsupportedError

Policy = Literal["linear", "cosine"]


@dataclass(frozen=True)
class Cycle:
    """When entries are replaced, and how many.

    Attributes:
        every: N, steps between two selections.
        accumulate: A, steps of gradients before one; below N.
        start: p0, the share replaced at first; 0: none, ever.
        policy: how it falls to 0 over the run.
    """

    every: int
    accumulate: int
    start: float
    policy: Policy

    def check(self) -> None:
        """Refuse a phase that does not fit.

        Raises:
            ConfigError: it is longer than a cycle.
        """
        if self.accumulate >= self.every:
            raise ConfigError(
                f"adapt.accumulate = {self.accumulate} steps do not fit between two selections, adapt.reselect_every = "
                f"{self.every} steps apart.\nUse adapt.accumulate={self.every - 1}"
            )

    def share(self, step: int, total: int, *, is_first: bool) -> float:
        """Which share of the entries is replaced after a step.

        >>> linear, cosine = Cycle(20, 5, 0.2, "linear"), Cycle(20, 5, 0.2, "cosine")
        >>> [linear.share(step, 100, is_first=step == 5) for step in (5, 50, 100)]
        [1.0, 0.1, 0.0]
        >>> [round(cosine.share(step, 100, is_first=step == 5), 4) for step in (5, 50, 100)]
        [0.1988, 0.1, 0.0]
        """
        if self.policy == "cosine":
            return self.start * (1 + math.cos(math.pi * step / total)) / 2
        return 1.0 if is_first else self.start * (1 - step / total)

    def selects(self, step: int, total: int) -> bool:
        """Whether entries are replaced after a step.

        >>> [step for step in range(101) if Cycle(20, 5, 0.2, "linear").selects(step, 85)]
        [5, 25, 45, 65]
        """
        return self.start > 0 and step < total and step % self.every == self.accumulate

    def too_long(self, total: int) -> str:
        """What is wrong with the cycle in a run of so few steps, and overrides that mend it; empty where nothing is.

        The first selection of the linear schedule replaces all entries, so what was learned until then is lost.

        >>> Cycle(20, 5, 0.2, "linear").too_long(11), Cycle(20, 5, 0.2, "cosine").too_long(6)
        ('', '')
        """
        if not self.start or (self.accumulate < total and (self.policy == "cosine" or 2 * self.accumulate <= total)):
            return ""
        told = f"the first entries are chosen after step {self.accumulate} of {total}"
        lost = f"{told}, which drops all that was learned until then" if self.accumulate < total else ""
        lost = lost or f"the run ends before entries are chosen (adapt.accumulate = {self.accumulate}): all stay random"
        if total < 2:
            return f"{lost}: adapt.reselect=0"
        steps = max(1, total // 8)
        return f"{lost}: adapt.accumulate={steps} adapt.reselect_every={max(steps + 1, total // 4)}"

    def is_open(self, step: int, total: int) -> bool:
        """Whether the step after this one belongs to a phase, which is to end with a selection.

        >>> [step + 1 for step in range(101) if Cycle(20, 5, 0.2, "linear").is_open(step, 60)]
        [1, 2, 3, 4, 5, 20, 21, 22, 23, 24, 25, 40, 41, 42, 43, 44, 45]
        """
        place = step % self.every
        begins_next = place == self.every - 1
        end = step - place + self.accumulate + (self.every if begins_next else 0)
        return (place < self.accumulate or begins_next) and self.selects(end, total)


def shares(budget: int, sizes: Mapping[str, int]) -> dict[str, int]:
    """Share entries out by size, rounded down.

    Raises:
        ConfigError: there are more than the layers hold, or so few that a layer gets none.
    """
    matched = sum(sizes.values())
    if budget > matched:
        raise ConfigError(
            f"{budget:,} entries are to move, and the matched layers have {matched:,}.\n"
            f"Use adapt.entries={max(matched // 10, 1)}"
        )
    shared = {name: budget * size // matched for name, size in sizes.items()}
    empty = [name for name, share in shared.items() if not share]
    if empty:
        raise ConfigError(
            f"{budget:,} entries over {len(sizes)} layers by size leave none to {empty[0]}.\n"
            f"Use adapt.entries={-(-matched // min(sizes.values()))}"
        )
    return shared


def refuse_quantised(layers: Mapping[str, nn.Module]) -> None:
    """Refuse weights to which nothing can be added.

    Raises:
        UnsupportedError: a layer holds codes.
    """
    codes = [name for name, layer in layers.items() if layer.get_parameter("weight").element_size() < 2]
    if codes:
        raise UnsupportedError(f"adapt.method = spiel needs plain weights: {codes[0]} is quantised.\nmodel.load=none")


def drawn(layer: nn.Module, count: int, rng: torch.Generator) -> Int[Tensor, "count"]:
    """``count`` of the weight's entries, each set of so many as likely as any other; ascending."""
    weight = layer.get_parameter("weight")
    size = weight.numel()
    kind = torch.int32 if size < 2**31 else torch.int64
    if weight.is_meta:
        return torch.empty(count, dtype=kind, device="meta")
    if 4 * count > size:
        return torch.randperm(size, generator=rng)[:count].sort().values.to(weight.device, kind)
    found = torch.empty(0, dtype=torch.int64)
    while len(found) < count:  # a permutation of a large matrix takes many times its memory
        more = torch.randint(size, (count - len(found),), generator=rng)
        found = torch.cat((found, more)).unique()
    return found.to(weight.device, kind)


def largest(scores: Float[Tensor, "n"], count: int) -> Int[Tensor, "count"]:
    """Indices of the largest scores, ascending; of equal ones the first.

    >>> largest(torch.tensor([1.0, 3.0, 1.0, 2.0, 1.0]), 3).tolist()
    [0, 1, 3]
    """
    if not count:
        return torch.empty(0, dtype=torch.int64, device=scores.device)
    scores = scores.nan_to_num(nan=torch.inf, posinf=torch.inf)  # a step that is not finite is refused later
    threshold = scores.topk(count, sorted=False).values.min()
    chosen = scores > threshold
    equal = (scores == threshold).nonzero()[:, 0]
    chosen[equal[: count - int(chosen.sum())]] = True
    return chosen.nonzero()[:, 0]


def smallest_first(values: Float[Tensor, "entry"], indices: Int[Tensor, "entry"]) -> Int[Tensor, "entry"]:
    """Places of values by magnitude; of equal ones the lower index first.

    >>> smallest_first(torch.tensor([0.0, -2.0, 0.0, 1.0]), torch.tensor([7, 1, 3, 2])).tolist()
    [2, 0, 3, 1]
    """
    order = indices.argsort()
    return order[values[order].abs().argsort(stable=True)]


def replaced(
    indices: Int[Tensor, "entry"],
    values: Float[Tensor, "entry"],
    candidates: Int[Tensor, "candidate"],
    scores: Float[Tensor, "candidate"],
    count: int,
) -> tuple[Int[Tensor, "new"], Int[Tensor, "new"]]:
    """Drop the ``count`` smallest values and let the best candidates take their places, as far as they reach.

    A candidate that is active and is not dropped does not count; one that is dropped may be chosen, and then stays.

    Args:
        indices: where the values are, unique, in any order.
        candidates: ascending.

    Returns:
        Places in ``values``, smallest first, and for each the place of its candidate in ``candidates``.

    Example:
        >>> i, c = torch.tensor([4, 0, 9]), torch.tensor([2, 4, 7, 9])
        >>> replaced(i, torch.tensor([0.1, 0.2, 5.0]), c, torch.tensor([1.0, 3.0, 2.0, 9.0]), 2)
        (tensor([1]), tensor([2]))
    """
    order = smallest_first(values, indices)
    dropped = order[:count]
    free = (~torch.isin(candidates, indices[order[count:]])).nonzero()[:, 0]
    chosen = free[largest(scores[free], min(count, len(free)))]
    new = chosen[~torch.isin(candidates[chosen], indices[dropped])]
    leaving = dropped[~torch.isin(indices[dropped], candidates[chosen])]
    return leaving[: len(new)], new
