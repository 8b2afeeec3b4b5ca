"""The final screen of a run: examples, learning and forgetting, the ledger, rates, and what to do next."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from frisket.cli.words import duration, figure, percent, shorten

_MEASURES = {"exact_match": "exact match", "loss": "loss", "kl": "KL to the base"}
_SHOWN_EXAMPLES = 3
_LABEL = "cyan"


def summary_screen(summary: Mapping, out: Path, width: int) -> RenderableType:
    """All parts of the final screen that the summary has something for."""
    parts: list[RenderableType] = [Text()]
    if summary.get("examples"):
        parts += [_examples(summary["examples"], width)]
    parts += measures(summary, width)
    if summary.get("verdict"):
        parts.append(_verdict(summary["verdict"]))
    if summary.get("tokens"):
        parts.append(_ledger(summary["tokens"]))
    parts.append(_closing(summary, out))
    return Group(*parts)


def measures(summary: Mapping, width: int) -> list[RenderableType]:
    """The tables of learning and forgetting."""
    shown: list[RenderableType] = []
    for key, title in (("learning", "Learning"), ("forgetting", "Forgetting")):
        if summary.get(key):
            shown.append(_measure_table(title, summary[key], is_narrow=width < 100))
    return shown


def answers(prompts: Sequence[str], tuned: Sequence[str], bases: Sequence[str] | None) -> RenderableType:
    """Each prompt with its answer, beside that of the base where it is given."""
    table = _table()
    table.add_column("prompt", ratio=2, overflow="fold", style="dim")
    if bases is not None:
        table.add_column("base", ratio=3, overflow="fold")
    table.add_column("tuned", ratio=3, overflow="fold")
    for index, (prompt, answer) in enumerate(zip(prompts, tuned, strict=True)):
        beside = [] if bases is None else [Text(bases[index].strip())]
        table.add_row(Text(shorten(prompt, 400)), *beside, Text(answer.strip()))
    return table


def facts(values: Mapping) -> RenderableType:
    """Names and values, one a line."""
    grid = Table.grid(padding=(0, 2))
    for name, value in values.items():
        grid.add_row(Text(f"  {name.replace('_', ' ')}", style=_LABEL), Text(_plain(value)))
    return grid


def _table() -> Table:
    return Table(
        box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 2, 0, 0), expand=True, header_style="dim"
    )


def _examples(examples: Sequence[Mapping], width: int) -> RenderableType:
    table = _table()
    for name, ratio in (("the same prompts", 5), ("before", 4), ("after", 4)):
        table.add_column(name, ratio=ratio, overflow="fold")
    limit = 2 * width
    for example in _chosen(examples):
        reference = str(example.get("reference") or "").strip()
        after = str(example.get("after") or "").strip()
        prompt = Text(shorten(str(example["prompt"]), limit))
        group = example.get("group")
        if group:
            prompt = Text.assemble((f"{group}\n", _LABEL), prompt)
        right = reference and after == reference
        wanted = Text() if right or not reference else Text(f"\nwanted: {shorten(reference, limit // 2)}", style="dim")
        answer = Text(shorten(after, limit), style="bold green" if right else "")
        table.add_row(prompt, Text(shorten(str(example.get("before") or ""), limit), style="dim"), answer + wanted)
        table.add_section()
    return Padding(table, (0, 0, 1, 2))


def _chosen(examples: Sequence[Mapping]) -> list[Mapping]:
    """Three examples of groups as different as there are; the last is kept: it is of the skill that was not taught."""
    if len(examples) <= _SHOWN_EXAMPLES:
        return list(examples)
    first_of = list({example.get("group"): example for example in reversed(examples[:-1])}.values())[::-1]
    fresh = [example for example in first_of if example.get("group") != examples[-1].get("group")]
    return [*(fresh if len(fresh) > 1 else list(examples))[: _SHOWN_EXAMPLES - 1], examples[-1]]


def _measure_table(title: str, sets: Mapping[str, Mapping], is_narrow: bool) -> RenderableType:
    table = _fitted(title)
    table.add_column("measure", overflow="fold", style="dim")
    table.add_column("samples", justify="right", style="dim")
    for name in ("before", "after"):
        table.add_column(name, justify="right", no_wrap=True)
        table.add_column("95 %" if is_narrow else "95 % interval", no_wrap=True, style="dim")
    for name, entry in sets.items():
        _add_rows(table, name, entry)
        for group, inner in entry.get("groups", {}).items():
            _add_rows(table, f"  {group}", inner, first_only=True)
    return Padding(table, (0, 0, 1, 2))


def _verdict(verdict: Mapping) -> RenderableType:
    """Mask-free rows against isolated ones."""
    table = _fitted("Mask-free")
    for name in ("mask-free", "isolated", "95 % of isolated"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, found in verdict["quality"].items():
        interval = "–".join(figure(end) for end in found["interval"])
        table.add_row(f"{name}: {found['told']}", figure(found["mask_free"]), figure(found["isolated"]), interval)
    times = verdict["seconds_per_step"]
    table.add_row("seconds a step", figure(times["mask_free"]), figure(times["isolated"]), "")
    return Padding(Group(table, Text(f"  {verdict['recommendation']}", style="bold")), (0, 0, 1, 2))


def _fitted(title: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    table.add_column(Text(title, style="bold not dim"), no_wrap=True, min_width=12)
    return table


def _add_rows(table: Table, name: str, entry: Mapping, first_only: bool = False) -> None:
    before, after = entry.get("before") or {}, entry.get("after") or {}
    found = [key for key, value in {**before, **after}.items() if _is_number(value)]
    found.sort(key=lambda key: key != "exact_match")
    units, of_all = entry.get("units") or {}, entry.get("samples")
    for measure in found[:1] if first_only else found:
        samples = units.get(measure, of_all)
        what = _MEASURES.get(measure, measure.replace("bits_per_character", "bits/character").replace("_", " "))
        told = "" if samples is None else f"{samples:,}"
        table.add_row(name, what, told, *_measured(before, measure), *_measured(after, measure))
        name, of_all = "", None


def _measured(values: Mapping, measure: str) -> tuple[str, str]:
    """A value and its interval; of too few samples there is none."""
    value, interval = values.get(measure), values.get(f"{measure}_interval")
    if not _is_number(value):
        return "–", ""
    is_share = measure == "exact_match"
    ends = [f"{100 * end:.1f}" if is_share else figure(end) for end in interval or ()]
    return percent(value) if is_share else figure(value), "–".join(ends) or "no interval"


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _ledger(tokens: Mapping[str, Any]) -> RenderableType:
    table = _fitted("Tokens")
    table.add_column("count", justify="right")
    table.add_column("share", justify="right", style="dim")
    table.add_column("", style="dim", overflow="fold")
    read = tokens.get("read", 0)
    taught, untaught = tokens.get("taught", {}), tokens.get("untaught", {})
    table.add_row("read", f"{read:,}", "", "")
    _account(table, "taught", sum(taught.values()), read, _by_name(taught))
    _account(table, "not taught", sum(untaught.values()), read, _by_name(untaught))
    counted = tokens.get("samples", {})
    for name in ("held_out", "dropped", "truncated", "other_objective"):
        if tokens.get(name) or name == "dropped":
            samples = f"{counted[name]:,} samples" if counted.get(name) else ""
            _account(table, name.replace("_", " "), tokens.get(name, 0), read, samples)
    if tokens.get("flat"):
        parts = f"{tokens['computed']:,} computed + {tokens['shared']:,} shared"
        table.add_row("in steps", f"{tokens['flat']:,}", "", parts)
    return Padding(table, (0, 0, 1, 2))


def _account(table: Table, name: str, count: int, read: int, detail: str) -> None:
    table.add_row(name, f"{count:,}", percent(count / read) if read else "", detail)


def _by_name(counts: Mapping[str, int]) -> str:
    return " · ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in counts.items() if count)


def _closing(summary: Mapping, out: Path) -> RenderableType:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style=_LABEL, no_wrap=True)
    grid.add_column(overflow="fold")
    model = summary.get("model", {})
    if model.get("parameters"):
        moving, every = model["moving"], model["parameters"]
        grid.add_row("  moved", Text(f"{moving:,} of {every:,} weights ({percent(moving / every)})"))
    rates, seconds = summary.get("rates", {}), summary.get("seconds", {})
    names = (("real", "real_tokens_per_second"), ("supervised", "supervised_tokens_per_second"))
    paces = [
        f"{rates[key]:,.0f} {name}"
        for name, key in (*names, ("computed", "computed_tokens_per_second"))
        if key in rates
    ]
    if paces:
        grid.add_row("  tokens/s", Text(", ".join(paces)))
    if "total" in seconds:
        parts = ", ".join(f"{name} {duration(value)}" for name, value in seconds.items() if name != "total")
        grid.add_row("  time", Text(f"{duration(seconds['total'])}{f' ({parts})' if parts else ''}"))
    if summary.get("memory"):
        grid.add_row("  memory", Text(_memory(summary["memory"])))
    if summary.get("checks"):
        grid.add_row(
            "  checks", Text(" · ".join(f"{name} {_plain(value)}" for name, value in summary["checks"].items()))
        )
    for name, path in summary.get("artifacts", {}).items():
        if name in ("adapter", "model", "report", "report.html"):
            grid.add_row(f"  {name.removesuffix('.html')}", Text(str(out / path)))
    if summary.get("serving"):
        grid.add_row("  serve", Text(str(summary["serving"])))
    if summary.get("next"):
        grid.add_row("  next", Text(str(summary["next"]), style="bold"))
    return grid


def _memory(memory: Mapping[str, int | None]) -> str:
    """Highest, and what was predicted."""
    peak, predicted = memory["peak_bytes"] or 0, memory["predicted_bytes"]
    told = f"{peak / 2**20:,.0f} MiB at the highest"
    return told if predicted is None else f"{told} ({predicted / 2**20:,.0f} predicted)"


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return "passed" if value else "failed"
    if isinstance(value, float):
        return figure(value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_plain(inner)}" for name, inner in value.items())
    return str(value)
