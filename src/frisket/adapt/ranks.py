"""Ranks above the size of a matrix are refused: no change of the matrix has such a rank."""

from collections.abc import Iterable, Mapping

from torch import nn

from frisket.adapt.layers import sizes_of
from frisket.errors import ConfigError


def largest_ranks(model: nn.Module, layers: Iterable[str], experts: Iterable[str] = ()) -> dict[str, int]:
    """The smaller side of each linear layer, and of one expert's matrix in each expert tensor, by path."""
    sides = {name: min(sizes_of(model.get_submodule(name))) for name in layers}
    return sides | {name: min(model.get_parameter(name).shape[-2:]) for name in experts}


def refuse_larger(ranks: Mapping[str, int], largest: Mapping[str, int], knob: str, fix: str | None = None) -> None:
    """Refuse ranks that their matrices do not allow.

    Args:
        ranks: by path, as ``knob`` gives them.
        largest: see ``largest_ranks``.
        fix: the override that works; default: ``knob`` at the largest rank that every one of them allows.

    Raises:
        ConfigError: a rank is above the smaller side of its matrix.
    """
    above = [name for name, rank in ranks.items() if rank > largest[name]]
    if above:
        raise ConfigError(
            f"{knob} = {ranks[above[0]]}: {above[0]} is {largest[above[0]]} wide at its narrower side, and no change "
            f"of it has a higher rank ({len(above)} of {len(ranks)} matrices are too small).\n"
            f"Use {fix or f'{knob}={min(largest[name] for name in ranks)}'}, which all of them allow."
        )
