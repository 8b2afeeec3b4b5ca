"""Write docs/papers.md from docs/papers.yaml and from the docstrings that cite a paper.

python -m tests.docs.papers
"""

import ast
import re
from pathlib import Path
from typing import NamedTuple

import yaml

ROOT = Path(__file__).parents[2]
SOURCE, PAGE = ROOT / "docs" / "papers.yaml", ROOT / "docs" / "papers.md"
ARXIV = re.compile(r"\b(\d{4}\.\d{5})\b")
STATUS = {
    "works": "works, tested",
    "PEFT": "through PEFT",
    "library": "through torch",
    "idea": "in part",
    "advice": "advice in plan",
    "protocol": "how it is measured",
    "open": "not here",
}
HEAD = """# Papers

Each paper that frisket draws on, or that a user of it may ask for: the file whose docstring cites it (what is taken,
and what differs, stands there), its test, its status, and a verdict in one line. {here} of {all} are here in whole or
in part.

This page is written by `python -m tests.docs.papers` from `docs/papers.yaml` and the docstrings; a test compares it,
and fails where a docstring cites a paper that is not listed, or where something is said to work that no docstring cites
and no test covers.
"""


class Paper(NamedTuple):
    """One entry of papers.yaml."""

    id: str
    name: str
    status: str
    verdict: str
    tests: tuple[str, ...] = ()
    room: str = ""


def papers() -> list[Paper]:
    """All entries, in the order of the file."""
    rooms = yaml.safe_load(SOURCE.read_text(encoding="utf-8"))
    return [Paper(**entry, room=room["room"]) for room in rooms for entry in room["papers"]]


def citations() -> dict[str, list[str]]:
    """Each arXiv number that stands in a docstring or a text of the package, and the files."""
    found: dict[str, list[str]] = {}
    for path in sorted([*ROOT.glob("src/frisket/**/*.py"), *ROOT.glob("lab/**/*.py"), *ROOT.glob("benchmarks/*.py")]):
        texts = [
            node.value
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        ]
        for number in sorted({number for text in texts for number in ARXIV.findall(text)}):
            found.setdefault(number, []).append(str(path.relative_to(ROOT)))
    for path in sorted(ROOT.glob("recipes/*.yaml")):
        for number in sorted(set(ARXIV.findall(path.read_text(encoding="utf-8")))):
            found.setdefault(number, []).append(str(path.relative_to(ROOT)))
    return found


def page() -> str:
    """The page."""
    listed, cited = papers(), citations()
    here = sum(paper.status != "open" for paper in listed)
    parts = [HEAD.format(here=here, all=len(listed))]
    for room in dict.fromkeys(paper.room for paper in listed):
        parts += [f"\n## {room}\n", "| paper | file | test | status | verdict |", "|---|---|---|---|---|"]
        parts += [_row(paper, cited.get(paper.id, [])) for paper in listed if paper.room == room]
    return "\n".join(parts) + "\n"


def _row(paper: Paper, files: list[str]) -> str:
    link = f"[{paper.name}](https://arxiv.org/abs/{paper.id})"
    told = ", ".join(f"`{path.removeprefix('src/frisket/')}`" for path in files) or "–"
    tests = ", ".join(f"`{path}`" for path in paper.tests) or "–"
    return f"| {link} | {told} | {tests} | {STATUS[paper.status]} | {paper.verdict} |"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
