"""Who wrote each character of a rendered conversation, found by rendering it a second time with marks.

The second rendering has a pair of rare characters just inside the stripped text of every field, the opening one
followed by the field's number. Without the marks both renderings must be equal; the marks then give the spans.
"""

import json
import re
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from frisket.data.marks import Field, Marker, Span, free_marks, with_kept_space
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
_END_CANDIDATES = 8  # special tokens after a turn's last field among which its end token is looked for


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
    marker = Marker(free_marks(text), wide=_has_outer_space(messages))
    plain, spans = marker.read(render(*_template_input(messages, tools, marker), False))
    if plain != text and marker.wide:
        wide_text, wide_spans, wide_fields = plain, spans, marker.fields
        marker = Marker(free_marks(text))
        plain, spans = marker.read(render(*_template_input(messages, tools, marker), False))
        spans = with_kept_space(text, spans, wide_text, wide_spans, wide_fields)
    if plain != text:
        raise BadSample(f"template '{name}' renders this conversation differently when its text is marked")
    removed = _removed(marker.fields, {span.field for span in spans}, messages, name)
    spans, specials, spelled = _template_specials(text, spans, codec)
    painter = _Structure(text, spans, specials, messages, tools, render, codec)
    painter.paint()
    all_spans = tuple(sorted(span for span in (*painter.spans, *painter.added) if span.end > span.start))
    boundaries = _boundaries(all_spans, specials, painter.turn_ends)
    return Rendering(text, all_spans, boundaries, tuple(specials), spelled, removed)


def render_joined(conversation: Conversation, codec: Codec) -> Rendering:
    """Join the contents of the messages as they are, without a template (``render: raw`` and ``alpaca``)."""
    spans, at = [], 0
    for turn, message in enumerate(conversation.messages):
        if message.reasoning or message.tool_calls:
            raise BadSample(f"messages[{turn}] has reasoning or tool calls, which only render=chat has a place for")
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


def _removed(fields: Seq[Field], seen: set[int], messages: Seq[Message], name: str) -> int:
    """Characters of earlier reasoning that the template left out; anything else that is missing is refused."""
    last = max((turn for turn, message in enumerate(messages) if message.role == "assistant"), default=NO_TURN)
    removed = 0
    for number, field in enumerate(fields):
        if number in seen:
            continue
        if field.role != Provenance.REASONING or field.turn == last:
            of = "" if field.turn == NO_TURN else f" of messages[{field.turn}] ({messages[field.turn].role})"
            raise BadSample(f"template '{name}' leaves out the {field.what}{of}; model.template=plain keeps everything")
        removed += len(field.core)
    return removed


def _template_specials(text: str, spans: Seq[Span], codec: Codec) -> tuple[list[Span], list[Special], bool]:
    """Special tokens that lie outside every field, and whether some field spells one.

    A special token may swallow white space around it; where that is a field's, the field's span gives it up.
    """
    found, clipped, spelled = list(codec.specials(text)), list(spans), False
    starts, ends = [span.start for span in spans], [span.end for span in spans]
    for special in found:
        at = bisect_right(ends, special.start)
        if at == len(spans) or starts[at] >= special.end:
            continue
        word = text[special.start : special.end]
        if special.end - len(word) + len(word.rstrip()) <= starts[at]:
            clipped[at] = clipped[at]._replace(start=special.end)
        elif special.start + len(word) - len(word.lstrip()) >= ends[at]:
            clipped[at] = clipped[at]._replace(end=special.start)
        else:
            spelled = True
    if not spelled:
        return clipped, found, False
    gaps = zip([0, *(span.end for span in clipped)], [*(span.start for span in clipped), len(text)], strict=True)
    return clipped, [special for start, end in gaps for special in codec.specials(text, start, end)], True


