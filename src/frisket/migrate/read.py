"""A configuration file of another tool, as a mapping: YAML, JSON, or the command line in a shell script."""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from frisket.errors import ConfigError, UnsupportedError
from frisket.migrate.table import Tool
from frisket.migrate.tables import TOOLS, VARIANTS

_ASSIGNED = re.compile(r"^\s*(?:export\s+)?([A-Za-z_]\w*)=(\S*)\s*$")
_PREFERENCE = "preference optimisation or reinforcement learning"
_OTHER_SCRIPTS = {
    **dict.fromkeys(("dpo", "grpo", "kto", "orpo", "cpo", "rloo", "ppo", "bco", "nash", "online_dpo"), _PREFERENCE),
    **dict.fromkeys(("reward", "prm"), "training of a reward model"),
    "gkd": "distillation from a teacher",
    "sft_vlm": "training on images",
    "sft_video": "training on video",
    "sft_diffusion": "a diffusion language model",
}
_NO_TRAINING = {
    "compute_environment": "a configuration of accelerate: it names machines, and no training",
    "zero_optimization": "a configuration of DeepSpeed: it names machines, and no training",
    "gpu_count": "a configuration for renting machines: it holds no training",
    "provider": "a configuration for renting machines: it holds no training",
    "infer_backend": "a configuration for generating answers: frisket generate OUT --chat",
    "export_dir": "a configuration for merging a model: frisket export OUT --to merged",
    "sample_backend": "a configuration for generating answers: frisket generate OUT --chat",
}
_TRAINING = {"stage", "datasets", "dataset", "dataset_name", "train_dataset", "pretraining_dataset", "learning_rate"}


class Given(NamedTuple):
    """A file as read: its keys, and the tool that its form gives away (a shell script names it)."""

    keys: dict[str, Any]
    tool: str | None
    twice: tuple[str, ...]


class _Loader(yaml.SafeLoader):
    """YAML as the other tools read it; remembers the keys given twice, of which the last counts there."""

    twice: tuple[str, ...] = ()

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        self.twice += tuple(name for name in dict.fromkeys(names) if names.count(name) > 1)
        return super().construct_mapping(node, deep)


