"""Attention over a prefix forest: each run of tokens with itself, and each trunk's keys with all that grows from it.

In a forest laid out depth first, all descendants of a run are one stretch of the row. So a trunk needs one matmul of
that stretch against its keys, without mask, padding or copies; the pieces are merged by their log-sum-exp. The backward
of each piece runs on the *merged* output and log-sum-exp, which is exact, and recomputes the scores: none is kept.

Source: log-sum-exp merging as in Hydragen (arXiv 2402.05099, section 3); the backward as in FlashAttention-2 (arXiv
2307.08691, algorithm 2) with the merged statistics, as ring attention does. Differs: any depth, windows, soft-caps and
sinks.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from frisket.attend.backends.matmul import Knobs

QUERY_BLOCK = 256  # queries of a run whose scores exist at one time
SPAN_SCORES = 1 << 19  # scores of a key head that exist at one time: more leaves the CPU's cache


@dataclass(frozen=True)
class Group:
    """Runs of like length, computed together.

    Attributes:
        index: [run * length] places in the flat rows; padding repeats the run's last place.
        runs: how many.
        length: tokens of the longest.
        is_real: [run, length] False at padding.
    """

    index: Tensor
    runs: int
    length: int
    is_real: Tensor


@dataclass(frozen=True)
class Span:
    """A trunk and what grows from it, as stretches of the flat rows: all of ``queries`` see all of ``keys``."""

    keys: slice
    queries: slice


@dataclass(frozen=True)
class Forest:
    """Everything about a micro-batch that merging needs.

    Attributes:
        groups: all runs, each in one group.
        back: place of each token in the groups laid end to end; one past the end for padding.
        spans: one for each run that others grow from, a parent's before its child's.
        positions: [place] depth of each token along its path.
    """

    groups: tuple[Group, ...]
    back: Tensor
    spans: tuple[Span, ...]
    positions: Tensor


def forest_attention(
    query: Float[Tensor, "row query_head token width"],
    key: Float[Tensor, "row head token width"],
    value: Float[Tensor, "row head token value_width"],
    forest: Forest,
    knobs: Knobs,
) -> Float[Tensor, "row token query_head value_width"]:
    """Attention of every token with its own run up to itself and with all runs above it."""
    rows, query_heads, tokens, _ = query.shape
    heads = key.shape[1]
    flat = [x.transpose(0, 1).reshape(x.shape[1], rows * tokens, x.shape[3]) for x in (query, key, value)]
    grouped = flat[0].view(heads, query_heads // heads, rows * tokens, -1)
    out: Any = _Merged.apply(grouped, flat[1], flat[2], knobs.sinks, forest, knobs)
    return out.reshape(query_heads, rows, tokens, -1).permute(1, 2, 0, 3)


class _Merged(torch.autograd.Function):
    """query [head, group, place, width], key and value [head, place, width] -> [head, group, place, value_width]."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, sinks: Any, forest: Forest, knobs: Knobs
    ) -> Tensor:
        outs, sums = [], []
        for group in forest.groups:
            out, lse = _own_forward(*_taken(group, query, key, value), knobs)
            outs.append(_laid_out(group, out))
            sums.append(_laid_out(group, lse.unsqueeze(-1)))
        out, lse = _put_back(outs, forest.back), _put_back(sums, forest.back).squeeze(-1)
        for span, mask in _blocks(forest, query, knobs):
            part, part_lse = _piece_forward(
                query[:, :, span.queries], key[:, span.keys], value[:, span.keys], mask, knobs
            )
            own, own_lse = out[:, :, span.queries], lse[:, :, span.queries]
            merged = torch.logaddexp(own_lse, part_lse)
            own.mul_((own_lse - merged).exp_().unsqueeze(-1)).add_(part.mul_((part_lse - merged).exp_().unsqueeze(-1)))
            own_lse.copy_(merged)
        if sinks is not None:
            merged = torch.logaddexp(lse, _of_heads(sinks, lse))
            out.mul_((lse - merged).exp_().unsqueeze(-1))
            lse = merged
        out = out.to(query.dtype)
        ctx.save_for_backward(query, key, value, sinks, out, lse)
        ctx.forest, ctx.knobs = forest, knobs
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple:
        query, key, value, sinks, out, lse = ctx.saved_tensors
        forest, knobs, grad = ctx.forest, ctx.knobs, grads[0].contiguous()
        delta = (grad.to(lse.dtype) * out).sum(-1)
        d_query, d_key, d_value = _backward_of_runs(forest, (query, key, value), (grad, lse, delta), knobs)
        for span, mask in _blocks(forest, query, knobs):
            at, keys = span.queries, span.keys
            of_query, of_key, of_value = _piece_backward(
                query[:, :, at],
                key[:, keys],
                value[:, keys],
                grad[:, :, at],
                lse[:, :, at],
                delta[:, :, at],
                mask,
                knobs,
            )
            d_query[:, :, at] += of_query
            d_key[:, keys] += of_key
            d_value[:, keys] += of_value
        d_sinks = None
        if sinks is not None:
            shares = (_of_heads(sinks, lse) - lse).exp_()
            d_sinks = -(shares * delta).sum(-1).flatten().to(sinks.dtype)
        return d_query.to(query.dtype), d_key.to(key.dtype), d_value.to(value.dtype), d_sinks, None, None