class _Structure:
    """Gives the characters between the fields of an assistant turn to whom they belong.

    Attributes:
        spans: those of the fields, without copies that stand outside the turn which wrote them.
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
        self.spans = list(spans)
        self._text, self._specials = text, specials
        self._special_starts = [special.start for special in specials]
        self._messages, self._tools, self._render, self._codec = messages, tools, render, codec
        self._known: dict[tuple[str, str, bool], tuple[list[str], str]] = {}

    def paint(self) -> None:
        if len({span.field for span in self.spans}) < len(self.spans):
            self._set_copies_apart()
        first = 0
        while first < len(self.spans):
            last = first
            while last + 1 < len(self.spans) and self.spans[last + 1].turn == self.spans[first].turn:
                last += 1
            turn = self.spans[first].turn
            if turn != NO_TURN and self._messages[turn].role == "assistant":
                self._paint_turn(first, last)
            first = last + 1

    def _paint_turn(self, first: int, last: int) -> None:
        spans = self.spans[first : last + 1]
        before = self.spans[first - 1].end if first else 0
        after = self.spans[last + 1].start if last + 1 < len(self.spans) else len(self._text)
        roles = {span.role for span in spans}
        if roles == {Provenance.ASSISTANT}:
            self._end_turn(spans[-1], after, "")
            return
        header = self._text[before : spans[0].start]
        references, tail = self._without(spans[0].turn, header, Provenance.REASONING in roles)
        start = before + max(common_prefix(header, reference) for reference in references)
        wide = Provenance.TOOL_CALL if Provenance.TOOL_CALL in roles else Provenance.REASONING
        self._add(start, spans[0].start, wide if spans[0].role == Provenance.ASSISTANT else spans[0].role, spans[0])
        for left, right in pairwise(spans):
            self._add(left.end, right.start, max(left.role, right.role, key=_strength), left)
        end = self._end_turn(spans[-1], after, tail)
        if end is not None and spans[-1].role != Provenance.ASSISTANT:
            self._add(spans[-1].end, end, spans[-1].role, spans[-1])

    def _set_copies_apart(self) -> None:
        """A tool's name that the header of its result repeats is the template's: the turn alone has it less often."""
        counts = Counter(span.field for span in self.spans if span.role == Provenance.TOOL_CALL)
        turns = {span.turn for span in self.spans if counts[span.field] > 1}
        own = Counter(
            span.field
            for turn in turns
            for span in self._rendered(self._messages[: turn + 1], False)[1]
            if span.turn == turn
        )
        for place, span in enumerate(self.spans):
            if span.role == Provenance.TOOL_CALL and span.turn in turns:
                own[span.field] -= 1
                if own[span.field] < 0:
                    self.spans[place] = span._replace(role=Provenance.TEMPLATE, turn=NO_TURN)

    def _end_turn(self, span: Span, after: int, tail: str) -> int | None:
        """Mark the end token, and with it the tokenizer's own where that stands directly behind.

        Args:
            span: the turn's last field.
            after: where the next field begins.
            tail: what ends a bare answer; empty where this turn is one.
        """
        at = bisect_left(self._special_starts, span.end)
        candidates = [s for s in self._specials[at : at + _END_CANDIDATES] if s.end <= after]
        if not candidates or span.turn in self.turn_ends:
            return None
        ends = (i for i, s in enumerate(candidates) if tail.endswith(self._text[s.start : s.end]))
        place = next(ends, None) if tail else 0
        if place is None:
            place = min(self._specials_after(span), len(candidates)) - 1
        end = candidates[place].end
        behind = candidates[place + 1] if place + 1 < len(candidates) else None
        if behind and behind.start == end and behind.token_id == self._codec.eos_id:
            end = behind.end
        self.added.append(Span(candidates[place].start, end, Provenance.END_OF_TURN, span.turn))
        self.turn_ends[span.turn] = end
        return candidates[place].start

    def _specials_after(self, last: Span) -> int:
        """How many special tokens follow a field when its turn ends the conversation (at least 1)."""
        text, spans = self._rendered(self._messages[: last.turn + 1], False)
        end = max((span.end for span in spans if span.field == last.field), default=len(text))
        return max(sum(1 for _ in self._codec.specials(text, end)), 1)

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
        marker = Marker(free_marks(self._text))
        return marker.read(self._render(*_template_input(messages, self._tools, marker), prompt))

    def _add(self, start: int, end: int, role: Provenance, of: Span) -> None:
        if end > start:
            self.added.append(Span(start, end, role, of.turn))


def _strength(role: Provenance) -> int:
    return {Provenance.TOOL_CALL: 2, Provenance.REASONING: 1}.get(role, 0)


def common_prefix(a: str, b: str) -> int:
    """How many characters two texts have in common at their beginnings."""
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
            at = bisect_left(starts, end)
            ended = specials[at].end if at < len(specials) and specials[at].end <= span.start else span.start
            own = turn_ends.get(current, NO_TURN)  # before `end` where a template moves text behind a turn's end
            found.append((span.start if current == NO_TURN else own if own >= end else ended, span.turn))
            current = span.turn
        end = span.end
    return tuple(found)
