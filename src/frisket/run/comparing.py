"""`frisket compare`: finished runs beside each other, paired by seed; unequal budgets are refused unless asked for."""

import hashlib
import json
import os
import shlex
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from frisket import __version__
from frisket.errors import ConfigError, gather
from frisket.evaluate.compare import is_known, t_interval, verdict
from frisket.recipe import GRID_FILE, RECIPE_FILE, Recipe, load_recipe
from frisket.report.compare_page import compare_page
from frisket.report.moved import changed
from frisket.run.differing import differing_settings, identity, unasked
from frisket.run.folder import SUMMARY, read_json
from frisket.run.forgetting_curve import curves_of, label
from frisket.run.grafting import overlaps
from frisket.run.lengths import groups

PAGE = "compare.html"
SAME_TOKENS = 0.01
"""Training tokens that differ by less are called equal: the last step of a run is as full as it happens to be."""
ENOUGH_SEEDS = 3
_SHOWN_DIGITS = 10
_TRAINING_LOSS = "training loss"


@dataclass(frozen=True)
class FinishedRun:
    """One run folder.

    Attributes:
        arm: what it is compared as; runs of one arm differ in nothing but the seed.
        summary: its ``summary.json``.
        data: fingerprint of its training data.
    """

    folder: Path
    arm: str
    seed: int
    summary: Mapping[str, Any]
    recipe: Recipe
    data: str

    @property
    def tokens(self) -> int:
        """Flat tokens that it was trained on, in all stages."""
        return sum(int(stage["tokens"]["flat"]) for stage in self._stages)

    @property
    def steps(self) -> int:
        """Optimizer steps, in all stages."""
        return sum(int(stage["steps"]) for stage in self._stages)

    @property
    def _stages(self) -> Sequence[Mapping[str, Any]]:
        return self.summary.get("stages") or [self.summary]

    def measured(self) -> dict[str, dict[str, Any]]:
        """After training: ``"hold-out loss" -> {"value", "interval", "measure"}``; unmeasured, the training loss."""
        found = {}
        for section in ("learning", "forgetting"):
            for name, entry in (self.summary.get(section) or {}).items():
                for measure in (m for m in entry["after"] if not m.endswith("_interval")):
                    found[label(section, name, measure)] = {
                        "value": entry["after"][measure],
                        "interval": entry["after"].get(f"{measure}_interval"),
                        "measure": measure,
                    }
        if not found and self.summary["loss"] is not None:
            return {_TRAINING_LOSS: {"value": self.summary["loss"], "interval": None, "measure": "training_loss"}}
        return found


def compare_runs(places: Sequence[Path], *, page: Path, allow_unequal: bool = False) -> dict[str, Any]:
    """Compare run folders, or the cells of grid folders.

    Args:
        places: run folders, grid folders or a grid's arms; the first arm found is what the others are compared with.
        page: HTML file to write.
        allow_unequal: compare runs of unequal budgets, saying what is unequal, instead of refusing.

    Returns:
        ``{"arms": [...], "against": name, "unequal": [...], "settings": [...], "unasked": text, "judged": number,
        "curves": [...], "overlaps": [...], "page": path}``; see ``compared`` and ``grafting.overlaps``.

    Raises:
        ConfigError: a folder without a finished run; fewer than two runs; unequal budgets.
    """
    runs = _told_apart({place: read_runs(place) for place in places})
    if len(runs) < 2:
        raise ConfigError(
            f"{len(runs)} finished run is nothing to compare.\nGive run folders, or a grid folder: frisket compare A B"
        )
    runs = _grouped(runs)
    unequal = unequal_budgets(runs)
    if unequal and not allow_unequal:
        raise ConfigError(gather(unequal, "the runs had unequal budgets:", "To compare them anyway: --allow-unequal"))
    result = compared(runs, unequal) | {"overlaps": _overlaps(runs), "page": str(page)}
    write_page(result, page, " · ".join(str(place) for place in places))
    return result


