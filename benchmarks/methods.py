"""Seconds of an optimizer step of every method, beside LoRA's and beside the method's own arithmetic floor.

    python -m benchmarks.methods [--shape bundled|middle] [--only NAME ...] [--turns 5] [--out FILE]
    python -m benchmarks.methods --table          # docs/speed.md from the results, nothing measured

Each method takes turns with LoRA of rank 32 on all linear layers (A B A B), after one turn of both that is not counted;
`lora` beside itself shows the noise. Random tokens in isolated rows, half of each sample taught; compute type, loss and
optimizer are a run's own. Shapes: the bundled base, and a Llama of 26 million parameters with random weights. The floor
is explained in method_floors.py. Bytes are those of what moves, its masters and the optimizer's state. Results go to
benchmarks/results/methods.json.
"""

import argparse
import gc
import json
import os
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.method_floors import Load, Rates, fastest, floor_of, gemm_rate
from benchmarks.speed.case import MIDDLE
from benchmarks.synthetic import sample
from pydantic import TypeAdapter
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from frisket.adapt.base import Attached, MethodSettings
from frisket.adapt.methods import Method
from frisket.hf.forward import Model
from frisket.hf.load import cast_parameters, compute_type, empty_model, load_model, ready
from frisket.hf.settings import ModelSettings
from frisket.run.folder import environment, write_json
from frisket.supervise.predictions import Weighted
from frisket.train.optim import Optimizer
from frisket.train.settings import TrainSettings
from frisket.train.step import Laying, StepInput, lay_out, run_step

RESULTS, PAGE = Path(__file__).with_name("results") / "methods.json", Path("docs/speed.md")
TOKENS, ROW_TOKENS, TURNS, RATE = 1024, 512, 5, 1e-5
LORA = {"method": "lora"}
CASES: dict[str, dict[str, Any]] = {
    "lora": LORA,
    "lora, dora": {**LORA, "dora": True},
    "lora, kappa 0.2": {**LORA, "where": ["all-linear", {"kappa": 0.2}]},
    "full": {"method": "full"},
    "full, half": {"method": "full", "where": ["all", {"half": "category"}]},
    "full, kappa 0.2": {"method": "full", "where": ["all-linear", {"kappa": 0.2}]},
    "full, last-layer": {"method": "full", "where": "last-layer"},
    "full, embeddings-and-head": {"method": "full", "where": "embeddings-and-head"},
    "full, 100 rows": {"method": "full", "where": ["embeddings[0:100]"]},
    "mora": {"method": "mora"},
    "mora, sharing": {"method": "mora", "compression": "sharing"},
    "mft": {"method": "mft"},
    "mft, global": {"method": "mft", "scope": "global"},
    "graft": {"method": "graft"},
    "spiel": {"method": "spiel"},
    "spiel, choosing every other step": {"method": "spiel", "reselect_every": 2, "accumulate": 1},
    "spiel, momentum": {"method": "spiel", "criterion": "momentum"},
    "prompt": {"method": "prompt"},
    "p-tuning": {"method": "p-tuning"},
    "prefix": {"method": "prefix"},
    "ia3": {"method": "ia3"},
    "ln_tuning": {"method": "ln_tuning"},
    "peft VERA": {"method": "peft", "peft_type": "VERA", "options": {"r": 256}},
    "peft LOHA": {"method": "peft", "peft_type": "LOHA", "options": {"r": 8}},
    "peft OFT": {"method": "peft", "peft_type": "OFT", "options": {"oft_block_size": 32}},
}
FIRST_STEP = 6  # behind SpIEL's first phase, so that its steps are those between two selections


def base_model(shape: str, *, wide: bool = False) -> Model:
    """A fresh model in the type that a run computes in, or in float32; the same at every call."""
    kind = torch.float32 if wide else compute_type("auto", torch.device("cpu"))
    if shape == "bundled":
        return load_model(ModelSettings(path="bundled"), kind, torch.device("cpu"))
    torch.manual_seed(0)
    model = empty_model(CONFIG_MAPPING["llama"](vocab_size=4096, **MIDDLE))
    cast_parameters(model, kind)
    return ready(model)


