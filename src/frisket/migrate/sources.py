"""Where the data is: Axolotl's ``datasets``, LLaMA-Factory's names in ``dataset_info.json``, TRL's hub ids."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from frisket.errors import nearest
from frisket.migrate.convert import BadValueError, words
from frisket.migrate.table import Answer, Convert, Draft, says_nothing, shown

LOCAL_KINDS = ("json", "jsonl", "csv", "parquet", "text")
_INDEX = re.compile(r"\[(\d+)\]")
_PLAIN_TYPES = {
    "completion": {"format": "text"},
    "pretrain": {"format": "text"},
    "alpaca": {"format": "alpaca", "render": "alpaca"},
    "alpaca_chat.load_qa": {"prompt": "question", "completion": "answer"},
    "alpaca_chat.load_camel_ai": {"prompt": "message_1", "completion": "message_2"},
    "chat_template": {},
    "sharegpt": {"format": "sharegpt"},
    "input_output": None,
}
KNOWN_ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model", "bot", "chatgpt", "function_call", "tool_call"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation", "ipython", "tool_response"), "tool"),
}
"""Names of roles that are read, as `frisket.data` has them; it lies above this module."""
_COLUMNS = {"prompt": "prompt", "response": "completion", "messages": "messages"}

_FIXED_COLUMNS = {
    "query": "input",
    "history": "history",
    "system": "system",
    "tools": "tools",
    "chosen": "chosen",
    "rejected": "rejected",
}
_TAGS = {
    "role_tag": ("from", "role"),
    "content_tag": ("value", "content"),
    "user_tag": ("human", "user"),
    "assistant_tag": ("gpt", "assistant", "model", "bot", "chatgpt"),
    "observation_tag": ("observation", "tool", "function", "ipython", "tool_response"),
    "function_tag": ("function_call", "tool_call"),
    "system_tag": ("system", "developer"),
}
"""Columns and names inside a message of ``dataset_info.json``, with what is read here."""
_ROLE_TAGS = {"user_tag": "user", "assistant_tag": "assistant", "observation_tag": "tool", "system_tag": "system"}


def entry_index(path: str) -> int:
    """The n of ``datasets[n].type``."""
    found = _INDEX.search(path)
    return int(found[1]) if found else 0


def of_entry(name: str) -> Convert:
    """A value of one entry that becomes a knob of its source."""

    def convert(draft: Draft, path: str, value: Any) -> Answer:
        if says_nothing(value):
            return Answer("default", "nothing is given")
        return draft.put(f"data.{entry_index(path)}.{name}", value)

    return convert


def entry_path(draft: Draft, path: str, value: Any) -> Answer:
    """Axolotl's ``datasets[].path``: a hub id, a file, or a kind of file with ``data_files`` beside it."""
    index = entry_index(path)
    entry = draft.given[path.partition("[")[0]][index]
    files = entry.get("data_files")
    if files and (value in LOCAL_KINDS or entry.get("ds_type")):
        first = files[0] if isinstance(files, list) else files
        return draft.put(f"data.{index}.path", str(first), f"data_files of {value}")
    return draft.put(f"data.{index}.path", str(value))


def entry_files(draft: Draft, path: str, value: Any) -> Answer:
    """Axolotl's ``datasets[].data_files``: part of a hub repository, or local files."""
    if says_nothing(value):
        return Answer("default", "all files")
    index = entry_index(path)
    names = value if isinstance(value, list) else [value]
    if len(names) > 1:
        draft.check(f"data.{index}: frisket reads one file or folder a source; give {len(names)} files a folder.")
        return Answer("not supported", f"{len(names)} files in one source: put them into a folder, data.{index}.path")
    if draft.knobs.get(f"data.{index}.path") == str(names[0]):
        return Answer("mapped", f"data.{index}.path = {names[0]}")
    draft.check(f"data.{index}: download {names[0]} from the hub and name the file: data.{index}.path={names[0]}")
    return Answer("not supported", f"one file of a hub repository: download it, data.{index}.path={names[0]}")


def entry_type(draft: Draft, path: str, value: Any) -> Answer:
    """Axolotl's ``datasets[].type``: which columns are read, and how they are written as text."""
    index, name = entry_index(path), str(value)
    base = re.split(r"[.:]", name)[0]
    knobs = _PLAIN_TYPES.get(name, _PLAIN_TYPES.get(base))
    if knobs is None or base == "alpaca_chat":
        for knob, column in (knobs or {}).items():
            draft.put(f"data.{index}.{knob}", column)
        draft.check(
            f"data.{index}: the prompt wording of type {name!r} is not known here; look at frisket view, and convert "
            "the file to messages where it differs."
        )
        return Answer("not supported", f"{name!r}: frisket reads the columns by itself and uses the chat template")
    if base == "alpaca" and ":" not in name and "." not in name:
        draft.check(f"data.{index}.render: alpaca writes Alpaca's header, as the file does; 'chat' takes the template.")
    elif base == "alpaca":
        knobs = {"format": "alpaca"}
        draft.check(f"data.{index}: type {name!r} words its prompts in its own way; here the chat template is used.")
    for knob, setting in knobs.items():
        draft.put(f"data.{index}.{knob}", setting)
    if not knobs:
        return Answer("default", f"data.{index}.format: auto, under the chat template")
    return Answer("mapped", ", ".join(f"data.{index}.{knob} = {setting}" for knob, setting in knobs.items()))


