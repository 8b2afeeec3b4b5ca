"""What every run proves before its first step, on real rows: the seam, conformance, isolation."""

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from frisket.adapt.roots import root_of, taken_off
from frisket.attend.pack import Arrangement, pack
from frisket.attend.reference import path_to
from frisket.errors import CheckError
from frisket.hf.attention import EAGER, OWN, counted, own_attention, supports_sdpa
from frisket.hf.forward import Model, hidden_states
from frisket.hf.heads import head_of
from frisket.hf.layers import refuse_other_towers
from frisket.hf.load import is_mixture, layer_counts
from frisket.hf.roots import check_layers, with_root
from frisket.prefixes import sort_by_prefix
from frisket.train.step import Laying
from frisket.types import ROOT, Rows, Sequence

CONFORMANCE_TOKENS = 1024
PROBE_TOKENS = 2048
# Of what two samples share, and of what follows in each: enough for every way of computing a trunk.
SHARED_PROBE_TOKENS, OWN_PROBE_TOKENS = 1024, 256
EXACT_BAR = 1e-4


@dataclass(frozen=True)
class Checks:
    """What was checked and what came out, in words and figures.

    Attributes:
        seam: attention layers that went through our function.
        conformance: largest difference of logits to the model's own forward, and what was allowed.
        isolation: what the probe saw.
    """

    seam: str
    conformance: str
    isolation: str

    def as_dict(self) -> dict[str, str]:
        """Plain strings."""
        return {"seam": self.seam, "conformance": self.conformance, "isolation": self.isolation}


def check_model(model: Model, samples: Seq[Sequence], laying: Laying) -> Checks:
    """Run all three checks.

    Args:
        samples: some real samples, at least one.

    Raises:
        UnsupportedError: something would move that no text trains.
        CheckError: the model does not do with rows what it does with samples.
    """
    refuse_other_towers(model)
    was_training = model.training
    model.eval()
    try:
        longest = max(
            (s for s in samples if len(s) <= CONFORMANCE_TOKENS),
            key=len,
            default=_part(samples[0], 0, CONFORMANCE_TOKENS),
        )
        one = pack([longest], "alone", 1)[0]
        check_layers(model)
        with taken_off(model):
            seam = check_seam(model, one, laying.backend)
            difference, bar = _conforms(model, one, laying.backend)
        told = f"{difference:.2g} of {bar:.2g} allowed"
        if root_of(model) is not None:
            difference, bar = _conforms(model, one, laying.backend)
            told += f", with the virtual tokens {difference:.2g} of {bar:.2g}"
        isolation = probe(model, _few(samples, laying.arrangement), laying, bar)
    finally:
        model.train(was_training)
    return Checks(seam, told, isolation)


def _conforms(model: Model, rows: Rows, backend: str) -> tuple[float, float]:
    difference, bar = conformance(model, rows, backend)
    if not difference <= bar:
        raise CheckError(
            f"frisket's forward differs from {type(model).__name__}'s own by {difference:.2g} in a logit (allowed: "
            f"{bar:.2g}).\n"
            "Something that this model adds to attention or logits is not honoured. Please report the model."
        )
    return difference, bar


@torch.no_grad()
def check_seam(model: Model, rows: Rows, backend: str) -> str:
    """One forward must call our function exactly once for each attention layer.

    Raises:
        CheckError: it does not.
    """
    layers = layer_counts(model.config)
    with counted() as count:
        hidden_states(model, rows, backend)
    calls = sorted(count.calls.values())
    if calls != [1] * layers.attention:
        raise CheckError(
            f"{type(model).__name__} has {layers.attention} attention layers, but {len(calls)} of them called "
            "frisket's attention "
            f"({sum(calls)} calls): the others would see across samples.\nThis model cannot be trained with frisket."
        )
    return f"{layers.attention} attention layers" + (
        f", {layers.recurrent} recurrent layers beside them" if layers.recurrent else ""
    )


@torch.no_grad()
def conformance(model: Model, rows: Rows, backend: str) -> tuple[float, float]:
    """Largest difference of a logit between our path and the model's own forward of one row, and the bar for it."""
    return _against_own(model, rows.input_ids, head_of(model).logits(hidden_states(model, rows, backend)))


