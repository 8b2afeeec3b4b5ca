"""`frisket train R --seeds 3 adapt.rank=8,16,32`: every combination times every seed, one after the other, compared."""

import itertools
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from frisket import __version__
from frisket.errors import ConfigError, FrisketError, gather
from frisket.recipe import FILE_KEYS, GRID_FILE, Recipe, load_recipe
from frisket.run import best, comparing, measuring
from frisket.run.differing import differing_settings
from frisket.run.folder import SUMMARY, look, read_json, recipe_hash, write_json
from frisket.run.lengths import LENGTH
from frisket.run.prepare import prepare
from frisket.run.training import Given, train
from frisket.watch import Silent, WarningsOnly, Watcher, duration

CHANGES_BUDGET = ("data", "model", "evaluate", "stages", "train.epochs", "train.max_steps")
MOST_CELLS = 1000
_SILENT = Silent()


@dataclass(frozen=True)
class Axis:
    """One knob and the values that it takes, as they were written."""

    key: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Cell:
    """One run of a grid.

    Attributes:
        arm: the values that it has, in words; all seeds of one combination share it.
        folder: below the grid's own.
        words: overrides that make it.
    """

    arm: str
    folder: str
    seed: int
    words: tuple[str, ...]


@dataclass(frozen=True)
class Grid:
    """What a grid is made of; ``grid.json`` holds the same.

    Attributes:
        name: of the common recipe; names the folder.
        recipe: file or folder of the common recipe, or None.
        words: overrides that all cells share.
        begun: the recipe of every cell as ``grid.json`` holds it; empty for a grid that has not begun.
    """

    name: str
    recipe: str | None
    words: tuple[str, ...]
    axes: tuple[Axis, ...]
    seeds: tuple[int, ...]
    model: str | None = None
    data: tuple[str, ...] = ()
    begun: tuple[Recipe, ...] = field(default=(), compare=False, repr=False)

    def cells(self) -> list[Cell]:
        """All runs, seed by seed, so that a stopped grid has compared all arms on the seeds that it has."""
        labels = _labels([axis.key for axis in self.axes])
        found = []
        for seed in self.seeds:
            for values in itertools.product(*(axis.values for axis in self.axes)):
                arm = " ".join(f"{label}={value}" for label, value in zip(labels, values, strict=True))
                words = [f"{axis.key}={value}" for axis, value in zip(self.axes, values, strict=True)]
                place = "/".join([part for part in (arm.replace("/", "-").replace(" ", ","), f"seed-{seed}") if part])
                found.append(Cell(arm or "all", place, seed, (*words, f"train.seed={seed}")))
        return found

    def recipes(self) -> list[Recipe]:
        """The recipe of every cell; files that are here by their whole path, so that it goes on from anywhere.

        Raises:
            ConfigError: those that cannot be, gathered.
        """
        if self.begun:
            return list(self.begun)
        found, problems = [], []
        for cell in self.cells():
            try:
                words = [*self.words, *cell.words]
                made = load_recipe(self.recipe, words, model=self.model, data=self.data)
                found.append(Recipe.model_validate(_anchored(_plain(made))))
            except ConfigError as error:
                problems.append(f"{cell.folder}: {error}")
        if problems:
            raise ConfigError(gather(problems, f"{len(problems)} of {len(self.cells())} cells are wrong:"))
        return found


def make_grid(
    recipe: str | None,
    words: Sequence[str],
    axes: Sequence[tuple[str, tuple[str, ...]]],
    seeds: int | None,
    *,
    model: str | None = None,
    data: Sequence[str] = (),
    allow_unequal: bool = False,
) -> Grid:
    """Put a grid together.

    Args:
        recipe: file or folder of the recipe that all cells share.
        words: overrides that all cells share.
        axes: knobs and their values.
        seeds: so many, counted from 0; None: the recipe's own alone.
        model: as on the command line, like ``data``.
        allow_unequal: let the cells differ in data, length, base or what is measured.

    Raises:
        ConfigError: a value that is empty or named twice, seeds twice, cells of unequal budgets, too many cells.
    """
    named = tuple(Axis(key, values) for key, values in axes)
    for axis in named:
        _refuse_axis(axis, allow_unequal)
    keys = [axis.key for axis in named]
    if len(set(keys)) < len(keys):
        raise ConfigError(
            f"a knob has two lists of values in this grid: {', '.join(keys)}.\nGive all values at once: key=a,b,c"
        )
    if "train.seed" in keys or (seeds is not None and any(word.startswith("train.seed=") for word in words)):
        raise ConfigError("train.seed: the seeds of a grid are counted from 0.\nSay how many: --seeds 3")
    base = load_recipe(recipe, words, model=model, data=data)
    own = range(seeds) if seeds is not None else [base.train.seed]
    count = len(own) * math.prod(len(axis.values) for axis in named)
    if count > MOST_CELLS:
        raise ConfigError(f"this grid has {count:,} cells.\nUse fewer values: at most {MOST_CELLS:,} cells are run.")
    return Grid(base.name or "run", recipe, tuple(words), named, tuple(own), model, tuple(data))


