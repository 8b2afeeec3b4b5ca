"""The recipe: all knobs of a run as one frozen value; read from YAML, overridden, dumped, described.

Every knob is declared in the ``settings.py`` of the folder that obeys it (methods: in ``adapt/``); this module only
composes the sections and raises, once, everything that is wrong with what was given. Reading a recipe imports neither
transformers nor peft.
"""

import copy
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ModelWrapValidatorHandler, ValidationInfo, model_validator

from frisket import yaml12
from frisket.adapt.methods import Lora, Method
from frisket.attend.settings import AttendSettings
from frisket.data.settings import SUFFIXES, SourceSettings
from frisket.errors import ConfigError, gather, nearest
from frisket.evaluate.settings import EvaluateSettings
from frisket.explain import Knob, Origins, Problem, explain, knobs_of
from frisket.hf.settings import ModelSettings
from frisket.settings import Section, knob
from frisket.supervise.settings import SuperviseSettings, TeachSettings
from frisket.train.settings import TrainSettings
from frisket.yaml12 import Key

_BRACKETED = re.compile(r"[^\s,\[\]{}'\":]+\[[^\[\]]*\]")  # such as embeddings[100:200]
STAGE_KEYS = ("data", "attend", "supervise", "adapt", "train", "evaluate")
RECIPE_FILE = "recipe.yaml"
GRID_FILE = "grid.json"
"""In a folder that holds a grid of runs: what the grid is made of."""
FILE_KEYS = ("path", "tokenizer", "template", "of")
"""Keys of a recipe whose values may be files or folders."""


def _off_is_none(value: object) -> object:
    return None if value in ("off", False) else value


def _default_method(value: object) -> object:
    return {"method": "lora", **value} if isinstance(value, Mapping) and "method" not in value else value


class Source(SourceSettings):
    """One source of training data, and what it teaches where that is its own."""

    supervise: TeachSettings | None = knob(
        None, "which tokens of this source teach, instead of the recipe's `supervise` (normaliser and loss stay)"
    )


class _Sections(Section):
    """What a run, or one stage of it, is made of."""

    name: str | None = knob(None, "what the run is called; default: the name of the recipe's file, else of its data")
    model: ModelSettings = knob(ModelSettings(), "which model, tokenizer and chat template")
    data: tuple[Source, ...] = knob((), "sources of training data", was=("datasets",))
    attend: AttendSettings = knob(AttendSettings(), "which tokens see which")
    supervise: SuperviseSettings = knob(SuperviseSettings(), "which tokens teach")
    adapt: Annotated[Method, BeforeValidator(_default_method)] = knob(
        Lora(), "which weights move, and how", was=("peft", "peft_config", "lora")
    )
    train: TrainSettings = knob(TrainSettings(), "the step, the optimizer, the schedule", was=("trainer", "training"))
    evaluate: Annotated[EvaluateSettings | None, BeforeValidator(_off_is_none)] = knob(
        EvaluateSettings(), "what was learned and forgotten; 'off': nothing is measured", was=("eval", "evaluation")
    )


class Recipe(_Sections):
    """Everything that a run does, resolved.

    Raises:
        ConfigError: all unknown keys and unfit values, gathered.
    """

    stages: tuple[dict[str, Any], ...] = knob(
        (), f"deltas over the recipe, run in order; each may change {', '.join(STAGE_KEYS)}, and say `continue: true`"
    )

    @model_validator(mode="wrap")
    @classmethod
    def _gathered(cls, given: Any, handler: ModelWrapValidatorHandler["Recipe"], info: ValidationInfo) -> "Recipe":
        if isinstance(given, Mapping):
            origins = info.context if isinstance(info.context, Origins) else Origins()
            _refuse(_problems(given, origins), origins.file)
        return handler(given)

    def stage(self, index: int) -> "Recipe":
        """The recipe of one stage: this one, changed as the stage's delta says, without stages.

        A list replaces the list; an ``adapt`` with another method replaces the section; else keys are merged.
        """
        base = self.model_dump(mode="json", exclude={"stages"})
        return Recipe.model_validate(_merge(base, _without_continue(self.stages[index])))

    def continues(self, index: int) -> bool:
        """Whether the stage goes on with the optimizer and schedule of the stage before it."""
        return bool(self.stages[index].get("continue", False))


