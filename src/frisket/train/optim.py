"""Masters, gradient buffers, the update. What the model computes with may be narrower than what moves.

In bf16 a moving parameter is the shadow of an fp32 master; gradients of each micro-batch are added into fp32 buffers;
after the update the masters are rounded into the parameters with ``copy_`` (an assignment would move the operand, and
matmul bits depend on its address). In fp16 the same, with a scaled loss. In fp32 and fp64 a parameter is its own
master, but not where the optimizer is schedule-free: its gradients are taken at another point than the weights that
are evaluated and saved, which are the masters. Between two steps the model always holds the masters.
"""

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from frisket.adapt.base import Attached, Moment
from frisket.errors import CheckError, ConfigError
from frisket.train.adam8bit import AdamW8bit, is_quantised, moment_bytes
from frisket.train.scaling import LossScale
from frisket.train.schedule_free import ScheduleFreeAdamW
from frisket.train.settings import OptimizerName, TrainSettings

_LOSS_SCALE = "loss_scale"
_EXTRA = "extra/"


class Optimizer:
    """The only owner of what moves between two steps.

    Args:
        parameters: what moves, by name, in the type it was created in (fp32 or fp64).
        settings: rates, decay, clipping.
        compute: type the model computes in; parameters are cast to it here.
        wide: names whose moments stay in 32 bits under ``adamw-8bit`` (the embedding's).
        method: whose parameters they are; may bring an update rule of its own and decide what decays.

    Raises:
        ConfigError: 8-bit moments in fp64.

    Attributes:
        masters: what moves, is evaluated, saved and reported; fp32 or fp64.
        scale: factor of the loss in fp16; else None.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        settings: TrainSettings,
        compute: torch.dtype,
        wide: Collection[str] = (),
        method: Attached | None = None,
    ) -> None:
        self._parameters = dict(parameters)
        self._settings = settings
        self._method = method
        if settings.optimizer == "adamw-8bit" and compute == torch.float64:
            raise ConfigError(
                "train.optimizer = adamw-8bit has fp32 masters, and train.compute = fp64 needs others.\n"
                "Use train.optimizer=adamw."
            )
        self.scale = LossScale() if compute == torch.float16 else None
        apart = has_own_masters(settings.optimizer, compute)
        self.masters = {name: _master(parameter, compute, apart) for name, parameter in self._parameters.items()}
        own = method.make_update(self.masters, _moment(settings)) if method else None
        if own is not None and settings.optimizer != "adamw":
            raise ConfigError(
                f"train.optimizer = {settings.optimizer}: this method brings an update rule of its own.\n"
                "Leave train.optimizer out."
            )
        decaying = {
            name for name, master in self.masters.items() if (method.decays(name) if method else master.dim() > 1)
        }
        factors = {name: method.rate_factor(name) if method else 1.0 for name in self.masters}
        self._update = own or _make_update(_groups(self.masters, settings, wide, decaying, factors), settings)

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

    def norm(self) -> Float[Tensor, ""]:
        """Divide the loss's scale out of the step's gradient, and return its norm; not finite where an entry is not."""
        grads = self._gradients()
        if self.scale is not None:
            torch._foreach_div_(grads, self.scale.factor)  # pyright: ignore[reportPrivateImportUsage]
        return torch.nn.utils.get_total_norm(grads)

    def clip(self, norm: float) -> None:
        """Scale the step's gradient of that norm down to the limit, if it is larger."""
        limit = self._settings.clip
        if limit and norm > limit and math.isfinite(norm):
            torch._foreach_mul_(self._gradients(), limit / (norm + 1e-6))  # pyright: ignore[reportPrivateImportUsage]

    def _gradients(self) -> list[Tensor]:
        return [master.grad for master in self.masters.values() if master.grad is not None]

    @torch.no_grad()
    def to_gradient_point(self) -> None:
        """Put the weights at which the next gradient is taken into the model, where those are not the masters."""
        if isinstance(self._update, ScheduleFreeAdamW):
            for name, parameter in self._parameters.items():
                parameter.copy_(self._update.gradient_point(self.masters[name]))
            self._refresh()

    def update(self, rate: float) -> None:
        """Move the masters by one step; ``write_back`` rounds them into the model."""
        for group in self._update.param_groups:
            group["lr"] = rate * group.get("factor", 1.0)  # a method's own rule has none
        self._update.step()
        if self.scale is not None:
            self.scale.passed()
        self.clear()

    @torch.no_grad()
    def write_back(self) -> None:
        """Round the masters into the model's parameters."""
        for name, parameter in self._parameters.items():
            if self.masters[name] is not parameter:
                parameter.copy_(self.masters[name])
        self._refresh()

    def _refresh(self) -> None:
        if self._method is not None:
            self._method.refresh()

    def clear(self) -> None:
        """Forget all gradients."""
        for name, parameter in self._parameters.items():
            parameter.grad = None
            self.masters[name].grad = None

    def moving(self) -> dict[str, Tensor]:
        """The masters, and what the method keeps beside them: all that a checkpoint needs of the weights."""
        extra = self._method.extra() if self._method else {}
        return self.masters | {_EXTRA + name: value for name, value in extra.items()}

    def state_of(self, name: str) -> dict[str, Tensor]:
        """The optimizer's own tensors of one parameter."""
        return self._update.state[self.masters[name]]

    def state(self) -> dict[str, Tensor]:
        """All optimizer tensors, by ``<parameter>/<tensor>``, and the loss's scale."""
        scale = {} if self.scale is None else {_LOSS_SCALE: self.scale.state}
        return scale | {f"{name}/{key}": value for name in self.masters for key, value in self.state_of(name).items()}

    def state_bytes(self) -> int:
        """Bytes of the optimizer's own tensors."""
        return sum(value.nbytes for value in self.state().values())

    def lines(self) -> list[str]:
        """What the optimizer is and keeps, for the screen; nothing of plain AdamW in fp32 or bf16."""
        told = []
        if self._settings.optimizer != "adamw":
            told.append(f"optimizer  {self._settings.optimizer}: {self.state_bytes() / 1e6:,.1f} MB of its own")
        if self._settings.schedule not in ("auto", shape_of(self._settings)):
            told.append(f"           averages its steps: train.schedule={self._settings.schedule} has no effect")
        if self.scale is not None:
            told.append(f"fp16       loss scaled by {self.scale.factor:,.0f} at first")
        return told

    def load(self, masters: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
        """Copy saved masters and optimizer tensors in.

        Raises:
            CheckError: names are not those of this run.
        """
        self.load_masters(masters)
        _copy_all(self.state(), state)

    def load_masters(self, masters: Mapping[str, Tensor]) -> None:
        """Copy saved masters in (see ``moving``) and round them into the model.

        Raises:
            CheckError: names are not those of this run.
        """
        extra = {name.removeprefix(_EXTRA): value for name, value in masters.items() if name.startswith(_EXTRA)}
        _copy_all(self.masters, {name: value for name, value in masters.items() if not name.startswith(_EXTRA)})
        if self._method is not None:
            self._method.load_extra(extra)
        if isinstance(self._update, ScheduleFreeAdamW):
            self._update.restart()
        self.write_back()


def _moment(settings: TrainSettings) -> Moment:
    return Moment(settings.betas, settings.epsilon, settings.weight_decay)


def _groups(
    masters: Mapping[str, Tensor],
    settings: TrainSettings,
    wide: Collection[str],
    decaying: Collection[str],
    factors: Mapping[str, float],
) -> list[dict[str, Any]]:
    """What decays (matrices, as a rule) and the rest; those whose moments stay wide, or with another rate, apart."""
    kinds: dict[tuple[bool, bool, float], list[Tensor]] = {}
    for name, master in masters.items():
        is_wide = settings.optimizer == "adamw-8bit" and name in wide
        kinds.setdefault((name in decaying, is_wide, factors[name]), []).append(master)
    return [
        {"params": kinds[kind], "weight_decay": settings.weight_decay if kind[0] else 0.0, "factor": kind[2]}
        | ({"wide": True} if kind[1] else {})
        for kind in sorted(kinds, reverse=True)
    ]


def _make_update(groups: list[dict[str, Any]], settings: TrainSettings) -> torch.optim.Optimizer:
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=0.0)
    if settings.optimizer == "adamw-8bit":
        return AdamW8bit(groups, settings.betas, settings.epsilon)
    if settings.optimizer == "schedule-free":
        return ScheduleFreeAdamW(groups, settings.betas, settings.epsilon)
    update = torch.optim.AdamW(groups, lr=0.0, betas=settings.betas, eps=settings.epsilon, fused=True)
    for master in (master for group in groups for master in group["params"]):
        # What torch would create at the first step: fresh and resumed runs are built alike.
        update.state[master] = {
            "step": torch.zeros((), dtype=torch.float32, device=master.device),
            "exp_avg": torch.zeros_like(master, memory_format=torch.preserve_format),
            "exp_avg_sq": torch.zeros_like(master, memory_format=torch.preserve_format),
        }
    return update


