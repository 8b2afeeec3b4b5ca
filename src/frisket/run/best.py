"""The best step of a run: found in what was measured during training, kept on disk, put back at the end.

Everything here follows from ``evaluations.jsonl`` alone, so that a stopped and resumed run ends where a whole one does.
"""

import shutil
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from frisket.errors import ConfigError, nearest
from frisket.recipe import Recipe
from frisket.run.folder import SUMMARY, read_json
from frisket.train import checkpoint


@dataclass(frozen=True)
class Rule:
    """What decides about the end of a run.

    Attributes:
        watch: learning set whose loss is compared.
        stop_after: evaluations without improvement that end the run; None: it goes to its last step.
        keep: which weights are the result.
    """

    watch: str
    stop_after: int | None
    keep: Literal["last", "best"]


@dataclass(frozen=True)
class Standing:
    """How a run stands after its evaluations so far.

    Attributes:
        step: of the lowest loss; of equal ones the earliest.
        loss: there.
        since: evaluations after it.
    """

    step: int
    loss: float
    since: int


def rule_of(recipe: Recipe, measured: Seq[str]) -> Rule | None:
    """The rule of a recipe; None where nothing is measured during training.

    Args:
        recipe: of the run.
        measured: names of the learning sets that have a loss.

    Raises:
        ConfigError: stopping or keeping is asked for, or the method keeps the best, and there is nothing to decide by.
    """
    settings = recipe.evaluate
    if settings is None:
        return None
    asked = "evaluate.stop_after" if settings.stop_after else "evaluate.keep=best" if settings.keep == "best" else ""
    culprit = asked or (f"adapt.method={recipe.adapt.method}" if recipe.adapt.keeps_best else "")
    if culprit and recipe.attend.compare:
        raise ConfigError(
            f"{culprit} would end two runs at different steps, and attend.compare compares them at the same one.\n"
            "Leave one of the two out: attend.compare=false"
        )
    if settings.watch is not None and settings.watch not in measured:
        raise ConfigError(
            f"evaluate.watch = {settings.watch!r} is no learning set with a loss; there are {', '.join(measured)}.\n"
            f"evaluate.watch={nearest(settings.watch, measured) or next(iter(measured), 'null')}"
        )
    if culprit and not (measured and settings.every):
        raise ConfigError(
            f"{culprit} decides by a loss measured during training, and none is "
            f"({'evaluate.every is 0' if measured else 'there is no learning set'}).\n"
            f"{'evaluate.every=0.1' if measured else 'Hold samples out: data.0.hold_out=0.02'}"
        )
    if not (measured and settings.every):
        return None
    keep = "best" if recipe.adapt.keeps_best else settings.keep
    return Rule(settings.watch or measured[0], settings.stop_after, keep)


def standing(evaluations: Seq[Mapping], watch: str) -> Standing | None:
    """How the run stands; None before the first evaluation. The base is not a candidate.

    Args:
        evaluations: records of ``evaluations.jsonl``, by ascending step.
        watch: name of the learning set.
    """
    sides = [(record["step"], record["learning"].get(watch, {})) for record in evaluations]
    losses = [(side["loss"], step) for step, side in sides if "loss" in side]  # one that is not finite has no figure
    if not losses:
        return None
    loss, step = min(losses)
    return Standing(step, loss, sum(other > step for other, _ in sides))


def is_over(evaluations: Seq[Mapping], rule: Rule) -> bool:
    """Whether the run has gone long enough without improvement."""
    found = standing(evaluations, rule.watch)
    return rule.stop_after is not None and found is not None and found.since >= rule.stop_after


def folder_of(out: Path, step: int) -> Path:
    """Where the best step's weights lie; ``train.keep`` counts only ``step-*``."""
    return out / "checkpoints" / f"best-{step:08d}"


def keep(out: Path, masters: Mapping[str, Tensor], evaluations: Seq[Mapping], watch: str) -> None:
    """Write the weights of the best step, which is this one, and drop those that no resumed run can need.

    A run resumed from an older checkpoint begins with what was best by then, so that is kept as long as the checkpoint.
    """
    best = standing(evaluations, watch)
    if best is None:
        return
    checkpoint.write(folder_of(out, best.step), {"moving": masters}, {"step": best.step, "loss": best.loss})
    needed = {folder_of(out, best.step)}
    for place in checkpoint.complete(out):
        done = int(place.name.removeprefix("step-"))
        then = standing([record for record in evaluations if record["step"] <= done], watch)
        needed |= {folder_of(out, then.step)} if then else set()
    for old in out.glob("checkpoints/best-*"):
        if old not in needed:
            shutil.rmtree(old)


def recover(out: Path, masters: Mapping[str, Tensor], evaluations: Seq[Mapping], watch: str, done: int) -> None:
    """Write the best step's weights where the run was stopped before they were, right after that step was measured.

    Args:
        masters: of the step that a resumed run begins with.
        done: that step.
    """
    best = standing(evaluations, watch)
    if best is not None and best.step == done and not (folder_of(out, done) / checkpoint.COMPLETE).exists():
        keep(out, masters, evaluations, watch)


def refuse_if_lost(out: Path, best: Standing | None) -> None:
    """Refuse to go on where the best step's weights were not kept.

    Raises:
        ConfigError: they are not there.
    """
    if best is not None and not (folder_of(out, best.step) / checkpoint.COMPLETE).exists():
        raise ConfigError(
            f"evaluate.keep=best: the best step so far is {best.step}, and its weights were not kept in {out}: the run "
            "began with another `keep` or `watch`.\nGo on as it began: evaluate.keep=last"
        )


def result_of(out: Path) -> Path:
    """The checkpoint that holds the weights which a finished run gave as its result."""
    best = read_json(out / SUMMARY).get("best", {})
    if best.get("kept") == "best" and best["step"] < best["ended"]:
        return folder_of(out, best["step"])
    return checkpoint.complete(out)[-1]
