"""Training speed beside TRL and beside plain transformers and PEFT: ``make bench DATA=FOLDER``.

    python -m benchmarks.speed FOLDER [--shape 25M] [--targets q-and-v ...] [--arms NAME ...] [--turns 3] [--steps 15]

FOLDER holds gsm8k_train.jsonl and llama_tokenizer.model; neither comes with frisket. Every arm is a process of its
own that trains on the same samples (question and answer; answers are taught), tokens, LoRA and AdamW; arms take turns
of so many steps, after one that is not counted. Before that all arms must report the same tokens and targets, and start
from the same loss. Tokens are real ones: no padding. Memory is the largest resident memory beyond that after all
imports. Results: benchmarks/results/speed.json, and the headline in benchmarks/results/cpu-headline.json.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from benchmarks.speed import profile
from benchmarks.speed.arm import ARMS
from benchmarks.speed.case import BUNDLED, LLAMA, SHAPES, SPREAD, TARGETS, Case, Tokens
from benchmarks.speed.floor import flops_of, gemm_rate
from benchmarks.speed.frisket_arm import tokens_of
from benchmarks.speed.turns import Arm
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer, LlamaTokenizer
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from frisket import bundled
from frisket.hf.load import empty_model
from frisket.run.folder import environment, read_json, write_json

RESULTS = Path(__file__).parents[1] / "results"
SAMPLES, BATCH = 1500, 8
OURS, THEIR_DEFAULT = "frisket, bf16", "TRL default"
TOLERANCE = {"fp32": 1e-5, "bf16": 1e-2}
HEADLINE_SHAPE, HEADLINE_TARGETS = "25M", ("q-and-v", "all-linear")


def prepare(folder: Path, shape: str, targets: str, work: Path) -> tuple[Case, Tokens]:
    """Write model, samples of the problems, tokens and case into the work folder."""
    return prepare_pairs(pairs_of(folder), folder, shape, targets, work)


def prepare_pairs(
    given: list[dict[str, str]], folder: Path, shape: str, targets: str, work: Path, batch: int = BATCH
) -> tuple[Case, Tokens]:
    """Write model, samples, tokens and case into the work folder.

    Args:
        folder: where the tokenizer's file lies, if the shape has one of its own.
    """
    pairs = given[:SAMPLES]
    write_samples(pairs, work)
    write_model(shape, folder, work / "model")
    tokens = tokens_of(Case(shape, targets, len(pairs), batch, 4096), work)
    tokens.write(work)
    step = round(batch * statistics.mean(map(len, tokens.ids)))
    case = Case(shape, targets, len(pairs), batch, step)
    case.write(work)
    return case, tokens


def pairs_of(folder: Path) -> list[dict[str, str]]:
    """All problems as prompt and completion."""
    lines = (folder / "gsm8k_train.jsonl").read_text(encoding="utf-8").splitlines()
    problems = [json.loads(line) for line in lines]
    return [{"prompt": f"{each['question']}\n", "completion": each["answer"]} for each in problems]


def write_samples(pairs: list[dict[str, str]], work: Path) -> None:
    """The file that every arm reads."""
    (work / "samples.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")


def write_model(shape: str, folder: Path, place: Path) -> None:
    """A shape with random weights and its tokenizer; or the bundled base."""
    if shape == "bundled":
        place.symlink_to(bundled.base_path())
        return
    settings = dict(SHAPES[shape])
    tokenizer = tokenizer_of(settings.pop("tokenizer"), folder, place)
    torch.manual_seed(0)
    config = CONFIG_MAPPING[settings.pop("model_type")](**{"vocab_size": len(tokenizer), **settings})
    config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    model = empty_model(config)
    with torch.no_grad():
        model.get_input_embeddings().weight.normal_(0, SPREAD)
    model.save_pretrained(place)
    tokenizer.save_pretrained(place)


def tokenizer_of(name: str, folder: Path, place: Path) -> Any:
    """The bundled tokenizer, or Llama's."""
    if name == BUNDLED:
        return AutoTokenizer.from_pretrained(str(bundled.base_path()))
    place.mkdir()
    shutil.copy(folder / LLAMA, place / "tokenizer.model")
    tokenizer = LlamaTokenizer.from_pretrained(str(place))
    tokenizer.pad_token = tokenizer.unk_token
    return tokenizer


def check(names: list[str], work: Path) -> dict[str, dict[str, Any]]:
    """What each arm trains on and where its loss starts.

    Raises:
        SystemExit: they differ.
    """
    found = {name: _told(name, work) for name in names}
    first = found[names[0]]
    for name, told in found.items():
        far = abs(told["loss"] / first["loss"] - 1)
        if told["digest"] != first["digest"] or far > TOLERANCE[compute_of(name)]:
            sys.exit(f"{name} does not train on what {names[0]} trains on: {told} beside {first}")
    return found


def told_environment(compute: str) -> dict[str, Any]:
    """Where it was measured, the other libraries' versions with it."""
    kind = {"bf16": torch.bfloat16, "fp32": torch.float32}[compute]
    others = {name: version(name) for name in ("trl", "peft", "accelerate", "datasets")}
    return environment(torch.device("cpu"), kind, "") | others


def compute_of(name: str) -> str:
    """The type an arm computes in; TRL's default is bf16."""
    return "fp32" if name.endswith("fp32") else "bf16"