def entry_type_part(draft: Draft, path: str, value: Any) -> Answer:
    """A key of Axolotl's user-defined ``datasets[].type``: columns are taken over, wordings are not."""
    index, name = entry_index(path), path.rpartition(".")[2]
    knob = {"field_instruction": "prompt", "field_output": "completion", "system_prompt": "system"}.get(name)
    if says_nothing(value):
        return Answer("default", "nothing is given")
    if knob:
        return draft.put(f"data.{index}.{knob}", value)
    draft.check(f"data.{index}: {name} words the prompt; write the prompts out in the data, see frisket view.")
    return Answer(
        "not supported", f"{shown(value)}: frisket uses the chat template; write other wordings into the data"
    )


def renamed(usual: tuple[str, ...], what: str) -> Convert:
    """A name inside a message that frisket detects where it is one of the usual ones."""

    def convert(draft: Draft, path: str, value: Any) -> Answer:
        if says_nothing(value) or str(value) in usual:
            return Answer("default", f"{what} is found under {' or '.join(usual)}")
        draft.check(f"data.{entry_index(path)}: {what} stands under {value!r}; rename it in the data to {usual[0]!r}.")
        return Answer("not supported", f"{what} under {value!r}: rename it in the data to {usual[0]!r}")

    return convert


def roles_to_train(draft: Draft, path: str, value: Any) -> Answer:
    """Axolotl's ``roles_to_train`` of one entry."""
    names = set(words(value or ["assistant"]))
    index = entry_index(path)
    if names <= {"assistant", "gpt"}:
        return Answer("default", "supervise.policy: assistant")
    usual = {"human": "user", "gpt": "assistant", "tool": "tool_result"}
    weights = {usual.get(name, name): 1.0 for name in sorted(names)}
    if not set(weights) <= {"user", "assistant", "system", "tool_result"}:
        return Answer("not supported", f"{shown(sorted(names))}: data.{index}.supervise.roles.assistant=1")
    if "assistant" in weights:
        weights |= {"reasoning": 1.0, "tool_call": 1.0, "end_of_turn": 1.0}
    draft.put(f"data.{index}.supervise.policy", "roles")
    return draft.put(f"data.{index}.supervise.roles", weights)


def train_on_end(draft: Draft, path: str, value: Any) -> Answer:
    """Axolotl's ``train_on_eos`` and ``train_on_eot``: the end of a taught turn is taught."""
    if value in (None, "turn"):
        return Answer("default", "the end of a taught turn is taught, others are not")
    index = entry_index(path)
    if value == "none":
        rule = [{"roles": ["end_of_turn"], "weight": 0.0}]
        draft.put(f"data.{index}.supervise.rules", rule)
        return Answer("mapped", f"data.{index}.supervise.rules: end_of_turn weighs 0")
    return Answer("not supported", f"{value!r}: taught turns end taught; change it with data.{index}.supervise.rules")


def role_names(draft: Draft, path: str, value: Any) -> Answer:
    """Axolotl's ``roles``: names of a role in the data, of which frisket knows the usual ones by itself."""
    role = path.rpartition(".")[2]
    if role not in KNOWN_ROLES:
        return Answer("not supported", f"the role {role}: there are system, user, assistant and tool")
    others = [name for name in words(value) if KNOWN_ROLES.get(name.lower()) != KNOWN_ROLES[role]]
    if not others:
        return Answer("default", "these names of roles are known")
    return _name_roles(draft, entry_index(path), dict.fromkeys(others, KNOWN_ROLES[role]))


def _name_roles(draft: Draft, index: int, names: Mapping[str, str]) -> Answer:
    knob = f"data.{index}.roles"
    return draft.put(knob, {**draft.knobs.get(knob, {}), **names})


def training_detail(draft: Draft, path: str, value: Any) -> Answer:
    """Axolotl's spans of characters in a message that teach."""
    if says_nothing(value):
        return Answer("default", "nothing is given")
    index = entry_index(path)
    draft.check(f"data.{index}: {value} marks what teaches by characters; here a message teaches whole or not at all.")
    return Answer("not supported", f"spans by character: a message teaches whole, data.{index}.supervise.rules")


def trl_dataset(draft: Draft, path: str, value: Any) -> Answer:
    """TRL's ``dataset_name``."""
    return draft.put("data.0.path", str(value))


def trl_text_field(draft: Draft, path: str, value: Any) -> Answer:
    """TRL's ``dataset_text_field``; ``text`` is found anyway."""
    if value == "text":
        return Answer("default", "a column `text` is found by itself")
    return draft.put("data.0.text", str(value))


