"""What `auto` becomes once data and model are known: the tokens of a step and the peak rate, fixed for the whole run.

How many steps are enough was chosen by measuring: docs/decisions/0005-default-rates.md.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frisket.adapt.mft import Mft
from frisket.adapt.policies import place_of, with_place
from frisket.adapt.rates import Rate, rate_of
from frisket.errors import ConfigError
from frisket.recipe import RECIPE_FILE, Recipe, load_recipe
from frisket.train.optim import shape_of

LEAST_TOKENS, MOST_TOKENS = 1024, 32768
ENOUGH_STEPS = 128
AUTO = "auto"
AS_ASKED = "as the recipe says"
SETTLED_FILE = "settled.json"
"""In the folder of a run: the size of a step and the rate, each with its reason."""
SEARCH_FILE = "search.json"
LOCATED_FILE = "located.json"
"""In the folder of a run with ``adapt.search``: the groups of layers that were tried, and the one that was taken."""


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
        """The recipe with these numbers, where it leaves them open."""
        found = {"step_tokens": self.step.tokens, "learning_rate": self.rate.value}
        return _with(recipe, {name: value for name, value in found.items() if getattr(recipe.train, name) == AUTO})

    def remembered(self, out: Path) -> "Settled":
        """With the reasons that an earlier start in this folder had for the same numbers."""
        before = _before(out)
        step, rate = before.get("step_tokens"), before.get("learning_rate")
        return Settled(
            StepSize(self.step.tokens, before["step_tokens_why"]) if step == self.step.tokens else self.step,
            Rate(self.rate.value, before["learning_rate_why"]) if rate == self.rate.value else self.rate,
        )

    def lines(self) -> tuple[str, str]:
        """For a terminal."""
        return (
            f"step       {self.step.tokens:,} tokens: {self.step.why}",
            f"rate       {self.rate.value:g}: {self.rate.why}",
        )


def whole_step(tokens: int) -> StepSize:
    """The step of ``--overfit``: all of its samples."""
    return StepSize(tokens, "--overfit takes all of its samples in every step")


def step_size(recipe: Recipe, epoch_tokens: float) -> StepSize:
    """The recipe's step; ``auto``: the largest power of two from 1,024 to 32,768 that makes at least 128 steps.

    Where none does it is 1,024. Counted on the tokens of all epochs, or of one where only ``max_steps`` says how long
    the run is.

    Args:
        epoch_tokens: flat tokens of one epoch, sources counted as often as they are used.
    """
    asked = recipe.train.step_tokens
    if asked != AUTO:
        return StepSize(asked, AS_ASKED)
    whole = epoch_tokens * (recipe.train.epochs or 1.0)
    tokens = MOST_TOKENS
    while tokens > LEAST_TOKENS and whole < ENOUGH_STEPS * tokens:
        tokens //= 2
    told = f"{whole:,.0f} tokens of training"
    if whole < ENOUGH_STEPS * LEAST_TOKENS:
        return StepSize(tokens, f"the smallest that auto takes: {told} make fewer than {ENOUGH_STEPS} steps")
    return StepSize(tokens, f"{told} make at least {ENOUGH_STEPS} steps")


def peak_rate(recipe: Recipe, hidden_size: int, steps: int) -> Rate:
    """The recipe's rate; ``auto``: the method's own, for this width and length.

    Raises:
        ConfigError: ``auto`` with plain SGD, whose step is not scaled as AdamW's is, for which methods declare rates.
    """
    asked = recipe.train.learning_rate
    if asked != AUTO:
        return Rate(float(asked), AS_ASKED)
    if recipe.train.optimizer == "sgd":
        # LoRA on the bundled base, 54 chats, 60 steps: 0.3 gives a held-out loss of 0.64, 1 gives 0.41, 3 gives 1.26;
        # AdamW at its own rate 0.38; SGD at AdamW's rate 4.17, from 4.52.
        raise ConfigError(
            "train.learning_rate = auto: the rates that methods declare are AdamW's, with which sgd hardly learns.\n"
            "Give one of your own (on the bundled base 1 was best of 0.3, 1, 3 and 10): train.learning_rate=1"
        )
    falls = shape_of(recipe.train) != "constant"
    return rate_of(recipe.adapt.declared_rate, hidden_size, steps, falls=falls)


def kept(recipe: Recipe, out: Path) -> Recipe:
    """The recipe with what an earlier start in this folder settled: a run that goes on changes nothing of it.

    What the earlier recipe gave as a number was not settled, so ``auto`` stays ``auto`` and is another recipe.
    """
    recipe = settled_place(settled_layers(recipe, out), out)
    if not (out / RECIPE_FILE).is_file():
        return recipe
    stored, before = load_recipe(out).train, _before(out)
    names = [
        name
        for name in ("step_tokens", "learning_rate")
        if getattr(recipe.train, name) == AUTO and before.get(f"{name}_why") != AS_ASKED
    ]
    return _with(recipe, {name: getattr(stored, name) for name in names})


def settled_layers(recipe: Recipe, out: Path) -> Recipe:
    """The recipe with the layers that a finished search of this folder took (``adapt.search``)."""
    method, file = recipe.adapt, out / SEARCH_FILE
    if not (isinstance(method, Mft) and method.search and file.is_file()):
        return recipe
    held = json.loads(file.read_text(encoding="utf-8"))
    if held["size"] != method.search:
        return recipe
    return recipe.model_copy(update={"adapt": method.model_copy(update={"where": held["where"], "search": None})})


def settled_place(recipe: Recipe, out: Path) -> Recipe:
    """The recipe with the layer that a finished search of this folder chose (``{locate: search}``)."""
    place, file = place_of(recipe.adapt.where), out / LOCATED_FILE
    if place is None or not place.is_search or not file.is_file():
        return recipe
    where = with_place(recipe.adapt.where, json.loads(file.read_text(encoding="utf-8"))["place"])
    return recipe.model_copy(update={"adapt": recipe.adapt.model_copy(update={"where": where})})


def _before(out: Path) -> dict[str, Any]:
    """What an earlier start wrote of what it settled; empty where it wrote nothing."""
    file = out / SETTLED_FILE
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _with(recipe: Recipe, changes: dict[str, Any]) -> Recipe:
    return recipe.model_copy(update={"train": recipe.train.model_copy(update=changes)})
