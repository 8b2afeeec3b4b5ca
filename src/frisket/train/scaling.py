"""The factor that keeps fp16 gradients inside fp16's range.

Source: Micikevicius et al. 2018, arXiv 1710.03740, section 3.2: the loss is multiplied before the backward pass, the
gradients are divided in fp32 before they are clipped. Starts at 2^16, halves when a gradient is not finite, doubles
after 2,000 good steps, as torch's GradScaler. Differs: the samples of a step whose gradient is not finite are not left
out; the step is computed again with the halved factor, so every step moves the weights once. The factor multiplies the
loss after its gradient with respect to the logits was made (``supervise/loss.py``), which is rounded to fp16 before: of
predictions with a weight below about 6e-5, fp16's smallest normal number, digits are lost, and below 6e-8 all of it, at
any factor.
"""

import torch
from torch import Tensor

from frisket.errors import CheckError

START = 2.0**16
GROW_AFTER = 2000
MOST_IN_A_ROW = 20  # binds where the factor has grown beyond 2^20; from the start it is below 1 after 17


class LossScale:
    """The factor, a power of two, and how many good steps it has lasted; both are part of a checkpoint.

    Attributes:
        state: [2] float64: factor, good steps.
    """

    def __init__(self) -> None:
        self.state: Tensor = torch.tensor([START, 0.0], dtype=torch.float64)
        self._in_a_row = 0

    @property
    def factor(self) -> float:
        """What the loss is multiplied by."""
        return float(self.state[0])

    def lower(self, step: int) -> None:
        """Halve the factor after a gradient that was not finite.

        Raises:
            CheckError: below 1, or too often in a row: the scale is not what is wrong.
        """
        self._in_a_row += 1
        self.state.copy_(torch.tensor([self.factor / 2, 0.0]))
        if self.factor < 1 or self._in_a_row > MOST_IN_A_ROW:
            raise CheckError(
                f"step {step}: the gradient in fp16 was not finite {self._in_a_row} times in a row, the last time at a "
                f"loss scale of {2 * self.factor:g}; the weights were not moved.\n"
                "The model's own numbers are beyond fp16. Start again with another --out and train.compute=fp32."
            )

    def passed(self) -> None:
        """Count a step whose gradient was finite."""
        self._in_a_row = 0
        good = float(self.state[1]) + 1
        grown = good >= GROW_AFTER
        self.state.copy_(torch.tensor([self.factor * (2 if grown else 1), 0.0 if grown else good]))
