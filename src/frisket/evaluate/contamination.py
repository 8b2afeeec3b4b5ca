"""The contamination meter: what a head gets from other samples of its row, and what LoRA does about it.

The arrangement `mask-free` packs without packing-aware masking: Seo and Jung, Mathematics 2025, 13(20), 3344. Their
abstract says that a learnable tensor derived from LoRA on the query and value parameters is trained to attenuate the
subspace of cross-contamination, and argues with a component-wise decomposition of each head's output.

Only the abstract could be read, so these are our reconstruction: LoRA on the query and value projections, ordinary
causal attention over the whole row, ordinary cross-entropy without an auxiliary loss, positions that go on across
samples; and the definitions below, of which none is quoted. For token i of head h, with softmax shares a:

    o = sum_j a_ij v_j = frozen_own + frozen_foreign + lora_own + lora_foreign

``own`` sums over the keys j of i's own sample, ``foreign`` over the others. ``frozen`` is this sum with the adapter
switched off *in this layer only*: the layer's input is that of the adapted network. ``lora`` is what the adapter adds,
through shares and values alike. All of it is before the output projection, and before a gate where a family has one.

*Attenuation* is read as a negative cosine between ``lora_foreign`` and ``frozen_foreign``. It is no evidence alone: a
change that knows nothing of contamination is negative too, because what it puts in place of the old part is unlike it
(two independent parts of one norm: -0.71). So the norm of the foreign part over its frozen norm stands beside it, and
both for the own sample as a control.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from frisket.adapt.base import Attached
from frisket.attend.backends.matmul import Knobs, masked_attention
from frisket.attend.reference import visible
from frisket.errors import UnsupportedError
from frisket.hf.forward import Model, hidden_states
from frisket.hf.layers import Again, after_each, attention_layers
from frisket.types import PADDING_SEGMENT, Rows

TOKENS_A_ROW = 512
_Figures = Float64[np.ndarray, "layer head"]


@dataclass(frozen=True)
class Split:
    """What heads get at some tokens, by whom it comes from; in the wider of float32 and the layer's type.

    Attributes:
        own: the part of the output that comes from keys of the token's own sample.
        foreign: the part that comes from other samples.
        foreign_mass: softmax mass on other samples.
    """

    own: Float[Tensor, "token head width"]
    foreign: Float[Tensor, "token head width"]
    foreign_mass: Float[Tensor, "token head"]


@dataclass(frozen=True)
class LayerSplit:
    """One layer at one input, with the adapter switched off and on; LoRA's part is the difference."""

    frozen: Split
    adapted: Split


@dataclass(frozen=True)
class Contamination:
    """Contamination by layer and head, each figure a mean over the measured tokens.

    Measured are tokens of samples after the first of their row. In a layer with a sliding window those too far into
    their sample see nothing foreign; they count with 0.

    Attributes:
        layers: dotted paths of the attention modules, in order.
        tokens: how many tokens were measured.
        foreign_mass: softmax mass on other samples, with the adapter.
        foreign_mass_frozen: the same with the adapter switched off in this layer.
        foreign_share: ``|foreign| / |output|`` with the adapter; 0 where the output is 0, above 1 where own and foreign
            parts cancel.
        frozen_own: squared norm of this part of the output; likewise the next three.
        own_product: inner product of ``lora_own`` and ``frozen_own``.
        foreign_product: inner product of ``lora_foreign`` and ``frozen_foreign``.
    """

    layers: tuple[str, ...]
    tokens: int
    foreign_mass: _Figures
    foreign_mass_frozen: _Figures
    foreign_share: _Figures
    frozen_own: _Figures
    frozen_foreign: _Figures
    lora_own: _Figures
    lora_foreign: _Figures
    own_product: _Figures
    foreign_product: _Figures

    @property
    def cosine(self) -> _Figures:
        """Cosine of LoRA's foreign part, all tokens flattened, with the frozen one; NaN where one of them is 0."""
        return _cosine(self.foreign_product, self.lora_foreign, self.frozen_foreign)

    def summary(self) -> dict:
        """Plain numbers, for JSON: over everything, and one list each with a number for every layer.

        ``attenuation`` is the cosine of the flattened foreign parts, ``foreign_norm`` the norm of the foreign part over
        that of the frozen one; ``own_cosine`` and ``own_norm`` are the same of the own sample. The four parts' names
        are their root mean square norms. None: not defined (nothing foreign, or LoRA has not moved).
        """
        overall = {name: _number(value) for name, value in self._over((0, 1)).items()}
        by_layer = {name: [_number(v) for v in np.atleast_1d(values)] for name, values in self._over((1,)).items()}
        return {"tokens": self.tokens, **overall, "layers": list(self.layers), "by_layer": by_layer}

    def lines(self) -> list[str]:
        """The same for a person: one to three lines."""
        if not self.tokens:
            return ["contamination: no row holds two samples, so there is nothing to measure"]
        found = self._over((0, 1))
        heads = self.foreign_mass.shape[1]
        measured = f"measured at {self.tokens:,} tokens in {len(self.layers)} layers of {heads} heads"
        if not (self.frozen_foreign.any() or self.lora_foreign.any()):
            return [f"foreign mass {found['foreign_mass']:.2f}: nothing comes from other samples", measured]
        first = (
            f"foreign mass {found['foreign_mass']:.2f} (frozen {found['foreign_mass_frozen']:.2f}) · "
            f"foreign share of the norm {found['foreign_share']:.2f}"
        )
        if not self.lora_foreign.any():
            return [f"{first} · LoRA has not moved the attention heads yet", measured]
        cosine, below = found["attenuation"], int((self.cosine < 0).sum())
        layer, head = np.unravel_index(np.nan_to_num(self.cosine, nan=np.inf).argmin(), self.cosine.shape)
        return [
            f"{first} · cosine {cosine:.2f}: {_what_lora_does(cosine, found['foreign_norm'])}",
            f"norm {found['foreign_norm']:.2f} times the frozen (own sample: {found['own_norm']:.2f}, cosine "
            f"{found['own_cosine']:.2f}) · cosine below 0 in {below} of {self.cosine.size} heads, "
            f"lowest {self.cosine[layer, head]:.2f} ({self.layers[layer]}, head {head})",
            measured,
        ]

    def _over(self, axes: tuple[int, ...]) -> dict[str, np.ndarray]:
        """Every figure with some of the axes (layer, head) taken together."""
        means = {name: getattr(self, name).mean(axis=axes) for name in _names()}
        own = means["own_product"], means["lora_own"], means["frozen_own"]
        foreign = means["foreign_product"], means["lora_foreign"], means["frozen_foreign"]
        return {
            **{name: means[name] for name in ("foreign_mass", "foreign_mass_frozen", "foreign_share")},
            "attenuation": _cosine(*foreign),
            "foreign_norm": _norm_ratio(*foreign),
            "own_cosine": _cosine(*own),
            "own_norm": _norm_ratio(*own),
            **{name: np.sqrt(means[name]) for name in ("frozen_own", "frozen_foreign", "lora_own", "lora_foreign")},
        }


