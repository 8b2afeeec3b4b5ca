"""Before and after, as ``summary.json`` holds them under ``learning`` and ``forgetting``."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeGuard

from frisket.report.render import figure, words

SHARES = frozenset({"exact_match"})
"""Metrics that are shares of samples: more is better, shown in percent. All others are losses: less is better."""

_INTERVAL = "_interval"
_FIRST = ("exact_match", "kl", "loss")


@dataclass(frozen=True)
class Figure:
    """A measured value and its bootstrap interval (95 %), where one was computed."""

    value: float
    low: float | None = None
    high: float | None = None

    def spread(self) -> float:
        """The largest value that a drawing of this figure reaches."""
        return self.value if self.high is None else max(self.value, self.high)


@dataclass(frozen=True)
class Measure:
    """One metric of one set, before and after.

    Attributes:
        metric: its name in ``summary.json``.
        before: None where it was not measured, as ``after``.
        after: the same metric after training.
        difference: after minus before, on the same samples, with the paired interval.
        verdict: ``better``, ``worse``, or ``same`` where the paired interval holds 0; empty where it is not known.
        units: samples, prompts or windows of text that it was measured on; None where the summary does not say.
    """

    metric: str
    before: Figure | None
    after: Figure | None
    difference: Figure | None = None
    verdict: str = ""
    units: int | None = None

    @property
    def more_is_better(self) -> bool:
        """Whether a larger value is the better one."""
        return self.metric in SHARES

    @property
    def label(self) -> str:
        """The metric's name as words."""
        return "KL from the base" if self.metric == "kl" else words(self.metric)

    @property
    def change(self) -> str:
        """The signed difference; empty where one side is missing."""
        if self.before is None or self.after is None:
            return ""
        return self._signed(self.after.value - self.before.value) + (" points" if self.more_is_better else "")

    @property
    def change_interval(self) -> str:
        """The paired interval of the difference in words; empty where there is none."""
        side = self.difference
        if side is None or side.low is None or side.high is None:
            return ""
        return f"{self._signed(side.low)} to {self._signed(side.high)}"

    @property
    def sentence(self) -> str:
        """What happened, for a person; empty where a side is missing, or the interval for no known reason."""
        told = f"{self.label} {self.shown(self.before)} before, {self.shown(self.after)} after"
        if self.change and self.without_interval:
            return f"Measured: {told}; {self.without_interval}."
        if not (self.change and self.change_interval and self.verdict):
            return ""
        unit = " points" if self.more_is_better else ""
        change = f"the change is {self.change_interval}{unit} (95 %)"
        return f"{'No clear change' if self.verdict == 'same' else f'Clearly {self.verdict}'}: {told}; {change}."

    @property
    def without_interval(self) -> str:
        """Why there is no interval, in words; empty where there is one, or the number of samples is not known.

        >>> Measure("loss", None, Figure(2.0), units=1).without_interval
        '1 sample: no interval'
        """
        if self.units is None or any(side and side.low is not None for side in (self.before, self.after)):
            return ""
        return f"{self.units} sample{'' if self.units == 1 else 's'}: no interval"

    def text(self, number: float) -> str:
        """A value of this metric as it is printed."""
        return f"{100 * number:.1f} %" if self.more_is_better else figure(number)

    def shown(self, side: Figure | None) -> str:
        """One side as it is printed; a dash where it was not measured."""
        return "—" if side is None else self.text(side.value)

    def interval(self, side: Figure | None) -> str:
        """The interval of one side in words; empty where there is none."""
        if side is None or side.low is None or side.high is None:
            return ""
        return f"{self.text(side.low)} to {self.text(side.high)}"

    def _signed(self, number: float) -> str:
        size = f"{abs(100 * number):.1f}" if self.more_is_better else figure(abs(number))
        return f"{'+' if number > 0 else '−' if number < 0 else '±'}{size}"


def measures(entry: Mapping) -> list[Measure]:
    """Every metric of one set or group, the telling ones first.

    Args:
        entry: ``{"before": {metric: value, metric_interval: [low, high]}, "after": {…}}``, and where both sides are of
            the same samples ``"difference"``, which also holds ``metric_verdict``.
    """
    before, after, difference = (entry.get(side) or {} for side in ("before", "after", "difference"))
    names = [n for n in [*after, *(n for n in before if n not in after)] if not n.endswith(_INTERVAL)]
    names.sort(key=lambda n: _FIRST.index(n) if n in _FIRST else len(_FIRST))
    units = entry.get("units") or {}
    found = [
        Measure(
            n,
            _figure(before, n),
            _figure(after, n),
            _figure(difference, n),
            difference.get(f"{n}_verdict", ""),
            units.get(n, entry.get("samples")),
        )
        for n in names
    ]
    return [m for m in found if m.before is not None or m.after is not None]


def forgotten(name: str, entry: Mapping) -> str:
    """What a set of ``forgetting`` says, in one sentence: clear, none that is clear, or not known; then the figures.

    KL can but grow, so it is told and decides nothing; the losses of text decide by their paired intervals.
    """
    found = {m.metric: m for m in measures(entry)}
    kl = found.pop("kl", None)
    judged = [m.verdict for m in found.values() if m.verdict]
    told = [_change_of(m, m.before, m.after) for m in found.values() if m.before and m.after]
    if kl is not None and kl.after is not None:
        told.append(f"KL from the base {kl.shown(kl.after)} nats a token on its own answers (0: unchanged)")
    if not told:
        return ""
    what = "Forgetting" if name == "default" else f"Forgetting ({name})"
    if "worse" in judged:
        return f"{what} is clear: {'; '.join(told)}."
    if judged:
        return f"{what}: no clear loss: {'; '.join(told)}."
    return f"{what}: {'too few samples for a verdict' if found else 'no text was measured'}: {'; '.join(told)}."


def _change_of(measure: Measure, before: Figure, after: Figure) -> str:
    """Before, after and the change in per cent; ``bits_per_character_prose`` is prose, in bits per character."""
    unit, _, kind = measure.metric.rpartition("_")
    name, unit = (kind, f" {words(unit)}") if unit == "bits_per_character" else (words(measure.metric), "")
    change = [f"{100 * (after.value / before.value - 1):+.0f} %"] if before.value else []
    change += {"same": ["no clear change"], "better": ["better"]}.get(measure.verdict, [])
    told = f"{name} {measure.shown(before)} → {measure.shown(after)}{unit}"
    return f"{told} ({', '.join(change)})" if change else told


def _figure(side: Mapping, name: str) -> Figure | None:
    value = side.get(name)
    if not _is_number(value):
        return None
    low, high = side.get(name + _INTERVAL) or (None, None)
    return Figure(float(value), low, high) if _is_number(low) and _is_number(high) else Figure(float(value))


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
