"""`graft`: the few fine-tuned entries that carry a skill, put onto the base."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.nn.utils import parametrize

from frisket.adapt import sparse
from frisket.adapt.base import About, Attached, MethodSettings, Moment, freeze
from frisket.adapt.layers import linear_layers
from frisket.adapt.rates import GRAFT, Declared
from frisket.adapt.tuned import digest_of, most_moved
from frisket.adapt.where import Match, embedding_name, head_name
from frisket.errors import CheckError, UnsupportedError
from frisket.settings import knob

Side = Literal["base", "tuned", "top", "graft"]
_SCORES = ".parametrizations.weight.0.scores"


class Graft(MethodSettings):
    """Skill localisation (Panigrahi et al. 2023, arXiv 2302.06600, section 3; constants from their code at 76f4aa8).

    theta = pre + gamma * (tuned - pre), gamma = top + (1 - 2 top) * sigmoid(S). `top` is 1 at the share `keep` of all
    matched entries that moved most, by |tuned - pre|, ties by index. S starts uniform in [-10, -9], so that gamma is
    near `top`, and moves by plain SGD: dL/dS = dL/dtheta (tuned - pre) (1 - 2 top) sigmoid(S) (1 - sigmoid(S)). What is
    evaluated, kept and saved is gamma rounded; of the evaluations, and of `top` itself, the best one. Nothing but the
    rate and the number of steps keeps the mask small: a graft that grew is to be compared with a `keep` of its size.
    What moved, its product with the gradient and what is saved are float32; what is computed with is then rounded.

    Differs: the rate follows `train.schedule` (theirs is constant: train.schedule=constant train.warmup=0); the loss
    of `evaluate.watch` decides, at every `evaluate.every`, where theirs is the accuracy on training and held-out data
    after every step; biases and norms stay the base's. A skill localises after SGD; after AdamW only where
    `adapt.l1_to_start` held the full fine-tuning back (their section 3).
    """

    rate: ClassVar[Declared] = GRAFT
    about: ClassVar[About] = About("a score for each fine-tuned entry: keep it, or the base's", "arXiv 2302.06600")
    starts_wide: ClassVar[bool] = True  # rounded to bf16, half of the movements are 0
    keeps_best: ClassVar[bool] = True  # a later mask is not a better one, and the first is a candidate

    method: Literal["graft"] = "graft"
    of: str = knob(..., "finished run, or model folder, that was fine-tuned from model.path")
    keep: float = knob(1e-3, "share of the matched entries with which the search starts", gt=0, le=1)

    def attach(self, model: nn.Module, rng: torch.Generator) -> "AttachedGraft":
        """Freeze the model and put scores and fine-tuned values beside the weight of each matched linear layer.

        Raises:
            ConfigError: `of` is no fine-tuned model, or is the base itself.
            CheckError: `of` was fine-tuned from another base.
            UnsupportedError: `where` reaches the embedding, the head or an expert tensor; the base is not in float32.
        """
        match = self.resolve(model, rng.initial_seed())
        if {embedding_name(model), head_name(model)} & {*match.modules, *match.linears(model)}:
            raise UnsupportedError(
                "adapt.where reaches the embedding or the output head, which a graft leaves alone.\n"
                "Use adapt.where=all-linear."
            )
        layers = linear_layers(model, match, self.label)
        bases = {f"{name}.weight": layer.get_parameter("weight").detach() for name, layer in layers.items()}
        found = most_moved(model, Path(self.of).expanduser(), bases, self.keep)
        freeze(model)
        parts = [_Part(found.tuned[name], found.tops[name], base, rng) for name, base in bases.items()]
        return AttachedGraft(layers, parts, replace(match, notes=(*match.notes, found.told)), self)


class AttachedGraft(Attached):
    """Scores beside frozen weights; while training the model is between base and fine-tuned, else rounded."""

    def __init__(self, layers: Mapping[str, nn.Module], parts: list["_Part"], match: Match, settings: Graft) -> None:
        self.match, self._settings = match, settings
        self._layers = {name + _SCORES: layer for name, layer in layers.items()}
        self._parts = dict(zip(self._layers, parts, strict=True))
        self._digest = torch.tensor(list(digest_of(part.tuned for part in parts)), dtype=torch.uint8)
        for name, layer in self._layers.items():
            parametrize.register_parametrization(layer, "weight", self._parts[name])

    def parameters(self) -> dict[str, nn.Parameter]:
        """The scores."""
        return {name: part.scores for name, part in self._parts.items()}

    def make_update(self, masters: Mapping[str, Tensor], moment: Moment) -> torch.optim.Optimizer:
        """Plain SGD, without decay: a score that shrinks would choose its entry."""
        return torch.optim.SGD(list(masters.values()), lr=0.0)

    def extra(self) -> dict[str, Tensor]:
        """What the fine-tuned values are, so that a resumed run is refused where `of` was made anew."""
        return {"of": self._digest}

    def load_extra(self, values: Mapping[str, Tensor]) -> None:
        """Compare them with those of the checkpoint."""
        if set(values) != {"of"} or not torch.equal(values["of"].cpu(), self._digest):
            raise CheckError(
                f"adapt.of = {self._settings.of!r} is not what this run began with.\nStart afresh with another --out."
            )

    def masks(self, scores: Mapping[str, Tensor]) -> dict[str, Bool[Tensor, "out in"]]:
        """True where the fine-tuned value is taken: gamma rounded, in the type that the model holds scores in."""
        return {name: part.mask(scores[name].to(part.scores)) for name, part in self._parts.items()}

    def save(self, folder: Path, values: Mapping[str, Tensor]) -> None:
        """Write the chosen entries, with what they were."""
        changes = {}
        for name, mask in self.masks(values).items():
            at = mask.flatten().nonzero()[:, 0]
            if len(at):
                weight, tuned = self._weight(name), self._parts[name].tuned.flatten()
                changes[name.removesuffix(_SCORES) + ".weight"] = sparse.change_of(weight, "replace", at, tuned[at])
        among = sum(part.tuned.numel() for part in self._parts.values())
        sparse.write(folder, "graft", changes, self._settings.model_dump(mode="json") | {"among": among})

    def merge(self) -> None:
        """Put the chosen entries into the weights."""
        self.detach()
        with torch.no_grad():
            for name, layer in self._layers.items():
                mask = self._parts[name].mask(self._parts[name].scores)
                layer.get_parameter("weight").copy_(torch.where(mask, self._parts[name].tuned, self._weight(name)))

    def detach(self) -> None:
        """Take scores and fine-tuned values off."""
        for layer in self._layers.values():
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)

    @contextmanager
    def showing(self, side: Side) -> Iterator[None]:
        """The model as the base, with all fine-tuned values, with the most moved ones, or with the chosen ones."""
        before = next(iter(self._parts.values())).side
        try:
            self._show(side)
            yield
        finally:
            self._show(before)

    @contextmanager
    def switched_off(self) -> Iterator[None]:
        """The base."""
        with self.showing("base"):
            yield

    def _show(self, side: Side) -> None:
        for part in self._parts.values():
            part.side = side

    def _weight(self, name: str) -> Tensor:
        layer = self._layers[name]
        return layer.parametrizations.weight.original if parametrize.is_parametrized(layer) else layer.weight  # pyright: ignore


class _Part(nn.Module):
    """The parametrisation of one weight."""

    base: Tensor
    tuned: Tensor
    top: Tensor

    def __init__(self, tuned: Tensor, top: Tensor, base: Tensor, rng: torch.Generator) -> None:
        super().__init__()
        wide = torch.promote_types(base.dtype, torch.float32)
        drawn = torch.empty(base.shape, dtype=wide, device="meta" if base.is_meta else "cpu")
        self.scores = nn.Parameter(drawn.uniform_(-10, -9, generator=None if base.is_meta else rng).to(base.device))
        self.register_buffer("base", base, persistent=False)  # stays wide when the weight itself is cast
        self.register_buffer("tuned", tuned.to(base.device), persistent=False)
        self.register_buffer("top", top.to(base.device), persistent=False)
        self.side: Side = "graft"

    def mask(self, scores: Tensor) -> Tensor:
        """Gamma rounded: sigmoid(S) is above 1/2 where S is above 0, and there it turns `top` over."""
        return self.top ^ (scores > 0)

    def forward(self, weight: Tensor) -> Tensor:
        tuned = self.tuned.to(weight.dtype)
        if self.side in ("base", "tuned"):
            return weight if self.side == "base" else tuned
        if self.training and self.side == "graft":
            return _Between.apply(self.base, self.tuned, self.top, self.scores).to(weight.dtype)  # pyright: ignore
        return torch.where(self.top if self.side == "top" else self.mask(self.scores), tuned, weight)


class _Between(torch.autograd.Function):
    """pre + gamma (tuned - pre) in their type, exact at both ends; backward to the scores alone."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, tuned: Tensor, top: Tensor, scores: Tensor) -> Tensor:  # pyright: ignore
        ctx.save_for_backward(pre, tuned, top, scores)
        return torch.lerp(pre, tuned, torch.where(top, -scores, scores).to(pre.dtype).sigmoid())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, None, Tensor]:  # pyright: ignore
        pre, tuned, top, scores = ctx.saved_tensors
        share = scores.to(pre.dtype).sigmoid()
        change = gradient * (tuned - pre) * share * (1 - share)
        return None, None, None, torch.where(top, -change, change).to(scores.dtype)
