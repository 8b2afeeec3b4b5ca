"""From the recipe's sources to one data set: tokenise once, check every sample, hold some out, count all."""

import gc
import hashlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Sequence as Seq
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from frisket.data.account import Account
from frisket.data.chat import Template
from frisket.data.dataset import Dataset, Pieces, with_bos
from frisket.data.fill import fill_store
from frisket.data.hold_out import held_out_samples
from frisket.data.problem import Problem
from frisket.data.settings import SourceSettings
from frisket.data.source import Source, notes_of
from frisket.data.store import StoredProblem, TokenStore, open_store, store_key
from frisket.data.tokens import Codec, codec_of
from frisket.errors import DataError, counted, gather
from frisket.types import Sequence
from frisket.watch import Watcher

ProblemOf = Callable[[Sequence], str | None]
"""What is wrong with a sample (such as that nothing in it is supervised), or None."""
CheckOf = Callable[[int, Iterator[Sequence]], ProblemOf]
"""The check of a source: its number, and all its sequences, which are read only where the check asks for them."""
_CHECKED = 1024  # sequences looked at before their pages are given back
_COLUMNS = 5  # of a piece: stored, start, stop, bos, part


@dataclass
class _Part:
    """One source on its way into the data set."""

    index: int
    root: str
    settings: SourceSettings
    store: TokenStore
    limit: int | None
    account: Account = field(default_factory=Account)
    pieces: array = field(default_factory=lambda: array("i"))
    problems: list[Problem] = field(default_factory=list)
    dropped: list[dict] = field(default_factory=list)
    too_long: list[tuple[int, str]] = field(default_factory=list)

    def name(self, stored: int) -> str:
        return f"{self.index}:{self.store.name(stored)}"

    def place(self, stored: int) -> str:
        return self.root.rstrip("/") + self.store.place(stored)

    def sequences(self) -> Iterator[Sequence]:
        """All sequences of the source, whole."""
        for stored in range(len(self.store)):
            yield self.store.sequence(stored, self.name(stored), self.index)
            if stored % _CHECKED == _CHECKED - 1:
                self.store.release()

    def keep(self, stored: int, start: int, stop: int, bos: int, part: int) -> None:
        self.pieces.extend((stored, start, stop, bos, part))

    def drop(self, name: str, place: str, reason: str, tokens: int | None) -> None:
        self.dropped.append({"sample": name, "place": place, "reason": reason, "tokens": tokens})
        self.account.samples["dropped"] += 1
        if tokens is None:
            self.account.samples["dropped_unread"] += 1
        self.account.drop(tokens or 0)

    def refuse(self, name: str, problem: Problem, tokens: int | None) -> None:
        """Leave a bad sample out where the recipe says so; otherwise it is an error."""
        if self.settings.bad == "drop":
            self.drop(name, problem.place, problem.message, tokens)
        else:
            self.problems.append(problem)

    @property
    def records(self) -> int:
        """Samples that were read, usable or not."""
        return len(self.store) + sum(problem.stored < 0 for problem in self.store.facts.problems)


@contextmanager
def _no_search_for_cycles() -> Iterator[None]:
    """Switch the cyclic garbage collector off.

    It looks through the million objects of torch and transformers again and again (a fifth of the time of preparing
    GSM8K), while reference counts free all that is made here.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@_no_search_for_cycles()
def build(
    sources: Seq[SourceSettings],
    template: Template,
    tokenizer: Any,
    *,
    context: int | None,
    seed: int,
    hold_out_default: bool,
    check_of: CheckOf,
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
        hold_out_default: whether sources that say nothing hold out ``hold_out.default_count``.
        check_of: what the caller finds wrong with the samples of each source.
        watcher: told of the progress.
        records: for each source its records, where Python code has them, or None.

    Raises:
        DataError: samples that cannot be used, all of them at once with file and line; a missing or empty source.
        ConfigError: a source is held out as a whole.
    """
    codec = codec_of(tokenizer)
    parts = []
    for index, settings in enumerate(sources):
        source = Source(settings, index, records[index] if records else None)
        store = _tokenised(source, settings, template, tokenizer, watcher)
        part = _Part(index, source.root, settings, store, settings.max_tokens or context)
        problem_of = check_of(index, part.sequences())
        with watcher.progress(f"checking {settings.path}", len(store), "samples") as done:
            _check(part, codec, problem_of, done)
        parts.append(part)
    _raise_problems(parts)
    return _assemble(parts, codec, seed, hold_out_default)


