"""Ranks above the size of a matrix are refused: no change of the matrix has such a rank.

Gates are let be: matrices narrower than ``GATE``, which every usual rank is above (16 outputs in Qwen3.5, 1 in a
mixture's). A rank of their own would cost serving, where vLLM takes one rank for all modules.
"""

import json
from collections.abc import Iterable, Mapping

from torch import nn

from frisket.adapt.layers import sizes_of
from frisket.errors import ConfigError

GATE = 32


def largest_ranks(model: nn.Module, layers: Iterable[str], experts: Iterable[str] = ()) -> dict[str, int]:
    """The narrower side of each linear layer, and of one expert's matrix in each expert tensor, by path; no gates."""
    sides = {name: min(sizes_of(model.get_submodule(name))) for name in layers}
    sides |= {name: min(model.get_parameter(name).shape[-2:]) for name in experts}
    return {name: side for name, side in sides.items() if side >= GATE}


def refuse_larger(rank: int, largest: Mapping[str, int], knob: str, alternative: str = "") -> None:
    """Refuse a rank that its matrices do not allow.

    Args:
        largest: of the matrices that get this rank; see ``largest_ranks``.
        alternative: what else can be done.

    Raises:
        ConfigError: the rank is above the narrower side of one of them.
    """
    above = [name for name, side in largest.items() if side < rank]
    if above:
        raise ConfigError(
            f"{knob} = {rank}: {above[0]} is {largest[above[0]]} wide at its narrower side, and no change of it has a "
            f"higher rank ({len(above)} of {len(largest)} matrices are too small).\n"
            f"Use {knob}={min(largest.values())}, which all of them allow{alternative}."
        )


def refuse_larger_patterns(ranks: Mapping[str, int], matched: Mapping[str, Mapping[str, int]]) -> None:
    """Refuse ranks by pattern that their matrices do not allow.

    Args:
        ranks: by pattern.
        matched: the ``largest_ranks`` of those that each pattern decides.

    Raises:
        ConfigError: a rank is above the narrower side of a matrix.
    """
    fitting = {pattern: min((rank, *matched[pattern].values())) for pattern, rank in ranks.items()}
    above = [pattern for pattern, rank in ranks.items() if fitting[pattern] < rank]
    if above:
        pattern, allowed = above[0], fitting[above[0]]
        raise ConfigError(
            f"adapt.rank_pattern: {pattern!r}: {ranks[pattern]} is above the narrower side of a matrix, which is "
            f"{allowed} wide: no change of it has a higher rank.\nUse adapt.rank_pattern='{json.dumps(fitting)}'"
        )


def own_ranks(rank: int, largest: Mapping[str, int], layers: Iterable[str]) -> str:
    """The words for keeping a rank where it fits, with patterns for the layers that are too small."""
    own: dict[str, int] = {}
    for name in layers:
        if largest.get(name, rank) < rank:
            pattern = f"*.{name.rpartition('.')[2]}"
            own[pattern] = min(largest[name], own.get(pattern, rank))
    return f", or adapt.rank_pattern='{json.dumps(own)}'" if own else ""
