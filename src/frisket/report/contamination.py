"""The part of a report on mask-free rows: what the meter measured, and the verdict beside isolated rows."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from frisket.report.curves import Chart, Curve, draw
from frisket.report.plots import Steps
from frisket.report.render import count, figure, page, words


@dataclass(frozen=True)
class _Quantity:
    """One row of the table of the meter."""

    name: str
    label: str
    text: Callable[[float], str]


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _times(value: float) -> str:
    return f"{value:.2f} ×"


def _cosine(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


_QUANTITIES = (
    _Quantity("foreign_mass", "attention that goes to other samples", _percent),
    _Quantity("foreign_share", "size of what comes from them, beside the whole output", _percent),
    _Quantity("foreign_norm", "size of what comes from them, beside the frozen model's", _times),
    _Quantity("own_norm", "size of what comes from the own sample, beside the frozen model's", _times),
    _Quantity("attenuation", "cosine of the adapter's part with the frozen one: other samples", _cosine),
    _Quantity("own_cosine", "cosine of the adapter's part with the frozen one: own sample", _cosine),
)


def contamination_html(records: Sequence[Mapping], steps: Steps, verdict: Mapping | None) -> Markup:
    """Sentence, curves, table and verdict as an HTML fragment; empty where nothing was measured or judged.

    Args:
        records: of ``contamination.jsonl``: ``step`` and the meter's figures over all layers, before training first.
        steps: for the axis of tokens.
        verdict: of ``summary.json``, where ``attend.compare`` was on.
    """
    if not records and not verdict:
        return Markup("")
    return Markup(
        page(
            "contamination.html.jinja",
            sentence=_sentence(records[0], records[-1]) if records else "",
            plots=[draw(chart) for chart in _charts(records, steps)] if len(records) > 1 else [],
            rows=_rows(records),
            measured=records[0] if records else None,
            quality=_quality(verdict),
            times=_times_of(verdict),
            recommendation=verdict["recommendation"] if verdict else "",
        )
    )


def _sentence(before: Mapping, after: Mapping) -> str:
    mass, norm = (after.get(name) for name in ("foreign_mass", "foreign_norm"))
    if not mass or norm is None:
        return "Nothing comes from other samples of a row."
    told = (
        f"{_percent(before['foreign_mass'])} of the attention went to other samples of the row before training, "
        f"{_percent(mass)} after it"
    )
    if after.get("attenuation") is None:
        return f"{told}. The adapter has not moved the attention heads."
    does = "weakens" if norm < 1 else "does not weaken"
    return f"{told}. The adapter {does} what comes from them: {_times(norm)} the size it has in the frozen model."


def _charts(records: Sequence[Mapping], steps: Steps) -> list[Chart]:
    parts = (("foreign", "other samples"), ("own", "own sample"))
    size = [_curve(records, steps, f"{name}_norm", label) for name, label in parts]
    cosine = [
        _curve(records, steps, name, label)
        for name, (_, label) in zip(("attenuation", "own_cosine"), parts, strict=True)
    ]
    return [
        Chart(
            "Size of what a head gets",
            "beside the same part of the frozen model",
            size,
            f"{_ends(size, _times)} 1 is the frozen model: below it the adapter weakens a part.",
            _readings(size, _times),
            floor=0.0,
        ),
        Chart(
            "Direction of what the adapter adds",
            "cosine with the frozen part",
            cosine,
            f"{_ends(cosine, _cosine)} Below 0 it points against the frozen part; alone that is no evidence.",
            _readings(cosine, _cosine),
            floor=0.0,
        ),
    ]


def _curve(records: Sequence[Mapping], steps: Steps, name: str, label: str) -> Curve:
    found = [
        (steps.tokens[r["step"]], r[name]) for r in records if r.get(name) is not None and r["step"] in steps.tokens
    ]
    return Curve(label, found)


def _ends(curves: Sequence[Curve], text: Callable[[float], str]) -> str:
    told = [f"{curve.name} {text(curve.points[-1][1])}" for curve in curves if curve.points]
    return f"At the end {', '.join(told)}." if told else ""


def _readings(curves: Sequence[Curve], text: Callable[[float], str]) -> list[tuple[float, str]]:
    own = dict(curves[1].points)
    return [
        (x, f"{count(x)} tokens · other samples {text(a)} · own sample {text(own[x])}")
        for x, a in curves[0].points
        if x in own
    ]


def _rows(records: Sequence[Mapping]) -> list[tuple[str, str, str]]:
    if not records:
        return []
    before, after = records[0], records[-1]
    return [(q.label, _shown(q, before), _shown(q, after)) for q in _QUANTITIES]


def _shown(quantity: _Quantity, record: Mapping) -> str:
    value = record.get(quantity.name)
    return "—" if value is None else quantity.text(value)


def _quality(verdict: Mapping | None) -> list[tuple[str, str, str, str, str]]:
    if not verdict:
        return []
    return [
        (
            words(name),
            figure(each["mask_free"]),
            figure(each["isolated"]),
            f"{figure(each['interval'][0])} to {figure(each['interval'][1])}",
            each["told"],
        )
        for name, each in verdict["quality"].items()
    ]


def _times_of(verdict: Mapping | None) -> tuple[str, str] | None:
    if not verdict:
        return None
    seconds = verdict["seconds_per_step"]
    return figure(seconds["mask_free"]), figure(seconds["isolated"])
