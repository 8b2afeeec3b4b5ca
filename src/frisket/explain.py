"""What is wrong with a recipe, said in the recipe's own words: dotted path, value, what is required, the fix."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

import annotated_types
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticUndefined

from frisket.errors import nearest
from frisket.migrate.tables import answer_for, conversion_of, override_for
from frisket.yaml12 import Key

FLAGS = {
    "output_dir": "--out OUT",
    "out": "--out OUT",
    "output": "--out OUT",
    "resume_from_checkpoint": "--resume",
    "resume": "--resume",
    "overfit": "--overfit N",
}
_WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}


class Knob(NamedTuple):
    """One knob as a user meets it.

    Attributes:
        name: dotted; ``data.N.path`` for entries of a list.
        type: what is required, in words.
        default: plain value; None also where it is required.
        help: one line.
        was: what other tools call it.
        methods: the methods of ``adapt`` that have it so; empty outside ``adapt``.
    """

    name: str
    type: str
    default: Any
    help: str
    was: tuple[str, ...]
    methods: tuple[str, ...]


class Problem(NamedTuple):
    """One thing that is wrong: where, in words, and the smallest fix."""

    path: Key
    text: str
    fix: str


@dataclass(frozen=True)
class Origins:
    """Where each value of a recipe was written.

    Attributes:
        file: the recipe's file, if any.
        lines: 1-based line of each key in it.
        changed: keys that were overridden on the command line.
        place: the key that all asked paths lie below (a stage).
    """

    file: str | None = None
    lines: Mapping[Key, int] = field(default_factory=dict)
    changed: frozenset[Key] = frozenset()
    place: Key = ()

    def below(self, place: Key) -> "Origins":
        """The same origins, asked with paths that begin at ``place``."""
        return Origins(self.file, self.lines, self.changed, place)

    def of(self, path: Key) -> str:
        """`` (file:line)`` where the file gave the value, `` (override)`` where the command line did, else nothing."""
        path = (*self.place, *path)
        is_new = path not in self.lines
        if any(path[: len(key)] == key or (is_new and key[: len(path)] == path) for key in self.changed):
            return " (override)"
        known = [self.lines[path[:depth]] for depth in range(len(path), 0, -1) if path[:depth] in self.lines]
        return f" ({self.file}:{known[0]})" if known else ""


def explain(section: type[BaseModel], given: Mapping, origins: Origins, root: type[BaseModel]) -> list[Problem]:
    """Everything that keeps ``given`` from being a ``section``, one problem for each key.

    Args:
        root: the model whose knobs are searched for names that belong elsewhere.
    """
    try:
        section.model_validate(given)
    except ValidationError as error:
        by_path: dict[Key, list[ErrorDetails]] = {}
        for detail in error.errors(include_url=False):
            by_path.setdefault(_path(detail, given), []).append(detail)
        return [_problem(section, given, path, found, origins, root) for path, found in by_path.items()]
    return []


def _path(detail: ErrorDetails, given: Any) -> Key:
    """The keys among pydantic's steps; the others name branches of a union."""
    path: list[str | int] = []
    for step in detail["loc"]:
        if _has(given, step):
            given = _inside(given, step)
        elif not (detail["type"] == "missing" and step is detail["loc"][-1]):
            continue
        path.append(step)
    return tuple(path)


def _problem(
    section: type[BaseModel],
    given: Mapping,
    path: Key,
    found: list[ErrorDetails],
    origins: Origins,
    root: type[BaseModel],
) -> Problem:
    kind, value = found[0]["type"], found[0]["input"]
    dotted = ".".join(map(str, (*origins.place, *path)))
    if kind == "extra_forbidden":
        return _unknown_key(_section_at(section, given, path[:-1]), given, path, value, origins, root)
    knob = _field_at(section, given, path)
    if knob and _is_in_dict(section, given, path, knob):
        return _dict_problem(knob, given, path, found, origins)
    if kind == "missing":
        about = f": {knob.description}" if knob else ""
        return Problem(path, f"{dotted} is required{about}{origins.of(path)}", f"{dotted}=…")
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        return _unknown_method(path, given, dotted, origins, root)
    if path and isinstance(path[-1], int) and knob and not _sections(knob.annotation):
        return _entry_problem(knob, path, found, origins)
    required = _finite(_required(knob), kind) if knob else found[0]["msg"]
    if kind == "value_error":
        required = f"{required} ({found[0]['ctx']['error']})" if "ctx" in found[0] else required
    text = f"{dotted} = {show(value)}{origins.of(path)} must be {required}"
    return Problem(path, text, _value_fix(knob, dotted, value))


