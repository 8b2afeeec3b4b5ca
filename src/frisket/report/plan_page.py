"""The page of ``frisket plan``: what a run would do, before anything is paid for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from frisket.report.ledger import ledger_html
from frisket.report.overlap import overlap_html
from frisket.report.render import page
from frisket.report.which import which_html
from frisket.types import Ledger


@dataclass(frozen=True)
class ConstantText:
    """Text that many messages of a source begin or end with.

    Attributes:
        source: name of the source.
        role: provenance of the messages.
        side: ``start`` or ``end`` of the message.
        text: the text itself.
        share: share of the source's messages of this provenance that have it.
    """

    source: str
    role: str
    side: str
    text: str
    share: float


def plan_page(
    title: str,
    facts: Sequence[tuple[str, str]],
    ledgers: Mapping[str, Ledger],
    *,
    version: str,
    advice: Sequence[tuple[str, str]] = (),
    overlap: Mapping[str, Mapping] | None = None,
    boilerplate: Sequence[ConstantText] = (),
    memory: Sequence[tuple[str, str, str]] = (),
    adapt: Mapping | None = None,
    train: Mapping | None = None,
    fragment: Markup | None = None,
) -> str:
    """One HTML document without external parts.

    Args:
        title: name of the recipe.
        facts: (name, text): samples, steps, tokens, arrangement, rows, model, rate.
        ledgers: one for each source, over the planned steps.
        version: of frisket.
        advice: (sentence, where it is from).
        overlap: by evaluation set what ``frisket.evaluate.overlap.Overlap.as_dict`` gives.
        boilerplate: constant text that was found.
        memory: (name, size, arithmetic) of what is in memory at the highest moment, and of what is written to disk.
        adapt: what ``frisket.run.which.which_weights`` returns.
        train: ``learning_rate`` and ``learning_rate_why``.
        fragment: what ``mask_fragment`` made, or None where no row is shown.
    """
    return page(
        "plan.html.jinja",
        title=title,
        version=version,
        facts=facts,
        ledger=ledger_html(ledgers),
        advice=advice,
        overlap=overlap_html(overlap or {}),
        boilerplate=sorted(boilerplate, key=lambda each: -each.share),
        memory=memory,
        which=which_html(adapt or {}, train or {}),
        fragment=fragment,
    )
