"""One set that measures the taught task: loss, and exact match of greedy answers."""

import re
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64

from frisket.errors import ConfigError, DataError, gather, nearest
from frisket.evaluate.budget import shuffled, spend
from frisket.evaluate.compare import Measure, comparison, joined, unmeasured
from frisket.evaluate.losses import Instruments, sample_losses
from frisket.evaluate.settings import LearningSettings
from frisket.generate.sample import generate
from frisket.generate.settings import GenerateSettings
from frisket.types import Conversation, Sequence

Weights = Float64[np.ndarray, "token"]
PromptIds = Callable[[Conversation], list[int]]


@dataclass(frozen=True)
class Question:
    """What an exact match is about.

    Attributes:
        ids: tokens of everything before the last assistant message, ending where the answer begins.
        text: the last message before it, for showing.
        reference: content of that message.
    """

    ids: list[int]
    text: str
    reference: str


@dataclass(frozen=True)
class LearningSet:
    """Samples of one set, ready to be measured again and again.

    Attributes:
        settings: the set as the recipe has it.
        samples: sequence and weights.
        questions: one a sample with ``exact_match``, else empty.
        groups: value of the ``by`` column of each sample, or None.
        pattern: ``extract``, compiled.
    """

    settings: LearningSettings
    samples: tuple[tuple[Sequence, Weights], ...]
    questions: tuple[Question, ...]
    groups: tuple[str, ...] | None
    pattern: re.Pattern | None


@dataclass(frozen=True)
class LearningScores:
    """What was measured at one time.

    Attributes:
        samples: indices into the set, ascending; the later measurements use the same.
        measures: ``loss`` and, where asked, ``exact_match``, unit by unit in the order of ``samples``.
        answers: the generated answers, in the same order; empty without ``exact_match``.
    """

    samples: tuple[int, ...]
    measures: dict[str, Measure]
    answers: tuple[str, ...]


def learning_set(
    settings: LearningSettings,
    conversations: Seq[Conversation],
    encoded: Seq[tuple[Sequence, Weights]],
    prompt_ids: PromptIds,
    index: int = 0,
) -> LearningSet:
    """Prepare one set.

    Args:
        settings: its section of the recipe.
        conversations: as read, in the order of the file.
        encoded: sequence and weights of each.
        prompt_ids: tokens of everything before the last assistant message, rendered as the conversation is.
        index: its place in ``evaluate.learning``, for messages.

    Raises:
        ConfigError: ``extract`` or ``by`` cannot be used on these samples.
        DataError: the set is empty, or a conversation has no assistant message where exact match needs one.
    """
    where = f"evaluate.learning.{index}"
    if not conversations:
        raise DataError(f"{where} ({settings.name}) has no samples.\nName another file: {where}.path=FILE")
    kept = list(conversations)[: settings.limit]
    pattern = None if settings.extract is None else _compiled(settings.extract, where)
    questions = _questions(kept, prompt_ids, where) if settings.metric == "exact_match" else ()
    if pattern is not None and questions and not any(_extracted(q.reference, pattern) is not None for q in questions):
        raise ConfigError(
            f"{where}.extract = {settings.extract!r} matches none of the {len(questions)} references.\n"
            f"The first one is {questions[0].reference[:80]!r}.\nCompare whole answers: {where}.extract=null"
        )
    groups = None if settings.by is None else _groups(kept, settings.by, where)
    return LearningSet(settings, tuple(encoded[: len(kept)]), questions, groups, pattern)


def measure(
    model: Any,
    learning: LearningSet,
    instruments: Instruments,
    *,
    samples: Seq[int] | None = None,
    seconds: float | None = None,
    seed: int = 0,
) -> LearningScores:
    """Measure a set, or what of it fits into a time budget.

    Args:
        model: on frisket's attention.
        learning: the set.
        instruments: how to compute.
        samples: exactly these, as an earlier measurement chose them; without it all, or a seeded subset.
        seconds: budget; None: no limit. Used only without ``samples``.
        seed: of the subset.
    """
    parts: list[LearningScores] = []
    total = len(learning.samples)
    wanted = shuffled(total, seed) if samples is None else list(samples)
    with instruments.watcher.progress(f"measuring {learning.settings.name}", len(wanted), "samples") as progress:

        def work(part: Seq[int]) -> None:
            parts.append(_measured(model, learning, sorted(part), instruments))
            progress(len(part))

        done = spend(wanted, seconds if samples is None else None, work)
    if done < len(wanted):
        instruments.watcher.say(
            f"{learning.settings.name}: {done:,} of {total:,} samples (seeded) fit in {seconds:.0f} s; "
            "more with evaluate.budget_seconds"
        )
    scores = _in_order(parts)
    for name, why in unmeasured(scores.measures).items() if samples is None else ():
        instruments.watcher.say(f"{learning.settings.name}: {name} is not measured: {why}")
    return scores


