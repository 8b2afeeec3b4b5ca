"""Attention over a prefix forest: each run of tokens with itself, and each trunk's keys with all that grows from it.

In a forest laid out depth first, all descendants of a run are one stretch of the row. So a trunk needs one matmul of
that stretch against its keys, without mask, padding or copies; the pieces are merged by their log-sum-exp. The backward
of each piece runs on the *merged* output and log-sum-exp, which is exact, and recomputes the scores: none is kept.

Source: log-sum-exp merging as in Hydragen (arXiv 2402.05099, section 3); the backward as in FlashAttention-2 (arXiv
2307.08691, algorithm 2) with the merged statistics, as ring attention does. Differs: any depth, windows, soft-caps and
sinks.
"""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from frisket.attend.backends.groups import Group, Grouping, Span, is_near
from frisket.attend.backends.matmul import Knobs

SPAN_SCORES = 1 << 20  # scores that exist at one time: more leaves the CPU's cache
# Torch's flash kernel for the CPU is faster from so many pairs of a span on, and for runs longer than this.
FLASH_PAIRS, FLASH_TOKENS = 1 << 18, 256


def forest_attention(
    query: Float[Tensor, "row query_head token width"],
    key: Float[Tensor, "row head token width"],
    value: Float[Tensor, "row head token value_width"],
    grouping: Grouping,
    knobs: Knobs,
) -> Float[Tensor, "row token query_head value_width"]:
    """Attention of every token with its own run up to itself and with all runs above it."""
    rows, query_heads, tokens, _ = query.shape
    heads = key.shape[1]
    flat = [x.transpose(0, 1).reshape(x.shape[1], rows * tokens, x.shape[3]) for x in (query, key, value)]
    folded = flat[0].view(heads, query_heads // heads, rows * tokens, -1)
    out: Any = _Merged.apply(folded, flat[1], flat[2], knobs.sinks, grouping, knobs)
    return out.reshape(query_heads, rows, tokens, -1).permute(1, 2, 0, 3)


class _Merged(torch.autograd.Function):
    """query [head, group, place, width], key and value [head, place, width] -> [head, group, place, value_width]."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, sinks: Any, grouping: Grouping, knobs: Knobs
    ) -> Tensor:
        outs, sums = [], []
        for number, group in enumerate(grouping.groups):
            out, lse = _runs_forward(*_taken(group, query, key, value), grouping, number, knobs)
            outs.append(_laid_out(group, out))
            sums.append(_laid_out(group, lse.unsqueeze(-1)))
        out, lse = _put_back(outs, grouping.back), _put_back(sums, grouping.back).squeeze(-1)
        for span, mask, flash in _blocks(grouping, query, value, knobs):
            at, keys = span.queries, span.keys
            pieces = query[:, :, at], key[:, keys], value[:, keys]
            part, part_lse = _flash_forward(*pieces, False, knobs) if flash else _piece_forward(*pieces, mask, knobs)
            own, own_lse = out[:, :, at], lse[:, :, at]
            merged = torch.logaddexp(own_lse, part_lse)
            own.mul_((own_lse - merged).exp_().unsqueeze(-1)).add_(part.mul_((part_lse - merged).exp_().unsqueeze(-1)))
            own_lse.copy_(merged)
        if sinks is not None:
            merged = torch.logaddexp(lse, _of_heads(sinks, lse))
            out.mul_((lse - merged).exp_().unsqueeze(-1))
            lse = merged
        out = out.to(query.dtype)
        ctx.save_for_backward(query, key, value, sinks, out, lse)
        ctx.grouping, ctx.knobs = grouping, knobs
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple:
        query, key, value, sinks, out, lse = ctx.saved_tensors
        grouping, knobs, grad = ctx.grouping, ctx.knobs, grads[0].contiguous()
        delta = (grad.to(lse.dtype) * out).sum(-1)
        stats = (grad, lse, delta)
        d_query, d_key, d_value = _all_runs_backward(grouping, (query, key, value), stats, out, knobs)
        for span, mask, flash in _blocks(grouping, query, value, knobs):
            at, keys = span.queries, span.keys
            q, k, v, g, sums = query[:, :, at], key[:, keys], value[:, keys], grad[:, :, at], lse[:, :, at]
            if flash:
                parts = _flash_backward(q, k, v, g, sums, out[:, :, at], False, knobs)
            else:
                parts = _piece_backward(q, k, v, g, sums, delta[:, :, at], mask, knobs)
            d_query[:, :, at] += parts[0]
            d_key[:, keys] += parts[1]
            d_value[:, keys] += parts[2]
        d_sinks = None
        if sinks is not None:
            shares = (_of_heads(sinks, lse) - lse).exp_()
            d_sinks = -(shares * delta).sum(-1).flatten().to(sinks.dtype)
        return d_query.to(query.dtype), d_key.to(key.dtype), d_value.to(value.dtype), d_sinks, None, None


def _is_plain(query: Tensor, value: Tensor, knobs: Knobs) -> bool:
    """Whether torch's flash kernel for the CPU computes this layer; its values must be as wide as its queries."""
    same_width = query.shape[-1] == value.shape[-1]
    return query.device.type == "cpu" and same_width and knobs.softcap is None and knobs.window is None


def _flash_forward(query: Tensor, key: Tensor, value: Tensor, causal: bool, knobs: Knobs) -> tuple[Tensor, Tensor]:
    """`_piece_forward` by torch's kernel for the CPU; the heads of a group share one key head."""
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key[:, None], value[:, None], 0.0, causal, scale=knobs.scaling
    )
    return out.to(lse.dtype), lse


