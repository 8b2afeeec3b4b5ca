"""`grouped`: segments of like length computed together as a small batch; no mask of the row is ever built.

Only matmuls and SDPA, so it serves CPU and any GPU. Measured on Zen 4 (fwd + bwd): explicit matmuls beat the CPU flash
kernel up to about 256 tokens, flash wins above. A group is padded to its longest segment inside attention only; causal
attention keeps real tokens from seeing that padding, which comes last.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from frisket.attend.backends.matmul import Knobs, masked_attention
from frisket.errors import UnsupportedError
from frisket.types import ROOT, Rows

MATMUL_TOKENS = 256
LIKE_LENGTH = 0.8  # shortest over longest segment of a group
GROUP_SCORES = 1 << 20  # scores of one head of a group: more leaves the CPU's cache


@dataclass(frozen=True)
class Group:
    """Segments computed together.

    Attributes:
        index: [segments * length] places in the flat rows; padding repeats the segment's last place.
        segments: how many.
        length: tokens of the longest.
    """

    index: Tensor
    segments: int
    length: int


@dataclass(frozen=True)
class GroupedLayout:
    """Groups of a micro-batch and the way back.

    Attributes:
        groups: all segments, each in one group.
        back: [row * token] place of each token in the groups' outputs laid end to end; one past the end for padding.
        in_order: the only group is the rows themselves, so nothing has to be moved.
    """

    groups: tuple[Group, ...]
    back: Tensor
    in_order: bool

    def attend(self, query: Tensor, key: Tensor, value: Tensor, knobs: Knobs) -> Float[Tensor, "row token head width"]:
        """Attention of every segment with itself.

        Args:
            query: [row, query_head, token, width]; ``key`` and ``value`` may have fewer heads.
            knobs: scaling, window, soft-cap and sinks of the layer.
        """
        if self.in_order:
            return causal_attention(query, key, value, knobs).transpose(1, 2)
        rows, _, tokens, _ = query.shape
        q, k, v = (x.transpose(1, 2).reshape(rows * tokens, x.shape[1], -1) for x in (query, key, value))
        outs = [self._attend_group(group, q, k, v, knobs) for group in self.groups]
        nothing = outs[0].new_zeros(1, *outs[0].shape[1:])
        return torch.cat([*outs, nothing]).index_select(0, self.back).view(rows, tokens, *outs[0].shape[1:])

    def _attend_group(self, group: Group, query: Tensor, key: Tensor, value: Tensor, knobs: Knobs) -> Tensor:
        q, k, v = (
            x.index_select(0, group.index).view(group.segments, group.length, *x.shape[1:]).transpose(1, 2)
            for x in (query, key, value)
        )
        out = causal_attention(q, k, v, knobs)
        return out.transpose(1, 2).reshape(group.segments * group.length, out.shape[1], -1)


def prepare(rows: Rows, device: torch.device) -> GroupedLayout:
    """Group the segments of a micro-batch by length; host work, once a micro-batch.

    Raises:
        UnsupportedError: a segment has a parent.
    """
    if (rows.parent_segment != ROOT).any():
        child = int(np.argmax(rows.parent_segment != ROOT))
        raise UnsupportedError(
            f"Backend 'grouped' cannot express a prefix forest in this version (segment {child} has a parent).\n"
            "Use attend.backend=sdpa to check on a small case."
        )
    flat = rows.segment_ids.ravel()
    starts, lengths = _spans(flat, len(rows.parent_segment))
    groups, back, used = [], np.full(flat.size, -1, dtype=np.int64), 0
    for members in _alike(lengths):
        longest = int(lengths[members].max())
        offsets = np.minimum(np.arange(longest)[None], lengths[members, None] - 1)
        index = starts[members, None] + offsets
        is_real = np.arange(longest)[None] < lengths[members, None]
        back[index[is_real]] = used + np.flatnonzero(is_real.ravel())
        used += index.size
        groups.append(Group(torch.from_numpy(index.ravel()).to(device), len(members), longest))
    in_order = len(groups) == 1 and used == flat.size and bool((back == np.arange(used)).all())
    in_order = in_order and groups[0].length == rows.segment_ids.shape[1]
    return GroupedLayout(tuple(groups), torch.from_numpy(np.where(back < 0, used, back)).to(device), in_order)


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


def _spans(flat_segments: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Start and length of each segment in the flat rows; segments are contiguous."""
    lengths = np.bincount(flat_segments[flat_segments >= 0], minlength=count)
    starts = np.full(count, flat_segments.size, dtype=np.int64)
    np.minimum.at(starts, flat_segments[flat_segments >= 0], np.flatnonzero(flat_segments >= 0))
    return starts, lengths


def _alike(lengths: np.ndarray) -> list[np.ndarray]:
    """Segments split into groups of like length, longest first, none with too many scores."""
    groups: list[list[int]] = []
    for segment in np.argsort(-lengths, kind="stable"):
        longest = lengths[groups[-1][0]] if groups else 0
        full = groups and (len(groups[-1]) + 1) * longest * longest > max(GROUP_SCORES, longest * longest)
        if not groups or full or lengths[segment] < LIKE_LENGTH * longest:
            groups.append([])
        groups[-1].append(int(segment))
    return [np.array(sorted(group)) for group in groups]
