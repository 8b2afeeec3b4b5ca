"""Has something become slower? ``make bench-quick``: under a minute, and nothing that does not come with frisket.

    python -m benchmarks.speed.quick [--keep]

The bundled base learns the bundled instructions with LoRA on all linear layers, in frisket and in plain transformers
and PEFT, bf16 and fp32, by turns. What is compared are ratios, and each with the best that is committed for this kind
of machine (benchmarks/results/quick.json): what fell by more than a tenth is named, and the exit code is 1. ``--keep``
writes what is better than the best so far.
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from benchmarks.speed.__main__ import OURS, compute_of, prepare_pairs, speed, told_environment
from benchmarks.speed.floor import flops_of, gemm_rate
from benchmarks.speed.turns import Arm
from rich.console import Console
from rich.table import Table

from frisket import bundled
from frisket.run.folder import machine, read_json, write_json

RESULTS = Path(__file__).parents[1] / "results" / "quick.json"
PLAIN = {"bf16": "transformers + PEFT, bf16", "fp32": "transformers + PEFT, fp32"}
OWN = {"bf16": OURS, "fp32": "frisket, fp32"}
TURNS, STEPS, FALL = 4, 4, 0.10
BATCH = 64  # samples of a step: instructions are short


def measure(turns: int = TURNS, steps: int = STEPS) -> dict[str, float]:
    """The ratios; higher is better in each."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        case, tokens = prepare_pairs(pairs(), Path("none"), "bundled", "all-linear", work, BATCH)
        names = [*OWN.values(), *PLAIN.values()]
        arms = {name: Arm(name, work, work / f"{number}.log") for number, name in enumerate(names)}
        for arm in arms.values():
            arm.go(2)
        told: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        for _ in range(turns):
            for name, arm in arms.items():
                told[name].append(arm.go(steps))
        for arm in arms.values():
            arm.stop()
        floor = gemm_rate(case, work, compute_of(OURS)) / flops_of(case, work, tokens)
    ours = statistics.median(speed(entry) for entry in told[OURS])
    memory = {name: max(entry["extra_bytes"] for entry in told[name]) for name in (OURS, PLAIN["bf16"])}
    return {
        **{
            f"speed over {PLAIN[kind]}": round(
                statistics.median(speed(a) / speed(b) for a, b in zip(told[OWN[kind]], told[PLAIN[kind]], strict=True)),
                3,
            )
            for kind in PLAIN
        },
        "share of the bf16 floor": round(ours / floor, 3),
        f"memory of {PLAIN['bf16']} over frisket's": round(memory[PLAIN["bf16"]] / memory[OURS], 3),
    }


def pairs() -> list[dict[str, str]]:
    """The bundled instructions as prompt and completion."""
    with bundled.train_path().open(encoding="utf-8") as file:
        conversations = [json.loads(line)["messages"] for line in file]
    return [{"prompt": f"{said[-2]['content']}\n", "completion": said[-1]["content"]} for said in conversations]


def fallen(found: dict[str, float], best: dict[str, float]) -> list[str]:
    """What fell by more than a tenth.

    >>> fallen({"a": 0.89, "b": 0.95, "c": 3.0}, {"a": 1.0, "b": 1.0})
    ['a fell from 1.0 to 0.89']
    """
    return [
        f"{name} fell from {best[name]} to {value}"
        for name, value in found.items()
        if name in best and value < (1 - FALL) * best[name]
    ]


def main() -> None:
    """Measure, show, compare; ends with 1 where something fell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", action="store_true", help="write what is better than the best so far")
    given = parser.parse_args()
    torch.set_num_threads(2)
    kind = machine(torch.device("cpu"))
    results = read_json(RESULTS) if RESULTS.exists() else {}
    best = results.get(kind, {}).get("best", {})
    found = measure()
    table = Table("ratio", "now", "best here", title=kind)
    for name, value in found.items():
        table.add_row(name, f"{value:.2f}", f"{best[name]:.2f}" if name in best else "none yet")
    Console().print(table)
    if given.keep:
        kept = {name: max(value, best.get(name, value)) for name, value in found.items()}
        results[kind] = {"best": kept, "environment": told_environment("bf16")}
        write_json(RESULTS, results)
    if not best:
        Console().print("nothing is committed for this kind of machine yet: keep it with --keep")
    if told := fallen(found, best):
        sys.exit("\n".join(told))


if __name__ == "__main__":
    main()
