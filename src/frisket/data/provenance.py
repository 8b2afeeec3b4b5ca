"""Who wrote each character of a rendered conversation, found by rendering it a second time with marks.

The second rendering has a pair of private-use characters just inside the stripped text of every field, the opening one
followed by the field's number. Without the marks both renderings must be equal; the marks then give the spans.
"""

import json
import re
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from frisket.data.problem import BadSample
from frisket.data.tokens import Codec, Special
from frisket.types import Conversation, Message, Provenance

Render = Callable[[list[dict], list[dict], bool], str]
Mark = Callable[[int, Provenance, str, str], str]

CONTENT_ROLES = {
    "system": Provenance.SYSTEM,
    "user": Provenance.USER,
    "assistant": Provenance.ASSISTANT,
    "tool": Provenance.TOOL_RESULT,
}
# The keys under which published templates read reasoning; transformers fills in the same ones.
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
NO_TURN = -1
_THINK = re.compile(r"\s*<think>(?P<reasoning>.*?)</think>(?P<answer>.*)", re.DOTALL)
_FIRST_MARK, _LAST_MARK = 0xE000, 0xF8FF  # the private-use area
_MARKS = 12  # opening, closing, ten digits
_END_CANDIDATES = 8  # special tokens after a turn's last field among which its end token is looked for


class Span(NamedTuple):
    """Characters ``start`` to ``end`` of a rendering, written by one field of message ``turn``."""

    start: int
    end: int
    role: Provenance
    turn: int


@dataclass(frozen=True)
class Rendering:
    """A conversation as text, and who wrote what.

    Attributes:
        text: what is tokenised.
        spans: disjoint and in order; characters outside them are the template's.
        boundaries: (character, turn) pairs in order: from that character on, text belongs to that message.
        specials: special tokens that the template wrote.
        spelled: whether a field spells a special token, which must then stay text.
        removed_characters: reasoning of earlier turns that the template left out.
        begin: whether the tokenizer's beginning token goes before the text.
        end: whether its end token goes after it.
    """

    text: str
    spans: tuple[Span, ...]
    boundaries: tuple[tuple[int, int], ...]
    specials: tuple[Special, ...]
    spelled: bool
    removed_characters: int = 0
    begin: bool = False
    end: bool = False


class _Field(NamedTuple):
    turn: int
    role: Provenance
    what: str
    core: str


class _Marker:
    """Puts numbered marks around fields and reads them back."""

    def __init__(self, first: int, wide: bool = False) -> None:
        self.fields: list[_Field] = []
        self.wide = wide
        self._open, self._close = chr(first), chr(first + 1)
        self._digits, self._numbers, self._pattern = _mark_tables(first)

    def __call__(self, turn: int, role: Provenance, what: str, text: str) -> str:
        core = text.strip()
        if not core:
            return text
        lead = len(text) - len(text.lstrip())
        if self.wide and role == Provenance.ASSISTANT:
            lead = lead if what == "answer" else 0
            core = text[lead:]
        number = str(len(self.fields)).translate(self._digits)
        self.fields.append(_Field(turn, role, what, core))
        return f"{text[:lead]}{self._open}{number}{core}{self._close}{text[lead + len(core) :]}"

    def read(self, marked: str) -> tuple[str, list[Span], set[int]]:
        """Take the marks out: the text, the spans, and the numbers of the fields that came back."""
        pieces, spans, seen = [], [], set()
        length = at = 0
        begun: tuple[int, int] | None = None
        for match in self._pattern.finditer(marked):
            pieces.append(marked[at : match.start()])
            length += match.start() - at
            at = match.end()
            if match.group(1) and begun is None:
                begun = (length, int(match.group(1).translate(self._numbers)))
            elif not match.group(1) and begun is not None:
                start, number = begun
                spans.append(Span(start, length, self.fields[number].role, self.fields[number].turn))
                seen.add(number)
                begun = None
            else:
                raise BadSample("the template takes a message apart, so who wrote what cannot be located")
        if begun is not None:
            raise BadSample("the template takes a message apart, so who wrote what cannot be located")
        return "".join([*pieces, marked[at:]]), spans, seen


@lru_cache
def _mark_tables(first: int) -> tuple[dict[int, int], dict[int, int], re.Pattern[str]]:
    """Digits to marks, marks to digits, and the pattern of a mark."""
    digits = {ord("0") + digit: first + 2 + digit for digit in range(10)}
    pattern = re.compile(f"{chr(first)}([{chr(first + 2)}-{chr(first + 11)}]+)|{chr(first + 1)}")
    return digits, {mark: digit for digit, mark in digits.items()}, pattern


