"""From the recipe's sources to one data set: read, tokenise once, check every sample, hold some out, count all."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from frisket.data.chat import ANSWER_ROLES, Template, encode_many
from frisket.data.dataset import Dataset, Pieces, with_bos
from frisket.data.hold_out import held_out_samples
from frisket.data.problem import Problem
from frisket.data.settings import SourceSettings
from frisket.data.source import SourceReading, read_conversations
from frisket.data.store import StoreWriter, TokenStore, open_store, store_key
from frisket.data.tokens import Codec, codec_of
from frisket.errors import DataError, gather
from frisket.types import Conversation, Ledger, Provenance, Sequence
from frisket.watch import Watcher

ProblemOf = Callable[[Sequence], str | None]
_PROGRESS_EVERY = 64


@dataclass
class _Part:
    """One source on its way into the data set."""

    index: int
    settings: SourceSettings
    reading: SourceReading
    store: TokenStore
    limit: int | None
    pieces: list[tuple[int, int, int, int]] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    dropped: list[dict] = field(default_factory=list)
    too_long: list[tuple[int, str]] = field(default_factory=list)
    truncated: int = 0
    samples: dict[str, int] = field(default_factory=lambda: {"dropped": 0, "truncated": 0, "split": 0})

    def drop(self, name: str, place: str, reason: str, tokens: int | None) -> None:
        self.dropped.append({"sample": name, "place": place, "reason": reason, "tokens": tokens})
        self.samples["dropped"] += 1

    def refuse(self, name: str, problem: Problem, tokens: int | None) -> None:
        """Leave a bad sample out where the recipe says so; otherwise it is an error."""
        if self.settings.bad == "drop":
            self.drop(name, problem.place, problem.message, tokens)
        else:
            self.problems.append(problem)


def build(
    sources: Seq[SourceSettings],
    template: Template,
    tokenizer: Any,
    *,
    context: int | None,
    seed: int,
    hold_out_default: bool,
    problem_of: ProblemOf,
    watcher: Watcher,
    records: Seq[Iterable[Mapping] | None] | None = None,
) -> Dataset:
    """Read, tokenise and check all sources.

    Args:
        sources: the recipe's ``data``.
        template: chat template of the model.
        tokenizer: tokenizer of the model.
        context: longest sequence of the model in tokens; the limit of sources that give none.
        seed: of the hold-out.
        hold_out_default: whether sources that say nothing hold out 2 %.
        problem_of: what the caller finds wrong with a sample (such as that nothing in it is supervised), or None.
        watcher: told of the progress.
        records: for each source its records, where Python code has them, or None.

    Raises:
        DataError: samples that cannot be used, all of them at once with file and line; a missing or empty source.
        ConfigError: a source is held out as a whole.
    """
    codec = codec_of(tokenizer)
    parts = []
    for index, settings in enumerate(sources):
        reading = _read(settings, index, records[index] if records else None, watcher)
        store = _tokenised(reading, settings, template, tokenizer, watcher)
        part = _Part(index, settings, reading, store, settings.max_tokens or context)
        _check(part, codec, problem_of)
        parts.append(part)
    _raise_problems(parts)
    return _assemble(parts, seed, hold_out_default)


def _read(settings: SourceSettings, index: int, records: Iterable[Mapping] | None, watcher: Watcher) -> SourceReading:
    with watcher.progress(f"reading {settings.path}", None, "samples") as done:
        reading = read_conversations(settings, index, records)
        done(len(reading.conversations))
    return reading


def _tokenised(
    reading: SourceReading, settings: SourceSettings, template: Template, tokenizer: Any, watcher: Watcher
) -> TokenStore:
    """The source's token store: the one that is there, or a new one."""
    key = store_key([reading.fingerprint, codec_of(tokenizer).fingerprint, template.text])
    store = open_store(key)
    if store is not None:
        return store
    conversations = reading.conversations
    results = encode_many(_with_rejected(conversations), template, tokenizer)
    with (
        StoreWriter(key) as writer,
        watcher.progress(f"tokenising {settings.path}", len(conversations), "samples") as done,
    ):
        for index, conversation in enumerate(conversations):
            result = next(results)
            rejected = next(results) if conversation.rejected else None
            if isinstance(result, Problem):
                writer.add_problem(index, result)
            elif isinstance(rejected, Problem):
                writer.add_problem(index, replace(rejected, message=f"the rejected answer: {rejected.message}"))
            else:
                first = _context_length(conversation)
                other = int((rejected.sequence.turns >= first).sum()) if rejected else 0
                writer.add(index, result, other)
            if index % _PROGRESS_EVERY == _PROGRESS_EVERY - 1:
                done(_PROGRESS_EVERY)
        done(len(conversations) % _PROGRESS_EVERY)
    store = open_store(key)
    if store is None:
        raise DataError(
            f"the token store of {settings.path} vanished while it was made; set FRISKET_CACHE=FOLDER and run again"
        )
    return store


