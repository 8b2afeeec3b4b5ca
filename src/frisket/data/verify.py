"""What must be true of every sample, checked once, when its tokens are made and its text is still there.

* Each run of tokens that one field of one message wrote decodes to the slice of the rendering that the tokens' places
  give it, after the tokenizer's own normaliser. Where the tokens' bytes are the text's this is proved already
  (``alignment.py``); the others are decoded here. A tokenizer without byte fallback writes its unknown token for a
  character that it does not have: such tokens are left out of the comparison and counted, not refused, because that
  is what this model reads for that character, in training as in use.
* The slice that a content field wrote is part of what the person wrote (as text, or as the JSON string of it, which
  is how some templates write a tool's result).
* The first two tokens are not both the beginning token, and an end token follows each message of the assistant.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from frisket.data.encoding import Batch, answer_tokens
from frisket.data.provenance import CONTENT_ROLES, Rendering, common_prefix
from frisket.data.tokens import Codec
from frisket.types import Conversation, Provenance

_FIELD_ROLES = frozenset((*CONTENT_ROLES.values(), Provenance.REASONING, Provenance.TOOL_CALL, Provenance.TEXT))
_SHOWN = 24  # characters of a difference


@dataclass(frozen=True)
class Verdict:
    """What was found in one batch.

    Attributes:
        problems: what is wrong, by number in the batch.
        unknown: tokens of each conversation that stand for text which the tokenizer cannot write.
    """

    problems: Mapping[int, str]
    unknown: Mapping[int, int]


class _Run(NamedTuple):
    """Tokens of one field, and the text that their places give them."""

    number: int
    role: Provenance
    turn: int
    ids: list[int]
    text: str


def verify(batch: Batch, codec: Codec) -> Verdict:
    """Check every conversation of a batch that has tokens."""
    problems, unknown = dict(_token_problems(batch, codec)), {}
    runs: list[_Run] = []
    for number, place in batch.places.items():
        if place.rendering is None:
            continue
        changed = _changed_content(batch.conversations[number], place.rendering)
        if changed:
            problems[number] = changed
        if not place.proved:
            runs += _runs(batch, number, codec)
            unknown[number] = int(np.count_nonzero(place.encoding.ids == codec.unk_id))
    for run, decoded in zip(runs, codec.decode([run.ids for run in runs]), strict=True):
        if not codec.is_same(decoded, run.text):
            problems[run.number] = _difference(batch.conversations[run.number], run, decoded, codec)
    return Verdict(problems, {number: count for number, count in unknown.items() if count})


def _changed_content(conversation: Conversation, rendering: Rendering) -> str | None:
    """A content field whose span of the rendering is not what the person wrote."""
    messages = conversation.messages
    for span in rendering.spans:
        if span.turn < 0 or not messages or span.role != CONTENT_ROLES[messages[span.turn].role]:
            continue
        written, content = rendering.text[span.start : span.end], messages[span.turn].content
        if written in content or written in json.dumps(content, ensure_ascii=False) or written in json.dumps(content):
            continue
        at = _where(content, written)
        return (
            f"the template changes the content of messages[{span.turn}] ({messages[span.turn].role}): "
            f"it writes {written[at : at + _SHOWN]!r} where the data has {content[at : at + _SHOWN]!r}"
        )
    return None


def _runs(batch: Batch, number: int, codec: Codec) -> Iterator[_Run]:
    """The runs of tokens that one field wrote; unknown tokens cut a run and belong to none."""
    rendering, encoding, _ = batch.places[number]
    first = int(batch.offsets[number]) + bool(rendering and rendering.begin and codec.bos_id is not None)
    size = len(encoding.ids)
    roles, turns = batch.roles[first : first + size], batch.turns[first : first + size]
    unknown = encoding.ids == codec.unk_id
    change = (np.diff(roles) != 0) | (np.diff(turns) != 0) | unknown[1:] | unknown[:-1]
    for low, high in pairwise([0, *(np.flatnonzero(change) + 1).tolist(), size]):
        if high > low and not unknown[low] and roles[low] in _FIELD_ROLES and rendering:
            text = rendering.text[encoding.starts[low] : encoding.ends[high - 1]]
            yield _Run(number, Provenance(roles[low]), int(turns[low]), encoding.ids[low:high].tolist(), text)


def _difference(conversation: Conversation, run: _Run, decoded: str, codec: Codec) -> str:
    expected = codec.normalised(run.text)
    at = _where(expected, decoded)
    name = run.role.name.lower().replace("_", " ")
    role = f"messages[{run.turn}] ({name})" if conversation.messages else f"the {name}"
    return (
        f"the tokens of {role} read {decoded[at : at + _SHOWN]!r} where the rendering has "
        f"{expected[at : at + _SHOWN]!r}; the tokenizer does not say which characters its tokens stand for"
    )


def _where(a: str, b: str) -> int:
    """A little before the first character that differs."""
    return max(0, common_prefix(a, b) - _SHOWN // 2)


def _token_problems(batch: Batch, codec: Codec) -> Iterator[tuple[int, str]]:
    """What is wrong with the tokens as a whole."""
    ids, offsets = batch.input_ids, batch.offsets
    sizes = np.diff(offsets)
    for number in batch.places:
        if not sizes[number]:
            yield number, "it has no tokens"
    if codec.bos_id is not None and codec.bos_id != codec.eos_id:
        longer = np.flatnonzero(sizes > 1)
        begins = offsets[longer]
        for number in longer[(ids[begins] == codec.bos_id) & (ids[begins + 1] == codec.bos_id)].tolist():
            name = codec.names.get("bos_token")
            yield number, f"it begins with two beginning tokens ({name}); one of template and text must go"
    for number, turn in _endless(batch):
        yield number, f"no end token follows messages[{turn}] (assistant), so the model would not learn to stop"


def _endless(batch: Batch) -> Iterator[tuple[int, int]]:
    """First message of each conversation that an assistant wrote and that no end token follows."""
    sizes = np.diff(batch.offsets)
    turns = np.array([max(1, len(c.messages)) + 1 for c in batch.conversations])
    bases = np.cumsum(turns) - turns
    of_token = np.repeat(bases + 1, sizes) + batch.turns
    has_answer, has_end = np.zeros((2, int(turns.sum())), bool)
    has_answer[of_token[answer_tokens(batch)]] = True
    has_end[of_token[batch.roles == Provenance.END_OF_TURN]] = True
    missing = np.flatnonzero(has_answer & ~has_end)
    owners = np.searchsorted(bases, missing, side="right") - 1
    for number, place in zip(*np.unique(owners, return_index=True), strict=True):
        if batch.conversations[number].input_ids is None:
            yield int(number), int(missing[place] - bases[number] - 1)
