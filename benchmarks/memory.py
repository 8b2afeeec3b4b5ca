"""Predicted against measured peak memory, each case in a process of its own through `frisket train`.

    python benchmarks/memory.py [--only eight|held-out] [--case NAME] [--threads 2]

The eight cases: full and LoRA, 3 M and 25 M parameters, rows of 1,024 and 8,192 tokens. Models are random, in bf16
files, with the bundled tokenizer; a sample fills a row. The held-out cases were not looked at when the formula was
written: another depth and width, padding, a forest, everything recomputed, fp32, a mixture of experts, Gemma's layers.
Measured is the largest resident memory of the process (`getrusage` of the child), which `summary.json` must repeat.
Results go to benchmarks/results/memory.json; a case that is run again replaces its line.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from frisket import bundled
from frisket.run.folder import environment

RESULTS = Path(__file__).with_name("results") / "memory.json"
BAR = 0.15
SAMPLES = 8
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "3M": ("llama", {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4}),
    "25M": ("llama", {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8}),
    "deep": (
        "qwen3",
        {"hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 12, "num_attention_heads": 3},
    ),
    "mixture": (
        "qwen3_moe",
        {
            "hidden_size": 256,
            "intermediate_size": 512,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_experts": 8,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 256,
        },
    ),
    "gemma": (
        "gemma3_text",
        {
            "hidden_size": 256,
            "intermediate_size": 1024,
            "num_hidden_layers": 6,
            "num_attention_heads": 4,
            "sliding_window": 512,
        },
    ),
}


@dataclass(frozen=True)
class Case:
    """One run.

    Attributes:
        tokens: of a row; a sample has as many, or ``sample_tokens``.
        overrides: further words of the command line.
    """

    shape: str
    method: str
    tokens: int
    sample_tokens: int | None = None
    overrides: tuple[str, ...] = field(default=())

    @property
    def name(self) -> str:
        """What the table calls it."""
        return " ".join([self.method, self.shape, f"{self.tokens:,}", *self.overrides])


EIGHT = [
    Case(shape, method, tokens) for shape in ("3M", "25M") for method in ("full", "lora") for tokens in (1024, 8192)
]
HELD_OUT = [
    Case("deep", "lora", 4096),
    Case("25M", "full", 4096, overrides=("train.recompute=all",)),
    Case("25M", "full", 2048, overrides=("train.compute=fp32",)),
    Case("3M", "lora", 4096, 700, ("attend.arrangement=padded",)),
    Case("3M", "full", 4096, 1000, ("attend.arrangement=forest",)),
    Case("mixture", "lora", 4096),
    Case("gemma", "full", 4096),
]


def make_model(shape: str, folder: Path) -> Path:
    """A random model with the bundled tokenizer."""
    family, own = SHAPES[shape]
    base = json.loads((bundled.base_path() / "config.json").read_text())
    kept = ("bos_token_id", "eos_token_id", "pad_token_id", "vocab_size", "max_position_embeddings", "head_dim")
    torch.manual_seed(0)
    heads = {"num_key_value_heads": max(1, own["num_attention_heads"] // 2), "tie_word_embeddings": True}
    config = CONFIG_MAPPING[family](**{name: base[name] for name in kept}, **heads, **own)
    AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(bundled.base_path() / name, folder / name)
    return folder


def make_data(tokens: int, path: Path) -> Path:
    """Chats of about so many tokens; the first half of each is the same text, for a forest."""
    tokenizer = AutoTokenizer.from_pretrained(bundled.base_path())
    lines = (Path(bundled.__path__[0]) / "instructions" / "train.jsonl").read_text().splitlines()
    words = [word for line in lines[:2000] for word in json.loads(line)["messages"][0]["content"].split()]
    rng = random.Random(0)
    with path.open("w") as file:
        for number in range(SAMPLES):
            ids = tokenizer(" ".join(rng.choices(words, k=tokens)))["input_ids"][: tokens - 64]
            asked = {"role": "user", "content": f"Write text {number}."}
            file.write(
                json.dumps({"messages": [asked, {"role": "assistant", "content": tokenizer.decode(ids)}]}) + "\n"
            )
    return path


def run(case: Case, folder: Path, threads: int) -> dict[str, Any]:
    """Train two steps in a process of its own."""
    model = make_model(case.shape, folder / "model")
    data = make_data(case.sample_tokens or case.tokens, folder / "data.jsonl")
    out = folder / "out"
    command = [sys.executable, "-m", "frisket", "train", "--model", str(model), "--data", str(data), "--out", str(out)]
    command += [
        f"adapt.method={case.method}",
        f"attend.row_tokens={case.tokens}",
        f"train.step_tokens={2 * case.tokens + 200}",
    ]
    command += ["train.max_steps=2", f"train.threads={threads}", "evaluate.learning=[]", "evaluate.every=0"]
    command += [
        "evaluate.forgetting=[{name: default, prompts: 4, answer_tokens: 16, text_tokens: 1024}]",
        *case.overrides,
    ]
    child = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | {"OMP_NUM_THREADS": str(threads), "FRISKET_CACHE": str(folder / "cache")},
        text=True,
    )
    assert child.stdout is not None
    said = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"{case.name} failed:\n{said[-3000:]}")
    memory = json.loads((out / "summary.json").read_text())["memory"]
    measured = usage.ru_maxrss * 1024
    return {
        "case": case.name,
        "predicted_mib": round(memory["predicted_bytes"] / 2**20, 1),
        "measured_mib": round(measured / 2**20, 1),
        "summary_mib": round(memory["peak_bytes"] / 2**20, 1),
        "ratio": round(memory["predicted_bytes"] / measured, 3),
        "told": next(line for line in said.splitlines() if line.startswith("memory")).strip(),
    }


def show(results: dict[str, Any]) -> None:
    """Print the table."""
    table = Table("case", "predicted MiB", "measured MiB", "predicted / measured")
    for group in ("eight", "held_out"):
        for line in results.get(group, []):
            table.add_row(line["case"], f"{line['predicted_mib']:,}", f"{line['measured_mib']:,}", str(line["ratio"]))
        table.add_section()
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("eight", "held-out"))
    parser.add_argument("--case", help="part of a case's name")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for group, cases in (("eight", EIGHT), ("held_out", HELD_OUT)):
        for case in cases:
            if (given.only or group.replace("_", "-")) != group.replace("_", "-") or (
                given.case or ""
            ) not in case.name:
                continue
            with tempfile.TemporaryDirectory() as folder:
                line = run(case, Path(folder), given.threads)
            print(json.dumps(line), flush=True)
            order = {each.name: place for place, each in enumerate(cases)}
            kept = [each for each in results.get(group, []) if each["case"] != case.name and each["case"] in order]
            results[group] = sorted([*kept, line], key=lambda each: order[each["case"]])
            results["within"] = all(abs(each["ratio"] - 1) <= BAR for each in results.get("eight", []))
            results["threads"] = given.threads
            results["environment"] = environment(torch.device("cpu"), torch.bfloat16, "")
            RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    show(results)


if __name__ == "__main__":
    main()
