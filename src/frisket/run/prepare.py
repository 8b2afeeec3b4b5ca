"""Recipe to tokens: everything of a run that needs no weights. Training, plan and view start here."""

from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from frisket.data.build import build
from frisket.data.chat import Template, load_template
from frisket.data.dataset import Dataset
from frisket.data.loader import Order, make_order
from frisket.errors import ConfigError, DataError, UnsupportedError
from frisket.hf.load import context_length, layer_counts, load_config, load_tokenizer
from frisket.recipe import Recipe
from frisket.supervise.policies import problem_of, token_weights
from frisket.supervise.predictions import Weighted
from frisket.train.step import Laying
from frisket.types import Ledger, Provenance, total
from frisket.watch import Watcher

Records = Seq[Iterable[Mapping] | None]
OVERFIT_STEPS = 300


@dataclass(frozen=True)
class Prepared:
    """A run before any weight is loaded.

    Attributes:
        dataset: all samples; which of them train and which are held out.
        order: families, epochs, steps.
        laying: arrangement and backend.
        total_steps: optimizer steps of the run.
        ledgers: one a source, complete but for the planned steps.
        context: longest sample of the model, or None.
    """

    recipe: Recipe
    config: Any
    tokenizer: Any
    template: Template
    dataset: Dataset
    order: Order
    laying: Laying
    total_steps: int
    ledgers: tuple[Ledger, ...]
    context: int | None

    def weighted(self, index: int) -> Weighted:
        """A sample and its weights as targets."""
        sequence = self.dataset[index]
        return sequence, token_weights(sequence, self.recipe.supervise)

    def ledger_of_steps(self, steps: int) -> tuple[Ledger, ...]:
        """The ledgers with the tokens of the first ``steps`` steps; isolated and padded rows share nothing."""
        flat = np.zeros(len(self.ledgers), dtype=np.int64)
        for number, step in enumerate(self.order.steps()):
            if number >= steps:
                break
            np.add.at(flat, self.dataset.source_of[step.samples], self.dataset.lengths[step.samples])
        return tuple(
            replace(ledger, flat=int(n), computed=int(n)) for ledger, n in zip(self.ledgers, flat, strict=True)
        )


def prepare(
    recipe: Recipe,
    watcher: Watcher,
    *,
    tokenizer: Any = None,
    config: Any = None,
    records: Records | None = None,
    overfit: int | None = None,
) -> Prepared:
    """Read and tokenise the data and fix the order of the run.

    Args:
        tokenizer: instead of the recipe's.
        config: instead of the recipe's model's.
        records: in-memory records, one iterable for each source, instead of files.
        overfit: use only so many samples.

    Raises:
        ConfigError: nothing to train on.
        DataError: samples that cannot be used, gathered.
    """
    config = config or load_config(recipe.model)
    tokenizer = tokenizer or load_tokenizer(recipe.model)
    template = load_template(recipe.model.template, tokenizer)
    watcher.say(f"template   {template.name}")
    context = context_length(config)
    dataset = build(
        recipe.data,
        template,
        tokenizer,
        context=context,
        seed=recipe.train.seed,
        hold_out_default=_wants_hold_out(recipe) and not overfit,
        problem_of=partial(problem_of, settings=recipe.supervise),
        watcher=watcher,
        records=records,
    )
    for name, text in zip((source.path for source in recipe.data), dataset.formats, strict=True):
        watcher.say(f"data       {name}: {text}")
    for note in dataset.notes:
        watcher.warn(note)
    train = dataset.train if overfit is None else dataset.train[:overfit]
    if not len(train):
        raise DataError("no sample is left to train on.\nLook at what was read: frisket view")
    order = _order(recipe, dataset, train, in_one_step=overfit is not None)
    ledgers = _ledgers(recipe, dataset, train)
    _check_balance(ledgers)
    steps = (recipe.train.max_steps or OVERFIT_STEPS) if overfit else count_steps(recipe, order)
    return Prepared(
        recipe, config, tokenizer, template, dataset, order, laying_of(recipe, config), steps, ledgers, context
    )


