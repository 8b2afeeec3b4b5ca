"""YAML with the meaning of YAML 1.2: ``2e-4`` is a number, ``off``, ``no`` and ``2024-01-01`` are words."""

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from frisket.errors import ConfigError

Key = tuple[str | int, ...]

_NULL, _BOOL, _INT, _FLOAT = (f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float"))
_CORE = {
    _NULL: (re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    _BOOL: (re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    _INT: (re.compile(r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$"), list("-+0123456789")),
    _FLOAT: (
        re.compile(
            r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
        ),
        list("-+.0123456789"),
    ),
    "tag:yaml.org,2002:merge": (re.compile(r"^<<$"), ["<"]),
}


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the scalars of YAML 1.2's core schema; a key given twice is refused."""

    yaml_implicit_resolvers: dict = {}  # noqa: RUF012  PyYAML copies it for each class

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is given twice", key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)

    def construct_int(self, node: yaml.ScalarNode) -> int:
        text = self.construct_scalar(node)
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))


class _WordLoader(_Loader):
    """The loader of override values, where ``*`` and ``&`` begin a word: there is nothing to refer to."""

    def fetch_alias(self) -> None:
        self.fetch_plain()

    def fetch_anchor(self) -> None:
        self.fetch_plain()


class _Dumper(yaml.SafeDumper):
    """Quotes what either version of YAML would read as something else; lists of scalars stay on one line."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_entries(self, data: list) -> yaml.Node:
        flat = not any(isinstance(item, list | dict) for item in data)
        return self.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=flat)

    def represent_text(self, data: str) -> yaml.Node:
        # PyYAML writes these line breaks of Unicode as they are unless the text is in double quotes, and reads blanks.
        is_odd = any(break_ in data for break_ in "\x85\u2028\u2029")
        return self.represent_scalar("tag:yaml.org,2002:str", data, style='"' if is_odd else None)


for _tag, (_pattern, _first) in _CORE.items():
    _Loader.add_implicit_resolver(_tag, _pattern, _first)
    _Dumper.add_implicit_resolver(_tag, _pattern, _first)
_Loader.add_constructor(_INT, _Loader.construct_int)
_Dumper.add_representer(list, _Dumper.represent_entries)
_Dumper.add_representer(str, _Dumper.represent_text)


def read(file: Path) -> tuple[dict, dict[Key, int]]:
    """Read one mapping.

    Returns:
        The mapping (empty for an empty file), and the 1-based line of each key.

    Raises:
        ConfigError: not YAML, not a mapping, or a key given twice.
    """
    try:
        loader = _Loader(file.read_text(encoding="utf-8"))
        node = loader.get_single_node()
        value = {} if node is None else loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{file}{line}: no YAML: {error.problem}.\n{_fix(error)}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: not a text file ({error}).\nA recipe is a text file in YAML.") from error
    if isinstance(value, list):
        raise ConfigError(
            f"{file}: holds a list, but a recipe is a mapping.\nIf these are samples: --data {shlex.quote(str(file))}"
        )
    if not isinstance(value, dict):
        raise ConfigError(f"{file}: holds {type(value).__name__}, but a recipe is a mapping.\nBegin with: data:")
    lines: dict[Key, int] = {}
    if node is not None:
        _note_lines(node, (), lines)
    return value, lines


def _fix(error: yaml.MarkedYAMLError) -> str:
    """What mends a file that is no YAML, as far as the parser's words tell."""
    problem, context = error.problem or "", error.context or ""
    if problem.endswith("is given twice"):
        return "Keep one of them."
    if "flow" in context and error.context_mark:
        return f"Close the bracket that opens in line {error.context_mark.line + 1}."
    if "quoted" in context and error.context_mark:
        return f"Close the quotes that open in line {error.context_mark.line + 1}."
    if re.search(r"alias|anchor", f"{problem} {context}") or re.search(r"for the tag|'[@%`]' that cannot", problem):
        return "A word that begins with * & ! % @ or ` needs quotes: where: '*.q_proj'"
    return "Write one `key: value` on a line, a section's keys with the same number of blanks before them, no tabs."


def value_of(text: str) -> Any:
    """Read the value of an override: a number, null, true or false, a quoted text, ``[…]`` or ``{…}``, else a word.

    Raises:
        ConfigError: brackets, braces or quotes that do not close.
    """
    if not text.startswith(("[", "{", '"', "'")) and not any(pattern.match(text) for pattern, _ in _CORE.values()):
        return text
    loader = _WordLoader(text)
    try:
        return loader.get_single_data()
    except yaml.YAMLError as error:
        raise ConfigError(f"{text!r} cannot be read as a list, a mapping or a quoted text.") from error


def dump(value: Mapping) -> str:
    """Write a mapping of plain values; reads back equal."""
    return yaml.dump(
        dict(value), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120, default_flow_style=False
    )


def _note_lines(node: yaml.Node, place: Key, lines: dict[Key, int]) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, child in node.value:
            lines[(*place, key.value)] = key.start_mark.line + 1
            _note_lines(child, (*place, key.value), lines)
    elif isinstance(node, yaml.SequenceNode):
        for index, child in enumerate(node.value):
            lines[(*place, index)] = child.start_mark.line + 1
            _note_lines(child, (*place, index), lines)
