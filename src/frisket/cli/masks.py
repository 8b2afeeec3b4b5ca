"""The tables of mask fine-tuning on the final screen: the four candidates, and the groups of layers that were tried."""

from collections.abc import Mapping

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text


def masks(summary: Mapping) -> list[RenderableType]:
    """What the summary has of them; nothing for other methods."""
    told, search = summary.get("mask_tuning"), summary.get("layer_search")
    if not told:
        return []
    from frisket.report.masks import candidate_rows, group_rows, verdict_of

    parts: list[RenderableType] = []
    if search:
        parts.append(_table(("Layers", "loss", "to no mask", "95 %"), group_rows(search)))
    for name, candidates in told["sets"].items():
        parts.append(_table((f"Mask on {name}", "loss", "to no mask", "95 %"), candidate_rows(candidates)))
    return [Padding(Group(*parts, Text(verdict_of(told), style="bold")), (0, 0, 1, 2))]


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column(Text(header[0], style="bold not dim"), overflow="fold")
    for name in header[1:]:
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table
