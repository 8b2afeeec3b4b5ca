"""The values that everything else passes around: frozen, checked where they are made, free of policy.

The path of a run is ``Conversation -> Sequence -> Rows -> Predictions -> summed loss -> one division``.

Axis dictionary (used in every signature): ``row`` packed line of a micro-batch, ``token`` place in a row or a
sequence, ``query``/``key`` the two sides of attention, ``segment`` run of tokens with one ancestry, ``prediction``
one (position, target, weight), ``vocab``, ``hidden``, ``head``, ``rank`` of a low-rank factor, ``layer``.
"""

from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
from jaxtyping import Bool, Float64, Int32, Int64, UInt8, UInt32

PADDING_SEGMENT = -1
ROOT = -1
OWN_WEIGHT = 1 << 31
"""The bit of ``Sequence.marks`` that says: the data gives this very token a weight, not its whole message."""


class Provenance(IntEnum):
    """Where a token comes from; found once, at rendering, and never guessed again."""

    BOS = 0
    TEMPLATE = 1
    SYSTEM = 2
    USER = 3
    ASSISTANT = 4
    REASONING = 5
    TOOL_CALL = 6
    TOOL_RESULT = 7
    END_OF_TURN = 8
    TEXT = 9


@dataclass(frozen=True)
class Message:
    """One message as written.

    Attributes:
        role: ``system``, ``user``, ``assistant`` or ``tool`` (other tools' names are translated when read).
        content: its text; the text parts of a list content are joined.
        reasoning: thinking that the data gives apart from the content.
        tool_calls: OpenAI-style calls, ``{"type": "function", "function": {"name", "arguments"}}``.
        weight: what the data says this message teaches with; None where it says nothing.
        extra: further keys that templates read (``name``, ``tool_call_id``).
    """

    role: str
    content: str = ""
    reasoning: str | None = None
    tool_calls: tuple[Mapping, ...] = ()
    weight: float | None = None
    extra: Mapping = field(default_factory=dict)


@dataclass(frozen=True)
class Conversation:
    """What a person wrote, before any template: messages, or raw text, or ready-made tokens.

    Attributes:
        sample_id: stable name, ``<source>:<line>`` with a suffix where one line makes several samples.
        source: index of the source in the recipe's ``data`` list.
        file: path as the user gave it.
        line: 1-based line (JSONL) or record number (other formats).
        messages: the turns; empty where ``text`` or ``input_ids`` is given.
        tools: tool declarations handed to the template.
        rejected: the answer that a preference row declares worse (``messages`` ends with the chosen one).
        text: raw text of continued pre-training.
        render: ``chat`` (template), ``raw`` (contents joined, then the end token) or ``alpaca`` (published header).
        input_ids: ready-made tokens.
        token_weights: per-token weights of ready-made tokens (labels of -100 become 0).
        taught_turn: index of the only message that is taught, where a conversation was expanded; else None.
        fields: other columns of the record, for metrics and reports.
    """

    sample_id: str
    source: int
    file: str
    line: int
    messages: tuple[Message, ...] = ()
    tools: tuple[Mapping, ...] = ()
    rejected: tuple[Message, ...] = ()
    text: str | None = None
    render: str = "chat"
    input_ids: tuple[int, ...] | None = None
    token_weights: tuple[float, ...] | None = None
    taught_turn: int | None = None
    fields: Mapping = field(default_factory=dict)

    @property
    def place(self) -> str:
        """``file:line``, as errors name it."""
        return f"{self.file}:{self.line}"


@dataclass(frozen=True)
class Sequence:
    """One tokenised conversation; all arrays have one length.

    Attributes:
        input_ids: token ids.
        roles: ``Provenance`` of each token.
        turns: index of the message each token belongs to; -1 before the first.
        marks: bits of named spans; the highest is ``OWN_WEIGHT``.
        data_weights: what the data itself says each token teaches with; NaN where it says nothing.
    """

    sample_id: str
    source: int
    input_ids: Int32[np.ndarray, "token"]
    roles: UInt8[np.ndarray, "token"]
    turns: "Int32[np.ndarray, 'token']"
    marks: UInt32[np.ndarray, "token"]
    data_weights: Float64[np.ndarray, "token"]

    def __post_init__(self) -> None:
        arrays = (self.input_ids, self.roles, self.turns, self.marks, self.data_weights)
        if len(set(map(len, arrays))) != 1:
            lengths = dict(zip(("input_ids", "roles", "turns", "marks", "data_weights"), map(len, arrays), strict=True))
            raise ValueError(f"the arrays of sequence {self.sample_id} differ in length: {lengths}")

    def __len__(self) -> int:
        return len(self.input_ids)


@dataclass(frozen=True)
class Leaf:
    """Where one sample ends: it is the path of segments from ``first`` up to ``last``."""

    sample_id: str
    first: int
    last: int


