"""Which sets are measured, before, during and after training; the composition of ``evaluate/`` with the data."""

import time
from collections.abc import Callable
from collections.abc import Sequence as Seq
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from frisket import bundled
from frisket.adapt.base import Attached
from frisket.attend.pack import pack
from frisket.data.chat import ANSWER_ROLES, encode_many, prompt_of
from frisket.data.problem import Problem
from frisket.data.settings import SourceSettings
from frisket.data.source import Source, read_conversations
from frisket.errors import DataError, UnsupportedError, counted, gather
from frisket.evaluate import forgetting, learning
from frisket.evaluate.compare import one_side
from frisket.evaluate.losses import Instruments
from frisket.evaluate.settings import EvaluateSettings, ForgettingSettings, LearningSettings
from frisket.generate.sample import pad_id_of, stop_ids_of
from frisket.hf.forward import Model
from frisket.run.prepare import Prepared, Records
from frisket.supervise.policies import token_weights
from frisket.supervise.predictions import Weighted
from frisket.types import Conversation, Provenance
from frisket.watch import Watcher, duration

BUNDLED_SETS = {"bundled": bundled.eval_path, "bundled-unseen": bundled.unseen_path}
HOLD_OUT = LearningSettings(name="hold-out")
TAUGHT = LearningSettings(name="taught", path="bundled", metric="exact_match", by="skill", max_new_tokens=48)
UNSEEN = LearningSettings(name="unseen", path="bundled-unseen", metric="exact_match", max_new_tokens=48)


@dataclass(frozen=True)
class Sets:
    """Everything that a run measures."""

    settings: EvaluateSettings
    learning: tuple[learning.LearningSet, ...]
    forgetting: tuple[forgetting.ForgettingSet, ...]
    instruments: Instruments


@dataclass(frozen=True)
class Before:
    """What was measured of the base; ``names`` are those of the learning sets."""

    names: tuple[str, ...]
    learning: tuple[learning.LearningScores, ...]
    forgetting: tuple[forgetting.BaseScores, ...]
    seconds: float


def make_sets(prepared: Prepared, model: Model, watcher: Watcher, records: Records | None) -> Sets | None:
    """Read and encode all sets of the recipe; None where it says ``evaluate: off``.

    Raises:
        DataError: a set cannot be used.
    """
    settings = prepared.recipe.evaluate
    if settings is None:
        return None
    entries = learning_entries(prepared, settings)
    learning_sets = tuple(_learning_set(prepared, entry, index, records) for index, entry in enumerate(entries))
    forgetting_sets = tuple(_forgetting_set(prepared, entry, index) for index, entry in enumerate(settings.forgetting))
    for note in (note for each in forgetting_sets for note in each.notes):
        watcher.say(note)
    return Sets(settings, learning_sets, forgetting_sets, make_instruments(prepared, model, watcher))


def make_instruments(prepared: Prepared, model: Model, watcher: Watcher) -> Instruments:
    """How this run measures: its own attention for losses, the model's own for answers."""
    batch_tokens = prepared.recipe.evaluate.batch_tokens if prepared.recipe.evaluate else 8192
    arrangement = "alone" if prepared.laying.arrangement == "alone" else "isolated"
    return Instruments(
        prepared.tokenizer,
        stop_ids_of(model, end_of_turn_ids(prepared)),
        pad_id_of(prepared.tokenizer),
        partial(pack, arrangement=arrangement, row_tokens=min(batch_tokens, prepared.laying.row_tokens)),
        batch_tokens,
        prepared.laying.backend,
        prepared.laying.chunk_tokens,
        watcher,
    )


def learning_entries(prepared: Prepared, settings: EvaluateSettings) -> tuple[LearningSettings, ...]:
    """The sets that the recipe names; else the bundled instructions bring their own, and other data its hold-out."""
    if settings.learning is not None:
        return settings.learning
    bundled_only = all(source.path == "bundled" for source in prepared.recipe.data)
    if bundled_only:
        return (TAUGHT, UNSEEN)
    return (HOLD_OUT,) if len(prepared.dataset.held_out) else ()


def measure_before(model: Model, sets: Sets, attached: Attached, seed: int) -> Before:
    """Measure the base, within the time budget, and keep what the comparison needs of it.

    A method may start elsewhere than at the base (a random mask, a soft prompt), so it is switched off where it can be.
    """
    is_kept = keeps_base(attached)
    with attached.switched_off() if is_kept else nullcontext():
        return _measure_base(model, sets, seed, keep_base=not is_kept)


