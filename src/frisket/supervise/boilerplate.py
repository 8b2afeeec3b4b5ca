"""Text that is constant across a source: the beginnings and ends that many of its prompts share, token by token.

Source: the third variant of S. Raschka's instruction-masking exercise (LLMs from Scratch, exercise 7.2), which leaves
out Alpaca's fixed sentences and headers and teaches the user's own words. Differs: the text is found, not listed, and
answers are never boilerplate, because what a model is to write it has to learn.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Int32, Int64

from frisket.errors import ConfigError
from frisket.types import Provenance, Sequence

Side = Literal["start", "end"]
Ids = Int32[np.ndarray, "token"]
Decode = Callable[[Ids], str]

PROMPT_ROLES = (Provenance.SYSTEM, Provenance.USER, Provenance.TOOL_RESULT)
LEAST_SHARE = 0.2
"""Share of a source's messages of one provenance that must begin (or end) alike."""
LEAST_MESSAGES = 8
LEAST_TOKENS = 4
_SAME = 0.95  # share of the texts that must go on alike for the text not to have forked


@dataclass(frozen=True)
class Phrase:
    """Tokens that messages of one provenance begin or end with.

    Attributes:
        ids: the tokens in reading order.
        messages: how many messages of the source have all of them there.
        of: messages of this provenance in the source.
    """

    role: Provenance
    side: Side
    ids: tuple[int, ...]
    messages: int
    of: int

    @property
    def share(self) -> float:
        """Share of the messages that have it."""
        return self.messages / self.of


def constant_text(sequence: Sequence, phrases: Iterable[Phrase]) -> Bool[np.ndarray, "token"]:
    """True where a token belongs to text that is constant across its source.

    A message loses the longest beginning and the longest end that it shares with a phrase, if that is at least
    ``LEAST_TOKENS`` tokens or the whole phrase.

    >>> texts, sequence = TOOLS
    >>> draw(texts, constant_text(sequence, [Phrase(Provenance.USER, "start", (5,), messages=80, of=100)]))
    <s> Hi [bot] Yes <end> More [bot] call() <end> [tool] 42 [bot] It's 42 <end>
    0   0  0     0   0     1    0     0      0     0      0  0     0       0
    """
    mask = np.zeros(len(sequence), bool)
    for role, start, stop in prompt_messages(sequence):
        ids = sequence.input_ids[start:stop]
        front = max((_shared(ids, p) for p in phrases if p.role == role and p.side == "start"), default=0)
        back = max((_shared(ids, p) for p in phrases if p.role == role and p.side == "end"), default=0)
        mask[start : start + front] = True
        mask[stop - back : stop] = True
    return mask


def prompt_messages(sequence: Sequence) -> Iterator[tuple[Provenance, int, int]]:
    """Provenance, first token and end of each stretch that one message of the prompt's side wrote."""
    if not len(sequence):
        return
    changes = (np.diff(sequence.roles) != 0) | (np.diff(sequence.turns) != 0)
    edges = [0, *(1 + np.flatnonzero(changes)).tolist(), len(sequence)]
    for start, stop in pairwise(edges):
        if sequence.roles[start] in PROMPT_ROLES:
            yield Provenance(sequence.roles[start]), start, stop


def find_phrases(sequences: Iterable[Sequence]) -> tuple[Phrase, ...]:
    """The constant text of a source: a walk down the tree of its messages' beginnings, and of their ends.

    A beginning is constant where at least ``LEAST_SHARE`` of the messages of its provenance (and ``LEAST_MESSAGES``)
    have it. Only the longest are returned: their own beginnings are constant too. A text that is both a beginning and
    an end (a message that never changes) is returned once.
    """
    messages = _by_role(sequences)
    found: list[Phrase] = []
    for role, texts in messages.items():
        least = max(LEAST_MESSAGES, int(np.ceil(LEAST_SHARE * len(texts))))
        for side in ("start", "end"):
            facing = [t if side == "start" else t[::-1] for t in texts]
            for ids, count in _longest(facing, least):
                if len(ids) >= LEAST_TOKENS:
                    found.append(Phrase(role, side, ids if side == "start" else ids[::-1], count, len(texts)))
    whole = {(p.role, p.ids) for p in found if p.side == "start"}
    return tuple(p for p in found if p.side == "start" or (p.role, p.ids) not in whole)