def _is_in_dict(section: type[BaseModel], given: Mapping, path: Key, knob: FieldInfo) -> bool:
    return get_origin(knob.annotation) is dict and _field_at(section, given, path[:-1]) is knob


def _dict_problem(knob: FieldInfo, given: Mapping, path: Key, found: list[ErrorDetails], origins: Origins) -> Problem:
    """A key or a value of a plain mapping from words to numbers."""
    whole, key = ".".join(map(str, (*origins.place, *path[:-1]))), path[-1]
    key_type, value_type = get_args(knob.annotation)
    of_value = [detail for detail in found if detail["loc"][-1] != "[key]"]
    value: Any = given
    for step in path:
        value = _inside(value, step)
    if len(of_value) == len(found):
        required = _finite(_either(_kinds(value_type)), of_value[0]["type"])
        choices = [str(choice) for choice in get_args(value_type)]
        fitting = nearest(str(value), choices) or next(iter(choices), 1)
        text = f"{whole}.{key} = {show(value)}{origins.of(path)} must be {required}"
        return Problem(path, text, f"{whole}.{key}={fitting}")
    text = f"{whole}.{key}{origins.of(path)}: the key {show(key)} must be {_either(_kinds(key_type))}"
    near = nearest(str(key), [str(choice) for choice in get_args(key_type)])
    fix = f"{whole}.{near}={1 if of_value else show(value)}" if near else _value_fix(knob, whole, None)
    return Problem(path, f"{text} ({knob.description})", fix)


def _finite(required: str, kind: str) -> str:
    return required.replace("a number", "a finite number", 1) if kind == "finite_number" else required


def _entry_problem(knob: FieldInfo, path: Key, found: list[ErrorDetails], origins: Origins) -> Problem:
    """An entry of a plain list: pydantic's own words say what it must be."""
    whole = ".".join(map(str, (*origins.place, *path[:-1])))
    wanted = found[0]["msg"].removeprefix("Input should be ")
    wanted = wanted if found[0]["type"] == "literal_error" else wanted.partition(",")[0]
    text = f"{whole}.{path[-1]} = {show(found[0]['input'])}{origins.of(path)} must be {wanted}"
    return Problem(path, text, _value_fix(knob, whole, None))


def _unknown_key(
    section: type[BaseModel] | None, given: Mapping, path: Key, value: Any, origins: Origins, root: type[BaseModel]
) -> Problem:
    *parents, name = path
    prefix = "".join(f"{step}." for step in (*origins.place, *parents))
    text = f"{prefix}{name}{origins.of(path)}: there is no such key"
    own = tuple((section if parents and section else root).model_fields)
    near = nearest(str(name).lower().replace("-", "_"), own)
    elsewhere = _elsewhere(root, str(name), f"{parents[0]}." if parents else "")
    if not parents and str(name) in FLAGS:
        return Problem(path, text, f"It is given on the command line: {FLAGS[str(name)]}")
    if elsewhere and not (near and elsewhere[0].name.endswith(f".{near}")):
        if parents == ["adapt"] and elsewhere[0].methods and elsewhere[0].name == f"adapt.{name}":
            return _other_method(path, given, elsewhere, text)
        return Problem(path, text, f"In frisket it is {_as_here(str(name), value, elsewhere)}")
    answered, override = answer_for(str(name)), override_for(str(name), value)
    if override:
        return Problem(path, text, f"In frisket it is {override[0]}" + (f" ({override[1]})" if override[1] else ""))
    if answered:
        return Problem(path, text, _sentence(answered))
    if near:
        assigned = f"={show(value).strip(chr(39))}" if isinstance(value, str | int | float) else ""
        return Problem(path, text, f"Did you mean {prefix}{near}{assigned}")
    return Problem(path, text, f"Keys of {prefix.rstrip('.') or 'a recipe'}: {', '.join(own)}")


