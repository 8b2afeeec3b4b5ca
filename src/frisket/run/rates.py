"""What `auto` becomes once data and model are known: the tokens of a step and the peak rate, fixed for the whole run.

How many steps are enough was chosen by measuring: docs/decisions/0005-default-rates.md.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frisket.adapt.rates import Rate, rate_of
from frisket.recipe import RECIPE_FILE, Recipe, load_recipe

LEAST_TOKENS, MOST_TOKENS = 1024, 32768
ENOUGH_STEPS = 128
AUTO = "auto"


@dataclass(frozen=True)
class StepSize:
    """Tokens of samples in one optimizer step, and why so many."""

    tokens: int
    why: str


@dataclass(frozen=True)
class Settled:
    """What a run fixes before its first step.

    Attributes:
        step: size of a step.
        rate: peak rate.
    """

    step: StepSize
    rate: Rate

    def as_dict(self) -> dict[str, Any]:
        """For ``summary.json`` and ``--json``."""
        return {
            "step_tokens": self.step.tokens,
            "step_tokens_why": self.step.why,
            "learning_rate": self.rate.value,
            "learning_rate_why": self.rate.why,
        }

    def applied(self, recipe: Recipe) -> Recipe:
        """The recipe with these numbers."""
        return _with(recipe, {"step_tokens": self.step.tokens, "learning_rate": self.rate.value})

    def lines(self) -> tuple[str, str]:
        """For a terminal."""
        return (
            f"step       {self.step.tokens:,} tokens: {self.step.why}",
            f"rate       {self.rate.value:g}: {self.rate.why}",
        )


def step_size(recipe: Recipe, epoch_tokens: float) -> StepSize:
    """The recipe's step; ``auto``: the largest power of two from 1,024 to 32,768 that makes at least 128 steps.

    Counted on the tokens of all epochs, or of one where only ``max_steps`` says how long the run is.

    Args:
        epoch_tokens: flat tokens of one epoch, sources counted as often as they are used.
    """
    asked = recipe.train.step_tokens
    if asked != AUTO:
        return StepSize(asked, "as the recipe says")
    whole = epoch_tokens * (recipe.train.epochs or 1.0)
    tokens = MOST_TOKENS
    while tokens > LEAST_TOKENS and whole < ENOUGH_STEPS * tokens:
        tokens //= 2
    told = f"{whole:,.0f} tokens of training"
    if whole < ENOUGH_STEPS * LEAST_TOKENS:
        return StepSize(tokens, f"the smallest that is chosen by itself: {told} are few")
    return StepSize(tokens, f"{told} make at least {ENOUGH_STEPS} steps")


def peak_rate(recipe: Recipe, hidden_size: int, steps: int) -> Rate:
    """The recipe's rate; ``auto``: the method's own, for this width and length."""
    asked = recipe.train.learning_rate
    if asked != AUTO:
        return Rate(float(asked), "as the recipe says")
    return rate_of(recipe.adapt.declared_rate, hidden_size, steps)


def kept(recipe: Recipe, out: Path) -> Recipe:
    """The recipe with what an earlier start in this folder settled: a run that goes on changes nothing of it."""
    if not (out / RECIPE_FILE).is_file():
        return recipe
    stored = load_recipe(out).train
    names = [name for name in ("step_tokens", "learning_rate") if getattr(recipe.train, name) == AUTO]
    return _with(recipe, {name: getattr(stored, name) for name in names})


def _with(recipe: Recipe, changes: dict[str, Any]) -> Recipe:
    return recipe.model_copy(update={"train": recipe.train.model_copy(update=changes)})