def _piece_forward(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, knobs: Knobs
) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp of queries [batch, group, query, width] over keys [batch, key, width], in a wide type."""
    scores = _scores(query, key, mask, knobs)
    highest = scores.amax(-1, keepdim=True).clamp_(min=torch.finfo(scores.dtype).min)  # no key in the window: -inf
    shares = scores.sub_(highest).exp_()
    total = shares.sum(-1, keepdim=True)
    out = (shares.to(value.dtype).flatten(1, 2) @ value).view(*shares.shape[:3], -1).to(shares.dtype)
    lse = (total.log() + highest).squeeze(-1)
    return out.div_(total.clamp_(min=torch.finfo(scores.dtype).tiny)), lse


def _piece_backward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    grad: Tensor,
    lse: Tensor,
    delta: Tensor,
    mask: Tensor | None,
    knobs: Knobs,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of a piece, given what the merged output, its log-sum-exp and its gradient are at these queries."""
    scores = _scores(query, key, mask, knobs)
    slope = None if knobs.softcap is None else 1 - (scores / knobs.softcap).square_().nan_to_num_(posinf=1.0)
    shares = scores.sub_(lse.unsqueeze(-1)).exp_()
    flat_grad = grad.flatten(1, 2)
    d_value = shares.to(value.dtype).flatten(1, 2).transpose(1, 2) @ flat_grad
    d_scores = (flat_grad @ value.transpose(1, 2)).view_as(shares).to(shares.dtype)
    d_scores.sub_(delta.unsqueeze(-1)).mul_(shares)
    if slope is not None:
        d_scores.mul_(slope)
    d_scores = d_scores.mul_(knobs.scaling).to(query.dtype).flatten(1, 2)
    d_query = (d_scores @ key).view_as(query)
    return d_query, d_scores.transpose(1, 2) @ query.flatten(1, 2), d_value


def _own_forward(query: Tensor, key: Tensor, value: Tensor, knobs: Knobs) -> tuple[Tensor, Tensor]:
    """Causal attention of runs with themselves, a block of queries at a time."""
    parts = [
        _piece_forward(query[:, :, at], key[:, keys], value[:, keys], mask, knobs)
        for at, keys, mask in _causal_blocks(query, knobs.window)
    ]
    return torch.cat([out for out, _ in parts], dim=2), torch.cat([lse for _, lse in parts], dim=2)


