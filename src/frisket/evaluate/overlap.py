"""Contamination of the evaluation data: how much of each sample also stands in the training data.

Words are lower-cased and without punctuation; a run of 13 of them that also stands in a training sample is *seen*
(Brown et al. 2020, arXiv 2005.14165, appendix C). A sample is judged by the share of its words that lie in such a run,
with the bounds 20 % and 80 % (Touvron et al. 2023, arXiv 2307.09288, appendix A.6: below 20 % "clean", from 80 % on
"dirty"): a share of words, not of runs, because one changed word breaks 13 runs and changes one word.

Differs, from Brown et al.: their number of words is the 5th percentile of the lengths of a set, at least 8 and at most
13; here it is 13 for every set, and a text of fewer words counts only as a whole, when it equals a training text (lower
case, single spaces, punctuation kept: "41 + 28" is not "41 - 28"). They ignore runs that stand in more than 10 training
documents; here the bound is 5 % of the training samples, at least 10 and at most 50, because instruction data repeats
on purpose. Runs above it are *boilerplate*: they are not counted, nor are their words, nor a run with fewer than 8
words (their smallest number) outside them. From Touvron et al.: words instead of tokens, so that the result does not
hang on a tokenizer, and no run continues over a word that differs.

Prompt and answer are looked up apart, each in prompts and answers of the training data. A short answer alone ("72",
"yes") says nothing and is never counted; short prompts are.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, islice, repeat
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int64, UInt64

from frisket.errors import counted
from frisket.types import Conversation, Message

WORDS = 13
FEWEST_OWN_WORDS = 8
MOST, SOME = 0.8, 0.2
SMALLEST_LIMIT, LARGEST_LIMIT = 10, 50
SHOWN = 5

_IDEOGRAPHS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
_WORD = re.compile(f"[{_IDEOGRAPHS}]|[^\\W_{_IDEOGRAPHS}]+")  # Chinese and Japanese have no spaces: a sign is a word
_BATCH = 512
_BASE = np.uint64(0x9E3779B97F4A7C15)
_UNKNOWN = 0
_END = ("",)  # no word: no run goes on over it


class SampleText(NamedTuple):
    """The texts of one sample; ``name`` is how a person finds it, for example ``file:line``."""

    name: str
    prompt: str
    answer: str


@dataclass(frozen=True)
class Share:
    """Samples of which at least 80 % (``most``) and at least 20 % (``some``, those included) of the words were seen."""

    most: int
    some: int


@dataclass(frozen=True)
class Match:
    """One evaluation sample and the training sample that shares most with it.

    Attributes:
        name: of the evaluation sample.
        train: name of the training sample.
        whole: share of all its words that were seen; likewise of the prompt and of the answer alone.
    """

    name: str
    train: str
    whole: float
    prompt: float
    answer: float


@dataclass(frozen=True)
class Overlap:
    """What one evaluation set shares with the training data.

    Attributes:
        samples: how many the set has.
        train_samples: how many they were compared with.
        duplicates: samples whose prompt and answer both equal those of one training sample.
        same_prompt: samples whose prompt equals that of a training sample, duplicates among them.
        seen: those, and samples of which at least 80 % of the words were seen: their score says little.
        whole: samples by the share of all their words that were seen; a duplicate counts as seen.
        prompt: the same of prompts alone.
        answer: the same of answers alone.
        boilerplate: different runs of the set that so many training samples hold that they were not counted.
        boilerplate_from: runs in more training samples than this are boilerplate.
        short: samples without a text of 13 words, of which only whole prompts and whole samples were compared.
        without_text: samples without any text (ready-made tokens), which could not be compared.
        worst: the samples that share most, at most five.
    """

    samples: int
    train_samples: int
    duplicates: int
    same_prompt: int
    seen: int
    whole: Share
    prompt: Share
    answer: Share
    boilerplate: int
    boilerplate_from: int
    short: int
    without_text: int
    worst: tuple[Match, ...]

    def as_dict(self) -> dict:
        """Plain values, the sentence and what to do, for JSON."""
        return {
            **asdict(self),
            "worst": [asdict(match) for match in self.worst],
            "sentence": self.sentence(),
            "action": self.action(),
        }

    def sentence(self) -> str:
        """What was found, and what it means for the score."""
        if self.without_text == self.samples:
            return "The evaluation samples have no text, so nothing was compared."
        of_all = f"of {counted(self.samples, 'evaluation sample')}"
        if self.seen:
            return (
                f"{self.seen:,} {of_all} {'is' if self.seen == 1 else 'are'} trained on as well ({self._how()}): "
                "that score shows memory, not learning."
            )
        short = f" ({self.short:,} under {WORDS} words, compared only as wholes)" if self.short else ""
        if self.whole.some:
            share = "shares" if self.whole.some == 1 else "share"
            return f"{self.whole.some:,} {of_all} {share} a fifth or more of the words with the training data{short}."
        return f"None {of_all} is trained on as well, whole or by a fifth of its words{short}."

    def _how(self) -> str:
        prompts = self.same_prompt - self.duplicates
        others = self.seen - self.same_prompt
        kinds = ((self.duplicates, "word for word"), (prompts, "with another answer"), (others, "nearly word for word"))
        return ", ".join(f"{count:,} {kind}" for count, kind in kinds if count)

    def action(self) -> str:
        """What a person can do about it; nothing where nothing need be done."""
        if not self.seen:
            return ""
        worst = self.worst[0]
        return (
            f"Take them out on one side (first: {worst.name}, trained on as {worst.train}), or measure on a file of "
            "its own: 'evaluate.learning=[{name: test, path: FILE}]'"
        )


def sample_text(conversation: Conversation) -> SampleText:
    """Prompt and answer of a conversation: all before its last assistant message, and that; of raw text the text.

    The answer is empty where no assistant speaks; both are where the data gives ready-made tokens.
    """
    messages = conversation.messages
    last = max((i for i, message in enumerate(messages) if message.role == "assistant"), default=len(messages))
    prompt = "\n".join(_message_text(message) for message in messages[:last])
    answer = "".join(_message_text(message) for message in messages[last : last + 1])
    return SampleText(conversation.place, prompt, conversation.text or answer)


def overlaps(train: Iterable[SampleText], sets: Mapping[str, Iterable[SampleText]]) -> dict[str, Overlap]:
    """Compare evaluation sets with the training data, which is read once and not kept.

    Memory grows with the evaluation sets alone. Runs are compared by 64-bit hashes: with a million runs of evaluation
    data and a billion of training data the chance of one wrong match is 5e-5.

    Args:
        train: the training samples; an iterator will do.
        sets: the evaluation samples by name of the set.
    """
    samples = {name: list(texts) for name, texts in sets.items()}
    index = _Index([sample for texts in samples.values() for sample in texts])
    remaining = iter(train)
    while batch := list(islice(remaining, _BATCH)):
        index.look(batch)
    found, start = {}, 0
    for name, texts in samples.items():
        found[name] = _overlap(index, texts, start)
        start += len(texts)
    return found


@dataclass(frozen=True)
class _Field:
    """One text of an evaluation sample: its words and the runs that start at each word but the last 12."""

    words: int
    runs: Int64[np.ndarray, "run"]


@dataclass
class _Texts:
    """Training samples that hold one text as a whole: how many, and the first."""

    count: int = 0
    first: str = ""

    def see(self, name: str) -> None:
        """Count one more."""
        self.count, self.first = self.count + 1, self.first or name


class _Index:
    """The words, runs and texts of the evaluation data, and what of them was seen in the training data."""

    def __init__(self, samples: Sequence[SampleText]) -> None:
        self._vocabulary: dict[str, int] = {}
        fields = [_words(text) for sample in samples for text in (sample.prompt, sample.answer)]
        for word in (word for words in fields for word in words):
            self._vocabulary.setdefault(word, len(self._vocabulary) + 1)
        self._hash_of_word = np.array([0, *map(_hash_of, self._vocabulary)], np.uint64)
        hashes = [self._hashes(words) for words in fields]
        self.runs = np.unique(np.concatenate([h for h, _ in hashes])) if hashes else np.zeros(0, np.uint64)
        places = [
            _Field(len(words), np.searchsorted(self.runs, h).astype(np.int64))
            for words, (h, _) in zip(fields, hashes, strict=True)
        ]
        self.fields = list(zip(places[::2], places[1::2], strict=True))
        self.counts = np.zeros(len(self.runs), np.int64)
        self.prompts = {_whole(sample.prompt): _Texts() for sample in samples if sample.prompt.strip()}
        self.pairs = {_pair(sample): _Texts() for sample in samples}
        self._paired = {_whole(sample.prompt) for sample in samples}
        self.train_samples = 0
        self.names: dict[int, str] = {}
        self._sightings: list[tuple[np.ndarray, np.ndarray]] = []

    @property
    def limit(self) -> int:
        """Runs and prompts in more training samples than this are boilerplate."""
        return min(LARGEST_LIMIT, max(SMALLEST_LIMIT, self.train_samples // 20))

    def look(self, batch: Sequence[SampleText]) -> None:
        """Find what a batch of training samples holds of the evaluation data."""
        fields = [_words(text) for sample in batch for text in (sample.prompt, sample.answer)]
        hashes, starts = self._hashes([word for words in fields for word in chain(words, _END)])
        owners = np.repeat(np.arange(len(fields)) // 2, [len(words) + 1 for words in fields])[starts]
        runs, is_known = self._known(hashes)
        pairs = np.unique(np.stack([runs, owners[is_known]]), axis=1)
        is_new = self.counts[pairs[0]] <= LARGEST_LIMIT  # above it a run is boilerplate, whoever holds it
        self._sightings.append((pairs[0][is_new], pairs[1][is_new] + self.train_samples))
        np.add.at(self.counts, pairs[0], 1)
        for owner in np.unique(pairs[1][is_new]).tolist():
            self.names[self.train_samples + owner] = batch[owner].name
        for sample in batch:
            prompt = _whole(sample.prompt)
            if prompt in self.prompts:
                self.prompts[prompt].see(sample.name)
            if prompt in self._paired and (pair := _pair(sample)) in self.pairs:
                self.pairs[pair].see(sample.name)
        self.train_samples += len(batch)

    def sightings(self) -> tuple[Int64[np.ndarray, "seen"], Int64[np.ndarray, "seen"]]:
        """Pairs of (run, training sample), ordered by run."""
        none = np.zeros(0, np.int64)
        runs, owners = (np.concatenate([none, *(pair[side] for pair in self._sightings)]) for side in (0, 1))
        order = np.argsort(runs, kind="stable")
        return runs[order], owners[order]

    def _hashes(self, words: Sequence[str]) -> tuple[UInt64[np.ndarray, "run"], Int64[np.ndarray, "run"]]:
        """Hash and first word of every run of known words; an unknown word ends a run."""
        ids = np.fromiter(map(self._vocabulary.get, words, repeat(_UNKNOWN)), np.int64, len(words))
        if len(ids) < WORDS:
            return np.zeros(0, np.uint64), np.zeros(0, np.int64)
        unknown = np.concatenate([[0], np.cumsum(ids == _UNKNOWN)])
        starts = np.flatnonzero(unknown[WORDS:] == unknown[:-WORDS])
        hashes, known = np.zeros(len(starts), np.uint64), self._hash_of_word[ids]
        for place in range(WORDS):
            hashes = hashes * _BASE + known[starts + place]
        return hashes, starts

    def _known(self, hashes: np.ndarray) -> tuple[Int64[np.ndarray, "known"], Bool[np.ndarray, "run"]]:
        if not len(self.runs):
            return np.zeros(0, np.int64), np.zeros(len(hashes), bool)
        found = np.minimum(np.searchsorted(self.runs, hashes), len(self.runs) - 1)
        is_known = self.runs[found] == hashes
        return found[is_known], is_known


@dataclass(frozen=True)
class _Seen:
    """Words of one text: how many count, how many were seen, and the runs that show it."""

    words: int
    seen: int
    runs: Int64[np.ndarray, "run"]

    @property
    def share(self) -> float:
        return self.seen / self.words if self.words else 0.0


@dataclass(frozen=True)
class _Judged:
    sample: SampleText
    prompt: _Seen
    answer: _Seen
    is_duplicate: bool
    has_same_prompt: bool

    @property
    def whole(self) -> float:
        words = self.prompt.words + self.answer.words
        return 1.0 if self.is_duplicate else (self.prompt.seen + self.answer.seen) / max(words, 1)


def _overlap(index: _Index, samples: Sequence[SampleText], start: int) -> Overlap:
    fields = index.fields[start : start + len(samples)]
    is_boilerplate = index.counts > index.limit
    judged = [_judge(index, s, *pair, is_boilerplate) for s, pair in zip(samples, fields, strict=True)]
    own_runs = np.unique(np.concatenate([np.zeros(0, np.int64), *(field.runs for pair in fields for field in pair)]))
    return Overlap(
        samples=len(samples),
        train_samples=index.train_samples,
        duplicates=sum(each.is_duplicate for each in judged),
        same_prompt=sum(each.has_same_prompt for each in judged),
        seen=sum(each.whole >= MOST or each.has_same_prompt for each in judged),
        whole=_share([each.whole for each in judged]),
        prompt=_share([each.prompt.share for each in judged]),
        answer=_share([each.answer.share for each in judged]),
        boilerplate=int(is_boilerplate[own_runs].sum()),
        boilerplate_from=index.limit,
        short=sum(not (len(prompt.runs) or len(answer.runs)) for prompt, answer in fields),
        without_text=sum(not (sample.prompt.strip() or sample.answer.strip()) for sample in samples),
        worst=_worst(index, judged),
    )


def _judge(
    index: _Index, sample: SampleText, prompt: _Field, answer: _Field, is_boilerplate: Bool[np.ndarray, "run"]
) -> _Judged:
    has_text = bool(sample.prompt.strip() or sample.answer.strip())
    is_duplicate = has_text and index.pairs[_pair(sample)].count > 0
    same = index.prompts[_whole(sample.prompt)].count if sample.prompt.strip() else 0
    has_same_prompt = bool(same) and (is_duplicate or same <= index.limit)
    return _Judged(
        sample,
        _seen(index, prompt, is_boilerplate, is_equal=has_same_prompt),
        _seen(index, answer, is_boilerplate, is_equal=is_duplicate),
        is_duplicate,
        has_same_prompt,
    )


def _seen(index: _Index, field: _Field, is_boilerplate: Bool[np.ndarray, "run"], *, is_equal: bool) -> _Seen:
    """Which words of a text were seen; where the whole text was (``is_equal``), all of them."""
    if is_equal:
        return _Seen(field.words, field.words, np.unique(field.runs))
    own = ~_covered(np.flatnonzero(is_boilerplate[field.runs]), field.words)
    before = np.concatenate([[0], np.cumsum(own)])
    own_in_run = before[WORDS:] - before[:-WORDS] if len(field.runs) else np.zeros(0, np.int64)
    is_hit = (index.counts[field.runs] > 0) & (own_in_run >= FEWEST_OWN_WORDS)
    seen = own & _covered(np.flatnonzero(is_hit), field.words)
    return _Seen(int(own.sum()), int(seen.sum()), np.unique(field.runs[is_hit]))


def _covered(starts: Int64[np.ndarray, "run"], words: int) -> Bool[np.ndarray, "word"]:
    edges = np.zeros(words + 1, np.int64)
    np.add.at(edges, starts, 1)
    np.add.at(edges, np.minimum(starts + WORDS, words), -1)
    return np.cumsum(edges[:-1]) > 0


def _worst(index: _Index, judged: Sequence[_Judged]) -> tuple[Match, ...]:
    runs, owners = index.sightings()
    chosen = sorted((each for each in judged if each.whole or each.has_same_prompt), key=lambda each: -each.whole)
    return tuple(_match(index, each, runs, owners) for each in chosen[:SHOWN])


def _match(index: _Index, judged: _Judged, runs: np.ndarray, owners: np.ndarray) -> Match:
    """The duplicate, else the training sample that shares most runs, else the first with this prompt."""
    sample, own = judged.sample, np.unique(np.concatenate([judged.prompt.runs, judged.answer.runs]))
    spans = [owners[slice(*np.searchsorted(runs, [run, run + 1]))] for run in own]
    if judged.is_duplicate:
        train = index.pairs[_pair(sample)].first
    elif spans:
        found, counts = np.unique(np.concatenate(spans), return_counts=True)
        train = index.names[int(found[counts.argmax()])]
    else:
        train = index.prompts[_whole(sample.prompt)].first
    return Match(sample.name, train, judged.whole, judged.prompt.share, judged.answer.share)


def _share(shares: Sequence[float]) -> Share:
    return Share(sum(share >= MOST for share in shares), sum(share >= SOME for share in shares))


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _whole(text: str) -> str:
    return " ".join(text.lower().split())


def _pair(sample: SampleText) -> str:
    return f"{_whole(sample.prompt)}\0{_whole(sample.answer)}"


def _hash_of(word: str) -> int:
    """The same on every machine; Python's own hash of a text differs between processes."""
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")


def _message_text(message: Message) -> str:
    calls = _calls(message.tool_calls)
    return "\n".join(part for part in (message.reasoning, message.content, *calls) if part)


def _calls(calls: Sequence[Mapping]) -> Iterator[str]:
    for call in calls:
        function = call["function"]
        yield f"{function['name']} {json.dumps(function['arguments'], ensure_ascii=False)}"
