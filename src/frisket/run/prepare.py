"""Recipe to tokens: everything of a run that needs no weights. Training, plan and view start here."""

from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import Any, cast

import numpy as np

from frisket.attend.pack import Arrangement
from frisket.data.build import build
from frisket.data.chat import Template, load_template
from frisket.data.dataset import Dataset
from frisket.data.loader import Order, make_order
from frisket.errors import ConfigError, DataError, UnsupportedError
from frisket.hf.load import context_length, has_router_loss, layer_counts, load_config, load_tokenizer
from frisket.recipe import Recipe
from frisket.run.sharing import WORTH, computed_by_source, few_steps, sharing_of
from frisket.supervise import policies
from frisket.supervise.boilerplate import Phrase, find_phrases, phrases_of
from frisket.supervise.loss import LossRule
from frisket.supervise.policies import Teaching, rule_names, token_weights
from frisket.supervise.predictions import Weighted
from frisket.train.step import Laying
from frisket.types import Ledger, Provenance, Sequence, total
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
        why_so: why this arrangement, in words.
        total_steps: optimizer steps of the run.
        teaching: what each source teaches.
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
    why_so: str
    total_steps: int
    teaching: tuple[Teaching, ...]
    ledgers: tuple[Ledger, ...]
    context: int | None

    def weighted(self, index: int) -> Weighted:
        """A sample and its weights as targets."""
        sequence = self.dataset[index]
        return sequence, token_weights(sequence, self.teaching[sequence.source])

    def explained(self, index: int, policy: str | None = None) -> tuple[Sequence, np.ndarray, list[tuple[str, ...]]]:
        """A sample, its weights as targets, and for each token the rules that gave its weight, in order.

        Args:
            policy: another policy than the recipe's; all other settings are left alone.
        """
        sequence = self.dataset[index]
        teaching = self.teaching[sequence.source]
        if policy is not None:
            teaching = teaching._replace(settings=teaching.settings.model_copy(update={"policy": policy}))
        if policy == "boilerplate":
            teaching = teaching._replace(phrases=self._constant_text[sequence.source])
        return sequence, token_weights(sequence, teaching), rule_names(sequence, teaching)

    @cached_property
    def _constant_text(self) -> tuple[tuple[Phrase, ...], ...]:
        """The constant text of each source, also where its own policy does not ask for it."""
        return tuple(
            teaching.phrases or _phrases(teaching, source, self.dataset, self.tokenizer)
            for source, teaching in enumerate(self.teaching)
        )

    def ledger_of_steps(self, steps: int) -> tuple[Ledger, ...]:
        """The ledgers with the tokens of the first ``steps`` steps; only a forest shares any."""
        flat, computed = np.zeros((2, len(self.ledgers)), dtype=np.int64)
        for step in islice(self.order.steps(), steps):
            np.add.at(flat, self.dataset.source_of[step.samples], self.dataset.lengths[step.samples])
            if self.laying.arrangement == "forest":
                computed += computed_by_source(self.dataset, step, self.laying.row_tokens)
        if self.laying.arrangement != "forest":
            computed = flat
        return tuple(
            replace(ledger, flat=int(all_), computed=int(own), shared=int(all_ - own))
            for ledger, all_, own in zip(self.ledgers, flat, computed, strict=True)
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
    told = _told(recipe)
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
        problem_of=lambda sequence: policies.problem_of(sequence, told[sequence.source], recipe.supervise.normaliser),
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
    teaching = _teaching(told, dataset, tokenizer)
    ledgers = _ledgers(teaching, dataset, train)
    _check_balance(ledgers)
    steps = (recipe.train.max_steps or OVERFIT_STEPS) if overfit else count_steps(recipe, order)
    laying, why = _laying(recipe, config, dataset, order)
    return Prepared(recipe, config, tokenizer, template, dataset, order, laying, why, steps, teaching, ledgers, context)


def _laying(recipe: Recipe, config: Any, dataset: Dataset, order: Order) -> tuple[Laying, str]:
    """Arrangement and backend, and why this arrangement.

    Raises:
        UnsupportedError: rows were asked for that this model cannot have.
    """
    attend = recipe.attend
    if attend.backend in ("varlen", "flex"):
        raise UnsupportedError(
            f"attend.backend = '{attend.backend}' calls kernels of CUDA, and this version was written without a "
            "device to run them on.\n"
            "Use attend.backend=auto: grouped, which runs on any device."
        )
    arrangement, why = _arrangement(attend.arrangement, attend.row_tokens, config, dataset, order)
    backend = "grouped" if attend.backend == "auto" else attend.backend
    loss = LossRule(recipe.supervise.loss, recipe.supervise.label_smoothing)
    return Laying(arrangement, attend.row_tokens, attend.micro_rows, backend, recipe.supervise.chunk_tokens, loss), why


def _arrangement(asked: str, row_tokens: int, config: Any, dataset: Dataset, order: Order) -> tuple[Arrangement, str]:
    recurrent = layer_counts(config).recurrent
    if recurrent:
        if asked not in ("auto", "padded"):
            raise UnsupportedError(
                f"attend.arrangement = '{asked}': the model has {recurrent} recurrent layers, which carry state from "
                "sample to sample of a row.\n"
                "Use attend.arrangement=auto: one sample a row, samples of one length together."
            )
        return "alone", f"the model has {recurrent} recurrent layers, which carry state from token to token"
    if asked == "forest" and has_router_loss(config):
        raise UnsupportedError(
            "attend.arrangement = 'forest': the model's configuration asks for a router loss (output_router_logits), "
            "whose means over tokens change where tokens are shared.\n"
            "Use attend.arrangement=isolated."
        )
    if asked == "auto" and not has_router_loss(config):
        saved = sharing_of(dataset, few_steps(order), row_tokens).saved
        if saved >= WORTH:
            return "forest", f"samples of a step share {100 * saved:.0f} % of their tokens: computed once"
        return "isolated", f"a forest would save {100 * saved:.1f} %, less than {100 * WORTH:.0f} %"
    if asked == "auto":
        return "isolated", "the model's router loss takes means over tokens"
    return cast(Arrangement, asked), "as the recipe says"


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
    weights = [source.weight for source in recipe.data]
    settings = recipe.train
    return make_order(
        dataset.token_ids,
        train,
        dataset.source_of,
        weights,
        step_tokens=2 * int(dataset.lengths[train].sum()) if in_one_step else settings.step_tokens,
        seed=settings.seed,
        keep_families=settings.order == "families",
    )


def _told(recipe: Recipe) -> tuple[Teaching, ...]:
    """What the recipe says that each source teaches, before its constant text is known.

    Raises:
        ConfigError: settings that contradict one another.
    """
    policies.check(recipe.supervise)
    if recipe.supervise.loss == "dft" and recipe.supervise.label_smoothing:
        raise ConfigError(
            "supervise.loss = 'dft' has no form with label smoothing.\nUse one of them: supervise.label_smoothing=0"
        )
    for number, source in enumerate(recipe.data):
        if source.supervise is not None:
            policies.check(source.supervise, f"data.{number}.supervise")
    return tuple(Teaching(source.supervise or recipe.supervise) for source in recipe.data)


def _teaching(told: Seq[Teaching], dataset: Dataset, tokenizer: Any) -> tuple[Teaching, ...]:
    """The same with the constant text of the sources that leave it out."""
    return tuple(
        teaching._replace(phrases=_phrases(teaching, index, dataset, tokenizer))
        if teaching.settings.policy == "boilerplate"
        else teaching
        for index, teaching in enumerate(told)
    )


def _phrases(teaching: Teaching, source: int, dataset: Dataset, tokenizer: Any) -> tuple[Phrase, ...]:
    samples = (dataset[int(index)] for index in np.flatnonzero(dataset.source_of == source))
    texts = teaching.settings.boilerplate
    return find_phrases(samples) if texts == "auto" else phrases_of(texts, samples, tokenizer.decode)


def _ledgers(teaching: Seq[Teaching], dataset: Dataset, train: np.ndarray) -> tuple[Ledger, ...]:
    """Add to each source's ledger what its training samples teach, by provenance."""
    kinds = len(Provenance)
    taught, untaught = np.zeros((2, len(dataset.ledgers), kinds), dtype=np.int64)
    for sequence in dataset.walk(train):
        hit = token_weights(sequence, teaching[sequence.source]) != 0
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