def laying_of(recipe: Recipe, config: Any) -> Laying:
    """Arrangement and backend; a model with recurrent layers gets one sample a row.

    Raises:
        UnsupportedError: rows of several samples were asked for and the model cannot have them.
    """
    attend = recipe.attend
    arrangement = "isolated" if attend.arrangement == "auto" else attend.arrangement
    recurrent = layer_counts(config).recurrent
    if recurrent:
        if attend.arrangement == "isolated":
            raise UnsupportedError(
                f"attend.arrangement = 'isolated': the model has {recurrent} recurrent layers, which carry state from "
                "sample to sample of a row.\n"
                "Use attend.arrangement=auto: one sample a row."
            )
        arrangement = "alone"
    backend = "grouped" if attend.backend == "auto" else attend.backend
    return Laying(arrangement, attend.row_tokens, attend.micro_rows, backend, recipe.supervise.chunk_tokens)


def count_steps(recipe: Recipe, order: Order) -> int:
    """Steps of the run: ``max_steps`` and ``epochs``, whichever ends first; neither: one epoch."""
    train = recipe.train
    if train.epochs is None and train.max_steps is not None:
        return train.max_steps
    steps = order.count(1.0 if train.epochs is None else train.epochs)
    return steps if train.max_steps is None else min(steps, train.max_steps)


def _wants_hold_out(recipe: Recipe) -> bool:
    if recipe.evaluate is None:
        return False
    if recipe.evaluate.learning is None:
        return any(source.path != "bundled" for source in recipe.data)
    return any(entry.path is None for entry in recipe.evaluate.learning)


def _order(recipe: Recipe, dataset: Dataset, train: np.ndarray, *, in_one_step: bool) -> Order:
    ids = [np.asarray(sequence.input_ids) for sequence in dataset]
    weights = [source.weight for source in recipe.data]
    settings = recipe.train
    return make_order(
        ids,
        train,
        dataset.source_of,
        weights,
        step_tokens=2 * int(dataset.lengths[train].sum()) if in_one_step else settings.step_tokens,
        seed=settings.seed,
        keep_families=settings.order == "families",
    )


def _ledgers(recipe: Recipe, dataset: Dataset, train: np.ndarray) -> tuple[Ledger, ...]:
    """Add to each source's ledger what its training samples teach, by provenance."""
    kinds = len(Provenance)
    taught, untaught = np.zeros((2, len(dataset.ledgers), kinds), dtype=np.int64)
    for index in train:
        sequence = dataset[int(index)]
        hit = token_weights(sequence, recipe.supervise) != 0
        taught[sequence.source] += np.bincount(sequence.roles[hit], minlength=kinds)
        untaught[sequence.source] += np.bincount(sequence.roles[~hit], minlength=kinds)
    left = _unused(dataset, train)
    return tuple(
        replace(ledger, taught=_named(taught[i]), untaught=_named(untaught[i]), read=ledger.read - left[i])
        for i, ledger in enumerate(dataset.ledgers)
    )


def _unused(dataset: Dataset, train: np.ndarray) -> list[int]:
    """Tokens of training samples that ``--overfit`` leaves aside, by source."""
    aside = np.setdiff1d(dataset.train, train)
    return [int(dataset.lengths[aside[dataset.source_of[aside] == i]].sum()) for i in range(len(dataset.ledgers))]


def _named(counts: np.ndarray) -> dict[str, int]:
    return {Provenance(kind).name.lower(): int(n) for kind, n in enumerate(counts) if n}


def _check_balance(ledgers: Seq[Ledger]) -> None:
    wrong = total(ledgers).imbalances()
    if wrong:
        raise ConfigError(
            f"the ledger does not balance: {'; '.join(wrong)}. This is a bug of frisket; please report it."
        )