def has_own_masters(optimizer: OptimizerName, compute: torch.dtype) -> bool:
    """Whether what moves is kept beside the model's parameters (4 bytes an entry; 8 in fp64)."""
    return optimizer == "schedule-free" or compute != torch.promote_types(compute, torch.float32)


def state_bytes(
    optimizer: OptimizerName, shapes: Iterable[Collection[int]], wide: Iterable[Collection[int]] = ()
) -> int:
    """Bytes of the optimizer's own tensors over fp32 masters; masters and gradients come on top.

    Args:
        shapes: shape of each moving tensor.
        wide: shapes of those among the moving tensors, not in ``shapes``, whose moments stay in 32 bits.
    """
    if optimizer == "sgd":
        return 0
    total = 0
    for shape, is_wide in [*((shape, False) for shape in shapes), *((shape, True) for shape in wide)]:
        entries = math.prod(shape)
        eight = optimizer == "adamw-8bit" and not is_wide and is_quantised(entries)
        total += (2 * moment_bytes(entries) if eight else 8 * entries) + (24 if optimizer == "schedule-free" else 4)
    return total


@torch.no_grad()
def _copy_all(own: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    if set(own) != set(saved):
        raise CheckError("the checkpoint's tensors are not those of this run: was the recipe changed?")
    for name, value in saved.items():
        own[name].copy_(value)


def _master(parameter: nn.Parameter, compute: torch.dtype, apart: bool) -> Tensor:
    wide = torch.promote_types(compute, torch.float32)
    if not apart:
        parameter.data = parameter.data.to(wide)
        return parameter
    master = parameter.detach().to(wide, copy=True)
    parameter.data = parameter.data.to(compute)
    return master


def rate_at(step: int, total: int, peak: float, settings: TrainSettings) -> float:
    """Learning rate of a step (1-based): linear warm-up, then cosine, linear or constant down to ``final_rate``."""
    shape = shape_of(settings)
    warmup = warmup_steps(total, settings)
    if step <= warmup:
        return peak * step / (warmup + 1)
    done = (step - 1 - warmup) / max(1, total - warmup)
    final = peak * settings.final_rate
    if shape == "constant":
        return peak
    if shape == "linear":
        return final + (peak - final) * (1 - done)
    return final + (peak - final) * 0.5 * (1 + math.cos(math.pi * done))


def shape_of(settings: TrainSettings) -> Literal["cosine", "linear", "constant"]:
    """Shape of the rate after the warm-up; a schedule-free optimizer averages in place of a falling rate."""
    if settings.optimizer == "schedule-free":
        return "constant"
    return "cosine" if settings.schedule == "auto" else settings.schedule


def warmup_steps(total: int, settings: TrainSettings) -> int:
    """Steps of warm-up: a share of the run below 1, else the number itself."""
    return round(settings.warmup * total) if settings.warmup < 1 else min(int(settings.warmup), total)
