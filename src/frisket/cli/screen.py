"""What a person sees: lines, bars, the live state of training, the final screen."""

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Table
from rich.text import Text

from frisket.cli import final
from frisket.cli.words import figure
from frisket.watch import StepRecord, duration

if TYPE_CHECKING:
    from frisket.run.opening import Answered

_BARS = "▁▂▃▄▅▆▇█"
_WINDOW = 20
_PLAIN_STEPS, _PLAIN_SECONDS = 10, 10.0
_SLOW = 1.0


class Screen:
    """A watcher for people: live where it writes to a terminal, plain lines elsewhere."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._bars = Progress(*_columns(console.width), console=console, auto_refresh=False)
        self._live: Live | None = None
        self._training: Training | None = None
        self._last_plain = 0.0

    @classmethod
    def open(cls, as_json: bool) -> "Screen":
        """The screen of a verb: stdout, or stderr where stdout is for a program."""
        return cls(Console(stderr=as_json, highlight=False, emoji=False))

    def __enter__(self) -> "Screen":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._training = None
        for task in list(self._bars.tasks):
            self._bars.remove_task(task.id)
        self._settle()

    def head(self, line: str) -> None:
        """Show the first line."""
        name, _, rest = line.partition(" · ")
        self.console.print(Text.assemble((name, "bold"), f" · {rest}" if rest else ""), soft_wrap=True)

    def say(self, line: str) -> None:
        """Show one line."""
        self.console.print(line, markup=False, soft_wrap=not self.console.is_terminal)

    def warn(self, line: str) -> None:
        """Show one line that stands out."""
        self.console.print(
            Text.assemble(("warning ", "bold yellow"), (line, "yellow")), soft_wrap=not self.console.is_terminal
        )

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Say that libraries are being loaded, where that takes longer than a second."""
        timer = threading.Timer(_SLOW, self.say, ["  loading torch and transformers …"])
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    @contextmanager
    def progress(self, label: str, total: int | None, unit: str) -> Iterator[Callable[[int], None]]:
        """Show a bar, or a plain line every ten seconds; what took longer than a second leaves a line."""
        task = self._bars.add_task(label, total=total, unit=unit)
        begun = time.monotonic()
        done = 0

        def advance(more: int) -> None:
            nonlocal done
            done += more
            self._bars.advance(task, more)

        def pulse() -> None:
            self.say(f"  {label}: {_pace(done, total, unit, time.monotonic() - begun)}")

        self._show()
        try:
            with _every(_PLAIN_SECONDS, pulse, is_wanted=not self.console.is_terminal):
                yield advance
        finally:
            self._bars.remove_task(task)
            self._settle()
        if time.monotonic() - begun > _SLOW:
            line = f"  {label}: {_pace(done, None, unit, time.monotonic() - begun)}"
            self.console.print(line, style="dim", markup=False, soft_wrap=True)

    def step(self, record: StepRecord) -> None:
        """Show one optimizer step."""
        if self._training is None or record.step <= self._training.last.step:
            self._training = Training(record)
        else:
            self._training.add(record)
        if self.console.is_terminal:
            self._show()
        elif self._is_due(record):
            self._last_plain = time.monotonic()
            self.say(self._training.line())
        if record.step >= record.total_steps:
            ended, self._training = self._training, None
            self._settle()
            self.say(ended.closing_line())

    def show_summary(self, summary: Mapping, out: Path) -> None:
        """Show the final screen of a run.

        Args:
            summary: as written to ``summary.json``.
        """
        self.console.print(final.summary_screen(summary, out, self.console.width))

    def show_measures(self, result: Mapping) -> None:
        """Show the tables of learning and forgetting."""
        self.console.print(Group(*final.measures(result, self.console.width)))

    def show_answers(
        self, prompts: Sequence[str], answers: "Sequence[Answered]", bases: "Sequence[Answered] | None"
    ) -> None:
        """Show answers, beside those of the base where they are given."""
        self.console.print(final.answers(prompts, answers, bases))

    def show_facts(self, facts: Mapping) -> None:
        """Show names and values, one a line."""
        self.console.print(final.facts(facts))

    def ask(self, go_on: bool = False) -> str:
        """Read one line: from the keyboard, where a paste of several lines is one; else from a pipe, and show it.

        Args:
            go_on: the line goes on with a message that was begun.

        Raises:
            EOFError: the input is at its end.
        """
        prompt = "…      " if go_on else "you    "
        if self.console.is_terminal and sys.stdin.isatty():
            # An editor of lines must know which characters of the prompt take no room.
            return input(f"\x01\x1b[1m\x02{prompt}\x01\x1b[0m\x02" if _has_line_editor() else prompt)
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        self.console.out(f"{prompt}{line.rstrip()}", highlight=False)
        return line.rstrip("\n")

    def _is_due(self, record: StepRecord) -> bool:
        is_edge = record.step == 1 or record.step >= record.total_steps
        return is_edge or record.step % _PLAIN_STEPS == 0 or time.monotonic() - self._last_plain > _PLAIN_SECONDS

    def _show(self) -> None:
        if self.console.is_terminal and self._live is None:
            self._live = Live(get_renderable=self._render, console=self.console, refresh_per_second=4, transient=True)
            self._live.start()

    def _settle(self) -> None:
        if self._live is not None and self._training is None and not self._bars.tasks:
            self._live.stop()
            self._live = None

    def _render(self) -> RenderableType:
        shown: list[RenderableType] = [self._bars.get_renderable()] if self._bars.tasks else []
        if self._training is not None:
            shown.insert(0, self._training.panel(self.console.width))
        return Group(*shown)


