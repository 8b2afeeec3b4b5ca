"""Which library computes float32 matrix products on a CPU.

oneDNN is 8 to 20 % faster there than what torch takes by itself, and almost three times in batches of small products
(docs/log.md). torch lets it in only with the word that operands may be rounded to bf16, which it does with AMX; so it
is let in where the processor has none, and a probe of several sizes shows float32's own error.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from frisket.train.memory import bound_kernels

PROBES = ((64, 256, 64), (512, 384, 1024), (16, 2048, 384), (1024, 16, 512))
"""Rows, entries summed over, columns."""
ERROR = 1e-5
"""Largest error over the largest entry of a product; float32's own is about 1e-6, that of rounded operands 1e-3."""


@contextmanager
def by_onednn() -> Iterator[bool]:
    """Let oneDNN compute float32 products while the context lasts; yields whether it does."""
    bound_kernels()  # before the probe: oneDNN reads it once
    setting = _setting()
    before = setting.fp32_precision
    if torch.backends.mkldnn.is_available() and not torch.cpu._is_amx_tile_supported():
        setting.fp32_precision = "bf16"
        if not is_exact():
            setting.fp32_precision = before
    try:
        yield setting.fp32_precision != before
    finally:
        setting.fp32_precision = before


def is_exact() -> bool:
    """Whether products come with float32's own error, as torch is set now."""
    generator = torch.Generator().manual_seed(0)
    for rows, middle, columns in PROBES:
        a, b = (torch.randn(shape, generator=generator) for shape in ((rows, middle), (middle, columns)))
        exact = a.double() @ b.double()
        if float(((a @ b).double() - exact).abs().max() / exact.abs().max()) > ERROR:
            return False
    return True


def uses_onednn(dtype: torch.dtype) -> bool:
    """Whether oneDNN computes products of this type on a CPU, as torch is set now."""
    return dtype.itemsize == 2 or (dtype == torch.float32 and _setting().fp32_precision == "bf16")


def _setting() -> Any:
    return torch.backends.mkldnn.matmul  # pyright: ignore[reportAttributeAccessIssue]  made at run time