def phrases_of(
    texts: Seq[str], sequences: Iterable[Sequence], decode: Decode, place: str = "supervise"
) -> tuple[Phrase, ...]:
    """The phrases that given texts are in a source: tokens that lie wholly inside such a text.

    Args:
        texts: what prompts begin or end with.
        decode: tokens to text.
        place: the section of the recipe that names the texts, for errors.

    Raises:
        ConfigError: no message begins or ends with a text.
    """
    counts: Counter[tuple[Provenance, Side, tuple[int, ...]]] = Counter()
    missing = dict.fromkeys(texts)
    messages = _by_role(sequences)
    for role, all_ids in messages.items():
        for ids in all_ids:
            for text, side in _edges(decode(ids), texts):
                missing.pop(text, None)
                counts[role, side, _inside(ids, text, side, decode)] += 1
    for text in missing:
        raise ConfigError(
            f"{place}.boilerplate: no prompt of the source begins or ends with {text!r}.\n"
            f"Look at what is found: {place}.boilerplate=auto, then frisket plan."
        )
    return tuple(Phrase(role, side, ids, n, len(messages[role])) for (role, side, ids), n in counts.items() if ids)


def _edges(written: str, texts: Seq[str]) -> Iterator[tuple[str, Side]]:
    """Which texts stand at which side of a message."""
    for text in texts:
        if written.startswith(text):
            yield text, "start"
        if written.endswith(text):
            yield text, "end"


def _by_role(sequences: Iterable[Sequence]) -> dict[Provenance, list[Ids]]:
    messages: dict[Provenance, list[Ids]] = {}
    for sequence in sequences:
        for role, start, stop in prompt_messages(sequence):
            messages.setdefault(role, []).append(sequence.input_ids[start:stop])
    return messages


class _Node(NamedTuple):
    """A beginning on the walk.

    Attributes:
        depth: its tokens.
        members: texts that begin so.
        fork: length of the beginning at which texts last parted, and how many shared it.
    """

    depth: int
    members: Int64[np.ndarray, "text"]
    fork: tuple[int, int]


def _longest(texts: Seq[Ids], least: int) -> list[tuple[tuple[int, ...], int]]:
    """The longest beginnings that at least ``least`` texts have, and how many have them.

    A branch of fewer than ``LEAST_TOKENS`` tokens after a fork is chance (half of all prompts end with a full stop):
    the beginning then ends at the fork.
    """
    found: dict[tuple[int, ...], int] = {}
    waiting = [_Node(0, np.arange(len(texts)), (0, len(texts)))] if len(texts) >= least else []
    while waiting:
        node = waiting.pop()
        one, size = texts[node.members[0]], len(node.members)
        depth = node.depth + _common(texts, node.members, node.depth)
        longer = np.array([i for i in node.members.tolist() if len(texts[i]) > depth], np.int64)
        following = np.array([texts[i][depth] for i in longer.tolist()], np.int64)
        tokens, counts = np.unique(following, return_counts=True)
        often = [(int(t), int(n)) for t, n in zip(tokens, counts, strict=True) if n >= least]
        for token, count in often:
            fork = node.fork if count >= _SAME * size else (depth, size)
            waiting.append(_Node(depth + 1, longer[following == token], fork))
        if not often:
            end, count = (depth, size) if depth - node.fork[0] >= LEAST_TOKENS else node.fork
            found[tuple(int(i) for i in one[:end])] = count
    return list(found.items())[::-1]


def _common(texts: Seq[Ids], members: Int64[np.ndarray, "text"], depth: int) -> int:
    """How many tokens beyond ``depth`` all these texts have in common."""
    rest = texts[members[0]][depth:]
    for i in members[1:].tolist():
        other = texts[i][depth : depth + len(rest)]
        same = rest[: len(other)] == other
        rest = rest[: len(other) if same.all() else int(np.argmin(same))]
        if not len(rest):
            return 0
    return len(rest)


def _shared(ids: Ids, phrase: Phrase) -> int:
    """Tokens of ``phrase`` that a message has at its side; 0 where they are too few to be more than chance.

    Without a template in between, an answer's first characters may merge with the last token of a prompt's end, which
    then is the answer's; so an end also counts without its last token.
    """
    if phrase.side == "start":
        return _alike(ids, phrase.ids)
    turned = ids[::-1]
    return _alike(turned, phrase.ids[::-1]) or _alike(turned, phrase.ids[-2::-1])


def _alike(ids: Ids, known: Seq[int]) -> int:
    size = min(len(ids), len(known))
    same = ids[:size] == np.array(known[:size], ids.dtype)
    length = size if same.all() else int(np.argmin(same))
    return length if length and (length >= LEAST_TOKENS or length == len(known)) else 0


def _inside(ids: Ids, text: str, side: Side, decode: Decode) -> tuple[int, ...]:
    """Tokens at one side of a message whose text lies wholly in ``text``."""
    low, high = 0, len(ids)
    while low < high:  # the text of more tokens is longer, so the border can be bisected
        middle = (low + high + 1) // 2
        part = decode(ids[:middle] if side == "start" else ids[len(ids) - middle :])
        low, high = (middle, high) if len(part) <= len(text) else (low, middle - 1)
    return tuple(int(i) for i in (ids[:low] if side == "start" else ids[len(ids) - low :]))
