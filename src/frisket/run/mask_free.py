"""Mask-free rows are another training, not a faster one: a meter says what leaks, a second run says what it costs."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frisket.adapt.base import Attached
from frisket.attend.pack import pack
from frisket.errors import ConfigError
from frisket.evaluate import compare
from frisket.evaluate.contamination import measure_contamination
from frisket.hf.forward import Model
from frisket.recipe import Recipe
from frisket.run import folder
from frisket.run.finishing import write_report
from frisket.run.measuring import keeps_base
from frisket.run.prepare import Prepared, prepare
from frisket.train.loop import keep_records
from frisket.types import Rows
from frisket.watch import Silent, Watcher

if TYPE_CHECKING:
    from frisket.run.training import Given

METER_TOKENS = 4096
FASTER = 0.97  # of the time a step: less than this is worth having


class Meter:
    """Measures the same mask-free rows before, during and after training; for other arrangements it does nothing.

    What it finds goes to ``OUT/contamination.jsonl``; a resumed run keeps what was found up to its checkpoint.
    """

    def __init__(
        self, prepared: Prepared, model: Model, attached: Attached, watcher: Watcher, out: Path, done: int
    ) -> None:
        self._model, self._attached, self._watcher = model, attached, watcher
        self._backend = prepared.laying.backend
        self._batches = _rows_of(prepared) if _can_measure(prepared, attached, watcher) else []
        self._path = out / "contamination.jsonl"
        keep_records(self._path, done)

    def measure(self, step: int) -> None:
        """Measure now."""
        if not self._batches or any(entry["step"] == step for entry in folder.read_lines(self._path)):
            return
        found = measure_contamination(self._model, self._attached, self._batches, self._backend)
        with self._path.open("a") as file:
            file.write(json.dumps({"step": step, **found.summary()}) + "\n")
        self._watcher.say(f"meter      step {step}: {found.lines()[0]}")

    def summary(self) -> dict[str, Any]:
        """What ``summary.json`` holds: before, after, and what was measured between."""
        found = folder.read_lines(self._path)
        if not found:
            return {}
        return {"contamination": {"before": found[0], "during": found[1:-1], "after": found[-1]}}


def _can_measure(prepared: Prepared, attached: Attached, watcher: Watcher) -> bool:
    if prepared.laying.arrangement != "mask-free":
        return False
    if keeps_base(attached):
        return True
    watcher.warn("no contamination meter: it compares with the base, which this method does not keep")
    return False


def _rows_of(prepared: Prepared) -> list[Rows]:
    """The row of the first step that holds most samples, of at most so many tokens."""
    step = next(iter(prepared.order.steps()))
    samples = [prepared.dataset[int(i)] for i in step.samples]
    rows = pack(samples, "mask-free", min(prepared.laying.row_tokens, METER_TOKENS))
    return [max(rows, key=lambda each: len(each.leaves))]


def check(recipe: Recipe, *, is_stage: bool = False, overfit: int | None = None) -> None:
    """Refuse a comparison where there is nothing to compare.

    Raises:
        ConfigError: ``attend.compare`` without mask-free rows, without anything measured, in a stage or an overfit.
    """
    if not recipe.attend.compare:
        return
    if recipe.attend.arrangement != "mask-free":
        raise ConfigError(
            f"attend.compare compares mask-free rows with isolated ones, and attend.arrangement is "
            f"'{recipe.attend.arrangement}'.\nUse attend.arrangement=mask-free, or leave attend.compare out."
        )
    if recipe.evaluate is None or recipe.evaluate.learning == [] or recipe.stages or is_stage or overfit:
        raise ConfigError(
            "attend.compare judges by what `evaluate.learning` measures, in a whole run without stages or --overfit.\n"
            "Leave `evaluate: off`, `learning: []`, `stages` and --overfit out, or attend.compare."
        )


def judged(recipe: Recipe, out: Path, summary: dict, given: "Given", resume: bool, watcher: Watcher) -> dict:
    """Train isolated rows for the same steps into ``OUT/isolated``, and add the verdict to the run's summary."""
    from frisket.run.training import train

    attend = recipe.attend.model_copy(update={"arrangement": "isolated", "compare": False})
    other = recipe.model_copy(update={"attend": attend})
    watcher.say("compare    the same steps with isolated rows")
    place = out / "isolated"
    begun = place.exists() and any(place.iterdir())
    isolated = train(other, out=place, resume=resume and begun, given=replace(given, on_step=None), watcher=watcher)
    summary = {**summary, "verdict": verdict(summary, isolated)}
    config = given.model.config if given.model else None
    prepared = prepare(recipe, Silent(), tokenizer=given.tokenizer, config=config, records=given.records)
    write_report(out, summary, recipe, prepared)
    folder.write_json(out / folder.SUMMARY, summary)
    return summary


def verdict(mask_free: Mapping, isolated: Mapping) -> dict:
    """Compare two runs of the same steps: quality on isolated evaluation, time a step, and what to do.

    A figure is worse where it lies on the bad side of the isolated run's 95 % interval. One run each: with another seed
    both would move.
    """
    quality: dict[str, dict] = {}
    for name, entry in isolated.get("learning", {}).items():
        for measure in (m for m in entry["after"] if f"{m}_interval" in entry["after"]):  # too few samples have none
            mine, theirs = mask_free["learning"][name]["after"].get(measure), entry["after"][measure]
            if mine is None:  # not finite there, and named under `not_measured`
                continue
            low, high = entry["after"][f"{measure}_interval"]
            quality[f"{name} {measure}"] = {
                "mask_free": mine,
                "isolated": theirs,
                "interval": [low, high],
                "told": compare.verdict(measure, (mine - high, mine - low)),
            }
    runs = {"mask_free": mask_free, "isolated": isolated}
    times = {name: run["seconds"]["steps"] / run["steps"] for name, run in runs.items()}
    ratio = times["mask_free"] / times["isolated"]
    return {
        "quality": quality,
        "seconds_per_step": {**{name: round(t, 4) for name, t in times.items()}, "ratio": round(ratio, 3)},
        "recommendation": _recommendation(quality, ratio),
    }


def _recommendation(quality: Mapping[str, Mapping], ratio: float) -> str:
    time = f"{100 * abs(1 - ratio):.0f} % {'less' if ratio < 1 else 'more'} time a step"
    if not quality:
        return f"nothing was measured well enough to judge by, so nothing is recommended; mask-free takes {time}"
    worse = [
        f"{name} {q['mask_free']:.3g} against {q['isolated']:.3g}"
        for name, q in quality.items()
        if q["told"] == "worse"
    ]
    if worse:
        return f"use attend.arrangement=isolated: mask-free is worse ({'; '.join(worse)}), at {time}"
    if ratio > FASTER:
        return f"use attend.arrangement=isolated: mask-free is no worse here, and no faster ({time})"
    return f"mask-free is no worse here, and takes {time}; measure again with another seed before relying on it"
