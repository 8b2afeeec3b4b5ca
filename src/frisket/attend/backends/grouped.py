"""`grouped`: runs of like length computed together as a small batch; no mask of the row is ever built.

A run is a segment, or several of which each has but one child. Matmuls and SDPA serve CPU and any GPU; large pieces of
a forest go through torch's flash kernel where they are on a CPU. Measured on Zen 4 (fwd + bwd): explicit matmuls beat
the CPU flash kernel up to about 512 tokens, flash wins above (docs/log.md). A group is padded to its longest run inside
attention only; real tokens do not see that padding, which comes last.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from frisket.attend.backends.groups import Group, Grouping, group_runs
from frisket.attend.backends.matmul import Knobs, masked_attention
from frisket.attend.backends.merged import forest_attention
from frisket.types import Rows

MATMUL_TOKENS = 512


@dataclass(frozen=True)
class GroupedLayout:
    """The runs of a micro-batch, ready for any layer."""

    grouping: Grouping

    def attend(self, query: Tensor, key: Tensor, value: Tensor, knobs: Knobs) -> Float[Tensor, "row token head width"]:
        """Attention of every run with itself and with the runs that it grows from.

        Args:
            query: [row, query_head, token, width]; ``key`` and ``value`` may have fewer heads.
            knobs: scaling, window, soft-cap and sinks of the layer.
        """
        if self.grouping.spans:
            return forest_attention(query, key, value, self.grouping, knobs)
        if self.grouping.in_order:
            return _run_attention(query, key, value, self.grouping, 0, knobs).transpose(1, 2)
        rows, _, tokens, _ = query.shape
        q, k, v = (x.transpose(1, 2).reshape(rows * tokens, x.shape[1], -1) for x in (query, key, value))
        outs = [self._attend_group(number, q, k, v, knobs) for number in range(len(self.grouping.groups))]
        nothing = outs[0].new_zeros(1, *outs[0].shape[1:])
        return torch.cat([*outs, nothing]).index_select(0, self.grouping.back).view(rows, tokens, *outs[0].shape[1:])

    def _attend_group(self, number: int, query: Tensor, key: Tensor, value: Tensor, knobs: Knobs) -> Tensor:
        group = self.grouping.groups[number]
        q, k, v = _taken(query, group, group.index), _taken(key, group, group.keys), _taken(value, group, group.keys)
        out = _run_attention(q, k, v, self.grouping, number, knobs)
        return out.transpose(1, 2).reshape(group.runs * group.length, out.shape[1], -1)


def _taken(x: Tensor, group: Group, places: Tensor) -> Tensor:
    """[run, head, token, width] of the flat [place, head, width]."""
    return x.index_select(0, places).view(group.runs, -1, *x.shape[1:]).transpose(1, 2)


def prepare(rows: Rows, device: torch.device) -> GroupedLayout:
    """Group the runs of a micro-batch; host work, once a micro-batch.

    Raises:
        UnsupportedError: a forest is not laid out depth first.
    """
    return GroupedLayout(group_runs(rows, device))


def _run_attention(
    query: Float[Tensor, "run query_head query width"],
    key: Float[Tensor, "run head key width"],
    value: Float[Tensor, "run head key value_width"],
    grouping: Grouping,
    number: int,
    knobs: Knobs,
) -> Float[Tensor, "run query_head query value_width"]:
    """Attention of a group's runs over the keys put in front of them and themselves, by the fastest exact way."""
    length = query.shape[2]
    reach = key.shape[2]
    window = knobs.window if knobs.window is not None and knobs.window < reach else None
    if length > MATMUL_TOKENS and length == reach and knobs.is_plain and window is None:
        grouped_query = query.shape[1] != key.shape[1]
        return F.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=knobs.scaling, enable_gqa=grouped_query
        )
    parts = [
        masked_attention(query[:, :, at], key[:, :, keys], value[:, :, keys], mask[:, None, None], knobs)
        for at, keys, mask in grouping.blocks(number, window)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
