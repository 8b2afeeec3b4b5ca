"""Conversations to tokens of known provenance, many at a time, in flat arrays.

While the tokenizer works on one batch (it needs no interpreter), the next one is rendered.
"""

from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as Seq
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int32, Int64, UInt8, UInt32

from frisket.data.alignment import Encoding
from frisket.data.formats import taught_answers
from frisket.data.problem import BadSample
from frisket.data.provenance import NO_TURN, Rendering
from frisket.data.tokens import Codec, utf8
from frisket.types import OWN_WEIGHT, Conversation, Provenance

ANSWER_ROLES = (Provenance.ASSISTANT, Provenance.REASONING, Provenance.TOOL_CALL, Provenance.END_OF_TURN)
_WRITTEN_ROLES = (*ANSWER_ROLES, Provenance.SYSTEM, Provenance.USER, Provenance.TOOL_RESULT)
BATCH = 512  # renderings tokenised together; bounds memory

RenderOf = Callable[[Conversation], Rendering | None]
"""The rendering of a conversation; None where the data brings its own tokens; raises BadSample."""


class Place(NamedTuple):
    """What one conversation became before it was laid into a batch.

    Attributes:
        rendering: who wrote what; None where the data brings its own tokens.
        encoding: its tokens.
        proved: whether the tokens' own bytes prove where each lies.
    """

    rendering: Rendering | None
    encoding: Encoding
    proved: bool


@dataclass(frozen=True)
class Batch:
    """Several conversations as tokens.

    Attributes:
        conversations: as they came.
        problems: why a conversation could not be tokenised, by its number in the batch; it has no tokens.
        places: what each of the others became, by its number.
        offsets: conversation ``i`` has tokens ``offsets[i]`` to ``offsets[i + 1]``.
        input_ids: token ids.
        roles: provenance of each token.
        turns: message of each token.
        weighted: tokens that the data itself gives a weight, in order.
        weights: those weights.
        is_own: whether the data weighs that very token, not its whole message.
        straddling: of each conversation, tokens whose characters belong to two provenances.
        removed: of each conversation, characters of earlier reasoning that the template left out.
    """

    conversations: Seq[Conversation]
    problems: dict[int, str]
    places: dict[int, Place]
    offsets: Int64[np.ndarray, "conversation+1"]
    input_ids: Int32[np.ndarray, "token"]
    roles: UInt8[np.ndarray, "token"]
    turns: Int32[np.ndarray, "token"]
    weighted: Int64[np.ndarray, "weight"]
    weights: Float64[np.ndarray, "weight"]
    is_own: Bool[np.ndarray, "weight"]
    straddling: Int64[np.ndarray, "conversation"]
    removed: Int64[np.ndarray, "conversation"]

    def said(self, number: int) -> tuple[Float64[np.ndarray, "token"], UInt32[np.ndarray, "token"]]:
        """What the data says that each token of one conversation teaches with, and the marks of its tokens."""
        first, last = self.offsets[number : number + 2]
        low, high = np.searchsorted(self.weighted, (first, last))
        part = slice(low, high)
        return spread(last - first, self.weighted[part] - first, self.weights[part], self.is_own[part])


def spread(
    size: int,
    at: Int64[np.ndarray, "weight"],
    weights: Float64[np.ndarray, "weight"],
    is_own: Bool[np.ndarray, "weight"],
) -> tuple[Float64[np.ndarray, "token"], UInt32[np.ndarray, "token"]]:
    """Weights that the data gives some of ``size`` tokens, for each token (NaN where it says nothing), and marks."""
    dense, marks = np.full(size, np.nan), np.zeros(size, np.uint32)
    if len(at):
        dense[at] = weights
        marks[at[is_own]] = OWN_WEIGHT
    return dense, marks


class _Waiting(NamedTuple):
    """A batch whose texts are being tokenised."""

    conversations: Seq[Conversation]
    problems: dict[int, str]
    renderings: dict[int, Rendering | None]
    plain: list[int]
    texts: list[bytes]
    ids: Future[list[list[int]]]


def encode_batches(conversations: Iterable[Seq[Conversation]], render: RenderOf, codec: Codec) -> Iterator[Batch]:
    """Turn batches of conversations into tokens, in order."""
    with ThreadPoolExecutor(1) as pool:
        waiting: _Waiting | None = None
        for batch in conversations:
            following = _rendered(batch, render, codec, pool)
            if waiting:
                yield _laid(waiting, codec)
            waiting = following
        if waiting:
            yield _laid(waiting, codec)


