"""A source, read as a stream, into a new token store: rendered, tokenised, checked and written batch by batch."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from frisket.data.chat import Template, render_of
from frisket.data.encoding import BATCH, Batch, encode_batches
from frisket.data.problem import Problem
from frisket.data.source import Source
from frisket.data.store import Facts, StoredProblem, StoreWriter
from frisket.data.tokens import codec_of
from frisket.data.verify import verify
from frisket.types import Conversation


def fill_store(key: str, source: Source, template: Template, tokenizer: Any, done: Callable[[int], None]) -> None:
    """Write the store ``key``.

    Args:
        done: told how many samples have been written since it was last called.

    Raises:
        DataError: the source is missing, empty, or of no known format; the cache cannot be written.
    """
    codec = codec_of(tokenizer)
    with StoreWriter(key) as writer:
        filling = _Filling(source, writer)
        for batch in encode_batches(_with_rejected(filling.conversations()), render_of(template, codec), codec):
            verdict = verify(batch, codec)
            done(filling.add(batch, verdict.problems, verdict.unknown))
        writer.tell(filling.facts())


class _Filling:
    """What is said of the sequences of a source while they are written."""

    def __init__(self, source: Source, writer: StoreWriter) -> None:
        self._source, self._writer = source, writer
        self._root = source.root.rstrip("/")
        self._files: dict[str, int] = {}
        self._suffixes: dict[str, int] = {}
        self._problems: list[StoredProblem] = []
        self._unknown = [0, 0, -1]
        self._sequences = self._tokens = self._runs = 0

    def conversations(self) -> Iterator[list[Conversation]]:
        """The source's conversations in batches; records that cannot be read are noted."""
        batch: list[Conversation] = []
        for item in self._source:
            if isinstance(item, Problem):
                file, _, line = item.place.rpartition(":")
                self._problems.append(StoredProblem(-1, self._file(file), int(line), None, item.message))
                continue
            batch.append(item)
            if len(batch) == BATCH:
                yield batch
                batch = []
        if batch:
            yield batch

    def add(self, batch: Batch, problems: Mapping[int, str], unknown: Mapping[int, int]) -> int:
        """Write the sequences of a batch; returns how many conversations it had."""
        own = len(batch.conversations) - sum(bool(each.rejected) for each in batch.conversations)
        numbers = [number for number in range(own) if number in batch.places]
        stored = dict(zip(numbers, range(self._sequences, self._sequences + len(numbers)), strict=True))
        wrong = {**problems, **batch.problems}
        rejected = np.zeros(own, np.int64)
        with_rejected = (number for number in range(own) if batch.conversations[number].rejected)
        for twin, number in enumerate(with_rejected, own):
            if twin in wrong:
                wrong.setdefault(number, f"the rejected answer: {wrong[twin]}")
            first = context_length(batch.conversations[number])
            low, high = batch.offsets[twin : twin + 2]
            rejected[number] = np.count_nonzero(batch.turns[low:high] >= first)
        for number in sorted(number for number in wrong if number < own):
            file, line, suffix = self._where(batch.conversations[number])
            name = list(self._suffixes)[suffix]
            self._problems.append(StoredProblem(stored.get(number, -1), file, line, name, wrong[number]))
        for number in sorted(number for number in unknown if number in stored):
            first = self._unknown[2] if self._unknown[0] else stored[number]
            self._unknown = [self._unknown[0] + 1, self._unknown[1] + unknown[number], first]
        self._write(batch, numbers, own, rejected)
        return own

    def _write(self, batch: Batch, numbers: list[int], own: int, rejected: np.ndarray) -> None:
        bounds = batch.offsets[: own + 1]
        tokens = int(bounds[-1])
        starts = bounds[:-1][numbers]
        sizes = np.diff(bounds)[numbers]
        is_new = np.zeros(tokens, bool)
        is_new[1:] = (np.diff(batch.roles[:tokens]) != 0) | (np.diff(batch.turns[:tokens]) != 0)
        is_new[starts[sizes > 0]] = True
        runs = np.flatnonzero(is_new)
        weighted = slice(0, int(np.searchsorted(batch.weighted, tokens)))
        where = np.array([self._where(batch.conversations[n]) for n in numbers], np.int64).reshape(-1, 3)
        self._writer.append(
            {
                "input_ids": batch.input_ids[:tokens],
                "offsets": self._tokens + starts + sizes,
                "run_offsets": self._runs + np.searchsorted(runs, starts + sizes),
                "run_sizes": np.diff(runs, append=tokens),
                "run_roles": batch.roles[runs],
                "run_turns": batch.turns[runs],
                "weighted": batch.weighted[weighted] + self._tokens,
                "weights": batch.weights[weighted],
                "is_own": batch.is_own[weighted],
                "straddling": batch.straddling[numbers],
                "removed": batch.removed[numbers],
                "rejected": rejected[numbers],
                "is_text": np.array([batch.conversations[n].text is not None for n in numbers], bool),
                "file": where[:, 0],
                "line": where[:, 1],
                "suffix": where[:, 2],
            }
        )
        self._sequences += len(numbers)
        self._tokens += tokens
        self._runs += len(runs)

    def _where(self, conversation: Conversation) -> tuple[int, int, int]:
        """Numbers of the file, the line, and the suffix that tells the samples of one record apart."""
        file = self._file(conversation.file)
        inner = conversation.file[len(self._root) :].removeprefix("/")
        head = f"{conversation.source}:{inner}{':' if inner else ''}{conversation.line}"
        suffix = conversation.sample_id.removeprefix(head)
        return file, conversation.line, self._suffixes.setdefault(suffix, len(self._suffixes))

    def _file(self, name: str) -> int:
        return self._files.setdefault(name[len(self._root) :], len(self._files))

    def facts(self) -> Facts:
        """What is known of the source as a whole, once all of it is written."""
        samples, tokens, first = self._unknown
        return Facts(
            self._source.format,
            self._source.unused,
            tuple(self._files),
            tuple(self._suffixes),
            tuple(sorted(self._problems, key=lambda problem: (problem.file, problem.line))),
            (samples, tokens, first),
        )


def _with_rejected(batches: Iterator[list[Conversation]]) -> Iterator[list[Conversation]]:
    """Behind the conversations of a batch, for each with a rejected answer the one that ends with it."""
    for batch in batches:
        yield [
            *batch,
            *(
                replace(each, messages=(*each.messages[: context_length(each)], *each.rejected), rejected=())
                for each in batch
                if each.rejected
            ),
        ]


def context_length(conversation: Conversation) -> int:
    """Messages before the answer: up to the last one that is not the assistant's or a tool's."""
    asked = [i for i, m in enumerate(conversation.messages) if m.role not in ("assistant", "tool")]
    return asked[-1] + 1 if asked else 0
