"""The tables name knobs that exist, and know every key of the tools that are installed."""

import ast
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from frisket.migrate.convert import BadValueError, OtherJobError
from frisket.migrate.table import Draft, Row, Tool, leaves
from frisket.migrate.tables import TOOLS
from frisket.recipe import knobs

ROWS = [(tool.name, key, row) for tool in TOOLS.values() for key, row in tool.rows.items()]
KNOB = re.compile(r"\b(?:model|data|attend|supervise|adapt|train|evaluate)\.[a-zN\d][\w.]*\w")


def known_knobs() -> set[str]:
    names = {".".join(knob.name.split(".")[:depth]) for knob in knobs() for depth in range(2, 6)}
    return names | {f"data.N.{name}" for name in names if name.startswith("supervise.")}


def test_every_knob_that_a_row_names_exists() -> None:
    known = known_knobs()
    for tool, key, row in ROWS:
        for name in KNOB.findall(f"{row.text} {row.note}"):
            plain = re.sub(r"\.\d+", ".N", name)
            assert plain in known or plain.startswith("adapt.options."), f"{tool} {key}: {name}"


def test_a_mapped_row_names_a_knob_or_a_flag_and_converts() -> None:
    for tool, key, row in ROWS:
        if row.outcome == "mapped":
            assert KNOB.fullmatch(row.text) or row.text in ("--out", "--resume"), f"{tool} {key}"
            assert row.convert is not None


def test_reasons_are_short_and_on_one_line() -> None:
    for tool, key, row in ROWS:
        assert 0 < len(row.text) <= 120, f"{tool} {key}"
        assert "\n" not in row.text
        assert not row.text.endswith(".")


def fields(package: str, *files: str) -> set[str]:
    """Names of all annotated class attributes in files of an installed package, read without importing it."""
    spec = find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    found: set[str] = set()
    for file in files:
        for node in ast.walk(ast.parse((Path(spec.origin).parent / file).read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                names = [line.target.id for line in node.body if _is_field(line)]  # pyright: ignore
                found |= set(names)
    return found - {"_n_gpu", "_VALID_DICT_FIELDS", "framework"}


def _is_field(line: ast.stmt) -> bool:
    return isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)


def test_every_field_of_the_installed_trl_has_a_row() -> None:
    trl = fields("trl", "trainer/sft_config.py", "trainer/base_config.py", "trainer/model_config.py")
    arguments = fields("transformers", "training_args.py")
    assert len(trl | arguments) > 120
    missing = {key for key in trl | arguments if _row(TOOLS["trl"], key) is None}
    assert missing == set()


def test_llama_factory_knows_the_training_arguments_too() -> None:
    arguments = fields("transformers", "training_args.py")
    assert {key for key in arguments if _row(TOOLS["llama-factory"], key) is None} == set()


def _row(tool: Tool, key: str) -> Row | None:
    return tool.row(key)


VALUES: list[Any] = [False, True, 0, 3, -1, 0.5, "word", "2e-4", "none", ["word"], ["a", "b"], {"a": 1}]


@pytest.mark.parametrize("tool", TOOLS.values(), ids=TOOLS)
def test_no_value_of_any_key_breaks_a_conversion(tool: Tool) -> None:
    for name in tool.rows:
        key = name.replace("[]", "[0]").replace("*", "anything")
        for value in VALUES:
            draft = Draft(_nested(key, value), Path("nowhere"))
            for path, leaf in leaves(draft.given):
                row = tool.row(path)
                if row is not None and row.convert is not None and leaf is not None:
                    try:
                        answer = row.convert(draft, path, leaf)
                    except (BadValueError, OtherJobError):
                        continue
                    assert answer.text, f"{path} = {leaf!r}"


def _nested(key: str, value: Any) -> dict[str, Any]:
    for step in reversed(key.split(".")):
        name = step.removesuffix("[0]")
        value = {name: [value] if step.endswith("[0]") else value}
    return value
