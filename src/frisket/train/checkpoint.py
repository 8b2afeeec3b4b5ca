"""Checkpoints: written beside their final place, flushed to disk, renamed, marked complete. Never half there."""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from frisket.errors import CheckError

COMPLETE = "COMPLETE"


@dataclass(frozen=True)
class State:
    """Where a run is.

    Attributes:
        step: optimizer steps done.
        epoch: 0-based epoch of the last step.
        index: 0-based index of the last step within its epoch.
        samples: chained hash of all sample ids taken so far.
        total_steps: steps of the whole run.
        recipe: hash of what must not change on resume.
        machine: type and thread count that byte-identical resume is promised for.
        seconds: training time so far.
        tokens: flat, computed and supervised tokens so far.
    """

    step: int
    epoch: int
    index: int
    samples: str
    total_steps: int
    recipe: str
    machine: str
    seconds: float
    tokens: dict[str, int]


def save(out: Path, state: State, masters: Mapping[str, Tensor], optimizer: Mapping[str, Tensor], keep: int) -> Path:
    """Write a checkpoint and drop the oldest beyond ``keep``."""
    folder = out / "checkpoints" / f"step-{state.step:08d}"
    write(folder, {"moving": masters, "optimizer": optimizer}, asdict(state))
    for old in complete(out)[:-keep]:
        shutil.rmtree(old)
    return folder


def write(folder: Path, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping) -> None:
    """Write files of tensors and a state, flushed to disk, whole or not at all."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name, values in tensors.items():
        save_file(_plain(values), partial / f"{name}.safetensors")
    (partial / "state.json").write_text(json.dumps(state, indent=1))
    (partial / COMPLETE).write_text("")
    for path in partial.iterdir():
        _flush(path)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)
    _flush(folder.parent)


def complete(out: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(
        path.parent for path in out.glob(f"checkpoints/step-*/{COMPLETE}") if not path.parent.name.endswith(".partial")
    )


def load_state(folder: Path) -> State:
    """Where the run was.

    Raises:
        CheckError: the state is not readable.
    """
    try:
        return State(**json.loads((folder / "state.json").read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise CheckError(
            f"{folder}/state.json cannot be read: {error}.\nDelete that folder to continue from an older checkpoint."
        ) from error


def load_tensors(folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Masters and optimizer tensors."""
    return load_masters(folder), load_file(folder / "optimizer.safetensors")


def load_masters(folder: Path) -> dict[str, Tensor]:
    """Masters alone; all that the best step's folder holds."""
    return load_file(folder / "moving.safetensors")


def clean(out: Path) -> None:
    """Remove what a killed run left half-written."""
    for partial in out.glob("checkpoints/*.partial"):
        shutil.rmtree(partial)


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().contiguous().cpu() for name, value in tensors.items()}


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
