"""Host arrays to a device, without the host waiting for it."""

import numpy as np
import torch
from torch import Tensor

PINNED_BYTES = 1 << 20
"""Larger arrays (dense masks) are not pinned: torch keeps pinned memory, and a host that runs ahead would pin many."""


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """The array as a tensor on a device; for CUDA through pinned memory, so that the copy is only queued."""
    tensor = torch.from_numpy(array)
    if device.type == "cuda" and array.nbytes <= PINNED_BYTES:
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