def _refuse_axis(axis: Axis, allow_unequal: bool) -> None:
    told = f"{axis.key}={','.join(axis.values)}"
    if "" in axis.values or len(set(axis.values)) < len(axis.values):
        once = ",".join(dict.fromkeys(value for value in axis.values if value))
        raise ConfigError(f"{told}: a value of a grid is empty or named twice.\nName each once: {axis.key}={once}")
    if _changes_budget(axis.key) and not allow_unequal:
        raise ConfigError(
            f"{told}: the cells would differ in data, length, base or what is measured, and a comparison of unequal "
            "budgets says little.\nTo do it anyway: --allow-unequal"
        )


def _changes_budget(key: str) -> bool:
    """Whether it is one of these keys, lies below one, or is a section that holds one; in a stage as at the top.

    The length of the whole run alone does not count: runs of one length are compared with each other, and a line goes
    through those that differ in nothing else.
    """
    if key in LENGTH:
        return False
    steps = key.split(".")
    inner = ".".join(steps[2:] if steps[0] == "stages" and len(steps) > 2 else steps) + "."
    return any(inner.startswith(f"{named}.") or f"{named}.".startswith(inner) for named in CHANGES_BUDGET)


def load_grid(out: Path) -> Grid:
    """What ``grid.json`` of a folder holds: the recipes as they were when it began."""
    held = read_json(out / GRID_FILE)
    given = held["grid"]
    axes = tuple(Axis(axis["key"], tuple(axis["values"])) for axis in given.pop("axes"))
    lists = {name: tuple(given.pop(name)) for name in ("words", "seeds", "data")}
    begun = tuple(Recipe.model_validate(cell["recipe"]) for cell in held["cells"])
    return Grid(axes=axes, **lists, **given, begun=begun)


def train_grid(
    grid: Grid, *, out: Path, resume: bool = False, allow_unequal: bool = False, watcher: Watcher = _SILENT
) -> dict[str, Any]:
    """Train every cell into ``out``, compare them, and write ``summary.json`` and ``compare.html``.

    All data are read before anything is written. A cell that fails later is told of and left behind; the others go on.
    With ``resume`` finished cells are skipped, and a grid may grow: by seeds, and by values of its knobs.

    Returns:
        The comparison, with ``failed`` (folder and error of each) and ``exit_code`` 1 where a cell failed.

    Raises:
        ConfigError: a cell's recipe cannot be; ``out`` is not empty, or holds another grid.
        DataError: what the cells train on, or are measured on, cannot be used.
    """
    recipes, cells = grid.recipes(), grid.cells()
    _refuse_taken(cells, recipes, out, resume)
    _read_data([r for c, r in zip(cells, recipes, strict=True) if not (out / c.folder / SUMMARY).is_file()])
    _claim(grid, out, cells, recipes)
    failed: list[dict[str, str]] = []
    seconds: list[float] = []
    warnings = WarningsOnly(watcher.warn)
    for number, (cell, recipe) in enumerate(zip(cells, recipes, strict=True)):
        place = out / cell.folder
        told = f"cell {number + 1} of {len(cells)}  {cell.folder}"
        if (place / SUMMARY).is_file():
            watcher.say(f"{told}: finished already")
            continue
        began = time.perf_counter()
        try:
            with watcher.progress(told, None, "steps") as advance:
                given = Given(on_step=lambda record, advance=advance: advance(1))
                summary = train(recipe, out=place, resume=place.exists(), given=given, watcher=warnings)
        except FrisketError as error:
            failed.append({"folder": cell.folder, "error": str(error)})
            watcher.warn(f"{told} failed: {error}")
            continue
        seconds.append(time.perf_counter() - began)
        left = sum(seconds) / len(seconds) * (len(cells) - number - 1)
        then = f", about {duration(left)} left" if left else ""
        watcher.say(f"{told}: {_outcome(summary)}, {duration(seconds[-1])}{then}")
    return _told(grid, out, failed, allow_unequal=allow_unequal)


