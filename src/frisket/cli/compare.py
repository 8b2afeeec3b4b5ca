"""``frisket compare``: finished runs beside each other."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from frisket.cli.options import AsJson, greet, run_folder
from frisket.cli.screen import Screen
from frisket.cli.words import figure
from frisket.errors import ConfigError

AllowUnequal = Annotated[
    bool,
    typer.Option(
        "--allow-unequal",
        help="Compare runs of unequal budgets (data, tokens, what is measured) too, without a verdict.",
    ),
]


def command(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="A [B ...]", help="Folders of finished runs, or the folder of a grid.", show_default=False
        ),
    ] = None,
    allow_unequal: AllowUnequal = False,
    out: Annotated[
        Path | None,
        typer.Option(
            help="HTML file to write; default: compare.html, inside a grid's folder or in out/.", show_default=False
        ),
    ] = None,
    as_json: AsJson = False,
) -> dict:
    """Compare finished runs: what they learned and forgot, paired by seed, against the first.

    Examples:
      frisket compare out/rank-8 out/rank-32
      frisket compare out/grid --json
    """
    with Screen.open(as_json) as screen:
        greet(screen, "compare", None, None, [str(folder) for folder in folders or ()])
        if not folders:
            raise ConfigError("No run folder is given.\nWrite: frisket compare A B")
        for folder in folders:
            run_folder(folder)
        with screen.loading():
            from frisket import run

        page = out or (folders[0] if len(folders) == 1 else Path("out")) / "compare.html"
        result = run.compare_runs(folders, allow_unequal=allow_unequal, page=page)
    if not as_json:
        show(result, screen.console)
    return result


def show(result: Mapping[str, Any], console: Console) -> None:
    """Print a comparison: what differs, then a line for each arm and measure."""
    from frisket.report.compare_page import verdicts_told

    for each in result["unequal"]:
        console.print(Text(f"unequal budgets, nothing is judged: {each}", style="yellow"))
    if result["settings"]:
        console.print(_settings(result))
    if result["unasked"]:
        console.print(Text(f"  {result['unasked']}", style="yellow"))
    console.print()
    console.print(_measures(result))
    if told := verdicts_told(result):
        console.print(Text(f"  {told}\n", style="dim"))
    for table in _curves(result["curves"]):
        console.print(table)
    console.print(_costs(result))
    if result.get("overlaps"):
        console.print(_overlaps(result["overlaps"]))
    for each in result.get("failed") or ():
        console.print(Text(f"failed   {each['folder']}: {each['error']}", style="red"))
    console.print(Text(f"  page    {result['page']}"))


def _measures(result: Mapping[str, Any]) -> Table:
    from frisket.report.compare_page import cell, measure_names

    several = len({arm["against"] for arm in result["arms"]} - {None}) > 1
    against = f"against {'the first of its length' if several else result['against']}"
    table = _table("Arm and measure", "median", _spread_of(result["arms"]), against, "")
    for arm in result["arms"]:
        count = len(arm["seeds"])
        table.add_row(Text.assemble((arm["name"], "bold"), f" · {count} seed{'' if count == 1 else 's'}"))
        for measure in measure_names([arm]):
            told = cell(arm, measure)
            style = {"better": "green", "worse": "red"}.get(told["verdict"], "dim")
            verdict = Text(told["verdict"], style=style)
            table.add_row(Padding(measure, (0, 0, 0, 2)), told["value"], told["range"], told["change"], verdict)
    return table


def _spread_of(arms: Sequence[Mapping[str, Any]]) -> str:
    """What stands beside the medians: the range of the seeds, or a single run's own bootstrap interval."""
    singles = {len(arm["seeds"]) == 1 for arm in arms}
    if singles == {True}:
        return "95 % interval"
    return "range of seeds, of one seed 95 % interval" if True in singles else "range of seeds"


def _settings(result: Mapping[str, Any]) -> Table:
    """The settings in which arms differ; those that follow from others are dim."""
    table = _table("Settings that differ", "by arm")
    table.columns[1].justify = "left"
    for each in result["settings"]:
        values = ", ".join(f"{arm}: {value}" for arm, value in each["values"].items())
        table.add_row(each["name"], values, style="" if each["asked"] else "dim")
    return table


def _curves(curves: Sequence[Mapping[str, Any]]) -> list[Table]:
    """The points of the curves, a table for each target and measure of learning: changes, and their range of seeds."""
    from frisket.report.compare_page import lengths_told, short

    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for drawing in curves:
        found.setdefault((drawing["target"], drawing["learned"]), []).append(drawing)
    tables = []
    for (target, learned), drawings in found.items():
        kinds = [f"forgotten: {short(drawing['forgotten'])}" for drawing in drawings]
        table = _table(f"Learned against forgotten · {target}", "length", f"learned: {learned}", *kinds)
        points = [{p["arm"]: p for line in d["lines"] for p in line["points"]} for d in drawings]
        for arm in dict.fromkeys(arm for each in points for arm in each):
            own = [each.get(arm) for each in points]
            first = next(filter(None, own))
            table.add_row(arm, first["length"], _change(first, "x"), *(_change(point, "y") for point in own))
        lacking = sorted({arm for drawing in drawings for arm in drawing["lacking"]})
        told = [next(filter(None, map(lengths_told, drawings)), "")]
        told += [f"Not everywhere, because a run lacks a measure: {', '.join(lacking)}."] if lacking else []
        table.caption, table.caption_justify = "\n".join(filter(None, told)) or None, "left"
        tables.append(table)
    return tables


def _change(point: Mapping[str, Any] | None, axis: str) -> str:
    if point is None:
        return "–"
    low, high = point[f"{axis}_range"]
    return f"{point[axis]:+.3g}" + (f" ({low:+.3g} to {high:+.3g})" if low < high else "")


def _costs(result: Mapping[str, Any]) -> Table:
    table = _table("Arm", "weights moved", "rate", "steps", "tokens", "tokens/s", "seconds a run")
    for arm in result["arms"]:
        rate = arm["learning_rate"]
        table.add_row(
            arm["name"],
            f"{arm['moving']:,}",
            rate if isinstance(rate, str) else f"{rate:g}",
            f"{arm['steps']:,}",
            f"{arm['tokens']:,}",
            f"{arm['tokens_per_second']:,.0f}",
            figure(arm["seconds"]),
        )
    return table


def _overlaps(pairs: list[Mapping[str, Any]]) -> Table:
    """Which of the base's entries two sparse adapters change both, beside what two random choices would share."""
    table = _table("Entries in common", "entries", "shared", "by chance", "Jaccard", "by chance")
    for pair in pairs:
        entries = " and ".join(f"{count:,}" for count in pair["entries"])
        told = [figure(pair[name]) for name in ("chance", "jaccard", "chance_jaccard")]
        table.add_row(f"{pair['a']} · {pair['b']}", entries, f"{pair['shared']:,}", *told)
    return table


def _table(*header: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    for place, name in enumerate(header):
        table.add_column(name, overflow="fold", justify="right" if place and name else "left")
    return table