def load_recipe(
    path: str | Path | None = None,
    overrides: Sequence[str] = (),
    *,
    model: str | None = None,
    data: Sequence[str] = (),
) -> Recipe:
    """Read a recipe and change it.

    Args:
        path: YAML file, or a run folder, whose ``recipe.yaml`` is read; None: all defaults. A relative path inside
            the file is taken from the current directory, else, where nothing is there, from the file's own folder.
        overrides: words such as ``data.0.limit=100``, in order, with the meaning of YAML 1.2.
        model: ``model.path``.
        data: paths of the sources, instead of the recipe's; the n-th keeps the other knobs of the recipe's n-th.

    Raises:
        ConfigError: no such file, not YAML, unknown keys, unfit values; gathered.
    """
    file = None if path is None else _recipe_file(Path(path))
    given, lines = yaml12.read(file) if file else ({}, {})
    is_plain_file = file is not None and file == Path(str(path))
    if file and is_plain_file:
        given = _located(given, file.parent)
    given, changed = _overridden(given, _as_overrides(given, model, data), overrides)
    given.setdefault("name", file.stem if file and is_plain_file else _data_name(given))
    return Recipe.model_validate(given, context=Origins(str(file) if file else None, lines, frozenset(changed)))


def dump(recipe: Recipe) -> str:
    """The resolved recipe as YAML; loads back equal."""
    given = recipe.model_dump(mode="json")
    if recipe.evaluate is None:
        given["evaluate"] = "off"
    return yaml12.dump(given)


def schema() -> dict:
    """JSON schema of a recipe, with each knob's help and the names (``was``) that other tools give it."""
    return Recipe.model_json_schema()


def knobs() -> list[Knob]:
    """Every knob, in the order of the recipe."""
    return knobs_of(Recipe)


def _problems(given: Mapping, origins: Origins) -> list[Problem]:
    base = {key: value for key, value in given.items() if key != "stages"}
    problems = explain(_Sections, base, origins, Recipe)
    stages = given.get("stages", ())
    if not isinstance(stages, list | tuple) or not all(isinstance(stage, Mapping) for stage in stages):
        return [*problems, Problem(("stages",), "stages must be a list of mappings", "stages=[{train: {epochs: 1}}]")]
    for index, stage in enumerate(stages):
        problems += _stage_problems(base, stage, ("stages", index), origins)
    return problems


def _stage_problems(base: Mapping, stage: Mapping, place: Key, origins: Origins) -> list[Problem]:
    dotted = _dotted(place)
    wrong = [
        Problem(
            (*place, key),
            f"{dotted}.{key}{origins.of((*place, key))}: a stage cannot change this",
            f"A stage may change: {', '.join(STAGE_KEYS)}, continue",
        )
        for key in stage
        if key not in (*STAGE_KEYS, "continue")
    ]
    if not isinstance(stage.get("continue", False), bool):
        text = f"{dotted}.continue = {stage['continue']!r} must be true or false"
        wrong.append(Problem((*place, "continue"), text, f"{dotted}.continue=true"))
    delta = {key: value for key, value in _without_continue(stage).items() if key in STAGE_KEYS}
    found = explain(_Sections, _merge(base, delta), origins.below(place), Recipe)
    return wrong + [problem for problem in found if _reaches(delta, problem.path)]


def _refuse(problems: Sequence[Problem], file: str | None) -> None:
    if len(problems) == 1:
        example = " For example:" if "=" in problems[0].fix.partition(" ")[0] else ""
        raise ConfigError(f"{problems[0].text}.{example}\n{problems[0].fix}")
    if problems:
        heading = f"{file or 'the recipe'}: {len(problems)} problems"
        raise ConfigError(gather([f"{problem.text} → {problem.fix}" for problem in problems], heading))


def _without_continue(stage: Mapping) -> dict:
    return {key: value for key, value in stage.items() if key != "continue"}


def _reaches(delta: object, path: Key) -> bool:
    """Whether a problem at ``path`` was brought in by this delta: its key, or the section that lacks it."""
    for step in path[:2]:
        if isinstance(delta, Mapping):
            if step not in delta:
                return False
            delta = delta[step]
    return True


def _merge(base: Any, delta: Any) -> Any:
    base = base.model_dump(mode="json") if isinstance(base, BaseModel) else base
    if not isinstance(base, Mapping) or not isinstance(delta, Mapping):
        return delta
    if "method" in delta and delta["method"] != base.get("method"):
        return delta
    return {**base, **{key: _merge(base.get(key), value) for key, value in delta.items()}}


def _recipe_file(path: Path) -> Path:
    if path.is_dir():
        file = path / RECIPE_FILE
        if not file.is_file():
            raise ConfigError(
                f"{path}: a folder without {RECIPE_FILE}, so it is no run folder.\n"
                "Give a YAML file, a run folder, or --model and --data."
            )
        return file
    if path.suffix in SUFFIXES and path.suffix != ".json":  # which is YAML as well
        raise ConfigError(f"{path} is data, not a recipe.\nName it so: --data {shlex.quote(str(path))}")
    if not path.is_file():
        near = nearest(path.name, [found.name for found in path.parent.glob("*.y*ml")])
        hint = f"There is {path.parent / near}" if near else "Give a YAML file, a run folder, or --model and --data"
        raise ConfigError(f"{path}: there is no such recipe.\n{hint}.")
    return path


