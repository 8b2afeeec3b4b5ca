"""Which library computes float32 matrix products on a CPU.

oneDNN is 8 to 20 % faster there than what torch takes by itself, and almost three times in batches of small products
(docs/log.md). torch lets it in only with the word that operands may be rounded to bf16, which it does with AMX; so it
is let in where the processor has none, and a probe of several sizes shows float32's own error.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from frisket.train.memory import bound_kernels

PROBES = ((64, 256, 64), (512, 384, 1024), (16, 2048, 384), (1024, 16, 512))
"""Rows, entries summed over, columns."""
ERROR = 1e-5
"""Largest error over the largest entry of a product; float32's own is about 1e-6, that of rounded operands 1e-3."""


class _Use:
    """The one setting of the process, and how many contexts hold it."""

    def __init__(self) -> None:
        self._lock, self._holders, self._before = threading.Lock(), 0, "none"

    def enter(self) -> None:
        """Switch it on with the first."""
        with self._lock:
            if not self._holders and _is_possible():
                self._before = _setting().fp32_precision
                _setting().fp32_precision = "bf16"
                try:
                    exact = is_exact()
                except BaseException:
                    _setting().fp32_precision = self._before
                    raise
                if not exact:
                    _setting().fp32_precision = self._before
            self._holders += 1

    def leave(self) -> None:
        """Put back what was there with the last."""
        with self._lock:
            self._holders -= 1
            if not self._holders and _is_possible():
                _setting().fp32_precision = self._before


_USE = _Use()


@contextmanager
def by_onednn() -> Iterator[bool]:
    """Let oneDNN compute float32 products while the context lasts, in the whole process; yields whether it does."""
    bound_kernels()  # before the probe: oneDNN reads it once
    _USE.enter()
    try:
        yield uses_onednn(torch.float32)
    finally:
        _USE.leave()


def is_exact() -> bool:
    """Whether products come with float32's own error, as torch is set now."""
    generator = torch.Generator("cpu").manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device="cpu", dtype=torch.float32)

    pairs = [(drawn(rows, middle), drawn(middle, columns)) for rows, middle, columns in PROBES]
    pairs += [(drawn(128, 96), drawn(64, 96).T), (drawn(12, 48, 64), drawn(12, 64, 48))]  # transposed, and a batch
    return all(_error(a @ b, a.double() @ b.double()) <= ERROR for a, b in pairs)


def _error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).abs().max() / exact.abs().max())


def uses_onednn(dtype: torch.dtype) -> bool:
    """Whether oneDNN computes products of this type on a CPU, as torch is set now."""
    return dtype.itemsize == 2 or (dtype == torch.float32 and _is_possible() and _setting().fp32_precision == "bf16")


def _is_possible() -> bool:
    """Whether torch would let oneDNN in, and the processor has no instructions that round operands."""
    has_vectors = "AVX512" in torch.backends.cpu.get_cpu_capability()
    return torch.backends.mkldnn.is_available() and has_vectors and not torch.cpu._is_amx_tile_supported()


def _setting() -> Any:
    return torch.backends.mkldnn.matmul  # pyright: ignore[reportAttributeAccessIssue]  made at run time
