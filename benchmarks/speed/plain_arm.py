"""transformers and PEFT by hand: shuffled padded batches, fused AdamW, the mean over targets."""

from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.speed.case import Case, Tokens
from benchmarks.speed.frisket_arm import CHECKED, COMPUTE
from benchmarks.speed.trl_arm import counts_of, mean_over_targets
from benchmarks.speed.turns import Turns


def run(work: Path, turns: Turns, compute: str) -> None:
    """Train until the parent has seen enough."""
    import peft  # noqa: F401  its memory is not training's
    import torch

    torch.set_num_threads(2)
    turns.imported()
    case, tokens = Case.read(work), Tokens.read(work)
    model = model_of(case, work)
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=case.rate, fused=True)
    turns.ready()
    for samples in batches(len(tokens.ids), case.batch):
        batch = batch_of(tokens, samples)
        loss = loss_of(model, batch, compute)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        turns.step(*counts_of(batch), float(loss))


def check(work: Path, compute: str) -> dict[str, Any]:
    """All tokens, and the mean loss over the targets of the first samples."""
    import torch

    case, tokens = Case.read(work), Tokens.read(work)
    model = model_of(case, work)
    first = [batch_of(tokens, np.arange(CHECKED)[i : i + case.batch]) for i in range(0, CHECKED, case.batch)]
    with torch.no_grad():
        losses = [(float(loss_of(model, batch, compute)), counts_of(batch)[1]) for batch in first]
    return {"digest": tokens.digest(), "loss": mean_over_targets(losses)}


def model_of(case: Case, work: Path) -> Any:
    """The case's model, with PEFT's LoRA unless all of it moves."""
    import torch
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(str(work / "model"), dtype=torch.float32)
    lora = case.lora()
    return model if lora is None else get_peft_model(model, lora)


def loss_of(model: Any, batch: dict[str, Any], compute: str) -> Any:
    """The model's own loss."""
    import torch

    with torch.autocast("cpu", torch.bfloat16) if compute == "bf16" else nullcontext():
        return model(**batch, use_cache=False).loss


def batches(count: int, size: int) -> Iterator[np.ndarray]:
    """Shuffled samples, epoch after epoch."""
    rng = np.random.default_rng(0)
    while True:
        order = rng.permutation(count)
        yield from (order[i : i + size] for i in range(0, count - size + 1, size))


def batch_of(tokens: Tokens, samples: np.ndarray) -> dict[str, Any]:
    """Padded token ids, mask and labels."""
    import torch

    width = max(len(tokens.ids[i]) for i in samples)
    ids = torch.zeros(len(samples), width, dtype=torch.long)
    labels, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
    for row, sample in enumerate(samples):
        own, is_taught = (torch.tensor(values[sample]) for values in (tokens.ids, tokens.is_taught))
        ids[row, : len(own)], mask[row, : len(own)] = own, 1
        labels[row, : len(own)] = torch.where(is_taught == 1, own, -100)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


ARMS = {
    f"transformers + PEFT, {compute}": (partial(check, compute=compute), partial(run, compute=compute))
    for compute in COMPUTE
}