def _located(value: Any, folder: Path, key: str = "") -> Any:
    """Point relative paths that do not exist here, but do beside the recipe, to the recipe's folder."""
    if isinstance(value, Mapping):
        return {name: _located(item, folder, str(name)) for name, item in value.items()}
    if isinstance(value, list):
        return [_located(item, folder) for item in value]
    if key in FILE_KEYS and isinstance(value, str) and not Path(value).exists() and (folder / value).exists():
        return str(folder / value)
    return value


def _as_overrides(given: Mapping, model: str | None, data: Sequence[str]) -> list[tuple[Key, Any]]:
    changes: list[tuple[Key, Any]] = [] if model is None else [(("model", "path"), model)]
    if data:
        before = given.get("data")
        kept = before[: len(data)] if isinstance(before, list) else []
        changes.append((("data",), kept))
        changes += [(("data", index, "path"), path) for index, path in enumerate(data)]
    return changes


def _overridden(given: dict, first: Sequence[tuple[Key, Any]], words: Sequence[str]) -> tuple[dict, list[Key]]:
    """Apply changes in order; what cannot be applied is gathered."""
    given, problems, changed = copy.deepcopy(given), [], []
    for change in [*first, *words]:
        try:
            key, value = _split(change) if isinstance(change, str) else change
            _put(given, key, value)
            changed.append(key)
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError(
            problems[0] if len(problems) == 1 else gather(problems, f"{len(problems)} overrides are wrong")
        )
    return given, changed


def _split(word: str) -> tuple[Key, Any]:
    name, equals, text = word.partition("=")
    key = tuple(int(step) if step.isdecimal() else step for step in name.split("."))
    if not equals or "" in key:
        raise ConfigError(f"{word!r} is no override.\nWrite key=value with a dotted key: train.epochs=2")
    try:
        return key, yaml12.value_of(text)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}\n{_quoting(name, text)}") from error


def _quoting(name: str, text: str) -> str:
    """How a text that YAML cannot read is quoted: as a whole, or, in a list or mapping, what has brackets of its own.

    >>> print(_quoting("adapt.where", "[embeddings[0:9], head]"))
    Quote what has brackets of its own: "adapt.where=['embeddings[0:9]', head]"
    """
    quoted = _BRACKETED.sub(r"'\g<0>'", text)
    if text[:1] in ("[", "{") and quoted != text:
        try:
            yaml12.value_of(quoted)
        except ConfigError:
            return f"Quote each text in it: \"{name}=['…', '…']\""
        return f'Quote what has brackets of its own: "{name}={quoted}"'
    return f"To mean these very characters, quote them twice: '{name}=\"…\"'"


def _put(given: list | dict, key: Key, value: Any, depth: int = 0) -> None:
    """Set one entry in nested mappings and lists, making what is missing on the way."""
    step = key[depth]
    if isinstance(given, list):
        index = _index(given, key, depth)
        if index == len(given):
            given.append(None)
        given[index] = _placed(given[index], key, value, depth)
    elif isinstance(step, int):
        raise ConfigError(f"{_dotted(key)}: {_dotted(key[:depth]) or 'a recipe'} is no list.\nLeave .{step} out.")
    else:
        given[step] = _placed(given.get(step), key, value, depth)


def _placed(inner: Any, key: Key, value: Any, depth: int) -> Any:
    if depth + 1 == len(key):
        return value
    if inner is None or inner == "off":
        inner = [] if isinstance(key[depth + 1], int) else {}
    elif not isinstance(inner, list | dict):
        here = _dotted(key[: depth + 1])
        raise ConfigError(f"{_dotted(key)}: {here} = {inner!r} has no keys.\nRemove {here} where it is set.")
    _put(inner, key, value, depth + 1)
    return inner


def _index(given: list, key: Key, depth: int) -> int:
    step, above = key[depth], _dotted(key[:depth])
    if not isinstance(step, int):
        raise ConfigError(f"{_dotted(key)}: {above} is a list.\nSay which entry: {above}.0.{_dotted(key[depth:])}=…")
    if step > len(given):
        following = _dotted((*key[:depth], len(given), *key[depth + 1 :]))
        raise ConfigError(f"{_dotted(key)}: {above} has {len(given)} entries.\nThe next one is {following}=…")
    return step


def _dotted(key: Key) -> str:
    return ".".join(map(str, key))


def _data_name(given: Mapping) -> str:
    data = given.get("data")
    first = data[0] if isinstance(data, list) and data else None
    path = first.get("path") if isinstance(first, Mapping) else None
    return (Path(path).stem if isinstance(path, str) else "") or "run"
