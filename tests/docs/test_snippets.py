"""Every block of README and docs is run; see snippets.py for how."""

import io
import json
import shutil
from pathlib import Path

import pytest

from frisket.cli.main import run_words
from tests.docs import snippets


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """What a reader of the pages has: sixty chats, a few questions, and a finished run."""
    folder = tmp_path_factory.mktemp("reader")
    chats = [
        {
            "messages": [
                {"role": "user", "content": f"What is {n} and {n}?"},
                {"role": "assistant", "content": f"It is {2 * n}."},
            ]
        }
        for n in range(60)
    ]
    _write(folder / "chats.jsonl", chats)
    _write(folder / "more.jsonl", chats[:20])
    own = {"user": "customer", "assistant": "agent"}
    support = [{"messages": [m | {"role": own[m["role"]]} for m in chat["messages"]]} for chat in chats]
    _write(folder / "support.jsonl", support)
    _write(folder / "questions.jsonl", [{"question": f"What is {n}?", "answer": f"#### {n}"} for n in range(30)])
    for name in ("gsm8k_train.jsonl", "gsm8k_test.jsonl"):
        shutil.copy(folder / "questions.jsonl", folder / name)
    (folder / "book.txt").write_text("Once upon a time there was a printer. " * 200)
    run = ["train", "--model", "bundled", "--data", str(folder / "chats.jsonl"), "--out", str(folder / "run")]
    assert run_words([*run, *snippets.TRAINS_SHORT]) == 0
    return folder


def _write(path: Path, records: list[dict]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def reader(files: Path, folder: Path, page: Path) -> None:
    """Lay the files out; ``out/chats`` is there unless the page trains it."""
    for path in files.glob("*.*"):
        shutil.copy(path, folder)
    (folder / "recipes").symlink_to(snippets.ROOT / "recipes")
    if "--out out/chats" not in page.read_text(encoding="utf-8"):
        shutil.copytree(files / "run", folder / "out" / "chats")


@pytest.mark.parametrize("page", snippets.pages(), ids=lambda page: str(page.relative_to(snippets.ROOT)))
def test_page(page, files, tmp_path, monkeypatch):
    found = snippets.blocks(page)
    if not found:
        return
    reader(files, tmp_path, page)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    printed = ""
    for block in found:
        printed = snippets.run(block, printed)


def test_fences_are_all_found(tmp_path, monkeypatch):
    monkeypatch.setattr(snippets, "ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text("a\n\n```sh\nfrisket plan \\\n  x=1  # why\n```\n\n- b\n\n  ```python\n  x\n  ```\n")
    first, second = snippets.blocks(page)
    assert (first.line, first.kind, list(snippets.commands(first))) == (4, ("sh",), [["frisket", "plan", "x=1"]])
    assert (str(second), second.kind) == ("page.md:11", ("python",))


@pytest.mark.parametrize(
    ("kind", "text", "said"),
    [
        ("sh", "frisket plam\n", "exits with 2"),
        ("sh", "reboot\n", "not known here"),
        ("sh fails", "frisket --help\n", "exits with 0"),
        ("", "x\n", "without a language"),
        ("ruby", "x\n", "what is ruby"),
        ("json printed", "[1]\n", "what is printed is"),
    ],
)
def test_a_wrong_block_is_seen(kind, text, said, tmp_path, monkeypatch):
    monkeypatch.setattr(snippets, "ROOT", tmp_path)
    with pytest.raises(AssertionError, match=said):
        snippets.run(snippets.Block(tmp_path / "page.md", 1, tuple(kind.split()), text), printed="[2]")


def test_a_wrong_recipe_and_wrong_python_are_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(snippets, "ROOT", tmp_path)
    page = tmp_path / "page.md"
    with pytest.raises(Exception, match="rnk"):
        snippets.run(snippets.Block(page, 1, ("yaml",), "adapt: {rnk: 8}\n"))
    with pytest.raises(ZeroDivisionError):
        snippets.run(snippets.Block(page, 1, ("python",), "1 / 0\n"))


def test_a_comment_belongs_to_the_block_after_it(tmp_path, monkeypatch):
    monkeypatch.setattr(snippets, "ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text("<!-- snippet: fails -->\n\n```sh\nfrisket x\n```\n\n```json\n{}\n```\n")
    assert [(block.line, block.kind) for block in snippets.blocks(page)] == [(4, ("sh", "fails")), (8, ("json",))]


def test_the_site_draws_every_block_as_one():
    """The site's Markdown takes a fence with two words for text, and says nothing."""
    for page in [*snippets.ROOT.glob("docs/**/*.md"), snippets.ROOT / "README.md"]:
        fences = [line for line in page.read_text(encoding="utf-8").splitlines() if line.lstrip().startswith("```")]
        assert [line for line in fences if len(line.split()) > 1] == [], page