def _flash_backward(
    query: Tensor, key: Tensor, value: Tensor, grad: Tensor, lse: Tensor, out: Tensor, causal: bool, knobs: Knobs
) -> tuple[Tensor, Tensor, Tensor]:
    """`_piece_backward` by torch's kernel for the CPU, which makes delta of the output itself."""
    d_query, d_key, d_value = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        grad, query, key[:, None], value[:, None], out, lse.contiguous(), 0.0, causal, scale=knobs.scaling
    )
    return d_query, d_key.squeeze(1), d_value.squeeze(1)


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


def _takes_flash(query: Tensor, value: Tensor, knobs: Knobs) -> bool:
    """Whether torch's flash kernel takes these runs: long ones, with nothing put in front of them."""
    return query.shape[2] == value.shape[1] > FLASH_TOKENS and _is_plain(query, value, knobs)


def _runs_forward(
    query: Tensor, key: Tensor, value: Tensor, grouping: Grouping, number: int, knobs: Knobs
) -> tuple[Tensor, Tensor]:
    """Attention of a group's runs over the keys put in front of them and themselves, a block of queries at a time."""
    if _takes_flash(query, value, knobs):
        return _flash_forward(query, key, value, True, knobs)
    parts = [
        _piece_forward(query[:, :, at], key[:, keys], value[:, keys], mask, knobs)
        for at, keys, mask in grouping.blocks(number, knobs.window)
    ]
    if len(parts) == 1:
        return parts[0]
    return torch.cat([out for out, _ in parts], dim=2), torch.cat([lse for _, lse in parts], dim=2)