def render_conversation(conversation: Conversation, render: Render, name: str, codec: Codec) -> Rendering:
    """Render under a chat template and find who wrote what.

    Args:
        conversation: one with messages.
        render: messages, tools and ``add_generation_prompt`` to text.
        name: the template, as errors name it.
        codec: the tokenizer's special tokens.

    Raises:
        BadSample: the template leaves something out, changes it, or cannot be followed.
    """
    messages, tools = conversation.messages, conversation.tools
    _refuse_spelled(conversation, codec)
    text = render(*_template_input(messages, tools, _as_it_is), False)
    marker = _Marker(_free_marks(text), wide=_has_outer_space(messages))
    plain, spans, seen = marker.read(render(*_template_input(messages, tools, marker), False))
    if plain != text and marker.wide:
        marker = _Marker(_free_marks(text))
        plain, spans, seen = marker.read(render(*_template_input(messages, tools, marker), False))
    if plain != text:
        raise BadSample(f"template '{name}' renders this conversation differently when its text is marked")
    removed = _removed(marker.fields, seen, messages, name)
    specials, spelled = _template_specials(text, spans, codec)
    painter = _Structure(text, spans, specials, messages, tools, render, codec)
    painter.paint()
    all_spans = tuple(sorted(span for span in (*spans, *painter.added) if span.end > span.start))
    boundaries = _boundaries(all_spans, specials, painter.turn_ends)
    return Rendering(text, all_spans, boundaries, tuple(specials), spelled, removed)


def render_joined(conversation: Conversation, codec: Codec) -> Rendering:
    """Join the contents of the messages as they are, without a template (``render: raw`` and ``alpaca``)."""
    spans, at = [], 0
    for turn, message in enumerate(conversation.messages):
        if message.reasoning or message.tool_calls:
            raise BadSample(f"message {turn + 1} has reasoning or tool calls, which only render=chat has a place for")
        spans.append(Span(at, at + len(message.content), CONTENT_ROLES[message.role], turn))
        at += len(message.content)
    text = "".join(message.content for message in conversation.messages)
    boundaries = tuple((span.start, span.turn) for span in spans)
    spelled = next(codec.specials(text), None) is not None
    return Rendering(text, tuple(spans), boundaries, (), spelled, begin=codec.adds_bos, end=True)


def render_text(text: str, codec: Codec) -> Rendering:
    """Raw text: all of it is text, whatever it spells."""
    spelled = next(codec.specials(text), None) is not None
    return Rendering(
        text, (Span(0, len(text), Provenance.TEXT, 0),), ((0, 0),), (), spelled, begin=codec.adds_bos, end=True
    )


def _has_outer_space(messages: Seq[Message]) -> bool:
    """Whether an answer begins or ends with white space: taught where the template keeps it, gone where it trims."""
    return any(m.role == "assistant" and m.content != m.content.strip() for m in messages)


def _as_it_is(turn: int, role: Provenance, what: str, text: str) -> str:
    return text


def _free_marks(text: str) -> int:
    for first in range(_FIRST_MARK, _LAST_MARK - _MARKS, _MARKS):
        if not re.search(f"[{chr(first)}-{chr(first + _MARKS - 1)}]", text):
            return first
    raise BadSample("the text uses the whole private-use area (U+E000 to U+F8FF), which frisket marks fields with")


def _refuse_spelled(conversation: Conversation, codec: Codec) -> None:
    """What is rendered outside the marked fields must not spell a special token (keys, declarations, names)."""
    outside = [json.dumps(conversation.tools, ensure_ascii=False, default=str)] if conversation.tools else []
    outside += [
        json.dumps([message.extra, message.tool_calls and _keys(message.tool_calls)], ensure_ascii=False, default=str)
        for message in conversation.messages
        if message.extra or message.tool_calls
    ]
    for text in outside:
        found = next(codec.specials(text), None)
        if found:
            spelled = text[found.start : found.end].strip()
            raise BadSample(f"a tool declaration, key or name spells the special token {spelled!r}; rename it")


def _keys(value: Any) -> list:
    if isinstance(value, Mapping):
        return [*value, *(_keys(item) for item in value.values())]
    return [_keys(item) for item in value] if isinstance(value, (list, tuple)) else []