def named_sets(draft: Draft, path: str, value: Any) -> Answer:
    """LLaMA-Factory's ``dataset``: names that stand in ``dataset_info.json``."""
    names = words(value)
    found = _dataset_info(draft)
    for index, name in enumerate(names):
        _named_set(draft, index, name, found)
    return Answer("mapped", ", ".join(f"data.{n}.path = {draft.knobs[f'data.{n}.path']}" for n in range(len(names))))


def set_list(draft: Draft, path: str, value: Any) -> Answer:
    """The ``train_dataset`` of LLaMA-Factory's version 1: a data file, or a YAML list of sets that is not followed."""
    if str(value).endswith((".yaml", ".yml")):
        draft.put("data.0.path", str(value), "replace by the file that this list names")
        draft.check(f"data.0.path: {value} is a list of data sets; name each file: data.0.path=… data.1.path=…")
        return Answer("not supported", "a list of data sets in a file of its own: name the data files, data.N.path")
    return draft.put("data.0.path", str(value))


def _dataset_info(draft: Draft) -> tuple[Mapping[str, Any], Path] | None:
    """The nearest ``dataset_info.json``, from the working folder or from the file's folder upwards, and its folder."""
    named = str(draft.get("dataset_dir", "data"))
    folders = [Path(), draft.folder, *draft.folder.parents]
    for folder in (place / inner for place in folders for inner in (named, ".")):
        file = folder / "dataset_info.json"
        if file.is_file():
            try:
                found = json.loads(file.read_text(encoding="utf-8"))
            except ValueError as error:
                raise BadValueError(f"is looked up in {file}, which is no JSON ({error})") from error
            return (found, folder) if isinstance(found, Mapping) else None
    return None


def _named_set(draft: Draft, index: int, name: str, found: tuple[Mapping[str, Any], Path] | None) -> None:
    here = f"data.{index}"
    if found is None or name not in found[0]:
        near = nearest(name, found[0]) if found else None
        reason = f"is not in dataset_info.json{f' (there is {near})' if near else ''}" if found else "is a name only"
        draft.put(f"{here}.path", name, f"{name} {reason}; name the file")
        draft.check(f"{here}.path = {name} {reason}: name the file or hub id, {here}.path=chats.jsonl")
        return
    entry, folder = found[0][name], found[1]
    hub = entry.get("hf_hub_url") or entry.get("ms_hub_url") or entry.get("script_url")
    draft.put(f"{here}.path", str(folder / entry["file_name"]) if "file_name" in entry else str(hub), f"{name}")
    for key, knob in {"subset": "subset", "split": "split", "num_samples": "limit"}.items():
        if key in entry:
            draft.put(f"{here}.{knob}", entry[key])
    columns = entry.get("columns", {})
    media = [kind for kind in ("images", "videos", "audios") if kind in columns]
    if media:
        raise BadValueError(f"names {name}, which has {media[0]}; frisket trains on text")
    if entry.get("formatting", "alpaca") == "alpaca" and not entry.get("ranking"):
        _alpaca_columns(draft, here, name, columns)
    elif entry.get("formatting", "alpaca") == "alpaca":
        draft.put(f"{here}.prompt", columns.get("prompt", "instruction"))
    elif "messages" in columns and columns["messages"] not in ("messages", "conversations"):
        draft.put(f"{here}.messages", columns["messages"])
    _names_not_read(draft, here, name, columns, entry.get("tags", {}))


def _names_not_read(draft: Draft, here: str, name: str, columns: Mapping[str, Any], tags: Mapping[str, Any]) -> None:
    """A check line for each column, and each name inside a message, that is read under other names only."""
    for key, usual in _FIXED_COLUMNS.items():
        if columns.get(key, usual) not in (usual, None):
            draft.check(f"{here}: {name} has its {key} in column {columns[key]!r}; rename it to {usual!r}.")
    if draft.knobs.get(f"{here}.format") == "alpaca" and columns.get("tools"):
        draft.check(f"{here}: {name} has tools beside instructions; they are read beside messages only.")
    for key, usual in _TAGS.items():
        name_given = tags.get(key, usual[0])
        if name_given in (*usual, None):
            continue
        if key in _ROLE_TAGS:
            _name_roles(draft, int(here.partition(".")[2]), {str(name_given): _ROLE_TAGS[key]})
        else:
            draft.check(f"{here}: {name} has {key} {tags[key]!r}; rename it in the data to {usual[0]!r}.")


def _alpaca_columns(draft: Draft, here: str, name: str, columns: Mapping[str, Any]) -> None:
    chosen = {knob: columns[key] for key, knob in _COLUMNS.items() if key in columns}
    if draft.get("stage") == "pt":
        draft.put(f"{here}.text", chosen.get("prompt", "text"))
        return
    if columns and not {"query", "history"} & set(columns) and {"prompt", "completion"} <= set(chosen):
        for knob, column in chosen.items():
            draft.put(f"{here}.{knob}", column)
        return
    draft.put(f"{here}.format", "alpaca")
    for knob, column in chosen.items():
        draft.put(f"{here}.{knob}", column)
