"""Curves over tokens as small hand-written SVG: crisp at any size, coloured by the page's own style sheet."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

from markupsafe import Markup, escape

from frisket.report.render import count, figure

WIDTH, HEIGHT = 460, 250
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 46
MOST_POINTS = 400
"""A curve is averaged down to this many points: more cannot be seen and would only make the page large."""
MOST_READINGS = 120
"""So many places of a chart tell their figures to whoever points at them."""
DENSE = 20
"""From so many steps on a bold moving average lies over the faint single steps."""

_FLAT = 1e-12
Point = tuple[float, float]
"""(flat tokens seen so far, value)"""
Place = Callable[[Point], Point]
"""From (tokens, value) to the drawing's own units."""


@dataclass(frozen=True)
class Curve:
    """One line of a chart.

    Attributes:
        name: what the key calls it; empty: it is not in the key.
        points: finite, by ascending tokens.
        intervals: (low, high) of each point, drawn as a whisker; such a curve is dashed between its dots.
        is_noisy: many single steps, drawn faint under their moving average.
    """

    name: str
    points: Sequence[Point]
    intervals: Sequence[tuple[float, float]] = ()
    is_noisy: bool = False


@dataclass(frozen=True)
class Chart:
    """Curves on common axes.

    Attributes:
        title: what the values are.
        unit: their unit, in words.
        curves: at most four, told apart by colour.
        sentence: what a person sees in it.
        readings: (tokens, text) shown where the chart is pointed at: the second reading of the axis.
        tick: how a value is written at the axis.
        first_tone: colour of the first curve; the others follow it.
        floor: the lowest value that the axis must show, where the values alone do not ask for it.
        mark: (tokens, word) of an upright line.
    """

    title: str
    unit: str
    curves: Sequence[Curve]
    sentence: str = ""
    readings: Sequence[tuple[float, str]] = field(default=(), repr=False)
    tick: Callable[[float], str] = figure
    first_tone: int = 0
    floor: float | None = None
    mark: tuple[float, str] | None = None


def draw(chart: Chart) -> Markup:
    """The chart as a figure with title, unit, key and sentence; only a sentence where there is nothing to draw."""
    curves = [curve for curve in chart.curves if curve.points]
    places = [x for curve in curves for x, _ in curve.points]
    if len(set(places)) < 2:
        return Markup('<p class="quiet">{}: fewer than two steps were recorded.</p>').format(chart.title)
    frame = _Frame.around(chart, curves)
    marks = [_y_axis(chart, frame), _x_axis(frame)]
    marks += [] if chart.mark is None else [_upright(*chart.mark, frame)]
    marks += [_curve(curve, tone, frame) for tone, curve in enumerate(curves, chart.first_tone)]
    marks += _strips(chart.readings, frame)
    head = f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(_told(chart))}">'
    return Markup(
        f'<figure class="plot"><figcaption><b>{escape(chart.title)}</b> <span>{escape(chart.unit)}</span>'
        f"{_key(curves, chart.first_tone)}</figcaption>{head}{''.join(marks)}</svg>"
        f'<p class="seen">{escape(chart.sentence)}</p></figure>'
    )


def tokens_text(tokens: float) -> str:
    """A number of tokens as a person says it.

    >>> tokens_text(39502), tokens_text(1_934_000), tokens_text(250_400)
    ('39,502 tokens', '1.93 million tokens', '250 thousand tokens')
    """
    if tokens < 100_000:
        return f"{count(tokens)} tokens"
    return f"{tokens / 1e6:.3g} million tokens" if tokens >= 999_500 else f"{tokens / 1e3:.3g} thousand tokens"


