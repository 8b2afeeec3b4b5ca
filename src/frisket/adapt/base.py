"""The contract of every method: a settings model that attaches, and what it returns."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from frisket.adapt.policies import check, resolve
from frisket.adapt.rates import Declared
from frisket.adapt.where import Match, Where
from frisket.errors import CheckError, ConfigError, UnsupportedError
from frisket.settings import Section, knob
from frisket.types import Rows


@dataclass(frozen=True)
class About:
    """What a method says of itself; `frisket methods` and the docs print it.

    Attributes:
        moves: what moves, in a few words.
        source: paper and section.
        merges: whether the result can be folded into the base's weights.
        quantised: whether it works on a base in 4 or 8 bit.
    """

    moves: str
    source: str
    merges: bool = True
    quantised: bool = False


@dataclass(frozen=True)
class Moment:
    """What an update rule of a method's own may know of the run.

    Attributes:
        betas: AdamW's.
        epsilon: AdamW's.
        weight_decay: decoupled, times the rate.
    """

    betas: tuple[float, float]
    epsilon: float
    weight_decay: float


class Attached(ABC):
    """A method put on a model: what moves, and how it is saved, merged and taken off.

    Attributes:
        packs: whether several samples may share a row (proven by a test for this method).
        match: what `where` found.
    """

    packs: bool = True
    match: Match

    @abstractmethod
    def parameters(self) -> dict[str, nn.Parameter]:
        """What moves, by dotted name; nothing else enters the optimizer."""

    @abstractmethod
    def save(self, folder: Path, values: Mapping[str, Tensor]) -> None:
        """Write what moves, taken from ``values`` (the masters), in a format that others read."""

    @abstractmethod
    def merge(self) -> None:
        """Fold the change into the base weights, in place and for good."""

    @abstractmethod
    def detach(self) -> None:
        """Take the method off; the base is then bit for bit what it was.

        Raises:
            UnsupportedError: the method changes the base's own weights.
        """

    @abstractmethod
    @contextmanager
    def switched_off(self) -> Iterator[None]:
        """The model as it was before attaching, for as long as the context lasts.

        Raises:
            UnsupportedError: the method changes the base's own weights.
        """

    def state(self) -> dict[str, Tensor]:
        """A copy of what moves."""
        return {name: parameter.detach().clone() for name, parameter in self.parameters().items()}

    def load(self, values: Mapping[str, Tensor]) -> None:
        """Copy values in; every name must be there, in its shape."""
        parameters = self.parameters()
        if set(parameters) != set(values):
            missing, extra = sorted(set(parameters) - set(values)), sorted(set(values) - set(parameters))
            raise ConfigError(f"the saved weights do not fit this method: missing {missing[:3]}, unknown {extra[:3]}")
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(values[name])

    def extra(self) -> dict[str, Tensor]:
        """What an exact resume needs beside what moves: indices, accumulators, counts. Views, not copies."""
        return {}

    def load_extra(self, values: Mapping[str, Tensor]) -> None:
        """Take saved extra tensors back.

        Raises:
            CheckError: they are not those of this method.
        """
        own = self.extra()
        if set(own) != set(values):
            raise CheckError("the checkpoint's indices are not those of this run: was the recipe changed?")
        with torch.no_grad():
            for name, value in values.items():
                own[name].copy_(value)

    def refresh(self) -> None:  # noqa: B027  most methods derive nothing
        """Bring what is derived from the moving parameters up to date; called whenever new values were written."""

    def decays(self, name: str) -> bool:
        """Whether weight decay pulls a moving tensor towards zero."""
        return self.parameters()[name].dim() > 1

    def rate_factor(self, name: str) -> float:
        """What the run's rate is multiplied by for a moving tensor."""
        return 1.0

    def make_update(self, masters: Mapping[str, Tensor], moment: Moment) -> torch.optim.Optimizer | None:
        """An update rule of the method's own, over ``masters``; None: that of ``train.optimizer``."""
        return None

    def begin_stage(self) -> None:  # noqa: B027
        """Called where the result of an earlier stage was loaded: what counts steps of a run begins anew."""

    def begin(self, total_steps: int) -> None:  # noqa: B027
        """Called once before the first step of a run, or of its continuation."""

    def extra_loss(self, rows: Rows) -> Tensor | None:
        """A further loss of these rows, summed over tokens; the step divides it by its normaliser."""
        return None

    def penalty(self) -> Tensor | None:
        """A loss of the parameters only; added once a step, not divided."""
        return None

    def after_backward(self, micro_batch: int) -> None:  # noqa: B027  most methods have nothing to do
        """Called after each micro-batch's backward, on local gradients."""

    def before_update(self) -> None:  # noqa: B027
        """Called when gradients are reduced and clipped, before the optimizer moves."""

    def after_update(self, step: int) -> None:  # noqa: B027
        """Called after the optimizer moved: may change masters, which are written into the modules right after."""