@dataclass(frozen=True)
class Rows:
    """One packed micro-batch: who sees whom, with no mask in it.

    A token sees itself, the earlier tokens of its segment, and all tokens of its ancestor segments.

    Attributes:
        input_ids: token ids; any id at padding.
        position_ids: depth of each token along its own path; 0 at padding.
        segment_ids: segment of each token, numbered through the whole micro-batch; -1 at padding.
        parent_segment: parent of each segment, -1 for a root; a parent lies in the same row before its child.
        leaves: which sample ends where.
    """

    input_ids: Int64[np.ndarray, "row token"]
    position_ids: Int64[np.ndarray, "row token"]
    segment_ids: Int64[np.ndarray, "row token"]
    parent_segment: Int64[np.ndarray, "segment"]
    leaves: tuple[Leaf, ...]

    def __post_init__(self) -> None:
        if not self.input_ids.shape == self.position_ids.shape == self.segment_ids.shape:
            shapes = [a.shape for a in (self.input_ids, self.position_ids, self.segment_ids)]
            raise ValueError(f"input_ids, position_ids and segment_ids of Rows differ in shape: {shapes}")
        if self.parent_segment.size and not np.all(self.parent_segment < np.arange(len(self.parent_segment))):
            raise ValueError("a parent segment must come before its child")

    @property
    def is_real(self) -> Bool[np.ndarray, "row token"]:
        """True where a token is not padding."""
        return self.segment_ids != PADDING_SEGMENT

    @property
    def real_tokens(self) -> int:
        """Tokens computed for a sample; padding never counts."""
        return int(self.is_real.sum())

    @property
    def computed_tokens(self) -> int:
        """Tokens that go through the model, padding included."""
        return int(self.input_ids.size)


@dataclass(frozen=True)
class Predictions:
    """What the loss is computed on: one entry for each (hidden state, next token, weight).

    Attributes:
        position: index of the hidden state in the flattened ``Rows`` (``row * tokens + token``).
        target_ids: the next token that is to be predicted there.
        weights: signed weights; never 0 (such entries are left out).
    """

    position: Int64[np.ndarray, "prediction"]
    target_ids: Int64[np.ndarray, "prediction"]
    weights: Float64[np.ndarray, "prediction"]

    def __post_init__(self) -> None:
        if not len(self.position) == len(self.target_ids) == len(self.weights):
            sizes = (len(self.position), len(self.target_ids), len(self.weights))
            raise ValueError(f"position, target_ids and weights of Predictions differ in length: {sizes}")

    def __len__(self) -> int:
        return len(self.position)


@dataclass(frozen=True)
class MicroBatch:
    """One forward and backward: the rows, what is predicted on them, and the flat tokens they stand for."""

    rows: Rows
    predictions: Predictions
    flat_tokens: int


@dataclass(frozen=True)
class Ledger:
    """Every token of one source, accounted for; two ledgers add with ``+``.

    Counts are tokens, but for ``samples`` (counts of samples under the same names) and ``removed_characters`` (text
    that the chat template took out, which never became tokens).

    The two identities, exact:
        ``read = dropped + truncated + held_out + other_objective + sum(taught) + sum(untaught)``
        ``flat = computed + shared``

    Attributes:
        taught: tokens that are a target with weight != 0, by provenance name.
        untaught: tokens that are not, by provenance name.
        straddling: tokens whose characters belong to two provenances (they follow their last character).
        flat: tokens of the samples of the planned steps, each counted as often as it is used.
        computed: tokens that went through the model for them, without padding.
        shared: tokens that were not computed again because a prefix was shared.
    """

    read: int = 0
    dropped: int = 0
    truncated: int = 0
    held_out: int = 0
    other_objective: int = 0
    taught: Mapping[str, int] = field(default_factory=dict)
    untaught: Mapping[str, int] = field(default_factory=dict)
    straddling: int = 0
    removed_characters: int = 0
    samples: Mapping[str, int] = field(default_factory=dict)
    flat: int = 0
    computed: int = 0
    shared: int = 0

    def __add__(self, other: "Ledger") -> "Ledger":
        merged = {}
        for name in self.__dataclass_fields__:
            mine, theirs = getattr(self, name), getattr(other, name)
            merged[name] = mine + theirs if isinstance(mine, int) else _add_counts(mine, theirs)
        return Ledger(**merged)

    def imbalances(self) -> list[str]:
        """The identities that do not hold, in words; empty when every token is accounted for."""
        terms = self.dropped + self.truncated + self.held_out + self.other_objective
        told = terms + sum(self.taught.values()) + sum(self.untaught.values())
        wrong = []
        if self.read != told:
            wrong.append(f"{self.read} tokens were read but {told} are accounted for")
        if self.flat != self.computed + self.shared:
            wrong.append(f"{self.flat} flat tokens are not {self.computed} computed + {self.shared} shared")
        return wrong

    def as_dict(self) -> dict:
        """Plain numbers, for JSON."""
        return {
            n: v if isinstance(v, int) else dict(v)
            for n, v in ((n, getattr(self, n)) for n in self.__dataclass_fields__)
        }


def _add_counts(a: Mapping[str, int], b: Mapping[str, int]) -> dict[str, int]:
    return {name: a.get(name, 0) + b.get(name, 0) for name in [*a, *(n for n in b if n not in a)]}


def total(ledgers: Seq[Ledger]) -> Ledger:
    """The sum of several ledgers."""
    return sum(ledgers, Ledger())
