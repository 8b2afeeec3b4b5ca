"""Records of any format in use to conversations; the format is detected from the columns and said."""

import math
from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from typing import Any

from frisket.data.messages import ROLES, parsed, read_message, read_messages, read_tools, text_of
from frisket.data.problem import BadSample, Problem
from frisket.data.settings import SourceSettings
from frisket.errors import DataError
from frisket.types import Conversation, Message

# As published with Stanford Alpaca (tatsu-lab/stanford_alpaca, train.py, PROMPT_DICT).
_ALPACA_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
)
_ALPACA = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:"
)
_KNOWN = (
    "messages; conversations; instruction + output; prompt + completion; text; input_ids (with labels, weights, "
    "loss_mask, completion_mask or assistant_masks); chosen + rejected (with prompt, messages or conversations)"
)
_TOKEN_MASKS = (
    "loss_mask",
    "completion_mask",
    "assistant_masks",
)  # what other tools call 0/1 masks of ready-made tokens
_TOKEN_WEIGHTS = ("weights", *_TOKEN_MASKS)


@dataclass(frozen=True)
class Record:
    """One record as read; ``name`` is its stable name within the source."""

    file: str
    line: int
    name: str
    data: Mapping[str, Any]


@dataclass(frozen=True)
class _Layout:
    """A format, the columns that it reads, and what the names of roles stand for."""

    format: str
    columns: Mapping[str, str]
    roles: Mapping[str, str]

    @property
    def used(self) -> set[str]:
        return set(self.columns.values())


class Reader:
    """Turns the records of one source into conversations, one record at a time."""

    def __init__(self, settings: SourceSettings, index: int, shots: Seq[Conversation]) -> None:
        self._settings, self._index = settings, index
        self._shots = tuple(replace(m, weight=0.0) for shot in shots for m in shot.messages if m.role != "system")
        self._layout: _Layout | None = None
        self._seen: dict[str, None] = {}

    @property
    def format(self) -> str:
        """Format and columns, as ``alpaca (instruction, input, output)``; once where both have one name."""
        if self._layout is None:
            return "unknown"
        present = list(dict.fromkeys(column for column in self._layout.columns.values() if column in self._seen))
        format = self._layout.format
        return format if present == [format] else f"{format} ({', '.join(present)})"

    def read(self, record: Record) -> list[Conversation] | Problem:
        """Read one record: its conversations, or what is wrong with it.

        Raises:
            DataError: the columns of the first record are of no known format.
        """
        if self._layout is None:
            self._layout = _layout(record, self._settings, self._index)
        self._seen.update(dict.fromkeys(record.data))
        try:
            made = self._conversations(record, self._layout)
            return [end for c in made for end in _finish(c, self._settings, self._shots)]
        except BadSample as error:
            return Problem(f"{record.file}:{record.line}", str(error))

    @property
    def unused(self) -> tuple[str, ...]:
        """Columns that nothing uses."""
        used = self._layout.used if self._layout else self._seen
        return tuple(column for column in self._seen if column not in used)

    def _conversations(self, record: Record, layout: _Layout) -> list[Conversation]:
        values = {name: record.data.get(column) for name, column in layout.columns.items()}
        used = layout.used
        base = Conversation(
            sample_id=f"{self._index}:{record.name}",
            source=self._index,
            file=record.file,
            line=record.line,
            render=self._settings.render,
            fields={key: value for key, value in record.data.items() if key not in used},
        )
        if layout.format == "text":
            return [replace(base, text=text_of(values["text"], layout.columns["text"]))]
        if layout.format == "tokens":
            return [_tokens(base, values)]
        if layout.format == "preference":
            return _preference(base, values, layout, self._settings.answers)
        return [_READERS[layout.format](base, values, layout)]


