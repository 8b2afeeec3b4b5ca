"""Runs that differ in how long they train: points of one line, each compared with runs as long as itself."""

import json
from collections.abc import Mapping
from typing import Any

from frisket.recipe import Recipe
from frisket.run.differing import asked_for

LENGTH = ("train.epochs", "train.max_steps")
"""Knobs whose values a grid may hold: its lines go through runs of growing length."""


def length_of(recipe: Recipe) -> str:
    """How long a run trains, as its recipe says it."""
    epochs, steps = recipe.train.epochs, recipe.train.max_steps
    number, unit = (steps, "step") if steps is not None else (epochs or 1, "epoch")
    return f"{number:g} {unit}{'' if number == 1 else 's'}"


def line_of(recipe: Recipe, summary: Mapping[str, Any]) -> str:
    """What runs of one line share: all that was asked for, but seed and length."""
    asked = {name: value for name, value in asked_for(recipe, summary).items() if name not in LENGTH}
    return json.dumps(asked, sort_keys=True, default=str)


def line_name(arm: str) -> str:
    """The name of an arm without the words of its length.

    >>> line_name("lora rank=4 epochs=2"), line_name("epochs=2"), line_name("long")
    ('lora rank=4', 'epochs=2', 'long')
    """
    ends = tuple(key.rpartition(".")[2] for key in LENGTH)
    return " ".join(w for w in arm.split() if not w.partition("=")[0].endswith(ends)) or arm


def of_one_plan(arms: Mapping[str, tuple[Recipe, Mapping[str, Any]]]) -> bool:
    """Whether arms differ in length as a plan has it: none stands alone with a length of its own.

    Where an arm that has no other length is also the only one of its length, nothing is as long as it, and no line goes
    through it.

    Args:
        arms: by name, the recipe of a run and its ``summary.json``.
    """
    lengths = [length_of(recipe) for recipe, _ in arms.values()]
    lines = [line_of(*arm) for arm in arms.values()]
    return len(set(lengths)) > 1 and all(
        lines.count(line) > 1 or lengths.count(length) > 1 for line, length in zip(lines, lengths, strict=True)
    )


def groups(arms: Mapping[str, tuple[Recipe, Mapping[str, Any]]]) -> list[list[str]]:
    """Names of the arms that are compared with each other: those of one length, or all where lengths are no plan."""
    if not of_one_plan(arms):
        return [list(arms)]
    found: dict[str, list[str]] = {}
    for name, (recipe, _) in arms.items():
        found.setdefault(length_of(recipe), []).append(name)
    return list(found.values())
