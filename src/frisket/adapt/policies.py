"""Policies of `where`: what restricts the matched weights further, and which methods that makes sense for.

`{half: category}`: half of each category move. HFT (Hui et al. 2024, arXiv 2404.18466): of each layer's attention two
of q, k, v, o; of the feed-forward two matrices in half of the layers and one in the others; half of the norms;
embeddings and head always; drawn at random once, again for each stage. Differs: matrices are drawn among those of
equal size, so that with grouped queries (k and v smaller than q and o) q or o moves, and k or v: a strict half. With an
odd number of layers, or tensors that the paper does not name, it is a half as near as sizes allow; a note says what.

`{kappa: 0.2}`: the share of the matched matrices with the smallest condition numbers (see kappa.py), at least one. The
output head is left out before they are ranked.

`{locate: {layer: 6, module: mlp.down_proj}}`: one place of one layer (LocFT-BF, arXiv 2509.22072), by whole segments of
its path: `layer: 2` is not layer 20. Without `module` the whole layer. `layer: search` or a list of layers, or
`{locate: search}` for `mlp.down_proj` of every layer: the layer is found by short runs before training (run/locating).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from frisket.adapt.kappa import condition_numbers
from frisket.adapt.where import (
    Match,
    Where,
    block_of,
    embedding_name,
    expert_tensors,
    has_rows,
    head_name,
    is_linear,
    layer_of,
    within_layer,
)
from frisket.adapt.where import resolve as find
from frisket.errors import ConfigError, UnsupportedError, nearest

_MATRICES = frozenset({"full", "lora", "peft", "mora", "mft", "graft", "spiel"})
_LAYERS = _MATRICES | {"ia3", "ln_tuning"}
# Which methods each policy makes sense for; any other pair is refused.
POLICIES: Mapping[str, frozenset[str]] = {
    "layers": _LAYERS,
    "last-layer": _LAYERS,
    "kappa": _MATRICES,
    "locate": _MATRICES,
    "half": frozenset({"full"}),
    "rows": frozenset({"full"}),
    "embeddings-and-head": frozenset({"full"}),
}
_WHY = {
    "layers": "chooses blocks of weights",
    "last-layer": "chooses a block of weights",
    "kappa": "chooses among matrices by their condition number",
    "locate": "chooses a matrix of one layer",
    "half": "chooses which weights of the base move themselves",
    "rows": "moves rows of a tensor and freezes the others",
    "embeddings-and-head": "moves two tables of the base themselves",
}
_CHOOSE = ("half", "kappa", "locate")
MODULE = "mlp.down_proj"
SEARCH = "search"


@dataclass(frozen=True)
class Place:
    """What `locate` names.

    Attributes:
        layers: candidates; one: it is that layer; none: every layer is one.
        module: path within the layer; None: the whole layer.
        steps: of the run that tries a candidate.
    """

    layers: tuple[int, ...]
    module: str | None
    steps: int = 20

    @property
    def is_search(self) -> bool:
        """Whether the layer is still to be found."""
        return len(self.layers) != 1

    def told(self) -> dict[str, Any]:
        """As a recipe says it; of a fixed place."""
        return {"layer": self.layers[0]} | ({} if self.module is None else {"module": self.module})


def asked(where: Where) -> dict[str, Any]:
    """The policies that a `where` asks for, with their values.

    >>> asked(["all", "head[0:4]", {"layers": "4-7"}, {"kappa": 0.2}])
    {'rows': 'head[0:4]', 'layers': '4-7', 'kappa': 0.2}
    """
    found: dict[str, Any] = {}
    for item in [where] if isinstance(where, str) else where:
        if isinstance(item, str):
            found |= {"rows": item} if has_rows(item) else {item: item} if item in POLICIES else {}
            continue
        for name, value in item.items():
            if name in _CHOOSE and name in found:
                raise ConfigError(f"adapt.where: {name} is said twice.\nLeave one of the two out.")
            found[name] = value
    return found


def check(where: Where, method: str) -> None:
    """Refuse policies that contradict each other, or that make no sense for a method.

    Raises:
        ConfigError: two policies that cannot both hold, or a value out of range.
        UnsupportedError: the method moves nothing that a policy chooses among.
    """
    policies = asked(where)
    for name in policies:
        if name in POLICIES and method not in POLICIES[name]:
            fitting = "full" if "full" in POLICIES[name] else min(POLICIES[name])
            raise UnsupportedError(
                f"adapt.where: `{name}` {_WHY[name]}, and adapt.method={method} does not.\n"
                f"Use adapt.method={fitting}, or leave `{name}` out of adapt.where."
            )
    choosing = [name for name in (*_CHOOSE, "rows") if name in policies]
    if "layers" in policies and "locate" in policies:
        choosing = ["layers", "locate"]
    if len(choosing) > 1:
        raise ConfigError(
            f"adapt.where: `{choosing[0]}` and `{choosing[1]}` both decide which weights move, and contradict each "
            f"other.\nLeave one of the two out of adapt.where."
        )
    if "kappa" in policies:
        _share(policies["kappa"])
    if "half" in policies and policies["half"] != "category":
        raise ConfigError(
            f"adapt.where: half = {policies['half']!r} is not known.\nUse adapt.where='{{half: category}}'."
        )
    if "locate" in policies:
        place_of(where)


def redraws(where: Where) -> bool:
    """Whether each stage chooses anew which weights move."""
    return "half" in asked(where)


def needs_weights(where: Where) -> bool:
    """Whether what is matched depends on the weights' values."""
    return "kappa" in asked(where)