class MethodSettings(Section):
    """What all methods share; each method adds its own knobs, its rate and ``attach``."""

    rate: ClassVar[Declared]
    about: ClassVar[About]
    moves_weights: ClassVar[bool] = True  # False: a tied head may be matched, because its weight stays
    can_also_train: ClassVar[bool] = False
    starts_wide: ClassVar[bool] = False  # True: attached to the base in float32, which is cast afterwards
    keeps_best: ClassVar[bool] = False  # True: the best evaluation is the result, whatever evaluate.keep says

    where: Where = knob(
        "all-linear",
        "which modules: patterns over module paths, or all, all-linear, attention, mlp, norms, ...; restricted by "
        "{layers: 4-7}, {half: category}, {kappa: 0.2}, {locate: {layer: 6, module: mlp.down_proj}}",
        was=("target_modules", "lora_target", "lora_target_modules"),
    )
    also_train: tuple[Literal["embeddings", "head", "norms"], ...] = knob(
        (), "beside an adapter of PEFT's: which of embeddings, head, norms move themselves", was=("modules_to_save",)
    )

    @property
    def label(self) -> str:
        """What errors call the method."""
        return type(self).__name__.lower()

    @property
    def packs(self) -> bool:
        """Whether several samples may share a row, known before anything is loaded."""
        return True

    @property
    def virtual_tokens(self) -> int:
        """Places that the method puts in front of every row."""
        return 0

    @property
    def declared_rate(self) -> Declared:
        """Its own peak rate and where that comes from."""
        return self.rate

    def attach(self, model: nn.Module, rng: torch.Generator) -> Attached:
        """Put the method on the model; everything that does not move is frozen."""
        raise NotImplementedError

    def resolve(self, model: nn.Module, seed: int = 0) -> Match:
        """Find what `where` names.

        Args:
            seed: of what a policy draws at random.

        Raises:
            ConfigError: nothing is matched, or two policies contradict each other.
            UnsupportedError: a policy or `also_train` makes no sense for this method.
        """
        self.check()
        return resolve(model, self.where, moves_weights=self.moves_weights, seed=seed)

    def check(self) -> None:
        """Refuse what can be refused without a model.

        Raises:
            ConfigError: two policies contradict each other.
            UnsupportedError: a policy or `also_train` makes no sense for this method.
        """
        name = str(type(self).model_fields["method"].default)
        check(self.where, name)
        if self.also_train and not self.can_also_train:
            raise UnsupportedError(
                f"adapt.also_train goes with adapters that PEFT saves, and adapt.method is {name}.\n"
                + (f"Use adapt.where='[{', '.join(self.also_train)}]'." if name == "full" else "Leave it out.")
            )


def freeze(model: nn.Module) -> None:
    """Stop every parameter from moving."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)


@contextmanager
def seeded(rng: torch.Generator) -> Iterator[None]:
    """Let code that draws from torch's global generator draw from ``rng``; the global one stays untouched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(0, 2**62, (1,), generator=rng)))
        yield
