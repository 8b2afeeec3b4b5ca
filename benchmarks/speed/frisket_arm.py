"""frisket, as a user runs it: a recipe, a file, a folder for the result."""

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.speed.case import TARGETS, Case, Tokens
from benchmarks.speed.turns import Turns

COMPUTE = ("fp32", "bf16")
CHECKED = 16  # samples whose loss every arm computes before its first step


def recipe_of(case: Case, work: Path, compute: str) -> dict[str, Any]:
    """The recipe of a case; nothing but the comparison's own settings."""
    targets = TARGETS[case.targets]
    where = targets if isinstance(targets, str) else [f"*.{name}" for name in targets or ()]
    lora = {"method": "lora", "where": where, "rank": case.rank, "alpha": case.alpha}
    return {
        "model": {"path": str(work / "model")},
        "data": [{"path": str(work / "samples.jsonl"), "hold_out": 0}],
        "adapt": {"method": "full"} if targets is None else lora,
        "attend": {"arrangement": "isolated", "row_tokens": max(case.tokens, 2048)},
        "train": {
            "compute": compute,
            "step_tokens": case.tokens,
            "learning_rate": case.rate,
            "max_steps": 1_000_000,
            "schedule": "constant",
            "warmup": 0,
            "save_every": 0,
            "recompute": "none",
        },
        "evaluate": "off",
    }


def tokens_of(case: Case, work: Path) -> Tokens:
    """The samples as frisket reads them, for the other arms too."""
    from frisket.recipe import Recipe
    from frisket.run.prepare import prepare
    from frisket.watch import Silent

    prepared = prepare(Recipe.model_validate(recipe_of(case, work, "fp32")), Silent())
    pairs = [prepared.weighted(int(index)) for index in sorted(prepared.dataset.train)]
    return Tokens([s.input_ids.tolist() for s, _ in pairs], [(w != 0).astype(int).tolist() for _, w in pairs])


def run(work: Path, turns: Turns, compute: str) -> None:
    """Train until the parent has seen enough."""
    import frisket
    import frisket.adapt.peft

    turns.imported()
    case = Case.read(work)
    turns.ready()
    with tempfile.TemporaryDirectory() as out:
        frisket.finetune(
            recipe_of(case, work, compute),
            out=Path(out) / "run",
            on_step=lambda record: turns.step(
                record.flat_tokens, record.supervised_tokens, record.loss, record.loader_seconds
            ),
        )


def check(work: Path, compute: str) -> dict[str, Any]:
    """All tokens and targets, and the mean loss over the targets of the first samples, through the loss that trains."""
    import torch

    from frisket.hf import load
    from frisket.hf.forward import hidden_states
    from frisket.hf.heads import head_of
    from frisket.recipe import Recipe
    from frisket.run.prepare import prepare
    from frisket.supervise.loss import summed_loss
    from frisket.train.step import lay_out
    from frisket.watch import Silent

    case, device = Case.read(work), torch.device("cpu")
    prepared = prepare(Recipe.model_validate(recipe_of(case, work, compute)), Silent())
    model = load.load_model(prepared.recipe.model, load.compute_type(compute, device), device).eval()
    first = [prepared.weighted(int(index)) for index in sorted(prepared.dataset.train)[:CHECKED]]
    step = lay_out(first, prepared.laying, "weights")
    with torch.no_grad():
        losses = [
            summed_loss(hidden_states(model, part.rows), part.predictions, head_of(model))
            for part in step.micro_batches
        ]
    return {"digest": tokens_of(case, work).digest(), "loss": float(sum(losses)) / step.divisor}


ARMS = {f"frisket, {compute}": (partial(check, compute=compute), partial(run, compute=compute)) for compute in COMPUTE}