def _template_input(messages: Seq[Message], tools: Seq[Mapping], mark: Mark) -> tuple[list[dict], list[dict]]:
    marked = [_template_message(message, turn, mark) for turn, message in enumerate(messages)]
    return marked, [_marked_tool(tool, mark) for tool in tools]


def _template_message(message: Message, turn: int, mark: Mark) -> dict:
    result: dict[str, Any] = {"role": message.role, **message.extra}
    think = _THINK.fullmatch(message.content) if message.role == "assistant" and not message.reasoning else None
    role = CONTENT_ROLES[message.role]
    if think:
        reasoning = mark(turn, Provenance.REASONING, "reasoning", think["reasoning"])
        result["content"] = f"<think>{reasoning}</think>{mark(turn, role, 'answer', think['answer'])}"
    else:
        result["content"] = mark(turn, role, "content", message.content)
    if message.reasoning:
        reasoning = mark(turn, Provenance.REASONING, "reasoning", message.reasoning)
        result |= dict.fromkeys(REASONING_KEYS, reasoning)
    if message.tool_calls:
        result["tool_calls"] = [_marked_call(call, turn, mark) for call in message.tool_calls]
    return result


def _marked_call(call: Mapping, turn: int, mark: Mark) -> dict:
    def walk(value: Any) -> Any:
        if isinstance(value, str):
            return mark(turn, Provenance.TOOL_CALL, "tool call", value)
        if isinstance(value, Mapping):
            return {key: walk(item) for key, item in value.items()}
        return [walk(item) for item in value] if isinstance(value, (list, tuple)) else value

    return {**call, "function": walk(call["function"])}


def _marked_tool(tool: Mapping, mark: Mark) -> dict:
    """Mark the name of a declared tool, only to see that the template renders the declaration at all."""
    function = tool.get("function", tool)
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        return dict(tool)
    marked = {**function, "name": mark(NO_TURN, Provenance.TEMPLATE, "tool declarations", function["name"])}
    return {**tool, "function": marked} if "function" in tool else marked


def _removed(fields: Seq[_Field], seen: set[int], messages: Seq[Message], name: str) -> int:
    """Characters of earlier reasoning that the template left out; anything else that is missing is refused."""
    last = max((turn for turn, message in enumerate(messages) if message.role == "assistant"), default=NO_TURN)
    removed = 0
    for number, field in enumerate(fields):
        if number in seen:
            continue
        if field.role != Provenance.REASONING or field.turn == last:
            of = "" if field.turn == NO_TURN else f" of message {field.turn + 1} ({messages[field.turn].role})"
            raise BadSample(f"template '{name}' leaves out the {field.what}{of}; model.template=plain keeps everything")
        removed += len(field.core)
    return removed


def _template_specials(text: str, spans: Seq[Span], codec: Codec) -> tuple[list[Special], bool]:
    """Special tokens that lie outside every field, and whether some field spells one."""
    found = list(codec.specials(text))
    starts = np.array([span.start for span in spans])
    ends = np.array([span.end for span in spans])
    if not any(_overlaps(special, starts, ends) for special in found):
        return found, False
    gaps = zip([0, *ends.tolist()], [*starts.tolist(), len(text)], strict=True)
    return [special for start, end in gaps for special in codec.specials(text, start, end)], True


def _overlaps(special: Special, starts: np.ndarray, ends: np.ndarray) -> bool:
    at = int(np.searchsorted(ends, special.start, side="right"))
    return at < len(starts) and int(starts[at]) < special.end