def resolve(model: nn.Module, where: Where, *, moves_weights: bool = True, seed: int = 0) -> Match:
    """Find what `where` names: patterns first, then what a policy leaves of them.

    Args:
        moves_weights: see ``where.resolve``.
        seed: of what is drawn at random.

    Raises:
        ConfigError: a pattern matches nothing, or a policy leaves nothing.
        UnsupportedError: a head tied to the embedding; a layer that is still to be searched for.
    """
    policies = asked(where)
    items = [where] if isinstance(where, str) else where
    kept = [item if isinstance(item, str) else {k: v for k, v in item.items() if k not in _CHOOSE} for item in items]
    match = find(model, [item for item in kept if item], moves_weights=moves_weights)
    if "half" in policies:
        return _half(model, match, seed)
    if "kappa" in policies:
        return _kappa(model, match, _share(policies["kappa"]))
    place = place_of(where)
    return match if place is None else _located(model, match, place)


def place_of(where: Where) -> Place | None:
    """What `locate` names; None where it is not asked for.

    Raises:
        ConfigError: its value says no place.
    """
    value = asked(where).get("locate")
    if value is None:
        return None
    given = {"layer": SEARCH, "module": MODULE} if value == SEARCH else value
    if isinstance(given, Mapping) and "layer" in given and set(given) <= {"layer", "module", "steps"}:
        layer, module, steps = given["layer"], given.get("module"), given.get("steps", Place.steps)
        layers: tuple[Any, ...] = (
            () if layer == SEARCH else tuple(layer) if isinstance(layer, list | tuple) else (layer,)
        )
        whole = all(type(each) is int and each >= 0 for each in layers) and len(set(layers)) == len(layers)
        if whole and (layers or layer == SEARCH) and isinstance(module, str | None) and type(steps) is int and steps:
            return Place(layers, module, steps)
    raise ConfigError(
        f"adapt.where: locate = {value!r} names no place.\n"
        f"Use adapt.where='{{locate: {{layer: 6, module: {MODULE}}}}}', or adapt.where='{{locate: search}}'."
    )


def with_place(where: Where, place: Mapping[str, Any]) -> Where:
    """A `where` with this place in the stead of the one that it asks for."""
    items = [where] if isinstance(where, str) else where
    return [{**item, "locate": dict(place)} if isinstance(item, dict) and "locate" in item else item for item in items]


def candidates(model: nn.Module, place: Place) -> list[int]:
    """The layers that a search tries: those asked for, or all that have the module."""
    names = [name for name, _ in model.named_parameters()]
    every = sorted({layer for name in names if (layer := layer_of(name)) is not None and _is_in(name, place.module)})
    if not every or not set(place.layers) <= set(every):
        raise ConfigError(_nowhere(model, names, place))
    return list(place.layers) or every