def _measure_base(model: Model, sets: Sets, seed: int, *, keep_base: bool) -> Before:
    started = time.perf_counter()
    shares = len(sets.learning) + len(sets.forgetting)
    if shares:
        longest = f"at most about {sets.settings.budget_seconds:g} s (evaluate.budget_seconds)"
        sets.instruments.watcher.say(f"evaluate   before training: {_names(sets)}; {longest}")

    def share(done: int) -> float:
        left = sets.settings.budget_seconds - (time.perf_counter() - started)
        return max(1.0, left / (shares - done))

    scores = tuple(
        learning.measure(model, each, sets.instruments, seconds=share(done), seed=seed)
        for done, each in enumerate(sets.learning)
    )
    bases = []
    for done, each in enumerate(sets.forgetting):
        with _told(sets, each) as progress:
            seconds = share(len(scores) + done)
            base = forgetting.measure_base(
                model, each, sets.instruments, keep_base=keep_base, seconds=seconds, seed=seed
            )
            progress(sum(map(len, base.measures.values())))
        bases.append(base)
    names = tuple(each.settings.name for each in sets.learning)
    return Before(names, scores, tuple(bases), time.perf_counter() - started)


def measure_after(model: Model, sets: Sets, before: Before, attached: Attached) -> dict:
    """Measure the same again; the entries ``learning``, ``forgetting`` and ``examples`` of ``summary.json``."""
    told: dict = {"learning": {}, "forgetting": {}, "examples": []}
    if sets.learning or sets.forgetting:
        took = f"it took {duration(before.seconds)} before training"
        sets.instruments.watcher.say(f"evaluate   after training: the same again; {took}")
    for each, scores in zip(sets.learning, before.learning, strict=True):
        after = learning.measure(model, each, sets.instruments, samples=scores.samples)
        told["learning"][each.settings.name] = learning.compared(each, scores, after)
        told["examples"] += [{"set": each.settings.name, **shown} for shown in learning.examples(each, scores, after)]
    is_exact = keeps_base(attached)
    for each, base in zip(sets.forgetting, before.forgetting, strict=True):
        with _told(sets, each) as progress:
            tuned = forgetting.measure_tuned(
                model, each, base, sets.instruments, switched_off=attached.switched_off if is_exact else None
            )
            progress(sum(map(len, tuned.values())))
        told["forgetting"][each.settings.name] = forgetting.compared(each, base, tuned, is_exact=is_exact)
    return told


def _names(sets: Sets) -> str:
    """What will be measured, for the line that says so."""
    learned = [f"{each.settings.name} ({counted(len(each.samples), 'sample')})" for each in sets.learning]
    return ", ".join([*learned, *(f"forgetting: {each.settings.name}" for each in sets.forgetting)])


def _told(sets: Sets, each: forgetting.ForgettingSet) -> AbstractContextManager[Callable[[int], None]]:
    return sets.instruments.watcher.progress(f"measuring forgetting: {each.settings.name}", None, "answers and texts")


def measure_now(model: Model, sets: Sets, before: Before) -> dict:
    """The learning sets at a moment of training, for ``evaluations.jsonl``."""
    return {
        each.settings.name: one_side(learning.measure(model, each, sets.instruments, samples=scores.samples).measures)
        for each, scores in zip(sets.learning, before.learning, strict=True)
    }


def names_of(prepared: Prepared) -> list[str]:
    """The learning sets that a run will measure; each has a loss, unless it turns out not to be finite."""
    settings = prepared.recipe.evaluate
    return [] if settings is None else [entry.name for entry in learning_entries(prepared, settings)]


def names_with_loss(before: Before) -> list[str]:
    """The learning sets whose loss could be measured before training, in the recipe's order."""
    return [name for name, side in told_before(before).items() if "loss" in side]


def told_before(before: Before) -> dict[str, dict]:
    """The learning sets before training, as ``evaluations.jsonl`` would hold them."""
    return {name: one_side(scores.measures) for name, scores in zip(before.names, before.learning, strict=True)}


def end_of_turn_ids(prepared: Prepared) -> set[int]:
    """Tokens with which the chat template ends an assistant's turn, as the first samples show."""
    found: set[int] = set()
    for index in prepared.dataset.train[:50]:
        sequence = prepared.dataset[int(index)]
        found.update(int(i) for i in sequence.input_ids[sequence.roles == Provenance.END_OF_TURN])
    return found


