"""Stages: deltas over the recipe, run in order into one output folder, each starting from what the one before made.

A stage with the method of the stage before it goes on with the same adapter. A stage that changes ``adapt``, or whose
`where` chooses anew (``{half: category}``), starts from the merged result of the stage before it, as from a base of its
own: ``OUT/stage-N/merged``, or ``OUT/stage-N/model`` after full fine-tuning. What its method draws at random is then
drawn with the stage's own seed. Each stage has its own folder ``OUT/stage-N`` with its ledger and checkpoints, a fresh
optimizer and a fresh schedule.

Where `adapt` has layers searched for, the first of the stages that share it searches, and the others take its choice. A
stage of mask fine-tuning that ships no mask hands on the base that it had itself.
"""

import shutil
from dataclasses import replace
from pathlib import Path

from frisket.adapt.policies import redraws
from frisket.errors import UnsupportedError
from frisket.hf.settings import ModelSettings
from frisket.recipe import Recipe
from frisket.report.moved import stage_row
from frisket.run import best, folder, mask_free, mask_tuning, merging
from frisket.run.finishing import Staged
from frisket.run.rates import LOCATED_FILE, SEARCH_FILE
from frisket.run.training import Given, train_one
from frisket.watch import Watcher


def train_stages(recipe: Recipe, out: Path, given: Given, resume: bool, watcher: Watcher) -> dict:
    """Train all stages; the last one's adapter, report and card are the run's.

    Raises:
        UnsupportedError: a stage says ``continue: true``, or changes ``adapt`` on a model that was handed over.
    """
    stages = [recipe.stage(index) for index in range(len(recipe.stages))]
    _refuse(recipe, stages, given)
    for stage in stages:
        mask_free.check(stage, is_stage=True)
        mask_tuning.check(stage)
    summaries: list[dict] = []
    with folder.claimed(out, recipe):
        base: ModelSettings | None = None
        for index, asked in enumerate(stages):
            place, before = out / f"stage-{index + 1}", out / f"stage-{index}"
            watcher.say(f"stage      {index + 1} of {len(stages)}")
            is_fresh = index > 0 and starts_afresh(stages[index - 1], asked)
            if is_fresh:
                base, is_made = _handed_on(before, base, recipe.model, watcher)
                given = replace(given, tokenizer=None if is_made else given.tokenizer, stage=index)
            stage = asked if base is None else asked.model_copy(update={"model": base})
            found = folder.look(place, stage, resume)
            if found.is_finished:
                summaries.append(folder.read_json(place / folder.SUMMARY))
                continue
            if index and not is_fresh:
                _share_choice(before, place, stage)
            start = best.result_of(before) if index and not is_fresh else None
            staged = Staged(recipe, [stage_row(each) for each in summaries], index == len(stages) - 1)
            summaries.append(train_one(stage, place, found, replace(given, start=start, staged=staged), None, watcher))
        last = out / f"stage-{len(stages)}"
        for name in ("adapter", "model", "report.html", "README.md", "environment.json"):
            _copy(last / name, out / name)
        summary = {**summaries[-1], "recipe": recipe.name or "recipe", "stages": summaries}
        folder.write_json(out / folder.SUMMARY, summary)
    return summary


def starts_afresh(before: Recipe, stage: Recipe) -> bool:
    """Whether a stage puts its method on the merged result of the stage before it."""
    return stage.adapt != before.adapt or redraws(stage.adapt.where)


def _handed_on(
    before: Path, base: ModelSettings | None, asked: ModelSettings, watcher: Watcher
) -> tuple[ModelSettings | None, bool]:
    """What a stage leaves to the next one as a base, and whether that is a model that a stage made.

    Args:
        base: the stage's own; None: the recipe's.
        asked: how the recipe loads a model (a merged folder stands for itself otherwise).
    """
    if not mask_tuning.is_shipped(before):
        kept = (base or asked).path
        watcher.warn(f"the stage before this one shipped no mask: this one starts from {kept}, as that one did")
        return base, base is not None
    run = merging.trained(before)
    merged = merging.merged_folder(run, watcher).resolve()
    watcher.say(f"base       {merged}: what the stage before it made")
    return run.plain(merged).model_copy(update={"load": asked.load}), True


def _share_choice(before: Path, place: Path, stage: Recipe) -> None:
    """Let a stage take the layers that the stage before it searched for: it goes on with the same adapter."""
    found = [name for name in (SEARCH_FILE, LOCATED_FILE) if (before / name).is_file()]
    if found and not all((place / name).is_file() for name in found):
        with folder.claimed(place, stage):
            for name in found:
                _copy(before / name, place / name)


def _refuse(recipe: Recipe, stages: list[Recipe], given: Given) -> None:
    for index, stage in enumerate(stages):
        if given.model is not None and index and starts_afresh(stages[index - 1], stage):
            raise UnsupportedError(
                f"stages.{index} starts from the merged result of the stage before it, which needs the base's files, "
                "and a loaded model was given.\n"
                "Give its folder or hub id: model.path=FOLDER"
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