def _share(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise ConfigError(
            f"adapt.where: kappa = {value!r} must be a share above 0 and of at most 1.\n"
            "Use adapt.where='{kappa: 0.2}'."
        )
    return float(value)


def _narrowed(model: nn.Module, match: Match, names: Iterable[str], policy: str, notes: Iterable[str]) -> Match:
    """A match of exactly these of its parameters."""
    chosen = set(names)
    whole = []
    for path, module in model.named_modules():
        inner = [f"{path}.{name}" if path else name for name, _ in module.named_parameters()]
        if list(module.parameters(recurse=False)) and chosen.issuperset(inner):
            whole.append(path)
    inside = set(Match(tuple(whole), {}).parameters(model))
    alone = tuple(name for name in match.parameters(model) if name in chosen - inside)
    return replace(
        match, modules=tuple(whole), tensors=alone, notes=(*match.notes, *notes), by_policy={policy: len(chosen)}
    )


def _half(model: nn.Module, match: Match, seed: int) -> Match:
    """Draw half of each category; see the module's docstring."""
    generator = torch.Generator().manual_seed(seed)
    always = {embedding_name(model), head_name(model)}
    units: dict[str, list[str]] = {}
    experts = expert_tensors(model)
    for name in match.parameters(model):
        units.setdefault(name if name in experts else name.rpartition(".")[0], []).append(name)
    chosen = {unit for unit in units if unit in always}
    groups: dict[tuple, dict[int | None, list[str]]] = {}
    for unit, names in units.items():
        if unit in always:
            continue
        category = _category(model, unit)
        size = 0 if category == "norms" else max(model.get_parameter(name).numel() for name in names)
        layer = None if category == "norms" else layer_of(unit)
        groups.setdefault((category, size), {}).setdefault(layer, []).append(unit)
    for by_layer in groups.values():
        odd = [layer for layer, members in by_layer.items() if len(members) % 2]
        fuller = {odd[i] for i in torch.randperm(len(odd), generator=generator)[: (len(odd) + 1) // 2].tolist()}
        for layer, members in by_layer.items():
            count = len(members) // 2 + (layer in fuller)
            chosen |= {members[i] for i in torch.randperm(len(members), generator=generator)[:count].tolist()}
    names = [name for unit in chosen for name in units[unit]]
    sizes = {name: model.get_parameter(name).numel() for of_unit in units.values() for name in of_unit}
    drawn = sum(sizes[name] for unit in chosen - always for name in units[unit])
    of = sum(sizes[name] for unit in units.keys() - always for name in units[unit])
    note = f"half: {drawn:,} of {of:,} entries ({100 * drawn / max(1, of):.1f} %) move, and embeddings and head always"
    return _narrowed(model, match, names, "half", [note])


def _category(model: nn.Module, unit: str) -> str:
    if unit in expert_tensors(model):
        return "experts"
    module = model.get_submodule(unit)
    if "norm" in type(module).__name__.lower():
        return "norms"
    return (block_of(model, unit) if is_linear(module) else None) or "others"


def _kappa(model: nn.Module, match: Match, share: float) -> Match:
    head = head_name(model)
    linears = [name for name in match.linears(model) if name != head]
    experts = match.experts(model)
    if any(parameter.is_meta for parameter in model.parameters()):  # a forecast: the largest that it may be
        size = {name: model.get_submodule(name).weight.numel() for name in linears}  # pyright: ignore
        size |= {name: model.get_parameter(name).numel() for name in experts}
        kappa = {name: -float(entries) for name, entries in size.items()}
        note = "kappa: without the weights, the largest matrices are counted instead of those that will be chosen"
    else:
        measured = condition_numbers(model)
        kappa = measured.modules | measured.tensors
        note = ""
    layers, tensors = _lowest(kappa, linears, share), _lowest(kappa, experts, share)
    if not layers and not tensors:
        raise ConfigError(
            "adapt.where: kappa found no matrix to rank: PEFT's helper knows nn.Linear and experts, with sides up to "
            "16,384.\nName modules instead: adapt.where=all-linear."
        )
    inside = set(Match(tuple(layers), {}, tuple(tensors)).parameters(model))
    chosen = [name for name in match.parameters(model) if name in inside]
    kept, of = len(layers) + len(tensors), len(linears) + len(experts)
    told = f"kappa: {kept} of {of} matrices, those of the smallest condition numbers"
    return _narrowed(model, match, chosen, "kappa", [note or told])


def _lowest(kappa: Mapping[str, float], names: Iterable[str], share: float) -> list[str]:
    known = sorted((name for name in names if name in kappa), key=lambda name: kappa[name])
    return known[: max(1, int(len(known) * share))]


def _located(model: nn.Module, match: Match, place: Place) -> Match:
    if place.is_search:
        raise UnsupportedError(
            "adapt.where: `locate: search` is decided by short runs, which `frisket train` makes; here no layer is "
            f"chosen yet.\nName one: adapt.where='{{locate: {{layer: 6, module: {place.module or MODULE}}}}}'."
        )
    names = match.parameters(model)
    chosen = [name for name in names if layer_of(name) == place.layers[0] and _is_in(name, place.module)]
    if not chosen:
        raise ConfigError(_nowhere(model, names, place))
    return _narrowed(model, match, chosen, "locate", [])


def _is_in(name: str, module: str | None) -> bool:
    """Whether a parameter lies in a module of its layer, by whole segments of the path."""
    inner = within_layer(name)
    return module is None or inner == module or inner.startswith(f"{module}.")


def _nowhere(model: nn.Module, names: Iterable[str], place: Place) -> str:
    layers = sorted({layer for name in names if (layer := layer_of(name)) is not None})
    inner = {within_layer(name).rpartition(".")[0] for name in names if layer_of(name) is not None}
    wanted = [layer for layer in place.layers if layer not in layers]
    if wanted:
        span = f"{layers[0]} to {layers[-1]}" if layers else "none"
        return (
            f"adapt.where: locate names layer {wanted[0]}, and the layers found here are {span}.\n"
            "List them: frisket plan --names"
        )
    near = nearest(place.module or "", inner)
    hint = f" Nearest: {near!r}." if near else ""
    return (
        f"adapt.where: locate names module {place.module!r}, which the layers found here do not have.{hint}\n"
        "List them: frisket plan --names"
    )
