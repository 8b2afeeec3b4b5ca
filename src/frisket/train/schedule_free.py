"""Schedule-free AdamW: an average of the iterates in place of a falling rate.

Source: Defazio et al. 2024, arXiv 2405.15682, algorithm 1. Three sequences: z moves, x (what is evaluated and saved) is
the weighted mean of all z so far, and gradients are taken at y = (1 - beta1) z + beta1 x. The parameters given to this
class are x. Differs, as the authors' package does: the second moment is corrected for its start in the denominator,
not in the rate. Steps weigh by the square of the largest rate so far (the paper: of their own rate, the same while the
rate does not fall).
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


class ScheduleFreeAdamW(torch.optim.Optimizer):
    """Schedule-free AdamW over x; all state exists from the start.

    Args:
        groups: parameter groups, each with its ``weight_decay``, which is applied at y.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], betas: tuple[float, float], eps: float) -> None:
        super().__init__(groups, {"lr": 0.0, "betas": betas, "eps": eps, "weight_decay": 0.0})
        for group in self.param_groups:
            for x in group["params"]:
                self.state[x] = {
                    "step": torch.zeros((), dtype=torch.float64),
                    "largest_rate": torch.zeros((), dtype=torch.float64),
                    "weight_sum": torch.zeros((), dtype=torch.float64),
                    "z": x.detach().clone(),
                    "exp_avg_sq": torch.zeros_like(x),
                }
        self._beta1 = betas[0]

    def gradient_point(self, x: Tensor) -> Tensor:
        """Y: where the next gradient is taken."""
        return x.lerp(self.state[x]["z"], 1 - self._beta1)

    @torch.no_grad()
    def restart(self) -> None:
        """Let z be x, after x was replaced from outside."""
        for x, state in self.state.items():
            state["z"].copy_(x)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Move z by the gradient at y, and x towards z."""
        for group in self.param_groups:
            beta2, rate = group["betas"][1], group["lr"]
            for x in group["params"]:
                state = self.state[x]
                share = _share(state, rate)
                if x.grad is None:
                    continue
                z, second = state["z"], state["exp_avg_sq"]
                y = self.gradient_point(x)
                second.mul_(beta2).addcmul_(x.grad, x.grad, value=1 - beta2)
                root = second.div(1 - beta2 ** float(state["step"])).sqrt_().add_(group["eps"])
                z.sub_((x.grad / root).add_(y, alpha=group["weight_decay"]), alpha=rate)
                x.lerp_(z, share)


def _share(state: dict[str, Tensor], rate: float) -> float:
    """Count one step; the share of z in the mean after it."""
    state["step"] += 1
    state["largest_rate"].clamp_(min=rate)
    weight = state["largest_rate"].square()
    state["weight_sum"] += weight
    return float(weight / state["weight_sum"]) if state["weight_sum"] else 0.0
