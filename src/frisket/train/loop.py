"""The loop: take the next step's samples, lay them out, move the weights, write down what happened."""

import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType

from frisket.adapt.base import Attached
from frisket.data.loader import Order, Step, sample_hash
from frisket.errors import CheckError
from frisket.hf.forward import Model
from frisket.supervise.predictions import Weighted
from frisket.train import checkpoint
from frisket.train.optim import Optimizer, rate_at
from frisket.train.settings import TrainSettings
from frisket.train.step import Laying, StepInput, lay_out, run_step
from frisket.train.tracking import NO_TRACKER, Tracker
from frisket.watch import StepRecord


@dataclass(frozen=True)
class Run:
    """Everything the loop needs; made by ``run.py``.

    Attributes:
        weighted: the sequence and target weights of a global sample index.
        total_steps: steps of the whole run.
        rate: peak learning rate.
        save_steps: a checkpoint every so many steps; 0 for none in between.
        evaluate_steps: call ``evaluate`` every so many steps; 0 for never. A checkpoint of the same step is written
            after it: whatever is resumed from has been measured.
        enough: whether the run may end early, by what the step was.
        stops: whether the run ends after this step, by what was measured until then; asked again on resume.
        tracker: takes every step as well.
        recipe_hash: what must not change on resume.
        machine: what byte-identical resume is promised for.
    """

    model: Model
    attached: Attached
    optimizer: Optimizer
    order: Order
    weighted: Callable[[int], Weighted]
    laying: Laying
    normaliser: str | float
    settings: TrainSettings
    rate: float
    total_steps: int
    save_steps: int
    evaluate_steps: int
    out: Path
    recipe_hash: str
    machine: str
    on_step: Callable[[StepRecord], None] = lambda record: None
    evaluate: Callable[[int], None] = lambda step: None
    enough: Callable[[StepRecord], bool] = lambda record: False
    stops: Callable[[int], bool] = lambda step: False
    tracker: Tracker = NO_TRACKER


@dataclass
class Totals:
    """What the run has used so far."""

    step: int = 0
    epoch: int = 0
    index: int = -1
    samples: str = ""
    seconds: float = 0.0
    loader_seconds: float = 0.0  # since the start or resume
    tokens: dict[str, int] = field(default_factory=lambda: {"flat": 0, "computed": 0, "supervised": 0})
    last: StepRecord | None = None


def run_loop(run: Run, start: checkpoint.State | None = None) -> Totals:
    """Train until the last step, or until the run is told that it is over.

    Args:
        run: what to do.
        start: where to continue; its weights have been loaded already.

    Raises:
        CheckError: a step is not finite, or the data of a resumed run is not what it was.
        KeyboardInterrupt: Ctrl-C; the step was finished and a checkpoint written first.
    """
    totals = Totals()
    if start is not None:
        _check_same_samples(run, start)
        totals = Totals(start.step, start.epoch, start.index, start.samples, start.seconds, tokens=dict(start.tokens))
    run.attached.begin(run.total_steps)
    with _Record(run.out, totals.step, run.tracker) as record, _finishing_the_step() as is_interrupted:
        loader = _Loader(run, None if start is None else (start.epoch, start.index), run.total_steps - totals.step)
        while totals.step < run.total_steps and not run.stops(totals.step):
            step, laid, totals.last = _taken(run, loader, totals.step + 1)
            _add(totals, step, laid, totals.last)
            record(totals.last)
            number = totals.step
            if run.evaluate_steps and number % run.evaluate_steps == 0 and number < run.total_steps:
                run.evaluate(number)
            is_over = run.enough(totals.last) or run.stops(number)
            if is_over:
                totals.last = replace(totals.last, total_steps=number)
            elif run.save_steps and number % run.save_steps == 0 and number < run.total_steps:
                save(run, totals)
            run.on_step(totals.last)
            if is_over:
                break
            if is_interrupted():
                save(run, totals)
                raise KeyboardInterrupt
    save(run, totals)
    return totals


def _taken(run: Run, loader: "_Loader", number: int) -> tuple[Step, StepInput, StepRecord]:
    """Take one step."""
    began = time.perf_counter()
    step, laid = loader.take()
    rate = rate_at(number, run.total_steps, run.rate, run.settings)
    moved = run_step(
        run.model,
        run.attached,
        run.optimizer,
        laid,
        run.laying,
        number=number,
        rate=rate,
        meanwhile=loader.prefetch,
    )
    record = StepRecord(
        number,
        run.total_steps,
        step.epoch + (step.index + 1) / step.of,
        moved.loss,
        laid.divisor,
        rate,
        moved.norm,
        laid.flat_tokens,
        laid.computed_tokens,
        laid.supervised_tokens,
        time.perf_counter() - began,
        moved.skipped,
        loader.seconds(),
    )
    return step, laid, record


