"""Before and after: means, paired intervals, and the rows of the table."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from jaxtyping import Float64

RESAMPLES = 2000
LEVEL = 0.95
FEWEST_UNITS = 5
"""Fewer have no interval: of so few, resamples reach no further than the figures themselves."""
T_QUANTILES = (
    12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281,
    2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860,
    2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423,
)  # fmt: skip
"""97.5 % quantiles of Student's t for 1 to 30 degrees of freedom."""
_BLOCK = 1 << 22  # entries of the count matrix that exist at one time (32 MB)
_MORE_IS_BETTER = frozenset({"exact_match"})

Interval = tuple[float, float]
_UNKNOWN: Interval = (float("nan"), float("nan"))


@dataclass(frozen=True)
class Measure:
    """One quantity, unit by unit (a sample, a prompt, a window of text): a mean of many tokens stays exact.

    Attributes:
        total: its sum over the unit, for example the weighted loss.
        count: what that is divided by, for example the weight; never negative.
    """

    total: Float64[np.ndarray, "unit"]
    count: Float64[np.ndarray, "unit"]

    def __post_init__(self) -> None:
        if self.total.shape != self.count.shape:
            raise ValueError(f"total and count of a Measure differ in shape: {self.total.shape} and {self.count.shape}")

    def __len__(self) -> int:
        return len(self.total)

    @property
    def value(self) -> float:
        """The figure: sum of totals over sum of counts; NaN where nothing was counted."""
        counted = float(self.count.sum())
        return float(self.total.sum()) / counted if counted else float("nan")

    def at(self, units: np.ndarray) -> "Measure":
        """Some of the units, by index or mask."""
        return Measure(self.total[units], self.count[units])


Measures = Mapping[str, Measure]


def joined(parts: Sequence[Measure]) -> Measure:
    """The units of several measures, one after the other."""
    return Measure(np.concatenate([p.total for p in parts]), np.concatenate([p.count for p in parts]))


