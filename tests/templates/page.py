"""Write docs/templates.md, and with ``--record`` the differences that the tests expect.

    python -m tests.templates.page [--record]

A difference that has no reason yet is recorded with ``?``; the tests fail until a person writes one.
"""

import json
import sys
from collections import Counter
from pathlib import Path

from tests.templates.compare import REASONS, RECORD, outcome, record_of, recorded
from tests.templates.conversations import TALKS
from tests.templates.families import BUILT_IN, marked, published, trl_version

PAGE = Path(__file__).parents[2] / "docs" / "templates.md"

HEAD = """# Chat templates

Which characters of a conversation the assistant wrote, found by frisket without any marker, compared with the
`{{% generation %}}` markers of the chat templates that TRL {version} ships ({published} templates, {marked} with
markers). Nothing of them is in this repository: the tests read them from the installed package. Each is rendered with
a byte-level tokenizer that has its family's special tokens, on {kinds} conversations: single and several turns, with
and without a system message, tools (string, number and nested arguments, none, two calls, undeclared), reasoning on
the last and on earlier turns, think tags in the content, outer white space, emoji and CJK, text that spells special
tokens, two answers in a row.

This page is written by `python -m tests.templates.page`; a test compares it.

- **equal**: conversations on which frisket's mask (assistant, reasoning, tool call, end of turn) is the markers' mask,
  token by token. **explained**: conversations with differences, each listed below with its reason.
- **checked** (templates without markers): each taught run decodes to its slice of the rendering, that of an answer is
  all that the person wrote (outer white space aside), an end of turn follows each answer, the beginning token is not
  doubled, nothing is lost; and where a `_training` twin renders the same tokens, the mask is the twin's.
- **refused**: what the template cannot render, leaves out or does not end is refused with file and line, never lost.
  The templates that read content only as a list of parts (idefics3, llava_next, smolvlm) are refused whole: frisket
  hands templates text. glm4moe is wherever an answer comes last: nothing ends it (its `_training` twin does).

In all: of {compared} conversations on the {covered} templates whose markers are compared, {equal} are equal, {newline}
more are equal but for the newline behind the end of turn, and {other} have other differences, explained below. On
templates without markers {checked} conversations pass the checks, and {twins} of them are masked as their twin is.
{refused} are refused. Templates with no difference but the newline: {clean}.
"""


def page(version: str) -> str:
    """The page, from what the templates do now."""
    parts = [_head(version), "## Templates\n", *_table(), "\n## Differences\n", *_reasons(), *_differences()]
    return "\n".join([*parts, "\n## Refusals\n", *_refusals()]) + "\n"


def _head(version: str) -> str:
    names = [*BUILT_IN, *published()]
    compared = [(name, counts) for name in names for counts in outcome(name).compared.values()]
    covered = [name for name in marked() if outcome(name).compared]
    newline = [counts for _, counts in compared if counts and all(d[1:] == ("after an end", "\n") for d in counts)]
    unlike = {entry["template"] for entry in recorded()["differences"] if entry["reason"] != "newline"}
    equal = sum(not counts for _, counts in compared)
    return HEAD.format(
        version=version,
        published=len(published()),
        marked=len(marked()),
        kinds=len(TALKS),
        compared=len(compared),
        covered=len(covered),
        equal=equal,
        newline=len(newline),
        other=len(compared) - equal - len(newline),
        checked=sum(len(outcome(name).checked) for name in names if not outcome(name).compared),
        twins=sum(len(outcome(name).twins) for name in names),
        refused=sum(len(outcome(name).refused) for name in names),
        clean=len(set(covered) - unlike),
    )


def _table() -> list[str]:
    rows = [
        "| template | renders | markers | compared | equal | explained | checked | refused |",
        "|---|---|---|---:|---:|---:|---:|---:|",
    ]
    for name in [*BUILT_IN, *published()]:
        found = outcome(name)
        equal = sum(not counts for counts in found.compared.values())
        counts = [len(found.compared), equal, len(found.compared) - equal]
        checked = 0 if found.compared else len(found.checked)
        words = [name, "yes" if found.checked else "no", "yes" if name in marked() else "no"]
        rows.append("| " + " | ".join([*words, *(str(n or "") for n in [*counts, checked, len(found.refused)])]) + " |")
    return rows


def _reasons() -> list[str]:
    return [f"- **{name}**: {why}" for name, why in REASONS.items()]


def _differences() -> list[str]:
    rows = [
        "",
        "| template | taught by | text | where | conversations | times | reason |",
        "|---|---|---|---|---:|---:|---|",
    ]
    for entry in recorded()["differences"]:
        times = sum(entry["in"].values())
        text = _code(entry["text"])
        counts = [str(len(entry["in"])), str(times)]
        words = [entry["template"], entry["taught_by"], text, entry["place"], *counts, entry["reason"]]
        rows.append("| " + " | ".join(words) + " |")
    return rows


def _refusals() -> list[str]:
    rows = ["| template | why | conversations |", "|---|---|---|"]
    for entry in recorded()["refusals"]:
        rows.append(f"| {entry['template']} | {entry['why'].replace('|', chr(92) + '|')} | {', '.join(entry['in'])} |")
    return rows


def _code(text: str) -> str:
    return "`" + json.dumps(text, ensure_ascii=False)[1:-1].replace("|", "\\|") + "`"


def main() -> None:
    """Write the page."""
    names = [*BUILT_IN, *published()]
    if "--record" in sys.argv[1:]:
        known = recorded() if RECORD.exists() else {"differences": [], "refusals": []}
        lines = [
            f'  "{part}": [\n' + ",\n".join("    " + json.dumps(e, ensure_ascii=False) for e in entries) + "\n  ]"
            for part, entries in record_of(names, known).items()
        ]
        RECORD.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    PAGE.write_text(page(trl_version()), encoding="utf-8")
    print(Counter(entry["reason"] for entry in recorded()["differences"]))


if __name__ == "__main__":
    main()
