"""Runs of a micro-batch sorted into groups that are computed as one small batch each; host work, once a micro-batch.

What a run sees beyond itself comes in two ways. A large trunk (many keys for many queries) is a *span*: one matmul of
its keys with the one stretch of the row that grows from it. Small trunks are *gathered*: their keys are copied in front
of the run's own. Measured on two Zen 4 cores: below about 2^16 pairs the calls of a span cost more than the copies.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from frisket.attend.intervals import Runs, runs_of
from frisket.transfer import to_device
from frisket.types import Rows

LIKE_LENGTH = 0.8  # shortest over longest run of a group
GROUP_SCORES = 1 << 20  # scores of one head of a group: more leaves the CPU's cache
QUERY_BLOCK = 256  # queries of a run whose scores exist at one time
SPAN_PAIRS = 1 << 16  # keys times queries of a trunk
PREFIXES = (0, 16, 64)  # runs are grouped by how many keys are put in front: none, up to 16, up to 64, more


@dataclass(frozen=True)
class Group:
    """Runs of like length, computed together.

    Attributes:
        runs: how many.
        length: tokens of the longest.
        prefix: keys put in front of the longest.
        index: [run * length] places of the queries in the flat rows; padding repeats the run's last place.
        keys: [run * (prefix + length)] places of the keys: those in front, then the run's own.
        is_real: [run, length] False at padding.
        in_front: [run, prefix] False where a run has fewer keys in front.
    """

    runs: int
    length: int
    prefix: int
    index: Tensor
    keys: Tensor
    is_real: Tensor
    in_front: Tensor


@dataclass(frozen=True)
class Span:
    """A trunk and what grows from it, as stretches of the flat rows: all of ``queries`` see all of ``keys``."""

    keys: slice
    queries: slice


class Block(NamedTuple):
    """Some queries of the runs of a group, the keys that they reach, and a mask [run or 1, query, key]."""

    queries: slice
    keys: slice
    mask: Tensor


@dataclass(frozen=True)
class Grouping:
    """A micro-batch, ready for any layer.

    Attributes:
        groups: all runs, each in one group.
        spans: large trunks, a parent's before its child's.
        back: place of each token in the groups laid end to end; one past the end for padding.
        positions: [place] depth of each token along its path.
        in_order: the only group is the rows themselves, so nothing has to be moved.
    """

    groups: tuple[Group, ...]
    spans: tuple[Span, ...]
    back: Tensor
    positions: Tensor
    in_order: bool
    _blocks: dict[tuple[int, int | None], list[Block]] = field(default_factory=dict)

    def blocks(self, number: int, window: int | None) -> list[Block]:
        """Blocks of a group's queries: which keys they reach, and whom they see; made once for all layers."""
        if (number, window) not in self._blocks:
            self._blocks[number, window] = list(self._make_blocks(self.groups[number], window))
        return self._blocks[number, window]

    def _make_blocks(self, group: Group, window: int | None) -> Iterator[Block]:
        place = torch.arange(group.length, device=self.back.device)
        positions = self.positions[group.keys].view(group.runs, 1, -1)
        for start in range(0, group.length, QUERY_BLOCK):
            stop = min(start + QUERY_BLOCK, group.length)
            first = 0 if window is None or group.prefix else max(0, start - window + 1)
            own = is_near(place[None, start:stop, None] - place[first:stop], window)
            if group.prefix:
                at = positions[..., group.prefix + start : group.prefix + stop].transpose(1, 2)
                front = is_near(at - positions[..., : group.prefix], window) & group.in_front[:, None]
                own = torch.cat([front, own.expand(group.runs, -1, -1)], dim=-1)
            yield Block(slice(start, stop), slice(first, group.prefix + stop), own)


def is_near(behind: Tensor, window: int | None) -> Tensor:
    """Not ahead, and within the window, given how far each query is ahead of each key."""
    return behind >= 0 if window is None else (behind >= 0) & (behind < window)


def group_runs(rows: Rows, device: torch.device) -> Grouping:
    """Sort the runs of a micro-batch into groups and spans.

    Raises:
        UnsupportedError: a forest is not laid out depth first.
    """
    runs = runs_of(rows)
    stops = runs.starts + runs.lengths
    is_span = runs.lengths * (runs.ends - stops) >= SPAN_PAIRS
    spans = tuple(
        Span(slice(int(runs.starts[r]), int(stops[r])), slice(int(stops[r]), int(runs.ends[r])))
        for r in np.flatnonzero(is_span)
    )
    fronts = _fronts(runs, ~is_span)
    groups, back, used = [], np.full(rows.segment_ids.size, -1, dtype=np.int64), 0
    for members in _alike(runs.lengths, np.array([len(front) for front in fronts])):
        index, is_real = _places(runs, members)
        back[index[is_real]] = used + np.flatnonzero(is_real.ravel())
        used += index.size
        groups.append(_group(index, is_real, [fronts[run] for run in members], device))
    in_order = len(groups) == 1 and used == back.size and bool((back == np.arange(used)).all())
    in_order = in_order and not spans and groups[0].length == rows.segment_ids.shape[1]
    places = to_device(np.where(back < 0, used, back), device)
    return Grouping(tuple(groups), spans, places, to_device(rows.position_ids.ravel(), device), in_order)


def _fronts(runs: Runs, is_gathered: np.ndarray) -> list[np.ndarray]:
    """For each run the places of its ancestors' keys that are put in front of its own."""
    fronts: list[np.ndarray] = []
    for parent in runs.parents:
        above = fronts[parent] if parent >= 0 else np.zeros(0, dtype=np.int64)
        if parent >= 0 and is_gathered[parent]:
            own = int(runs.starts[parent]) + np.arange(int(runs.lengths[parent]))
            above = np.concatenate([above, own])
        fronts.append(above)
    return fronts


def _places(runs: Runs, members: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[run, token] places of some runs, each padded with its last place, and False at padding."""
    lengths = runs.lengths[members, None]
    offsets = np.arange(int(lengths.max()))[None]
    return runs.starts[members, None] + np.minimum(offsets, lengths - 1), offsets < lengths


def _group(index: np.ndarray, is_real: np.ndarray, fronts: list[np.ndarray], device: torch.device) -> Group:
    count, longest = index.shape
    prefix = max(map(len, fronts))
    in_front = np.arange(prefix)[None] < np.array([len(front) for front in fronts])[:, None]
    front = np.zeros((count, prefix), dtype=np.int64)
    front[in_front] = np.concatenate(fronts)
    keys = np.concatenate([front, index], axis=1)
    tensors = (to_device(x, device) for x in (index.ravel(), keys.ravel(), is_real, in_front))
    return Group(count, longest, prefix, *tensors)


def _alike(lengths: np.ndarray, prefixes: np.ndarray) -> list[np.ndarray]:
    """Runs split into groups of like length and like prefix, longest first, none with too many scores."""
    groups: list[list[int]] = []
    kinds = np.searchsorted(PREFIXES, prefixes)
    order = np.lexsort((-lengths, kinds))
    first, prefix = None, 0
    for run in order.tolist():
        prefix = max(prefix, int(prefixes[run]))
        alike = first is not None and kinds[run] == kinds[first] and lengths[run] >= LIKE_LENGTH * lengths[first]
        if not alike or (len(groups[-1]) + 1) * lengths[first] * (lengths[first] + prefix) > GROUP_SCORES:
            groups.append([])
            first, prefix = run, int(prefixes[run])
        groups[-1].append(run)
    return [np.array(sorted(group)) for group in groups]