def _overlaps(runs: Sequence[FinishedRun]) -> list[dict[str, Any]]:
    """What the sparse adapters of the runs have in common, where they change one base."""
    if len({run.recipe.model.path for run in runs}) > 1:
        return []
    several = len({run.arm for run in runs}) < len(runs)
    names = [f"{run.arm}, seed {run.seed}" if several else run.arm for run in runs]
    return overlaps({name: run.folder / "adapter" for name, run in zip(names, runs, strict=True)})


def read_runs(place: Path) -> list[FinishedRun]:
    """The finished run of a folder, or those of a grid or of an arm of one; other runs are named after their folders.

    Raises:
        ConfigError: no finished run is there.
    """
    grid, cells = _cells_at(place)
    if cells:
        found = [read_run(folder, arm) for folder, arm in cells if (folder / SUMMARY).is_file()]
        if not found:
            told = shlex.quote(str(grid))
            raise ConfigError(f"{place}: no cell of this grid is finished.\nGo on: frisket train {told} --resume")
        return found
    if not (place / SUMMARY).is_file() or not (place / RECIPE_FILE).is_file():
        raise ConfigError(f"{place} holds no finished run (no {SUMMARY}).\nFinish it: frisket train {place} --resume")
    return [read_run(place, "")]


def _cells_at(place: Path) -> tuple[Path, list[tuple[Path, str]]]:
    """The grid that a folder is, is an arm of, or is a cell of; and its cells there, each with its arm."""
    here = place.resolve()
    for depth, grid in enumerate((here, *here.parents[:2])):
        if (grid / GRID_FILE).is_file():
            cells = [(grid / cell["folder"], cell["arm"]) for cell in read_json(grid / GRID_FILE)["cells"]]
            found = [(place / cell.relative_to(here), arm) for cell, arm in cells if cell.is_relative_to(here)]
            return Path(os.path.normpath(place.joinpath(*[".."] * depth))), found
    return place, []


def read_run(folder: Path, arm: str) -> FinishedRun:
    """One finished run."""
    recipe = load_recipe(folder)
    data = str(read_json(folder / "environment.json").get("data"))
    return FinishedRun(folder, arm, recipe.train.seed, read_json(folder / SUMMARY), recipe, data)


def unequal_budgets(runs: Sequence[FinishedRun]) -> list[str]:
    """What makes a comparison unfair, each in one line; empty where budgets are equal.

    The base model, what is measured, and the tokens of training: seed by seed, and where an arm shares none with the
    first one, the median of each. Where lengths differ by plan (``lengths.groups``), tokens are compared within one
    length. A hold-out is drawn from the training data by the seed, so it is the same one only where both are.
    """
    found = _differing(runs, "base model", lambda run: run.recipe.model.path)
    found += _differing(runs, "evaluation sets", _sets)
    for group in _by_length(runs):
        found += _unequal_within(group)
    return found


def _unequal_within(runs: Sequence[FinishedRun]) -> list[str]:
    """What is unequal between runs that are compared with each other."""
    found: list[str] = []
    for seed in sorted({run.seed for run in runs}):
        same = [run for run in runs if run.seed == seed]
        if not _are_same([run.tokens for run in same]):
            told = ", ".join(f"{run.arm} {run.tokens:,}" for run in same)
            found.append(f"training tokens with seed {seed}: {told}")
        if any(_holds_out(run) for run in same):
            found += _differing(
                same,
                f"the hold-out with seed {seed}, drawn from the training data, which are not the same (fingerprints)",
                lambda run: run.data[:_SHOWN_DIGITS],
            )
    own = {arm: {run.seed for run in runs if run.arm == arm} for arm in dict.fromkeys(run.arm for run in runs)}
    tokens = {arm: median(run.tokens for run in runs if run.arm == arm) for arm in own}
    for arm in own:
        pair = (tokens[runs[0].arm], tokens[arm])
        if not own[runs[0].arm] & own[arm] and not _are_same(pair):
            told = f"{runs[0].arm} {pair[0]:,.0f}, {arm} {pair[1]:,.0f}"
            found.append(f"training tokens, no seed in common: {told}")
    if len(own) > 1 and not set.intersection(*own.values()) and any(map(_holds_out, runs)):
        told = ", ".join(f"{arm} {sorted(seeds)}" for arm, seeds in own.items())
        found.append(f"seeds, which draw the hold-out, none in common: {told}")
    return found


