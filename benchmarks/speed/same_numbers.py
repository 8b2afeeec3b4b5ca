"""The same numbers: ``python -m benchmarks.speed.same_numbers FOLDER [--steps 50] [--seeds 5]``.

FOLDER holds gsm8k_train.jsonl and llama_tokenizer.model. In fp32 TRL, padded, replays frisket's steps: its sampler
hands out the samples of each of them, its LoRA starts from frisket's values, and it divides by its own count of
targets. The loss of every step of the two is compared. In bf16 frisket trains with several seeds and is compared with
itself in fp32: the mean over seeds of the final loss, which is the mean of the last tenth of the steps; on the same
shape and on the bundled base, which learns more in so few steps. Results: benchmarks/results/same-numbers.json.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from benchmarks.speed.__main__ import HEADLINE_SHAPE, prepare, told_environment
from benchmarks.speed.case import Case, Tokens
from benchmarks.speed.frisket_arm import recipe_of
from benchmarks.speed.trl_arm import trainer_of
from rich.console import Console

import frisket
from frisket.adapt.methods import attach
from frisket.hf import load
from frisket.recipe import Recipe
from frisket.run import prepare as preparing
from frisket.run.folder import write_json
from frisket.watch import Silent

RESULTS = Path(__file__).parents[1] / "results" / "same-numbers.json"
PADDED_FP32 = {"gradient_checkpointing": False, "bf16": False, "logging_steps": 1000}
TARGETS = "all-linear"


def ours(case: Case, work: Path, compute: str, steps: int, seed: int = 0) -> list[float]:
    """The loss of every step of frisket."""
    recipe = recipe_of(case, work, compute)
    recipe["train"] |= {"max_steps": steps, "seed": seed}
    losses: list[float] = []
    with tempfile.TemporaryDirectory() as out:
        frisket.finetune(recipe, out=Path(out) / "run", on_step=lambda record: losses.append(record.loss))
    return losses


def theirs(case: Case, work: Path, steps: int) -> list[float]:
    """The loss of every step of TRL on frisket's steps, from frisket's start."""
    recipe = Recipe.model_validate(recipe_of(case, work, "fp32"))
    prepared = preparing.prepare(recipe, Silent())
    numbers = {int(index): number for number, index in enumerate(sorted(prepared.dataset.train))}
    order = [[numbers[int(i)] for i in step.samples] for step in islice(prepared.order.steps(), steps)]
    losses: list[float] = []
    with tempfile.TemporaryDirectory() as out:
        trainer = trainer_of(case, work, Tokens.read(work), {**PADDED_FP32, "max_steps": steps}, out)
        start_from(trainer.model, start_values(recipe))
        as_it_is = trainer.compute_loss

        def compute_loss(*given: Any, **named: Any) -> Any:
            found = as_it_is(*given, **named)
            losses.append((found[0] if isinstance(found, tuple) else found).item())
            return found

        trainer.compute_loss = compute_loss
        batches = torch.utils.data.DataLoader(
            trainer.train_dataset, batch_sampler=Replay(order), collate_fn=trainer.data_collator
        )
        trainer.get_train_dataloader = lambda: batches
        trainer.train()
    return losses


class Replay:
    """A batch sampler that hands out given batches."""

    def __init__(self, batches: list[list[int]]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self._batches)

    def __len__(self) -> int:
        return len(self._batches)


def start_values(recipe: Recipe) -> dict[str, torch.Tensor]:
    """LoRA's factors before frisket's first step."""
    model = load.load_model(recipe.model, torch.float32, torch.device("cpu"))
    attached = attach(recipe.adapt, model, torch.Generator().manual_seed(recipe.train.seed), (), None)
    return {name: value.detach().clone() for name, value in attached.parameters().items()}


@torch.no_grad()
def start_from(model: Any, values: dict[str, torch.Tensor]) -> None:
    """Copy LoRA's factors into a PEFT model; each must find its place."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            own = name.removeprefix("base_model.model.")
            (found,) = [key for key in values if key.endswith(own) or own.endswith(key)]
            parameter.copy_(values.pop(found))
    assert not values, f"not in TRL's model: {sorted(values)[:3]}"


def final(losses: list[float]) -> float:
    """Mean of the last tenth."""
    return statistics.mean(losses[-max(1, len(losses) // 10) :])


def seeds_of(case: Case, work: Path, steps: int, seeds: int) -> dict[str, Any]:
    """The final losses of several seeds in both types."""
    found = {kind: [final(ours(case, work, kind, steps, seed)) for seed in range(seeds)] for kind in ("fp32", "bf16")}
    means = {kind: statistics.mean(values) for kind, values in found.items()}
    return {
        "steps": steps,
        "final": {kind: [round(value, 5) for value in values] for kind, values in found.items()},
        "mean": {kind: round(value, 5) for kind, value in means.items()},
        "difference": round(means["bf16"] / means["fp32"] - 1, 6),
    }


def measure(folder: Path, steps: int, seeds: int) -> dict[str, Any]:
    """Everything; TRL in a process of its own, since it changes what is global."""
    found: dict[str, Any] = {"targets": TARGETS, "bf16 beside fp32": {}}
    for shape in (HEADLINE_SHAPE, "bundled"):
        with tempfile.TemporaryDirectory() as place:
            work = Path(place)
            case, _ = prepare(folder, shape, TARGETS, work)
            if shape == HEADLINE_SHAPE:
                own = ours(case, work, "fp32", steps)
                words = [sys.executable, "-m", "benchmarks.speed.same_numbers", "theirs", str(work), "--steps"]
                done = subprocess.run([*words, str(steps)], capture_output=True, text=True)
                if done.returncode:
                    sys.exit(done.stderr[-3000:])
                other = json.loads(done.stdout.splitlines()[-1])
                gaps = [abs(a - b) for a, b in zip(own, other, strict=True)]
                found["fp32 beside TRL"] = {"steps": steps, "frisket": own, "trl": other, "largest gap": max(gaps)}
            found["bf16 beside fp32"][shape] = seeds_of(case, work, steps, seeds)
    return found | {"environment": told_environment("fp32")}


def main() -> None:
    """Measure, keep, show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="the folder; or the word theirs, for TRL's process")
    parser.add_argument("work", type=Path, nargs="?")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--seeds", type=int, default=5)
    given = parser.parse_args()
    if given.folder == "theirs":
        print(json.dumps(theirs(Case.read(given.work), given.work, given.steps)))
        return
    found = measure(Path(given.folder), given.steps, given.seeds)
    write_json(RESULTS, found)
    told = found["fp32 beside TRL"]
    Console().print(f"fp32, {told['steps']} steps: largest gap to TRL's loss {told['largest gap']:.2g}")
    for shape, each in found["bf16 beside fp32"].items():
        Console().print(f"{shape}: mean final loss {each['mean']}, bf16 off by {each['difference']:.3%}")


if __name__ == "__main__":
    main()
