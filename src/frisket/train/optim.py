"""Masters, gradient buffers, the update. What the model computes with may be narrower than what moves.

In bf16 a moving parameter is the shadow of an fp32 master; gradients of each micro-batch are added into fp32 buffers;
after the update the masters are rounded into the parameters with ``copy_`` (an assignment would move the operand, and
matmul bits depend on its address). In fp32 and fp64 a parameter is its own master.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from frisket.errors import CheckError
from frisket.train.settings import TrainSettings


class Optimizer:
    """The only owner of what moves between two steps.

    Args:
        parameters: what moves, by name, in the type it was created in (fp32 or fp64).
        settings: rates, decay, clipping.
        compute: type the model computes in; parameters are cast to it here.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], settings: TrainSettings, compute: torch.dtype) -> None:
        self._parameters = dict(parameters)
        self._clip = settings.clip
        self.masters = {name: _master(parameter, compute) for name, parameter in self._parameters.items()}
        matrices = [m for m in self.masters.values() if m.dim() > 1]
        others = [m for m in self.masters.values() if m.dim() <= 1]
        groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
        groups = [group for group in groups if group["params"]]
        if settings.optimizer == "adamw":
            self._update = torch.optim.AdamW(groups, lr=0.0, betas=settings.betas, eps=settings.epsilon, fused=True)
        else:
            self._update = torch.optim.SGD(groups, lr=0.0)
        self._make_state(settings)

    def accumulate(self) -> None:
        """Add the gradients of one micro-batch into the buffers and clear them."""
        for name, parameter in self._parameters.items():
            master = self.masters[name]
            if master is parameter or parameter.grad is None:
                continue
            if master.grad is None:
                master.grad = parameter.grad.to(master.dtype)
            else:
                master.grad.add_(parameter.grad)
            parameter.grad = None

    def clip(self) -> float:
        """Clip the step's gradient.

        Returns:
            Its norm before clipping; not finite where an entry is not.
        """
        grads = [master.grad for master in self.masters.values() if master.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(grads))
        if self._clip and norm > self._clip and math.isfinite(norm):
            torch._foreach_mul_(grads, self._clip / (norm + 1e-6))  # pyright: ignore[reportPrivateImportUsage]
        return norm

    def update(self, rate: float) -> None:
        """Move the masters by one step and round them into the model."""
        for group in self._update.param_groups:
            group["lr"] = rate
        self._update.step()
        self.clear()
        self.write_back()

    @torch.no_grad()
    def write_back(self) -> None:
        """Round the masters into the model's parameters."""
        for name, parameter in self._parameters.items():
            if self.masters[name] is not parameter:
                parameter.copy_(self.masters[name])

    def clear(self) -> None:
        """Forget all gradients."""
        for name, parameter in self._parameters.items():
            parameter.grad = None
            self.masters[name].grad = None

    def state_of(self, name: str) -> dict[str, Tensor]:
        """The optimizer's own tensors of one parameter."""
        return self._update.state[self.masters[name]]

    def state(self) -> dict[str, Tensor]:
        """All optimizer tensors, by ``<parameter>/<tensor>``."""
        return {f"{name}/{key}": value for name in self.masters for key, value in self.state_of(name).items()}

    def load(self, masters: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
        """Copy saved masters and optimizer tensors in.

        Raises:
            CheckError: names are not those of this run.
        """
        self.load_masters(masters)
        _copy_all(self.state(), state)

    def load_masters(self, masters: Mapping[str, Tensor]) -> None:
        """Copy saved masters in and round them into the model.

        Raises:
            CheckError: names are not those of this run.
        """
        _copy_all(self.masters, masters)
        self.write_back()

    def _make_state(self, settings: TrainSettings) -> None:
        """Create the state that torch would create at the first step: fresh and resumed runs are built alike."""
        if settings.optimizer != "adamw":
            return
        for master in self.masters.values():
            self._update.state[master] = {
                "step": torch.zeros((), dtype=torch.float32, device=master.device),
                "exp_avg": torch.zeros_like(master, memory_format=torch.preserve_format),
                "exp_avg_sq": torch.zeros_like(master, memory_format=torch.preserve_format),
            }


@torch.no_grad()
def _copy_all(own: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    if set(own) != set(saved):
        raise CheckError("the checkpoint's tensors are not those of this run: was the recipe changed?")
    for name, value in saved.items():
        own[name].copy_(value)


def _master(parameter: nn.Parameter, compute: torch.dtype) -> Tensor:
    wide = torch.promote_types(compute, torch.float32)
    if compute == wide:
        parameter.data = parameter.data.to(wide)
        return parameter
    master = parameter.detach().to(wide, copy=True)
    parameter.data = parameter.data.to(compute)
    return master


def rate_at(step: int, total: int, peak: float, settings: TrainSettings) -> float:
    """Learning rate of a step (1-based): linear warm-up, then cosine, linear or constant down to ``final_rate``."""
    warmup = warmup_steps(total, settings)
    if step <= warmup:
        return peak * step / (warmup + 1)
    done = (step - 1 - warmup) / max(1, total - warmup)
    final = peak * settings.final_rate
    if settings.schedule == "constant":
        return peak
    if settings.schedule == "linear":
        return final + (peak - final) * (1 - done)
    return final + (peak - final) * 0.5 * (1 + math.cos(math.pi * done))


def warmup_steps(total: int, settings: TrainSettings) -> int:
    """Steps of warm-up: a share of the run below 1, else the number itself."""
    return round(settings.warmup * total) if settings.warmup < 1 else min(int(settings.warmup), total)
