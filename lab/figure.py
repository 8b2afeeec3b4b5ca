"""The drawing of an experiment: what its results are shown as in docs/experiments.md."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from frisket.report.plane import Line, Plane, Spot, alone

Point = tuple[float, float, float, float]
"""(x, mean, lowest, highest of the seeds)"""


def draw(file: Path, title: str, x: str, y: str, lines: Mapping[str, Sequence[Point]], *, log_x: bool = False) -> None:
    """Write a self-contained SVG, readable in light and dark; each line joins its points in their order.

    Args:
        x: what the horizontal axis shows, in words, like ``y``.
        log_x: powers of ten on the horizontal axis, whose values must then be above 0.

    Raises:
        DataError: no points; a value that is not finite, or not above 0 where ``log_x``.
    """
    kept = [
        Line(name, [Spot(at, mean, (at, at), (low, high)) for at, mean, low, high in points])
        for name, points in lines.items()
    ]
    file.write_text(alone(Plane(title, x, y, kept, log_x)), encoding="utf-8")