def compared(learning: LearningSet, before: LearningScores, after: LearningScores, seed: int = 0) -> dict:
    """The entry of ``summary.json`` under ``learning``; both measured on the same samples."""
    groups = None if learning.groups is None else [learning.groups[index] for index in before.samples]
    found = comparison(before.measures, after.measures, groups, seed)
    of = {"of": len(learning.samples)} if len(before.samples) < len(learning.samples) else {}
    return {"samples": found.pop("samples"), **of, "metric": learning.settings.metric, **found}


def examples(learning: LearningSet, before: LearningScores, after: LearningScores, each: int = 1) -> list[dict]:
    """The first ``each`` samples of every group, in the order of the file: a fixed choice, not a flattering one."""
    shown: list[dict] = []
    seen: dict[str, int] = {}
    for place, index in enumerate(before.samples if before.answers else ()):
        group = "" if learning.groups is None else learning.groups[index]
        seen[group] = seen.get(group, 0) + 1
        if seen[group] <= each:
            question = learning.questions[index]
            answers = {"before": before.answers[place], "after": after.answers[place]}
            shown.append({"group": group, "prompt": question.text, "reference": question.reference, **answers})
    return shown


def is_match(completion: str, reference: str, pattern: re.Pattern | None) -> bool:
    """Whether two answers are equal, stripped; with a pattern, their first group 1, where no match is wrong.

    >>> is_match("so #### 18 ", "thus #### 18", re.compile(r"#### (\\S+)"))
    True
    """
    mine, theirs = _extracted(completion, pattern), _extracted(reference, pattern)
    return mine is not None and mine == theirs


def _extracted(text: str, pattern: re.Pattern | None) -> str | None:
    if pattern is None:
        return text.strip()
    found = pattern.search(text)
    return None if found is None or found.group(1) is None else found.group(1).strip()


def _measured(model: Any, learning: LearningSet, samples: list[int], instruments: Instruments) -> LearningScores:
    measures = {"loss": sample_losses(model, [learning.samples[index] for index in samples], instruments)}
    if not learning.questions:
        return LearningScores(tuple(samples), measures, ())
    questions = [learning.questions[index] for index in samples]
    ids = generate(
        model,
        [question.ids for question in questions],
        stop_ids=instruments.stop_ids,
        pad_id=instruments.pad_id,
        settings=GenerateSettings(max_new_tokens=learning.settings.max_new_tokens),
        batch_tokens=instruments.batch_tokens,
    )
    answers = tuple(instruments.tokenizer.decode(answer, skip_special_tokens=True) for answer in ids)
    right = [is_match(a, q.reference, learning.pattern) for a, q in zip(answers, questions, strict=True)]
    measures["exact_match"] = Measure(np.array(right, dtype=np.float64), np.ones(len(right)))
    return LearningScores(tuple(samples), measures, answers)


def _in_order(parts: Seq[LearningScores]) -> LearningScores:
    samples = np.array([index for part in parts for index in part.samples])
    order = np.argsort(samples)
    answers = [answer for part in parts for answer in part.answers]
    measures = {name: joined([part.measures[name] for part in parts]).at(order) for name in parts[0].measures}
    return LearningScores(tuple(samples[order].tolist()), measures, tuple(answers[i] for i in order) if answers else ())


def _compiled(pattern: str, where: str) -> re.Pattern:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ConfigError(
            f"{where}.extract = {pattern!r} is not a regular expression: {error}.\n"
            f"Its group 1 is what is compared, for example: {where}.extract='#### (.+)'"
        ) from None
    if compiled.groups < 1:
        raise ConfigError(
            f"{where}.extract = {pattern!r} has no group; group 1 is what is compared.\n"
            f"Put parentheses around it: {where}.extract={f'({pattern})'!r}"
        )
    return compiled


def _questions(conversations: Seq[Conversation], prompt_ids: PromptIds, where: str) -> tuple[Question, ...]:
    questions, problems = [], []
    for conversation in conversations:
        messages = conversation.messages
        last = max((i for i, message in enumerate(messages) if message.role == "assistant"), default=0)
        if last == 0:
            problems.append(f"{conversation.place}: no assistant message that answers something")
            continue
        ids = prompt_ids(conversation)
        questions.append(Question(ids, messages[last - 1].content, messages[last].content))
    if problems:
        heading = f"{where}: exact match needs conversations with an answer; {len(problems)} have none."
        raise DataError(gather(problems, heading, f"Measure the loss only: {where}.metric=loss"))
    return tuple(questions)


def _groups(conversations: Seq[Conversation], by: str, where: str) -> tuple[str, ...]:
    for conversation in conversations:
        if by not in conversation.fields:
            columns = sorted(conversation.fields)
            near = nearest(by, columns)
            fix = f"{where}.by={near}" if near else f"{where}.by=null"
            raise ConfigError(
                f"{where}.by = {by!r}: {conversation.place} has no such column; it has {columns}.\nUse: {fix}"
            )
    return tuple(str(conversation.fields[by]) for conversation in conversations)