class _Loader:
    """Lays out the steps of a run, the next one while the device computes this one.

    Args:
        after: (epoch, index) of the step before the first; None for the beginning.
        left: steps that will be taken at most.
    """

    def __init__(self, run: Run, after: tuple[int, int] | None, left: int) -> None:
        self._run, self._steps, self._left = run, run.order.steps(after), left
        self._next: tuple[Step, StepInput] | Exception | None = None
        self._seconds = 0.0

    def take(self) -> tuple[Step, StepInput]:
        """The next step.

        Raises:
            FrisketError: what was wrong with its samples; only now, so that the step before it is whole.
        """
        self.prefetch()
        assert self._next is not None, "a step beyond the last"
        taken, self._next = self._next, None
        if isinstance(taken, Exception):
            raise taken
        return taken

    def prefetch(self) -> None:
        """Lay out the next step, unless that is done or there is none."""
        if self._next is not None or not self._left:
            return
        began = time.perf_counter()
        try:
            step = next(self._steps)
            samples = [self._run.weighted(i) for i in step.samples]
            self._next = step, lay_out(samples, self._run.laying, self._run.normaliser)
        except Exception as error:  # raised where the step is taken
            self._next = error
        self._left -= 1
        self._seconds += time.perf_counter() - began

    def seconds(self) -> float:
        """Host seconds spent since the last call; on a CPU no step computes meanwhile."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds


@contextmanager
def _finishing_the_step() -> Iterator[Callable[[], bool]]:
    """Let a first Ctrl-C wait for the end of the step, which no second one does."""
    asked: list[int] = []

    def ask(number: int, frame: FrameType | None) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        print("Stopping after this step, with a checkpoint. Once more: at once, without.", file=sys.stderr)

    if threading.current_thread() is not threading.main_thread():  # signals reach the main thread only
        yield lambda: False
        return
    before = signal.signal(signal.SIGINT, ask)
    try:
        yield lambda: bool(asked)
    finally:
        signal.signal(signal.SIGINT, before)


def save(run: Run, totals: Totals) -> Path:
    """Write a checkpoint of this moment."""
    state = checkpoint.State(
        totals.step,
        totals.epoch,
        totals.index,
        totals.samples,
        run.total_steps,
        run.recipe_hash,
        run.machine,
        totals.seconds,
        totals.tokens,
    )
    return checkpoint.save(run.out, state, run.optimizer.moving(), run.optimizer.state(), run.settings.keep)


def _add(totals: Totals, step: Step, laid: StepInput, record: StepRecord) -> None:
    totals.step += 1
    totals.epoch, totals.index = step.epoch, step.index
    totals.samples = sample_hash(laid.sample_ids, totals.samples)
    totals.seconds += record.seconds
    totals.loader_seconds += record.loader_seconds
    totals.tokens["flat"] += record.flat_tokens
    totals.tokens["computed"] += record.computed_tokens
    totals.tokens["supervised"] += record.supervised_tokens


def _check_same_samples(run: Run, start: checkpoint.State) -> None:
    """Recompute which samples were taken up to the checkpoint and compare.

    Raises:
        CheckError: they differ.
    """
    taken = ""
    for step in _until(run.order.steps(), start.epoch, start.index):
        taken = sample_hash([run.weighted(i)[0].sample_id for i in step.samples], taken)
    if taken != start.samples:
        raise CheckError(
            f"the samples of the first {start.step} steps are not those that the checkpoint was made with: the data "
            "changed.\n"
            "Start afresh with another --out."
        )


def _until(steps: Iterator[Step], epoch: int, index: int) -> Iterator[Step]:
    for step in steps:
        yield step
        if (step.epoch, step.index) >= (epoch, index):
            return


def keep_records(path: Path, done: int) -> None:
    """Drop the lines of a record that lie after a step, and what was half-written."""
    if not path.exists():
        return
    with path.open(encoding="utf-8", newline="\n") as file:  # only \n ends a line: answers may hold U+2028
        lines = list(file)
    kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= done]
    if kept != lines:
        path.write_text("".join(kept), encoding="utf-8", newline="\n")


class _Record:
    """``metrics.jsonl`` and ``timings.jsonl``; a resumed run first drops what lies after its checkpoint."""

    def __init__(self, out: Path, done: int, tracker: Tracker) -> None:
        self._tracker = tracker
        self._paths = {name: out / f"{name}.jsonl" for name in ("metrics", "timings")}
        for path in self._paths.values():
            keep_records(path, done)

    def __enter__(self) -> Callable[[StepRecord], None]:
        self._files = {name: path.open("a", buffering=1) for name, path in self._paths.items()}
        return self._write

    def __exit__(self, *exception: object) -> None:
        for file in self._files.values():
            file.close()

    def _write(self, record: StepRecord) -> None:
        self._files["metrics"].write(json.dumps(record.mathematics()) + "\n")
        timing = {
            "step": record.step,
            "seconds": round(record.seconds, 4),
            "loader_seconds": round(record.loader_seconds, 4),
            "real_tokens_per_second": round(record.flat_tokens / record.seconds, 1),
        }
        self._files["timings"].write(json.dumps(timing) + "\n")
        self._tracker.step(record)
