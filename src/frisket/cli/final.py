"""The final screen of a run: examples, learning and forgetting, the ledger, rates, and what to do next."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from rich import box
from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from frisket.cli.masks import masks
from frisket.cli.words import figure, percent, shorten
from frisket.errors import counted
from frisket.watch import duration

if TYPE_CHECKING:
    from frisket.run.opening import Answered

_MEASURES = {"exact_match": "exact match", "loss": "loss", "kl": "KL to the base"}
_SHOWN_EXAMPLES = 3
_NAME, _INDENT = 12, 2
Line = tuple[str, str, str, str, str, str, str]
"""Of a table of measures: set, measure, samples, before, its interval, after, its interval."""
_LABEL = "cyan"


def summary_screen(summary: Mapping, out: Path, width: int) -> RenderableType:
    """All parts of the final screen that the summary has something for."""
    parts: list[RenderableType] = [Text()]
    parts += _head(summary)
    examples = summary.get("examples") or (summary.get("samples") or {}).get("examples")
    if examples:
        parts += [_examples(examples, (summary.get("samples") or {}).get("prompts") or 0, width, _sides(summary))]
    parts += measures(summary, width)
    parts += masks(summary)
    if summary.get("verdict"):
        parts.append(_verdict(summary["verdict"]))
    if summary.get("tokens"):
        parts.append(_ledger(summary["tokens"]))
    parts.append(_closing(summary, out))
    return Group(*parts)


def measures(summary: Mapping, width: int) -> list[RenderableType]:
    """The tables of learning and forgetting, and what the second one says in a sentence."""
    from frisket.report.measures import forgotten

    shown: list[RenderableType] = []
    sides = _sides(summary)
    prefix = "" if sides[1] == "after" else f"With the {sides[1]}. "
    for key, title in (("learning", "Learning"), ("forgetting", "Forgetting")):
        if summary.get(key):
            shown.append(_measure_table(title, summary[key], width, sides))
    for told in (forgotten(name, entry) for name, entry in (summary.get("forgetting") or {}).items()):
        if told:
            shown.append(Padding(Text(prefix + told, style="bold"), (0, 0, 1, 2)))
    return shown


def _sides(summary: Mapping) -> tuple[str, str]:
    from frisket.report.moved import sides

    return sides(summary) if summary.get("model") else ("before", "after")


def _head(summary: Mapping) -> list[RenderableType]:
    """What must be read before the figures: that nothing was shipped, and which stages there were."""
    from frisket.report.moved import rejection, stage_rows

    parts: list[RenderableType] = []
    if told := rejection(summary):
        parts.append(Padding(Text(told, style="bold yellow"), (0, 0, 1, _INDENT)))
    if rows := stage_rows(summary):
        table = _fitted("Stage")
        for name in ("where", "moved", "measured"):
            table.add_column(name, overflow="fold")
        for index, row in enumerate(rows, 1):
            measured = "; ".join(filter(None, (row["measured"], row["outcome"])))
            table.add_row(f"{index} {row['method']}", row["where"], row["moved"], measured)
        note = Text(f"from {rows[0]['path']}; what stands below is of the last stage", style="dim")
        parts.append(Padding(Group(table, note), (0, 0, 1, _INDENT)))
    return parts


def answers(prompts: Sequence[str], tuned: "Sequence[Answered]", bases: "Sequence[Answered] | None") -> RenderableType:
    """Each prompt with its answer, beside that of the base where it is given; what was cut short is marked."""
    table = _table()
    table.add_column("prompt", ratio=2, overflow="fold", style="dim")
    if bases is not None:
        table.add_column("base", ratio=3, overflow="fold")
    table.add_column("tuned", ratio=3, overflow="fold")
    for index, (prompt, answer) in enumerate(zip(prompts, tuned, strict=True)):
        beside = [] if bases is None else [_answer(bases[index])]
        table.add_row(Text(shorten(prompt, 400)), *beside, _answer(answer))
    return table


def _answer(answer: "Answered") -> Text:
    return Text.assemble(answer.text.strip(), ("… (cut)", "yellow") if answer.is_cut else "")


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


def _examples(examples: Sequence[Mapping], asked: int, width: int, sides: tuple[str, str]) -> RenderableType:
    """Three of them at most, and how many there are: of a run that checks no answers, all that it asked over time."""
    table = _table()
    for name, ratio in (("the same prompts", 5), (sides[0], 4), (sides[1], 4)):
        table.add_column(name, ratio=ratio, overflow="fold")
    limit = 2 * width
    chosen = _chosen(examples)
    for example in chosen:
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
    every = max(asked, len(examples))
    shown = Text(f"{len(chosen)} of {every:,} shown, whatever they say; all: report.html", style="dim")
    return Padding(Group(table, *([shown] if len(chosen) < every else [])), (0, 0, 1, 2))


def _chosen(examples: Sequence[Mapping]) -> list[Mapping]:
    """The first ones, of groups as different as there are; the last is kept: it is of the skill that was not taught.

    The answers decide nothing: a choice by them would flatter.
    """
    if len(examples) <= _SHOWN_EXAMPLES:
        return list(examples)
    first_of = list({example.get("group"): example for example in reversed(examples[:-1])}.values())[::-1]
    fresh = [example for example in first_of if example.get("group") != examples[-1].get("group")]
    return [*(fresh if len(fresh) > 1 else list(examples))[: _SHOWN_EXAMPLES - 1], examples[-1]]


def _measure_table(title: str, sets: Mapping[str, Mapping], width: int, sides: tuple[str, str]) -> RenderableType:
    """A line a measure; where that would break a word, intervals stand below figures and measures below their set."""
    lines: list[Line] = []
    for name, entry in sets.items():
        lines += _lines(name, entry)
        for group, inner in entry.get("groups", {}).items():
            lines += _lines(f"  {group}", inner)[:1]
    interval = "95 %" if width < 100 else "95 % interval"
    header = (title.ljust(_NAME), "measure", "samples", sides[0], interval, sides[1], interval)
    is_fitting = _least_width([header, *lines]) + _INDENT <= width
    return Padding(_flat(header, lines) if is_fitting else _stacked(header, lines), (0, 0, 1, _INDENT))


def _least_width(lines: Sequence[Line]) -> int:
    """Columns on the screen that the lines take where only names of measures wrap, and between words."""
    sets, names, *others = zip(*lines, strict=True)
    columns = [sets, [word for name in names for word in name.split()], *others]
    return sum(1 + max(map(cell_len, column)) for column in columns)


def _flat(header: Line, lines: Sequence[Line]) -> Table:
    table = _fitted(header[0], wraps=False)
    table.add_column(header[1], style="dim")
    table.add_column(header[2], justify="right", style="dim")
    for place in (3, 5):
        table.add_column(header[place], justify="right", no_wrap=True)
        table.add_column(header[place + 1], no_wrap=True, style="dim")
    for line in lines:
        table.add_row(*line)
    return table


def _stacked(header: Line, lines: Sequence[Line]) -> Table:
    table = _fitted(header[0])
    for place in (2, 3, 5):
        table.add_column(header[place], justify="right", no_wrap=True, style="dim" if place == 2 else "")
    for name, measure, samples, before, of_before, after, of_after in lines:
        sides = [Text.assemble(value, (f"\n{ends}", "dim")) for value, ends in ((before, of_before), (after, of_after))]
        table.add_row(Text.assemble(f"{name}\n" if name else "", (measure, "dim")), samples, *sides)
    return table


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


def _fitted(title: str, *, wraps: bool = True) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    head = Text(title.strip(), style="bold not dim")
    table.add_column(head, no_wrap=not wraps, overflow="fold", min_width=_NAME)
    return table


def _lines(name: str, entry: Mapping) -> list[Line]:
    before, after = entry.get("before") or {}, entry.get("after") or {}
    found: list[str] = [key for key, value in {**before, **after}.items() if _is_number(value)]
    found.sort(key=lambda key: key != "exact_match")
    units, of_all = entry.get("units") or {}, entry.get("samples")
    lines: list[Line] = []
    for measure in found:
        samples = units.get(measure, of_all)
        what = _MEASURES.get(measure, measure.replace("bits_per_character", "bits/character").replace("_", " "))
        told = "" if samples is None else f"{samples:,}"
        lines.append((name, what, told, *_measured(before, measure), *_measured(after, measure)))
        name, of_all = "", None
    return lines


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
    counts = tokens.get("samples", {})
    for name in ("held_out", "dropped", "truncated", "other_objective"):
        if tokens.get(name) or name == "dropped":
            samples = counted(counts[name], "sample") if counts.get(name) else ""
            if name == "dropped" and counts.get("dropped_unread"):
                unread = counts["dropped_unread"]
                table.add_row(name, f"{tokens[name]:,}" if tokens[name] else "–", "", f"{samples}, {_unread(unread)}")
                continue
            _account(table, name.replace("_", " "), tokens.get(name, 0), read, samples)
    if tokens.get("flat"):
        parts = f"{tokens['computed']:,} computed + {tokens['shared']:,} shared"
        table.add_row("in steps", f"{tokens['flat']:,}", "", parts)
    return Padding(table, (0, 0, 1, 2))


def _unread(count: int) -> str:
    return f"of which {count:,} never became tokens, so that theirs are not counted"


def _account(table: Table, name: str, count: int, read: int, detail: str) -> None:
    table.add_row(name, f"{count:,}", percent(count / read) if read else "", detail)


def _by_name(counts: Mapping[str, int]) -> str:
    return " · ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in counts.items() if count)


def _closing(summary: Mapping, out: Path) -> RenderableType:
    from frisket.report.moved import moved_told

    grid = Table.grid(padding=(0, 2))
    grid.add_column(style=_LABEL, no_wrap=True)
    grid.add_column(overflow="fold")
    model = summary.get("model", {})
    if model.get("parameters"):
        grid.add_row("  weights", Text(moved_told(summary)))
    rates, seconds = summary.get("rates", {}), summary.get("seconds", {})
    names = (("real", "real_tokens_per_second"), ("supervised", "supervised_tokens_per_second"))
    paces = [
        f"{rates[key]:,.0f} {name}"
        for name, key in (*names, ("computed", "computed_tokens_per_second"))
        if key in rates
    ]
    if paces:
        whole = f", over all {summary['steps']:,} steps" if summary.get("resumed") else ""
        grid.add_row("  tokens/s", Text(", ".join(paces) + whole))
    if "total" in seconds:
        grid.add_row("  time", Text(_times(summary)))
    if summary.get("memory"):
        grid.add_row("  memory", Text(_memory(summary["memory"])))
    if summary.get("overfit"):
        grid.add_row("  overfit", Text(str(summary["overfit"])))
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


def _times(summary: Mapping) -> str:
    """How long it took, and what of it; of a resumed run this part and, of the steps, the whole."""
    seconds, resumed = summary["seconds"], summary.get("resumed")
    names = (("before", "{} before the first step"), ("training", "{} training, with the evaluations between"))
    parts = [text.format(duration(seconds[name])) for name, text in names if name in seconds]
    own = resumed["seconds"] if resumed else seconds.get("steps")
    if own is not None:
        parts.append(f"{duration(own)} in {resumed['steps'] if resumed else summary['steps']:,} steps")
    if "loader" in seconds:
        parts.append(f"{duration(seconds['loader'])} of them laying out samples")
    told = duration(seconds["total"]) + (f" since the resume at step {resumed['step']:,}" if resumed else "")
    told += f" ({', '.join(parts)})" if parts else ""
    return f"{told}; all {summary['steps']:,} steps {duration(seconds['steps'])}" if resumed else told


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