def _against_own(model: Model, ids: np.ndarray, ours: Tensor) -> tuple[float, float]:
    """Largest difference of our logits to those of the model's own forward, and the bar for it.

    The bar is 1e-4 of the largest logit (of 1, where all are smaller) in fp32 and fp64. In bf16 it is twice the
    difference between the model's own eager and SDPA forwards, at least 2^-7 of the largest logit (one bf16 rounding
    each way); where the family has no SDPA form, 2^-5. In a mixture of experts a rounding can send a token to another
    expert, so in bf16 the median over tokens is compared.
    """
    has_sdpa = supports_sdpa(model)
    theirs = _own_logits(model, ids, OWN if has_sdpa else EAGER)
    largest = float(theirs.abs().max())
    if model.dtype in (torch.float32, torch.float64):
        return float((ours - theirs).abs().max()), EXACT_BAR * max(1.0, largest)
    of_tokens = torch.median if is_mixture(model) else torch.max
    difference = float(of_tokens((ours - theirs).abs().amax(-1)))
    if not has_sdpa:
        return difference, largest * 2**-5
    between = float(of_tokens((_own_logits(model, ids, EAGER) - theirs).abs().amax(-1)))
    return difference, max(2 * between, largest * 2**-7)


def probe(model: Model, samples: Seq[Sequence], laying: Laying, bar: float) -> str:
    """Lay some samples into one row, replace a segment's tokens and see who notices.

    Its own outputs must change, and in a chain those of later samples; in a forest those of its descendants may. All
    others must be bit-identical, and the gradient of the others' outputs with respect to its embeddings must be exactly
    0. In a mixture of experts, where routing changes the shapes of others' matmuls, outputs and gradient may differ by
    the bar of conformance. In a forest and in a chain the logits of the row must be those of the model's own forward.

    Raises:
        CheckError: a segment is seen by another, or not seen where it should be.
    """
    if len(samples) < 2:
        return "one sample: nothing to isolate"
    rows = pack(samples, laying.arrangement, sum(len(s) for s in samples) * len(samples), 1)[0]
    allowed = bar if is_mixture(model) else 0.0
    told = [_probe_segment(model, rows, segment, laying, allowed) for segment in _probed(rows)]
    if laying.arrangement == "forest" and not (rows.parent_segment != ROOT).any():
        told.append("no two of the first samples share a prefix and then part, so no trunk was probed")
    if laying.arrangement in ("forest", "mask-free"):
        told.append(_check_paths(model, samples, rows, laying))
    return "; ".join(told)