def compared(runs: Sequence[FinishedRun], unequal: Sequence[str] = ()) -> dict[str, Any]:
    """The comparison as plain values.

    Each arm is compared with the first, and where lengths differ by plan with the first of its length: ``against``
    (None: it is that one). It has its runs' medians over seeds and, for every measure, ``median``, ``interval`` (the
    range over seeds; of a single run its own bootstrap interval), ``by_seed``, ``difference`` (mean over the seeds that
    both have), ``difference_interval`` (95 %, paired, Student's t over the seeds) and ``verdict``. With fewer than
    three common seeds there is neither interval nor verdict. ``judged`` counts the verdicts: of equal arms one in 20 is
    still called better or worse. The training loss of runs that measured nothing is shown and never judged.
    ``settings`` are those in which arms differ, and ``unasked`` says in words which of them nobody asked for.
    ``curves``: what was learned against what was forgotten, see ``forgetting_curve.curves_of``.
    """
    names = list(dict.fromkeys(run.arm for run in runs))
    by_arm = {name: [run for run in runs if run.arm == name] for name in names}
    first = {run.arm: group[0].arm for group in _by_length(runs) for run in group}
    arms = [_arm(name, by_arm[name], by_arm[first[name]], judged=not unequal) for name in names]
    settings = differing_settings({name: (by_arm[name][0].recipe, by_arm[name][0].summary) for name in names})
    return {
        "frisket": __version__,
        "model": runs[0].recipe.model.path,
        "against": names[0],
        "unequal": list(unequal),
        "settings": settings,
        "unasked": unasked(settings),
        "judged": sum("verdict" in entry for arm in arms for entry in arm["measures"].values()),
        "curves": curves_of(by_arm),
        "arms": arms,
    }


def write_page(result: Mapping[str, Any], page: Path, title: str) -> None:
    """Draw a comparison."""
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(compare_page(title, result), encoding="utf-8")


def _arm(name: str, runs: Sequence[FinishedRun], against: Sequence[FinishedRun], *, judged: bool) -> dict[str, Any]:
    first = runs[0]
    own = {run.seed: run.measured() for run in runs}
    theirs = {run.seed: run.measured() for run in against}
    measures = {measure: _measure(measure, own) for measure in own[first.seed]}
    if first.arm != against[0].arm:
        for measure, entry in measures.items():
            entry |= _paired(measure, own, theirs, judged=judged)
    return {
        "name": name,
        "against": None if first.arm == against[0].arm else against[0].arm,
        "seeds": [run.seed for run in runs],
        "folders": [str(run.folder) for run in runs],
        "method": first.summary["model"]["method"],
        "moving": changed(first.summary),
        "learning_rate": first.recipe.train.learning_rate,
        "steps": first.steps,
        "tokens": int(median(run.tokens for run in runs)),
        "tokens_per_second": float(median(run.summary["rates"]["real_tokens_per_second"] for run in runs)),
        "seconds": float(median(run.summary["seconds"]["total"] for run in runs)),
        "measures": measures,
    }


def _measure(measure: str, own: Mapping[int, Mapping[str, Mapping]]) -> dict[str, Any]:
    by_seed = {seed: float(found[measure]["value"]) for seed, found in own.items() if measure in found}
    (entry, *others) = (found[measure] for found in own.values() if measure in found)
    values = list(by_seed.values())
    interval = [min(values), max(values)] if others else entry["interval"]
    return {"median": float(median(values)), "interval": interval, "by_seed": by_seed, "measure": entry["measure"]}


