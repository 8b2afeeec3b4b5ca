"""Stages: deltas over the recipe, run in order into one output folder, each starting from what the one before made.

In this version the adapter is carried from stage to stage, so ``adapt`` and ``model`` are the same in all of them. Each
stage has its own folder ``OUT/stage-N`` with its ledger and checkpoints, a fresh optimizer and a fresh schedule.
"""

import shutil
from dataclasses import replace
from pathlib import Path

from frisket.errors import UnsupportedError
from frisket.recipe import Recipe
from frisket.run import best, folder, mask_free
from frisket.run.training import Given, train_one
from frisket.watch import Watcher


def train_stages(recipe: Recipe, out: Path, given: Given, resume: bool, watcher: Watcher) -> dict:
    """Train all stages; the last one's adapter, report and card are the run's.

    Raises:
        UnsupportedError: a stage changes ``adapt``, or says ``continue: true``.
    """
    stages = [recipe.stage(index) for index in range(len(recipe.stages))]
    _refuse(recipe, stages)
    for stage in stages:
        mask_free.check(stage, is_stage=True)
    summaries: list[dict] = []
    with folder.claimed(out, recipe):
        for index, stage in enumerate(stages):
            place = out / f"stage-{index + 1}"
            watcher.say(f"stage      {index + 1} of {len(stages)}")
            found = folder.look(place, stage, resume)
            if found.is_finished:
                summaries.append(folder.read_json(place / folder.SUMMARY))
                continue
            start = best.result_of(out / f"stage-{index}") if index else None
            summaries.append(train_one(stage, place, found, replace(given, start=start), None, watcher))
        last = out / f"stage-{len(stages)}"
        for name in ("adapter", "model", "report.html", "README.md", "environment.json"):
            _copy(last / name, out / name)
        summary = {
            **summaries[-1],
            "recipe": recipe.name or "recipe",
            "stages": summaries,
            "next": f"frisket generate {out} --chat",
        }
        folder.write_json(out / folder.SUMMARY, summary)
    return summary


def _refuse(recipe: Recipe, stages: list[Recipe]) -> None:
    for index, stage in enumerate(stages):
        if stage.adapt != recipe.adapt:
            raise UnsupportedError(
                f"stages.{index}.adapt: in this version the adapter is carried from stage to stage, so all stages "
                "share one.\n"
                "Say it once, at the top of the recipe: adapt.method=…"
            )
        if recipe.continues(index):
            raise UnsupportedError(
                f"stages.{index}.continue: in this version every stage has a fresh optimizer and schedule.\n"
                "Leave `continue` out."
            )


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True)
    elif source.exists():
        shutil.copy2(source, target)
