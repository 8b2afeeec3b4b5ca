"""How much of the evaluation data also stands in the training data, as a part of a page."""

from collections.abc import Mapping

from markupsafe import Markup

from frisket.report.render import page

_COUNTED = ("whole", "prompt", "answer")


def overlap_html(overlap: Mapping[str, Mapping]) -> Markup:
    """Sentences and tables as an HTML fragment; empty where nothing was compared.

    Args:
        overlap: by evaluation set what ``frisket.evaluate.overlap.Overlap.as_dict`` gives.
    """
    return Markup(page("overlap.html.jinja", sets=overlap, rows=overlap_rows(overlap))) if overlap else Markup("")


def overlap_rows(overlap: Mapping[str, Mapping]) -> list[tuple[str | int, ...]]:
    """Set, samples, duplicates, same prompt, then samples from 80 % and from 20 % on of whole, prompt and answer."""
    rows: list[tuple[str | int, ...]] = []
    for name, each in overlap.items():
        shares = [each[part][bound] for part in _COUNTED for bound in ("most", "some")]
        rows.append((name, each["samples"], each["duplicates"], each["same_prompt"], *shares))
    return rows
