"""An assistant mask that owes nothing to frisket: a published template's own markers, and the tokenizer's offsets."""

import json
import re
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

from frisket.types import Conversation, Message


@dataclass(frozen=True)
class Marked:
    """A rendering and its tokens, as transformers sees them.

    Attributes:
        text: the rendering.
        ids: its tokens.
        starts: first character of each token.
        ends: the character after each token's last.
        taught: whether the markers call each token the assistant's.
    """

    text: str
    ids: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    taught: np.ndarray


def as_dicts(messages: Seq[Message]) -> list[dict[str, Any]]:
    """Messages as a user of transformers writes them."""
    return [_as_dict(message) for message in messages]


def _as_dict(message: Message) -> dict[str, Any]:
    found: dict[str, Any] = {"role": message.role, "content": message.content, **message.extra}
    if message.reasoning:
        found["reasoning_content"] = message.reasoning
    if message.tool_calls:
        found["tool_calls"] = json.loads(json.dumps(message.tool_calls))
    return found


def rendered(
    conversation: Conversation, template: str, variables: Mapping[str, Any]
) -> tuple[str, list[tuple[int, int]]]:
    """The rendering as transformers makes it, and the characters between generation markers."""
    found: Any = render_jinja_template(
        [as_dicts(conversation.messages)],
        tools=[dict(tool) for tool in conversation.tools] or None,
        chat_template=template,
        return_assistant_tokens_mask="endgeneration" in template,
        **variables,
    )
    texts, spans = found
    return texts[0], spans[0] if spans else []


def prompt(conversation: Conversation, turn: int, template: str, variables: Mapping[str, Any]) -> str:
    """What a model is given before it writes message ``turn``."""
    texts, _ = render_jinja_template(
        [as_dicts(conversation.messages[:turn])],
        tools=[dict(tool) for tool in conversation.tools] or None,
        chat_template=template,
        add_generation_prompt=True,
        **variables,
    )
    return texts[0]


def marked(conversation: Conversation, tokenizer: PreTrainedTokenizerFast, template: str) -> Marked:
    """Render, tokenise, and read the mask off the markers: a token follows its last character."""
    text, spans = rendered(conversation, template, tokenizer.special_tokens_map)
    ids, starts, ends = tokens(text, conversation, tokenizer)
    character = np.zeros(len(text), bool)
    for start, end in spans:
        character[start:end] = True
    return Marked(text, ids, starts, ends, character[np.maximum(ends - 1, starts)])


def tokens(
    text: str, conversation: Conversation, tokenizer: PreTrainedTokenizerFast
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids and character offsets of a rendering in which a special token that a message spells stays text."""
    pieces = _pieces(text, conversation, tokenizer)
    ids, starts, ends = [], [], []
    for start, piece, is_template in pieces:
        found = tokenizer(
            piece, add_special_tokens=False, split_special_tokens=not is_template, return_offsets_mapping=True
        )
        ids += found.input_ids
        starts += [start + a for a, _ in found.offset_mapping]
        ends += [start + b for _, b in found.offset_mapping]
    return np.array(ids), np.array(starts), np.array(ends)


def _pieces(text: str, conversation: Conversation, tokenizer: PreTrainedTokenizerFast) -> list[tuple[int, str, bool]]:
    """The rendering cut at the special tokens outside the messages' contents; all of it where they spell none."""
    specials = [word for word in tokenizer.added_tokens_decoder.values() if word.special]
    pattern = re.compile("|".join(re.escape(word.content) + r"\s*" * word.rstrip for word in specials))
    contents = [message.content.strip() for message in conversation.messages]
    if not any(pattern.search(content) for content in contents):
        return [(0, text, True)]
    protected, at = [], 0
    for content in contents:
        found = text.find(content, at) if content else -1
        if found >= 0:
            at = found + len(content)
            protected.append((found, at))
    cuts, at = [], 0
    for match in pattern.finditer(text):
        if not any(start < match.end() and match.start() < end for start, end in protected):
            cuts += [(at, text[at : match.start()], False), (match.start(), match.group(), True)]
            at = match.end()
    return [cut for cut in (*cuts, (at, text[at:], False)) if cut[1]]
