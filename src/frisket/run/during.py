"""What a run does beside training: before the first step, at every evaluation, and after the last."""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frisket.run import best, mask_free, measuring
from frisket.run.folder import read_lines
from frisket.run.prepare import Prepared
from frisket.run.samples import Samples, choose
from frisket.train import checkpoint
from frisket.train.loop import keep_records
from frisket.train.tracking import Tracker
from frisket.watch import Watcher

if TYPE_CHECKING:
    from frisket.run.training import Loaded

EVALUATIONS = "evaluations.jsonl"


class During:
    """Measures, answers samples, finds the best step and keeps its weights.

    A resumed run begins with what ``OUT`` holds of the steps that are done.

    Args:
        sets: what is measured; None: nothing.
        before: what was measured of the base; None where nothing is.
        done: steps that are done.

    Raises:
        ConfigError: ``evaluate.stop_after``, ``watch`` or ``keep`` cannot be obeyed.
    """

    def __init__(
        self,
        prepared: Prepared,
        loaded: "Loaded",
        sets: measuring.Sets | None,
        before: measuring.Before | None,
        out: Path,
        done: int,
        tracker: Tracker,
        watcher: Watcher,
    ) -> None:
        self._loaded, self._sets, self._before = loaded, sets, before
        self._out, self._tracker, self._watcher = out, tracker, watcher
        self._total = prepared.total_steps
        self._starts = prepared.recipe.adapt.keeps_best  # the start is a candidate
        self._ended = 0
        self._meter = mask_free.Meter(prepared, loaded.model, loaded.attached, watcher, out, done)
        keep_records(out / EVALUATIONS, done)
        self._evaluations: list[dict] = read_lines(out / EVALUATIONS)
        self._last: list[dict] = []
        self._rule = None
        if before is not None:
            self._rule = best.rule_of(prepared.recipe, measuring.names_with_loss(before))
        if self._rule and self._rule.keep == "best":
            best.recover(out, loaded.optimizer.moving(), self._evaluations, self._rule.watch, done)
            best.refuse_if_lost(out, best.standing(self._evaluations, self._rule.watch))
        self._samples = _samples(prepared, loaded, sets, out, done)

    def begin(self) -> None:
        """Before the first step."""
        self._meter.measure(0)
        with measuring.as_base(self._loaded.attached):
            self._answer(0)
        if self._before is not None:
            self._tracker.evaluation(0, measuring.told_before(self._before))
        if self._sets and self._before and self._starts:
            self._record(0, self._sets, self._before)

    def evaluate(self, step: int) -> None:
        """After a step whose turn it is."""
        if self._sets is None or self._before is None:
            return
        self._meter.measure(step)
        self._record(step, self._sets, self._before)
        self._answer(step)

    def stops(self, step: int) -> bool:
        """Whether the run ends after this step, by its evaluations alone."""
        return self._rule is not None and best.is_over(self._evaluations, self._rule)

    def end(self, step: int) -> dict:
        """After the last step: put the best weights back where they are wanted, and measure what is then the result.

        Returns:
            The entries ``learning``, ``forgetting`` and ``examples`` of ``summary.json``; empty without sets.
        """
        self._ended = step
        measured: dict = {}
        if self._sets and self._before:
            if self._rule and self._rule.keep == "best":
                if not any(record["step"] == step for record in self._evaluations):
                    self._record(step, self._sets, self._before)
                self._restore(step)
            measured = measuring.measure_after(self._loaded.model, self._sets, self._before, self._loaded.attached)
            after = {name: entry.get("after") or {} for name, entry in measured["learning"].items()}
            self._tracker.evaluation(step, after)
            if not any(record["step"] == step for record in self._evaluations):
                self._last = [{"step": step, "learning": after}]
        self._meter.measure(step)
        self._answer_last()
        self._say(measured)
        return measured

    def summary(self) -> dict[str, Any]:
        """The entries ``best``, ``samples`` and ``contamination`` of ``summary.json``, where there are any."""
        found = self._standing()
        told: dict[str, Any] = {}
        if self._rule and found:
            told["best"] = {
                "watch": self._rule.watch,
                "step": found.step,
                "loss": found.loss,
                "kept": self._rule.keep,
                "ended": self._ended,
                "of": self._total,
                "without_improvement": found.since,
                "stopped": self._has_stopped(),
            }
        samples = self._samples.summary(self.result_step()) if self._samples else {}
        return told | samples | self._meter.summary()

    def _record(self, step: int, sets: measuring.Sets, before: measuring.Before) -> None:
        found = measuring.measure_now(self._loaded.model, sets, before)
        line = {"step": step, "learning": found}
        with (self._out / EVALUATIONS).open("a") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")
        self._evaluations.append(line)
        self._tracker.evaluation(step, found)
        told = self._standing()
        if self._rule is None or told is None:
            return
        loss = found[self._rule.watch].get("loss", math.nan)
        verdict = "the lowest so far" if told.step == step else f"the lowest was {told.loss:.4f} at step {told.step}"
        self._watcher.say(f"evaluate   step {step}: loss of {self._rule.watch} {loss:.4f}, {verdict}")
        if told.step == step and self._rule.keep == "best":
            best.keep(self._out, self._loaded.optimizer.moving(), self._evaluations, self._rule.watch)

    def _restore(self, step: int) -> None:
        found = self._standing()
        if found is not None and found.step != step:
            self._loaded.optimizer.load_masters(checkpoint.load_masters(best.folder_of(self._out, found.step)))

    def _answer(self, step: int) -> None:
        entries = self._samples.write(step) if self._samples else []
        if entries:
            self._tracker.samples(step, entries)

    def _answer_last(self) -> None:
        """Nothing is saved yet, so whatever fails here is told and costs no weights."""
        try:
            self._answer(self.result_step())
        except Exception as error:  # whatever it is
            told = str(error).partition("\n")[0]
            self._watcher.warn(
                f"samples    no answers after the last step, the rest is saved: {type(error).__name__}: {told}"
            )

    def _say(self, measured: dict) -> None:
        found, rule = self._standing(), self._rule
        if found is None or rule is None:
            return
        stopped = f"; stopped after {found.since} without improvement" if self._has_stopped() else ""
        line = f"best       at step {found.step} of {self._total}: loss of {rule.watch} {found.loss:.4f}{stopped}"
        last = measured["learning"][rule.watch]["after"].get("loss", math.inf)
        if rule.keep == "best":
            self._watcher.say(f"{line}; its weights are the result")
        elif stopped or found.step < self._ended:
            kept = f"; the result is step {self._ended} with {last:.4f}: evaluate.keep=best keeps the best"
            self._watcher.say(line + (kept if found.step < self._ended else ""))

    def _has_stopped(self) -> bool:
        return self._ended < self._total and self.stops(self._ended)

    def _standing(self) -> best.Standing | None:
        """Among the evaluations and, once it is there, what was measured after the last step."""
        return best.standing(self._evaluations + self._last, self._rule.watch) if self._rule else None

    def result_step(self) -> int:
        """The step whose weights are the result."""
        found = self._standing()
        return found.step if found and self._rule and self._rule.keep == "best" else self._ended


def _samples(prepared: Prepared, loaded: "Loaded", sets: measuring.Sets | None, out: Path, done: int) -> Samples | None:
    if sets is None or not sets.learning:
        return None
    candidates = [sequence for sequence, _ in sets.learning[0].samples]
    asked = choose(candidates, prepared.tokenizer, sets.settings, prepared.context)
    return Samples(asked, loaded.model, sets.instruments, sets.settings.sample_tokens, out, done)