def samples(vocabulary: int) -> list[Weighted]:
    """``TOKENS`` random tokens in samples of 64 to 256, with the weights of a prompt and an answer of equal length."""
    rng = np.random.default_rng(0)
    made, left = [], TOKENS
    while left:
        size = min(left, int(rng.integers(64, 257)))
        made.append(sample(rng.integers(3, vocabulary, size).astype(np.int32), left))
        left -= size
    return made


@dataclass
class Arm:
    """A method on its own model, ready to step."""

    model: Model
    attached: Attached
    optimizer: Optimizer
    step: StepInput
    laying: Laying
    number: int = FIRST_STEP

    def __call__(self) -> float:
        """Seconds of one step."""
        self.number += 1
        begun = time.perf_counter()
        run_step(self.model, self.attached, self.optimizer, self.step, self.laying, number=self.number, rate=RATE)
        return time.perf_counter() - begun


def arm_of(method: MethodSettings, shape: str) -> Arm:
    """Put a method on a fresh model, as a run does, with the step of ``samples`` laid out for it."""
    kind = compute_type("auto", torch.device("cpu"))
    model = base_model(shape, wide=method.starts_wide)
    attached = method.attach(model.train(), torch.Generator().manual_seed(0))
    optimizer = Optimizer(attached.parameters(), TrainSettings(), kind, (), attached)
    cast_parameters(model, kind)
    attached.begin(1000)
    laying = Laying("isolated", ROW_TOKENS, 1, "grouped", 1024, virtual_tokens=method.virtual_tokens)
    return Arm(model, attached, optimizer, lay_out(samples(model.config.vocab_size), laying, "weights"), laying)


def load_of(model: Model, step: StepInput) -> Load:
    """What the floors are computed from; of a model without a method."""
    lengths = [len(sequence) for sequence, _ in samples(model.config.vocab_size)]
    return Load.of(model, lengths, step.supervised_tokens, len(step.micro_batches))


def rates_of(shape: str) -> Rates:
    """The fastest of several matrix products of the shape's own sizes, and of several copies of 256 MiB."""
    model = base_model(shape)
    source = torch.zeros(2**26)
    target = torch.empty_like(source)
    copied = 2 * source.nbytes / fastest(lambda: target.copy_(source), 5)
    return Rates(gemm_rate(model.config, ROW_TOKENS, model.dtype), copied)


def tuned_folder(shape: str, folder: Path) -> str:
    """A model that was fine-tuned, for grafts: the base with noise."""
    torch.manual_seed(1)
    parameters = base_model(shape, wide=True).named_parameters()
    weights = {name: (each + 0.01 * torch.randn_like(each)).detach() for name, each in parameters}
    (folder / "model").mkdir()
    save_file(weights, folder / "model" / "model.safetensors")
    return str(folder)


def measure(shape: str, names: list[str], turns: int) -> dict[str, Any]:
    """All cases of a shape, each by turns with LoRA."""
    rates, read = rates_of(shape), TypeAdapter(Method)
    beside = arm_of(read.validate_python(LORA), shape)
    load = load_of(base_model(shape), beside.step)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        of = tuned_folder(shape, Path(folder))
        for name in names:
            method = read.validate_python({**CASES[name], **({"of": of} if name == "graft" else {})})
            arm = arm_of(method, shape)
            times = [(beside(), arm()) for _ in range(turns + 1)][1:]
            floor = rates.seconds(floor_of(method, arm.attached, load))
            seconds = statistics.median(own for _, own in times)
            found[name] = {
                "seconds": round(seconds, 4),
                "lora_seconds": round(statistics.median(other for other, _ in times), 4),
                "times_lora": round(statistics.median(own / other for other, own in times), 3),
                "floor_seconds": round(floor, 4),
                "of_floor": round(floor / seconds, 3),
                "moving": sum(parameter.numel() for parameter in arm.attached.parameters().values()),
                "bytes": held_bytes(arm),
                "turns": [[round(each, 4) for each in pair] for pair in times],
            }
            Console().print(shape, name, {key: value for key, value in found[name].items() if key != "turns"})
            del arm
            gc.collect()
    again = rates_of(shape)
    return {
        "gflops": round(max(rates.flops, again.flops) / 1e9, 1),
        "gflops_before_and_after": [round(each.flops / 1e9, 1) for each in (rates, again)],
        "gigabytes_per_second": round(rates.bytes / 1e9, 1),
        "tokens": load.tokens,
        "micro_batches": load.rows,
        "methods": found,
    }


