"""A short run of one candidate of a search: loss before and after, nothing else kept; its folder lets it go on."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from frisket.evaluate.settings import EvaluateSettings, ForgettingSettings
from frisket.recipe import Recipe
from frisket.run.measuring import TAUGHT, UNSEEN
from frisket.watch import Silent, Watcher, duration

if TYPE_CHECKING:
    from frisket.run.training import Given


def shortened(recipe: Recipe, steps: int, forgetting: Sequence[ForgettingSettings] = ()) -> Recipe:
    """The run of a candidate: few steps, loss and ``forgetting`` before and after, nothing else measured or kept."""
    settings = recipe.evaluate or EvaluateSettings()
    learning = settings.learning
    if learning is None and all(source.path == "bundled" for source in recipe.data):
        learning = (TAUGHT, UNSEEN)
    if learning is not None:
        learning = tuple(entry.model_copy(update={"metric": "loss", "by": None}) for entry in learning)
    brief = {"every": 0.0, "learning": learning, "samples": 0, "stop_after": None, "keep": "last"}
    changes = {
        "train": recipe.train.model_copy(update={"max_steps": steps, "save_every": 0.0}),
        "evaluate": settings.model_copy(update=brief | {"forgetting": tuple(forgetting)}),
    }
    return recipe.model_copy(update=changes)


def tried(recipe: Recipe, place: Path, label: str, given: "Given", watcher: Watcher) -> tuple[dict, str]:
    """Train a shortened recipe into ``place``: its summary, and how long that took, in words."""
    from frisket.run.training import train

    began = time.perf_counter()
    with watcher.progress(label, recipe.train.max_steps, "steps") as advance:
        inner = replace(given, on_step=lambda record: advance(1), start=None)
        summary = train(recipe, out=place, resume=place.exists(), given=inner, watcher=Silent())
    return summary, duration(time.perf_counter() - began)
