"""What a graft kept of the fine-tuning it was taken from, and which entries two sparse adapters share."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from frisket.adapt import sparse
from frisket.adapt.base import MethodSettings
from frisket.adapt.graft import AttachedGraft, Graft, Side
from frisket.errors import UnsupportedError
from frisket.evaluate.calibration import calibration
from frisket.run import measuring
from frisket.watch import Watcher

if TYPE_CHECKING:
    from frisket.run.training import Loaded

SIDES: Mapping[Side, str] = {"base": "base", "tuned": "fine-tuned", "top": "most moved", "graft": "graft"}
"""What is measured: the base, with all fine-tuned values of `where`, with those that moved most, with those kept."""


def refuse_fp16(method: MethodSettings, compute: torch.dtype) -> None:
    """Refuse to search for a graft in fp16, which ends at 6e-8.

    Raises:
        UnsupportedError: it is asked for.
    """
    if isinstance(method, Graft) and compute == torch.float16:
        raise UnsupportedError(
            "adapt.method=graft: the gradients of its scores are near 1e-11, and fp16 holds nothing below 6e-8.\n"
            "train.compute=fp32"
        )


def judged(
    loaded: "Loaded", sets: measuring.Sets | None, before: measuring.Before | None, watcher: Watcher
) -> dict[str, Any]:
    """Measure a graft against what it was made of; nothing for other methods.

    Returns:
        The entry ``graft`` of ``summary.json``: ``entries`` kept of ``among``, how many of the most moved ones were
        ``dropped`` and how many others ``added``, and, where there is a set that measures learning, ``of`` each side
        the loss and calibration on it, and the share ``kept`` of the gain in loss.
    """
    attached = loaded.attached
    if not isinstance(attached, AttachedGraft):
        return {}
    found = _counts(attached)
    watcher.say(
        f"graft      {found['entries']:,} of {found['among']:,} entries: of those that moved most {found['dropped']:,} "
        f"dropped, {found['added']:,} others added"
    )
    if sets is None or before is None or not sets.learning:
        watcher.warn("graft      nothing was measured while searching, so the result is the last mask, not the best")
        return {"graft": found}
    samples = [sets.learning[0].samples[i] for i in before.learning[0].samples]
    of = {}
    for side, name in SIDES.items():
        with attached.showing(side):
            of[name] = asdict(calibration(loaded.model, samples, sets.instruments))
    gain = of["base"]["loss"] - of["fine-tuned"]["loss"]
    found |= {
        "set": before.names[0],
        "of": of,
        "kept": (of["base"]["loss"] - of["graft"]["loss"]) / gain if gain else None,
    }
    for line in _lines(found):
        watcher.say(line)
    return {"graft": found}


def _counts(attached: AttachedGraft) -> dict[str, int]:
    scores = attached.parameters()
    masks = attached.masks(scores)
    tops = attached.masks({name: torch.full_like(value, -1) for name, value in scores.items()})
    return {
        "entries": sum(int(mask.sum()) for mask in masks.values()),
        "among": sum(mask.numel() for mask in masks.values()),
        "dropped": sum(int((tops[name] & ~mask).sum()) for name, mask in masks.items()),
        "added": sum(int((mask & ~tops[name]).sum()) for name, mask in masks.items()),
    }


def _lines(found: Mapping[str, Any]) -> list[str]:
    kept = "" if found["kept"] is None else f" · {found['kept']:.0%} of the fine-tuning's gain in loss is kept"
    told = [f"           on {found['set']}: loss, right tokens, calibration error{kept}"]
    for name, side in found["of"].items():
        told.append(f"           {name:<12}{side['loss']:8.4f} {side['accuracy']:7.1%} {side['error']:8.4f}")
    return told


def overlaps(adapters: Mapping[str, Path]) -> list[dict[str, Any]]:
    """Which entries each two sparse adapters share; other adapters are left out.

    Args:
        adapters: folder of each arm's adapter.

    Returns:
        For each pair ``{"a", "b", "entries", "shared", "jaccard", "chance", "chance_jaccard", "among"}``.

    Raises:
        CheckError: they change tensors of two shapes.
    """
    read = {name: sparse.read(folder) for name, folder in adapters.items() if sparse.is_sparse(folder)}
    found = []
    for (a, (ours, one)), (b, (theirs, other)) in combinations(read.items(), 2):
        among = max(one.get("among", 0), other.get("among", 0)) or _entries_of_tensors([ours, theirs])
        each = sparse.overlap(ours, theirs, among)
        found.append(
            {
                "a": a,
                "b": b,
                "entries": list(each.entries),
                "shared": each.shared,
                "jaccard": each.jaccard,
                "chance": each.chance,
                "chance_jaccard": each.chance_jaccard,
                "among": among,
            }
        )
    return found


def _entries_of_tensors(changes: Sequence[Mapping[str, sparse.Change]]) -> int:
    """Entries of all tensors that any of them touches."""
    shapes = {name: change.shape for each in changes for name, change in each.items()}
    return sum(torch.Size(shape).numel() for shape in shapes.values())
