"""What was measured of the base before the first step, on disk: a resumed run measures the same and keeps its figures.

Which samples fit into ``evaluate.budget_seconds`` depends on how fast the machine is at that moment.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from frisket.adapt.base import Attached
from frisket.evaluate.answers import Answered, kept_of
from frisket.evaluate.compare import Measure
from frisket.evaluate.forgetting import BaseScores
from frisket.evaluate.learning import LearningScores
from frisket.evaluate.text import plain_sequence
from frisket.hf.forward import Model
from frisket.run import measuring
from frisket.run.folder import read_json, write_json

if TYPE_CHECKING:
    from frisket.run.training import Loaded

BASELINE = "baseline.json"


def measured(out: Path, loaded: "Loaded", sets: measuring.Sets, seed: int, *, is_resumed: bool) -> measuring.Before:
    """Measure the base; in a resumed run whose sets are the same take what ``OUT/baseline.json`` holds."""
    held = read_json(out / BASELINE) if is_resumed and (out / BASELINE).is_file() else {}
    if held.get("sets") == _named(sets):
        sets.instruments.watcher.say(f"evaluate   before training: as measured at the first start ({BASELINE})")
        return _read(held, loaded.model, sets, loaded.attached)
    before = measuring.measure_before(loaded.model, sets, loaded.attached, seed)
    write_json(out / BASELINE, {"sets": _named(sets)} | _written(before))
    return before


def _named(sets: measuring.Sets) -> list:
    """What the sets are, so that those of a changed recipe are told apart."""
    named: list = [[each.settings.model_dump(mode="json"), len(each.samples)] for each in sets.learning]
    for each in sets.forgetting:
        texts = {windows.measure_name: len(windows.weighted()) for windows in each.windows}
        named.append([each.settings.model_dump(mode="json"), len(each.samples), len(each.prompts), texts])
    return named


def _written(before: measuring.Before) -> dict[str, Any]:
    learned = [
        {"samples": list(scores.samples), "answers": list(scores.answers), "measures": _plain(scores.measures)}
        for scores in before.learning
    ]
    known = [
        {
            "answered": [
                {"name": a.sequence.sample_id, "ids": a.sequence.input_ids.tolist(), "first": a.first, "count": a.count}
                for a in scores.answered
            ],
            "chosen": {name: places.tolist() for name, places in scores.chosen.items()},
            "measures": _plain(scores.measures),
        }
        for scores in before.forgetting
    ]
    return {"learning": learned, "forgetting": known, "seconds": before.seconds}


def _read(held: Mapping[str, Any], model: Model, sets: measuring.Sets, attached: Attached) -> measuring.Before:
    learned = tuple(
        LearningScores(tuple(entry["samples"]), _measures(entry["measures"]), tuple(entry["answers"]))
        for entry in held["learning"]
    )
    known = []
    for entry in held["forgetting"]:
        answered = tuple(
            Answered(plain_sequence(a["name"], a["ids"]), a["first"], a["count"]) for a in entry["answered"]
        )
        chosen = {name: np.array(places, dtype=np.int64) for name, places in entry["chosen"].items()}
        scores = BaseScores(answered, None, chosen, _measures(entry["measures"]))
        if not measuring.keeps_base(attached):
            scores = replace(scores, kept=tuple(kept_of(model, answered, sets.instruments)))
        known.append(scores)
    names = tuple(each.settings.name for each in sets.learning)
    return measuring.Before(names, learned, tuple(known), held["seconds"])


def _plain(measures: Mapping[str, Measure]) -> dict[str, dict[str, list]]:
    """Plain values; what is not finite, which JSON cannot hold, as null."""
    return {
        name: {
            side: [value if math.isfinite(value) else None for value in values.tolist()]
            for side, values in (("total", measure.total), ("count", measure.count))
        }
        for name, measure in measures.items()
    }


def _measures(plain: Mapping[str, Mapping[str, list]]) -> dict[str, Measure]:
    return {
        name: Measure(np.array(sides["total"], dtype=np.float64), np.array(sides["count"], dtype=np.float64))
        for name, sides in plain.items()
    }
