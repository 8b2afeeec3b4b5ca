"""Real prose and code, read from the running Python and never stored: documentation topics and library sources."""

import ast
import platform
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

HELD_OUT_MODULES = (
    "argparse.py",
    "csv.py",
    "heapq.py",
    "json/decoder.py",
    "queue.py",
    "shelve.py",
    "statistics.py",
    "textwrap.py",
)
# Other topics repeat most of these word for word, so no figure is taken from them.
HELD_OUT_TOPICS = ("assert", "context-managers", "exceptions", "lambda", "naming", "slicings", "try", "while")

DOCSTRING_CHARACTERS = 200
_SKIPPED_FOLDERS = {"__pycache__", "encodings", "idlelib", "lib2to3", "pydoc_data", "site-packages", "turtledemo"}
_SKIPPED_FOLDERS |= {"test", "tests", "idle_test"}


@dataclass(frozen=True)
class Corpus:
    """Texts of the running Python.

    Attributes:
        prose: Documentation topics, by name.
        code: Library sources, by path below the library folder.
    """

    prose: dict[str, str]
    code: dict[str, str]


def python_version() -> str:
    """Say which Python the texts are from."""
    return f"{platform.python_implementation()} {platform.python_version()}"


def _sources() -> dict[str, str]:
    root = Path(sysconfig.get_paths()["stdlib"])
    texts = {}
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        if _SKIPPED_FOLDERS.isdisjoint(name.parts[:-1]):
            texts[name.as_posix()] = path.read_text(encoding="utf-8", errors="replace")
    return {name: text for name, text in texts.items() if text.strip()}


def read(*, held_out: bool) -> Corpus:
    """Read the texts to train on, or those held out for measuring.

    Raises:
        FileNotFoundError: A text that should be held out does not exist in this Python.
    """
    code = _sources()
    missing = [name for name in HELD_OUT_MODULES if name not in code]
    missing += [name for name in HELD_OUT_TOPICS if name not in topics]
    if missing:
        raise FileNotFoundError(f"not in this Python ({python_version()}): {', '.join(missing)}")
    return Corpus(
        prose={name: text for name, text in topics.items() if (name in HELD_OUT_TOPICS) == held_out},
        code={name: text for name, text in code.items() if (name in HELD_OUT_MODULES) == held_out},
    )


def docstrings(source: str) -> list[str]:
    """Return the longer docstrings of a module: its prose."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    texts = [ast.get_docstring(node) for node in ast.walk(ast.parse(source)) if isinstance(node, kinds)]
    return [text for text in texts if text and len(text) > DOCSTRING_CHARACTERS]