def _told(name: str, work: Path) -> dict[str, Any]:
    words = [sys.executable, "-m", "benchmarks.speed.arm", name, str(work), "check"]
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    if done.returncode:
        sys.exit(f"{name}: {done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(case: Case, tokens: Tokens, names: list[str], work: Path, turns: int, steps: int) -> dict[str, Any]:
    """All arms of a case by turns."""
    starts = check(names, work)
    rates = {kind: gemm_rate(case, work, kind) for kind in TOLERANCE}
    arms = [Arm(name, work, work / f"{number}.log") for number, name in enumerate(names)]
    for arm in arms:
        arm.go(max(3, steps // 2))
    told: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for turn in range(turns):
        for arm in arms:
            told[arm.name].append(arm.go(steps))
        line = ", ".join(f"{name} {speed(entries[-1]):,.0f}" for name, entries in told.items())
        Console(stderr=True).print(f"turn {turn + 1} of {turns}: {line} tokens a second")
    for arm in arms:
        arm.stop()
    for kind in rates:
        rates[kind] = max(rates[kind], gemm_rate(case, work, kind))
    flops = flops_of(case, work, tokens)
    return {
        "case": {"shape": case.shape, "targets": case.targets, "samples": case.samples, "step_tokens": case.tokens},
        "tokens": sum(map(len, tokens.ids)),
        "taught": sum(map(sum, tokens.is_taught)),
        "gflops": {kind: round(rate / 1e9, 1) for kind, rate in rates.items()},
        "flops_a_token": round(flops),
        "turns": turns,
        "steps_a_turn": steps,
        "load_average": [round(value, 2) for value in os.getloadavg()],
        "arms": {
            name: row_of(entries, told, starts[name], rates[compute_of(name)] / flops) for name, entries in told.items()
        },
    }


def row_of(entries: list[dict], told: dict[str, list[dict]], start: dict[str, Any], floor: float) -> dict[str, Any]:
    """What the results hold of one arm.

    Args:
        floor: tokens a second that the machine could do at best.
    """
    own = [speed(entry) for entry in entries]
    ratios = [speed(ours) / each for ours, each in zip(told[OURS], own, strict=True)] if OURS in told else []
    return {
        "tokens_a_second": round(statistics.median(own), 1),
        "taught_a_second": round(statistics.median(entry["taught"] / entry["seconds"] for entry in entries), 1),
        "of_the_floor": round(statistics.median(own) / floor, 3),
        "frisket_is_faster_by": round(statistics.median(ratios), 3) if ratios else None,
        "extra_mib": round(max(entry["extra_bytes"] for entry in entries) / 2**20),
        "start_loss": round(start["loss"], 6),
        "turns": [round(value, 1) for value in own],
    }


def speed(entry: dict[str, Any]) -> float:
    """Real tokens a second of one turn."""
    return entry["tokens"] / entry["seconds"]


def headline(results: dict[str, Any]) -> dict[str, Any] | None:
    """The lower of the two cases: frisket's speed over the best other arm's, and over TRL's default."""
    found = {}
    for targets in HEADLINE_TARGETS:
        arms = results["cases"].get(f"{HEADLINE_SHAPE}, {targets}", {}).get("arms", {})
        others = {name: row["frisket_is_faster_by"] for name, row in arms.items() if not name.startswith("frisket")}
        if THEIR_DEFAULT not in others or len(others) < len(ARMS) - 2:
            return None
        best = min(others, key=lambda name: others[name])
        memory = round(arms[OURS]["extra_mib"] / arms[best]["extra_mib"], 3)
        found[targets] = {
            "best_peer": best,
            "ratio_to_best_peer": others[best],
            "ratio_to_peer_default": others[THEIR_DEFAULT],
            "memory_over_best_peer": memory,
        }
    lowest = {key: min(each[key] for each in found.values()) for key in ("ratio_to_best_peer", "ratio_to_peer_default")}
    return {**lowest, "cases": found, "environment": results["environment"]}


def show(results: dict[str, Any]) -> None:
    """The table for a person."""
    for name, case in results["cases"].items():
        table = Table(
            "arm", "tokens/s", "taught/s", "of the floor", "frisket bf16 is", "MiB beyond imports", title=name
        )
        for arm, row in case["arms"].items():
            times = f"{row['frisket_is_faster_by']:.2f} x" if row["frisket_is_faster_by"] else ""
            cells = (f"{row['tokens_a_second']:,.0f}", f"{row['taught_a_second']:,.0f}", f"{row['of_the_floor']:.2f}")
            table.add_row(arm, *cells, times, f"{row['extra_mib']:,}")
        Console().print(table)


def main() -> None:
    """Measure, keep, show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where gsm8k_train.jsonl lies")
    parser.add_argument("--shape", default="25M", choices=["bundled", *SHAPES])
    parser.add_argument("--targets", nargs="+", default=list(HEADLINE_TARGETS), choices=list(TARGETS))
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--steps", type=int, default=15, help="of a turn")
    parser.add_argument("--out", type=Path, default=RESULTS / "speed.json")
    parser.add_argument("--profile", action="store_true", help="where the time of frisket's step goes, and no more")
    given = parser.parse_args()
    torch.set_num_threads(2)
    if given.profile:
        for targets in given.targets:
            with tempfile.TemporaryDirectory() as folder:
                profile.measure(prepare(given.folder, given.shape, targets, Path(folder))[0], Path(folder))
        return
    results = read_json(given.out) if given.out.exists() else {"cases": {}}
    results["environment"] = told_environment("bf16")
    for targets in given.targets:
        with tempfile.TemporaryDirectory() as folder:
            work = Path(folder)
            case, tokens = prepare(given.folder, given.shape, targets, work)
            measured = measure(case, tokens, given.arms, work, given.turns, given.steps)
            results["cases"][f"{given.shape}, {targets}"] = measured
            write_json(given.out, results)
    show(results)
    found = headline(results)
    if found is not None and given.out == RESULTS / "speed.json":
        write_json(RESULTS / "cpu-headline.json", found)


if __name__ == "__main__":
    main()