def held_bytes(arm: Arm) -> int:
    """Of what moves, its masters and gradients, and the optimizer's state."""
    parameters = arm.attached.parameters()
    own = sum(parameter.nbytes for parameter in parameters.values())
    masters = sum(2 * master.nbytes for master in arm.optimizer.masters.values())
    return own + masters + arm.optimizer.state_bytes()


def show(results: Mapping[str, Any]) -> None:
    """The table for a person."""
    for shape, told in results["shapes"].items():
        table = Table("method", "ms", "times LoRA", "floor, ms", "of the floor", "moving", "MB", title=shape)
        for name, each in told["methods"].items():
            table.add_row(*_cells(name, each))
        Console().print(table)


def _cells(name: str, each: Mapping[str, Any]) -> list[str]:
    return [
        name,
        f"{1e3 * each['seconds']:.0f}",
        f"{each['times_lora']:.2f}",
        f"{1e3 * each['floor_seconds']:.0f}",
        f"{each['of_floor']:.2f}",
        f"{each['moving']:,}",
        f"{each['bytes'] / 1e6:.1f}",
    ]


def page(results: Mapping[str, Any]) -> str:
    """The tables as docs/speed.md."""
    told = results["environment"]
    lines = [
        "# How fast every method is",
        "",
        "Milliseconds of one optimizer step, beside LoRA's (rank 32, all linear layers) in turns, and beside the",
        "method's own arithmetic floor: the matrix products that its formulas ask for, at the rate of the fastest",
        "matrix product of the same run, and the bytes that it cannot avoid (`benchmarks/method_floors.py`). *MB*:",
        "what moves, its masters and gradients, and the optimizer's state.",
        "",
        f"{told['machine']}, {told['compute']}, commit `{told['commit'][:9]}`.",
        "Written by `python -m benchmarks.methods --table`.",
    ]
    for shape, each in results["shapes"].items():
        lines += [
            "",
            f"## {'The bundled base' if shape == 'bundled' else 'A Llama of 26 million parameters'}",
            "",
            f"{each['tokens']:,} tokens a step in {each['micro_batches']} micro-batches; "
            f"{each['gflops']:,.0f} GFLOP/s, {each['gigabytes_per_second']:.0f} GB/s.",
            "",
            "| method | ms | times LoRA | floor, ms | of the floor | moving | MB |",
            "|---|---:|---:|---:|---:|---:|---:|",
        ]
        lines += [f"| {' | '.join(_cells(name, method))} |" for name, method in each["methods"].items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, or write the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", choices=("bundled", "middle"), action="append")
    parser.add_argument("--only", nargs="+", choices=tuple(CASES), default=list(CASES))
    parser.add_argument("--turns", type=int, default=TURNS)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true")
    asked = parser.parse_args()
    if asked.table:
        PAGE.write_text(page(json.loads(asked.out.read_text(encoding="utf-8"))), encoding="utf-8")
        return
    device = torch.device("cpu")
    shapes = {shape: measure(shape, asked.only, asked.turns) for shape in asked.shape or ("bundled", "middle")}
    told = environment(device, compute_type("auto", device), "")
    results = {"environment": told | {"load": os.getloadavg()[0]}, "shapes": shapes}
    write_json(asked.out, results)
    show(results)


if __name__ == "__main__":
    main()