def _with_rejected(conversations: Seq[Conversation]) -> Iterator[Conversation]:
    """Each conversation, and after it the one that ends with its rejected answer (only its tokens are counted)."""
    for conversation in conversations:
        yield conversation
        if conversation.rejected:
            context = conversation.messages[: _context_length(conversation)]
            yield replace(conversation, messages=(*context, *conversation.rejected), rejected=())


def _context_length(conversation: Conversation) -> int:
    """Messages before the answer: up to the last one that is not the assistant's or a tool's."""
    asked = [i for i, m in enumerate(conversation.messages) if m.role not in ("assistant", "tool")]
    return asked[-1] + 1 if asked else 0


def _check(part: _Part, codec: Codec, problem_of: ProblemOf) -> None:
    """Cut and check every sample of a source; the verdicts are collected in ``part``."""
    for problem in part.reading.problems:
        part.refuse("", problem, None)
    conversations, store = part.reading.conversations, part.store
    for index, message in store.problems:
        conversation = conversations[index]
        part.refuse(conversation.sample_id, Problem(conversation.place, message), None)
    for stored, (index, length) in enumerate(zip(store.conversations.tolist(), store.lengths.tolist(), strict=True)):
        conversation = conversations[index]
        cuts = _cuts(part, conversation, stored, length, codec)
        if len(cuts) == 1 and cuts[0][1] == length:
            _check_whole(part, conversation, stored, length, codec, problem_of)
        else:
            _check_cut(part, conversation, stored, cuts, problem_of)


def _cuts(
    part: _Part, conversation: Conversation, stored: int, length: int, codec: Codec
) -> list[tuple[int, int, int]]:
    """Start, stop and beginning token (-1 for none) of each piece of a sequence; none where it is left out."""
    limit, choice = part.limit, part.settings.too_long
    if limit is None or length <= limit:
        return [(0, length, -1)]
    if conversation.text is not None and codec.adds_bos and codec.bos_id is not None:
        step = limit - 1
        return [(0, limit, -1), *((at, min(at + step, length), codec.bos_id) for at in range(limit, length, step))]
    if conversation.text is not None or choice == "split":
        # A piece begins with the last token of the one before it, so that its own first token is predicted too.
        return [(at, min(at + limit, length), -1) for at in range(0, length - 1, limit - 1)]
    if choice == "truncate":
        part.truncated += length - limit
        part.samples["truncated"] += 1
        return [(0, limit, -1)]
    if choice == "drop":
        reason = f"{length:,} tokens are more than {limit:,} (data.{part.index}.too_long=drop)"
        part.drop(conversation.sample_id, conversation.place, reason, length)
    else:
        part.too_long.append((length, conversation.place))
    return []


def _check_whole(
    part: _Part, conversation: Conversation, stored: int, length: int, codec: Codec, problem_of: ProblemOf
) -> None:
    sequence = part.store.sequence(stored, conversation.sample_id, part.index)
    message = _token_problem(sequence, conversation, codec) or problem_of(sequence)
    if message:
        part.refuse(conversation.sample_id, Problem(conversation.place, message), length)
    else:
        _keep(part, conversation, stored, (0, length, -1), conversation.sample_id)


def _check_cut(
    part: _Part, conversation: Conversation, stored: int, cuts: Seq[tuple[int, int, int]], problem_of: ProblemOf
) -> None:
    """Keep the pieces that can be taught; what a truncated sample lost must not be all that it taught."""
    kept = 0
    for number, (start, stop, bos) in enumerate(cuts, 1):
        name = conversation.sample_id if len(cuts) == 1 else f"{conversation.sample_id}/part{number}"
        sequence = part.store.sequence(stored, name, part.index, start, stop)
        message = problem_of(with_bos(sequence, bos) if bos >= 0 else sequence)
        if not message:
            _keep(part, conversation, stored, (start, stop, bos), name)
            kept += 1
        elif len(cuts) == 1:
            part.refuse(name, Problem(conversation.place, f"after truncation {message}"), stop - start)
        else:
            part.drop(name, conversation.place, message, stop - start + (bos >= 0))
    part.samples["split"] += max(kept - 1, 0)


def _keep(part: _Part, conversation: Conversation, stored: int, cut: tuple[int, int, int], name: str) -> None:
    part.pieces.append((stored, *cut))
    part.ids.append(name)
    part.places.append(conversation.place)


