"""Write docs/methods.md: every method, from its docstring, its knobs, and what it counts on the bundled base.

python -m tests.docs.methods
"""

import inspect
from pathlib import Path
from typing import get_args

from frisket.adapt.base import MethodSettings
from frisket.adapt.methods import Method
from frisket.explain import method_name, show
from frisket.hf.settings import ModelSettings
from frisket.recipe import knobs
from frisket.run.listing import Listed, list_methods

PAGE = Path(__file__).parents[2] / "docs" / "methods.md"
SHARED = ("method", "where", "also_train")
HEAD = """# Every method

`adapt.method` says how the weights under `adapt.where` move. Counts are those of the bundled base (3.5 million
parameters) with the defaults; for your own model: `frisket methods --model MODEL`. A recipe, a run folder or
overrides are priced as they are: `frisket methods recipe.yaml adapt.rank=64`. *Share* is that of the base's parameters,
*optimizer* the bytes of its state, without fp32 masters. *Forest*, *mask-free*: several samples in a row,
as `attend.arrangement` says.

Written by `python -m tests.docs.methods` from the methods themselves; a test compares it.
"""
_COLUMNS = (
    "| method | what moves | source | parameters | share | optimizer | merges | forest | mask-free | 4-bit "
    "| rate of 1,000 steps |"
)


def page() -> str:
    """The page."""
    listed = list_methods(ModelSettings(path="bundled"))
    parts = [HEAD, _COLUMNS, "|---|---|---|---:|---:|---:|---|---|---|---|---:|", *(_row(each) for each in listed)]
    parts += [text for kind in get_args(get_args(Method)[0]) for text in _section(kind)]
    return "\n".join(parts) + "\n"


def _row(each: Listed) -> str:
    name = f"[`{each.name}`](#{each.name})" if " " not in each.name else f"`{each.name}`"
    works = ("yes" if holds else "no" for holds in (each.merges, each.packs, each.packs, each.quantised))
    moving, size = ("–" if n is None else f"{n:,}" for n in (each.parameters, each.optimizer_bytes))
    share = "–" if each.share is None else f"{100 * each.share:.3g} %"
    moves = each.moves + (f" ({each.why_not})" if each.why_not else "")
    cells = [name, moves.replace("|", "\\|"), each.source, moving, share, size, *works, f"{each.rate:g}"]
    return f"| {' | '.join(cells)} |"


def _section(kind: type[MethodSettings]) -> list[str]:
    name = method_name(kind)
    rate = kind.rate
    own = [knob for knob in knobs() if knob.name.startswith("adapt.") and name in knob.methods]
    told = [f"| `{k.name}` | {_default(k.default)} | {k.help} |" for k in own if k.name.split(".")[1] not in SHARED]
    table = (
        ["", "| knob | default | what |", "|---|---|---|", *(line.replace("\n", " ") for line in told)] if told else []
    )
    facts = f"Moves: {kind.about.moves}. Source: {kind.about.source}. Default rate: {rate.value:g} ({rate.source})."
    return [f"\n## {name}\n", _said(kind), "", facts, *table]


def _said(kind: type[MethodSettings]) -> str:
    text = inspect.getdoc(kind) or ""
    return text.replace("*", "\\*").replace("_", "\\_") if "`" not in text else _outside_code(text)


def _outside_code(text: str) -> str:
    """Stars and underscores are no markup; inside of backticks they are themselves already."""
    parts = text.split("`")
    return "`".join(p if i % 2 else p.replace("*", "\\*").replace("_", "\\_") for i, p in enumerate(parts))


def _default(value: object) -> str:
    return "" if value is None else f"`{show(value)}`"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