def _layout(record: Record, settings: SourceSettings, index: int) -> _Layout:
    """Find the format: the recipe's columns and format first, then the record's columns."""
    columns = record.data
    chosen = settings.format if settings.format != "auto" else _detected(columns, settings)
    if chosen is None:
        pair = [column for column, value in columns.items() if isinstance(value, str)][:2]
        named = pair if len(pair) == 2 else ["COLUMN", "COLUMN"]
        raise DataError(
            f"{record.file}:{record.line}: no known format has the columns {', '.join(columns) or '(none)'}\n"
            f"Known: {_KNOWN}\n"
            f"Say which columns to use: data.{index}.prompt={named[0]} data.{index}.completion={named[1]}"
        )
    own = {name.lower(): role for name, role in settings.roles.items()}
    return _Layout(chosen, _columns(chosen, columns, settings), {**ROLES, **own})


def _detected(columns: Mapping[str, Any], settings: SourceSettings) -> str | None:
    if settings.prompt and settings.completion:
        return "prompt-completion"
    if settings.text:
        return "text"
    if settings.messages:
        return _message_style(columns.get(settings.messages))
    if "input_ids" in columns:
        return "tokens"
    if {"chosen", "rejected"} <= columns.keys():
        return "preference"
    for column in ("messages", "conversations", "conversation"):
        if column in columns:
            return _message_style(columns[column])
    if "instruction" in columns and ("output" in columns or "response" in columns):
        return "alpaca"
    if (settings.prompt or "prompt") in columns and (settings.completion or "completion") in columns:
        return "prompt-completion"
    return "text" if "text" in columns else None


def _message_style(raw: Any) -> str:
    messages = parsed(raw)
    first = messages[0] if isinstance(messages, (list, tuple)) and messages else None
    return "sharegpt" if isinstance(first, Mapping) and "from" in first else "messages"


def _columns(format: str, columns: Mapping[str, Any], settings: SourceSettings) -> dict[str, str]:
    lists = settings.messages or next((c for c in ("messages", "conversations", "conversation") if c in columns), None)
    if format in ("messages", "sharegpt"):
        default = "messages" if format == "messages" else "conversations"
        return {"system": "system", "tools": "tools", "messages": lists or default}
    if format == "alpaca":
        answer = settings.completion or ("output" if "output" in columns or "response" not in columns else "response")
        return {
            "system": "system",
            "history": "history",
            "instruction": settings.prompt or "instruction",
            "input": "input",
            "output": answer,
        }
    if format == "prompt-completion":
        return {
            "system": "system",
            "tools": "tools",
            "prompt": settings.prompt or "prompt",
            "completion": settings.completion or "completion",
        }
    if format == "preference":
        context = lists or settings.prompt or "prompt"
        return {"system": "system", "tools": "tools", "prompt": context, "chosen": "chosen", "rejected": "rejected"}
    if format == "text":
        return {"text": settings.text or "text"}
    return {name: name for name in ("input_ids", "labels", *_TOKEN_WEIGHTS, "attention_mask")}


def _messages(base: Conversation, values: Mapping[str, Any], layout: _Layout) -> Conversation:
    messages = read_messages(values["messages"], layout.columns["messages"], layout.roles)
    return replace(base, messages=_with_system(messages, values.get("system")), tools=read_tools(values.get("tools")))


def _alpaca(base: Conversation, values: Mapping[str, Any], layout: _Layout) -> Conversation:
    columns = layout.columns
    instruction = text_of(values["instruction"], columns["instruction"])
    extra_input = text_of(values["input"], columns["input"], may_be_empty=True)
    answer = text_of(values["output"], columns["output"])
    history = _history(values["history"])
    if base.render == "alpaca":
        prompt = _alpaca_prompt(instruction, extra_input, history)
    else:
        prompt = f"{instruction}\n\n{extra_input}" if extra_input.strip() else instruction
    messages = (*history, Message("user", prompt), Message("assistant", answer))
    return replace(base, messages=_with_system(messages, values["system"]))


