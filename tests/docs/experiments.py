"""Write docs/experiments.md: what the laboratory asked, expected and found, from the files in lab/results.

python -m tests.docs.experiments

The results of ``lab/<module>.py`` are called as it is, or begin so (``mask-free-benign`` is of ``lab/mask_free.py``).
``MEANING`` of that module says under the results' name, in two or three sentences, what they mean for a user.
"""

import importlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "lab" / "results"
PAGE = ROOT / "docs" / "experiments.md"
PLOTS = ROOT / "docs" / "experiments"
VERDICTS = {True: "held", False: "did not hold", None: "cannot be tested here"}
HEAD = """# Experiments

Questions put to the bundled base (3.5 million parameters), several seeds an arm. Every comparison, its expected outcome
and the smallest effect that counts were written down before the first full run, and did not change under the results.
A difference is the arm minus the other, seed by seed; its interval is Student's t at 95 % over the seeds. *Better* and
*worse*: the interval leaves out 0, and the difference is at least the smallest effect. *No difference that counts*: the
whole interval is smaller than it. Anything else is undecided, and then the expectation **cannot be tested here**. A
model this small says how methods compare on it; it says nothing about how large models compare.

Written by `python -m tests.docs.experiments` from `lab/results`; a test compares it. Other pilots are in the
[log](log.md).
"""


def page() -> str:
    """The page; an experiment is on it when its file is there and was compared."""
    found = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(RESULTS.glob("*.json"))]
    return "\n".join([HEAD, *(line for results in found if results.get("comparisons") for line in _section(results))])


def meaning_of(name: str) -> str:
    """What the results mean, in the words of their module.

    Raises:
        KeyError: no module of the laboratory has this name, or its ``MEANING`` lacks it.
    """
    stems = [
        file.stem for file in (ROOT / "lab").glob("*.py") if f"{name}-".startswith(f"{file.stem}-".replace("_", "-"))
    ]
    if not stems:
        raise KeyError(f"lab/results/{name}.json belongs to no module of lab/: name them alike")
    module = importlib.import_module(f"lab.{max(stems, key=len)}")
    if name not in module.MEANING:
        raise KeyError(f"MEANING of {module.__name__} has no {name!r}: say there what the results mean for a user")
    return module.MEANING[name]


def _section(results: Mapping[str, Any]) -> list[str]:
    name = results["name"]
    plot = [f"![{results['question']}](experiments/{name}.svg)", ""] if _plot(name).exists() else []
    return [
        f"## {name.replace('-', ' ').capitalize()}",
        "",
        f"**{results['question']}** {meaning_of(name)}",
        "",
        *plot,
        *_arms(results),
        "",
        *_findings(results),
        "",
    ]


def _plot(name: str) -> Path:
    return RESULTS / f"{name}.svg"


def _arms(results: Mapping[str, Any]) -> list[str]:
    """What makes each arm, and the mean (lowest to highest seed) of every measure that is judged."""
    metrics = list(dict.fromkeys(each["metric"] for each in results["expectations"]))
    common = _common(results["arms"])
    lines = [_row(["arm", "its own settings", "seeds", *metrics]), _row(["---", "---", *["---:"] * (1 + len(metrics))])]
    for arm, settings in results["arms"].items():
        runs = [run["values"] for run in results["runs"] if run["arm"] == arm]
        figures = [[float(np.mean(values[m])) for values in runs if m in values] for m in metrics]
        lines.append(_row([arm, _own(settings, common), str(len(runs)), *map(_spread, figures)]))
    shared = ["", f"Common to all: {' '.join(f'`{word}`' for word in common)}"] if common else []
    return lines + shared


def _common(arms: Mapping[str, Any]) -> list[str]:
    """The words of a recipe that every arm has, in order; empty where the settings are no such words."""
    if not all(isinstance(settings, list) for settings in arms.values()):
        return []
    first, *others = arms.values()
    return [word for word in first if all(word in settings for settings in others)]


def _own(settings: Any, common: Sequence[str]) -> str:
    if isinstance(settings, list):
        return " ".join(f"`{word}`" for word in settings if word not in common) or "–"
    return f"`{json.dumps(settings, ensure_ascii=False)}`"


def _findings(results: Mapping[str, Any]) -> list[str]:
    compared = {(c["arm"], c["against"], c["metric"]): c for c in results["comparisons"]}
    lines = [
        _row(["comparison", "measure", "expected", "counts from", "difference (95 % interval)", "found", "verdict"]),
        _row(["---", "---", "---", "---:", "---:", "---", "---"]),
    ]
    for e in results["expectations"]:
        c = compared.get((e["arm"], e["against"], e["metric"]))
        found = [_difference(c), f"{c['verdict']} ({len(c['seeds'])} seeds)"] if c else ["–", "not measured"]
        verdict = VERDICTS[c["as_expected"] if c else None]
        asked = [f"{e['arm']} − {e['against']}", f"{e['metric']}, {e['good']} is better", e["expected"]]
        lines.append(_row([*asked, f"{e['smallest']:.4g}", *found, f"**{verdict}**"]))
    return lines


def _difference(comparison: Mapping[str, Any]) -> str:
    ends = " to ".join(f"{end:+.4g}" for end in comparison["interval"] or ())
    return f"{comparison['difference']:+.4g} ({ends or 'no interval: all seeds differ alike'})"


def _spread(figures: Sequence[float]) -> str:
    return f"{np.mean(figures):.4g} ({min(figures):.4g} to {max(figures):.4g})" if figures else "–"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def copy_plots(folder: Path = PLOTS) -> None:
    """Put the drawings where the page can show them."""
    folder.mkdir(exist_ok=True)
    for file in sorted(RESULTS.glob("*.svg")):
        shutil.copyfile(file, folder / file.name)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    copy_plots()
