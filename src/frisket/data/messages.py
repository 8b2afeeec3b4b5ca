"""One message of a record, in any of the shapes in use, to ``Message``."""

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from frisket.data.problem import BadSample
from frisket.errors import nearest
from frisket.types import Message

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "ipython": "tool",
    "tool_response": "tool",
}
_CALL_ROLES = ("function_call", "tool_call")
REASONING_COLUMNS = ("reasoning_content", "reasoning", "thinking")
_SWITCHES = ("train", "loss", "masked")
_NUMBERS = ("weight", "loss_weight", "loss_scale")
_WEIGHTS = frozenset((*_SWITCHES, *_NUMBERS))
_PLAIN = {"role", "content"}
_READ = {
    "role",
    "from",
    "content",
    "value",
    "tool_calls",
    "function_call",
    *REASONING_COLUMNS,
    *_SWITCHES,
    *_NUMBERS,
}


def read_message(raw: Any, where: str, roles: Mapping[str, str] = ROLES) -> Message:
    """Read one message.

    Args:
        raw: ``role`` and ``content``, or ShareGPT's ``from`` and ``value``.
        where: its JSON path in the record, for errors: ``messages[0]``.
        roles: name of a role, in small letters, to what it stands for.

    Raises:
        BadSample: wrong type, unknown role, empty, or contradicting weights.
    """
    if not isinstance(raw, Mapping):
        raise BadSample(f"{where} is {_kind(raw)}; a message must be an object with role and content")
    given = raw.get("role", raw.get("from"))
    role = roles.get(given.lower()) if isinstance(given, str) else None
    if role is None:
        raise BadSample(_unknown_role(where, given))
    is_call = str(given).lower() in _CALL_ROLES
    if raw.keys() == _PLAIN and not is_call and isinstance(raw["content"], str) and raw["content"].strip():
        return Message(role, raw["content"])  # what most messages are
    weight = _weight(raw, where)
    extra = {key: value for key, value in raw.items() if key not in _READ and value is not None}
    content = raw.get("content", raw.get("value"))
    if is_call and not raw.get("tool_calls"):
        return Message(role, "", None, _calls_in_text(content, where), weight, extra)
    text = _text(content, where, role)
    calls = _calls(raw, where) if role == "assistant" else ()
    reasoning = _reasoning(raw, where) if role == "assistant" else None
    if not text.strip() and not calls and not reasoning and role in ("user", "assistant"):
        raise BadSample(_empty(raw, where, role))
    return Message(role, text, reasoning, calls, weight, extra)


def _empty(raw: Mapping, where: str, role: str) -> str:
    """What is wrong with a message without text; where its text stands under another key, which."""
    if "content" in raw or "value" in raw:
        return f"{where} ({role}) is empty; a message needs content"
    texts = [key for key, value in raw.items() if key not in _READ and isinstance(value, str) and value.strip()]
    meant = f"; did you mean content by {texts[0]!r}?" if len(texts) == 1 else ""
    return f"{where} ({role}) has no content, only {', '.join(map(repr, raw))}{meant}"


def _unknown_role(where: str, given: Any) -> str:
    """What is wrong, and the knob that names the role; ``data.N`` becomes the source's own number where it is said."""
    if not isinstance(given, str):
        return f"{where} has no role; it must be system, user, assistant or tool"
    near = nearest(given.lower(), ROLES)
    stands_for = ROLES.get(near or "", "assistant")
    name = given if re.fullmatch(r"\w+", given) else json.dumps(given, ensure_ascii=False)
    meant = f"did you mean {near!r}? " if near else ""
    return (
        f"{where} has the unknown role {given!r}; {meant}known are system, user, assistant and tool, "
        f"and what this names: data.N.roles='{{{name}: {stands_for}}}'"
    )


def read_messages(raw: Any, field: str = "messages", roles: Mapping[str, str] = ROLES) -> tuple[Message, ...]:
    """Read a list of messages (or its JSON text).

    Args:
        field: the column it comes from, for errors.
        roles: as `read_message` takes them.

    Raises:
        BadSample: it is no list, is empty, or a message of it is bad.
    """
    raw = parsed(raw)
    if not isinstance(raw, (list, tuple)):
        raise BadSample(f"{field} is {_kind(raw)}; it must be a list of messages")
    if not raw:
        raise BadSample(f"{field} is empty; it must hold at least one message")
    return tuple(read_message(message, f"{field}[{index}]", roles) for index, message in enumerate(raw))


