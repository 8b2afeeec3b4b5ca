"""What prefix forests save on real files: tokens counted over an epoch, and seconds on this machine.

    python benchmarks/forests.py FOLDER [--only tokens|speed|peers] [--case 8-shot]

FOLDER holds the files named in CASES and `llama_tokenizer.model`; none of them comes with frisket. Speed is forward and
backward of the backbone with LoRA on all linear layers, without the head, on the first step's samples; arrangements
take turns (A B A B), after one turn that is not counted. `ideal` is flat over computed tokens of the same rows.
Results go to benchmarks/results/forests.json.
"""

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaTokenizer
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from frisket.adapt.lora import Lora
from frisket.attend.pack import Arrangement, pack
from frisket.hf.attention import own_attention
from frisket.hf.forward import backbone_of, hidden_states
from frisket.recipe import Recipe
from frisket.run import make_plan
from frisket.run.folder import environment
from frisket.run.prepare import prepare
from frisket.types import Sequence
from frisket.watch import Silent

RESULTS = Path(__file__).with_name("results") / "forests.json"
GSM = {"path": "gsm8k_train.jsonl", "prompt": "question", "completion": "answer"}
CASES: dict[str, dict[str, Any]] = {
    "Alpaca with its header": {"path": "alpaca_en_demo.json", "render": "alpaca"},
    "CodeAlpaca with header": {"path": "codealpaca.json", "render": "alpaca"},
    "tool calls": {"path": "glaive_toolcall_en_demo.json"},
    "tool calls, per turn": {"path": "glaive_toolcall_en_demo.json", "expand": "turns"},
    "preference pairs": {"path": "dpo_en_demo.json", "answers": "both"},
    "GSM8K": GSM,
    "GSM8K, 8-shot": {**GSM, "shots": {"path": "gsm8k_test.jsonl", "count": 8}},
}
WIDE_ROWS = ("GSM8K, 8-shot", 16384)
TURNS = 3
# One layer of the shape of Llama-3.2-1B's. A narrower layer spends more of its time in attention, of which a forest
# saves less than of the rest: `--narrow` measures that.
SHAPE = {
    "vocab_size": 32000,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 1,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "max_position_embeddings": 16384,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


NARROW = {
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 2,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
}


def model_folder(tokenizer_file: Path, folder: Path, *, narrow: bool = False) -> Path:
    """Save a random model with the Llama tokenizer."""
    torch.manual_seed(0)
    bare, target = folder / "tokenizer", folder / "llama"
    bare.mkdir()
    shutil.copy(tokenizer_file, bare / "tokenizer.model")
    AutoModelForCausalLM.from_config(
        CONFIG_MAPPING["llama"](**SHAPE | (NARROW if narrow else {})), dtype=torch.bfloat16
    ).save_pretrained(target)
    LlamaTokenizer.from_pretrained(bare).save_pretrained(target)
    return target


def recipe_of(case: Mapping[str, Any], data: Path, model: Path, row_tokens: int = 4096) -> Recipe:
    """The recipe of a case: rows of 4,096 and steps of 32,768 tokens, seed 0, nothing held out."""
    source = {**case, "path": str(data / case["path"])}
    if "shots" in case:
        source["shots"] = {**case["shots"], "path": str(data / case["shots"]["path"])}
    return Recipe.model_validate(
        {
            "model": {"path": str(model)},
            "data": [source],
            "attend": {"row_tokens": row_tokens},
            "train": {"step_tokens": 32768, "seed": 0},
            "evaluate": "off",
        }
    )


def count_tokens(data: Path, model: Path, cases: list[str]) -> dict[str, dict]:
    """Flat and computed tokens of an epoch, as `frisket plan --json` reports them."""
    wanted = [(name, 4096) for name in cases] + [WIDE_ROWS] * (WIDE_ROWS[0] in cases)
    return {
        f"{name}, rows of {rows:,}": make_plan(recipe_of(CASES[name], data, model, rows), watcher=Silent()).as_dict()[
            "attend"
        ]
        for name, rows in wanted
    }


def measure_speed(data: Path, model_path: Path, cases: list[str]) -> dict[str, dict]:
    """Seconds of the first step's backbone, isolated and as a forest, by turns."""
    model = adapted(model_path)
    found = {}
    for name in cases:
        prepared = prepare(recipe_of(CASES[name], data, model_path), Silent())
        samples = [prepared.dataset[int(i)] for i in prepared.order.epoch(0)[0].samples]
        arms: dict[str, Callable[[], None]] = {a: step_of(model, samples, a) for a in ("isolated", "forest")}
        seconds = by_turns(arms)
        flat = sum(map(len, samples))
        computed = sum(rows.real_tokens for rows in pack(samples, "forest", 4096))
        medians = {arm: statistics.median(times) for arm, times in seconds.items()}
        pairs = [a / b for a, b in zip(seconds["isolated"], seconds["forest"], strict=True)]
        found[name] = {
            "auto": prepared.laying.arrangement,
            "flat_tokens": flat,
            "forest_tokens": computed,
            "ideal": round(flat / computed, 3),
            "seconds": {arm: round(value, 3) for arm, value in medians.items()},
            "faster": round(statistics.median(pairs), 3),
            "of_ideal": round(statistics.median(pairs) / (flat / computed), 3),
            "real_tokens_per_second": {arm: round(flat / value) for arm, value in medians.items()},
        }
        Console().print(name, found[name])
    return found


def measure_peers(data: Path, model_path: Path) -> dict[str, Any]:
    """Isolated rows against transformers' own packed path (positions that restart, SDPA) and against padding."""
    model = adapted(model_path)
    prepared = prepare(recipe_of(CASES["GSM8K"], data, model_path), Silent())
    samples = [prepared.dataset[int(i)] for i in prepared.order.epoch(0)[0].samples][:40]
    arms = {
        "frisket, isolated": step_of(model, samples, "isolated"),
        "frisket, padded": step_of(model, samples, "padded"),
        "transformers, packed": plain_step(model, samples, packed=True),
        "transformers, padded": plain_step(model, samples, packed=False),
    }
    medians = {arm: statistics.median(times) for arm, times in by_turns(arms).items()}
    flat = sum(map(len, samples))
    return {
        "case": "GSM8K",
        "flat_tokens": flat,
        "seconds": {arm: round(value, 3) for arm, value in medians.items()},
        "isolated_is_faster_by": {
            arm: round(value / medians["frisket, isolated"], 3) for arm, value in medians.items()
        },
    }


def adapted(path: Path) -> Any:
    """The random model in bf16 with LoRA on all linear layers."""
    from frisket.hf.load import ready

    model = ready(AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16))
    Lora(method="lora", rank=16).attach(model, torch.Generator().manual_seed(0))
    return model.to(torch.bfloat16).train()