def _token_problem(sequence: Sequence, conversation: Conversation, codec: Codec) -> str | None:
    """What is wrong with a whole sample, seen from its tokens."""
    ids = sequence.input_ids
    if not len(ids):
        return "it has no tokens"
    if len(ids) > 1 and codec.bos_id is not None and ids[0] == ids[1] == codec.bos_id != codec.eos_id:
        return f"it begins with two beginning tokens ({codec.names.get('bos_token')}); one of template and text must go"
    if conversation.input_ids is not None:
        return None
    taught = np.isin(sequence.roles, ANSWER_ROLES) & ~(sequence.data_weights == 0)
    ended = sequence.turns[sequence.roles == Provenance.END_OF_TURN]
    missing = np.setdiff1d(sequence.turns[taught], ended)
    if len(missing):
        return f"no end token follows message {missing[0] + 1} (assistant), so the model would not learn to stop"
    return None


def _raise_problems(parts: Seq[_Part]) -> None:
    """One error for all problems of all sources."""
    lines, fixes, bad = [], [], 0
    for part in parts:
        lines += [str(problem) for problem in part.problems]
        bad += len(part.problems) + len(part.too_long)
        if part.problems:
            fixes.append(f"data.{part.index}.bad=drop")
    for part in parts:
        if not part.too_long:
            continue
        longest, place = max(part.too_long)
        lines.append(
            f"{part.settings.path}: {len(part.too_long):,} of {len(part.store):,} samples are longer than "
            f"{part.limit:,} tokens; the longest is {place} with {longest:,} (too_long also takes split and truncate)"
        )
        fixes.append(f"data.{part.index}.too_long=drop")
    # A summary of too long samples must not be pushed out by twenty bad ones.
    lines.sort(key=lambda line: "too_long also takes" not in line)
    total = sum(len(part.reading.conversations) + len(part.reading.problems) for part in parts)
    if lines:
        heading = f"{bad:,} of {total:,} samples cannot be used:"
        raise DataError(gather(lines, heading, "Leave them out: " + " ".join(fixes)))
    for part in parts:
        if not part.pieces:
            raise DataError(
                f"data.{part.index} ({part.settings.path}): all {len(part.dropped):,} samples were dropped; "
                f"the first: {part.dropped[0]['place']}: {part.dropped[0]['reason']}"
            )


def _assemble(parts: Seq[_Part], seed: int, hold_out_default: bool) -> Dataset:
    rows = np.array([(part.index, *piece) for part in parts for piece in part.pieces], np.int64).reshape(-1, 5)
    pieces = Pieces(*(np.ascontiguousarray(rows[:, column]) for column in range(5)))
    settings = [part.settings for part in parts]
    held_out = held_out_samples(settings, pieces.source, _groups(parts), seed, hold_out_default)
    train = np.setdiff1d(np.arange(len(rows)), held_out)
    digest = hashlib.sha256("\0".join(part.store.key for part in parts).encode())
    for array in (rows, train, held_out):
        digest.update(array.astype(np.int64).tobytes())
    return Dataset(
        stores=tuple(part.store for part in parts),
        train=train,
        held_out=held_out,
        ledgers=tuple(_ledger(part, pieces, held_out) for part in parts),
        formats=tuple(part.reading.format for part in parts),
        notes=tuple(note for part in parts for note in part.reading.notes),
        dropped=[entry for part in parts for entry in part.dropped],
        fingerprint=digest.hexdigest(),
        pieces=pieces,
        sample_ids=tuple(name for part in parts for name in part.ids),
        places=tuple(place for part in parts for place in part.places),
    )


def _groups(parts: Seq[_Part]) -> np.ndarray:
    """Samples made of one record are one group; pieces of raw text are each their own."""
    numbers: dict[tuple, int] = {}
    groups = []
    for part in parts:
        for (stored, *_), name, place in zip(part.pieces, part.ids, part.places, strict=True):
            conversation = part.reading.conversations[int(part.store.conversations[stored])]
            key = (part.index, name if conversation.text is not None else place)
            groups.append(numbers.setdefault(key, len(numbers)))
    return np.array(groups, np.int64)


def _ledger(part: _Part, pieces: Pieces, held_out: np.ndarray) -> Ledger:
    mine = pieces.source == part.index
    is_held = np.zeros(len(mine), bool)
    is_held[held_out] = True
    kept = np.unique(pieces.stored[mine])
    straddling, removed, other = part.store.counts[kept].sum(axis=0).tolist()
    dropped = sum(entry["tokens"] or 0 for entry in part.dropped)
    answers = int((part.store.counts[kept, 2] > 0).sum())
    samples = {
        "read": len(part.reading.conversations) + len(part.reading.problems),
        **part.samples,
        "held_out": int((mine & is_held).sum()),
        "other_objective": answers,
        "train": int((mine & ~is_held).sum()),
    }
    return Ledger(
        read=int(pieces.lengths[mine].sum()) + dropped + part.truncated + other,
        dropped=dropped,
        truncated=part.truncated,
        held_out=int(pieces.lengths[mine & is_held].sum()),
        other_objective=other,
        straddling=straddling,
        removed_characters=removed,
        samples=samples,
    )