def _runs_backward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    stats: list[Tensor],
    out: Tensor,
    grouping: Grouping,
    number: int,
    knobs: Knobs,
) -> tuple[Tensor, Tensor, Tensor]:
    is_real = grouping.groups[number].is_real
    real = is_real.repeat(len(query) // len(is_real), 1)[:, None]  # the queries of padding move nothing
    grad, lse, delta = stats[0] * real.unsqueeze(-1), stats[1], stats[2] * real
    if _takes_flash(query, value, knobs):
        return _flash_backward(query, key, value, grad, lse, out, True, knobs)
    wide = lse.dtype
    d_query, d_key, d_value = [], key.new_zeros(key.shape, dtype=wide), value.new_zeros(value.shape, dtype=wide)
    for at, keys, mask in grouping.blocks(number, knobs.window):
        q, k, v = query[:, :, at], key[:, keys], value[:, keys]
        parts = _piece_backward(q, k, v, grad[:, :, at], lse[:, :, at], delta[:, :, at], mask, knobs)
        d_query.append(parts[0].to(wide))
        d_key[:, keys] += parts[1]
        d_value[:, keys] += parts[2]
    return torch.cat(d_query, dim=2), d_key, d_value


def _all_runs_backward(
    grouping: Grouping,
    inputs: tuple[Tensor, Tensor, Tensor],
    stats: tuple[Tensor, Tensor, Tensor],
    out: Tensor,
    knobs: Knobs,
) -> list[Tensor]:
    """Gradients of query, key and value; ``stats`` are the merged output's gradient, its log-sum-exp and delta."""
    grad, lse, delta = stats
    parts: list[list[Tensor]] = [[], [], []]
    fronts: list[tuple[Tensor, Tensor, Tensor]] = []
    for number, group in enumerate(grouping.groups):
        taken = [_runs_of(group, grad, group.index)]
        taken += [_runs_of(group, x.unsqueeze(-1), group.index).squeeze(-1) for x in (lse, delta)]
        own_out = _runs_of(group, out, group.index)
        of_runs = _runs_backward(*_taken(group, *inputs), taken, own_out, grouping, number, knobs)
        of_key, of_value = (x[:, None] for x in of_runs[1:])
        if group.prefix:
            places = group.keys.view(group.runs, -1)[:, : group.prefix].flatten()
            in_front = [_laid_out(group, x[:, :, : group.prefix]).squeeze(1) for x in (of_key, of_value)]
            fronts.append((places, in_front[0], in_front[1]))
        own = (of_runs[0], of_key[:, :, group.prefix :], of_value[:, :, group.prefix :])
        for whole, part in zip(parts, own, strict=True):
            whole.append(_laid_out(group, part))
    d_query, d_key, d_value = (_put_back(whole, grouping.back) for whole in parts)
    d_key, d_value = d_key.squeeze(1), d_value.squeeze(1)
    for places, of_key, of_value in fronts:
        d_key.index_add_(1, places, of_key)
        d_value.index_add_(1, places, of_value)
    return [d_query, d_key, d_value]


def _scores(query: Tensor, key: Tensor, mask: Tensor | None, knobs: Knobs) -> Tensor:
    """[batch, group, query, key] in a wide type; -inf where the mask [run or 1, query, key] forbids."""
    flat = query.flatten(1, 2)
    products = torch.baddbmm(flat.new_empty(()), flat, key.transpose(1, 2), beta=0, alpha=knobs.scaling)
    scores = products.view(*query.shape[:3], key.shape[1]).to(torch.promote_types(query.dtype, torch.float32))
    if knobs.softcap is not None:
        scores = scores.div_(knobs.softcap).tanh_().mul_(knobs.softcap)
    if mask is not None:
        scores.view(-1, len(mask), *scores.shape[1:]).masked_fill_(~mask[:, None], float("-inf"))
    return scores


def _blocks(
    grouping: Grouping, query: Tensor, value: Tensor, knobs: Knobs
) -> Iterator[tuple[Span, Tensor | None, bool]]:
    """Spans whole, where the flash kernel takes them; else cut into blocks of queries, with a mask for a window."""
    for span in grouping.spans:
        keys, queries = span.keys.stop - span.keys.start, span.queries.stop - span.queries.start
        if keys * queries >= FLASH_PAIRS and _is_plain(query, value, knobs):
            yield span, None, True
            continue
        step = max(16, SPAN_SCORES // (keys * query.shape[0] * query.shape[1]))
        for start in range(span.queries.start, span.queries.stop, step):
            at = slice(start, min(start + step, span.queries.stop))
            mask = None
            if knobs.window is not None:
                behind = grouping.positions[at, None] - grouping.positions[span.keys]
                mask = is_near(behind, knobs.window)[None]
            yield Span(span.keys, at), mask, False


def _of_heads(sinks: Tensor, lse: Tensor) -> Tensor:
    return sinks.view(lse.shape[0], lse.shape[1], 1).to(lse.dtype)


def _taken(group: Group, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The group's tokens: query [head * run, group, length, width], key and value [head * run, key, width]."""
    keys, values = (_runs_of(group, x[:, None], group.keys).squeeze(1) for x in (key, value))
    return _runs_of(group, query, group.index), keys, values


def _runs_of(group: Group, x: Tensor, places: Tensor) -> Tensor:
    """[head * run, group, token, width] from [head, group, place, width]."""
    heads, shared, _, width = x.shape
    taken = x.index_select(2, places).view(heads, shared, group.runs, -1, width)
    return taken.transpose(1, 2).reshape(heads * group.runs, shared, -1, width)


def _laid_out(group: Group, x: Tensor) -> Tensor:
    """[head, group, run * token, width] from [head * run, group, token, width]."""
    shared, tokens, width = x.shape[1:]
    taken = x.reshape(-1, group.runs, shared, tokens, width).transpose(1, 2)
    return taken.reshape(-1, shared, group.runs * tokens, width)


def _put_back(parts: list[Tensor], back: Tensor) -> Tensor:
    """[head, group, place, width] from the groups laid end to end; 0 at padding."""
    nothing = parts[0].new_zeros(*parts[0].shape[:2], 1, parts[0].shape[3])
    return torch.cat([*parts, nothing], dim=2).index_select(2, back)
