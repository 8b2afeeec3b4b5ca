"""What must hold on every sample, whoever made its template; needs no markers."""

from collections.abc import Iterator
from itertools import groupby

import numpy as np
from tests.templates import oracle
from transformers import PreTrainedTokenizerFast

from frisket.data.chat import ANSWER_ROLES, Encoded, Template
from frisket.types import Conversation, Message, Provenance

_BEFORE_END = [role for role in ANSWER_ROLES if role != Provenance.END_OF_TURN]


def problems(
    conversation: Conversation, encoded: Encoded, template: Template, tokenizer: PreTrainedTokenizerFast
) -> list[str]:
    """What is wrong with one sample, in words; empty where all checks hold."""
    text, _ = oracle.rendered(conversation, template.text.split("\0")[0], template.variables)
    ids, starts, ends = oracle.tokens(text, conversation, tokenizer)
    s = encoded.sequence
    if s.input_ids.tolist() != ids.tolist():
        return ["the tokens are not those of the rendering"]
    found = [*_lost(conversation, encoded, text), *_ends(encoded)]
    if tokenizer.bos_token_id is not None and (ids[:2] == tokenizer.bos_token_id).all() and len(ids) > 1:
        found.append("two beginning tokens")
    for role, turn, first, last in _runs(encoded):
        part = text[starts[first] : ends[last]]
        if tokenizer.decode(ids[first : last + 1]) != part:
            found.append(f"the taught run {part!r} does not decode to its slice of the rendering")
        if role == Provenance.ASSISTANT and part.strip() != next(_written(conversation.messages[turn])):
            found.append(f"{part!r} is not what message {turn + 1} says")
    return found


def _runs(encoded: Encoded) -> Iterator[tuple[int, int, int, int]]:
    """Role, message, first and last token of each maximal run of one taught role, end of turn aside."""
    s = encoded.sequence
    for (role, turn), run in groupby(range(len(s)), key=lambda i: (int(s.roles[i]), int(s.turns[i]))):
        places = list(run)
        if role in _BEFORE_END:
            yield role, turn, places[0], places[-1]


def _ends(encoded: Encoded) -> list[str]:
    """An end of turn follows each message that is taught, and there is one."""
    s = encoded.sequence
    turns = np.unique(s.turns[np.isin(s.roles, _BEFORE_END)])
    found = [] if len(turns) else ["nothing is taught"]
    for turn in turns:
        ends = np.flatnonzero((s.roles == Provenance.END_OF_TURN) & (s.turns == turn))
        first = np.flatnonzero(np.isin(s.roles, _BEFORE_END) & (s.turns == turn))[0]
        if not len(ends) or ends[-1] < first or np.any(np.diff(ends) != 1):
            found.append(f"message {turn + 1} has no end of turn, or several")
    return found


def _lost(conversation: Conversation, encoded: Encoded, text: str) -> list[str]:
    """Nothing that a person wrote is missing, unless it was counted as removed."""
    missing = [part for message in conversation.messages for part in _written(message) if part not in text]
    if sum(map(len, missing)) == encoded.removed_characters:
        return []
    return [f"{missing} is not in the rendering, and {encoded.removed_characters} characters are counted as removed"]


def _written(message: Message) -> Iterator[str]:
    content, reasoning = message.content, message.reasoning
    if content.startswith("<think>"):
        reasoning, _, content = content.removeprefix("<think>").partition("</think>")
    yield content.strip()
    yield (reasoning or "").strip()
    for call in message.tool_calls:
        yield call["function"]["name"]
        yield from (value for value in call["function"]["arguments"].values() if isinstance(value, str))
