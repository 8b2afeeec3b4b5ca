"""What a run changed, what it calls its two sides, and what its stages did: the words of every screen and page."""

from collections.abc import Mapping
from typing import Any

from frisket.report.measures import measures
from frisket.report.render import figure


def changed(summary: Mapping) -> int:
    """Entries that are not the base's in the result: of a mask over scores those that it changes, else all that move.

    >>> changed({"model": {"moving": 900}, "graft": {"entries": 7}})
    7
    """
    graft, mask = summary.get("graft"), summary.get("mask_tuning")
    if graft:
        return graft["entries"]
    if mask:
        return mask["off"] if mask["shipped"] else 0
    return summary["model"]["moving"]


def moved_told(summary: Mapping) -> str:
    """What moved, and of which whole; where scores were trained both they and what they change are named."""
    model = summary["model"]
    moving, every, entries = model["moving"], model["parameters"], changed(summary)
    share = f"{figure(100 * entries / every)} %" if every else "—"
    if summary.get("graft") or summary.get("mask_tuning"):
        return f"{entries:,} of the base's {every:,} entries change ({share}); {moving:,} scores were searched"
    return f"{moving:,} of {every:,} parameters moved ({share})"


def rejection(summary: Mapping) -> str:
    """That a mask was not shipped, why, and what to use; empty where there is a result."""
    mask = summary.get("mask_tuning")
    if not mask or mask["shipped"]:
        return ""
    return f"No mask is shipped: {mask['sentence']}. Use {summary['model']['path']} as it is."


def sides(summary: Mapping) -> tuple[str, str]:
    """What the figures and answers of a run belong to."""
    earlier = summary.get("earlier")
    is_later = bool(earlier) and earlier[0]["path"] != summary["model"]["path"]
    return "before this stage" if is_later else "before", "rejected mask" if rejection(summary) else "after"


def true_base(summary: Mapping) -> str:
    """The model that the first stage started from."""
    earlier = summary.get("earlier")
    return earlier[0]["path"] if earlier else summary["model"]["path"]


def stage_row(summary: Mapping) -> dict[str, Any]:
    """One finished stage: the model it started from, its method, where, what moved, and what it measured, in words."""
    measured = [
        f"{name} {m.label} {m.shown(m.before)} → {m.shown(m.after)}"
        for name, entry in (summary.get("learning") or {}).items()
        for m in measures(entry)[:1]
    ]
    loss = summary.get("loss")
    untold = "nothing was measured" if loss is None else f"training loss at the end {figure(loss)}"
    return {
        "path": summary["model"]["path"],
        "method": summary["model"]["method"],
        "where": (summary.get("adapt") or {}).get("where", ""),
        "moved": moved_told(summary),
        "measured": "; ".join(measured) or untold,
        "outcome": "no mask is shipped" if rejection(summary) else "",
    }


def stage_rows(summary: Mapping) -> list[dict[str, Any]]:
    """Every stage up to this one; empty where a run has none before it."""
    earlier = summary.get("earlier")
    return [*earlier, stage_row(summary)] if earlier else []
