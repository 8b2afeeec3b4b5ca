"""`sdpa`: the reference's booleans as a dense mask. For checking, and for what no fast backend can express yet."""

from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from frisket.attend.backends.matmul import Knobs, masked_attention
from frisket.attend.reference import visible
from frisket.transfer import to_device
from frisket.types import Rows


@dataclass(frozen=True)
class DenseLayout:
    """The rows, and the masks made of them, one for each window."""

    rows: Rows
    device: torch.device
    _masks: dict = field(default_factory=dict)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, knobs: Knobs) -> Float[Tensor, "row token head width"]:
        """Attention of every row under its dense mask.

        Args:
            query: [row, query_head, token, width]; ``key`` and ``value`` may have fewer heads.
            knobs: scaling, window, soft-cap and sinks of the layer.
        """
        mask = self._mask(knobs.window)
        return masked_attention(query, key, value, mask, knobs).transpose(1, 2)

    def _mask(self, window: int | None) -> Tensor:
        if window not in self._masks:
            seen = np.stack([visible(self.rows, row, window) for row in range(len(self.rows.input_ids))])
            nothing = ~seen.any(-1, keepdims=True)  # padding sees itself, so that no softmax is empty
            self._masks[window] = to_device(seen | (nothing & np.eye(seen.shape[-1], dtype=bool)), self.device)
        return self._masks[window][:, None, None]


def prepare(rows: Rows, device: torch.device) -> DenseLayout:
    """Get ready to compute attention of these rows."""
    return DenseLayout(rows, device)
