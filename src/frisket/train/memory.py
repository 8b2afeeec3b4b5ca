"""How much memory a run will take at its highest, term by term, and which layers are computed again so that it fits.

    peak    = the highest of: the checks, evaluation, answering, a training step, saving
    each    = process + weights + masters + gradient buffers + optimizer + what that phase allocates
    a step  = the highest of: activations + forward, activations + logits, activations + backward

What a step allocates is not estimated: ``memory_trace`` runs it on the meta device. ``docs/memory.md`` has every term.
"""

import ctypes
import os
import resource
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from frisket.errors import ConfigError

MIB = 1 << 20
LATER_PAGES = 48 * MIB
"""Code and tables of torch and its kernels that are read when first used, after the prediction (torch 2.13, CPU)."""
KERNEL_BYTES = 580 * 1024
KERNELS = 1024
"""Shapes of matmuls in 16 bits after which memory grows no more (measured, torch 2.13)."""
KEPT_KERNELS = 64
HOLES = 0.5
"""Share of what a step allocates that glibc's allocator keeps in holes between blocks, see docs/memory.md."""


class Term(NamedTuple):
    """One line of a prediction.

    Attributes:
        why: its arithmetic in words.
    """

    name: str
    bytes: int
    why: str


@dataclass(frozen=True)
class Phase:
    """A part of the run, and all that is in memory at its highest moment."""

    name: str
    terms: tuple[Term, ...]

    @property
    def bytes(self) -> int:
        """Sum of the terms."""
        return sum(term.bytes for term in self.terms)


@dataclass(frozen=True)
class Prediction:
    """Memory of a run.

    Attributes:
        phases: in the order of the run.
        recomputed: decoder layers computed again in the backward.
        layers: decoder layers of the model.
        device: where; on ``cuda`` the process itself is not counted.
    """

    phases: tuple[Phase, ...]
    recomputed: int
    layers: int
    device: str

    @property
    def highest(self) -> Phase:
        """The phase that decides."""
        return max(self.phases, key=lambda phase: phase.bytes)

    @property
    def bytes(self) -> int:
        """Predicted peak."""
        return self.highest.bytes

    def line(self) -> str:
        """The peak and its largest terms, for the terminal."""
        largest = sorted(self.highest.terms, key=lambda term: -term.bytes)
        terms = ", ".join(f"{term.name} {sized(term.bytes)}" for term in largest if term.bytes >= self.bytes / 100)
        return f"{sized(self.bytes)} at the highest ({self.highest.name}): {terms}"

    def as_dict(self) -> dict:
        """Plain values, for ``--json``."""
        return {
            "bytes": self.bytes,
            "highest": self.highest.name,
            "recomputed_layers": self.recomputed,
            "device": self.device,
            "phases": [
                {"name": phase.name, "bytes": phase.bytes, "terms": [term._asdict() for term in phase.terms]}
                for phase in self.phases
            ],
        }


class Choice(NamedTuple):
    """Layers that are recomputed, and what to tell about it.

    Attributes:
        told: one line; empty where there is nothing to tell.
        fits: False where even all layers recomputed take more than is free.
    """

    layers: int
    told: str
    fits: bool


def choose_recompute(
    setting: Literal["auto", "none", "all"] | int,
    layers: int,
    predict: Callable[[int], Prediction] | None,
    free: float | None,
) -> Choice:
    """How many of the first layers are recomputed in the backward pass.

    ``auto`` recomputes as few as fit.

    Args:
        layers: decoder layers of the model.
        predict: the prediction with so many layers recomputed; None where there is none, and ``auto`` keeps all.
        free: bytes that the run may take, those that the process holds already included; None where unknown.

    Raises:
        ConfigError: more layers than the model has.
    """
    if isinstance(setting, int):
        if not 0 <= setting <= layers:
            raise ConfigError(
                f"train.recompute = {setting}: the model has {layers} layers.\n"
                f"Use train.recompute=all, or a number up to {layers}."
            )
        return Choice(setting, "", True)
    if setting == "all":
        return Choice(layers, "", True)
    if setting == "none" or predict is None or free is None:
        return Choice(0, "", True)
    chosen = next((count for count in range(layers + 1) if predict(count).bytes <= free), layers)
    taken = predict(chosen).bytes
    told = f"{chosen} of {layers} layers, predicted {sized(taken)} of {sized(free)} free"
    return Choice(chosen, told, taken <= free)


def bound_kernels() -> None:
    """Let oneDNN keep 64 kernels, not 1,024, unless the environment says otherwise: see docs/memory.md.

    Has an effect only before the process's first matmul in 16 bits.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(KEPT_KERNELS))


def free_bytes(device: torch.device) -> float | None:
    """Bytes that this process may hold on a device, what it holds already included; None where nobody says."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0]) + torch.cuda.memory_reserved(device)
    if device.type != "cpu":
        return None
    known = [bytes_ + resident_bytes() for bytes_ in (_available(), left_in_group()) if bytes_ is not None]
    return min(known) if known else None


def resident_bytes() -> int:
    """Memory that this process holds now; 0 where the system does not say."""
    return _of_status("VmRSS:")


def peak_bytes(device: torch.device) -> int:
    """Most memory so far: on CUDA what torch has allocated, else the process's resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return _of_status("VmHWM:") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def release() -> None:
    """Give the pages of freed blocks back to the system, between two phases; nothing where there is no glibc."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            trim(0)


def sized(count: float) -> str:
    """A number of bytes for people.

    >>> sized(3.25 * 2**30), sized(700 * 2**20), sized(2000)
    ('3.2 GiB', '700 MiB', '2 KiB')
    """
    if count >= 1 << 30:
        return f"{count / (1 << 30):.1f} GiB"
    return f"{count / MIB:.0f} MiB" if count >= MIB else f"{count / 1024:.0f} KiB"


def _of_status(name: str) -> int:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(name)), 0)


def _available() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def left_in_group(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int | None:
    """What the control groups of this process leave it, by version 2 or 1; None without a limit."""
    try:
        lines = [line.split(":", 2) for line in own.read_text().splitlines()]
    except OSError:
        return None
    left = []
    for _, controllers, path in lines:
        if controllers == "":
            left += _limits(root, path, "memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            left += _limits(root / "memory", path, "memory.limit_in_bytes", "memory.usage_in_bytes")
    return min(left, default=None)


def _limits(root: Path, path: str, limit: str, usage: str) -> list[int]:
    """What is left under the limits of a group and of those above it."""
    left = []
    folder = root / path.lstrip("/")
    for group in [folder, *folder.parents]:
        try:
            bound = (group / limit).read_text().strip()
            if bound != "max" and int(bound) < 1 << 60:  # version 1 writes a huge number for no limit
                left.append(int(bound) - int((group / usage).read_text()) + _cached(group))
        except (OSError, ValueError):
            pass  # a container sees only its own part of the tree
        if group == root:
            break
    return left


def _cached(group: Path) -> int:
    """Pages of files that the kernel drops when memory is short, but counts as used."""
    names = ("total_inactive_file", "inactive_file")
    found = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    return next((int(found[name]) for name in names if name in found), 0)
