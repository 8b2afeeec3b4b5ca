"""The model card: ``OUT/README.md``, in the form that the Hugging Face Hub reads."""

import json
import re
from collections.abc import Mapping

from frisket.report.ledger import ledger_columns, ledger_identities, ledger_table, read_ledgers
from frisket.report.measures import Measure, measures
from frisket.report.moved import moved_told, rejection, sides, stage_rows, true_base
from frisket.report.overlap import overlap_rows
from frisket.report.render import count, document, plain, times, words

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_BUNDLED = "bundled"


def model_card(summary: Mapping, recipe_yaml: str, environment: Mapping) -> str:
    """The model card of a finished run, as Markdown with YAML front matter.

    A base model that is not a hub id is named in the text only: the Hub reads ``base_model`` as an id.

    Args:
        summary: ``summary.json``; whether ``artifacts`` names an ``adapter`` and whether it is ``of_peft`` decides what
            the card explains.
        recipe_yaml: the resolved recipe.
        environment: ``environment.json``; its top-level texts and numbers are listed.
    """
    overlap = summary.get("overlap") or {}
    of_peft = summary.get("of_peft", True)
    artifacts, base = summary.get("artifacts") or {}, str(summary["model"]["path"])
    is_adapter, rejected = "adapter" in artifacts, rejection(summary)
    earlier, (before, after) = summary.get("earlier"), sides(summary)
    ledgers = read_ledgers(summary["tokens"], [source["path"] for source in summary["data"]])
    tables = [_table(["tokens", *ledger_columns(ledgers)], [[plain(v) for v in row] for row in ledger_table(ledgers)])]
    return document(
        "card.md.jinja",
        front=_front_matter(true_base(summary), is_adapter and not earlier, of_peft, is_rejected=bool(rejected)),
        summary=summary,
        title=_line(summary["recipe"]),
        base=_line(true_base(summary)),
        stands_on=_line(base),
        moved=_line(moved_told(summary)),
        rejection=_line(rejected),
        stages=_stages(stage_rows(summary)),
        is_adapter=is_adapter,
        of_peft=of_peft,
        folder=artifacts.get("adapter") or artifacts.get("model") or "model",
        base_code="base_path()" if base == _BUNDLED else json.dumps(base, ensure_ascii=False),
        is_bundled=base == _BUNDLED,
        learning=_sets(summary.get("learning"), before, after),
        forgetting=_sets(summary.get("forgetting"), before, after),
        data=_table(
            ["data", "format", "samples"], [[s["path"], s["format"], count(s["samples"])] for s in summary["data"]]
        ),
        overlap=[f"{_line(name)}: {_line(each['sentence'])}" for name, each in overlap.items()],
        overlap_table=_overlap(overlap),
        ledger="\n\n".join(tables),
        notices=[_line(line) for line in summary.get("notices") or []],
        identities=[text if holds else f"{text} — DOES NOT HOLD" for text, holds in ledger_identities(ledgers)],
        rates=[f"{words(name)}: {count(value)}" for name, value in summary["rates"].items()],
        seconds=[f"{name}: {time}" for name, time in times(summary)],
        environment=[
            f"{_line(k)}: {_line(plain(v))}" for k, v in environment.items() if isinstance(v, str | int | float)
        ],
        recipe=_fenced(recipe_yaml.strip("\n"), "yaml"),
    )


def _front_matter(base: str, is_adapter: bool, of_peft: bool, *, is_rejected: bool) -> str:
    """JSON strings are valid YAML, whatever a path may hold."""
    lines = ["---"]
    if _HUB_ID.fullmatch(base):
        lines += [f"base_model: {json.dumps(base)}", f"base_model_relation: {'adapter' if is_adapter else 'finetune'}"]
    library = "transformers" if not is_adapter else "peft" if of_peft else "frisket"
    lines += [f"library_name: {library}", "pipeline_tag: text-generation", "tags:"]
    more = [] if is_rejected else ["fine-tuned", *(["adapter"] if is_adapter else [])]
    lines += [f"- {tag}" for tag in ("frisket", "text-generation", *more)]
    return "\n".join([*lines, "---"])


def _sets(sets: Mapping | None, before: str, after: str) -> str:
    """One table of all sets, their groups below them; empty where nothing was measured."""
    rows = []
    for name, entry in (sets or {}).items():
        rows += [_row(name, entry, measure) for measure in measures(entry)]
        for group, values in (entry.get("groups") or {}).items():
            rows += [_row(f"{name} · {group}", values, measure) for measure in measures(values)[:1]]
    return _table(["set", "samples", "metric", before, after, "change"], rows) if rows else ""


def _row(name: str, entry: Mapping, measure: Measure) -> list[str]:
    sides = []
    for side in (measure.before, measure.after):
        interval = measure.interval(side)
        sides.append(f"{measure.shown(side)} ({interval})" if interval else measure.shown(side))
    interval = measure.change_interval or measure.without_interval
    change = f"{measure.change} ({interval})" if interval else measure.change
    return [name, plain(entry.get("samples")), measure.label, *sides, change]


def _stages(rows: list[dict]) -> str:
    names = ("path", "method", "where", "moved", "measured", "outcome")
    cells = [[str(index), *(row[name] for name in names)] for index, row in enumerate(rows, 1)]
    return _table(["stage", "starts from", *names[1:-1], ""], cells) if rows else ""


def _overlap(overlap: Mapping[str, Mapping]) -> str:
    head = ["set", "samples", "word for word", "same prompt"]
    head += [f"{part} ≥ {bound} %" for part in ("all words", "prompt", "answer") for bound in (80, 20)]
    return _table(head, [[plain(value) for value in row] for row in overlap_rows(overlap)]) if overlap else ""


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    cells = [[_line(cell).replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in cells)


def _line(text: object) -> str:
    """A text on one line in which nothing is read as markup: names and paths come from files."""
    return re.sub(r"([\\`*_<>\[\]])", r"\\\1", " ".join(str(text).split()))


def _fenced(text: str, language: str) -> str:
    """A code block whose fence is longer than any run of backticks in the text."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"
