"""The system message that a run's training samples share: without it the model is asked what it was never taught."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from frisket.data.chat import encode
from frisket.errors import DataError
from frisket.run.folder import SUMMARY, read_json
from frisket.run.prepare import Prepared
from frisket.types import Conversation, Message, Provenance, Sequence

_LOOKED_AT = 256  # samples, evenly spaced: where hardly any of them begins alike, the others are not read
_MOST = 0.5


@dataclass(frozen=True)
class SystemMessage:
    """The system message of most training samples.

    Attributes:
        samples: training samples that have it; ``of`` so many.
    """

    text: str
    samples: int
    of: int

    @property
    def is_everywhere(self) -> bool:
        """Whether every training sample has it."""
        return self.samples == self.of

    def told(self) -> str:
        """What a person who serves the model must know, in one line."""
        of = "every training sample" if self.is_everywhere else f"{self.samples:,} of {self.of:,} training samples"
        return f"send the system message of {of} with every request: {json.dumps(self.text, ensure_ascii=False)}"


class _Head(NamedTuple):
    """Token ids of a system message, with the one before and the one behind, which may hold its last characters."""

    ids: bytes
    before: int
    behind: int


def shared_system(prepared: Prepared) -> dict[str, Any] | None:
    """The system message of at least half of the training samples, for ``summary.json``; None where there is none.

    Only token ids are stored, so the text is decoded, and given only where it renders to the same ids again.
    """
    train = prepared.order.families.flat
    few = train[np.linspace(0, len(train) - 1, min(len(train), _LOOKED_AT)).astype(int)]
    if _most(prepared, few)[1] < _MOST / 2 * len(few):
        return None
    head, samples = _most(prepared, train)
    if head is None or samples < _MOST * len(train):
        return None
    text = next((text for text in _candidates(head, prepared.tokenizer) if _rendered(text, prepared) == head), None)
    return None if text is None else {"text": text, "samples": samples, "of": len(train)}


def system_of(folder: Path) -> SystemMessage | None:
    """What a finished run stored; None where an older one stored nothing."""
    found: Mapping[str, Any] | None = read_json(folder / SUMMARY).get("system")
    return None if found is None else SystemMessage(found["text"], found["samples"], found["of"])


def _most(prepared: Prepared, samples: np.ndarray) -> tuple[_Head | None, int]:
    """The commonest system message of some samples, and how many have it."""
    found = Counter(filter(None, map(_head, prepared.dataset.walk(samples))))
    return found.most_common(1)[0] if found else (None, 0)


def _head(sequence: Sequence) -> _Head | None:
    """The only system message of a sample; None where there is none, or more than one."""
    at = np.flatnonzero(sequence.roles == Provenance.SYSTEM)
    if not len(at) or at[-1] - at[0] != len(at) - 1 or at[-1] + 1 == len(sequence):
        return None
    ids = sequence.input_ids
    return _Head(ids[at].tobytes(), int(ids[at[0] - 1]) if at[0] else -1, int(ids[at[-1] + 1]))


def _candidates(head: _Head, tokenizer: Any) -> list[str]:
    """The text of the tokens; then without characters at its start, and with characters of the token behind.

    A token belongs to the text of its last character: the first may begin in the template, and in ``.\\n`` the full
    stop belongs to the template's line end.
    """
    ids = np.frombuffer(head.ids, np.int32).tolist()
    first, text, more = (
        tokenizer.decode(each, clean_up_tokenization_spaces=False) for each in (ids[:1], ids, [*ids, head.behind])
    )
    ends = range(len(text), len(more) + 1)
    return [more[start:end] for start in range(max(1, len(first))) for end in ends]


def _rendered(text: str, prepared: Prepared) -> _Head | None:
    messages = (Message("system", text), Message("user", "a"), Message("assistant", "b"))
    try:
        encoded = encode(Conversation("system", 0, "system", 1, messages), prepared.template, prepared.tokenizer)
    except DataError:
        return None
    return _head(encoded.sequence)