def _rendered(conversations: Seq[Conversation], render: RenderOf, codec: Codec, pool: ThreadPoolExecutor) -> _Waiting:
    problems: dict[int, str] = {}
    renderings: dict[int, Rendering | None] = {}
    plain, texts = [], []
    for number, conversation in enumerate(conversations):
        try:
            rendering = render(conversation)
            if rendering is not None and not rendering.spelled:
                texts.append(utf8(rendering.text))
                plain.append(number)
            renderings[number] = rendering
        except BadSample as error:
            problems[number] = str(error)
    return _Waiting(conversations, problems, renderings, plain, texts, pool.submit(codec.ids_of, texts))


def _laid(waiting: _Waiting, codec: Codec) -> Batch:
    """Wait for the tokens and find who wrote each."""
    found = dict(zip(waiting.plain, codec.placed(waiting.texts, waiting.ids.result()), strict=True))
    problems, places = dict(waiting.problems), {}
    for number, rendering in waiting.renderings.items():
        try:
            if rendering is None:
                places[number] = Place(None, _ready_made(waiting.conversations[number], codec), True)
            elif number in found:
                places[number] = Place(rendering, *found[number])
            else:
                places[number] = Place(rendering, codec.encode_cut(rendering.text, rendering.specials), False)
            _refuse_endless(rendering, codec)
        except BadSample as error:
            problems[number] = str(error)
            places.pop(number, None)
    return _painted(waiting.conversations, problems, places, codec)


def _ready_made(conversation: Conversation, codec: Codec) -> Encoding:
    given = conversation.input_ids or ()
    strange = {each for each in set(given) if not codec.has_token(each)}
    if strange:
        place = next(place for place, each in enumerate(given) if each in strange)
        raise BadSample(f"input_ids[{place}] = {given[place]} is no token of this tokenizer (0 to {codec.size - 1})")
    ids = np.array(given, np.int32)
    numbers = np.arange(len(ids), dtype=np.int32)
    return Encoding(ids, numbers, numbers + 1)


def _refuse_endless(rendering: Rendering | None, codec: Codec) -> None:
    if rendering and rendering.end and codec.eos_id is None:
        raise BadSample("this tokenizer has no end token to put after the text; use render=chat")


def _painted(
    conversations: Seq[Conversation], problems: dict[int, str], places: dict[int, Place], codec: Codec
) -> Batch:
    """Lay all tokens side by side and give each the provenance and the message of its last character."""
    canvas = _Canvas(codec)
    lengths = np.zeros(len(conversations), np.int64)
    for number in range(len(conversations)):
        if number in places:
            lengths[number] = canvas.add(conversations[number], places[number])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids, first, last = canvas.tokens()
    character_roles, character_turns = canvas.paint()
    roles, turns = character_roles[last], character_turns[last]
    owner = np.repeat(np.arange(len(conversations)), lengths)
    straddles = character_roles[first] != roles
    removed = np.zeros(len(conversations), np.int64)
    for number, (rendering, _, _) in places.items():
        removed[number] = rendering.removed_characters if rendering else 0
    weighted, weights, is_own = _data_weights(conversations, places, offsets, roles, turns)
    return Batch(
        conversations,
        problems,
        places,
        offsets,
        ids,
        roles,
        turns,
        weighted,
        weights,
        is_own,
        np.bincount(owner[straddles], minlength=len(conversations)),
        removed,
    )


