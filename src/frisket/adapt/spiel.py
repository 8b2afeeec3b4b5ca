"""`spiel`: a few entries of each weight move, and which ones changes in training."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from frisket.adapt import sparse
from frisket.adapt.aged import AgedAdamW, Sm3
from frisket.adapt.base import About, Attached, MethodSettings, Moment, freeze
from frisket.adapt.delta import SparseLinear
from frisket.adapt.layers import linear_layers
from frisket.adapt.rates import SPIEL, SPIEL_MOMENTUM, Declared
from frisket.adapt.support import Cycle, Policy, drawn, refuse_quantised, shares
from frisket.adapt.where import Match
from frisket.errors import UnsupportedError
from frisket.settings import knob

_VALUES = ".values"
Criterion = Literal["gradient", "momentum"]


class Spiel(MethodSettings):
    """SpIEL (Ansell et al. 2024, arXiv 2401.16405, sections 3 and 4): y = x (W + D)^T + b, D sparse, 0 at the start.

    The budget is shared out over the matched layers by size, k = floor(K n / sum n), and starts at random entries.
    Every `reselect_every` steps the floor(p k) smallest of a layer's values are dropped and as many entries begin at 0:
    p = p0 (1 - t / T), or p0 (1 + cos(pi t / T)) / 2, at t of T steps; the first time p = 1 in the linear schedule.

    `gradient` (the paper's AG): the k entries of largest |gradient| in a phase's first micro-batch are candidates, and
    those with the largest |sum of gradients| over the phase come in, AdamW's moments seeded by the phase's means. With
    N = `reselect_every` and A = `accumulate`, phases are the steps 1 to A and c N to c N + A (as in AlanAnsell/peft at
    73b455b). `momentum` (MA): SM3 in AdamW's place, whose row times column accumulator ranks the entries that are not
    active. Weight decay pulls towards the base. Differs: gradients, unclipped in both, are of whole steps (candidates
    by micro-batch); nothing is replaced after the last step, nor where p0 = 0; no first time in a further stage.
    """

    rate: ClassVar[Declared] = SPIEL
    about: ClassVar[About] = About("a few entries of each linear layer, chosen anew in training", "arXiv 2401.16405")

    method: Literal["spiel"] = "spiel"
    density: float = knob(0.01, "entries that move, as a share of all the model's parameters", gt=0, le=1)
    entries: int | None = knob(None, "entries that move, in place of `density`", was=("num_tunable_weights",), gt=0)
    criterion: Criterion = knob("gradient", "what lets entries in: gradients, or SM3", was=("selection_algorithm",))
    reselect_every: int = knob(20, "steps between two selections", was=("reselection_steps",), gt=1)
    accumulate: int = knob(5, "steps that a selection looks at", was=("selection_accumulation_steps",), gt=0)
    reselect: float = knob(0.2, "share replaced at first; 0: none ever", was=("initial_reselection_rate",), ge=0, le=1)
    policy: Policy = knob("linear", "how that share falls to 0 over the run", was=("reselection_rate_policy",))

    @property
    def declared_rate(self) -> Declared:
        """AdamW's, or SM3's."""
        return SPIEL if self.criterion == "gradient" else SPIEL_MOMENTUM

    @property
    def cycle(self) -> Cycle:
        """When entries are replaced."""
        return Cycle(self.reselect_every, self.accumulate, self.reselect, self.policy)

    def check(self) -> None:
        """Refuse what can be refused without a model.

        Raises:
            ConfigError: a phase is longer than a cycle.
        """
        super().check()
        self.cycle.check()

    def attach(self, model: nn.Module, rng: torch.Generator) -> "AttachedSpiel":
        """Freeze the model and put a sparse addition into each matched linear layer.

        Raises:
            ConfigError: the budget is too small or too large for the layers.
            UnsupportedError: `where` reaches an expert tensor, a quantised weight, or a head tied to the embedding.
        """
        match = self.resolve(model, rng.initial_seed())
        layers = linear_layers(model, match, self.label)
        refuse_quantised(layers)
        sizes = {name: layer.get_parameter("weight").numel() for name, layer in layers.items()}
        counts = shares(self.entries or int(self.density * sum(p.numel() for p in model.parameters())), sizes)
        others = len(set(match.modules) - set(layers))
        notes = match.notes + ((f"{others} matched modules are no linear layers: left as they are",) if others else ())
        freeze(model)
        watches = self.criterion == "gradient" and self.reselect > 0
        made = {n: SparseLinear(x, drawn(x, counts[n], rng), watches=watches) for n, x in layers.items()}
        return AttachedSpiel(model, made, replace(match, notes=notes), self)


class AttachedSpiel(Attached):
    """Sparse additions, their indices, and the cycle that replaces them."""

    def __init__(self, model: nn.Module, layers: Mapping[str, SparseLinear], match: Match, settings: Spiel) -> None:
        self.match, self._model, self._settings = match, model, settings
        self._layers = {name + _VALUES: layer for name, layer in layers.items()}
        self._watches = any(len(layer.candidates) for layer in layers.values())
        for name, layer in layers.items():
            model.set_submodule(name, layer)
        self._done, self._total = torch.zeros(2, dtype=torch.int64), 0  # steps and selections so far; steps of the run

    def parameters(self) -> dict[str, nn.Parameter]:
        """The values."""
        return {name: layer.values for name, layer in self._layers.items()}

    def decays(self, name: str) -> bool:
        """All of them: towards the base."""
        return True

    def extra(self) -> dict[str, Tensor]:
        """Indices, candidates and the place in the cycle."""
        kept = ("indices", "candidates", "sums", "squares", "steps") if self._watches else ("indices",)
        each = {f"{n}.{part}": layer.get_buffer(part) for n, layer in self._layers.items() for part in kept}
        return each | {"done": self._done}

    def load_extra(self, values: Mapping[str, Tensor]) -> None:
        """Copy them in."""
        super().load_extra(values)
        for layer in self._layers.values():
            layer.resumed()

    def make_update(self, masters: Mapping[str, Tensor], moment: Moment) -> torch.optim.Optimizer:
        """AdamW with ages, or SM3.

        Raises:
            UnsupportedError: gradients are scaled (fp16), and are to be summed.
        """
        if self._watches and any(layer.values.dtype == torch.float16 for layer in self._layers.values()):
            raise UnsupportedError(
                "adapt.criterion = gradient seeds AdamW with gradients as they are, and train.compute = fp16 scales "
                "them.\nUse train.compute=bf16, or adapt.criterion=momentum."
            )
        is_sm3, self._masters = self._settings.criterion == "momentum", masters
        self._update = Sm3(masters, self._layers, moment) if is_sm3 else AgedAdamW(masters, moment)
        for name, layer in self._layers.items():
            layer.master = masters[name]
        return self._update

    def begin_stage(self) -> None:
        """Forget steps and candidates of the stage before, not that it chose entries."""
        self._done[0] = 0
        for layer in self._layers.values():
            layer.forget()

    def begin(self, total_steps: int) -> None:
        """Take T, and go on where the cycle is."""
        self._total = total_steps
        self._watch()

    @torch.no_grad()
    def after_update(self, step: int) -> None:
        """Count the step, and replace entries where a phase ends."""
        for layer in self._layers.values():
            layer.end_step()
        self._done[0] = step
        if self._settings.cycle.selects(step, self._total):
            share = self._settings.cycle.share(step, self._total, is_first=not self._done[1])
            for name, layer in self._layers.items():
                places, new = self._update.replace(self._masters[name], layer, int(len(layer.values) * share))
                layer.indices[places], self._masters[name][places] = new, 0
                layer.forget()
            self._done[1] += 1
        self._watch()

    def _watch(self) -> None:
        for layer in self._layers.values():
            layer.is_watching = self._watches and self._settings.cycle.is_open(int(self._done[0]), self._total)

    def save(self, folder: Path, values: Mapping[str, Tensor]) -> None:
        """Write what is added to which entries, with digests of the weights."""
        changes = {}
        for name, layer in self._layers.items():
            change = sparse.change_of(layer.base.get_parameter("weight"), "add", layer.indices, values[name])
            changes[name.replace(_VALUES, ".weight")] = change
        sparse.write(folder, "spiel", changes, self._settings.model_dump(mode="json"))

    @torch.no_grad()
    def merge(self) -> None:
        """Add the values to the weights."""
        for layer in self._layers.values():
            layer.base.get_parameter("weight").copy_(layer.weight)
        self.detach()

    def detach(self) -> None:
        """Put the layers themselves back."""
        for name, layer in self._layers.items():
            self._model.set_submodule(name.removesuffix(_VALUES), layer.base)

    @contextmanager
    def switched_off(self) -> Iterator[None]:
        """The layers without their additions, while the context lasts."""
        for layer in self._layers.values():
            layer.is_on = False
        try:
            yield
        finally:
            for layer in self._layers.values():
                layer.is_on = True