def read_file(file: Path) -> Given:
    """Read a configuration.

    Raises:
        ConfigError: no such file, not text, not YAML or JSON, no mapping, no training command in a script.
        UnsupportedError: the script trains something else than frisket does.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"{file}: there is no such file.\nGive the file of TRL, Axolotl or LLaMA-Factory.") from error
    except (UnicodeDecodeError, IsADirectoryError) as error:
        raise ConfigError(f"{file}: not a text file.\nGive a YAML, JSON or shell file.") from error
    if file.suffix == ".sh":
        return _from_script(file, text)
    loader = _Loader(text)
    try:
        keys = json.loads(text) if file.suffix == ".json" else loader.get_single_data()
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(
            f"{file}: cannot be read ({str(error).splitlines()[0]}).\nGive a YAML or JSON file."
        ) from error
    if not isinstance(keys, dict) or not keys:
        raise ConfigError(f"{file}: holds no keys and values.\nGive the file that the tool is started with.")
    return Given({str(key): value for key, value in keys.items()}, None, loader.twice)


def tool_of(file: Path, keys: Mapping[str, Any], named: str | None) -> Tool:
    """The tool whose file this is: the one that knows most of the keys that not all know.

    Raises:
        ConfigError: a name that is no tool, or two tools know equally many keys.
        UnsupportedError: the file is for something else than training.
    """
    if named is not None and named not in TOOLS:
        raise ConfigError(f"--from {named}: must be one of {', '.join(TOOLS)}.\nWrite: --from {next(iter(TOOLS))}")
    for key, what in _NO_TRAINING.items():
        if key in keys and not _TRAINING & set(keys):
            raise UnsupportedError(f"{file}: {key} makes this {what}.\nGive the file that starts the training.")
    known = {name: sum(_has(tool, key) for key in keys) for name, tool in TOOLS.items()}
    best = [name for name, count in known.items() if count == max(known.values())]
    if named is None and (len(best) > 1 or not known[best[0]]):
        likely = " or ".join(TOOLS[name].title for name in best) if max(known.values()) else "none of the known tools"
        raise ConfigError(
            f"{file}: its keys are those of {likely}, so the tool is not certain.\nSay which: --from {best[0]}"
        )
    name = named or best[0]
    variant = VARIANTS.get(name)
    return variant[0] if variant and variant[1] in keys else TOOLS[name]


def _has(tool: Tool, key: str) -> bool:
    return key in tool.rows or any(row.startswith((f"{key}.", f"{key}[].")) for row in tool.rows)


def _from_script(file: Path, text: str) -> Given:
    """The training command of a script, with the variables that the script sets."""
    variables: dict[str, str] = {}
    for line in text.replace("\\\n", " ").splitlines():
        assigned = _ASSIGNED.match(line)
        if assigned:
            variables[assigned[1]] = assigned[2].strip("\"'")
            continue
        try:
            words = shlex.split(_filled(line, variables), comments=True)
        except ValueError as error:
            raise ConfigError(f"{file}: a quote is not closed ({error}).\nGive one command.") from error
        started = _started(file, words)
        if started:
            tool, rest = started
            return Given(_options(file, rest), tool, ())
    raise ConfigError(
        f"{file}: no training command was found.\nIt must start trl sft, a script sft.py, or llamafactory-cli train."
    )


def _filled(line: str, variables: Mapping[str, str]) -> str:
    return re.sub(r"\$\{?(\w+)\}?", lambda found: variables.get(found[1], found[0]), line)


def _started(file: Path, words: Sequence[str]) -> tuple[str, Sequence[str]] | None:
    """The tool that a command starts, and the words after it."""
    names = [Path(word).name for word in words]
    for place, name in enumerate(names):
        following = names[place + 1] if place + 1 < len(names) else ""
        if name == "llamafactory-cli" and following == "train":
            return "llama-factory", words[place + 2 :]
        if name == "train.py" and following.endswith((".yaml", ".yml")):
            return "llama-factory", words[place + 1 :]
        job = following if name == "trl" else name.removesuffix(".py")
        if name != "trl" and not name.endswith(".py"):
            continue
        other = next((what for start, what in _OTHER_SCRIPTS.items() if job.startswith(start)), None)
        if other:
            raise UnsupportedError(
                f"{file}: {job} is {other}, which frisket does not do.\n"
                "It does supervised fine-tuning and continued pre-training of text models; no recipe was written."
            )
        if job.startswith("sft"):
            return "trl", words[place + (2 if name == "trl" else 1) :]
    return None


def _options(file: Path, words: Sequence[str]) -> dict[str, Any]:
    """What a command gives: its options over the configuration that it names, if any."""
    options = _flags(words)
    first = words[0] if words and words[0].endswith((".yaml", ".yml")) else options.pop("config", None)
    if first is None:
        return options
    place = next((path for path in (Path(first), file.parent / first) if path.is_file()), None)
    if place is None:
        raise ConfigError(
            f"{file}: its command reads {first}, which is not here.\nMigrate that file: frisket migrate {first}"
        )
    return {**read_file(place).keys, **options}


def _flags(words: Sequence[str]) -> dict[str, Any]:
    """``--name value``, ``--name=value``, ``--name`` alone (true), ``--name a b`` (a list); values as YAML has them."""
    found: dict[str, list[str]] = {}
    name: str | None = None
    for word in words:
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            found[name] = [value] if equals else []
        elif name is not None:
            found[name].append(word)
    values = {key: [yaml.safe_load(value) for value in given] for key, given in found.items()}
    return {key: True if not given else given[0] if len(given) == 1 else given for key, given in values.items()}