def read_weighted(prepared: Prepared, source: SourceSettings) -> tuple[list[Conversation], list[Weighted]]:
    """Read, encode and weigh a file that is only measured.

    Raises:
        DataError: samples that cannot be used, gathered.
    """
    reading = read_conversations(source, 0)
    problems: list[Problem] = list(reading.problems)
    kept, weighted = [], []
    for conversation, encoded in zip(
        reading.conversations, encode_many(reading.conversations, prepared.template, prepared.tokenizer), strict=True
    ):
        if isinstance(encoded, Problem):
            problems.append(encoded)
        elif prepared.context is None or len(encoded.sequence) <= prepared.context:
            kept.append(conversation)
            weighted.append((encoded.sequence, token_weights(encoded.sequence, prepared.teaching[0])))
        else:
            problems.append(
                Problem(conversation.place, f"{len(encoded.sequence):,} tokens; the model takes {prepared.context:,}")
            )
    if problems:
        lines = [f"{problem.place}: {problem.message}" for problem in problems]
        raise DataError(gather(lines, f"{source.path}: {len(problems)} samples cannot be measured."))
    return kept, weighted


def _learning_set(
    prepared: Prepared, entry: LearningSettings, index: int, records: Records | None
) -> learning.LearningSet:
    render = partial(_prompt_ids, prepared)
    if entry.path is None:
        conversations, weighted = _held_out(prepared, entry, records)
    else:
        conversations, weighted = read_weighted(prepared, learning_source(prepared, entry))
    return learning.learning_set(entry, conversations, weighted, render, index)


def learning_source(prepared: Prepared, entry: LearningSettings) -> SourceSettings:
    """How a learning set with a path of its own is read: asked as the first source is taught."""
    own = prepared.recipe.data[0]
    return SourceSettings(
        path=str(BUNDLED_SETS[entry.path]() if entry.path in BUNDLED_SETS else entry.path),
        prompt=entry.prompt,
        completion=entry.completion,
        limit=entry.limit,
        render=own.render,
        roles=own.roles,
        system=own.system,
    )


def _held_out(
    prepared: Prepared, entry: LearningSettings, records: Records | None
) -> tuple[list[Conversation], list[Weighted]]:
    """The hold-out; its messages are read again where answers or columns are wanted."""
    dataset = prepared.dataset
    if not len(dataset.held_out):
        raise DataError(
            f"evaluate.learning: {entry.name!r} measures the hold-out, and nothing is held out.\n"
            "Use data.0.hold_out=0.02, or give it a path."
        )
    weighted = [prepared.weighted(int(i)) for i in dataset.held_out]
    held_out = [int(i) for i in dataset.held_out]
    names = [dataset.sample_ids[i] for i in held_out]
    if entry.metric == "loss" and entry.by is None:
        return [Conversation(name, 0, dataset.place(i), 0) for name, i in zip(names, held_out, strict=True)], weighted
    known: dict[str, Conversation] = {}
    for index, source in enumerate(prepared.recipe.data):
        known |= Source(source, index, records[index] if records else None).some(names)
    cut = [name for name in names if name not in known]
    if cut:
        raise DataError(
            f"evaluate.learning: {entry.name!r} asks for answers or columns, and {cut[0]} is part of a split sample.\n"
            "Measure the loss only, or give it a path: evaluate.learning.0.metric=loss"
        )
    return [known[name] for name in names], weighted


def _forgetting_set(prepared: Prepared, entry: ForgettingSettings, index: int) -> forgetting.ForgettingSet:
    samples: Seq[Weighted] = ()
    if entry.path is not None and Path(entry.path).suffix in (".jsonl", ".json", ".parquet", ".csv"):
        _, samples = read_weighted(prepared, SourceSettings(path=entry.path))
    return forgetting.forgetting_set(
        entry,
        prepared.tokenizer,
        prompts=own_prompts(prepared, 4 * entry.prompts),
        samples=samples,
        context=prepared.context,
        seed=prepared.recipe.train.seed,
        index=index,
    )


def own_prompts(prepared: Prepared, count: int) -> list[list[int]]:
    """Prompts of the user's own samples: the tokens before the first answer; of raw text its first half, at most 64."""
    dataset = prepared.dataset
    candidates = [*dataset.held_out, *dataset.train][:count]
    prompts = []
    for index in candidates:
        sequence = dataset[int(index)]
        answers = np.flatnonzero(np.isin(sequence.roles, ANSWER_ROLES))
        end = int(answers[0]) if len(answers) else min(64, len(sequence) // 2)
        if end:
            prompts.append(sequence.input_ids[:end].tolist())
    return prompts


def _prompt_ids(prepared: Prepared, conversation: Conversation) -> list[int]:
    return prompt_of(conversation, prepared.template, prepared.tokenizer)


def as_base(attached: Attached) -> AbstractContextManager[None]:
    """The base itself, also where a method does not begin there; before training, when full fine-tuning is the base."""
    return attached.switched_off() if keeps_base(attached) else nullcontext()


def keeps_base(attached: Attached) -> bool:
    """Whether the base can still be computed after training."""
    try:
        with attached.switched_off():
            return True
    except UnsupportedError:
        return False
