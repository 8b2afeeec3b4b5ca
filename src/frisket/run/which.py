"""Which weights move, in one way for plan, run and report: the method, what `where` found by kind of module, notes."""

from collections.abc import Mapping
from typing import Any

import torch

from frisket.adapt.where import Match, Where
from frisket.errors import counted
from frisket.hf import load, tokens
from frisket.hf.forward import Model
from frisket.recipe import Recipe
from frisket.run.prepare import Prepared


def untouched(prepared: Prepared) -> Model:
    """The base without a method and without weights."""
    with torch.device("meta"):
        model = load.empty_model(prepared.config)
        tokens.grow(model, prepared.added.ids)
    return model


def which_weights(recipe: Recipe, match: Match, base: Model) -> dict[str, Any]:
    """What a page says under that name.

    Args:
        base: without the method, so that names are those that `where` matched.

    Returns:
        ``method``, ``moves``, ``source``, ``where``, ``modules``, ``tensors``, ``entries``, ``groups`` (name, tensors,
        entries, share of the model's) by the last word of a module's path, and ``notes``.
    """
    method, total = recipe.adapt, sum(parameter.numel() for parameter in base.parameters())
    groups: dict[str, list[int]] = {}
    names = match.parameters(base)
    for name in names:
        parameter = base.get_parameter(name)
        rows = sum(end - first for first, end in match.rows.get(name, ((0, len(parameter)),)))
        groups.setdefault(name.rpartition(".")[0].rpartition(".")[2], []).append(rows * parameter[0].numel())
    entries = sum(map(sum, groups.values()))
    return {
        "method": method.method,
        "moves": method.about.moves,
        "source": method.about.source,
        "where": where_told(method.where) if names else "none of the base's weights",
        "modules": len({name.rpartition(".")[0] for name in names}),
        "tensors": len(names),
        "entries": entries,
        "groups": [
            {"name": name, "tensors": len(sizes), "entries": sum(sizes), "share": sum(sizes) / total}
            for name, sizes in groups.items()
        ],
        "notes": list(match.notes),
    }


def where_told(where: Where) -> str:
    """`adapt.where` on one line.

    >>> where_told(["mlp", {"layers": "4-7"}])
    'mlp, {layers: 4-7}'
    """
    items = [where] if isinstance(where, str) else where
    return ", ".join(item if isinstance(item, str) else _restriction(item) for item in items)


def _restriction(item: object) -> str:
    if not isinstance(item, Mapping):
        return str(item)
    return "{" + ", ".join(f"{name}: {_restriction(value)}" for name, value in item.items()) + "}"


def adapt_told(method: str, moving: int | None, base: int, match: Match) -> str:
    """The line `adapt` of a plan and of a run.

    Args:
        moving: None where it is not known without the weights.
        base: parameters of the model without the method.
    """
    told = "" if moving is None else f" {moving:,} parameters move ({100 * moving / base:.2f} %) ·"
    return f"{method}:{told} {_matches(match)}"


def _matches(match: Match) -> str:
    found = match.by_pattern.items()
    told = ", ".join(f"{pattern} ({counted(count, 'tensor')} of the base)" for pattern, count in found)
    told += "".join(f", of which {policy} leaves {count}" for policy, count in match.by_policy.items())
    return f"where {told}" if told else "none of the base's"
