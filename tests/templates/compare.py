"""What frisket and a template's own markers call the assistant's, conversation by conversation."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
from tests.templates import oracle
from tests.templates.checks import problems
from tests.templates.conversations import conversations
from tests.templates.families import BUILT_IN, family, published, tokenizer_of, twin

from frisket.data.chat import ANSWER_ROLES, Encoded, Template, encode, encode_many, load_template
from frisket.errors import FrisketError
from frisket.types import Conversation, Provenance

RECORD = Path(__file__).with_name("differences.json")
# (who teaches it, where it stands, the text)
Difference = tuple[str, str, str]
OTHER_TOKENS: Difference = ("neither", "anywhere", "the tokens differ")

REASONS = {
    "newline": "The markers run on to the newline behind the end of turn. Generation has stopped before it.",
    "empty think block": "The template writes an empty think block where there is no reasoning, or where it took the "
    "reasoning of an earlier turn out. Nobody wrote it, and learning it is learning not to think.",
    "prompt": "The markers begin inside what `add_generation_prompt` renders. The model is given that.",
    "header of a bare answer": "Channel or recipient, rendered with and without reasoning or a call: to frisket "
    "all that stands before a bare answer is the template's. It is not in the generation prompt, so a model that "
    "has never seen this template does not learn it under `assistant`.",
    "stops at the result": "After a call generation stops at the token that opens the tool's result; that token is "
    "the end of turn. The markers end before it.",
    "empty prompt after a result": "After a tool's result this template's generation prompt is empty, though it "
    "renders a header before reasoning; all behind the prompt is the assistant's.",
    "swallowed white space": "The header's last special token takes the white space after it, the answer's own "
    "included. A token belongs to its last character, which would make the header the assistant's; frisket gives "
    "the white space to the header.",
}


@dataclass
class Outcome:
    """All conversations on one template.

    Attributes:
        compared: kinds whose mask was compared with the markers, and how it differs (how often each difference).
        checked: kinds that rendered, with what the sample checks found wrong (nothing, if all is well).
        refused: kinds that frisket refuses, with the reason.
        twins: kinds that the twin with markers renders as the same tokens, and whether the masks are equal.
    """

    compared: dict[str, Counter[Difference]] = field(default_factory=dict)
    checked: dict[str, list[str]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    twins: dict[str, bool] = field(default_factory=dict)


def template_of(name: str) -> Template:
    """A published template or a built-in one, with its family's tokenizer."""
    return load_template(name if name in BUILT_IN else None, tokenizer_of(name))


def talks(name: str) -> dict[str, Conversation]:
    """The conversations, spelling the special tokens of the template's family."""
    kind = family(name)
    return conversations(kind.specials, kind.eos, kind.bos)


@cache
def outcome(name: str) -> Outcome:
    """Encode every conversation; compare where the template has markers."""
    return examine(name)


def examine(name: str) -> Outcome:
    """As ``outcome``, computed anew."""
    found = Outcome()
    try:
        template = template_of(name)
    except FrisketError as error:
        return Outcome(refused=dict.fromkeys(talks(name), _reason(error)))
    for kind, conversation in talks(name).items():
        try:
            encoded = encode(conversation, template, tokenizer_of(name))
        except FrisketError as error:
            found.refused[kind] = _reason(error)
            continue
        endless = without_end(encoded)
        if endless is not None:
            found.refused[kind] = f"no end token follows messages[{endless}] (assistant)"
            continue
        found.checked[kind] = problems(conversation, encoded, template, tokenizer_of(name))
        if "endgeneration" in template.text:
            theirs = oracle.marked(conversation, tokenizer_of(name), published()[name])
            found.compared[kind] = differences(encoded, theirs)
        other = twin(name)
        if other and same_tokens(encoded, conversation, other):
            theirs = encode(conversation, template_of(other), tokenizer_of(other))
            found.twins[kind] = bool((taught(encoded) == taught(theirs)).all())
    return found


def same_tokens(encoded: Encoded, conversation: Conversation, other: str) -> bool:
    """Whether another template renders a conversation as the same tokens."""
    theirs = next(encode_many([conversation], template_of(other), tokenizer_of(other)))
    return isinstance(theirs, Encoded) and theirs.sequence.input_ids.tolist() == encoded.sequence.input_ids.tolist()


def without_end(encoded: Encoded) -> int | None:
    """The first assistant message after which the model would not learn to stop."""
    s = encoded.sequence
    missing = np.setdiff1d(s.turns[taught(encoded)], s.turns[s.roles == Provenance.END_OF_TURN])
    return int(missing[0]) if len(missing) else None


def taught(encoded: Encoded) -> np.ndarray:
    """What policy ``assistant`` teaches."""
    return np.isin(encoded.sequence.roles, ANSWER_ROLES)


def differences(encoded: Encoded, theirs: oracle.Marked) -> Counter[Difference]:
    """Maximal runs of tokens that only one of the two teaches; or that the tokens themselves differ."""
    if encoded.sequence.input_ids.tolist() != theirs.ids.tolist():
        return Counter([OTHER_TOKENS])
    ours = taught(encoded)
    ends = encoded.sequence.roles == Provenance.END_OF_TURN
    found: Counter[Difference] = Counter()
    for first, last in _runs(np.where(ours == theirs.taught, 0, 1 + ours)):
        text = theirs.text[theirs.starts[first] : theirs.ends[last]]
        place = "after an end" if ends[first] or (first and ends[first - 1]) else "before a field"
        found["frisket" if ours[first] else "markers", place, text] += 1
    return found


def _runs(values: np.ndarray) -> Iterator[tuple[int, int]]:
    """First and last index of each maximal run of one value other than 0."""
    edges = np.flatnonzero(np.diff(values)) + 1
    for first, end in zip([0, *edges], [*edges, len(values)], strict=True):
        if values[first]:
            yield int(first), int(end) - 1


def _reason(error: Exception) -> str:
    """The error without the sample's place and the template's name, which are the same for all."""
    text = str(error).split("\n")[0].split("; model.template=plain")[0].split(", so the model would not")[0]
    for words in ("talks.jsonl:", "template 'the tokenizer's own' "):
        text = text.partition(words)[2] or text
    return text.removeprefix("does not render this conversation: ")


def recorded() -> Mapping[str, list[dict]]:
    """The differences and refusals that are known, each with its reason."""
    return json.loads(RECORD.read_text(encoding="utf-8"))


def record_of(names: list[str], known: Mapping[str, list[dict]]) -> dict[str, list[dict]]:
    """Everything that was found, in the form of the record; a difference without a known reason gets ``?``."""
    reasons = {(r["template"], r["taught_by"], r["place"], r["text"]): r["reason"] for r in known["differences"]}
    found: dict[str, list[dict]] = {"differences": [], "refusals": []}
    for name in names:
        where: dict[Difference, dict[str, int]] = {}
        for kind, counts in outcome(name).compared.items():
            for difference, count in counts.items():
                where.setdefault(difference, {})[kind] = count
        for (side, place, text), kinds in sorted(where.items()):
            reason = reasons.get((name, side, place, text), "?")
            entry = {"template": name, "taught_by": side, "place": place, "text": text, "reason": reason, "in": kinds}
            found["differences"].append(entry)
        refusals: dict[str, list[str]] = {}
        for kind, why in outcome(name).refused.items():
            refusals.setdefault(why, []).append(kind)
        found["refusals"] += [{"template": name, "why": why, "in": kinds} for why, kinds in refusals.items()]
    return found
