"""What grows with the data and with the rows: ``python -m benchmarks.speed.growth FOLDER [--samples 1000 ...]``.

FOLDER holds gsm8k_train.jsonl and llama_tokenizer.model. Steady tokens a second and memory with so many samples in the
token store (the problems, numbered so that no two are alike): a process each, by turns, which train on the same number
of steps; with the share of a step that went into reading and laying out samples. The time of forward and backward over
4,096 tokens cut into rows of one length, by turns over lengths: a + b * length fitted, of which b is attention's
quadratic part. Seconds and fill of packing a million lengths of the problems. Results: benchmarks/results/growth.json.
"""

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.speed.__main__ import HEADLINE_SHAPE, pairs_of, prepare, told_environment
from benchmarks.speed.case import Case, Tokens
from benchmarks.speed.turns import Arm
from benchmarks.synthetic import samples
from rich.console import Console
from rich.table import Table

from frisket.adapt.methods import attach
from frisket.attend.pack import best_fit
from frisket.hf import load
from frisket.recipe import Recipe
from frisket.run.folder import write_json
from frisket.train.step import Laying, lay_out, micro_batch_loss

RESULTS = Path(__file__).parents[1] / "results" / "growth.json"
ARM, TARGETS = "frisket, bf16", "q-and-v"
COUNTS = (1_000, 10_000, 100_000, 1_000_000)
LENGTHS = (128, 256, 512, 1024, 2048, 4096)
PACKED, CAPACITIES = 1_000_000, (2048, 4096, 8192)


def by_samples(folder: Path, counts: list[int], turns: int, steps: int) -> dict[str, Any]:
    """Tokens a second and memory, by how many samples the store holds."""
    problems = pairs_of(folder)
    told: dict[int, list[dict[str, Any]]] = {count: [] for count in counts}
    with tempfile.TemporaryDirectory() as place:
        arms = {}
        case, _ = prepare(folder, HEADLINE_SHAPE, TARGETS, first := _made(place, "first"))
        for count in counts:
            work = _made(place, str(count))
            (work / "model").symlink_to(first / "model")
            replace(case, samples=count).write(work)
            with (work / "samples.jsonl").open("w", encoding="utf-8") as file:
                for number in range(count):
                    each = problems[number % len(problems)]
                    file.write(json.dumps({**each, "prompt": f"{number:06}: {each['prompt']}"}) + "\n")
            arms[count] = Arm(ARM, work, work / "log")
            arms[count].go(steps)  # tokenises, and touches memory for the first time
        for _ in range(turns):
            for count, arm in arms.items():
                told[count].append(arm.go(steps))
        for arm in arms.values():
            arm.stop()
    return {
        str(count): {
            "tokens_a_second": round(statistics.median(e["tokens"] / e["seconds"] for e in entries), 1),
            "turns": [round(e["tokens"] / e["seconds"], 1) for e in entries],
            "loader_share": round(sum(e["loader_seconds"] for e in entries) / sum(e["seconds"] for e in entries), 5),
            "resident_mib": round(entries[-1]["resident_bytes"] / 2**20),
            "peak_beyond_imports_mib": round(entries[-1]["extra_bytes"] / 2**20),
        }
        for count, entries in told.items()
    }


def _made(place: str, name: str) -> Path:
    folder = Path(place) / name
    folder.mkdir()
    return folder


def by_length(folder: Path, turns: int) -> dict[str, Any]:
    """Seconds of forward and backward over 4,096 tokens, by the length of the samples, each a row of its own."""
    with tempfile.TemporaryDirectory() as place:
        case, _ = prepare(folder, HEADLINE_SHAPE, TARGETS, Path(place))
        step_of = _stepping(case, Path(place))
        seconds: dict[int, list[float]] = {length: [] for length in LENGTHS}
        for turn in range(turns + 1):
            for length, found in seconds.items():
                took = step_of(length)
                if turn:
                    found.append(took)
    medians = {length: statistics.median(found) for length, found in seconds.items()}
    slope, base = np.polyfit(list(medians), list(medians.values()), 1)
    longest = LENGTHS[-1]
    return {
        "tokens": longest,
        "seconds": {str(length): round(value, 4) for length, value in medians.items()},
        "fit": {"seconds": round(float(base), 4), "seconds_a_1000_tokens_of_length": round(1000 * float(slope), 4)},
        "quadratic_share_of_the_longest": round(float(slope * longest / (base + slope * longest)), 3),
    }


def _stepping(case: Case, work: Path) -> Any:
    """A function of a length: seconds of forward and backward over 4,096 tokens."""
    from benchmarks.speed.frisket_arm import recipe_of

    recipe = Recipe.model_validate(recipe_of(case, work, "bf16"))
    model = load.load_model(recipe.model, torch.float32, torch.device("cpu"))
    attached = attach(recipe.adapt, model, torch.Generator().manual_seed(0), (), None)
    load.cast_parameters(model, torch.bfloat16)
    model.train()

    def step(length: int) -> float:
        given = samples([length] * (LENGTHS[-1] // length), model.config.vocab_size)
        laying = Laying("isolated", length, LENGTHS[-1] // length, "grouped", 262)
        (micro_batch,) = lay_out(given, laying, "weights").micro_batches
        began = time.perf_counter()
        micro_batch_loss(model, attached, micro_batch, laying).backward()
        took = time.perf_counter() - began
        for parameter in attached.parameters().values():
            parameter.grad = None
        return took

    return step


def packing(folder: Path) -> dict[str, Any]:
    """Seconds and fill of a million lengths drawn from those of the problems."""
    with tempfile.TemporaryDirectory() as place:
        prepare(folder, HEADLINE_SHAPE, TARGETS, Path(place))
        lengths = [len(ids) for ids in Tokens.read(Path(place)).ids]
    drawn = np.random.default_rng(0).choice(lengths, PACKED).tolist()
    found = {}
    for capacity in CAPACITIES:
        began = time.perf_counter()
        rows = best_fit(drawn, capacity)
        seconds = time.perf_counter() - began
        found[str(capacity)] = {
            "seconds": round(seconds, 2),
            "rows": len(rows),
            "fill": round(sum(drawn) / (len(rows) * capacity), 5),
        }
    return found


def show(found: dict[str, Any]) -> None:
    """The tables for a person."""
    table = Table("samples", "tokens/s", "loader", "resident MiB", title="training")
    for count, row in found["samples"].items():
        cells = (f"{row['tokens_a_second']:,.0f}", f"{row['loader_share']:.2%}", f"{row['resident_mib']:,}")
        table.add_row(f"{int(count):,}", *cells)
    Console().print(table)
    rows = found["row_length"]
    Console().print(f"4,096 tokens in rows of one length, seconds: {rows['seconds']}; {rows['fit']}")
    for capacity, each in found["packing"].items():
        Console().print(f"a million lengths in rows of {capacity}: {each['seconds']} s, {each['fill']:.2%} full")


def main() -> None:
    """Measure, keep, show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--samples", type=int, nargs="+", default=list(COUNTS))
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--steps", type=int, default=30)
    given = parser.parse_args()
    torch.set_num_threads(2)
    found = {
        "packing": packing(given.folder),
        "row_length": by_length(given.folder, 5),
        "samples": by_samples(given.folder, given.samples, given.turns, given.steps),
        "environment": told_environment("bf16"),
    }
    write_json(RESULTS, found)
    show(found)


if __name__ == "__main__":
    main()
