"""`mft`: the weights stay as they are, and a learnt mask switches some of them off."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from frisket.adapt import sparse
from frisket.adapt.base import About, Attached, MethodSettings, freeze
from frisket.adapt.layers import linear_layers
from frisket.adapt.rates import MFT, Declared
from frisket.adapt.where import Match
from frisket.settings import knob

_SCORES, _WEIGHT = ".parametrizations.weight.0.scores", ".weight"


class Mft(MethodSettings):
    """Mask fine-tuning (arXiv 2503.22764; formulas from the authors' code at commit b36f2da).

    Each weight W of a matched linear layer has a score S. The smallest |S| are off: y = x (W * m)^T + b, with exactly
    n - round(keep * n) zeros of n. Only S moves: dL/dS = dL/d(W * m) * W * sign(S), as if the threshold were the
    identity. It is for a model that was fully fine-tuned on the same data before; `run/mask_tuning.py` ships a mask
    only where it beats the model without one on held-out data.

    What decides is the sum of the run's rates over `score_spread` (neither alone): AdamW moves a score by about the sum
    at most, so a score that lies further above the threshold can never be switched off. The authors' runs have 0.24 to
    0.47 in 469 to 938 steps; `train.learning_rate: auto` takes the peak that makes it 3 over the planned steps.

    Differs: `global` ranks |S| over all matched layers for an exact count, where the authors' unreleased variant cuts
    signed scores at fixed thresholds; weight decay leaves the scores alone, whose order it would not change.
    """

    rate: ClassVar[Declared] = MFT
    about: ClassVar[About] = About("a score for each weight, whose rank switches it on or off", "arXiv 2503.22764")

    method: Literal["mft"] = "mft"
    keep: float = knob(0.9, "share of the weights that stay on", was=("sparsity_attn", "sparsity_mlp"), gt=0, le=1)
    scope: Literal["local", "global"] = knob("local", "whether that share is kept in each matrix, or over all of them")
    score_spread: float = knob(0.02, "standard deviation of the scores at the start", was=("score_init_std",), gt=0)
    search: int | None = knob(None, "first try groups of so many consecutive layers in short runs: best wins", gt=0)
    search_steps: int = knob(40, "optimizer steps of each of these short runs", gt=0)

    @property
    def declared_rate(self) -> Declared:
        """The sum of the run's rates, in units of the scores."""
        return replace(self.rate, value=self.rate.value * self.score_spread)

    def attach(self, model: nn.Module, rng: torch.Generator) -> "AttachedMft":
        """Freeze the model and put scores beside the weight of each matched linear layer.

        Raises:
            ConfigError: no linear layer is among the matched modules.
            UnsupportedError: an expert tensor is, or a head tied to the embedding.
        """
        match = self.resolve(model, rng.initial_seed())
        layers = linear_layers(model, match, self.label)
        if others := len(set(match.modules) - set(layers)):
            match = replace(match, notes=(*match.notes, f"{others} matched modules are no linear layers: not masked"))
        freeze(model)
        return AttachedMft(layers, match, self, rng)


class AttachedMft(Attached):
    """Scores beside frozen weights. Masks, scores and weights are named by the scores' parameters."""

    def __init__(self, layers: Mapping[str, nn.Module], match: Match, settings: Mft, rng: torch.Generator) -> None:
        self.match, self._settings = match, settings
        self._layers = {name + _SCORES: layer for name, layer in layers.items()}
        self._parts: dict[str, _Switch] = {}
        for name, layer in self._layers.items():
            self._parts[name] = _Switch(_drawn(layer.get_parameter("weight"), settings.score_spread, rng))
            parametrize.register_parametrization(layer, "weight", self._parts[name])
        self.refresh()

    def parameters(self) -> dict[str, nn.Parameter]:
        """The scores."""
        return {name: part.scores for name, part in self._parts.items()}

    def decays(self, name: str) -> bool:
        """Never: scores that all shrink keep their order."""
        return False

    def begin(self, total_steps: int) -> None:
        """Rank the scores as they are held now: the optimizer may have narrowed their type."""
        self.refresh()

    def refresh(self) -> None:
        """Rank the scores anew."""
        self._put(self.masks_of(self.parameters()))

    def masks_of(self, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The masks (True is on) that scores make in the type that the model holds them in: ties are its ties."""
        held = {name: scores[name].detach().to(part.scores.dtype).abs() for name, part in self._parts.items()}
        if self._settings.scope == "local":
            return {name: switched_on(each, self._settings.keep) for name, each in held.items()}
        whole = switched_on(torch.cat([each.flatten() for each in held.values()]), self._settings.keep)
        parts = whole.split([each.numel() for each in held.values()])
        return {name: part.view_as(held[name]) for name, part in zip(held, parts, strict=True)}

    def weights(self) -> dict[str, Tensor]:
        """The frozen weights, without masks."""
        return {name: layer.parametrizations.weight.original for name, layer in self._layers.items()}  # pyright: ignore

    @contextmanager
    def masked_by(self, masks: Mapping[str, Tensor]) -> Iterator[None]:
        """Other masks, for as long as the context lasts."""
        self._put(masks)
        try:
            yield
        finally:
            self.refresh()

    def _put(self, masks: Mapping[str, Tensor]) -> None:
        for name, mask in masks.items():
            self._parts[name].mask.copy_(mask)

    def save(self, folder: Path, values: Mapping[str, Tensor]) -> None:
        """Write which entries are off, as packed bits or indices, with digests of the weights."""
        weights, masks = self.weights(), self.masks_of(values)
        off = {name: (~mask).flatten().nonzero()[:, 0] for name, mask in masks.items()}
        changes = {name.replace(_SCORES, _WEIGHT): sparse.change_of(weights[name], "zero", off[name]) for name in off}
        sparse.write(folder, "mft", changes, self._settings.model_dump(mode="json"))

    def merge(self) -> None:
        """Put zeros into the weights where the masks are off."""
        weights = self.weights()
        self.detach()
        with torch.no_grad():
            for name, part in self._parts.items():
                weights[name].masked_fill_(~part.mask, 0)

    def detach(self) -> None:
        """Take scores and masks off."""
        for layer in self._layers.values():
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)

    @contextmanager
    def switched_off(self) -> Iterator[None]:
        """The model without a mask."""
        with self.masked_by({name: torch.ones_like(part.mask) for name, part in self._parts.items()}):
            yield


def switched_on(magnitudes: Tensor, keep: float) -> Tensor:
    """True but at the n - round(keep * n) smallest; of equal ones the first are off.

    >>> switched_on(torch.tensor([2.0, 1.0, 3.0, 1.0, 1.0]), 0.6).int().tolist()
    [1, 0, 1, 0, 1]
    """
    flat = magnitudes.flatten()
    off = len(flat) - round(keep * len(flat))
    if not off or flat.is_meta:
        return torch.ones_like(magnitudes, dtype=torch.bool)
    threshold = flat.float().kthvalue(off).values if flat.element_size() == 2 else flat.kthvalue(off).values
    equal = flat == threshold
    is_later = equal.cumsum(0, dtype=torch.int32) > off - (flat < threshold).sum()
    return ((flat > threshold) | (equal & is_later)).view_as(magnitudes)


class _Switch(nn.Module):
    """The parametrisation of one weight."""

    mask: Tensor

    def __init__(self, scores: Tensor) -> None:
        super().__init__()
        self.scores = nn.Parameter(scores)
        self.register_buffer("mask", torch.ones_like(scores, dtype=torch.bool), persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        return _StraightThrough.apply(weight, self.scores, self.mask)  # pyright: ignore[reportReturnType]


class _StraightThrough(torch.autograd.Function):
    """W * m; backward to S alone."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, scores: Tensor, mask: Tensor) -> Tensor:  # pyright: ignore
        ctx.save_for_backward(weight, scores)
        return weight.masked_fill(~mask, 0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, None]:  # pyright: ignore
        weight, scores = ctx.saved_tensors
        return None, gradient * weight * scores.sign(), None


def _drawn(weight: Tensor, spread: float, rng: torch.Generator) -> Tensor:
    """N(0, spread^2) in float32 or wider, from a generator of the CPU whatever the device."""
    dtype = torch.promote_types(weight.dtype, torch.float32)
    if weight.is_meta:
        return torch.empty(weight.shape, dtype=dtype, device="meta")
    return (spread * torch.randn(weight.shape, generator=rng, dtype=dtype)).to(weight.device)