def _history(raw: Any) -> tuple[Message, ...]:
    if not raw:
        return ()
    if not isinstance(raw, (list, tuple)) or not all(isinstance(p, (list, tuple)) and len(p) == 2 for p in raw):
        raise BadSample("history must be a list of pairs of instruction and answer")
    return tuple(
        read_message({"role": role, "content": text}, f"history[{index}][{side}]")
        for index, pair in enumerate(raw)
        for side, (role, text) in enumerate(zip(("user", "assistant"), pair, strict=True))
    )


def _alpaca_prompt(instruction: str, extra_input: str, history: Seq[Message]) -> str:
    if history:
        raise BadSample("render=alpaca holds one instruction and one answer, and this record has a history")
    header = _ALPACA_INPUT if extra_input.strip() else _ALPACA
    return header.format(instruction=instruction, input=extra_input)


def _prompt_completion(base: Conversation, values: Mapping[str, Any], layout: _Layout) -> Conversation:
    prompt, completion = _side(values, layout, "prompt", "user"), _side(values, layout, "completion", "assistant")
    messages = (*prompt, *completion)
    if base.render == "alpaca":
        if len(prompt) != 1 or len(completion) != 1:
            raise BadSample("render=alpaca holds one instruction and one answer, and this record has more messages")
        messages = (replace(prompt[0], content=_alpaca_prompt(prompt[0].content, "", ())), *completion)
    return replace(base, messages=_with_system(messages, values["system"]), tools=read_tools(values["tools"]))


def _side(values: Mapping[str, Any], layout: _Layout, name: str, role: str) -> tuple[Message, ...]:
    raw, column = values[name], layout.columns[name]
    if isinstance(raw, Mapping):
        return (read_message(raw, column, layout.roles),)
    if isinstance(raw, (list, tuple)):
        return read_messages(raw, column, layout.roles)
    return (Message(role, text_of(raw, column)),)


_READERS = {
    "messages": _messages,
    "sharegpt": _messages,
    "alpaca": _alpaca,
    "prompt-completion": _prompt_completion,
}


def _preference(base: Conversation, values: Mapping[str, Any], layout: _Layout, answers: str) -> list[Conversation]:
    chosen, rejected = _side(values, layout, "chosen", "assistant"), _side(values, layout, "rejected", "assistant")
    if chosen[0].role == "assistant":
        context = _side(values, layout, "prompt", "user")
    else:  # both answers are whole conversations; what they share is the prompt
        shared = next((i for i, pair in enumerate(zip(chosen, rejected, strict=False)) if pair[0] != pair[1]), 0)
        context, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
    if not chosen or not rejected or chosen[0].role != "assistant" or rejected[0].role != "assistant":
        raise BadSample("chosen and rejected must be two different answers of the assistant to one prompt")
    context = _with_system(context, values["system"])
    tools = read_tools(values["tools"])
    if answers == "both":
        return [
            replace(base, sample_id=f"{base.sample_id}/{name}", messages=(*context, *answer), tools=tools)
            for name, answer in (("chosen", chosen), ("rejected", rejected))
        ]
    return [replace(base, messages=(*context, *chosen), rejected=rejected, tools=tools)]


def _tokens(base: Conversation, values: Mapping[str, Any]) -> Conversation:
    ids = _integers(values["input_ids"], "input_ids")
    weights = _token_weights(values, len(ids))
    if values["labels"] is None:
        return replace(base, input_ids=ids, token_weights=weights)
    labels = _integers(values["labels"], "labels")
    _refuse_other_length("labels", labels, len(ids))
    if any(label not in (-100, token) for label, token in zip(labels, ids, strict=True)):
        raise BadSample("a label is neither -100 nor the token at its place; labels must not be shifted")
    pairs = zip(labels, weights or (1.0,) * len(ids), strict=True)
    return replace(
        base, input_ids=ids, token_weights=tuple(0.0 if label == -100 else weight for label, weight in pairs)
    )