def _as_here(name: str, value: object, elsewhere: list["Knob"]) -> str:
    """The knobs that a name stands for, with its value where that decides one; where several keys make one, how."""
    override = override_for(name, value)
    if override and len(elsewhere) == 1:
        return f"{override[0]} ({elsewhere[0].help})"
    knobs = " or ".join(f"{knob.name.replace('.N.', '.0.')} ({knob.help})" for knob in elsewhere)
    how = conversion_of(name)
    return f"{knobs}; {how}" if how else knobs


def _sentence(answered: str) -> str:
    return answered if len(answered) <= 200 else f"{answered[:199]}…"


def _other_method(path: Key, given: Mapping, others: list["Knob"], text: str) -> Problem:
    method = given["adapt"].get("method", "lora")
    has = " and ".join(dict.fromkeys(method for knob in others for method in knob.methods))
    return Problem(
        path,
        f"{text} in method {method!r}; it belongs to {has}",
        f"Replace the whole section: 'adapt={{method: {method}}}'",
    )


def _unknown_method(path: Key, given: Mapping, dotted: str, origins: Origins, root: type[BaseModel]) -> Problem:
    method = given[path[0]].get("method")
    known = [method_name(kind) for kind in _sections(root.model_fields[str(path[0])].annotation)]
    near = nearest(str(method), known)
    text = f"{dotted}.method = {show(method)}{origins.of((*path, 'method'))} must be one of {', '.join(known)}"
    return Problem((*path, "method"), text, f"{dotted}.method={near or known[0]}")


def _elsewhere(root: type[BaseModel], name: str, prefix: str) -> list[Knob]:
    """Knobs that other tools, or other sections, call so; those below ``prefix`` only, where there are any."""
    wanted = name.lower().replace("-", "_")
    found = [knob for knob in knobs_of(root) if wanted in knob.was]
    found = found or [knob for knob in knobs_of(root) if knob.name.rpartition(".")[2] == wanted]
    return [knob for knob in found if knob.name.startswith(prefix)] or found


def knobs_of(root: type[BaseModel]) -> list[Knob]:
    """Every knob below a model, in its order; what several methods declare alike comes once."""
    return list(_knobs(root))


@cache
def _knobs(root: type[BaseModel]) -> tuple[Knob, ...]:
    found: list[Knob] = []
    _collect(root, "", (), found)
    return tuple(found)


def _collect(section: type[BaseModel], prefix: str, methods: tuple[str, ...], found: list[Knob]) -> None:
    for name, field_info in section.model_fields.items():
        inner = _sections(field_info.annotation)
        was = _was(field_info)
        if not inner or was:
            about, default = field_info.description or "", _plain_default(field_info)
            _add(Knob(f"{prefix}{name}", _required(field_info), default, about, was, methods), found)
        entry = ".N." if "tuple" in str(field_info.annotation) else "."
        for kind in inner:
            _collect(kind, f"{prefix}{name}{entry}", (method_name(kind),) if len(inner) > 1 else methods, found)


def _add(knob: Knob, found: list[Knob]) -> None:
    for place, other in enumerate(found):
        if other._replace(methods=knob.methods) == knob:
            found[place] = other._replace(methods=tuple(dict.fromkeys(other.methods + knob.methods)))
            return
    found.append(knob)


def method_name(kind: type[BaseModel]) -> str:
    """What a method is called in the recipe."""
    return str(get_args(kind.model_fields["method"].annotation)[0])


def show(value: object) -> str:
    """A value as an error shows it: quoted text, else JSON; at most 60 characters."""
    text = repr(value) if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _was(field_info: FieldInfo) -> tuple[str, ...]:
    extra = field_info.json_schema_extra
    names = extra.get("was", []) if isinstance(extra, Mapping) else []
    return tuple(str(name) for name in names) if isinstance(names, list) else ()


def _plain_default(field_info: FieldInfo) -> Any:
    default = field_info.default
    if default is PydanticUndefined:
        return None
    if isinstance(default, BaseModel):
        return default.model_dump(mode="json")
    return [_plain(item) for item in default] if isinstance(default, tuple) else default


def _plain(item: object) -> object:
    return item.model_dump(mode="json") if isinstance(item, BaseModel) else item


