"""The page of ``frisket compare``: arms beside each other, one drawing a measure, and the table."""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup, escape

from frisket.report.curves import nice_ticks
from frisket.report.measures import SHARES
from frisket.report.plane import Line, Plane, Spot, drawn
from frisket.report.render import count, figure, page

WIDTH, LANE, TOP, BOTTOM, LEFT, RIGHT = 560, 30, 10, 40, 170, 18
_NAME = 26  # characters of an arm's name that fit beside its lane


def compare_page(title: str, result: Mapping[str, Any]) -> str:
    """One HTML document without external parts.

    Args:
        title: what was compared.
        result: what ``frisket.run.comparing.compared`` returns.
    """
    names = measure_names(result["arms"])
    return page(
        "compare.html.jinja",
        title=title,
        version=result["frisket"],
        model=result["model"],
        against=result["against"],
        unequal=result["unequal"],
        arms=result["arms"],
        settings=result["settings"],
        unasked=result["unasked"],
        measures=names,
        rows=[[cell(arm, name) for name in names] for arm in result["arms"]],
        curves=[curve(each) for each in result["curves"]],
        lengths=next(filter(None, map(lengths_told, result["curves"])), ""),
        plots=[draw(name, result["arms"]) for name in names],
        judged=verdicts_told(result),
        failed=result.get("failed") or [],
    )


def curve(drawing: Mapping[str, Any]) -> Markup:
    """What was learned against what was forgotten; see ``frisket.run.forgetting_curve``."""
    lines = [Line(line["name"], [_spot(point) for point in line["points"]]) for line in drawing["lines"]]
    title = f"{drawing['forgotten']}, against {drawing['learned']}"
    plane = Plane(title, f"learned: {drawing['learned']} →", f"forgotten: {short(drawing['forgotten'])} →", lines)
    lacking = ", ".join(drawing["lacking"])
    told = f"Not drawn, because a run lacks one of the two: {lacking}." if lacking else ""
    return Markup(
        f'<figure class="plot wide"><figcaption><b>{escape(title)}</b> <span>{escape(drawing["target"])}</span>'
        f'</figcaption>{drawn(plane)}<p class="seen">{escape(told)}</p></figure>'
    )


def lengths_told(drawing: Mapping[str, Any]) -> str:
    """That lines go through separate runs, where any does; empty otherwise."""
    if all(len(line["points"]) < 2 for line in drawing["lines"]):
        return ""
    return "A line joins separate runs of growing length, which may differ only here; figures compare equal lengths."


def short(forgotten: str) -> str:
    """A measure of forgetting without the word."""
    return forgotten.removeprefix("forgetting: ").removeprefix("forgetting, ")


def _spot(point: Mapping[str, Any]) -> Spot:
    told = (
        f"{point['arm']} · {point['length']}, {count(point['tokens'])} tokens · learned {figure(point['x'])}, "
        f"forgotten {figure(point['y'])}"
    )
    return Spot(point["x"], point["y"], _span(point["x_range"]), _span(point["y_range"]), told)


def _span(ends: Sequence[float]) -> tuple[float, float]:
    return ends[0], ends[1]


def verdicts_told(result: Mapping[str, Any]) -> str:
    """How many comparisons were judged, and what chance alone makes of so many; or why none was.

    >>> verdicts_told({"judged": 12, "unequal": [], "arms": []})
    '12 comparisons, each at 95 %: were all arms equal, about 0.6 would still read better or worse.'
    """
    made = result["judged"]
    if made:
        each = f"{count(made)} comparison{'' if made == 1 else 's'}, each at 95 %"
        return f"{each}: were all arms equal, about {figure(0.05 * made)} would still read better or worse."
    if len(result["arms"]) < 2 or result["unequal"]:
        return ""
    if all(e["measure"] == "training_loss" for arm in result["arms"] for e in arm["measures"].values()):
        return "Nothing was measured (evaluate=off): the loss of the last step is shown, and nothing is judged by it."
    return (
        "No verdict: that takes at least 3 seeds that both arms have. Train them: the same command with --seeds 3 (a "
        "grid goes on in its folder with --resume: what is finished stays)"
    )