def _tokenised(
    source: Source, settings: SourceSettings, template: Template, tokenizer: Any, watcher: Watcher
) -> TokenStore:
    """The source's token store: the one that is there, or a new one."""
    key = store_key([source.fingerprint, codec_of(tokenizer).fingerprint, template.text])
    store = open_store(key)
    if store is not None:
        return store
    with watcher.progress(f"tokenising {settings.path}", None, "samples") as done:
        fill_store(key, source, template, tokenizer, done)
    store = open_store(key)
    if store is None:
        raise DataError(
            f"the token store of {settings.path} vanished while it was made; set FRISKET_CACHE=FOLDER and run again"
        )
    return store


def _check(part: _Part, codec: Codec, problem_of: ProblemOf, done: Callable[[int], None]) -> None:
    """Cut and check every sample of a source; the verdicts are collected in ``part``."""
    store, account = part.store, part.account
    account.samples["read"] = part.records
    bad = {problem.stored for problem in store.facts.problems}
    lengths, rejected = store.lengths, store.rejected
    for problem in store.facts.problems:
        _refuse_stored(part, problem, lengths)
    for low in range(0, len(store), _CHECKED):
        high = min(low + _CHECKED, len(store))
        for stored, length, other in zip(
            range(low, high), lengths[low:high].tolist(), rejected[low:high].tolist(), strict=True
        ):
            account.read(length)
            account.read_rejected(other)
            if stored not in bad and _check_sample(part, stored, length, codec, problem_of):
                account.straddling += int(store.straddling[stored])
                account.removed_characters += int(store.removed[stored])
                if other:
                    account.set_aside(other)
                    account.samples["other_objective"] += 1
            else:
                account.drop_rejected(other)
        done(high - low)
        store.release()


def _refuse_stored(part: _Part, problem: StoredProblem, lengths: np.ndarray) -> None:
    """Leave out a record that was found to be bad when its tokens were made."""
    tail = part.store.facts.files[problem.file]
    message = problem.message.replace("data.N.", f"data.{part.index}.")  # the store does not know its source's number
    told = Problem(f"{part.root.rstrip('/')}{tail}:{problem.line}", message)
    name = tail.removeprefix("/") + ":" if tail else ""
    sample = "" if problem.suffix is None else f"{part.index}:{name}{problem.line}{problem.suffix}"
    part.refuse(sample, told, int(lengths[problem.stored]) if problem.stored >= 0 else None)


def _check_sample(part: _Part, stored: int, length: int, codec: Codec, problem_of: ProblemOf) -> bool:
    """Keep the pieces of a sample that can be taught; whether there are any.

    What a truncated sample lost must not be all that it taught.
    """
    cuts = _cuts(part, stored, length, codec)
    name, kept = part.name(stored), 0
    is_whole, is_split = cuts == [(0, length, -1)], len(cuts) > 1
    for number, (start, stop, bos) in enumerate(cuts, 1):
        own = f"{name}/part{number}" if is_split else name
        sequence = part.store.sequence(stored, own, part.index, start, stop)
        message = problem_of(with_bos(sequence, bos) if bos >= 0 else sequence)
        tokens = stop - start + (bos >= 0)
        if not message:
            part.keep(stored, start, stop, bos, number if is_split else 0)
            kept += 1
        elif is_split:
            part.drop(own, part.place(stored), message, tokens)
        else:
            part.refuse(
                own, Problem(part.place(stored), message if is_whole else f"after truncation {message}"), tokens
            )
    part.account.samples["split"] += max(kept - 1, 0)
    return kept > 0