def read_tools(raw: Any) -> tuple[Mapping, ...]:
    """Read tool declarations: a list, or JSON text of one, in OpenAI's form or just the functions.

    Raises:
        BadSample: they are neither.
    """
    if raw is None or raw == "":
        return ()
    tools = parsed(raw)
    if not isinstance(tools, (list, tuple)) or not all(isinstance(tool, Mapping) for tool in tools):
        raise BadSample(f"tools is {_kind(tools)}; it must be a list of objects or JSON text of one")
    return tuple(tool if "function" in tool else {"type": "function", "function": dict(tool)} for tool in tools)


def text_of(raw: Any, field: str, *, may_be_empty: bool = False) -> str:
    """Read a column that must be text.

    Raises:
        BadSample: it is missing, no text, or empty.
    """
    if raw is None and may_be_empty:
        return ""
    if isinstance(raw, bool) or not isinstance(raw, (str, int, float)):
        raise BadSample(f"{field} is {_kind(raw)}; it must be text")
    text = str(raw)
    if not text.strip() and not may_be_empty:
        raise BadSample(f"{field} is empty; it must be text")
    return text


def parsed(raw: Any) -> Any:
    """JSON text as what it stands for; anything else as it is."""
    if not isinstance(raw, str):
        return raw
    try:
        return json.loads(raw)
    except ValueError:
        return raw


def _kind(value: Any) -> str:
    if value is None:
        return "missing"
    return {dict: "an object", list: "a list", str: "text", bool: "true or false"}.get(type(value), "a number")


def _text(content: Any, where: str, role: str) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, (list, tuple)) and all(_is_text_part(part) for part in content):
        return "".join(part if isinstance(part, str) else part.get("text", part.get("value")) for part in content)
    if role == "tool":
        return json.dumps(content, ensure_ascii=False)
    if isinstance(content, (list, tuple)):
        other = next(part for part in content if not _is_text_part(part))
        kind = other.get("type") if isinstance(other, Mapping) else _kind(other)
        raise BadSample(f"{where} has a content part of type {kind!r}; only text parts can be used")
    raise BadSample(f"the content of {where} is {_kind(content)}; it must be text or a list of text parts")


def _is_text_part(part: Any) -> bool:
    if isinstance(part, str):
        return True
    return isinstance(part, Mapping) and isinstance(part.get("text", part.get("value")), str)


def _reasoning(raw: Mapping, where: str) -> str | None:
    found = next((raw[key] for key in REASONING_COLUMNS if raw.get(key)), None)
    if found is not None and not isinstance(found, str):
        raise BadSample(f"the reasoning of {where} is {_kind(found)}; it must be text")
    return found


def _calls(raw: Mapping, where: str) -> tuple[Mapping, ...]:
    calls = parsed(raw.get("tool_calls")) or ([raw["function_call"]] if raw.get("function_call") else [])
    if not isinstance(calls, (list, tuple)):
        raise BadSample(f"tool_calls of {where} is {_kind(calls)}; it must be a list")
    return tuple(_call(call, where) for call in calls)


def _calls_in_text(content: Any, where: str) -> tuple[Mapping, ...]:
    calls = parsed(content)
    if isinstance(calls, Mapping):
        calls = [calls]
    if not isinstance(calls, (list, tuple)) or not calls:
        raise BadSample(f'the function call of {where} is not JSON of {{"name": …, "arguments": …}}')
    return tuple(_call(call, where) for call in calls)


def _call(raw: Any, where: str) -> Mapping:
    function = raw.get("function", raw) if isinstance(raw, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise BadSample(f"a tool call of {where} has no function name")
    arguments = parsed(function.get("arguments"))
    kept = arguments if isinstance(arguments, Mapping) else function.get("arguments")
    call = {"type": "function", "function": {"name": function["name"], "arguments": {} if kept is None else kept}}
    return {"id": raw["id"], **call} if isinstance(raw, Mapping) and raw.get("id") else call


def _weight(raw: Mapping, where: str) -> float | None:
    if _WEIGHTS.isdisjoint(raw):
        return None
    given = [name for name in (*_SWITCHES, *_NUMBERS) if raw.get(name) is not None]
    if not given:
        return None
    if len(given) > 1:
        raise BadSample(f"{where} has two weights, '{given[0]}' and '{given[1]}'; keep one of them")
    name = given[0]
    value = raw[name]
    if not isinstance(value, (bool, int, float)) or not math.isfinite(value):
        raise BadSample(f"'{name}' of {where} is {value!r}; it must be a finite number")
    if name in _SWITCHES and value not in (0, 1):
        raise BadSample(f"'{name}' of {where} is {value!r}; it must be 0 or 1 (a number goes under 'weight')")
    return 1.0 - float(value) if name == "masked" else float(value)