def _paired(
    measure: str, own: Mapping[int, Mapping[str, Mapping]], theirs: Mapping[int, Mapping[str, Mapping]], *, judged: bool
) -> dict[str, Any]:
    """This arm minus the first, over the seeds that both have."""
    seeds = [seed for seed in own if seed in theirs and measure in own[seed] and measure in theirs[seed]]
    if not seeds:
        return {}
    sides = [np.array([side[seed][measure]["value"] for seed in seeds]) for side in (theirs, own)]
    told: dict[str, Any] = {"difference": float((sides[1] - sides[0]).mean())}
    interval = t_interval(sides[1] - sides[0])
    if len(seeds) >= ENOUGH_SEEDS and is_known(interval):
        told["difference_interval"] = list(interval)
        if judged and measure != _TRAINING_LOSS:
            told["verdict"] = verdict(own[seeds[0]][measure]["measure"], interval)
    return told


def _grouped(runs: Sequence[FinishedRun]) -> list[FinishedRun]:
    """Name the arms of single runs after their folders; runs that differ in nothing but the seed are one arm."""
    names: dict[str, str] = {}
    found = []
    for run in runs:
        name = run.arm or names.setdefault(_identity(run), run.folder.name or str(run.folder))
        found.append(replace(run, arm=name))
    counts = Counter((run.arm, run.seed) for run in found)
    # Same name, or same recipe and seed: the whole path tells them apart.
    return [replace(run, arm=str(run.folder)) if counts[run.arm, run.seed] > 1 else run for run in found]


def _by_length(runs: Sequence[FinishedRun]) -> list[list[FinishedRun]]:
    """The runs that are compared with each other."""
    arms = {run.arm: (run.recipe, run.summary) for run in runs}
    return [[run for run in runs if run.arm in names] for names in groups(arms)]


def _told_apart(found: Mapping[Path, Sequence[FinishedRun]]) -> list[FinishedRun]:
    """All runs; arms of several grids are called after their grid too."""
    grids = {place: grid for place in found for grid, cells in [_cells_at(place)] if cells}
    if len({grid.resolve() for grid in grids.values()}) < 2:
        return [run for runs in found.values() for run in runs]
    names = {place: grid.resolve().name for place, grid in grids.items()}
    return [
        replace(run, arm=" ".join((names[place], run.arm)) if place in names else run.arm)
        for place, runs in found.items()
        for run in runs
    ]


def _identity(run: FinishedRun) -> str:
    return hashlib.sha256(json.dumps(identity(run.recipe), sort_keys=True).encode()).hexdigest()


def _are_same(tokens: Sequence[float]) -> bool:
    return max(tokens) <= (1 + SAME_TOKENS) * min(tokens)


def _differing(runs: Sequence[FinishedRun], what: str, of: Callable[[FinishedRun], Any]) -> list[str]:
    values = {run.arm: of(run) for run in runs}
    if len(set(map(str, values.values()))) < 2:
        return []
    return [f"{what}: " + ", ".join(f"{arm} {value}" for arm, value in values.items())]


def _sets(run: FinishedRun) -> str:
    """What was measured, in words: name, number of samples and file of every set."""
    evaluate = run.recipe.evaluate
    paths = {entry.name: entry.path for entry in evaluate.learning or ()} if evaluate else {}
    told = [
        f"{name} ({entry.get('samples', 0)} samples{f' of {paths[name]}' if paths.get(name) else ''})"
        for section in ("learning", "forgetting")
        for name, entry in (run.summary.get(section) or {}).items()
    ]
    return " + ".join(told) or "none"


def _holds_out(run: FinishedRun) -> bool:
    evaluate = run.recipe.evaluate
    if evaluate is None:
        return False
    if evaluate.learning is None:
        return any(source.path != "bundled" for source in run.recipe.data)
    return any(entry.path is None for entry in evaluate.learning)