def _cuts(part: _Part, stored: int, length: int, codec: Codec) -> list[tuple[int, int, int]]:
    """Start, stop and beginning token (-1 for none) of each piece of a sequence; none where it is left out."""
    limit, choice, account = part.limit, part.settings.too_long, part.account
    if limit is None or length <= limit:
        return [(0, length, -1)]
    is_text = bool(part.store.is_text[stored])
    if is_text and codec.adds_bos and codec.bos_id is not None:
        step = limit - 1
        later = [(at, min(at + step, length), codec.bos_id) for at in range(limit, length, step)]
        account.read_again(len(later))
        return [(0, limit, -1), *later]
    if is_text or choice == "split":
        # A piece begins with the last token of the one before it, so that its own first token is predicted too.
        cuts = [(at, min(at + limit, length), -1) for at in range(0, length - 1, limit - 1)]
        account.read_again(len(cuts) - 1)
        return cuts
    if choice == "truncate":
        account.truncate(length - limit)
        account.samples["truncated"] += 1
        return [(0, limit, -1)]
    if choice == "drop":
        reason = f"{length:,} tokens are more than {limit:,} (data.{part.index}.too_long=drop)"
        part.drop(part.name(stored), part.place(stored), reason, length)
    else:
        part.too_long.append((length, part.place(stored)))
    return []


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
            f"{part.settings.path}: {len(part.too_long):,} of {counted(len(part.store), 'sample')} longer than "
            f"{part.limit:,} tokens; the longest is {place} with {longest:,} (too_long also takes split and truncate)"
        )
        fixes.append(f"data.{part.index}.too_long=drop")
    # A summary of too long samples must not be pushed out by twenty bad ones.
    lines.sort(key=lambda line: "too_long also takes" not in line)
    total = sum(part.records for part in parts)
    if lines:
        heading = f"{bad:,} of {counted(total, 'sample')} cannot be used:"
        raise DataError(gather(lines, heading, "Leave them out: " + " ".join(fixes)))
    for part in parts:
        if not part.pieces:
            raise DataError(
                f"data.{part.index} ({part.settings.path}): all of {counted(len(part.dropped), 'sample')} dropped; "
                f"the first: {part.dropped[0]['place']}: {part.dropped[0]['reason']}"
            )


def _assemble(parts: Seq[_Part], codec: Codec, seed: int, hold_out_default: bool) -> Dataset:
    rows = [np.frombuffer(part.pieces, np.int32).reshape(-1, _COLUMNS) for part in parts]
    source = np.repeat(np.arange(len(parts)), [len(each) for each in rows])
    columns = [np.concatenate([each[:, column] for each in rows], dtype=np.int64) for column in range(_COLUMNS)]
    pieces = Pieces(source, *columns)
    held_out = held_out_samples([part.settings for part in parts], source, _groups(parts, rows), seed, hold_out_default)
    is_held = np.zeros(len(source), bool)
    is_held[held_out] = True
    train = np.flatnonzero(~is_held)
    for sample in held_out.tolist():
        parts[int(source[sample])].account.hold_out(int(pieces.lengths[sample]))
    digest = hashlib.sha256("\0".join(part.store.key for part in parts).encode())
    for values in (source, *columns, train, held_out):
        digest.update(values.tobytes())
    for part in parts:
        mine = source == part.index
        part.account.samples["held_out"] = int((mine & is_held).sum())
        part.account.samples["train"] = int((mine & ~is_held).sum())
    return Dataset(
        stores=tuple(part.store for part in parts),
        roots=tuple(part.root for part in parts),
        train=train,
        held_out=held_out,
        ledgers=tuple(part.account.ledger() for part in parts),
        formats=tuple(part.store.facts.format for part in parts),
        notes=tuple(note for part in parts for note in _notes(part, codec)),
        dropped=[entry for part in parts for entry in part.dropped],
        fingerprint=digest.hexdigest(),
        pieces=pieces,
    )


def _notes(part: _Part, codec: Codec) -> list[str]:
    # The bundled file names a skill on each line for the sets that it is measured with.
    notes = [] if part.settings.path == "bundled" else notes_of(part.index, part.store.facts.unused)
    samples, tokens, first = part.store.facts.unknown
    if samples:
        notes.append(
            f"data.{part.index}: text that the tokenizer has no token for in {counted(samples, 'sample')}; it writes "
            f"{codec.names.get('unk_token')} ({counted(tokens, 'token')}; the first at {part.place(first)})"
        )
    return notes


def _groups(parts: Seq[_Part], rows: Seq[np.ndarray]) -> np.ndarray:
    """Samples made of one record are one group; pieces of raw text are each their own."""
    groups, base = [], 0
    for part, pieces in zip(parts, rows, strict=True):
        stored = pieces[:, 0]
        is_text = part.store.is_text[stored]
        group = np.where(is_text, len(part.store) + 1 + np.arange(len(stored)), part.store.records[stored])
        groups.append(base + group)
        base += len(part.store) + len(stored) + 2
    return np.concatenate(groups)