@contextmanager
def _every(seconds: float, act: Callable[[], None], *, is_wanted: bool) -> Iterator[None]:
    """Act again and again for as long as the context lasts: one batch of a large model takes longer than any pause."""
    if not is_wanted:
        yield
        return
    is_over = threading.Event()

    def wait() -> None:
        while not is_over.wait(seconds):
            act()

    thread = threading.Thread(target=wait, name="frisket-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


@cache
def _has_line_editor() -> bool:
    """Whether `input` edits lines with GNU readline, which then takes a paste of several lines as one."""
    try:
        import readline
    except ImportError:
        return False
    readline.parse_and_bind("set enable-bracketed-paste on")  # Python switches it off, for its own prompt
    return True


class Training:
    """The steps of a run so far, as lines."""

    def __init__(self, first: StepRecord) -> None:
        self.last = first
        self._losses = [first.loss]
        self._recent: deque[StepRecord] = deque([first], maxlen=_WINDOW)
        self._flat, self._seconds = first.flat_tokens, first.seconds

    def add(self, record: StepRecord) -> None:
        """Take in the next step."""
        self.last = record
        self._losses.append(record.loss)
        self._recent.append(record)
        self._flat += record.flat_tokens
        self._seconds += record.seconds

    def left(self) -> str:
        """Time left at the pace of the last steps, in words; empty behind the last step."""
        if self.last.step >= self.last.total_steps:
            return ""
        each = sum(record.seconds for record in self._recent) / len(self._recent)
        return f"{duration(each * (self.last.total_steps - self.last.step))} left"

    def rates(self) -> tuple[str, str]:
        """Real and supervised tokens a second over the last steps."""
        seconds = max(sum(record.seconds for record in self._recent), 1e-9)
        real = sum(record.flat_tokens for record in self._recent) / seconds
        supervised = sum(record.supervised_tokens for record in self._recent) / seconds
        return f"{real:,.0f}", f"{supervised:,.0f}"

    def line(self) -> str:
        """One step on one line, for a log."""
        last, (real, supervised) = self.last, self.rates()
        digits = len(str(last.total_steps))
        return (
            f"  step {last.step:>{digits}}/{last.total_steps}  loss {last.loss:.4f}  rate {last.rate:.2e}  "
            f"norm {figure(last.gradient_norm)}  {real} real tokens/s ({supervised} supervised)  {self.left()}"
        ).rstrip()

    def closing_line(self) -> str:
        """What remains on the screen when training is over: of a resumed run the steps since then, and said so."""
        seconds = max(self._seconds, 1e-9)
        steps = f"{len(self._losses):,} steps" if len(self._losses) > 1 else "1 step"
        if len(self._losses) < self.last.step:
            steps += f" ({self.last.step - len(self._losses) + 1:,} to {self.last.step:,})"
        from frisket.report.plots import ends

        first, last, size = ends(self._losses)
        told = f"loss {figure(first)} → {figure(last)}"
        if size > 1:  # the same figures stand in report.html
            told += f" (means of the first and last {size} steps)"
        return f"  trained {steps} in {duration(self._seconds)}: {told}, {self._flat / seconds:,.0f} real tokens/s"

    def panel(self, width: int) -> RenderableType:
        """The live state: a bar, the loss as a small curve, the figures."""
        last, (real, supervised) = self.last, self.rates()
        bar = Progress(*_columns(width), auto_refresh=False)
        bar.add_task(
            "training",
            total=last.total_steps,
            completed=last.step,
            unit=" · ".join(part for part in ("steps", f"{real} real tokens/s", self.left()) if part),
        )
        figures = Table.grid(padding=(0, 2))
        loss = Text.assemble("  loss ", (f"{last.loss:.4f}", "bold"))
        curve = Text(sparkline(self._losses, 8 if width < 100 else 24), style="cyan")
        others = f"rate {last.rate:.2e}  norm {figure(last.gradient_norm)}  {supervised} supervised tokens/s"
        figures.add_row(loss, curve, others)
        return Group(bar.get_renderable(), figures)


def sparkline(values: Sequence[float], width: int) -> str:
    """Draw values as bars of eight heights, at most ``width`` of them; each bar is the mean of its share.

    >>> sparkline([4.0, 3.0, 2.0, 1.0], 8)
    '█▆▃▁'
    """
    count = min(width, len(values))
    edges = [round(index * len(values) / count) for index in range(count + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, span = min(means), max(means) - min(means)
    return "".join(_BARS[round((mean - low) / span * 7) if span > 0 else 0] for mean in means)


class _Count(ProgressColumn):
    """Done, total and unit."""

    def render(self, task: Task) -> Text:
        total = None if task.total is None else int(task.total)
        return Text(_amount(int(task.completed), total, task.fields["unit"]))


class _Pace(ProgressColumn):
    """Rate and time left, where they are known; the training bar carries its own."""

    def render(self, task: Task) -> Text:
        if not task.speed:
            return Text("")
        left = f"  {duration(task.time_remaining)} left" if task.time_remaining is not None else ""
        return Text(f"{figure(task.speed)}/s{left}", style="dim")


def _columns(width: int) -> list[ProgressColumn]:
    return [TextColumn("  {task.description}"), BarColumn(bar_width=6 if width < 100 else 24), _Count(), _Pace()]


def _pace(done: int, total: int | None, unit: str, seconds: float) -> str:
    """How much in how long; where both are known, the rate and the time left.

    >>> _pace(50, 200, "samples", 20.0), _pace(0, None, "samples", 20.0)
    ('50/200 samples · 20 s · 2.500/s, 1 min 0 s left', '20 s')
    """
    told = duration(seconds) if not done and total is None else f"{_amount(done, total, unit)} · {duration(seconds)}"
    if not done or total is None:
        return told
    return f"{told} · {figure(done / seconds)}/s, {duration(seconds / done * (total - done))} left"


def _amount(done: int, total: int | None, unit: str) -> str:
    if total is None:
        return f"{done:,} {unit.removesuffix('s') if done == 1 else unit}"
    return f"{done:,}/{total:,} {unit}"
