"""`grouped`: runs of like length computed together as a small batch; no mask of the row is ever built.

A run is a segment, or several of which each has but one child: it sees itself causally. Where others grow from it, the
pieces are merged (``merged.py``). Only matmuls and SDPA, so it serves CPU and any GPU. Measured on Zen 4 (fwd + bwd):
explicit matmuls beat the CPU flash kernel up to about 256 tokens, flash wins above. A group is padded to its longest
run inside attention only; causal attention keeps real tokens from seeing that padding, which comes last.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from frisket.attend.backends.matmul import Knobs, masked_attention
from frisket.attend.backends.merged import Forest, Group, Span, forest_attention
from frisket.attend.intervals import runs_of
from frisket.types import Rows

MATMUL_TOKENS = 256
LIKE_LENGTH = 0.8  # shortest over longest run of a group
GROUP_SCORES = 1 << 20  # scores of one head of a group: more leaves the CPU's cache


@dataclass(frozen=True)
class GroupedLayout:
    """The runs of a micro-batch, ready for any layer.

    Attributes:
        forest: groups, the way back, and what grows from what.
        in_order: the only group is the rows themselves, so nothing has to be moved.
    """

    forest: Forest
    in_order: bool

    def attend(self, query: Tensor, key: Tensor, value: Tensor, knobs: Knobs) -> Float[Tensor, "row token head width"]:
        """Attention of every run with itself and with the runs that it grows from.

        Args:
            query: [row, query_head, token, width]; ``key`` and ``value`` may have fewer heads.
            knobs: scaling, window, soft-cap and sinks of the layer.
        """
        if self.forest.spans:
            return forest_attention(query, key, value, self.forest, knobs)
        if self.in_order:
            return causal_attention(query, key, value, knobs).transpose(1, 2)
        rows, _, tokens, _ = query.shape
        q, k, v = (x.transpose(1, 2).reshape(rows * tokens, x.shape[1], -1) for x in (query, key, value))
        outs = [self._attend_group(group, q, k, v, knobs) for group in self.forest.groups]
        nothing = outs[0].new_zeros(1, *outs[0].shape[1:])
        return torch.cat([*outs, nothing]).index_select(0, self.forest.back).view(rows, tokens, *outs[0].shape[1:])

    def _attend_group(self, group: Group, query: Tensor, key: Tensor, value: Tensor, knobs: Knobs) -> Tensor:
        q, k, v = (
            x.index_select(0, group.index).view(group.runs, group.length, *x.shape[1:]).transpose(1, 2)
            for x in (query, key, value)
        )
        out = causal_attention(q, k, v, knobs)
        return out.transpose(1, 2).reshape(group.runs * group.length, out.shape[1], -1)


def prepare(rows: Rows, device: torch.device) -> GroupedLayout:
    """Group the runs of a micro-batch by length; host work, once a micro-batch.

    Raises:
        UnsupportedError: a forest is not laid out depth first.
    """
    runs = runs_of(rows)
    groups, back, used = [], np.full(rows.segment_ids.size, -1, dtype=np.int64), 0
    for members in _alike(runs.lengths):
        longest = int(runs.lengths[members].max())
        offsets = np.minimum(np.arange(longest)[None], runs.lengths[members, None] - 1)
        index = runs.starts[members, None] + offsets
        is_real = np.arange(longest)[None] < runs.lengths[members, None]
        back[index[is_real]] = used + np.flatnonzero(is_real.ravel())
        used += index.size
        at, real = torch.from_numpy(index.ravel()).to(device), torch.from_numpy(is_real).to(device)
        groups.append(Group(at, len(members), longest, real))
    in_order = len(groups) == 1 and used == back.size and bool((back == np.arange(used)).all())
    in_order = in_order and groups[0].length == rows.segment_ids.shape[1]
    spans = tuple(
        Span(slice(int(start), int(end)), slice(int(end), int(last)))
        for start, end, last in zip(runs.starts, runs.starts + runs.lengths, runs.ends, strict=True)
        if last > end
    )
    places = torch.from_numpy(np.where(back < 0, used, back)).to(device)
    positions = torch.from_numpy(rows.position_ids.ravel()).to(device)
    return GroupedLayout(Forest(tuple(groups), places, spans, positions), in_order)


def causal_attention(query: Tensor, key: Tensor, value: Tensor, knobs: Knobs) -> Tensor:
    """Causal attention of a batch of equally long segments, by the fastest exact way.

    Args:
        query: [segment, query_head, token, width].
    """
    length = query.shape[2]
    window = knobs.window if knobs.window is not None and knobs.window < length else None
    if length > MATMUL_TOKENS and knobs.is_plain and window is None:
        grouped_query = query.shape[1] != key.shape[1]
        return F.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=knobs.scaling, enable_gqa=grouped_query
        )
    blocks = []
    for start in range(0, length, MATMUL_TOKENS):
        stop = min(start + MATMUL_TOKENS, length)
        first = 0 if window is None else max(0, start - window + 1)
        mask = _band(start, stop, first, window, query.device)
        blocks.append(
            masked_attention(query[:, :, start:stop], key[:, :, first:stop], value[:, :, first:stop], mask, knobs)
        )
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=2)


def _band(start: int, stop: int, first: int, window: int | None, device: torch.device) -> Tensor:
    """[query, key] booleans of a block of queries: causal, and within the window."""
    behind = torch.arange(start, stop, device=device)[:, None] - torch.arange(first, stop, device=device)[None]
    return behind >= 0 if window is None else (behind >= 0) & (behind < window)


def _alike(lengths: np.ndarray) -> list[np.ndarray]:
    """Runs split into groups of like length, longest first, none with too many scores."""
    groups: list[list[int]] = []
    for run in np.argsort(-lengths, kind="stable"):
        longest = lengths[groups[-1][0]] if groups else 0
        full = groups and (len(groups[-1]) + 1) * longest * longest > max(GROUP_SCORES, longest * longest)
        if not groups or full or lengths[run] < LIKE_LENGTH * longest:
            groups.append([])
        groups[-1].append(int(run))
    return [np.array(sorted(group)) for group in groups]