def _token_weights(values: Mapping[str, Any], size: int) -> tuple[float, ...] | None:
    """What a column says that each ready-made token teaches with."""
    given = [column for column in _TOKEN_WEIGHTS if values[column] is not None]
    if not given:
        return None
    if len(given) > 1:
        raise BadSample(f"there are two columns of token weights, '{given[0]}' and '{given[1]}'; keep one of them")
    column = given[0]
    raw = values[column]
    if not isinstance(raw, (list, tuple)):
        shown = repr(raw)[:40]
        raise BadSample(f"{column} is {shown}; it must be a list of numbers, one for each token of input_ids")
    _refuse_other_length(column, raw, size)
    return tuple(_token_weight(value, f"{column}[{place}]", column in _TOKEN_MASKS) for place, value in enumerate(raw))


def _token_weight(value: Any, where: str, is_mask: bool) -> float:
    shown = repr(value)[:40]
    try:
        weight = float(value) if isinstance(value, (bool, int, float)) else math.nan
    except OverflowError:  # a whole number beyond the range of floats
        weight = math.inf
    if not math.isfinite(weight):
        raise BadSample(f"{where} is {shown}; it must be a finite number")
    if is_mask and weight not in (0.0, 1.0):
        raise BadSample(f"{where} is {shown}; it must be 0 or 1 (other numbers go under 'weights')")
    return weight


def _refuse_other_length(column: str, given: Seq[Any], size: int) -> None:
    if len(given) != size:
        raise BadSample(f"{column} has {len(given)} entries and input_ids {size}; they must be of one length")


def _integers(raw: Any, column: str) -> tuple[int, ...]:
    if not isinstance(raw, (list, tuple)) or not raw or not all(type(item) is int for item in raw):
        raise BadSample(f"{column} must be a list of whole numbers that is not empty")
    return tuple(raw)


def _with_system(messages: tuple[Message, ...], system: Any) -> tuple[Message, ...]:
    if not isinstance(system, str) or not system.strip() or messages[0].role == "system":
        return messages
    return (Message("system", system), *messages)


def _finish(conversation: Conversation, settings: SourceSettings, shots: tuple[Message, ...]) -> Iterable[Conversation]:
    """Apply what the recipe asks of every conversation: system prompt, no prompt, shots, a sample for each turn."""
    if not conversation.messages:
        return [conversation]
    if settings.without_prompt:
        return _answers_alone(conversation)
    messages = _with_system(conversation.messages, settings.system)
    if shots:
        first = 1 if messages[0].role == "system" else 0
        messages = (*messages[:first], *shots, *messages[first:])
    if messages is not conversation.messages:
        conversation = replace(conversation, messages=messages)
    return _turns(conversation) if settings.expand == "turns" else [conversation]


def _answers_alone(conversation: Conversation) -> list[Conversation]:
    """A sample for each answer, without what came before it: response tuning (Hewitt et al. 2024, arXiv 2409.14254).

    Differs: the turn of the user is left out, where the paper keeps it with empty text.
    """
    answers = [message for message in conversation.messages if message.role == "assistant"]
    if not answers:
        raise BadSample("there is no assistant message, so without_prompt leaves nothing")
    return [
        replace(conversation, sample_id=_turn_id(conversation, number, len(answers)), messages=(answer,))
        for number, answer in enumerate(answers, 1)
    ]


def _turns(conversation: Conversation) -> list[Conversation]:
    """A sample for each taught assistant turn, ending at it; a rejected answer stays with the last."""
    taught = taught_answers(conversation.messages)
    if not taught:
        return [conversation]
    return [
        replace(
            conversation,
            sample_id=_turn_id(conversation, number, len(taught)),
            messages=conversation.messages[: turn + 1],
            taught_turn=turn,
            rejected=conversation.rejected if number == len(taught) else (),
        )
        for number, turn in enumerate(taught, 1)
    ]


def taught_answers(messages: Seq[Message]) -> list[int]:
    """Messages of the assistant that the data does not say are worth nothing: each is a turn of its own."""
    return [number for number, each in enumerate(messages) if each.role == "assistant" and each.weight != 0]


def _turn_id(conversation: Conversation, number: int, count: int) -> str:
    return conversation.sample_id if count == 1 else f"{conversation.sample_id}/turn{number}"
