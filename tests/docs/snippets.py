"""Fenced blocks of the documentation, and how each kind is run.

A page is one session: its blocks run in order in one folder, which holds what a reader has, ``chats.jsonl`` and the
like, and a finished run ``out/chats`` unless the page trains it itself. Hub ids become ``bundled``, since tests have no
network, and training is cut to three steps; nothing else is changed. A comment ``<!-- snippet: WORD -->`` before a
block says more of it:

- ``sh``: commands of ``frisket`` are run and must exit with 0; other programs must be known here. ``fails``: the last
  command must be refused.
- ``python``: executed. ``yaml``: a recipe, or a part of one; ``trl``, ``axolotl``, ``llama-factory``: migrated, every
  key accounted for.
- ``json`` and ``jsonl``: parsed; ``printed``: exactly what the command before it printed. Another word: the format that
  ``plan`` must find in the records.
- ``text``: output or a drawing; not run.
"""

import io
import json
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import yaml

from frisket.cli.main import run_words
from frisket.recipe import Recipe

ROOT = Path(__file__).parents[2]
NOT_RUN = {"log.md", "templates.md", "models.md", "papers.md"}  # records and generated tables: no commands
OTHER_PROGRAMS = {"pip", "make", "ollama", "vllm", "python", "python3", "git", "cd", "source"}
FENCE = re.compile(r"(?:<!-- snippet: (\S+) -->\s+)?^( *)```([^\n`]*)\n(.*?)^\2```$", re.MULTILINE | re.DOTALL)
HUB_ID = re.compile(r"\b(?:Qwen|meta-llama|google|mistralai|HuggingFaceTB|openai)/[\w.-]+")
TRAINS_SHORT = (
    "train.max_steps=3",
    "train.step_tokens=1024",
    "evaluate.budget_seconds=2",
    "evaluate.forgetting.0.prompts=2",
    "evaluate.forgetting.0.answer_tokens=4",
    "evaluate.forgetting.0.text_tokens=512",
)


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Attributes:
        line: of its first line of content, 1-based.
        kind: language, and the word of a comment before it.
    """

    page: Path
    line: int
    kind: tuple[str, ...]
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def pages() -> list[Path]:
    """Every page a user reads."""
    found = [*ROOT.glob("docs/**/*.md"), ROOT / "README.md"]
    return sorted(path for path in found if path.name not in NOT_RUN and "decisions" not in path.parts)


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(page, text.count("\n", 0, match.start(4)) + 1, (*match[3].split(), *filter(None, [match[1]])), match[4])
        for match in FENCE.finditer(text)
    ]


def commands(block: Block) -> Iterator[list[str]]:
    """The words of each command of a ``sh`` block; comments are left out, continued lines joined."""
    for line in block.text.replace("\\\n", " ").splitlines():
        words = shlex.split(HUB_ID.sub("bundled", line), comments=True)
        if words:
            yield words


def run(block: Block, printed: str = "") -> str:
    """Run one block in the current folder.

    Args:
        printed: what the last command of the block before it printed.

    Returns:
        What the last command of this block printed.

    Raises:
        AssertionError: it does not do what a reader is told.
    """
    kind, *rest = block.kind or ("",)
    if kind == "sh":
        return _run_commands(block, must_fail="fails" in rest)
    elif kind == "python":
        exec(compile(HUB_ID.sub("bundled", block.text), str(block), "exec"), {"__name__": "snippet"})
    elif kind == "yaml" and rest:
        _migrate(block, rest[0])
    elif kind == "yaml":
        Recipe.model_validate(yaml.safe_load(block.text))
    elif kind == "json" and rest == ["printed"]:
        assert json.loads(block.text) == json.loads(printed), f"{block}: what is printed is {printed}"
    elif kind == "jsonl" and rest:
        _read_as(block, *rest)
    elif kind in ("json", "jsonl"):
        for text in block.text.splitlines() if kind == "jsonl" else [block.text]:
            json.loads(text)
    else:
        assert kind == "text", f"{block}: what is {' '.join(block.kind) or 'a block without a language'}?"
    return ""


def _run_commands(block: Block, *, must_fail: bool) -> str:
    found, printed = list(commands(block)), io.StringIO()
    for number, words in enumerate(found):
        if words[0] != "frisket":
            assert words[0] in OTHER_PROGRAMS, f"{block}: {words[0]} is not frisket's and is not known here"
            continue
        short = TRAINS_SHORT if words[1:2] == ["train"] and "--resume" not in words else ()
        printed = io.StringIO()
        with redirect_stdout(printed):
            code = run_words([*words[1:], *short])
        sys.stdout.write(printed.getvalue())
        is_refused = must_fail and number == len(found) - 1
        assert (code != 0) == is_refused, f"{block}: {shlex.join(words)} exits with {code}"
    return printed.getvalue()


def _read_as(block: Block, name: str) -> None:
    Path("records.jsonl").write_text(block.text * 20)
    with redirect_stdout(io.StringIO()) as printed:
        assert run_words(["plan", "--model", "bundled", "--data", "records.jsonl", "data.0.hold_out=0"]) == 0, block
    assert f"records.jsonl: read as {name}" in printed.getvalue(), f"{block}: {printed.getvalue()}"


def _migrate(block: Block, tool: str) -> None:
    Path("theirs.yaml").write_text(block.text)
    assert run_words(["migrate", "theirs.yaml", "--from", tool, "--out", "migrated.yaml"]) == 0, block
    assert run_words(["plan", "migrated.yaml", "--model", "bundled", "--data", "chats.jsonl"]) == 0, block
    Path("migrated.yaml").unlink()