class _Canvas:
    """The characters of a batch side by side; a token that is put before or after a text is a character of its own."""

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self._length = 0
        self._bases: list[int] = []
        self._counts: list[int] = []
        self._ids: list[np.ndarray] = []
        self._starts: list[np.ndarray] = []
        self._ends: list[np.ndarray] = []
        self._edges: list[int] = []
        self._roles: list[int] = []
        self._borders: list[int] = []
        self._turns: list[int] = []

    def add(self, conversation: Conversation, place: Place) -> int:
        """Lay one conversation down and return how many tokens it has."""
        rendering, encoding, _ = place
        base = self._length
        self._bases.append(base)
        self._borders.append(base)
        self._turns.append(NO_TURN)
        if rendering is None:
            return self._add_ready_made(conversation, encoding)
        begins = int(rendering.begin and self._codec.bos_id is not None)
        size = begins + len(rendering.text) + rendering.end
        if begins:
            self._put(base, base + 1, Provenance.BOS)
            self._token(self._codec.bos_id, 0)
        first = rendering.specials[0] if rendering.specials else None
        if first and first.start == 0 and first.token_id == self._codec.bos_id:
            self._put(base + begins, base + begins + first.end, Provenance.BOS)
        for span in rendering.spans:
            self._put(base + begins + span.start, base + begins + span.end, span.role)
        for start, turn in rendering.boundaries:
            self._borders.append(base + begins + start)
            self._turns.append(turn)
        self._ids.append(encoding.ids)
        self._starts.append(encoding.starts + begins if begins else encoding.starts)
        self._ends.append(encoding.ends + begins if begins else encoding.ends)
        if rendering.end:
            self._put(base + size - 1, base + size, Provenance.END_OF_TURN)
            self._token(self._codec.eos_id, size - 1)
        self._length += size
        self._counts.append(begins + len(encoding.ids) + rendering.end)
        return self._counts[-1]

    def _add_ready_made(self, conversation: Conversation, encoding: Encoding) -> int:
        """Tokens that the data brings: what it teaches counts as the assistant's, the rest as the user's."""
        base, size = self._length, len(encoding.ids)
        given = conversation.token_weights or (1.0,) * size
        cuts = [0, *(np.flatnonzero(np.diff(np.array(given) == 0)) + 1).tolist(), size]
        for start, end in pairwise(cuts):
            self._put(base + start, base + end, Provenance.ASSISTANT if given[start] else Provenance.USER)
        self._borders.append(base)
        self._turns.append(0)
        self._ids.append(encoding.ids)
        self._starts.append(encoding.starts)
        self._ends.append(encoding.ends)
        self._length += size
        self._counts.append(size)
        return size

    def _put(self, start: int, end: int, role: int) -> None:
        self._edges += (start, end)
        self._roles.append(role)

    def _token(self, token_id: int | None, at: int) -> None:
        self._ids.append(np.array([token_id], np.int32))
        self._starts.append(np.array([at], np.int32))
        self._ends.append(np.array([at + 1], np.int32))

    def tokens(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ids, first and last character of all tokens."""
        if not self._ids:
            return np.zeros(0, np.int32), np.zeros(0, np.int64), np.zeros(0, np.int64)
        base = np.repeat(np.array(self._bases, np.int64), self._counts)
        starts, ends = np.concatenate(self._starts), np.concatenate(self._ends)
        return np.concatenate(self._ids), base + starts, base + np.maximum(ends - 1, starts)

    def paint(self) -> tuple[UInt8[np.ndarray, "character"], Int32[np.ndarray, "character"]]:
        """Provenance and message of each character."""
        sizes = np.diff(np.array([0, *self._edges, self._length], np.int64))
        roles = np.full(len(sizes), Provenance.TEMPLATE, np.uint8)
        roles[1::2] = self._roles
        borders = np.diff(np.array([*self._borders, self._length], np.int64))
        return np.repeat(roles, sizes), np.repeat(np.array(self._turns, np.int32), borders)


def _data_weights(
    conversations: Seq[Conversation],
    places: dict[int, Place],
    offsets: np.ndarray,
    roles: np.ndarray,
    turns: np.ndarray,
) -> tuple[Int64[np.ndarray, "weight"], Float64[np.ndarray, "weight"], Bool[np.ndarray, "weight"]]:
    """Tokens that the data gives a weight, the weights, and whether they are the token's own."""
    at, weights, own = [np.zeros(0, np.int64)], [np.zeros(0)], [np.zeros(0, bool)]
    for number in places:
        conversation = conversations[number]
        if conversation.input_ids is not None:
            given = np.array(conversation.token_weights if conversation.token_weights is not None else (), np.float64)
        elif conversation.taught_turn is None and all(message.weight is None for message in conversation.messages):
            continue
        else:
            first, last = offsets[number : number + 2]
            given = _message_weights(conversation, roles[first:last], turns[first:last])
        said = np.flatnonzero(~np.isnan(given))
        at.append(said + offsets[number])
        weights.append(given[said])
        own.append(np.full(len(said), conversation.input_ids is not None))
    return np.concatenate(at), np.concatenate(weights), np.concatenate(own)


def _message_weights(conversation: Conversation, roles: np.ndarray, turns: np.ndarray) -> np.ndarray:
    """A weight on a message replaces the policy's on everything that the message wrote and on its end token.

    A sample that was made for one turn teaches nothing up to the answer before it, whatever the policy: a sample of
    its own taught that. So every message is taught once by the samples of one conversation. Exceptions: what stands
    behind the last taught answer is in no sample, and what the template writes behind the last message of a sample
    (a newline in ChatML) comes again before the next message.
    """
    weights = np.full(len(roles), np.nan)
    written = np.isin(roles, _WRITTEN_ROLES)
    for turn, message in enumerate(conversation.messages):
        if message.weight is not None:
            weights[written & (turns == turn)] = message.weight
    earlier = taught_answers(conversation.messages[: conversation.taught_turn or 0])
    if earlier:
        weights[turns <= earlier[-1]] = 0.0
    return weights


def answer_tokens(batch: Batch) -> Bool[np.ndarray, "token"]:
    """Tokens that an assistant wrote and that the data does not say are worth nothing."""
    is_answer = np.isin(batch.roles, ANSWER_ROLES)
    is_answer[batch.weighted[batch.weights == 0]] = False
    return is_answer
