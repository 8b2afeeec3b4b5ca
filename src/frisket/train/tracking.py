"""Trackers: what the run folder's files hold, for TensorBoard or Weights & Biases as well. Nothing is sent unasked."""

import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol

from frisket.errors import ConfigError
from frisket.watch import StepRecord, Watcher

TrackerName = Literal["tensorboard", "wandb"]
_STEP_FIGURES = ("loss", "rate", "gradient_norm", "epoch", "flat_tokens", "supervised_tokens")


class Tracker(Protocol):
    """Where figures go while a run makes them; steps come in ascending order."""

    def step(self, record: StepRecord) -> None:
        """Take one optimizer step."""
        ...

    def evaluation(self, step: int, learning: Mapping[str, Mapping]) -> None:
        """Take what was measured after a step, as ``evaluations.jsonl`` holds it."""
        ...

    def samples(self, step: int, entries: Sequence[Mapping]) -> None:
        """Take the answers generated after a step, as ``samples.jsonl`` holds them."""
        ...

    def close(self) -> None:
        """Write what is left."""
        ...


class Trackers:
    """Several trackers as one; none at all is one that does nothing."""

    def __init__(self, trackers: Sequence[Tracker] = ()) -> None:
        self._trackers = trackers

    def step(self, record: StepRecord) -> None:
        """Take one optimizer step."""
        for tracker in self._trackers:
            tracker.step(record)

    def evaluation(self, step: int, learning: Mapping[str, Mapping]) -> None:
        """Take what was measured after a step."""
        for tracker in self._trackers:
            tracker.evaluation(step, learning)

    def samples(self, step: int, entries: Sequence[Mapping]) -> None:
        """Take the answers generated after a step."""
        for tracker in self._trackers:
            tracker.samples(step, entries)

    def close(self) -> None:
        """Write what is left."""
        for tracker in self._trackers:
            tracker.close()


NO_TRACKER = Trackers()


def require(names: Sequence[TrackerName]) -> None:
    """Find out whether the packages of these trackers are there, before anything expensive.

    Raises:
        ConfigError: one is missing.
    """
    for name in names:
        try:
            _ = _summary_writer() if name == "tensorboard" else _wandb()
        except ImportError as error:
            raise ConfigError(
                f"train.track names {name!r}, and its package cannot be imported: {error}.\n"
                f"Install it: pip install 'frisket[{name}]', or leave it out: 'train.track=[]'"
            ) from error


@contextmanager
def tracked(
    names: Sequence[TrackerName], out: Path, *, done: int, config: Mapping[str, Any], watcher: Watcher
) -> Iterator[Trackers]:
    """Open trackers for a run, and close them when it ends.

    Args:
        names: which.
        out: folder of the run; TensorBoard writes into ``tensorboard/``, Weights & Biases into ``wandb/``.
        done: steps that a resumed run has made already; what TensorBoard has after them is dropped.
        config: the resolved recipe.
        watcher: is told where the figures go.
    """
    opened = Trackers(
        [
            _TensorBoard(out / "tensorboard", done) if name == "tensorboard" else _WeightsAndBiases(out, config)
            for name in dict.fromkeys(names)
        ]
    )
    if "wandb" in names:
        where = "offline, nothing is sent (send it later: wandb sync)" if _mode() == "offline" else _mode()
        watcher.say(f"track      wandb: {where} · {out / 'wandb'}")
    try:
        yield opened
    finally:
        opened.close()


class _TensorBoard:
    def __init__(self, folder: Path, done: int) -> None:
        self._writer = _summary_writer()(str(folder), purge_step=done + 1 if done else None)

    def step(self, record: StepRecord) -> None:
        for name in _STEP_FIGURES:
            self._writer.add_scalar(f"train/{name}", getattr(record, name), record.step)

    def evaluation(self, step: int, learning: Mapping[str, Mapping]) -> None:
        for name, value in _figures(learning).items():
            self._writer.add_scalar(name, value, step)

    def samples(self, step: int, entries: Sequence[Mapping]) -> None:
        for entry in entries:
            self._writer.add_text(f"samples/{entry['id']}", f"    {entry['answer']}".replace("\n", "\n    "), step)

    def close(self) -> None:
        self._writer.close()


class _WeightsAndBiases:
    """A run of Weights & Biases: offline, unless the user's ``WANDB_MODE`` says otherwise."""

    def __init__(self, out: Path, config: Mapping[str, Any]) -> None:
        self._wandb = _wandb()
        self._run = self._wandb.init(
            project=os.environ.get("WANDB_PROJECT", "frisket"),
            name=out.name,
            id=_identity(out / "wandb" / "frisket-id"),
            dir=str(out),
            config=dict(config),
            mode=_mode(),
            resume="allow" if _mode() == "online" else None,
            save_code=False,
            settings=self._wandb.Settings(console="off"),  # capturing stdout would break the live display
        )

    def step(self, record: StepRecord) -> None:
        self._run.log({f"train/{name}": getattr(record, name) for name in _STEP_FIGURES}, step=record.step)

    def evaluation(self, step: int, learning: Mapping[str, Mapping]) -> None:
        self._run.log(_figures(learning), step=step)

    def samples(self, step: int, entries: Sequence[Mapping]) -> None:
        names = ["step", "id", "prompt", "answer", "reference"]
        rows = [[entry[name] for name in names] for entry in entries]
        self._run.log({"samples": self._wandb.Table(columns=names, data=rows)}, step=step)

    def close(self) -> None:
        self._run.finish()


def _figures(learning: Mapping[str, Mapping]) -> dict[str, float]:
    """``evaluate/<set>/<measure>`` of every plain number; intervals are left out."""
    return {
        f"evaluate/{name}/{measure}": value
        for name, side in learning.items()
        for measure, value in side.items()
        if isinstance(value, int | float)
    }


def _mode() -> Any:
    return os.environ.get("WANDB_MODE", "offline")


def _identity(path: Path) -> str:
    """The same for all parts of a run that was stopped and resumed."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(uuid.uuid4().hex[:12])
    return path.read_text()


def _summary_writer() -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter


def _wandb() -> Any:
    import wandb  # pyright: ignore[reportMissingImports]

    return wandb