def measure_contamination(
    model: Model, attached: Attached, batches: Sequence[Rows], backend: str = "sdpa", tokens_a_row: int = TOKENS_A_ROW
) -> Contamination:
    """Measure one or a few micro-batches.

    The parts are computed from queries, keys and values in the model's own type. Tried on the bundled model with one
    LoRA in bf16 and in fp32: with a foreign part of 0.16 of the frozen one's norm the cosine differs by less than 1e-4,
    with one of 0.0016 it is half of what it should be.

    Args:
        attached: what is on the model; it is switched off and on again for each layer.
        batches: mask-free rows (in others nothing is foreign), at least one.
        backend: attention backend of the forward that gives the layers their inputs.
        tokens_a_row: at most so many tokens of a row are measured, evenly spaced over the samples after the first. A
            layer needs heads x these x tokens of the row floats, a few times.

    Raises:
        UnsupportedError: a segment is not one whole sample, or the method cannot be switched off.
    """
    sums: dict[str, dict[str, np.ndarray]] = {}
    tokens = 0

    def see(path: str, layer: LayerSplit) -> None:
        found = _sums(layer)
        before = sums.get(path, dict.fromkeys(found, np.float64(0)))
        sums[path] = {name: before[name] + value for name, value in found.items()}

    for rows in batches:
        tokens += split_layers(model, attached, rows, see, backend, tokens_a_row)
    with np.errstate(invalid="ignore"):
        means = {name: np.stack([layer[name] for layer in sums.values()]) / np.float64(tokens) for name in _names()}
    return Contamination(tuple(sums), tokens, **means)


@torch.no_grad()
def split_layers(
    model: Model,
    attached: Attached,
    rows: Rows,
    see: Callable[[str, LayerSplit], None],
    backend: str = "sdpa",
    tokens_a_row: int = TOKENS_A_ROW,
) -> int:
    """Run one forward and show ``see`` the parts of each attention layer's output, by its dotted path.

    The parts are of the measured tokens in the order of rows and places; the arguments are `measure_contamination`'s.

    Returns:
        How many tokens were measured.
    """
    layout = _SplittingLayout(rows, model.device, tokens_a_row)

    def look(path: str, again: Again) -> None:
        with attached.switched_off():
            again(layout)
        frozen = layout.split
        again(layout)  # the adapted last: keys and values that a layer shares with later ones are then the adapted
        see(path, LayerSplit(frozen, layout.split))

    was_training = model.training
    model.eval()
    try:
        with after_each(attention_layers(model), look):
            hidden_states(model, rows, backend)
    finally:
        model.train(was_training)
    return sum(len(part.places) for part in layout.parts)


@dataclass(frozen=True)
class _Part:
    """Measured tokens of one sample: their row, their places in it, and which keys of the row are not the sample's."""

    row: int
    places: Int64[np.ndarray, "query"]
    is_foreign: Bool[Tensor, "key"]


