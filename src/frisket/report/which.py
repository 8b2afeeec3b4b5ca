"""A part of the pages of a plan and of a run: which weights move."""

from collections.abc import Mapping

from markupsafe import Markup

from frisket.report.render import count, page


def which_html(adapt: Mapping, train: Mapping) -> Markup:
    """As an HTML fragment; empty where nothing is known of it.

    Args:
        adapt: what ``frisket.run.which.which_weights`` returns.
        train: ``learning_rate`` and ``learning_rate_why``.
    """
    if not adapt:
        return Markup("")
    rate = f"{train['learning_rate']:g}: {train['learning_rate_why']}" if "learning_rate" in train else ""
    facts = [
        ("method", f"{adapt['method']}: {adapt['moves']} ({adapt['source']})"),
        ("where", adapt["where"]),
        ("matched", _matched(adapt)),
        ("rate", rate),
    ]
    rows = [(g["name"], count(g["tensors"]), count(g["entries"]), f"{100 * g['share']:.3g} %") for g in adapt["groups"]]
    shown = [(name, text) for name, text in facts if text]
    return Markup(page("which.html.jinja", facts=shown, rows=rows, notes=adapt["notes"]))


def _matched(adapt: Mapping) -> str:
    """How many modules, tensors and entries; empty where the method lies beside the base."""
    names = [
        f"{count(adapt[name])} {name.removesuffix('s') if adapt[name] == 1 else name}"
        for name in ("modules", "tensors")
    ]
    return f"{', '.join(names)}, {count(adapt['entries'])} entries of the base" if adapt["tensors"] else ""
