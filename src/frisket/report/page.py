"""``report.html``: one self-contained page that says what was trained, learned, forgotten and paid."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from frisket.report.bars import before_after_bars
from frisket.report.contamination import contamination_html
from frisket.report.curves import draw
from frisket.report.ledger import ledger_html, read_ledgers
from frisket.report.masks import masks_html
from frisket.report.measures import Measure, measures
from frisket.report.moved import moved_told, rejection, sides, stage_rows, true_base
from frisket.report.overlap import overlap_html
from frisket.report.plots import run_charts, steps_of
from frisket.report.render import count, facts, page, times, words
from frisket.report.samples import samples_html
from frisket.report.which import which_html
from frisket.watch import duration


@dataclass(frozen=True)
class Panel:
    """One set of ``learning`` or ``forgetting``.

    Attributes:
        name: of the set.
        samples: how many were measured; None where the summary does not say, or says another number by measure.
        whole: how many the set has, where not all were measured.
        measures: rows of its table.
        bars: its bars, by group where it has groups.
        notes: what else the summary says of it (texts, units, versions).
    """

    name: str
    samples: int | None
    whole: int | None
    measures: list[Measure]
    bars: Markup
    notes: list[tuple[str, str]]

    @property
    def sentence(self) -> str:
        """What happened to the most telling measure; not to KL, which can but grow."""
        return next((m.sentence for m in self.measures if m.sentence and m.metric != "kl"), "")


@dataclass(frozen=True)
class Tile:
    """One large figure at the top of the report; only a share is coloured by its verdict: KL can but grow."""

    name: str
    big: str
    before: str
    note: str
    verdict: str


def report_page(
    summary: Mapping,
    metrics: Sequence[Mapping],
    timings: Sequence[Mapping],
    mask_view_fragment: Markup | None,
    recipe_yaml: str,
    environment: Mapping,
    *,
    evaluations: Sequence[Mapping] = (),
    contamination: Sequence[Mapping] = (),
    samples: Sequence[Mapping] = (),
) -> str:
    """The whole report of a run as one HTML document without external parts.

    Args:
        summary: ``summary.json``.
        metrics: the records of ``metrics.jsonl``.
        timings: the records of ``timings.jsonl``; ``step`` and ``seconds`` are read.
        mask_view_fragment: what ``mask_fragment`` made, or None where no row is shown.
        recipe_yaml: the resolved recipe.
        environment: ``environment.json``.
        evaluations: the records of ``evaluations.jsonl``: what was measured during training.
        contamination: the records of ``contamination.jsonl``: the meter of mask-free rows.
        samples: the records of ``samples.jsonl``: answers to the same prompts over time.
    """
    steps = steps_of(metrics)
    learning, forgetting = _panels(summary.get("learning")), _panels(summary.get("forgetting"))
    best = summary.get("best")
    return page(
        "report.html.jinja",
        title=str(summary["recipe"]),
        version=summary["frisket"],
        base=true_base(summary),
        moved=moved_told(summary),
        rejection=rejection(summary),
        sides=sides(summary),
        stages=stage_rows(summary),
        which=which_html(summary.get("adapt") or {}, summary.get("train") or {}),
        data=summary["data"],
        steps=summary["steps"],
        notices=summary.get("notices") or [],
        tiles=_tiles(summary, learning, forgetting),
        learning=learning,
        forgetting=forgetting,
        examples=summary.get("examples") or [],
        samples=samples_html(samples, best),
        plots=[draw(chart) for chart in run_charts(steps, timings, summary.get("learning") or {}, evaluations, best)],
        contamination=contamination_html(contamination, steps, summary.get("verdict")),
        overlap=overlap_html(summary.get("overlap") or {}),
        mask_tuning=masks_html(summary),
        ledger=ledger_html(read_ledgers(summary["tokens"], [source["path"] for source in summary["data"]])),
        rates=[(words(name), count(value)) for name, value in summary["rates"].items()],
        seconds=times(summary),
        checks=[(name, _check(value)) for name, value in (summary.get("checks") or {}).items()],
        artifacts=summary.get("artifacts") or {},
        next=summary.get("next"),
        recipe_yaml=recipe_yaml,
        environment=facts(environment),
        fragment=mask_view_fragment,
    )


def _panels(sets: Mapping | None) -> list[Panel]:
    return [
        Panel(name, _samples(entry), entry.get("of"), measures(entry), _group_bars(entry), _notes(entry))
        for name, entry in (sets or {}).items()
    ]


def _samples(entry: Mapping) -> int | None:
    counts = set((entry.get("units") or {}).values()) | {entry.get("samples")}
    return counts.pop() if len(counts) == 1 else None


def _notes(entry: Mapping) -> list[tuple[str, str]]:
    shown = {"samples", "of", "metric", "before", "after", "difference", "groups", "units"}
    told = {"KL" if name == "kl_is" else name: value for name, value in entry.items() if name not in shown}
    return facts(told)


def _group_bars(entry: Mapping) -> Markup:
    """Bars of the most telling metric, by group; without groups only for a share, which has a scale of its own."""
    whole = measures(entry)
    if not whole or not (entry.get("groups") or whole[0].more_is_better):
        return Markup("")
    metric = whole[0].metric
    rows = []
    for group, values in (entry.get("groups") or {}).items():
        rows += [(group, values.get("samples"), m) for m in measures(values) if m.metric == metric]
    return before_after_bars([*rows, ("all" if rows else whole[0].label, entry.get("samples"), whole[0])])


def _tiles(summary: Mapping, learning: list[Panel], forgetting: list[Panel]) -> list[Tile]:
    tiles = []
    for panel in [*learning[:1], *forgetting[:1]]:
        for m in panel.measures[:1]:
            before = m.shown(m.before) if m.before else ""
            verdict = m.verdict if m.more_is_better else ""
            note = m.interval(m.after) or m.without_interval
            name = f"{panel.name}: {m.label}" + (", rejected mask" if rejection(summary) else "")
            tiles.append(Tile(name, m.shown(m.after), before, note, verdict))
    speed = summary["rates"].get("real_tokens_per_second")
    if speed is not None:
        tiles.append(Tile("real tokens per second", count(speed), "", "padding never counts", ""))
    seconds = summary["seconds"]
    if "total" in seconds:
        training = f"training itself {duration(seconds['training'])}" if "training" in seconds else ""
        since = f" since the resume at step {count(summary['resumed']['step'])}" if summary.get("resumed") else ""
        tiles.append(Tile(f"wall time{since}", duration(seconds["total"]), "", training, ""))
    return tiles


def _check(value: object) -> list[tuple[str, str]]:
    return facts(value) if isinstance(value, Mapping) else facts({"": value})
