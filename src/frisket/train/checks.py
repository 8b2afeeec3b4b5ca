"""What every run proves before its first step, on real rows: the seam, conformance, isolation."""

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from frisket.attend.pack import pack
from frisket.errors import CheckError
from frisket.hf.attention import EAGER, OWN, counted, own_attention, supports_sdpa
from frisket.hf.forward import Model, hidden_states
from frisket.hf.heads import head_of
from frisket.hf.load import is_mixture, layer_counts
from frisket.train.step import Laying
from frisket.types import Rows, Sequence

CONFORMANCE_TOKENS = 1024
PROBE_TOKENS = 2048
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
        CheckError: the model does not do with rows what it does with samples.
    """
    was_training = model.training
    model.eval()
    try:
        longest = max((s for s in samples if len(s) <= CONFORMANCE_TOKENS), key=len, default=_shortened(samples[0]))
        one = pack([longest], "alone", 1)[0]
        seam = check_seam(model, one, laying.backend)
        difference, bar = conformance(model, one, laying.backend)
        if not difference <= bar:
            raise CheckError(
                f"frisket's forward differs from {type(model).__name__}'s own by {difference:.2g} in a logit (allowed: "
                f"{bar:.2g}).\n"
                "Something that this model adds to attention or logits is not honoured. Please report the model."
            )
        isolation = probe(model, _few(samples), laying, bar)
    finally:
        model.train(was_training)
    return Checks(seam, f"{difference:.2g} of {bar:.2g} allowed", isolation)


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
    """Largest difference of a logit between our path and the model's own forward, and the bar for it.

    The bar is 1e-4 of the largest logit (of 1, where all are smaller) in fp32 and fp64. In bf16 it is twice the
    difference between the model's own eager and SDPA forwards, at least 2^-7 of the largest logit (one bf16 rounding
    each way); where the family has no SDPA form, 2^-5. In a mixture of experts a rounding can send a token to another
    expert, so in bf16 the median over tokens is compared.
    """
    ours = head_of(model).logits(hidden_states(model, rows, backend))
    has_sdpa = supports_sdpa(model)
    theirs = _own_logits(model, rows, OWN if has_sdpa else EAGER)
    largest = float(theirs.abs().max())
    if model.dtype in (torch.float32, torch.float64):
        return float((ours - theirs).abs().max()), EXACT_BAR * max(1.0, largest)
    of_tokens = torch.median if is_mixture(model) else torch.max
    difference = float(of_tokens((ours - theirs).abs().amax(-1)))
    if not has_sdpa:
        return difference, largest * 2**-5
    between = float(of_tokens((_own_logits(model, rows, EAGER) - theirs).abs().amax(-1)))
    return difference, max(2 * between, largest * 2**-7)


def probe(model: Model, samples: Seq[Sequence], laying: Laying, bar: float) -> str:
    """Replace one segment's tokens and see who notices.

    Its own outputs must change, all others must be bit-identical, and the gradient of the others' outputs with respect
    to its embeddings must be exactly 0. In a mixture of experts, where routing changes the shapes of others' matmuls,
    outputs and gradient may differ by the bar of conformance.

    Raises:
        CheckError: a segment is seen by another.
    """
    if laying.arrangement == "alone" or len(samples) < 2:
        return "one sample a row: nothing to isolate"
    rows = pack(samples, laying.arrangement, sum(len(s) for s in samples) * len(samples), 1)[0]
    flat = rows.segment_ids.ravel()
    changed = int(flat[flat >= 0].max()) // 2
    own, others = torch.from_numpy(flat == changed), torch.from_numpy((flat != changed) & (flat >= 0))
    embeddings, hidden, leak = _gradient_into(model, rows, laying.backend, own, others)
    replaced = embeddings.clone()
    replaced.view(-1, replaced.shape[-1])[own] = replaced.view(-1, replaced.shape[-1])[own].flip(-1)
    with torch.no_grad():
        after = hidden_states(model, rows, laying.backend, embeddings=replaced)
    moved = float((after - hidden)[own].abs().max())
    foreign = float((after - hidden)[others].abs().max())
    allowed = bar if is_mixture(model) else 0.0
    if not moved > 0:
        raise CheckError(
            "isolation probe: replacing a segment's tokens did not change its own outputs: the probe saw nothing."
        )
    if foreign > allowed or leak > allowed:
        raise CheckError(
            "isolation probe: samples of one row see each other: replacing one changed another's outputs by "
            f"{foreign:.2g} "
            f"(gradient {leak:.2g}).\nUse attend.arrangement=padded, and please report the model."
        )
    same = f"within {allowed:.1g}" if allowed else "bit-identical"
    count = int(others.sum())
    return f"{count} tokens of {len(samples) - 1} other samples {same}, gradient into the replaced one {leak:g}"


def _gradient_into(model: Model, rows: Rows, backend: str, own: Tensor, others: Tensor) -> tuple[Tensor, Tensor, float]:
    """Embeddings, outputs, and the largest gradient of the others' outputs with respect to one segment's embeddings."""
    ids = torch.from_numpy(rows.input_ids).to(model.device)
    with torch.no_grad():
        embeddings = model.get_input_embeddings()(ids)
    embeddings = embeddings.detach().requires_grad_()
    hidden = hidden_states(model, rows, backend, embeddings=embeddings)
    (grad,) = torch.autograd.grad(hidden[others].square().sum(), embeddings)
    return embeddings.detach(), hidden.detach(), float(grad.flatten(0, 1)[own].abs().max())


def _own_logits(model: Model, rows: Rows, implementation: str) -> Tensor:
    ids = torch.from_numpy(rows.input_ids).to(model.device)
    with own_attention(model, implementation):
        logits = model(input_ids=ids, use_cache=False).logits.flatten(0, 1)
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _few(samples: Seq[Sequence]) -> list[Sequence]:
    """Up to four of the shortest samples that fit the probe's budget, two at least."""
    chosen: list[Sequence] = []
    for sample in sorted(samples, key=len)[:4]:
        if len(chosen) < 2 or sum(len(s) for s in chosen) + len(sample) <= PROBE_TOKENS:
            chosen.append(sample)
    return [_shortened(s) for s in chosen]


def _shortened(sample: Sequence) -> Sequence:
    part = slice(0, CONFORMANCE_TOKENS)
    return Sequence(
        sample.sample_id,
        sample.source,
        np.asarray(sample.input_ids[part]),
        sample.roles[part],
        sample.turns[part],
        sample.marks[part],
        sample.data_weights[part],
    )
