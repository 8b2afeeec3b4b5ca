"""Horizontal bars in plain HTML: before and after on one scale, and what each provenance teaches."""

from collections.abc import Sequence

from markupsafe import Markup, escape

from frisket.report.measures import Figure, Measure
from frisket.report.render import count, words
from frisket.types import Ledger


def before_after_bars(rows: Sequence[tuple[str, int | None, Measure]]) -> Markup:
    """Horizontal bars, before above after, with intervals as whiskers, on one scale.

    Args:
        rows: (name, number of samples, measure); all of one metric.
    """
    if not rows:
        return Markup("")
    sides = [side for _, _, m in rows for side in (m.before, m.after) if side is not None]
    scale = 1.0 if rows[0][2].more_is_better else max((s.spread() for s in sides), default=1.0) or 1.0
    lines = []
    for name, samples, measure in rows:
        note = "" if samples is None else f'<span class="quiet">{count(samples)} samples</span>'
        bars = _bar("before", measure, measure.before, scale) + _bar("after", measure, measure.after, scale)
        lines.append(
            f'<div class="pair"><div class="who">{escape(name)} {note}</div><div class="bars">{bars}</div></div>'
        )
    return Markup('<div class="chart-bars">' + "".join(lines) + "</div>")


def taught_bars(ledger: Ledger) -> Markup:
    """One bar a provenance, as long as its tokens, filled as far as they are taught."""
    names = dict.fromkeys([*ledger.taught, *ledger.untaught])
    sizes = {name: (ledger.taught.get(name, 0), ledger.untaught.get(name, 0)) for name in names}
    most = max((sum(pair) for pair in sizes.values()), default=0)
    lines = []
    for name, (taught, untaught) in sorted(sizes.items(), key=lambda item: -sum(item[1])):
        whole = taught + untaught
        if whole:
            fill = f'<span class="fill" style="width:{percent(taught, whole)}"></span>'
            track = f'<span class="lane"><span class="track" style="width:{percent(whole, most)}">{fill}</span></span>'
            lines.append(
                f'<div class="pair"><div class="who">{escape(words(name))} '
                f'<span class="quiet">{count(whole)} tokens</span></div>'
                f'<div class="bar">{track}<span class="value">{_taught(taught, whole)}</span></div></div>'
            )
    return Markup('<div class="chart-bars">' + "".join(lines) + "</div>")


def _taught(taught: int, whole: int) -> str:
    if not taught:
        return '<span class="quiet">not taught</span>'
    return "all taught" if taught == whole else f"{100 * taught / whole:.1f} % taught"


def _bar(which: str, measure: Measure, side: Figure | None, scale: float) -> str:
    if side is None:
        return (
            f'<div class="bar {which}"><span class="track"></span><span class="value quiet">not measured</span></div>'
        )
    marks = f'<span class="fill" style="width:{percent(side.value, scale)}"></span>'
    if side.low is not None and side.high is not None:
        width = percent(side.high - side.low, scale)
        marks += f'<span class="whisker" style="left:{percent(side.low, scale)};width:{width}"></span>'
    told = f"{which} {measure.text(side.value)}"
    interval = measure.interval(side)
    title = escape(f"{told} ({interval})" if interval else told)
    text = escape(measure.text(side.value))
    track = f'<span class="track">{marks}</span><span class="value">{text}</span>'
    return f'<div class="bar {which}" title="{title}">{track}</div>'


def percent(value: float, scale: float) -> str:
    """A width in CSS: the share of the scale, between 0 and 100 %."""
    return f"{min(max(100 * value / scale, 0.0), 100.0):.2f}%"
