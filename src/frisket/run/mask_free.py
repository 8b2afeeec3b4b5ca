"""Mask-free rows are another training, not a faster one: a meter says what leaks, a second run says what it costs."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frisket.adapt.base import Attached
from frisket.attend.pack import pack
from frisket.errors import ConfigError, UnsupportedError
from frisket.evaluate.contamination import measure_contamination
from frisket.hf.forward import Model
from frisket.recipe import Recipe
from frisket.run import folder
from frisket.run.prepare import Prepared
from frisket.types import Rows
from frisket.watch import Watcher

if TYPE_CHECKING:
    from frisket.run.training import Given

METER_TOKENS = 4096
FASTER = 0.97  # of the time a step: less than this is worth having
BETTER_IF_HIGHER = frozenset({"exact_match"})


class Meter:
    """Measures the same mask-free rows before, during and after training; for other arrangements it does nothing."""

    def __init__(self, prepared: Prepared, model: Model, attached: Attached, watcher: Watcher) -> None:
        self._model, self._attached, self._watcher = model, attached, watcher
        self._backend = prepared.laying.backend
        self._batches = _rows_of(prepared) if _can_measure(prepared, attached, watcher) else []
        self._found: list[dict] = []

    def measure(self, step: int) -> None:
        """Measure now."""
        if not self._batches:
            return
        found = measure_contamination(self._model, self._attached, self._batches, self._backend)
        self._found.append({"step": step, **found.summary()})
        self._watcher.say(f"meter      step {step}: {found.lines()[0]}")

    def summary(self) -> dict[str, Any]:
        """What ``summary.json`` holds: before, after, and what was measured between."""
        if not self._found:
            return {}
        before, *during, after = [*self._found, self._found[-1]] if len(self._found) == 1 else self._found
        return {"contamination": {"before": before, "during": during, "after": after}}


def _can_measure(prepared: Prepared, attached: Attached, watcher: Watcher) -> bool:
    if prepared.laying.arrangement != "mask-free":
        return False
    try:
        with attached.switched_off():
            return True
    except UnsupportedError:
        watcher.warn("no contamination meter: it compares with the base, which this method does not keep")
        return False


def _rows_of(prepared: Prepared) -> list[Rows]:
    """The first step's first row, of at most so many tokens."""
    step = next(iter(prepared.order.steps()))
    samples = [prepared.dataset[int(i)] for i in step.samples]
    return pack(samples, "mask-free", min(prepared.laying.row_tokens, METER_TOKENS))[:1]


def check(recipe: Recipe) -> None:
    """Refuse a comparison where there is nothing to compare.

    Raises:
        ConfigError: ``attend.compare`` without mask-free rows, or without anything measured.
    """
    if not recipe.attend.compare:
        return
    if recipe.attend.arrangement != "mask-free":
        raise ConfigError(
            f"attend.compare compares mask-free rows with isolated ones, and attend.arrangement is "
            f"'{recipe.attend.arrangement}'.\nUse attend.arrangement=mask-free, or leave attend.compare out."
        )
    if recipe.evaluate is None or recipe.stages:
        raise ConfigError(
            "attend.compare judges by what `evaluate` measures, in a recipe without stages.\n"
            "Leave `evaluate: off` and `stages` out."
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
    folder.write_json(out / folder.SUMMARY, summary)
    return summary


def verdict(mask_free: Mapping, isolated: Mapping) -> dict:
    """Compare two runs of the same steps: quality on isolated evaluation, time a step, and what to do.

    A figure is worse where it lies on the bad side of the isolated run's 95 % interval. One run each: with another seed
    both would move.
    """
    quality: dict[str, dict] = {}
    for name, entry in isolated.get("learning", {}).items():
        for measure in (m for m in entry["after"] if not m.endswith("_interval")):
            mine, theirs = mask_free["learning"][name]["after"][measure], entry["after"][measure]
            low, high = entry["after"][f"{measure}_interval"]
            worse = mine < low if measure in BETTER_IF_HIGHER else mine > high
            better = mine > high if measure in BETTER_IF_HIGHER else mine < low
            told = "worse" if worse else "better" if better else "same"
            quality[f"{name} {measure}"] = {
                "mask_free": mine,
                "isolated": theirs,
                "interval": [low, high],
                "told": told,
            }
    times = {name: run["seconds"]["steps"] / run["steps"] for name, run in _named(mask_free, isolated)}
    ratio = times["mask_free"] / times["isolated"]
    return {
        "quality": quality,
        "seconds_per_step": {**{name: round(t, 4) for name, t in times.items()}, "ratio": round(ratio, 3)},
        "recommendation": _recommendation(quality, ratio),
    }


def _named(mask_free: Mapping, isolated: Mapping) -> list[tuple[str, Mapping]]:
    return [("mask_free", mask_free), ("isolated", isolated)]


def _recommendation(quality: Mapping[str, Mapping], ratio: float) -> str:
    time = f"{100 * abs(1 - ratio):.0f} % {'less' if ratio < 1 else 'more'} time a step"
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
