"""What a prefix forest would save: counted on the very steps of the run, before anything is computed."""

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np

from frisket.attend.forest import plant
from frisket.data.dataset import Dataset
from frisket.data.loader import Order, Step
from frisket.prefixes import distinct_tokens

WORTH = 0.05  # share of the computed tokens that a forest must save to be chosen
TRIED_STEPS = 64  # steps looked at to choose; spread over the epoch


@dataclass(frozen=True)
class Sharing:
    """Tokens of some steps, counted.

    Attributes:
        flat_tokens: sum of the samples' lengths.
        forest_tokens: computed in the rows of a forest, padding not counted.
        step_tokens: distinct tokens of each step, summed: one forest a step, rows of any length.
    """

    flat_tokens: int
    forest_tokens: int
    step_tokens: int

    @property
    def saved(self) -> float:
        """Share of the flat tokens that a forest does not compute."""
        return 1 - self.forest_tokens / max(1, self.flat_tokens)

    @property
    def row_bound(self) -> float:
        """Flat over distinct tokens, were rows as long as steps."""
        return self.flat_tokens / self.step_tokens


def sharing_of(dataset: Dataset, steps: Seq[Step], row_tokens: int) -> Sharing:
    """Count what the samples of these steps share."""
    flat = forest = distinct = 0
    for step in steps:
        samples = [dataset[int(i)] for i in step.samples]
        flat += sum(map(len, samples))
        forest += sum(tree.size for tree in plant(samples, row_tokens))
        distinct += distinct_tokens([sample.input_ids for sample in samples])
    return Sharing(flat, forest, distinct)


def few_steps(order: Order) -> list[Step]:
    """Some steps of the first epoch, evenly spread: enough to choose an arrangement by."""
    steps = order.epoch(0)
    return steps[:: max(1, -(-len(steps) // TRIED_STEPS))]


def bound_of(dataset: Dataset, steps: Seq[Step]) -> float:
    """Flat over distinct tokens, were all samples of these steps in one forest."""
    used = np.concatenate([step.samples for step in steps])
    flat = int(dataset.lengths[used].sum())
    return flat / distinct_tokens([dataset[int(i)].input_ids for i in np.unique(used)])


def shared_by_source(dataset: Dataset, step: Step, row_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of a step that a forest computes, and those it does not compute again, by source.

    What several sources share counts as computed for the first sample that has it.
    """
    samples = [dataset[int(i)] for i in step.samples]
    computed, shared = np.zeros((2, len(dataset.stores)), dtype=np.int64)
    sources = dataset.source_of[step.samples]
    for tree in plant(samples, row_tokens):
        np.add.at(computed, sources[tree.samples], tree.lengths - tree.joint)
        np.add.at(shared, sources[tree.samples], tree.joint)
    return computed, shared