def step_of(model: Any, samples: list[Sequence], arrangement: Arrangement) -> Callable[[], None]:
    """Forward and backward of the backbone over all rows of a step, rows laid out anew each time."""

    def run() -> None:
        for rows in pack(samples, arrangement, 4096):
            backward(model, hidden_states(model, rows))

    return run


def plain_step(model: Any, samples: list[Sequence], *, packed: bool) -> Callable[[], None]:
    """The same through transformers' SDPA: rows of 4,096 with positions that restart, or padded batches."""
    batches = pack(samples, "isolated" if packed else "padded", 4096)

    def run() -> None:
        with own_attention(model, "sdpa"):
            for rows in batches:
                ids, positions = torch.from_numpy(rows.input_ids), torch.from_numpy(rows.position_ids)
                mask = None if packed else torch.from_numpy(rows.is_real.astype(np.int64))
                out = backbone_of(model)(ids, position_ids=positions, attention_mask=mask, use_cache=False)
                backward(model, out.last_hidden_state.flatten(0, 1)[torch.from_numpy(rows.is_real.ravel())])

    return run


def backward(model: Any, hidden: Tensor) -> None:
    """Backward of a plain sum, so that no head is timed."""
    hidden.float().square().sum().backward()
    for parameter in model.parameters():
        parameter.grad = None


def by_turns(arms: Mapping[str, Callable[[], None]]) -> dict[str, list[float]]:
    """Seconds of each arm, one after the other, TURNS times; a first turn warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(TURNS + 1):
        for name, arm in arms.items():
            begun = time.perf_counter()
            arm()
            if turn:
                seconds[name].append(time.perf_counter() - begun)
    return seconds


def show(results: Mapping[str, Any]) -> None:
    """The tables for a person."""
    tokens = Table("data", "flat", "forest", "flat / forest", "row bound", "bound", "auto", title="tokens of an epoch")
    for name, each in results.get("tokens", {}).items():
        ratios = [f"{each[key]:.2f}" for key in ("forest_ratio", "row_bound", "bound")]
        tokens.add_row(name, f"{each['flat_tokens']:,}", f"{each['forest_tokens']:,}", *ratios, each["arrangement"])
    speed = Table("data", "isolated", "forest", "faster", "ideal", "of ideal", "auto", title="seconds of a step")
    narrow = [(f"{name} (narrow)", each) for name, each in results.get("speed_narrow", {}).items()]
    for name, each in [*results.get("speed", {}).items(), *narrow]:
        figures = [f"{each['seconds'][arm]:.2f}" for arm in ("isolated", "forest")]
        speed.add_row(name, *figures, *(f"{each[key]:.2f}" for key in ("faster", "ideal", "of_ideal")), each["auto"])
    peers = Table("path", "seconds", "isolated is faster by", title="isolated rows against transformers")
    for name, seconds in results.get("peers", {}).get("seconds", {}).items():
        peers.add_row(name, f"{seconds:.2f}", f"{results['peers']['isolated_is_faster_by'][name]:.2f}")
    for table in (tokens, speed, peers):
        if table.rows:
            Console().print(table)


def main() -> None:
    """Count, time, show, and write what came out; parts that were not asked for keep their last results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", choices=("tokens", "speed", "peers"))
    parser.add_argument("--case", choices=list(CASES), action="append")
    parser.add_argument("--narrow", action="store_true", help="speed of a narrower model, kept beside the other")
    options = parser.parse_args()
    cases = options.case or list(CASES)
    parts: dict[str, Callable[[Path], dict]] = {
        "tokens": lambda model: count_tokens(options.folder, model, cases),
        "speed": lambda model: measure_speed(options.folder, model, cases),
        "peers": lambda model: measure_peers(options.folder, model),
    }
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        model = model_folder(options.folder / "llama_tokenizer.model", Path(folder), narrow=options.narrow)
        for part in [options.only] if options.only else list(parts):
            found = parts[part](model)
            name = f"{part}_narrow" if options.narrow else part
            results[name] = {**results.get(name, {}), **found} if options.case else found
            results.setdefault("environment", {})[name] = environment(torch.device("cpu"), torch.bfloat16, "")
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    show(results)


if __name__ == "__main__":
    main()
