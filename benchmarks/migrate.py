"""Migrate the example configurations that TRL, Axolotl and LLaMA-Factory publish, and count what became of their keys.

    python benchmarks/migrate.py TRL_FOLDER AXOLOTL_FOLDER LLAMA_FACTORY_FOLDER

Each folder is a clone or an unpacked archive; a file COMMIT in it, or git, names the commit. Every YAML and shell
script below `examples/` is tried, and, since TRL publishes commands more than files, every command in a fenced block
of a script or a page of its documentation that starts `sft.py` or `trl sft`. Nothing is kept but paths and counts.
"""

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from frisket.errors import FrisketError, UnsupportedError
from frisket.migrate.read import read_file
from frisket.migrate.table import OUTCOMES, leaves
from frisket.migrate.translate import translate
from frisket.migrate.write import recipe_text
from frisket.recipe import load_recipe

OTHER_JOB, NO_JOB, UNREAD = "training job refused by name", "no training job", "not readable"
NO_TRAINING = ("makes this a configuration", "no training command was found", "are those of none of the known tools")
RESULT = Path(__file__).parent / "results" / "migrate.json"


def tried(folder: Path) -> list[dict]:
    """One record for each file of a folder."""
    files = [file for suffix in ("yml", "yaml", "sh") for file in (folder / "examples").rglob(f"*.{suffix}")]
    with contextlib.chdir(folder):
        return [one(file.relative_to(folder)) for file in sorted(files)] + commands()


def commands() -> list[dict]:
    """One record for each published command that starts TRL's supervised fine-tuning, as ``path#n``."""
    pages = [file for place in ("examples", "trl/scripts", "docs/source") for file in Path(place).rglob("*.*")]
    found = []
    for page in sorted(page for page in pages if page.suffix in (".py", ".md")):
        blocks = re.findall(r"```\w*\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        started = [block for block in blocks if re.search(r"(trl sft|sft\w*\.py)\s[^#]*--", block)]
        for number, block in enumerate(started):
            with tempfile.TemporaryDirectory() as scratch:
                script = Path(scratch) / "command.sh"
                script.write_text(block, encoding="utf-8")
                found.append({**one(script), "file": f"{page.as_posix()}#{number}"})
    return found


def one(file: Path) -> dict:
    """What became of one file."""
    record: dict = {"file": file.as_posix()}
    try:
        migration = translate(file)
    except FrisketError as error:
        reason = str(error).splitlines()[0].replace(str(file), "").removeprefix(": ")
        return {**record, "refused": reason, "kind": kind_of(error)}
    keys = {key for key, _ in leaves(read_file(file).keys)}
    record |= {"tool": migration.tool.name, "keys": len(keys), "accounted": keys == set(migration.answers)}
    record |= {"counts": migration.counts, "unknown": migration.unknown, "loads": loads(recipe_text(migration))}
    return record


def kind_of(error: FrisketError) -> str:
    """Whether a refused file starts a training that frisket does not do, starts none, or could not be read."""
    if any(words in str(error) for words in NO_TRAINING):
        return NO_JOB
    return OTHER_JOB if isinstance(error, UnsupportedError) else UNREAD


def loads(text: str) -> bool | str:
    """Whether the recipe loads, else why not."""
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder) / "recipe.yaml"
        recipe.write_text(text, encoding="utf-8")
        try:
            load_recipe(recipe)
        except FrisketError as error:
            return str(error)
    return True


def commit_of(folder: Path) -> str:
    """The commit of a folder, as its file COMMIT or git says."""
    if (folder / "COMMIT").is_file():
        return (folder / "COMMIT").read_text(encoding="utf-8").strip()
    words = ["git", "-C", os.fspath(folder), "rev-parse", "HEAD"]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


def one_a_line(found: dict[str, dict]) -> str:
    """JSON with one file of the tools a line."""
    parts = []
    for name, result in found.items():
        head = {"commit": result["commit"], "summary": result["summary"]}
        files = ",\n".join("   " + json.dumps(record, ensure_ascii=False) for record in result["files"])
        parts.append(f' "{name}": {json.dumps(head, ensure_ascii=False)[:-1]}, "files": [\n{files}\n ]}}')
    return "{\n" + ",\n".join(parts) + "\n}\n"


def main() -> None:
    """Try all folders; print a summary and write the result."""
    folders = [Path(word) for word in sys.argv[1:]]
    found = {folder.name: {"commit": commit_of(folder), "files": tried(folder)} for folder in folders}
    for name, result in found.items():
        records = result["files"]
        done = [record for record in records if "refused" not in record]
        keys = sum((Counter(record["counts"]) for record in done), Counter())
        result["summary"] = {
            "files": len(records),
            "migrated": len(done),
            "whole": sum(r["accounted"] and r["loads"] is True and not r["unknown"] for r in done),
            **{kind: sum(r.get("kind") == kind for r in records) for kind in (OTHER_JOB, NO_JOB, UNREAD)},
            "keys": {outcome: keys[outcome] for outcome in OUTCOMES},
        }
        print(name, result["commit"][:12], json.dumps(result["summary"]))
    RESULT.write_text(one_a_line(found), encoding="utf-8")


if __name__ == "__main__":
    main()