def averaged(points: Sequence[Point]) -> list[Point]:
    """Mean over about a twentieth of the run around each point; at both ends only over what there is.

    >>> averaged([(1.0, 0.0), (2.0, 3.0), (3.0, 0.0)])
    [(1.0, 1.5), (2.0, 1.0), (3.0, 1.5)]
    """
    reach, size = max(len(points) // 40, 1), len(points)
    sums = list(accumulate((y for _, y in points), initial=0.0))
    spans = ((max(i - reach, 0), min(i + reach + 1, size)) for i in range(size))
    return [
        (x, (sums[stop] - sums[start]) / (stop - start)) for (x, _), (start, stop) in zip(points, spans, strict=True)
    ]


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


@dataclass(frozen=True)
class _Frame:
    """What part of the plane a chart shows: all tokens from 0 on, so that the charts of a page can be compared."""

    right: float
    ticks: Sequence[float]

    @classmethod
    def around(cls, chart: Chart, curves: Sequence[Curve]) -> "_Frame":
        places = [x for curve in curves for x, _ in curve.points]
        values = [y for curve in curves for _, y in curve.points]
        values += [end for curve in curves for pair in curve.intervals for end in pair if math.isfinite(end)]
        low, high = _bounds([*values, *([] if chart.floor is None else [chart.floor])])
        return cls(max(places), nice_ticks(low, high, 4))

    def place(self, point: Point) -> Point:
        low, high = self.ticks[0], self.ticks[-1]
        x = LEFT + point[0] / self.right * (WIDTH - LEFT - RIGHT)
        return x, HEIGHT - BOTTOM - (point[1] - low) / (high - low) * (HEIGHT - TOP - BOTTOM)


def _told(chart: Chart) -> str:
    return f"{chart.title}. {chart.sentence}" if chart.sentence else chart.title


def _key(curves: Sequence[Curve], first_tone: int) -> str:
    named = [(tone, curve.name) for tone, curve in enumerate(curves, first_tone) if curve.name]
    return "".join(f'<span class="in-key s{tone}">{escape(name)}</span>' for tone, name in named)


def _curve(curve: Curve, tone: int, frame: _Frame) -> str:
    drawn = [frame.place(point) for point in _thinned(curve.points)]
    is_dense = curve.is_noisy and len(curve.points) >= DENSE
    style = " faint" if is_dense else " measured" if curve.intervals else ""
    parts = [_path(drawn, f"curve s{tone}{style}")]
    if is_dense:
        parts.append(_path([frame.place(point) for point in _thinned(averaged(curve.points))], f"curve s{tone}"))
    for point, (low, high) in zip(curve.points, curve.intervals, strict=bool(curve.intervals)):
        x, y = frame.place(point)
        if math.isfinite(low) and math.isfinite(high):
            top, bottom = frame.place((point[0], high))[1], frame.place((point[0], low))[1]
            parts.append(f'<path class="reach s{tone}" d="M{x:.1f} {top:.1f}V{bottom:.1f}"/>')
        parts.append(f'<circle class="dot s{tone}" cx="{x:.1f}" cy="{y:.1f}" r="3.2"/>')
    return "".join(parts)


def _upright(tokens: float, word: str, frame: _Frame) -> str:
    x, _ = frame.place((tokens, frame.ticks[0]))
    line = f'<path class="best" d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}"/>'
    return f'{line}<text class="tick mid" x="{x:.1f}" y="{TOP - 2}">{escape(word)}</text>'


def _strips(readings: Sequence[tuple[float, str]], frame: _Frame) -> list[str]:
    """Upright strips, invisible until pointed at, that tell what was measured there."""
    if not readings:
        return []
    size = len(readings)
    chosen = readings if size <= MOST_READINGS else [readings[i * size // MOST_READINGS] for i in range(MOST_READINGS)]
    places = [frame.place((tokens, frame.ticks[0]))[0] for tokens, _ in chosen]
    edges = [LEFT, *((a + b) / 2 for a, b in pairwise(places)), WIDTH - RIGHT]
    return [
        f'<rect class="strip" x="{a:.1f}" y="{TOP}" width="{max(b - a, 0):.1f}" height="{HEIGHT - TOP - BOTTOM}">'
        f"<title>{escape(text)}</title></rect>"
        for (_, text), (a, b) in zip(chosen, pairwise(edges), strict=True)
    ]


def _thinned(points: Sequence[Point]) -> Sequence[Point]:
    if len(points) <= MOST_POINTS:
        return points
    edges = [round(i * len(points) / MOST_POINTS) for i in range(MOST_POINTS + 1)]
    groups = [points[a:b] for a, b in pairwise(edges)]
    means = [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]
    return [points[0], *means[1:-1], points[-1]]


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


def _y_axis(chart: Chart, frame: _Frame) -> str:
    parts = []
    for tick in frame.ticks:
        _, y = frame.place((0.0, tick))
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text class="tick end" x="{LEFT - 7}" y="{y + 4:.1f}">{escape(chart.tick(tick))}</text>')
    return "".join(parts)


def _x_axis(frame: _Frame) -> str:
    unit, word = (1.0, "") if frame.right < 10_000 else (1e3, "thousand ") if frame.right < 2e6 else (1e6, "million ")
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts = [f'<text class="tick mid" x="{middle:.1f}" y="{HEIGHT - 6}">{word}tokens seen</text>']
    for tick in nice_ticks(0.0, frame.right / unit, 5):
        x, base = frame.place((tick * unit, frame.ticks[0]))
        if x <= WIDTH - RIGHT + 1:
            parts.append(f'<path class="grid" d="M{x:.1f} {base:.1f}v4"/>')
            parts.append(f'<text class="tick mid" x="{x:.1f}" y="{base + 18:.1f}">{figure(tick)}</text>')
    return "".join(parts)
