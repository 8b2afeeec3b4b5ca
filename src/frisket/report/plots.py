"""The charts of a run: which records become which curves, and the sentence that says what they show."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from frisket.report.curves import DENSE, Chart, Curve, Point, averaged, tokens_text
from frisket.report.render import count, figure

_MOST_SETS = 3
_SAME = 0.02
"""A change of less than this share is called none."""


@dataclass(frozen=True)
class Steps:
    """The steps of a run on the axis of tokens.

    Attributes:
        records: of ``metrics.jsonl``.
        tokens: flat tokens seen after each step; 0 before the first.
    """

    records: Sequence[Mapping]
    tokens: Mapping[int, float]

    @property
    def last(self) -> int:
        """The last step; 0 before the first."""
        return max(self.tokens)

    def points(self, name: str) -> list[Point]:
        """(tokens, value) of every record that holds a finite value under ``name``."""
        pairs = ((self.tokens[r["step"]], r.get(name)) for r in self.records)
        return [(x, float(y)) for x, y in pairs if y is not None and math.isfinite(y)]

    def readings(self, name: str) -> list[tuple[float, str]]:
        """Step, tokens and value in words at every such record."""
        found = ((r["step"], self.tokens[r["step"]], r.get(name)) for r in self.records)
        return [
            (x, f"step {count(step)} · {count(x)} tokens · {figure(y)}")
            for step, x, y in found
            if y is not None and math.isfinite(y)
        ]


def steps_of(metrics: Sequence[Mapping]) -> Steps:
    """Put the records of ``metrics.jsonl`` on the axis of tokens."""
    tokens, so_far = {0: 0.0}, 0.0
    for record in metrics:
        so_far += record["flat_tokens"]
        tokens[record["step"]] = so_far
    return Steps(metrics, tokens)


def run_charts(
    steps: Steps,
    timings: Sequence[Mapping],
    learning: Mapping[str, Mapping],
    evaluations: Sequence[Mapping],
    best: Mapping | None = None,
) -> list[Chart]:
    """Loss, exact match, learning rate, gradient norm and rates over tokens; what was not recorded is left out.

    Args:
        timings: the records of ``timings.jsonl``.
        learning: of ``summary.json``: the ends of the curves of what was measured.
        evaluations: the records of ``evaluations.jsonl``: ``step`` and ``learning``, one side of each set.
        best: of ``summary.json``: the step with the lowest loss of the watched set, and whether it is the result.
    """
    result = best["step"] if best and best["kept"] == "best" else steps.last
    charts = [_loss(steps, measured(steps, learning, evaluations, "loss", result), best)]
    match = measured(steps, learning, evaluations, "exact_match", result)
    charts += [_exact_match(match, result == steps.last)] if match else []
    charts += [_rate(steps)] if steps.points("rate") else []
    charts += [_gradient(steps)] if steps.points("gradient_norm") else []
    speeds = {name: speed_of(steps, timings, f"{name}_tokens") for name in ("flat", "computed", "supervised")}
    return [*charts, *([_speed(speeds)] if speeds["flat"] else [])]


def measured(
    steps: Steps,
    learning: Mapping[str, Mapping],
    evaluations: Sequence[Mapping],
    name: str,
    result: int | None = None,
) -> list[Curve]:
    """One curve a set with the points before, during and after training, with their intervals.

    Args:
        learning: of ``summary.json``.
        evaluations: the records of ``evaluations.jsonl``.
        name: the measure.
        result: step whose weights were measured after training; default: the last.
    """
    curves = []
    for called, entry in learning.items():
        during = {e["step"]: e["learning"][called] for e in evaluations if called in e["learning"]}
        sides = {0: entry.get("before"), **during, steps.last if result is None else result: entry.get("after")}
        found = [(steps.tokens[s], side) for s, side in sorted(sides.items()) if s in steps.tokens and side]
        kept = [(x, side) for x, side in found if side.get(name) is not None and math.isfinite(side[name])]
        if kept:
            ends = [side.get(f"{name}_interval") or (math.nan, math.nan) for _, side in kept]
            reach = [(float(low), float(high)) for low, high in ends]
            curves.append(Curve(called, [(x, float(side[name])) for x, side in kept], reach))
    return curves


def speed_of(steps: Steps, timings: Sequence[Mapping], name: str) -> list[Point]:
    """(tokens seen, tokens per second) from the tokens of ``metrics.jsonl`` and the seconds of ``timings.jsonl``."""
    own = {r["step"]: r.get(name) for r in steps.records}
    timed = ((t["step"], t.get("seconds"), own.get(t["step"])) for t in timings if "step" in t)
    return [(steps.tokens[step], tokens / seconds) for step, seconds, tokens in timed if seconds and tokens]


def _loss(steps: Steps, sets: Sequence[Curve], best: Mapping | None) -> Chart:
    points = steps.points("loss")
    sentence = ""
    if points:
        first, last, size = ends([y for _, y in points])
        over = f"over {tokens_text(steps.tokens[steps.last])}"
        told = f"the first and last {size} of {count(len(points))} steps" if size > 1 else f"{count(len(points))} steps"
        sentence = f"Training loss {_moved(first, last)} {over} ({'means of ' if size > 1 else ''}{told})."
    is_last = not best or best["kept"] == "last" or best["step"] == steps.last
    sentence += f" {_measured(sets, figure, is_last)}" if sets else ""
    if best:
        result = "its weights are the result" if best["kept"] == "best" else "the result is the last step"
        stopped = f" Stopped after {best['without_improvement']} evaluations without improvement." * best["stopped"]
        sentence += (
            f" Best at step {count(best['step'])} of {count(best['of'])}: {figure(best['loss'])}; {result}.{stopped}"
        )
    return Chart(
        "Loss",
        "nats, mean over what is taught",
        [Curve("training", points, is_noisy=True), *sets[:_MOST_SETS]],
        sentence,
        steps.readings("loss"),
        mark=(steps.tokens[best["step"]], "best") if best else None,
    )


def _exact_match(sets: Sequence[Curve], is_last: bool) -> Chart:
    readings = [(x, f"{count(x)} tokens · {_share(y)}") for x, y in sets[0].points]
    return Chart(
        "Exact match",
        "share of samples",
        sets[:_MOST_SETS],
        _measured(sets, _share, is_last),
        readings,
        _whole_share,
        first_tone=1,
        floor=0.0,
    )


def _rate(steps: Steps) -> Chart:
    points = steps.points("rate")
    values = [y for _, y in points]
    peak = max(values)
    at = values.index(peak)
    if min(values) == peak:
        sentence = f"Constant at {figure(peak)}."
    else:
        rise = f"Rose to {figure(peak)} over {tokens_text(points[at][0])}" if at else f"Started at {figure(peak)}"
        sentence = f"{rise}, then fell to {figure(values[-1])}." if at < len(points) - 1 else f"{rise}."
    return Chart("Learning rate", "of each step", [Curve("", points)], sentence, steps.readings("rate"), floor=0.0)


def _gradient(steps: Steps) -> Chart:
    points = steps.points("gradient_norm")
    values = [y for _, y in points]
    low, middle, high = (figure(v) for v in (min(values), median(values), max(values)))
    sentence = f"Between {low} and {high}, half of the steps below {middle}."
    curve = Curve("", points, is_noisy=True)
    return Chart("Gradient norm", "before clipping", [curve], sentence, steps.readings("gradient_norm"), floor=0.0)


def _speed(speeds: Mapping[str, list[Point]]) -> Chart:
    """Computed tokens are left out where they are the real ones, step by step."""
    real, computed, taught = (speeds[name] for name in ("flat", "computed", "supervised"))
    has_own = bool(computed) and computed != real
    named = [
        ("real", real),
        *([("computed", computed)] if has_own else []),
        *([("supervised", taught)] if taught else []),
    ]
    typical = {name: count(median(y for _, y in points)) for name, points in named}
    parts = [f"{typical['real']} tokens of samples" + ("" if has_own else ", all of them computed")]
    parts += [f"{typical['computed']} through the model"] if has_own else []
    parts += [f"{typical['supervised']} taught"] if taught else []
    curves = [Curve(name, averaged(points) if len(points) >= DENSE else points) for name, points in named]
    readings = [(x, f"{count(x)} tokens seen · {count(y)} real tokens per second") for x, y in real]
    sentence = f"In a typical second: {', '.join(parts)}."
    return Chart("Tokens per second", "moving average", curves, sentence, readings, count, floor=0.0)


def ends(values: Sequence[float]) -> tuple[float, float, int]:
    """Means over the first and the last twentieth of the steps, and how many steps that is."""
    size = max(len(values) // 20, 1)
    return sum(values[:size]) / size, sum(values[-size:]) / size, size


def _moved(first: float, last: float) -> str:
    if abs(last - first) <= _SAME * max(abs(first), abs(last)):
        return f"stayed near {figure(last)}"
    return f"{'fell' if last < first else 'rose'} from {figure(first)} to {figure(last)}"


def _measured(sets: Sequence[Curve], text: Callable[[float], str], is_last: bool) -> str:
    """The ends of the sets that are drawn, and how many are not; the last step may not be what training gave."""
    end = "after" if is_last else "at the last step"
    shown = [f"{c.name} {text(c.points[0][1])} before, {text(c.points[-1][1])} {end}" for c in sets[:_MOST_SETS]]
    rest = len(sets) - len(shown)
    return f"Measured: {'; '.join(shown)}{f'; {rest} more sets are in the tables above' if rest else ''}."


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"


def _whole_share(value: float) -> str:
    return f"{100 * value:.0f} %"
