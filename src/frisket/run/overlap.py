"""Which evaluation samples also stand in the training data: the check of ``evaluate.overlap`` on a run's own sets."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from frisket.data.problem import Problem
from frisket.data.settings import SourceSettings
from frisket.data.source import Source
from frisket.evaluate.overlap import SampleText, overlaps, sample_text
from frisket.evaluate.settings import LearningSettings
from frisket.run.measuring import learning_entries, learning_source
from frisket.run.prepare import Prepared, Records
from frisket.watch import Watcher

Places = set[tuple[int, str]]


def overlap_of(prepared: Prepared, records: Records | None, watcher: Watcher) -> dict[str, dict[str, Any]]:
    """What each set of `evaluate.learning` shares with the training data; nothing where nothing is measured.

    The data is read again, record by record, and no training sample is kept. Records are compared as they were written:
    a header, a system prompt or examples that the recipe puts before each of them say nothing.
    """
    settings = prepared.recipe.evaluate
    if settings is None:
        return {}
    dataset = prepared.dataset
    entries = learning_entries(prepared, settings)
    sets = {entry.name: _evaluated(prepared, entry, records) for entry in entries}
    with watcher.progress("comparing training and evaluation data", len(dataset.train), "samples") as done:
        train = _counted(_own(prepared, _places(prepared, dataset.train), records), done)
        found = overlaps(train, sets)
    return {name: each.as_dict() for name, each in found.items()}


def warned(found: dict[str, dict[str, Any]], watcher: Watcher) -> dict[str, dict[str, Any]]:
    """What was found, after a warning for each set of which samples are trained on."""
    for name, each in found.items():
        if each["action"]:
            watcher.warn(f"{name}: {each['sentence']}")
            watcher.say(f"        {each['action']}")
    return found


def _evaluated(prepared: Prepared, entry: LearningSettings, records: Records | None) -> Iterator[SampleText]:
    if entry.path is None:
        return _own(prepared, _places(prepared, prepared.dataset.held_out), records)
    source = Source(_as_written(learning_source(prepared, entry)), 0)
    return (sample_text(item) for item in source if not isinstance(item, Problem))


def _places(prepared: Prepared, samples: np.ndarray) -> Places:
    """Where samples were read; pieces of a split one share a place."""
    dataset = prepared.dataset
    return {(int(dataset.source_of[i]), dataset.place(int(i))) for i in samples}


def _own(prepared: Prepared, places: Places, records: Records | None) -> Iterator[SampleText]:
    for index, settings in enumerate(prepared.recipe.data):
        for item in Source(_as_written(settings), index, records[index] if records else None):
            if not isinstance(item, Problem) and (index, item.place) in places:
                yield sample_text(item)


def _as_written(settings: SourceSettings) -> SourceSettings:
    changes = {"render": "chat", "system": None, "shots": None, "expand": "off", "without_prompt": False}
    return settings.model_copy(update=changes)


def _counted(texts: Iterable[SampleText], done: Any) -> Iterator[SampleText]:
    for text in texts:
        yield text
        done(1)
