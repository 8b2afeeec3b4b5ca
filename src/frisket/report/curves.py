"""Curves and bars as small hand-written SVG and HTML: crisp at any size, coloured by the page's own style sheet."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise

from markupsafe import Markup, escape

from frisket.report.measures import Figure, Measure
from frisket.report.render import count, figure

WIDTH, HEIGHT = 520, 240
LEFT, RIGHT, TOP, BOTTOM = 54, 14, 14, 34
MOST_POINTS = 500
"""A curve is averaged down to this many points: more cannot be seen and would only make the page large."""

_FLAT = 1e-12
Point = tuple[float, float]
Place = Callable[[Point], Point]
"""From (step, value) to the drawing's own units."""


def loss_curve(metrics: Iterable[Mapping]) -> Markup:
    """Training loss by step; a bold moving average lies over the single steps where there are many."""
    return line_chart(points_of(metrics, "loss"), label="loss", smooth=True)


def points_of(records: Iterable[Mapping], name: str) -> list[Point]:
    """(step, value) of every record that holds a finite value under ``name``."""
    pairs = ((r["step"], r.get(name)) for r in records)
    return [(float(x), float(y)) for x, y in pairs if y is not None and math.isfinite(y)]


def speeds(metrics: Iterable[Mapping], timings: Iterable[Mapping]) -> list[Point]:
    """(step, real tokens per second), from the tokens of ``metrics.jsonl`` and the seconds of ``timings.jsonl``."""
    tokens = {r["step"]: r.get("flat_tokens") for r in metrics}
    timed = ((t["step"], t.get("seconds"), tokens.get(t["step"])) for t in timings if "step" in t)
    return [(float(step), flat / seconds) for step, seconds, flat in timed if seconds and flat]


def line_chart(points: Sequence[Point], *, label: str, smooth: bool = False) -> Markup:
    """One curve over steps as an inline SVG; a short sentence where there is nothing to draw.

    Args:
        points: (step, value), finite, by ascending step.
        label: what the values are.
        smooth: also draw an exponential moving average.
    """
    if len(points) < 2 or points[0][0] == points[-1][0]:
        return Markup('<p class="quiet">{}: fewer than two steps were recorded.</p>').format(label.capitalize())
    drawn = _thinned(points)
    low, high = _bounds([y for _, y in drawn])
    x_low, x_high = drawn[0][0], drawn[-1][0]
    ticks = nice_ticks(low, high, 5)
    low, high = min(low, ticks[0]), max(high, ticks[-1])

    def place(point: Point) -> Point:
        x = LEFT + (point[0] - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)
        return x, HEIGHT - BOTTOM - (point[1] - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    parts = [_y_axis(ticks, place, x_low), _x_axis(nice_ticks(x_low, x_high, 6), place, low)]
    is_dense = smooth and len(points) >= 40
    parts.append(_path([place(p) for p in drawn], "curve faint" if is_dense else "curve"))
    if is_dense:
        parts.append(_path([place(p) for p in _thinned(_averaged(points))], "curve"))
    told = (
        f"{label} from {figure(points[0][1])} at step {count(x_low)} to {figure(points[-1][1])} at step {count(x_high)}"
    )
    head = f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(told)}">'
    return Markup(
        f'<figure class="plot"><figcaption><b>{escape(label)}</b> {figure(points[0][1])} → {figure(points[-1][1])}'
        f"</figcaption>{head}{''.join(parts)}</svg></figure>"
    )


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


def nice_ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers from just below ``low`` to just above ``high``, about ``most`` of them.

    >>> nice_ticks(0.13, 2.9, 5)
    [0.0, 1.0, 2.0, 3.0]
    """
    raw = (high - low) / max(most - 1, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{i * step:.12g}") for i in range(first, last + 1)]


def _bar(which: str, measure: Measure, side: Figure | None, scale: float) -> str:
    if side is None:
        return (
            f'<div class="bar {which}"><span class="track"></span><span class="value quiet">not measured</span></div>'
        )
    marks = f'<span class="fill" style="width:{_percent(side.value, scale)}"></span>'
    if side.low is not None and side.high is not None:
        width = _percent(side.high - side.low, scale)
        marks += f'<span class="whisker" style="left:{_percent(side.low, scale)};width:{width}"></span>'
    told = f"{which} {measure.text(side.value)}"
    interval = measure.interval(side)
    title = escape(f"{told} ({interval})" if interval else told)
    text = escape(measure.text(side.value))
    track = f'<span class="track">{marks}</span><span class="value">{text}</span>'
    return f'<div class="bar {which}" title="{title}">{track}</div>'


def _percent(value: float, scale: float) -> str:
    return f"{min(max(100 * value / scale, 0.0), 100.0):.2f}%"


def _thinned(points: Sequence[Point]) -> Sequence[Point]:
    if len(points) <= MOST_POINTS:
        return points
    edges = [round(i * len(points) / MOST_POINTS) for i in range(MOST_POINTS + 1)]
    groups = [points[a:b] for a, b in pairwise(edges)]
    means = [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]
    return [points[0], *means[1:-1], points[-1]]


def _averaged(points: Sequence[Point]) -> list[Point]:
    """Exponential moving average over about a twentieth of the run, corrected for its start at zero."""
    keep = 1 - 1 / max(len(points) / 20, 2)
    mean, weight, out = 0.0, 0.0, []
    for x, y in points:
        mean, weight = keep * mean + (1 - keep) * y, keep * weight + (1 - keep)
        out.append((x, mean / weight))
    return out


def _bounds(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    if 0 <= low < 0.5 * high:
        low = 0.0
    size = max(abs(low), abs(high))
    if high - low > max(1e-9 * size, _FLAT):
        return low, high
    pad = 0.5 * size if size > _FLAT else 0.5
    return low - pad, high + pad


def _path(points: Sequence[Point], style: str) -> str:
    return f'<path class="{style}" d="M' + "L".join(f"{x:.1f} {y:.1f}" for x, y in points) + '"/>'


def _y_axis(ticks: Sequence[float], place: Place, x: float) -> str:
    parts = []
    for tick in ticks:
        _, y = place((x, tick))
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text class="tick end" x="{LEFT - 8}" y="{y + 4:.1f}">{figure(tick)}</text>')
    return "".join(parts)


def _x_axis(ticks: Sequence[float], place: Place, y: float) -> str:
    parts = [f'<text class="tick end" x="{WIDTH - RIGHT}" y="{HEIGHT - 3}">step</text>']
    for tick in ticks:
        x, base = place((tick, y))
        if LEFT - 1 <= x <= WIDTH - RIGHT + 1 and tick == int(tick):
            parts.append(f'<text class="tick mid" x="{x:.1f}" y="{base + 17:.1f}">{count(tick)}</text>')
    return "".join(parts)