class _SplittingLayout:
    """A layout that keeps what each head gets from whom; what it returns is made of zeros and thrown away."""

    split: Split

    def __init__(self, rows: Rows, device: torch.device, tokens_a_row: int) -> None:
        whole = {leaf.last for leaf in rows.leaves if leaf.first == leaf.last}
        shared = sorted(set(range(len(rows.parent_segment))) - whole)
        if shared:
            raise UnsupportedError(
                f"the contamination meter needs rows whose segments are whole samples; segment {shared[0]} is none.\n"
                "In a prefix forest no token sees another sample: there is nothing to measure.\n"
                "Use attend.arrangement=mask-free."
            )
        self._rows = rows
        self._device = device
        self._masks: dict[int | None, list[Tensor]] = {}
        self.parts = _measured(rows, tokens_a_row, device)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, knobs: Knobs) -> Float[Tensor, "row token head width"]:
        """Keep both sides of the output, and return zeros.

        One ordinary attention with wider values: once those of the own sample (others are 0), once the others', and a
        column that is 1 at foreign keys, whose weighted sum is their mass.
        """
        wide = torch.promote_types(query.dtype, torch.float32)
        heads, width = query.shape[1], value.shape[-1]
        outs = [query.new_zeros(0, heads, 2 * width + 1, dtype=wide)]
        for part, mask in zip(self.parts, self._masks_of(knobs.window), strict=True):
            asking = query[part.row : part.row + 1, :, torch.from_numpy(part.places).to(self._device)].to(wide)
            keys, values = key[part.row : part.row + 1].to(wide), value[part.row : part.row + 1].to(wide)
            is_foreign = part.is_foreign.to(wide)[:, None]
            sides = [values * (1 - is_foreign), values * is_foreign, is_foreign.expand(*values.shape[:3], 1)]
            outs.append(masked_attention(asking, keys, torch.cat(sides, dim=-1), mask, knobs)[0].transpose(0, 1))
        own, foreign, mass = torch.cat(outs).split([width, width, 1], dim=-1)
        self.split = Split(own, foreign, mass[..., 0])
        return value.new_zeros(query.shape[0], query.shape[2], heads, width)

    def _masks_of(self, window: int | None) -> list[Tensor]:
        if window not in self._masks:
            seen = [visible(self._rows, row, window) for row in range(len(self._rows.input_ids))]
            masks = [torch.from_numpy(seen[part.row][part.places]) for part in self.parts]
            self._masks[window] = [mask.to(self._device)[None, None, None] for mask in masks]
        return self._masks[window]


def _measured(rows: Rows, tokens_a_row: int, device: torch.device) -> list[_Part]:
    parts = []
    for row, segments in enumerate(rows.segment_ids):
        later = np.flatnonzero((segments != PADDING_SEGMENT) & (segments != segments[0]))
        count = min(len(later), tokens_a_row)
        chosen = later[np.linspace(0, len(later) - 1, count).round().astype(np.int64)]
        for segment in np.unique(segments[chosen]):
            is_foreign = torch.from_numpy(segments != segment).to(device)
            parts.append(_Part(row, chosen[segments[chosen] == segment], is_foreign))
    return parts


def _sums(layer: LayerSplit) -> dict[str, Float64[np.ndarray, "head"]]:
    """The figures of `Contamination`, summed over tokens."""
    frozen_own, frozen_foreign = layer.frozen.own.double(), layer.frozen.foreign.double()
    own, foreign = layer.adapted.own.double(), layer.adapted.foreign.double()
    lora_own, lora_foreign = own - frozen_own, foreign - frozen_foreign
    norm = (own + foreign).norm(dim=-1)
    of_tokens = {
        "foreign_mass": layer.adapted.foreign_mass,
        "foreign_mass_frozen": layer.frozen.foreign_mass,
        "foreign_share": torch.where(norm > 0, foreign.norm(dim=-1) / norm, 0.0),
        "frozen_own": frozen_own.square().sum(-1),
        "frozen_foreign": frozen_foreign.square().sum(-1),
        "lora_own": lora_own.square().sum(-1),
        "lora_foreign": lora_foreign.square().sum(-1),
        "own_product": (lora_own * frozen_own).sum(-1),
        "foreign_product": (lora_foreign * frozen_foreign).sum(-1),
    }
    return {name: values.sum(0, dtype=torch.float64).cpu().numpy() for name, values in of_tokens.items()}


def _names() -> list[str]:
    return [f.name for f in fields(Contamination) if f.name not in ("layers", "tokens")]


def _what_lora_does(cosine: np.ndarray, foreign_norm: np.ndarray) -> str:
    if foreign_norm < 1:
        return "LoRA works against what comes from other samples"
    if cosine < 0:
        return "LoRA changes what comes from other samples and does not weaken it"
    return "LoRA adds to what comes from other samples"


def _cosine(product: np.ndarray, lora: np.ndarray, frozen: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return product / np.sqrt(lora * frozen)


def _norm_ratio(product: np.ndarray, lora: np.ndarray, frozen: np.ndarray) -> np.ndarray:
    """``|frozen + lora| / |frozen|`` from squared norms and the inner product."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.sqrt(np.maximum(frozen + 2 * product + lora, 0) / frozen)  # rounding may take 0 below 0


def _number(value: np.ndarray) -> float | None:
    return float(value) if np.isfinite(value) else None