def measure_names(arms: Sequence[Mapping]) -> list[str]:
    """Every measure that an arm has, in order."""
    return list(dict.fromkeys(name for arm in arms for name in arm["measures"]))


def cell(arm: Mapping, name: str) -> dict[str, str]:
    """One figure of the table in words: ``value``, ``range``, ``change`` and its ``verdict``; empty where unknown."""
    entry = arm["measures"].get(name)
    if entry is None:
        return {"value": "–", "range": "", "change": "", "verdict": ""}
    is_share = entry["measure"] in SHARES

    def text(number: float) -> str:
        return f"{100 * number:.1f} %" if is_share else figure(number)

    def signed(number: float) -> str:
        return f"{'+' if number > 0 else '−' if number < 0 else '±'}{text(abs(number))}"

    ends = entry.get("interval")
    change = signed(entry["difference"]) if "difference" in entry else ""
    if "difference_interval" in entry:
        change += f" ({signed(entry['difference_interval'][0])} to {signed(entry['difference_interval'][1])})"
    return {
        "value": text(entry["median"]),
        "range": f"{text(ends[0])} to {text(ends[1])}" if ends else "",
        "change": change,
        "verdict": entry.get("verdict", ""),
    }


def draw(name: str, arms: Sequence[Mapping]) -> Markup:
    """One measure: a lane an arm, a dot a seed, a bar at the median, a line over the interval."""
    shown = [(arm["name"], arm["measures"][name]) for arm in arms if name in arm["measures"]]
    values = [v for _, e in shown for v in (*e["by_seed"].values(), *(e.get("interval") or ()))]
    low, high = min(values), max(values)
    pad = 0.0 if high > low else 0.5 * abs(high) or 0.5
    ticks = nice_ticks(low - pad, high + pad, 5)
    height = TOP + LANE * len(shown) + BOTTOM

    def x(value: float) -> float:
        return LEFT + (value - ticks[0]) / (ticks[-1] - ticks[0]) * (WIDTH - LEFT - RIGHT)

    foot = height - BOTTOM
    marks = [
        f'<path class="grid" d="M{x(t):.1f} {TOP}V{foot}"/>'
        f'<text class="tick mid" x="{x(t):.1f}" y="{foot + 18}">{figure(t)}</text>'
        for t in ticks
    ]
    marks += [_lane(arm, entry, TOP + LANE * (place + 0.5), x) for place, (arm, entry) in enumerate(shown)]
    best = _best(shown)
    told = f"{name}: {best[0]} has the {'highest' if best[1] else 'lowest'} median of {count(len(shown))}."
    head = f'<svg class="chart" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(told)}">'
    return Markup(
        f'<figure class="plot" style="max-width: {WIDTH}px"><figcaption><b>{escape(name)}</b> <span>'
        f"{'more' if best[1] else 'less'} is better</span></figcaption>{head}{''.join(marks)}</svg>"
        f'<p class="seen">{escape(told)}</p></figure>'
    )


def _lane(arm: str, entry: Mapping, y: float, x: Any) -> str:
    label = arm if len(arm) <= _NAME else f"…{arm[-_NAME + 1 :]}"
    parts = [f'<text class="tick end" x="{LEFT - 12}" y="{y + 4:.1f}">{escape(label)}</text>']
    if entry.get("interval"):
        low, high = entry["interval"]
        parts.append(f'<path class="reach s0" d="M{x(low):.1f} {y:.1f}H{x(high):.1f}"/>')
    middle = x(entry["median"])
    parts.append(f'<path class="curve s0" d="M{middle:.1f} {y - 8:.1f}V{y + 8:.1f}"/>')
    for seed, value in entry["by_seed"].items():
        parts.append(
            f'<circle class="dot s0" cx="{x(value):.1f}" cy="{y:.1f}" r="3.2">'
            f"<title>{escape(arm)} · seed {seed} · {figure(value)}</title></circle>"
        )
    return "".join(parts)


def _best(shown: Sequence[tuple[str, Mapping]]) -> tuple[str, bool]:
    """The arm with the best median, and whether more is better."""
    more = shown[0][1]["measure"] in SHARES
    pick = max if more else min
    return pick(shown, key=lambda pair: pair[1]["median"])[0], more
