"""The recipe of a migration as YAML with its comments."""

from collections.abc import Mapping
from typing import Any

from frisket import yaml12
from frisket.migrate.translate import Migration

_ORDER = ("model", "data", "attend", "supervise", "adapt", "train", "evaluate")


def recipe_text(migration: Migration) -> str:
    """The recipe: a head that says where it is from, then one knob a line, with the comments."""
    lines = [f"# Migrated from {migration.file.name} ({migration.tool.title}) by frisket migrate."]
    lines += [f"# Look at: {check}" for check in migration.checks]
    lines += [f"# Not in this recipe: {key}: {' '.join(text.split())}" for key, text in migration.lost.items()]
    nested = nested_knobs(migration.knobs)
    for name in _ORDER:
        if name in nested:
            lines += _section(name, nested[name], migration.comments)
    return "\n".join(lines) + "\n"


def nested_knobs(knobs: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted knobs as nested mappings and lists."""
    root: dict[str, Any] = {}
    for knob, value in knobs.items():
        *path, last = knob.split(".")
        inner = root
        for step in path:
            inner = inner.setdefault(step, {})
        inner[last] = value
    if "data" in root:
        root["data"] = [root["data"][step] for step in sorted(root["data"], key=int)]
    return root


def _section(name: str, value: Any, comments: Mapping[str, str]) -> list[str]:
    if not isinstance(value, list):
        return [f"{name}:", *_mapping(value, f"{name}", "  ", comments)]
    lines = [f"{name}:"]
    for index, entry in enumerate(value):
        body = _mapping(entry, f"{name}.{index}", "    ", comments)
        lines += [f"  - {body[0].lstrip()}", *body[1:]]
    return lines


def _mapping(value: Mapping[str, Any], dotted: str, indent: str, comments: Mapping[str, str]) -> list[str]:
    lines = []
    for name in sorted(value, key=lambda name: name not in ("path", "method")):
        comment = comments.get(f"{dotted}.{name}", "")
        written = yaml12.dump({name: value[name]}).splitlines()
        if comment:
            written[0] += f"  # {comment}"
        lines += [indent + line for line in written]
    return lines