def _own_backward(
    query: Tensor, key: Tensor, value: Tensor, grad: Tensor, lse: Tensor, delta: Tensor, is_real: Tensor, knobs: Knobs
) -> tuple[Tensor, Tensor, Tensor]:
    real = is_real.repeat(len(query) // len(is_real), 1)[:, None]  # the queries of padding move nothing
    grad, delta = grad * real.unsqueeze(-1), delta * real
    d_key, d_value = key.new_zeros(key.shape, dtype=lse.dtype), value.new_zeros(value.shape, dtype=lse.dtype)
    d_query = []
    for at, keys, mask in _causal_blocks(query, knobs.window):
        of_query, of_key, of_value = _piece_backward(
            query[:, :, at], key[:, keys], value[:, keys], grad[:, :, at], lse[:, :, at], delta[:, :, at], mask, knobs
        )
        d_query.append(of_query.to(lse.dtype))
        d_key[:, keys] += of_key
        d_value[:, keys] += of_value
    return torch.cat(d_query, dim=2), d_key, d_value


def _backward_of_runs(
    forest: Forest, inputs: tuple[Tensor, Tensor, Tensor], stats: tuple[Tensor, Tensor, Tensor], knobs: Knobs
) -> list[Tensor]:
    """Gradients from what runs see of themselves; ``stats`` are the output's gradient, log-sum-exp and delta."""
    grad, lse, delta = stats
    parts: list[list[Tensor]] = [[], [], []]
    for group in forest.groups:
        query, key, value = _taken(group, *inputs)
        own_lse, own_delta = (_runs_of(group, x.unsqueeze(-1)).squeeze(-1) for x in (lse, delta))
        of_query, *of_keys = _own_backward(
            query, key, value, _runs_of(group, grad), own_lse, own_delta, group.is_real, knobs
        )
        for whole, part in zip(parts, (of_query, *(x[:, None] for x in of_keys)), strict=True):
            whole.append(_laid_out(group, part))
    d_query, d_key, d_value = (_put_back(whole, forest.back) for whole in parts)
    return [d_query, d_key.squeeze(1), d_value.squeeze(1)]


def _scores(query: Tensor, key: Tensor, mask: Tensor | None, knobs: Knobs) -> Tensor:
    """[batch, group, query, key] in a wide type; -inf where the mask forbids."""
    flat = query.flatten(1, 2)
    products = torch.baddbmm(flat.new_empty(()), flat, key.transpose(1, 2), beta=0, alpha=knobs.scaling)
    scores = products.view(*query.shape[:3], key.shape[1]).to(torch.promote_types(query.dtype, torch.float32))
    if knobs.softcap is not None:
        scores = scores.div_(knobs.softcap).tanh_().mul_(knobs.softcap)
    return scores if mask is None else scores.masked_fill_(~mask, float("-inf"))


def _causal_blocks(query: Tensor, window: int | None) -> Iterator[tuple[slice, slice, Tensor]]:
    """Blocks of a run's queries, the keys that each can see, and who sees whom among them."""
    length = query.shape[2]
    for start in range(0, length, QUERY_BLOCK):
        stop = min(start + QUERY_BLOCK, length)
        first = 0 if window is None else max(0, start - window + 1)
        at = torch.arange(start, stop, device=query.device)[:, None]
        yield slice(start, stop), slice(first, stop), _near(at, torch.arange(first, stop, device=query.device), window)


def _blocks(forest: Forest, query: Tensor, knobs: Knobs) -> Iterator[tuple[Span, Tensor | None]]:
    """Spans cut into blocks of queries, with a mask where a window cuts through one."""
    for span in forest.spans:
        keys = span.keys.stop - span.keys.start
        step = max(16, SPAN_SCORES // (keys * query.shape[1]))
        for start in range(span.queries.start, span.queries.stop, step):
            at = slice(start, min(start + step, span.queries.stop))
            mask = None
            if knobs.window is not None:
                mask = _near(forest.positions[at, None], forest.positions[span.keys], knobs.window)
            yield Span(span.keys, at), mask


def _near(query_positions: Tensor, key_positions: Tensor, window: int | None) -> Tensor:
    """[query, key]: not ahead, and within the window."""
    behind = query_positions - key_positions
    return behind >= 0 if window is None else (behind >= 0) & (behind < window)


def _of_heads(sinks: Tensor, lse: Tensor) -> Tensor:
    return sinks.view(lse.shape[0], lse.shape[1], 1).to(lse.dtype)


def _taken(group: Group, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The group's tokens: query [head * run, group, length, width], key and value [head * run, length, width]."""
    return _runs_of(group, query), _runs_of(group, key[:, None]).squeeze(1), _runs_of(group, value[:, None]).squeeze(1)


def _runs_of(group: Group, x: Tensor) -> Tensor:
    """[head * run, group, length, width] from [head, group, place, width]."""
    heads, shared, _, width = x.shape
    taken = x.index_select(2, group.index).view(heads, shared, group.runs, group.length, width)
    return taken.transpose(1, 2).reshape(heads * group.runs, shared, group.length, width)


def _laid_out(group: Group, x: Tensor) -> Tensor:
    """[head, group, run * length, width] from [head * run, group, length, width]."""
    shared, length, width = x.shape[1:]
    taken = x.view(-1, group.runs, shared, length, width).transpose(1, 2)
    return taken.reshape(-1, shared, group.runs * length, width)


def _put_back(parts: list[Tensor], back: Tensor) -> Tensor:
    """[head, group, place, width] from the groups laid end to end; 0 at padding."""
    nothing = parts[0].new_zeros(*parts[0].shape[:2], 1, parts[0].shape[3])
    return torch.cat([*parts, nothing], dim=2).index_select(2, back)
