"""The house rules that no linter has: size of files, functions and methods, raises without a test, slowest tests.

Run by `make check`; prints the largest of each and fails where a law is broken.
"""

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILE_LINES, FUNCTION_LINES, LOOP_LINES = 500, 60, 120
METHOD_LINES = 200
SHOWN = 5
ERRORS = ("ConfigError", "DataError", "UnsupportedError", "CheckError")


def sources() -> list[Path]:
    """Every Python file of the package and the laboratory."""
    return sorted([*ROOT.glob("src/**/*.py"), *ROOT.glob("lab/**/*.py"), *ROOT.glob("benchmarks/**/*.py")])


def functions(path: Path) -> list[tuple[int, str]]:
    """Length and name of each function."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    where = path.relative_to(ROOT)
    return [((node.end_lineno or 0) - node.lineno + 1, f"{where}:{node.lineno} {node.name}") for node in found]


def methods() -> list[tuple[int, str]]:
    """Source lines of each file that holds methods, and their names."""
    found = []
    for path in sorted(ROOT.glob("src/frisket/adapt/*.py")):
        text = path.read_text(encoding="utf-8")
        names = re.findall(r'^    method: Literal\["(.+?)"\]', text, re.MULTILINE)
        if names:
            found.append((len(text.splitlines()), f"{path.relative_to(ROOT)}: {', '.join(names)}"))
    return sorted(found)


def raised_words(path: Path) -> list[tuple[str, list[str]]]:
    """Place and constant fragments of each frisket error that is raised."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    raises = [node for node in ast.walk(tree) if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)]
    found = []
    for node in raises:
        if isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name) and node.exc.func.id in ERRORS:
            constants = [
                c.value for c in ast.walk(node.exc) if isinstance(c, ast.Constant) and isinstance(c.value, str)
            ]
            found.append((f"{path.relative_to(ROOT)}:{node.lineno}", [_plain(text) for text in constants]))
    return found


def unmatched_raises() -> list[str]:
    """Raises of which no test names eight characters in a row."""
    strings = []
    for path in ROOT.glob("tests/**/test_*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        strings += [c.value for c in ast.walk(tree) if isinstance(c, ast.Constant) and isinstance(c.value, str)]
    asked = [part for text in strings for part in _plain(text).split(".*") if len(part) >= 8]

    def is_asked(fragments: list[str]) -> bool:
        return any(
            part in fragment or (len(fragment) >= 12 and fragment in part) for fragment in fragments for part in asked
        )

    places = [entry for path in sources() for entry in raised_words(path)]
    return [place for place, fragments in places if any(fragments) and not is_asked(fragments)]


def _plain(text: str) -> str:
    """Text without the escapes of a regular expression."""
    return " ".join(text.replace("\\", "").split())


def _allowed(name: str) -> int:
    return LOOP_LINES if name.endswith(" run_loop") else FUNCTION_LINES


def main() -> int:
    """Print what is largest; return 1 where a law is broken."""
    files = sorted(
        ((len(p.read_text(encoding="utf-8").splitlines()), str(p.relative_to(ROOT))) for p in sources()), reverse=True
    )
    lengths = sorted((entry for path in sources() for entry in functions(path)), reverse=True)
    for title, entries in (("longest files", files), ("longest functions", lengths)):
        print(title)
        for size, name in entries[:SHOWN]:
            print(f"  {size:4} {name}")
    print("lines per method")
    for size, name in methods():
        print(f"  {size:4} {name}")
    untested = unmatched_raises()
    print(f"raises whose message no test matches: {len(untested)}")
    for place in untested:
        print(f"  {place}")
    too_long = [name for size, name in files if size > FILE_LINES]
    too_long += [
        name for size, name in lengths if size > (LOOP_LINES if name.endswith(" run_loop") else FUNCTION_LINES)
    ]
    too_long += [name for size, name in methods() if size > METHOD_LINES * (1 + name.count(","))]
    for name in too_long:
        print(f"too long: {name}")
    return 1 if too_long else 0


if __name__ == "__main__":
    sys.exit(main())