def intervals(measures: Sequence[Measure], seed: int = 0) -> tuple[list[Interval], Interval]:
    """Bootstrap intervals of figures measured on the same units, and of the last minus the first.

    Every resample draws units with replacement and is used for all figures, so that the difference is paired. The
    percentiles lie further out the fewer units there are: plain ones of eight units hold the truth only 9 times in 10.

    Args:
        measures: of equal length.
        seed: of the resamples.

    Returns:
        The 95 % interval of each figure, and of the difference; NaN with fewer than ``FEWEST_UNITS`` that have weight.

    Source: Hesterberg, What Teachers Should Know About the Bootstrap (2015), section 5.3 (expanded percentiles).
    """
    units = len(measures[0])
    weighed = min(int((measure.count > 0).sum()) for measure in measures)
    if weighed < FEWEST_UNITS:
        return [_UNKNOWN] * len(measures), _UNKNOWN
    rng = np.random.default_rng(seed)
    sums = np.stack([m.total for m in measures] + [m.count for m in measures], axis=1)
    block = max(1, _BLOCK // units)
    drawn = []
    for start in range(0, RESAMPLES, block):
        counts = rng.multinomial(units, np.full(units, 1 / units), size=min(block, RESAMPLES - start))
        drawn.append(counts.astype(np.float64) @ sums)
    total, count = np.split(np.concatenate(drawn), 2, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        figures = total / count
    tail = NormalDist().cdf(-math.sqrt(weighed / (weighed - 1)) * t_quantile(weighed - 1))
    return [_percentiles(column, tail) for column in figures.T], _percentiles(figures[:, -1] - figures[:, 0], tail)


def t_quantile(freedom: int) -> float:
    """The 97.5 % quantile of Student's t, from a table; above 30 degrees of freedom by a series, right to 0.003.

    Source: Abramowitz and Stegun, Handbook of Mathematical Functions (1964), 26.7.5, the first two terms.
    """
    if freedom <= len(T_QUANTILES):
        return T_QUANTILES[freedom - 1]
    normal = NormalDist().inv_cdf((1 + LEVEL) / 2)
    return normal + (normal**3 + normal) / (4 * freedom)


def t_interval(differences: Float64[np.ndarray, "pair"]) -> Interval:
    """The 95 % interval of the mean of a few paired differences, by Student's t.

    Returns:
        NaN with fewer than two; and where all are one number other than 0, for that is the step of a coarse measure
        (one answer of eight more) and no spread.
    """
    if len(differences) < 2:
        return _UNKNOWN
    mean, spread = float(differences.mean()), float(differences.std(ddof=1))
    if spread <= 1e-9 * abs(mean) and mean:
        return _UNKNOWN
    half = t_quantile(len(differences) - 1) * spread / math.sqrt(len(differences))
    return mean - half, mean + half


def one_side(measures: Measures, seed: int = 0) -> dict:
    """Figures and intervals as ``summary.json`` holds one side: ``{"loss": …, "loss_interval": [low, high]}``.

    What has no figure is left out and named under ``not_measured``, as in ``comparison``; so is an interval of too few
    units, unnamed.
    """
    missing = unmeasured(measures)
    side: dict = {}
    for name in (name for name in measures if name not in missing):
        (interval,), _ = intervals([measures[name]], seed)
        side |= _entry(name, measures[name].value, interval)
    return side | _not_measured(missing)


def unmeasured(measures: Measures) -> dict[str, str]:
    """The measures that have no figure, and why."""
    return {
        name: "it is not finite" if measure.count.sum() else "nothing in it has a positive weight"
        for name, measure in measures.items()
        if not np.isfinite(measure.value)
    }


def comparison(before: Measures, after: Measures, groups: Sequence[str] | None = None, seed: int = 0) -> dict:
    """What ``summary.json`` holds of one set.

    Args:
        before: measures by name, on the units that ``after`` has too.
        after: the same names.
        groups: group of each unit; then each group gets an entry of the same shape.
        seed: of the resamples.

    Returns:
        ``{"samples", "before", "after", "difference", "not_measured"?, "groups"?}``; ``difference`` is after minus
        before, with its own interval and ``<name>_verdict``: better, worse, or same where the interval holds 0.
        With fewer than ``FEWEST_UNITS`` units there is neither interval nor verdict.
        A measure that has no figure on one of the sides is on none of them: ``not_measured`` has its name and why
        (JSON has no NaN).

    Raises:
        ValueError: the two sides are not of the same units.
    """
    sizes = {name: (len(before[name]), len(after[name]) if name in after else None) for name in before}
    if set(before) != set(after) or any(b != a for b, a in sizes.values()):
        raise ValueError(f"before and after are not of the same units: {sizes}, after has {sorted(after)}")
    sides: dict[str, dict] = {"before": {}, "after": {}, "difference": {}}
    missing = unmeasured(before) | unmeasured(after)
    for name in (name for name in before if name not in missing):
        pair = (before[name], after[name])
        (low, high), difference = intervals(pair, seed)
        sides["before"] |= _entry(name, pair[0].value, low)
        sides["after"] |= _entry(name, pair[1].value, high)
        sides["difference"] |= _entry(name, pair[1].value - pair[0].value, difference)
        if is_known(difference):
            sides["difference"][f"{name}_verdict"] = verdict(name, difference)
    samples = max((len(measure) for measure in before.values()), default=0)
    found = {"samples": samples, **sides, **_not_measured(missing)}
    return found if groups is None else found | {"groups": _by_group(before, after, groups, seed)}


def is_known(interval: Interval) -> bool:
    """Whether there was enough for an interval."""
    return all(map(math.isfinite, interval))


def verdict(name: str, difference: Interval) -> str:
    """``better`` or ``worse`` where the paired interval excludes 0, else ``same``.

    >>> verdict("exact_match", (0.1, 0.2)), verdict("loss", (0.1, 0.2)), verdict("loss", (-0.1, 0.2))
    ('better', 'worse', 'same')
    """
    low, high = difference
    if not (low > 0 or high < 0):
        return "same"
    return "better" if (low > 0) == (name in _MORE_IS_BETTER) else "worse"


def table(section: str, entries: Mapping[str, Mapping]) -> list[dict]:
    """Flatten the ``learning`` or ``forgetting`` part of a summary into rows for screen and report.

    Args:
        section: ``learning`` or ``forgetting``.
        entries: set name → what ``comparison`` returned.

    Returns:
        One row for each set, group and measure: ``section, set, group ("" for the whole), measure, samples, before,
        after, difference`` (numbers), ``interval`` (of the difference, or None) and ``verdict`` (or "").
    """
    rows = []
    for name, entry in entries.items():
        for group, part in [("", entry), *entry.get("groups", {}).items()]:
            for measure in part["after"]:
                if not measure.endswith("_interval"):
                    place = {"section": section, "set": name, "group": group, "measure": measure}
                    rows.append(place | {"samples": part["samples"]} | _row(part, measure))
    return rows


def _row(part: Mapping, measure: str) -> dict:
    return {
        "before": part["before"][measure],
        "after": part["after"][measure],
        "difference": part["difference"][measure],
        "interval": part["difference"].get(f"{measure}_interval"),
        "verdict": part["difference"].get(f"{measure}_verdict", ""),
    }


def _by_group(before: Measures, after: Measures, groups: Sequence[str], seed: int) -> dict:
    of_unit = np.array(groups, dtype=object)
    found = {}
    for group in dict.fromkeys(groups):
        units = np.flatnonzero(of_unit == group)
        sides = [{name: measure.at(units) for name, measure in side.items()} for side in (before, after)]
        found[group] = comparison(sides[0], sides[1], seed=seed)
    return found


def _not_measured(missing: Mapping[str, str]) -> dict:
    return {"not_measured": dict(missing)} if missing else {}


def _entry(name: str, value: float, interval: Interval) -> dict:
    return {name: value} | ({f"{name}_interval": list(interval)} if is_known(interval) else {})


def _percentiles(values: np.ndarray, tail: float) -> Interval:
    # A resample of one unit without weight has no figure; it says nothing about the spread.
    known = values[np.isfinite(values)]
    if not len(known):
        return _UNKNOWN
    low, high = np.percentile(known, [100 * tail, 100 * (1 - tail)])
    return float(low), float(high)