def _told(grid: Grid, out: Path, failed: list[dict[str, str]], *, allow_unequal: bool) -> dict[str, Any]:
    """Compare what is finished; unequal budgets that nobody could foresee are told, and then nothing is judged."""
    if len(failed) == len(grid.cells()):
        raise ConfigError(gather([f"{f['folder']}: {f['error']}" for f in failed], f"{out}: every cell failed"))
    runs = comparing.read_runs(out)
    unequal = [] if allow_unequal else comparing.unequal_budgets(runs)
    result = comparing.compared(runs, unequal) | {"failed": failed, "page": str(out / comparing.PAGE)}
    result["exit_code"] = 1 if failed else 0
    comparing.write_page(result, out / comparing.PAGE, out.name)
    write_json(out / SUMMARY, result)
    return result


def _read_data(recipes: Sequence[Recipe]) -> None:
    """Read what the cells read, once where they share it: a wrong path would fail in each of them."""
    different: dict[str, Recipe] = {}
    for recipe in recipes:
        for stage in [recipe.stage(index) for index in range(len(recipe.stages))] or [recipe]:
            read = stage.model_dump(mode="json", include={"model", "data", "evaluate", "supervise"})
            different.setdefault(json.dumps(read), stage)
    for recipe in different.values():
        prepared = prepare(recipe, _SILENT)
        best.rule_of(recipe, measuring.names_of(prepared))
        for entry in (recipe.evaluate.learning or ()) if recipe.evaluate else ():
            if entry.path is not None:
                measuring.read_weighted(prepared, measuring.learning_source(prepared, entry))


def _refuse_taken(cells: Sequence[Cell], recipes: Sequence[Recipe], out: Path, resume: bool) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not resume:
        raise ConfigError(
            f"--out {out} is not empty.\nTo train what it lacks of this grid: --resume; or give another folder: "
            f"--out {out}-2"
        )
    if not (out / GRID_FILE).is_file():
        raise ConfigError(f"--out {out} holds no grid (no {GRID_FILE}).\nGive another folder: --out {out}-2")
    if differs := _differs(load_grid(out), cells, recipes):
        raise ConfigError(f"--out {out} holds another grid: {differs}.\nGive another folder: --out {out}-2")
    for cell, recipe in zip(cells, recipes, strict=True):
        look(out / cell.folder, recipe, resume=True)


def _differs(held: Grid, cells: Sequence[Cell], recipes: Sequence[Recipe]) -> str:
    """What of a grid that has begun is not so in these cells, in words; empty where they hold all of it.

    Each cell must be there, train the same and measure the same; there may be more cells.
    """
    wanted = {cell.folder: recipe for cell, recipe in zip(cells, recipes, strict=True)}
    for cell, begun in zip(held.cells(), held.begun, strict=True):
        recipe = wanted.get(cell.folder)
        if recipe is None:
            return f"it has a cell {cell.folder}, which this one has not"
        if recipe_hash(begun) != recipe_hash(recipe) or begun.evaluate != recipe.evaluate:
            found = differing_settings({"there": (begun, {}), "here": (recipe, {})})
            told = [f"{e['name']} is {e['values']['there']} there and {e['values']['here']} here" for e in found]
            return f"in its cell {cell.folder} " + ", ".join(told[:3])
    return ""


def _claim(grid: Grid, out: Path, cells: Sequence[Cell], recipes: Sequence[Recipe]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    definition = {name: value for name, value in vars(grid).items() if name not in ("axes", "begun")}
    definition["axes"] = [asdict(axis) for axis in grid.axes]
    held = [asdict(cell) | {"recipe": _plain(recipe)} for cell, recipe in zip(cells, recipes, strict=True)]
    write_json(out / GRID_FILE, {"frisket": __version__, "grid": definition, "cells": held})


def _plain(recipe: Recipe) -> dict[str, Any]:
    return recipe.model_dump(mode="json")


def _anchored(value: Any, key: str = "") -> Any:
    """Relative paths of what is in the current directory, as whole paths."""
    if isinstance(value, dict):
        return {name: _anchored(item, name) for name, item in value.items()}
    if isinstance(value, list):
        return [_anchored(item) for item in value]
    if key in FILE_KEYS and isinstance(value, str) and value not in measuring.BUNDLED_SETS and Path(value).exists():
        return os.path.abspath(value)
    return value


def _labels(keys: Sequence[str]) -> list[str]:
    """The last word of each key, or the whole key where two share it."""
    short = [key.rpartition(".")[2] for key in keys]
    return [key if short.count(name) > 1 else name for key, name in zip(keys, short, strict=True)]


def _outcome(summary: Mapping[str, Any]) -> str:
    for name, entry in (summary.get("learning") or {}).items():
        if "loss" in entry["after"]:
            return f"{name} loss {entry['after']['loss']:.4f}"
    return f"training loss {summary['loss']:.4f}"
