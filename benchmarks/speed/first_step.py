"""From the command to the end of the first step: ``python -m benchmarks.speed.first_step FOLDER [--turns 5]``.

FOLDER holds gsm8k_train.jsonl and llama_tokenizer.model. Every start is a new process over all problems, with no store
of tokens, no cache of data sets, and files that were read before. frisket's is `frisket train RECIPE --out OUT`,
with `evaluate: off` and with evaluations as they are by default (some samples held out and measured, texts written);
its first step is done when metrics.jsonl holds it. TRL's is a script of its own as its documentation has it: prompt and
completion, `SFTConfig(use_cpu=True, max_length=None)`, LoRA of the same rank on the same layers, as many samples a
step; its first step is done at `on_step_end`. Results: benchmarks/results/first-step.json.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.speed.__main__ import BATCH, HEADLINE_SHAPE, pairs_of, told_environment, write_model, write_samples
from rich.console import Console
from rich.table import Table

from frisket.run.folder import write_json

RESULTS = Path(__file__).parents[1] / "results" / "first-step.json"
STEP_TOKENS = 1655  # of 8 problems in the mean
OFF, DEFAULT, TRL = "frisket, evaluate: off", "frisket, default", "TRL"
RECIPE = """\
model: {{path: {work}/model}}
data: [{{path: {work}/samples.jsonl}}]
adapt: {{method: lora, where: ["*.q_proj", "*.v_proj"], rank: 16}}
train: {{step_tokens: {tokens}, max_steps: 1}}
"""
SCRIPT = """\
import os, sys
from datasets import load_dataset
from peft import LoraConfig
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer


class FirstStep(TrainerCallback):
    def on_step_end(self, *given, **others):
        open("first-step", "w").close()


trainer = SFTTrainer(
    model="{work}/model",
    args=SFTConfig(output_dir="out", use_cpu=True, max_length=None, max_steps=1, report_to=[]),
    train_dataset=load_dataset("json", data_files="{work}/samples.jsonl", split="train"),
    peft_config=LoraConfig(r=16, lora_alpha=32, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
    callbacks=[FirstStep()],
)
trainer.train()
"""


def start(name: str, work: Path) -> float:
    """Seconds from a command to the end of its first step."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        caches = {"XDG_CACHE_HOME": "cache", "FRISKET_CACHE": "cache/frisket", "HF_HOME": "cache/hf"}
        offline = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2"}
        own = {**os.environ, **offline, **{key: str(place / value) for key, value in caches.items()}}
        began = time.perf_counter()
        with (place / "log").open("w") as log:
            process = subprocess.Popen(words_of(name, work), cwd=place, env=own, stdout=log, stderr=log)
        mark = place / ("first-step" if name == TRL else "out/metrics.jsonl")
        while not is_done(mark, name):
            has_ended = process.poll() is not None
            if has_ended and not is_done(mark, name):
                sys.exit(f"{name} ended without a step:\n{(place / 'log').read_text()[-3000:]}")
            time.sleep(0.01)
        seconds = time.perf_counter() - began
        process.kill()
        process.wait()
    return seconds


def is_done(mark: Path, name: str) -> bool:
    """Whether the file says that a step was made; frisket's is there, empty, before it."""
    return mark.exists() and (name == TRL or mark.stat().st_size > 0)


def words_of(name: str, work: Path) -> list[str]:
    """The command of an arm."""
    if name == TRL:
        return [sys.executable, str(work / "sft.py")]
    recipe = str(work / "recipe.yaml")
    return [
        sys.executable,
        "-m",
        "frisket",
        "train",
        recipe,
        "--out",
        "out",
        *(["evaluate=off"] if name == OFF else []),
    ]


def help_seconds() -> float:
    """Seconds of ``frisket --help``; median of seven."""

    def one() -> float:
        began = time.perf_counter()
        subprocess.run([str(Path(sys.executable).with_name("frisket")), "--help"], check=True, capture_output=True)
        return time.perf_counter() - began

    return statistics.median(one() for _ in range(7))


def measure(folder: Path, turns: int) -> dict[str, Any]:
    """Every arm by turns, after one turn that is not counted."""
    with tempfile.TemporaryDirectory() as kept:
        work = Path(kept)
        pairs = pairs_of(folder)
        write_samples(pairs, work)
        write_model(HEADLINE_SHAPE, folder, work / "model")
        (work / "recipe.yaml").write_text(RECIPE.format(work=work, tokens=STEP_TOKENS), encoding="utf-8")
        (work / "sft.py").write_text(SCRIPT.format(work=work), encoding="utf-8")
        told: dict[str, list[float]] = {OFF: [], DEFAULT: [], TRL: []}
        for turn in range(turns + 1):
            for name, seconds in told.items():
                found = start(name, work)
                if turn:
                    seconds.append(found)
    ratios = {name: [a / b for a, b in zip(told[name], told[TRL], strict=True)] for name in told}
    return {
        "samples": len(pairs),
        "batch": BATCH,
        "help_seconds": round(help_seconds(), 3),
        "arms": {
            name: {
                "seconds": round(statistics.median(seconds), 2),
                "of_trl": round(statistics.median(ratios[name]), 3),
                "turns": [round(value, 2) for value in seconds],
            }
            for name, seconds in told.items()
        },
        "environment": told_environment("bf16"),
    }


def main() -> None:
    """Measure, keep, show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--turns", type=int, default=5)
    given = parser.parse_args()
    found = measure(given.folder, given.turns)
    write_json(RESULTS, found)
    table = Table("command", "seconds to the end of the first step", "of TRL's")
    for name, row in found["arms"].items():
        table.add_row(name, f"{row['seconds']:.1f}", f"{row['of_trl']:.2f}")
    Console().print(table, f"frisket --help: {found['help_seconds']:.3f} s")


if __name__ == "__main__":
    main()
