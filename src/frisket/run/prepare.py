"""Recipe to tokens: everything of a run that needs no weights. Training, plan and view start here."""

from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np

from frisket.data.build import build
from frisket.data.chat import Template
from frisket.data.dataset import Dataset
from frisket.data.loader import Order, make_order
from frisket.errors import DataError
from frisket.hf.load import context_length, load_config
from frisket.hf.quantised import refuse_method
from frisket.recipe import Recipe
from frisket.run import adding, rates
from frisket.run.arranging import laying_of, room_for_samples
from frisket.run.sharing import shared_by_source
from frisket.run.teaching import Teacher, constant_text_of, say_unused, taught_ledgers
from frisket.supervise.boilerplate import Phrase
from frisket.supervise.loss import CROSS_ENTROPY, LossRule
from frisket.supervise.policies import Teaching, rule_names, token_weights
from frisket.supervise.predictions import Weighted
from frisket.train.step import Laying
from frisket.types import Ledger, Sequence
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
        context: longest sample of the model, beside its virtual tokens; or None.
        settled: what `auto` became: the size of a step and the peak rate; ``recipe`` holds the same numbers.
        added: tokens that the base does not have.
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
    settled: rates.Settled
    added: adding.Added

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a plain text, without special tokens."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

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
            teaching.phrases or constant_text_of(self.recipe, source, self._samples_of(source), self.tokenizer)
            for source, teaching in enumerate(self.teaching)
        )

    def _samples_of(self, source: int) -> Iterator[Sequence]:
        return self.dataset.walk(np.flatnonzero(self.dataset.source_of == source))

    def ledger_of_steps(self, steps: int) -> tuple[Ledger, ...]:
        """The ledgers with the tokens of the first ``steps`` steps; only a forest shares any."""
        flat, computed, shared = np.zeros((3, len(self.ledgers)), dtype=np.int64)
        for step in islice(self.order.steps(), steps):
            lengths, sources = self.dataset.lengths[step.samples], self.dataset.source_of[step.samples]
            np.add.at(flat, sources, lengths)
            if self.laying.arrangement == "forest":
                own, others = shared_by_source(self.dataset, step, self.laying.row_tokens)
                computed, shared = computed + own, shared + others
            else:
                computed += np.bincount(sources, lengths, len(self.ledgers)).astype(np.int64)
        return tuple(
            replace(ledger, flat=int(flat[i]), computed=int(computed[i]), shared=int(shared[i]))
            for i, ledger in enumerate(self.ledgers)
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
    refuse_method(recipe.model.load, config, recipe.adapt.method, recipe.adapt.about.quantised)
    tokenizer, template, added = adding.tokenizer_of(recipe, tokenizer, config, watcher)
    teacher = Teacher(recipe, tokenizer)
    say_unused(recipe, watcher)
    context = room_for_samples(context_length(config), recipe.adapt.virtual_tokens)
    dataset = build(
        recipe.data,
        template,
        tokenizer,
        context=context,
        seed=recipe.train.seed,
        hold_out_default=_wants_hold_out(recipe) and not overfit,
        check_of=teacher.check_of,
        watcher=watcher,
        records=records,
    )
    _say_data(recipe, dataset, watcher)
    train = dataset.train if overfit is None else dataset.train[:overfit]
    if not len(train):
        raise DataError("no sample is left to train on.\nLook at what was read: frisket view")
    adding.say_unused(dataset, train, tokenizer, added.ids, watcher)
    order, step = _order(recipe, dataset, train, in_one_step=overfit is not None)
    teaching = tuple(teacher.teaching)
    ledgers = taught_ledgers(teaching, dataset, train)
    steps = (recipe.train.max_steps or OVERFIT_STEPS) if overfit else count_steps(recipe, order)
    auto = rates.Settled(step, rates.peak_rate(recipe, config.get_text_config().hidden_size, steps))
    recipe = auto.applied(recipe)
    laying, why = laying_of(recipe, config, dataset, order, _loss(recipe, watcher, plain=overfit is not None))
    dataset.release()
    return Prepared(
        recipe, config, tokenizer, template, dataset, order, laying, why, steps, teaching, ledgers, context, auto, added
    )


def _say_data(recipe: Recipe, dataset: Dataset, watcher: Watcher) -> None:
    for name, text in zip((source.path for source in recipe.data), dataset.formats, strict=True):
        watcher.say(f"data       {name}: read as {text}")
    for note in dataset.notes:
        watcher.warn(note)


def _loss(recipe: Recipe, watcher: Watcher, *, plain: bool) -> LossRule:
    """The loss of a prediction; ``--overfit`` judges by -log p, since the others hardly show what was learned."""
    asked = LossRule(recipe.supervise.loss, recipe.supervise.label_smoothing)
    if plain and asked != CROSS_ENTROPY:
        watcher.warn(
            "--overfit trains with plain cross-entropy: the loss of the recipe would not show what was learned"
        )
    return CROSS_ENTROPY if plain else asked


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


def _order(recipe: Recipe, dataset: Dataset, train: np.ndarray, *, in_one_step: bool) -> tuple[Order, rates.StepSize]:
    """The order of the run, and the size of its steps."""
    weights = [source.weight for source in recipe.data]
    settings = recipe.train
    lengths = dataset.lengths[train]
    epoch_tokens = float((lengths * np.array(weights)[dataset.source_of[train]]).sum())
    step = rates.whole_step(int(lengths.sum())) if in_one_step else rates.step_size(recipe, epoch_tokens)
    order = make_order(
        dataset.token_ids,
        dataset.lengths,
        train,
        dataset.source_of,
        weights,
        step_tokens=2 * int(lengths.sum()) if in_one_step else step.tokens,
        seed=settings.seed,
        keep_families=settings.order == "families",
    )
    return order, step
