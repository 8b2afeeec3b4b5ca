"""Lines over a plane of two measures: a point an arm with the reach of its seeds, a line through what belongs together.

``curves`` draws what goes on over the tokens of one run; here both axes are measures, and each point is several runs.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from frisket.errors import DataError
from frisket.report.curves import nice_ticks
from frisket.report.render import figure

WIDTH, HEIGHT = 760, 400
LEFT, RIGHT, TOP, BOTTOM = 64, 220, 16, 52
TONES = 8
"""So many colours; further lines begin again, dashed and with hollow points."""
_LINE_OF_KEY = 20
_LONGEST_NAME = 30
_MOST_LOG_TICKS = 7
_STYLE = """svg{--card:#fff;--ink:#1c2126;--muted:#68707a;--line:#dedbd3;--t0:#0e8aa0;--t1:#c2570c;--t2:#6d51a8;
--t3:#6b7280;--t4:#3a7d2c;--t5:#b3246f;--t6:#8a6d00;--t7:#2f5bd0;
font-family:system-ui,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
@media (prefers-color-scheme:dark){svg{--card:#1b1f23;--ink:#e8e6e0;--muted:#98a0a9;--line:#343a41;--t0:#2eb0c9;
--t1:#ff9a52;--t2:#b49cf0;--t3:#9aa3ad;--t4:#7cc46c;--t5:#ff8fd8;--t6:#e0b84c;--t7:#8fb0ff}}
.card{fill:var(--card)}.title{fill:var(--ink);font-size:15px;font-weight:600}.name{fill:var(--ink);font-size:12px}
.tick{fill:var(--muted);font-size:12px}.mid{text-anchor:middle}.end{text-anchor:end}.grid{stroke:var(--line);fill:none}
.curve{stroke:var(--tone);stroke-width:2;fill:none;stroke-linejoin:round}.again{stroke-dasharray:6 4}
.reach{stroke:var(--tone);stroke-width:1.2;opacity:.7}.dot{fill:var(--tone);stroke:var(--tone)}.hollow{fill:var(--card)}
""" + "".join(f".s{tone}{{--tone:var(--t{tone})}}" for tone in range(TONES))
_HEAD = 34
"""Height of the title above a drawing that stands alone."""

Span = tuple[float, float]


@dataclass(frozen=True)
class Spot:
    """One point.

    Attributes:
        x_reach: lowest and highest of the seeds, like ``y_reach``.
        told: what is read where it is pointed at.
    """

    x: float
    y: float
    x_reach: Span
    y_reach: Span
    told: str = ""


@dataclass(frozen=True)
class Line:
    """Points that are joined in their order."""

    name: str
    spots: Sequence[Spot]


@dataclass(frozen=True)
class Plane:
    """Lines on common axes.

    Attributes:
        x: what the horizontal axis shows, in words, like ``y``.
        log_x: powers of ten on the horizontal axis, whose values must then be above 0.
    """

    title: str
    x: str
    y: str
    lines: Sequence[Line]
    log_x: bool = False


def drawn(plane: Plane) -> Markup:
    """The drawing inside of a page, coloured by the page's style sheet.

    Raises:
        DataError: nothing to draw; a value that is not finite, or not above 0 on an axis of powers of ten.
    """
    head = f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(plane.title)}">'
    return Markup(f"{head}{''.join(_marks(plane))}</svg>")


def alone(plane: Plane) -> str:
    """The drawing as an SVG document with its own colours, for light and for dark; raises as ``drawn``."""
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT + _HEAD}" role="img">'
    title = (
        f'<title>{escape(plane.title)}</title><style>{_STYLE}</style><rect class="card" width="100%" height="100%"/>'
    )
    told = f'<text class="title" x="{LEFT}" y="24">{escape(plane.title)}</text>'
    return (
        f'{head}\n{title}\n{told}\n<g transform="translate(0 {_HEAD})">\n' + "\n".join(_marks(plane)) + "\n</g></svg>\n"
    )


@dataclass(frozen=True)
class _Axis:
    """Values between ``low`` and ``high`` onto ``start`` to ``stop`` of the drawing."""

    low: float
    high: float
    start: float
    stop: float
    log: bool
    ticks: Sequence[float]

    def place(self, value: float) -> float:
        low, high, at = (math.log10(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (at - low) / (high - low) * (self.stop - self.start)


def _marks(plane: Plane) -> Iterator[str]:
    spots = [spot for line in plane.lines for spot in line.spots]
    across = [v for spot in spots for v in (spot.x, *spot.x_reach)]
    up = [v for spot in spots for v in (spot.y, *spot.y_reach)]
    _refuse(plane, across, up)
    x = _logarithmic(across) if plane.log_x else _linear(across, LEFT, WIDTH - RIGHT, 6)
    y = _linear(up, HEIGHT - BOTTOM, TOP, 5)
    yield from _grid(plane, x, y)
    for number, line in enumerate(plane.lines):
        yield from _line(line, number, x, y)
    for number, line in enumerate(plane.lines):
        yield from _key(line.name, number)


def _refuse(plane: Plane, across: Sequence[float], up: Sequence[float]) -> None:
    if not across:
        raise DataError(f"{plane.title!r} has no points to draw.\nGive at least one line with a point.")
    bad = [v for v in (*across, *up) if not math.isfinite(v)] or [v for v in across if plane.log_x and v <= 0]
    if bad:
        raise DataError(
            f"{plane.title!r}: {bad[0]} cannot be drawn{' on an axis of powers of ten' if plane.log_x else ''}.\n"
            f"Leave the point out{', or draw with log_x=False' if plane.log_x else ''}."
        )


def _linear(values: Sequence[float], start: float, stop: float, most: int) -> _Axis:
    low, high = min(values), max(values)
    pad = 0.0 if high > low else 0.5 * abs(high) or 0.5
    ticks = nice_ticks(low - pad, high + pad, most)
    return _Axis(ticks[0], ticks[-1], start, stop, False, ticks)


def _logarithmic(values: Sequence[float]) -> _Axis:
    """A twentieth of the axis is free at both ends; ticks at 1, 2 and 5, or at powers of ten where those are many."""
    low, high = (math.log10(v) for v in (min(values), max(values)))
    pad = 0.05 * (high - low) or 0.5
    low, high = low - pad, high + pad
    powers = range(math.floor(low), math.ceil(high) + 1)
    ticks = [t for p in powers for t in (10.0**p, 2 * 10.0**p, 5 * 10.0**p) if low <= math.log10(t) <= high]
    if len(ticks) > _MOST_LOG_TICKS:
        ticks = [10.0**p for p in powers if low <= p <= high]
    return _Axis(10**low, 10**high, LEFT, WIDTH - RIGHT, True, ticks)


def _grid(plane: Plane, x: _Axis, y: _Axis) -> Iterator[str]:
    foot = HEIGHT - BOTTOM
    for tick in y.ticks:
        at = y.place(tick)
        yield f'<path class="grid" d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}"/>'
        yield f'<text class="tick end" x="{LEFT - 7}" y="{at + 4:.1f}">{figure(tick)}</text>'
    for tick in x.ticks:
        at = x.place(tick)
        yield f'<path class="grid" d="M{at:.1f} {TOP}V{foot}"/>'
        yield f'<text class="tick mid" x="{at:.1f}" y="{foot + 18}">{figure(tick)}</text>'
    middle, half = (LEFT + WIDTH - RIGHT) / 2, (TOP + foot) / 2
    yield f'<text class="tick mid" x="{middle:.1f}" y="{HEIGHT - 10}">{escape(plane.x)}</text>'
    yield f'<text class="tick mid" transform="translate(14 {half:.1f}) rotate(-90)">{escape(plane.y)}</text>'


def _line(line: Line, number: int, x: _Axis, y: _Axis) -> Iterator[str]:
    tone, again = number % TONES, number >= TONES
    path = "L".join(f"{x.place(s.x):.1f} {y.place(s.y):.1f}" for s in line.spots)
    if len(line.spots) > 1:
        yield f'<path class="curve s{tone}{" again" * again}" d="M{path}"/>'
    for spot in line.spots:
        at, height = x.place(spot.x), y.place(spot.y)
        left, right = (x.place(end) for end in spot.x_reach)
        low, high = (y.place(end) for end in spot.y_reach)
        yield f'<path class="reach s{tone}" d="M{at:.1f} {low:.1f}V{high:.1f}M{left:.1f} {height:.1f}H{right:.1f}"/>'
        told = spot.told or f"{line.name} · {figure(spot.x)} · {figure(spot.y)}"
        dot = f'class="dot s{tone}{" hollow" * again}" cx="{at:.1f}" cy="{height:.1f}" r="3.6"'
        yield f"<circle {dot}><title>{escape(told)}</title></circle>"


def _key(name: str, number: int) -> Iterator[str]:
    tone, again = number % TONES, number >= TONES
    left, height = WIDTH - RIGHT + 16, TOP + 8 + _LINE_OF_KEY * number
    told = name if len(name) <= _LONGEST_NAME else f"…{name[-_LONGEST_NAME + 1 :]}"
    yield f'<path class="curve s{tone}{" again" * again}" d="M{left} {height}h18"/>'
    yield f'<circle class="dot s{tone}{" hollow" * again}" cx="{left + 9}" cy="{height}" r="3.6"/>'
    yield f'<text class="tick name" x="{left + 24}" y="{height + 4}">{escape(told)}</text>'