def _sections(annotation: Any) -> list[type[BaseModel]]:
    """The models that a value of this type may be, or be a list of."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [kind for inner in get_args(annotation) for kind in _sections(inner)]


def _chosen(annotation: Any, value: object) -> type[BaseModel] | None:
    kinds = _sections(annotation)
    if len(kinds) > 1:
        wanted = value.get("method", "lora") if isinstance(value, Mapping) else None
        return next((kind for kind in kinds if method_name(kind) == wanted), None)
    return kinds[0] if kinds else None


def _field_at(section: type[BaseModel], given: Any, path: Key) -> FieldInfo | None:
    """The field that declares the value at ``path``; entries of a list share their list's field."""
    found: FieldInfo | None = None
    kind: type[BaseModel] | None = section
    for step in path:
        given = _inside(given, step)
        if isinstance(step, int):
            continue
        if kind is None or step not in kind.model_fields:
            return found
        found = kind.model_fields[step]
        kind = _chosen(found.annotation, given)
    return found


def _section_at(section: type[BaseModel], given: Any, path: Key) -> type[BaseModel] | None:
    kind: type[BaseModel] | None = section
    for step in path:
        given = _inside(given, step)
        if isinstance(step, str):
            kind = _chosen(kind.model_fields[step].annotation, given) if kind and step in kind.model_fields else None
    return kind


def _has(given: Any, step: str | int) -> bool:
    if isinstance(given, list | tuple):
        return isinstance(step, int) and step < len(given)
    return step in (
        type(given).model_fields if isinstance(given, BaseModel) else given if isinstance(given, Mapping) else ()
    )


def _inside(given: Any, step: str | int) -> Any:
    if not _has(given, step):
        return None
    return getattr(given, str(step)) if isinstance(given, BaseModel) else given[step]


def _required(field_info: FieldInfo) -> str:
    """What a value must be, in words: ``a number of at least 0, or 'auto'``."""
    bounds = _bounds(field_info.metadata)
    kinds = list(dict.fromkeys(_kinds(field_info.annotation)))
    return _either(_bounded(kinds, bounds))


def _bounded(kinds: list[str], bounds: str) -> list[str]:
    return [f"{kind} {bounds}" if bounds and "number" in kind else kind for kind in kinds]


def _either(kinds: list[str]) -> str:
    return " or ".join([", ".join(kinds[:-1]), kinds[-1]] if len(kinds) > 1 else kinds)


def _bounds(metadata: list[Any]) -> str:
    words = []
    for bound in metadata:
        match bound:
            case annotated_types.Gt():
                words.append(f"above {bound.gt}")
            case annotated_types.Ge():
                words.append(f"of at least {bound.ge}")
            case annotated_types.Lt():
                words.append(f"below {bound.lt}")
            case annotated_types.Le():
                words.append(f"of at most {bound.le}")
            case _:
                pass  # validators that are no bounds
    return " and ".join(words)


def _kinds(annotation: Any) -> list[str]:
    if get_origin(annotation) is Literal:
        return [repr(choice) for choice in get_args(annotation)]
    if annotation in _WORDS:
        return [_WORDS[annotation]]
    if get_origin(annotation) in (list, tuple):
        return ["a list of mappings" if _sections(annotation) else "a list"]
    if get_origin(annotation) is Annotated:  # one side of a union, with bounds of its own
        inner, *given = get_args(annotation)
        return _bounded(_kinds(inner), _bounds([bound for each in given for bound in getattr(each, "metadata", ())]))
    if get_origin(annotation) is dict or (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        return ["a mapping"]
    return [kind for inner in get_args(annotation) for kind in _kinds(inner)]


def _value_fix(field_info: FieldInfo | None, dotted: str, value: object) -> str:
    """An override that would be accepted: the nearest word, the section's main key, else the default."""
    if field_info is None:
        return f"{dotted}=…"
    inner = _sections(field_info.annotation)
    is_list = "tuple" in str(field_info.annotation)
    if inner and (isinstance(value, str) or is_list):
        key = "method" if len(inner) > 1 else next(iter(inner[0].model_fields))
        return f"{dotted}.{'0.' if is_list else ''}{key}={value if isinstance(value, str) else '…'}"
    choices = [choice.strip("'") for choice in _kinds(field_info.annotation) if choice.startswith("'")]
    near = nearest(str(value), choices)
    default = near or _plain_default(field_info)
    text = default if isinstance(default, str) else json.dumps(default)
    return shlex.quote(f"{dotted}={text}") if default is not None or not field_info.is_required() else f"{dotted}=…"
