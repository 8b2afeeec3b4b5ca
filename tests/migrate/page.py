"""Write the generated parts of docs/from/*.md: what became of each key, and of the files that the tools publish.

    python -m tests.migrate.page

A generated part stands between `<!-- keys -->` and `<!-- /keys -->`, or `tried`; the rest of a page is written by hand.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path

from frisket.migrate.table import Row, Tool
from frisket.migrate.tables import TOOLS

ROOT = Path(__file__).parents[2]
RESULT = ROOT / "benchmarks" / "results" / "migrate.json"
REPOSITORIES = {"trl": "trl", "axolotl": "axolotl", "llama-factory": "LLaMA-Factory"}


def page_of(tool: Tool) -> Path:
    """The page for users of a tool."""
    return ROOT / "docs" / "from" / f"{tool.name}.md"


def filled(text: str, tool: Tool) -> str:
    """A page with its generated parts as they must be now."""
    parts = {"keys": keys(tool), "tried": tried(tool)}
    for name, part in parts.items():
        region = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        text = region.sub(lambda found, part=part: f"{found[1]}{part}\n{found[2]}", text)
    return text


def keys(tool: Tool) -> str:
    """Every key of a tool by what became of it."""
    mapped = {key: row for key, row in tool.rows.items() if row.outcome == "mapped"}
    lines = ["### Mapped", "", "| key | in a recipe | |", "|---|---|---|"]
    lines += [f"| `{key}` | `{row.text}` | {row.note} |" for key, row in mapped.items()]
    for title, belongs in (
        ("Done here without a key", lambda row: row.outcome == "default"),
        ("Not needed", lambda row: row.outcome == "not needed"),
        ("Not supported", lambda row: row.outcome == "not supported" and not row.refused),
        ("Another job: the file is refused", lambda row: row.refused),
    ):
        lines += ["", f"### {title}", "", "| here | keys |", "|---|---|"]
        lines += [f"| {reason} | {named} |" for reason, named in _by_reason(tool, belongs).items()]
    return "\n".join(lines)


def _by_reason(tool: Tool, belongs: Callable[[Row], bool]) -> dict[str, str]:
    found: dict[str, list[str]] = {}
    for key, row in tool.rows.items():
        if belongs(row):
            found.setdefault(row.text, []).append(f"`{key}`" + (f" ({row.note})" if row.note else ""))
    return {reason.replace("|", "\\|"): ", ".join(named) for reason, named in found.items()}


def tried(tool: Tool) -> str:
    """What became of the files that the tool publishes, as `benchmarks/results/migrate.json` has it."""
    result = json.loads(RESULT.read_text(encoding="utf-8"))[REPOSITORIES[tool.name]]
    summary = result["summary"]
    told = ", ".join(f"{count:,} {outcome}" for outcome, count in summary["keys"].items())
    return (
        f"Tried on the {summary['files']} configurations and commands that {tool.title} publishes (commit\n"
        f"{result['commit'][:12]}): {summary['migrated']} become a recipe that loads, with every key accounted for,\n"
        f"{summary['whole']} of them without an unknown key. {summary['training job refused by name']} start "
        "a training that frisket does not do, and are refused by name;\n"
        f"{summary['no training job']} are no training job (machines, generating, merging, lists of tokens), "
        f"{summary['not readable']} name a file that is not there. Keys: {told}.\n"
        "By file: `benchmarks/results/migrate.json`, written by `benchmarks/migrate.py`."
    )


def main() -> None:
    """Write the generated parts of all pages."""
    for tool in TOOLS.values():
        page = page_of(tool)
        page.write_text(filled(page.read_text(encoding="utf-8"), tool), encoding="utf-8")


if __name__ == "__main__":
    main()
