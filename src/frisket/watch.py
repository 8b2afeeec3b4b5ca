"""What a run tells whoever watches it: lines, progress of long work, one record a step."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from typing import Protocol

_NOT_MATHEMATICS = ("seconds", "loader_seconds", "total_steps")


@dataclass(frozen=True)
class StepRecord:
    """One optimizer step, as it was.

    Attributes:
        step: 1-based; the same number names checkpoints.
        total_steps: steps of the run.
        epoch: passes over the data completed after this step, as a fraction.
        loss: summed weighted loss over the step's normaliser.
        weight: the normaliser.
        rate: learning rate of this step.
        gradient_norm: before clipping.
        flat_tokens: tokens of the step's samples.
        computed_tokens: tokens that went through the model, padding included.
        supervised_tokens: predictions with weight != 0.
        seconds: wall time of the step.
        skipped: gradients that were not finite in fp16 and were computed again with a smaller loss scale.
        loader_seconds: host time within the step that went into samples and rows; on an accelerator, while it computed.
    """

    step: int
    total_steps: int
    epoch: float
    loss: float
    weight: float
    rate: float
    gradient_norm: float
    flat_tokens: int
    computed_tokens: int
    supervised_tokens: int
    seconds: float
    skipped: int = 0
    loader_seconds: float = 0.0

    def mathematics(self) -> dict:
        """What the mathematics decides: the same on every repetition (``metrics.jsonl``)."""
        return {name: value for name, value in asdict(self).items() if name not in _NOT_MATHEMATICS}


class Watcher(Protocol):
    """Where a run sends what a person should see."""

    def say(self, line: str) -> None:
        """Show one line."""
        ...

    def warn(self, line: str) -> None:
        """Show one line that deserves attention."""
        ...

    def progress(self, label: str, total: int | None, unit: str) -> AbstractContextManager[Callable[[int], None]]:
        """Show the progress of long work; the yielded function takes how much was done since its last call."""
        ...

    def step(self, record: StepRecord) -> None:
        """Show one optimizer step; the first and the last are known by ``step`` and ``total_steps``."""
        ...


def duration(seconds: float) -> str:
    """Wall time as a person says it: the one way in which screen, report and page write it.

    >>> [duration(seconds) for seconds in (0.42, 9.96, 42.3, 187, 7509)]
    ['0.4 s', '10 s', '42 s', '3 min 7 s', '2 h 5 min']
    """
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


class Silent:
    """A watcher that shows nothing."""

    def say(self, line: str) -> None:
        """Ignore."""

    def warn(self, line: str) -> None:
        """Ignore."""

    @contextmanager
    def progress(self, label: str, total: int | None, unit: str) -> Iterator[Callable[[int], None]]:
        """Ignore."""
        yield lambda done: None

    def step(self, record: StepRecord) -> None:
        """Ignore."""


class WarningsOnly(Silent):
    """Shows every warning once, and nothing else: for runs whose progress nobody asked to see.

    Args:
        show: takes each line.
    """

    def __init__(self, show: Callable[[str], None]) -> None:
        self._show = show
        self._shown: set[str] = set()

    def warn(self, line: str) -> None:
        """Show a line that was not shown before."""
        if line not in self._shown:
            self._shown.add(line)
            self._show(line)
