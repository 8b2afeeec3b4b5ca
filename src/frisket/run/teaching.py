"""What each source teaches: settings, constant text, the check of every sample, and the ledger of what was taught."""

from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Seq
from dataclasses import replace
from typing import Any

import numpy as np

from frisket.data.build import ProblemOf
from frisket.data.dataset import Dataset
from frisket.errors import ConfigError, UnsupportedError
from frisket.recipe import Recipe
from frisket.supervise import policies
from frisket.supervise.boilerplate import Phrase, find_phrases, phrases_of
from frisket.supervise.policies import Teaching, token_weights
from frisket.supervise.settings import TeachSettings
from frisket.types import Ledger, Provenance, Sequence
from frisket.watch import Watcher

_SEES_THE_END = ("completion", "last-turn")


class Teacher:
    """Makes the teaching of each source while the data set is built.

    Attributes:
        teaching: one a source; complete once its data has been checked.
    """

    def __init__(self, recipe: Recipe, tokenizer: Any) -> None:
        """Read the recipe.

        Raises:
            ConfigError: settings that contradict one another.
            UnsupportedError: a policy that needs the end of a conversation, where conversations are cut.
        """
        self._recipe, self._tokenizer = recipe, tokenizer
        _check(recipe)
        self.teaching = [Teaching(source.supervise or recipe.supervise) for source in recipe.data]

    def check_of(self, source: int, sequences: Iterator[Sequence]) -> ProblemOf:
        """What is wrong with a sample of a source.

        Args:
            sequences: all of the source; only read where its constant text is to be found.

        Raises:
            ConfigError: a text of `boilerplate` that no prompt has.
        """
        if self.teaching[source].settings.policy == "boilerplate":
            found = constant_text_of(self._recipe, source, sequences, self._tokenizer)
            self.teaching[source] = self.teaching[source]._replace(phrases=found)
        teaching, normaliser = self.teaching[source], self._recipe.supervise.normaliser
        return lambda sequence: policies.problem_of(sequence, teaching, normaliser)


def place_of(recipe: Recipe, source: int) -> str:
    """The section of the recipe that says what a source teaches."""
    return "supervise" if recipe.data[source].supervise is None else f"data.{source}.supervise"


def constant_text_of(recipe: Recipe, source: int, sequences: Iterable[Sequence], tokenizer: Any) -> tuple[Phrase, ...]:
    """The constant text of a source: what the recipe names, or what is found."""
    texts = (recipe.data[source].supervise or recipe.supervise).boilerplate
    if texts == "auto":
        return find_phrases(sequences)
    return phrases_of(texts, sequences, tokenizer.decode, place_of(recipe, source))


def say_unused(recipe: Recipe, watcher: Watcher) -> None:
    """Warn where the recipe's own section decides nothing, because every source has one."""
    usual = TeachSettings().model_dump()
    changed = [name for name, value in usual.items() if getattr(recipe.supervise, name) != value]
    if changed and all(source.supervise is not None for source in recipe.data):
        watcher.warn(f"supervise.{changed[0]} decides nothing: every source has a `supervise` of its own")


def taught_ledgers(teaching: Seq[Teaching], dataset: Dataset, train: np.ndarray) -> tuple[Ledger, ...]:
    """Add to each source's ledger what its training samples teach, by provenance.

    Raises:
        ConfigError: a source's ledger does not balance.
    """
    kinds = len(Provenance)
    taught, untaught = np.zeros((2, len(dataset.ledgers), kinds), dtype=np.int64)
    for sequence in dataset.walk(train):
        hit = token_weights(sequence, teaching[sequence.source]) != 0
        taught[sequence.source] += np.bincount(sequence.roles[hit], minlength=kinds)
        untaught[sequence.source] += np.bincount(sequence.roles[~hit], minlength=kinds)
    ledgers = tuple(
        replace(_without_aside(ledger, dataset, train, i), taught=_named(taught[i]), untaught=_named(untaught[i]))
        for i, ledger in enumerate(dataset.ledgers)
    )
    _check_balance(ledgers)
    return ledgers


def _check(recipe: Recipe) -> None:
    if recipe.supervise.loss == "dft" and recipe.supervise.label_smoothing:
        raise ConfigError(
            "supervise.loss = 'dft' has no form with label smoothing.\nUse one of them: supervise.label_smoothing=0"
        )
    policies.check(recipe.supervise)
    for number, source in enumerate(recipe.data):
        place = place_of(recipe, number)
        settings = source.supervise or recipe.supervise
        policies.check(settings, place)
        by_end = [rule for rule in settings.rules if rule.turns != "all"]
        if source.too_long in ("split", "truncate") and (settings.policy in _SEES_THE_END or by_end):
            what = f"{place}.policy = '{settings.policy}'" if not by_end else f"{place}.rules with `turns`"
            raise UnsupportedError(
                f"{what} looks at the end of a conversation, and data.{number}.too_long = '{source.too_long}' cuts "
                f"conversations: a piece would teach another turn.\nUse data.{number}.too_long=drop"
            )


def _without_aside(ledger: Ledger, dataset: Dataset, train: np.ndarray, source: int) -> Ledger:
    """``--overfit`` leaves training samples aside: they count as not read."""
    aside = np.setdiff1d(dataset.train, train)
    mine = aside[dataset.source_of[aside] == source]
    if not len(mine):
        return ledger
    samples = dict(ledger.samples)
    samples |= {name: samples[name] - len(mine) for name in ("read", "train")}
    return replace(ledger, read=ledger.read - int(dataset.lengths[mine].sum()), samples=samples)


def _named(counts: np.ndarray) -> dict[str, int]:
    return {Provenance(kind).name.lower(): int(n) for kind, n in enumerate(counts) if n}


def _check_balance(ledgers: Seq[Ledger]) -> None:
    wrong = [f"data.{i}: {told}" for i, ledger in enumerate(ledgers) for told in ledger.imbalances()]
    if wrong:
        raise ConfigError(
            f"the ledger does not balance: {'; '.join(wrong)}. This is a bug of frisket; please report it."
        )
