"""A run that finds no memory left: said with the knobs that help, and nothing of it held any longer."""

import gc
from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec

import torch

from frisket.errors import ConfigError
from frisket.recipe import Recipe
from frisket.train.memory import release

_CPU = "DefaultCPUAllocator"
"""In the text of torch's error where the processor's memory is exhausted; only an accelerator has a type of its own."""
_P = ParamSpec("_P")


def told_with_knobs(
    work: Callable[Concatenate[Recipe, _P], dict],
) -> Callable[Concatenate[Recipe, _P], dict]:
    """Let a function that trains a recipe raise a ConfigError instead of the errors of exhausted memory."""

    @wraps(work)
    def told(recipe: Recipe, /, *given: _P.args, **named: _P.kwargs) -> dict:
        try:
            return work(recipe, *given, **named)
        except (MemoryError, RuntimeError) as error:
            if not is_exhausted(error):
                raise
            text = (str(error).splitlines() or ["the system gave none"])[0]
        # Outside of the handler: the traceback, and with it model and optimizer, are gone.
        gc.collect()
        release()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        raise ConfigError(f"the run ran out of memory: {text[:200]}\n{_helps(recipe)}")

    return told


def is_exhausted(error: Exception) -> bool:
    """Whether an error says that no memory was left, on an accelerator or not."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or _CPU in str(error)


def _helps(recipe: Recipe) -> str:
    knobs = [f"attend.row_tokens={max(1, recipe.attend.row_tokens // 2)}"]
    if recipe.train.recompute != "all":
        knobs.append("train.recompute=all")
    if recipe.evaluate is not None:
        knobs.append(f"evaluate.batch_tokens={max(1, recipe.evaluate.batch_tokens // 2)}")
    return f"Use less, first of these: {' '.join(knobs)}"