def _probed(rows: Rows) -> list[int]:
    """A segment in the middle without descendants, and one with, where there are such."""
    parents = set(rows.parent_segment.tolist())
    leaves = [s for s in range(len(rows.parent_segment)) if s not in parents]
    trunks = [s for s in range(len(rows.parent_segment)) if s in parents]
    return [leaves[(len(leaves) - 1) // 2], *trunks[:1]]


def _probe_segment(model: Model, rows: Rows, segment: int, laying: Laying, allowed: float) -> str:
    flat = rows.segment_ids.ravel()
    below = [s for s in range(len(rows.parent_segment)) if s != segment and segment in path_to(rows, s)]
    own, under = torch.from_numpy(flat == segment), torch.from_numpy(np.isin(flat, below))
    others = torch.from_numpy(flat >= 0) & ~own & ~under
    embeddings, hidden, leak = _gradient_into(model, rows, laying.backend, own, others)
    replaced = embeddings.clone()
    replaced.view(-1, replaced.shape[-1])[own] = replaced.view(-1, replaced.shape[-1])[own].flip(-1)
    with torch.no_grad():
        after = hidden_states(model, rows, laying.backend, embeddings=replaced)
    moved, seen, foreign = (
        float((after - hidden)[at].abs().amax()) if at.any() else 0.0 for at in (own, under, others)
    )
    if not moved > 0:
        raise CheckError(
            "isolation probe: replacing a segment's tokens did not change its own outputs: the probe saw nothing."
        )
    if below and not seen > 0:
        raise CheckError(
            "isolation probe: replacing a segment's tokens changed nothing in the samples that should see it: the "
            f"backend {laying.backend} drops what a row shares.\n"
            "Use attend.arrangement=isolated, and please report the model."
        )
    if foreign > allowed or leak > allowed:
        raise CheckError(
            "isolation probe: samples of one row see each other: replacing one changed another's outputs by "
            f"{foreign:.2g} "
            f"(gradient {leak:.2g}).\nUse attend.arrangement=padded, and please report the model."
        )
    same = f"within {allowed:.1g}" if allowed else "bit-identical"
    kind = "a shared segment" if below and laying.arrangement == "forest" else "a sample"
    follow = f", the {int(under.sum())} that follow it change" if below else ""
    if not others.any():
        return f"{kind} replaced: every other token of the row follows it, so none had to stay the same{follow}"
    return f"{kind} replaced: {int(others.sum())} foreign tokens {same}, gradient into it {leak:g}{follow}"


@torch.no_grad()
def _check_paths(model: Model, samples: Seq[Sequence], rows: Rows, laying: Laying) -> str:
    """Compare the row's logits with the model's own: of each sample of a forest, of the whole row of a chain."""
    logits = head_of(model).logits(hidden_states(model, rows, laying.backend))
    flat = rows.segment_ids.ravel()
    if laying.arrangement == "mask-free":
        compared = [_against_own(model, rows.input_ids, logits)]
    else:
        ids = {sample.sample_id: sample.input_ids.astype(np.int64)[None] for sample in samples}
        paths = [(leaf, np.flatnonzero(np.isin(flat, path_to(rows, leaf.last)))) for leaf in rows.leaves]
        compared = [_against_own(model, ids[leaf.sample_id], logits[torch.from_numpy(at)]) for leaf, at in paths]
    worst, bar = max(compared, key=lambda pair: pair[0] / pair[1])
    if not worst <= bar:
        raise CheckError(
            f"the logits of a {laying.arrangement} row differ from the model's own forward by {worst:.2g} (allowed: "
            f"{bar:.2g}).\nUse attend.arrangement=isolated, and please report the model."
        )
    return f"own forward of its {len(compared)} {'row' if len(compared) == 1 else 'paths'}: {worst:.2g} of {bar:.2g}"


def _gradient_into(model: Model, rows: Rows, backend: str, own: Tensor, others: Tensor) -> tuple[Tensor, Tensor, float]:
    """Embeddings, outputs, and the largest gradient of the others' outputs with respect to one segment's embeddings."""
    ids = torch.from_numpy(rows.input_ids).to(model.device)
    with torch.no_grad():
        embeddings = model.get_input_embeddings()(ids)
    embeddings = embeddings.detach().requires_grad_()
    hidden = hidden_states(model, rows, backend, embeddings=embeddings)
    (grad,) = torch.autograd.grad(hidden[others].square().sum(), embeddings)
    return embeddings.detach(), hidden.detach(), float(grad.flatten(0, 1)[own].abs().max())


def _own_logits(model: Model, ids: np.ndarray, implementation: str) -> Tensor:
    """Logits of rows by the model itself, which then has its root in front of each."""
    words = torch.from_numpy(ids).to(model.device)
    with own_attention(model, implementation):
        if root_of(model) is None:
            logits = model(input_ids=words, use_cache=False).logits
        else:
            every = torch.ones_like(words)
            inputs = {"input_ids": words, "attention_mask": every, "position_ids": every.cumsum(1) - 1}
            logits = model(**with_root(model, inputs)).logits[:, -words.shape[1] :]
    logits = logits.flatten(0, 1)
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _few(samples: Seq[Sequence], arrangement: Arrangement) -> list[Sequence]:
    """Up to four samples, short enough for the probe: the shortest; for a forest first the two that share most.

    Where only samples of one length lie together, all are cut to the shortest.
    """
    chosen = _relatives(samples) if arrangement == "forest" else []
    for sample in sorted(samples, key=len)[:4]:
        few = len(chosen) < 2 or sum(len(s) for s in chosen) + len(sample) <= PROBE_TOKENS
        if few and len(chosen) < 4 and all(sample.sample_id != s.sample_id for s in chosen):
            chosen.append(_part(sample, 0, CONFORMANCE_TOKENS))
    if arrangement == "alone":
        return [_part(sample, 0, min(map(len, chosen))) for sample in chosen]
    return chosen


def _relatives(samples: Seq[Sequence]) -> list[Sequence]:
    """The two samples that share most before they part, cut to the end of what they share and what follows."""
    order, shared = sort_by_prefix([sample.input_ids for sample in samples])
    lengths = np.array([len(samples[i]) for i in order])
    branches = shared[1:] < np.minimum(lengths[1:], lengths[:-1])  # neither ends where they part
    place = 1 + int(np.argmax(np.where(branches, shared[1:], 0)))
    depth = int(shared[place]) if len(order) > 1 and branches[place - 1] else 0
    if not depth:
        return []
    start = max(0, depth - SHARED_PROBE_TOKENS)
    return [_part(samples[int(i)], start, depth + OWN_PROBE_TOKENS) for i in order[place - 1 : place + 1]]


def _part(sample: Sequence, start: int, stop: int) -> Sequence:
    part = slice(start, stop)
    return Sequence(
        sample.sample_id,
        sample.source,
        np.asarray(sample.input_ids[part]),
        sample.roles[part],
        sample.turns[part],
        sample.marks[part],
        sample.data_weights[part],
    )
