"""One set that measures what the base model knew: KL on its own answers, and bits per character of text.

That forgetting stands beside learning in one table follows LoRA Learns Less and Forgets Less (arXiv 2405.09673v2,
section 3). Differs: no benchmark has to be downloaded; what was known is the base's own answers, and text that is on
every machine.
"""

import time
from collections.abc import Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64

from frisket.errors import ConfigError
from frisket.evaluate.answers import Answered, SwitchedOff, base_answers, divergences, kept_of
from frisket.evaluate.budget import shuffled, spend
from frisket.evaluate.compare import Measure, comparison, joined, unmeasured
from frisket.evaluate.divergence import KEPT, Kept
from frisket.evaluate.losses import Instruments, sample_losses
from frisket.evaluate.settings import ForgettingSettings
from frisket.evaluate.text import WINDOW_TOKENS, Windows, file_windows, standard_windows
from frisket.types import Sequence

Weighted = tuple[Sequence, Float64[np.ndarray, "token"]]


@dataclass(frozen=True)
class ForgettingSet:
    """What is measured, ready to be measured again and again.

    Attributes:
        settings: the set as the recipe has it.
        prompts: tokens of the user's own prompts, for KL.
        windows: text, for bits per character.
        samples: conversations of the user's, for the loss.
        notes: what could not be measured, in words.
    """

    settings: ForgettingSettings
    prompts: tuple[list[int], ...] = ()
    windows: tuple[Windows, ...] = ()
    samples: tuple[Weighted, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class BaseScores:
    """What was measured, and kept, of the base before anything moved.

    Attributes:
        answered: in the order of the set's prompts.
        kept: largest log-probabilities of each, where the base is gone after training (full fine-tuning).
        chosen: for each measure but KL, which windows or samples were used, ascending.
        measures: by name; ``kl`` is 0.
    """

    answered: tuple[Answered, ...]
    kept: tuple[Kept, ...] | None
    chosen: dict[str, np.ndarray]
    measures: dict[str, Measure]


def forgetting_set(
    settings: ForgettingSettings,
    tokenizer: Any,
    *,
    prompts: Seq[list[int]] = (),
    samples: Seq[Weighted] = (),
    context: int | None = None,
    seed: int = 0,
    index: int = 0,
) -> ForgettingSet:
    """Prepare one set.

    Args:
        settings: its section of the recipe. With a ``path`` only that file is measured: as text, or, where its
            conversations are given as ``samples``, by their loss.
        tokenizer: a fast tokenizer of transformers.
        prompts: candidates for KL, of which ``settings.prompts`` are chosen; the same prompt counts once.
        samples: conversations of ``settings.path``.
        context: longest sequence of the model.
        seed: of the choice.
        index: its place in ``evaluate.forgetting``, for messages.

    Raises:
        ConfigError: nothing is left to measure.
        DataError: the text file cannot be used.
    """
    window_tokens = min(WINDOW_TOKENS, context or WINDOW_TOKENS)
    if settings.path is not None:
        texts = () if samples else (file_windows(settings.path, tokenizer, None, window_tokens),)
        return ForgettingSet(settings, windows=texts, samples=tuple(samples))
    distinct = list({tuple(prompt): prompt for prompt in prompts}.values())
    fitting = [p for p in distinct if context is None or len(p) + settings.answer_tokens <= context]
    chosen = tuple(fitting[i] for i in sorted(shuffled(len(fitting), seed)[: settings.prompts]))
    texts = tuple(standard_windows(tokenizer, settings.text_tokens, window_tokens))
    if not chosen and not texts:
        raise ConfigError(
            f"evaluate.forgetting.{index} ({settings.name}) measures nothing: text_tokens={settings.text_tokens}, "
            f"prompts={settings.prompts},\nand {len(fitting)} of {len(distinct)} prompts leave room for "
            f"{settings.answer_tokens} tokens.\nMeasure nothing on purpose: 'evaluate.forgetting=[]'"
        )
    return ForgettingSet(settings, chosen, texts, notes=tuple(_notes(settings, len(distinct), len(fitting), texts)))


def measure_base(
    model: Any,
    forgetting: ForgettingSet,
    instruments: Instruments,
    *,
    keep_base: bool,
    seconds: float | None = None,
    seed: int = 0,
) -> BaseScores:
    """Measure before training, and keep what the later comparison needs.

    Args:
        model: the base, on frisket's attention.
        forgetting: the set.
        instruments: how to compute.
        keep_base: keep the largest log-probabilities, because the base will be gone.
        seconds: budget, shared by KL and each text; None: no limit.
        seed: of the subset, where not all fits.
    """
    weighted = _weighted(forgetting)
    shares = _shares(seconds, bool(forgetting.prompts) + len(weighted))
    measures: dict[str, Measure] = {}
    answered: list[Answered] = []
    if forgetting.prompts:
        answered = _answered(model, forgetting, instruments, next(shares), seed)
        measures["kl"] = Measure(np.zeros(len(answered)), np.array([float(a.count) for a in answered]))
    chosen: dict[str, np.ndarray] = {}
    for name, samples in weighted.items():
        label = f"{forgetting.settings.name}: {name}"
        chosen[name], losses = _losses_within(model, samples, instruments, next(shares), seed, label)
        measures[name] = _in_unit(forgetting, name, losses, chosen[name])
    for name, why in unmeasured(measures).items():
        instruments.watcher.say(f"{forgetting.settings.name}: {name} is not measured: {why}")
    kept = tuple(kept_of(model, answered, instruments)) if keep_base else None
    return BaseScores(tuple(answered), kept, chosen, measures)


def measure_tuned(
    model: Any,
    forgetting: ForgettingSet,
    base: BaseScores,
    instruments: Instruments,
    *,
    switched_off: SwitchedOff | None = None,
) -> dict[str, Measure]:
    """Measure the same prompts, windows and samples again.

    Args:
        model: with what was trained.
        forgetting: the set.
        base: what ``measure_base`` returned.
        instruments: how to compute.
        switched_off: makes the model the base for as long as the context lasts (``Attached.switched_off``); without it
            the kept log-probabilities are used and KL is a lower bound.

    Raises:
        ValueError: neither was given.
    """
    measures = {}
    if base.answered:
        known = switched_off or base.kept
        if known is None:
            raise ValueError("KL needs the base: measure_base(keep_base=True) before training, or switched_off now")
        measures["kl"] = divergences(model, base.answered, instruments, known)
    for name, samples in _weighted(forgetting).items():
        chosen = base.chosen[name]
        losses = sample_losses(model, [samples[i] for i in chosen], instruments)
        measures[name] = _in_unit(forgetting, name, losses, chosen)
    return measures


def compared(forgetting: ForgettingSet, base: BaseScores, tuned: dict[str, Measure], *, is_exact: bool) -> dict:
    """The entry of ``summary.json`` under ``forgetting``.

    Args:
        forgetting: the set.
        base: before.
        tuned: after.
        is_exact: whether KL was computed over the whole vocabulary.
    """
    found = comparison(base.measures, tuned)
    found["units"] = {name: len(measure) for name, measure in base.measures.items()}
    if base.answered:
        found["kl_is"] = "exact" if is_exact else f"a lower bound: {KEPT} largest log-probabilities and one bucket"
    if forgetting.windows:
        found["texts"] = {windows.name: list(windows.texts) for windows in forgetting.windows}
    versions = {windows.version for windows in forgetting.windows if windows.version}
    return found | ({"python": versions.pop()} if versions else {})


def _answered(
    model: Any, forgetting: ForgettingSet, instruments: Instruments, seconds: float | None, seed: int
) -> list[Answered]:
    found: dict[int, Answered] = {}
    prompts, longest = forgetting.prompts, forgetting.settings.answer_tokens

    def work(part: Seq[int]) -> None:
        found.update(zip(part, base_answers(model, prompts, part, longest, instruments), strict=True))

    done = spend(shuffled(len(prompts), seed), seconds, work)
    _say_part(f"{forgetting.settings.name}: kl", done, len(prompts), instruments)
    return [found[index] for index in sorted(found)]


def _losses_within(
    model: Any, samples: Seq[Weighted], instruments: Instruments, seconds: float | None, seed: int, label: str
) -> tuple[np.ndarray, Measure]:
    """Losses of what fits into the budget, and which samples these are, ascending."""
    order = shuffled(len(samples), seed)
    parts: list[Measure] = []

    def work(part: Seq[int]) -> None:
        parts.append(sample_losses(model, [samples[index] for index in part], instruments))

    done = spend(order, seconds, work)
    _say_part(label, done, len(samples), instruments)
    chosen = np.array(order[:done])
    ascending = np.argsort(chosen)
    return chosen[ascending], joined(parts).at(ascending)


def _weighted(forgetting: ForgettingSet) -> dict[str, list[Weighted]]:
    """What is measured by its loss, by the name of its measure."""
    found = {windows.measure_name: windows.weighted() for windows in forgetting.windows}
    return found | ({"loss": list(forgetting.samples)} if forgetting.samples else {})


def _in_unit(forgetting: ForgettingSet, name: str, losses: Measure, chosen: np.ndarray) -> Measure:
    for windows in forgetting.windows:
        if windows.measure_name == name:
            return windows.bits(losses, chosen)
    return losses


def _shares(seconds: float | None, parts: int) -> Iterator[float | None]:
    """A fair share of what is left of the budget, for one part after the other."""
    end = None if seconds is None else time.perf_counter() + seconds
    for left in range(parts, 0, -1):
        yield None if end is None else max(0.0, end - time.perf_counter()) / left


def _say_part(label: str, done: int, of: int, instruments: Instruments) -> None:
    if done < of:
        instruments.watcher.say(f"{label}: {done:,} of {of:,} fit into evaluate.budget_seconds (a seeded choice)")


def _notes(settings: ForgettingSettings, distinct: int, fitting: int, texts: Seq[Windows]) -> Iterator[str]:
    if fitting < distinct:
        yield (
            f"{settings.name}: {distinct - fitting:,} of {distinct:,} prompts leave no room for "
            f"{settings.answer_tokens} tokens in the model's context and were not candidates for KL"
        )
    if settings.prompts and not fitting:
        yield f"{settings.name}: no KL, because there is no prompt to measure it on"
    missing = {"prose", "code"} - {windows.name for windows in texts}
    if settings.text_tokens and missing:
        yield f"{settings.name}: this Python has no standard-library text for {', '.join(sorted(missing))}"
