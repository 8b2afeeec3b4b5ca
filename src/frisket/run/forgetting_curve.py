"""What was learned against what was forgotten, a point an arm, a line through one method at growing lengths.

Source: LoRA Learns Less and Forgets Less (arXiv 2405.09673v2): lines go through *separate* runs of 1, 2, 4, … epochs,
each with a schedule of its own, and not through checkpoints of one run.
Differs: both axes are changes from the base, after minus before, not the scores themselves, so that the base is the
origin; what is learned is what ``evaluate.learning`` measures, and what is forgotten what ``evaluate.forgetting`` does.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, Protocol

from frisket.recipe import Recipe
from frisket.report.measures import SHARES
from frisket.run.lengths import length_of, line_name, line_of

_MEASURES = {
    "kl": "KL to the base",
    "bits_per_character_prose": "bits per character, prose",
    "bits_per_character_code": "bits per character, code",
}
Change = tuple[str, float]
"""Name of a measure in words, and how much more was learned, or forgotten, than the base."""


class Run(Protocol):
    """What is read of a finished run; see ``comparing.FinishedRun``."""

    @property
    def recipe(self) -> Recipe: ...  # noqa: D102
    @property
    def summary(self) -> Mapping[str, Any]: ...  # noqa: D102
    @property
    def tokens(self) -> int: ...  # noqa: D102


def label(section: str, name: str, measure: str) -> str:
    """A measure of a set in words; the set of forgetting that every run has needs no name."""
    what = _MEASURES.get(measure, measure.replace("_", " "))
    if section == "learning":
        return f"{name} {what}"
    return f"forgetting: {what}" if name == "default" else f"forgetting, {name}: {what}"


def curves_of(arms: Mapping[str, Sequence[Run]]) -> list[dict[str, Any]]:
    """One drawing for each target and each pair of measures, where at least two arms have both.

    Returns:
        ``{"target", "learned", "forgotten", "lines": [{"name", "points"}], "lacking": [arm]}`` each. A point is
        ``{"arm", "length", "tokens", "x", "x_range", "y", "y_range"}``: means over the seeds, and their lowest and
        highest; points go by their tokens. ``lacking``: arms of the target without one of the measures.
    """
    targets: dict[str, list[str]] = {}
    for arm, runs in arms.items():
        targets.setdefault(_target(runs[0].recipe), []).append(arm)
    found = []
    for target, names in targets.items():
        own = {name: arms[name] for name in names}
        learned, forgotten = (_measures(own, _changes(section)) for section in ("learning", "forgetting"))
        drawings = [_drawing(own, x, y, learned[x], forgotten[y]) for x in learned for y in forgotten]
        found += [{"target": target} | drawing for drawing in drawings if _points(drawing) > 1]
    return found


def _points(drawing: Mapping[str, Any]) -> int:
    return sum(len(line["points"]) for line in drawing["lines"])


def _drawing(
    arms: Mapping[str, Sequence[Run]],
    x: str,
    y: str,
    learned: Mapping[str, Sequence[float]],
    forgotten: Mapping[str, Sequence[float]],
) -> dict[str, Any]:
    lines: dict[str, dict[str, Any]] = {}
    both = [arm for arm in arms if arm in learned and arm in forgotten]
    for arm in sorted(both, key=lambda arm: arms[arm][0].tokens):
        first = arms[arm][0]
        line = lines.setdefault(line_of(first.recipe, first.summary), {"name": arm, "points": []})
        across, up = learned[arm], forgotten[arm]
        line["points"].append(
            {
                "arm": arm,
                "length": length_of(first.recipe),
                "tokens": int(mean(run.tokens for run in arms[arm])),
                "x": mean(across),
                "x_range": [min(across), max(across)],
                "y": mean(up),
                "y_range": [min(up), max(up)],
            }
        )
    for line in lines.values():
        line["name"] = line_name(line["name"]) if len(line["points"]) > 1 else line["name"]
    kept = sorted(lines.values(), key=lambda line: min(both.index(point["arm"]) for point in line["points"]))
    return {"learned": x, "forgotten": y, "lines": kept, "lacking": [arm for arm in arms if arm not in both]}


def _measures(arms: Mapping[str, Sequence[Run]], changes: Any) -> dict[str, dict[str, list[float]]]:
    """For each measure that some arm has: the arms whose runs all have it, and their changes, seed by seed."""
    told = {arm: [dict(changes(run.summary)) for run in runs] for arm, runs in arms.items()}
    names = dict.fromkeys(name for each in told.values() for found in each for name in found)
    return {
        name: {arm: [found[name] for found in each] for arm, each in told.items() if all(name in f for f in each)}
        for name in names
    }


def _changes(section: str) -> Any:
    """How to read the changes of one section of a summary: more is more learned, or more forgotten."""

    def read(summary: Mapping[str, Any]) -> list[Change]:
        found = []
        for name, entry in (summary.get(section) or {}).items():
            before, after = entry.get("before") or {}, entry["after"]
            for measure in _drawn(section, [m for m in after if m in before and not m.endswith("_interval")]):
                rise = after[measure] - before[measure]
                wanted = (measure in SHARES) == (section == "learning")
                found.append((label(section, name, measure), float(rise if wanted else -rise)))
        return found

    return read


def _drawn(section: str, measures: Sequence[str]) -> Sequence[str]:
    """Of what was learned the measure that the user asked for: exact match where there is one, else the loss."""
    shares = [measure for measure in measures if measure in SHARES]
    return shares if section == "learning" and shares else measures


def _target(recipe: Recipe) -> str:
    """What makes the measures of two arms the same: the base, and the samples; in words."""
    sets = recipe.evaluate.learning if recipe.evaluate else ()
    held_out = sets is None or any(entry.path is None for entry in sets)
    paths = [entry.path for entry in sets or () if entry.path] + [s.path for s in recipe.data if held_out]
    return f"{' + '.join(Path(path).name for path in paths)}, base {Path(recipe.model.path).name}"
