"""What a run with mask fine-tuning found, as rows and as a part of a page."""

from collections.abc import Mapping

from markupsafe import Markup

from frisket.report.render import page

_NAMES = {"none": "no mask", "random": "random mask", "magnitude": "smallest weights off", "learnt": "learnt mask"}


def candidate_rows(candidates: Mapping[str, Mapping]) -> list[tuple[str, ...]]:
    """Candidate, loss, paired difference to no mask, its interval with the verdict."""
    return [(_NAMES[name], *_figures(entry)) for name, entry in candidates.items()]


def group_rows(search: Mapping) -> list[tuple[str, ...]]:
    """Layers, and the same of each group's learnt mask; the one that was taken says so."""
    rows = []
    for entry in search["groups"]:
        taken = " (taken)" if entry["layers"] == search["best"] else ""
        rows.append((entry["layers"] + taken, *_figures(entry)))
    return rows


def verdict_of(told: Mapping) -> str:
    """Whether the mask is shipped and why, how many entries are off, and how many of them training chose."""
    share = 100 * told["moved"] / told["off"] if told["off"] else 0.0
    what = "The mask is shipped" if told["shipped"] else "No mask is shipped"
    return (
        f"{what}: {told['sentence']}; {told['off']:,} of {told['entries']:,} entries off, {share:.3g} % of them were "
        "on at the start"
    )


def masks_html(summary: Mapping) -> Markup:
    """Tables as an HTML fragment; empty for other methods."""
    told, search = summary.get("mask_tuning"), summary.get("layer_search")
    if not told:
        return Markup("")
    sets = {name: candidate_rows(candidates) for name, candidates in told["sets"].items()}
    found = group_rows(search) if search else []
    return Markup(page("masks.html.jinja", verdict=verdict_of(told), sets=sets, groups=found))


def _figures(entry: Mapping) -> tuple[str, str, str]:
    loss = f"{entry['loss']:.4f}" if "loss" in entry else "not finite"
    if "difference" not in entry:
        return loss, "", ""
    interval = "no interval"
    if "difference_interval" in entry:
        low, high = entry["difference_interval"]
        interval = f"{low:+.4f} to {high:+.4f}, {entry['verdict']}"
    return loss, f"{entry['difference']:+.4f}", interval