class _Structure:
    """Gives the characters between the fields of an assistant turn to whom they belong.

    Attributes:
        added: spans of tags, separators, JSON syntax and end-of-turn tokens.
        turn_ends: where each assistant turn's end token ends, by turn.
    """

    def __init__(
        self,
        text: str,
        spans: Seq[Span],
        specials: Seq[Special],
        messages: Seq[Message],
        tools: Seq[Mapping],
        render: Render,
        codec: Codec,
    ) -> None:
        self.added: list[Span] = []
        self.turn_ends: dict[int, int] = {}
        self._text, self._spans, self._specials = text, spans, specials
        self._special_starts = [special.start for special in specials]
        self._messages, self._tools, self._render, self._codec = messages, tools, render, codec
        self._known: dict[tuple[str, str, bool], tuple[list[str], str]] = {}

    def paint(self) -> None:
        first = 0
        while first < len(self._spans):
            last = first
            while last + 1 < len(self._spans) and self._spans[last + 1].turn == self._spans[first].turn:
                last += 1
            turn = self._spans[first].turn
            if turn != NO_TURN and self._messages[turn].role == "assistant":
                self._paint_turn(first, last)
            first = last + 1

    def _paint_turn(self, first: int, last: int) -> None:
        spans = self._spans[first : last + 1]
        before = self._spans[first - 1].end if first else 0
        after = self._spans[last + 1].start if last + 1 < len(self._spans) else len(self._text)
        roles = {span.role for span in spans}
        if roles == {Provenance.ASSISTANT}:
            self._end_turn(spans[-1], after, "")
            return
        header = self._text[before : spans[0].start]
        references, tail = self._without(spans[0].turn, header, Provenance.REASONING in roles)
        start = before + max(_common_prefix(header, reference) for reference in references)
        wide = Provenance.TOOL_CALL if Provenance.TOOL_CALL in roles else Provenance.REASONING
        self._add(start, spans[0].start, wide if spans[0].role == Provenance.ASSISTANT else spans[0].role, spans[0])
        for left, right in pairwise(spans):
            self._add(left.end, right.start, max(left.role, right.role, key=_strength), left)
        end = self._end_turn(spans[-1], after, tail)
        if end is not None and spans[-1].role != Provenance.ASSISTANT:
            self._add(spans[-1].end, end, spans[-1].role, spans[-1])

    def _end_turn(self, span: Span, after: int, tail: str) -> int | None:
        """Mark the end token: the one that ends the bare turn if it is there, else the first special token."""
        at = int(np.searchsorted(self._special_starts, span.end))
        candidates = [s for s in self._specials[at : at + _END_CANDIDATES] if s.end <= after]
        if not candidates:
            return None
        found = next((s for s in candidates if tail.endswith(self._text[s.start : s.end])), candidates[0])
        self.added.append(Span(found.start, found.end, Provenance.END_OF_TURN, span.turn))
        self.turn_ends[span.turn] = found.end
        return found.start

    def _without(self, turn: int, header: str, has_reasoning: bool) -> tuple[list[str], str]:
        """What this turn looks like without its reasoning and calls.

        Returns:
            What may stand before its first field without being a field's: what ``add_generation_prompt`` renders, and,
            where the message has no reasoning, what a bare answer has before it (an empty think block, say). Then what
            follows a bare answer, up to and with the end token.
        """
        key = (self._messages[turn - 1].role if turn else "", header, has_reasoning)
        if key not in self._known:
            bare = replace(self._messages[turn], content="x", reasoning=None, tool_calls=())
            text, spans = self._rendered([*self._messages[:turn], bare], False)
            at = next(i for i, span in enumerate(spans) if span.turn == turn)
            end = next(self._codec.specials(text, spans[at].end), None)
            references = [] if has_reasoning else [text[spans[at - 1].end if at else 0 : spans[at].start]]
            if turn:
                prompt, before = self._rendered(self._messages[:turn], True)
                references.append(prompt[before[-1].end if before else 0 :])
            self._known[key] = (references or [""], text[spans[at].end : end.end if end else len(text)])
        return self._known[key]

    def _rendered(self, messages: Seq[Message], prompt: bool) -> tuple[str, list[Span]]:
        marker = _Marker(_free_marks(self._text))
        text, spans, _ = marker.read(self._render(*_template_input(messages, self._tools, marker), prompt))
        return text, spans

    def _add(self, start: int, end: int, role: Provenance, of: Span) -> None:
        if end > start:
            self.added.append(Span(start, end, role, of.turn))


def _strength(role: Provenance) -> int:
    return {Provenance.TOOL_CALL: 2, Provenance.REASONING: 1}.get(role, 0)


def _common_prefix(a: str, b: str) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _boundaries(spans: Seq[Span], specials: Seq[Special], turn_ends: Mapping[int, int]) -> tuple[tuple[int, int], ...]:
    """Where each message begins: after the first special token that follows the one before it, or at its own text."""
    starts = [special.start for special in specials]
    found: list[tuple[int, int]] = []
    current, end = NO_TURN, 0
    for span in spans:
        if span.turn == NO_TURN or span.role == Provenance.END_OF_TURN:
            continue
        if span.turn != current:
            at = int(np.searchsorted(starts, end))
            ended = specials[at].end if at < len(specials) and specials[at].end <= span.start else span.start
            found.append((span.start if current == NO_TURN else turn_ends.get(current, ended), span.turn))
            current = span.turn
        end = span.end
    return tuple(found)
