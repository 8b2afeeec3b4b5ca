"""All that a GPU is needed for, in one call of at most ten minutes; tables last.

    python -m benchmarks.gpu [--seconds 540] [--only NAME ...] [--out FILE] [--tiny]

Random weights in bf16 from configurations that stand here, random tokens, LoRA of rank 16 on all linear layers; AdamW
moves it. Rows of lengths drawn from those of tool-call conversations (their percentiles stand here) and rows of 4,096,
32,768 tokens a step; TRL has eight samples a step, its default, and is to be read beside frisket's row of as many.
Every part says what it needs at most; one that no longer fits into the time is left out and named. MFU is what LoRA
needs (`benchmarks/method_floors.py`) over the rate of the fastest matrix product of the same run. Idle is the share of
a step in which no kernel ran. ``--tiny`` makes every shape small, so that all of it runs on a CPU in a test.
"""

import argparse
import gc
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.method_floors import Load, floor_of
from benchmarks.synthetic import sample, samples
from rich.console import Console
from rich.table import Table
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from frisket.adapt.lora import Lora
from frisket.attend.backends.matmul import Knobs
from frisket.attend.pack import pack
from frisket.hf.attention import prepare
from frisket.hf.load import cast_parameters, empty_model, ready
from frisket.run.folder import environment, write_json
from frisket.supervise.loss import chunk_of
from frisket.supervise.predictions import Weighted
from frisket.train.memory import peak_bytes
from frisket.train.optim import Optimizer
from frisket.train.settings import TrainSettings
from frisket.train.step import Laying, StepInput, lay_out, run_step

RESULTS = Path(__file__).with_name("results") / "gpu.json"
# Every fifth percentile of the tokens of 300 tool-call conversations under Llama's tokenizer.
PERCENTILES = (109, 151, 167, 184, 196, 225, 262, 278, 300, 311, 342, 380, 411, 520, 587, 680, 775, 850, 1001, 1218)
PERCENTILES = (*PERCENTILES, 4096)  # the longest is beyond a row
LLAMA = {"model_type": "llama", "vocab_size": 128256, "num_key_value_heads": 8, "max_position_embeddings": 8192}
QWEN = {"model_type": "qwen3", "vocab_size": 151936, "num_key_value_heads": 8, "head_dim": 128}
SHAPES: dict[str, dict[str, Any]] = {
    "Llama-3.1-8B": LLAMA
    | {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32},
    "Qwen3-1.7B": QWEN
    | {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28, "num_attention_heads": 16}
    | {"tie_word_embeddings": True},
    "Qwen3-0.6B": QWEN
    | {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16}
    | {"tie_word_embeddings": True},
}
TINY = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
TINY |= {"num_key_value_heads": 2, "head_dim": 16}
STEP_TOKENS, ROW_TOKENS = 32768, 4096
TURNS, SMALL = 6, 64  # steps that count; how much shorter everything is with --tiny


@dataclass(frozen=True)
class Bench:
    """Where and how large."""

    device: torch.device
    is_tiny: bool

    def size(self, tokens: int) -> int:
        """So many tokens, or a small share of them."""
        return max(32, tokens // SMALL) if self.is_tiny else tokens

    def model(self, shape: str) -> Any:
        """Random weights in bf16 on the device, on frisket's seam."""
        settings = dict(SHAPES[shape]) | (TINY if self.is_tiny else {})
        torch.manual_seed(0)
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.bfloat16)
        try:
            with self.device:
                model = empty_model(CONFIG_MAPPING[settings.pop("model_type")](**settings))
        finally:
            torch.set_default_dtype(before)
        return ready(model)

    def wait(self) -> None:
        """Until everything that was queued is done."""
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)

    def seconds(self, call: Callable[[], object], times: int) -> float:
        """Of the fastest of several calls."""
        taken = []
        for _ in range(times):
            self.wait()
            began = time.perf_counter()
            call()
            self.wait()
            taken.append(time.perf_counter() - began)
        return min(taken)

    def gemm_rate(self) -> float:
        """Operations a second of a large matrix product in bf16."""
        side = self.size(8192)
        a, b = (torch.randn(side, side, device=self.device, dtype=torch.bfloat16) for _ in range(2))
        return 2 * side**3 / self.seconds(lambda: a @ b, 10)

    def forget(self) -> None:
        """Give memory back before the next part."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)


def lengths_of(kind: str, tokens: int, longest: int) -> list[int]:
    """Lengths of so many tokens: drawn, or all as long as a row."""
    if kind == "rows of 4,096":
        return [longest] * max(1, tokens // longest)
    rng, found = np.random.default_rng(0), []
    while sum(found) < tokens:
        found.append(int(min(longest, np.interp(rng.random(), np.linspace(0, 1, len(PERCENTILES)), PERCENTILES))))
    return found


class Stepper:
    """A model with LoRA, which makes step after step; each is laid out while the one before is computed.

    Args:
        steps: the samples of each, taken round and round.
    """

    def __init__(self, bench: Bench, shape: str, steps: list[list[Weighted]], arrangement: str = "isolated") -> None:
        self.bench, self.steps = bench, cycle(steps)
        given = steps[0]
        self.model = bench.model(shape)
        row = max(bench.size(ROW_TOKENS), *(len(sequence) for sequence, _ in given))
        chunk = chunk_of(self.model.config.vocab_size, bench.device)
        self.laying = Laying(arrangement, row, 1, "grouped", chunk)  # pyright: ignore[reportArgumentType]
        self.step: StepInput = lay_out(given, self.laying, "weights")
        self.next = self.step
        method = Lora(method="lora", rank=16)
        self.attached = method.attach(self.model.train(), torch.Generator().manual_seed(0))
        kind = self.model.dtype
        self.optimizer = Optimizer(self.attached.parameters(), TrainSettings(), kind, (), self.attached)
        cast_parameters(self.model, kind)
        load = Load.of(self.model, [len(sequence) for sequence, _ in given], self.step.supervised_tokens, 1)
        self.flops_a_token = floor_of(method, self.attached, load).flops / load.tokens
        self.number = 0

    def _lay_next(self) -> None:
        self.next = lay_out(next(self.steps), self.laying, "weights")

    def __call__(self) -> int:
        """Make a step, and return its tokens."""
        self.number += 1
        step, own = self.next, (self.model, self.attached, self.optimizer)
        run_step(*own, step, self.laying, number=self.number, rate=1e-4, meanwhile=self._lay_next)
        return step.flat_tokens

    def idle(self) -> float:
        """Share of a step in which no kernel ran; on a CPU no operation."""
        is_cpu = self.bench.device.type == "cpu"
        with profile(activities=[ProfilerActivity.CPU] if is_cpu else [ProfilerActivity.CUDA]) as seen:
            began = time.perf_counter()
            self()
            self.bench.wait()
            seconds = time.perf_counter() - began
        events = [event for event in seen.key_averages() if is_cpu or event.device_type != DeviceType.CPU]
        own = "self_cpu_time_total" if is_cpu else "self_device_time_total"
        return 1 - sum(getattr(event, own) for event in events) / 1e6 / seconds


def training(bench: Bench, shape: str, kind: str, rate: float, count: int | None = None) -> dict[str, Any]:
    """Speed of frisket's steps, from the third on.

    Args:
        count: samples of a step; without it a step has 32,768 tokens.
    """
    row = bench.size(ROW_TOKENS)
    lengths = lengths_of(kind, TURNS * (bench.size(STEP_TOKENS) if count is None else count * row), row)
    size = len(lengths) // TURNS if count is None else count
    given = samples(lengths[: size * TURNS], TINY["vocab_size"])
    stepper = Stepper(bench, shape, [given[i : i + size] for i in range(0, len(given), size)])
    for _ in range(2):
        stepper()
    bench.wait()
    began = time.perf_counter()
    tokens = sum(stepper() for _ in range(TURNS))
    bench.wait()
    seconds = time.perf_counter() - began
    peak = peak_bytes(bench.device)
    return {
        "arm": "frisket",
        "tokens_a_second": round(tokens / seconds, 1),
        "mfu": round(stepper.flops_a_token * tokens / seconds / rate, 3),
        "idle": round(stepper.idle(), 3),
        "peak_gib": round(peak / 2**30, 2),
    }


def beside(bench: Bench, shape: str, kind: str, settings: dict[str, Any], name: str) -> dict[str, Any]:
    """Speed of TRL's trainer on such samples, eight a step as it has them by default, from its second step on."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer
    from transformers.trainer_callback import TrainerCallback
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    from frisket import bundled

    row = bench.size(ROW_TOKENS)
    given = samples(lengths_of(kind, 8 * TURNS * row, row)[: 8 * TURNS], TINY["vocab_size"])
    rows = [{"input_ids": s.input_ids.tolist(), "assistant_masks": w.astype(int).tolist()} for s, w in given]
    model = bench.model(shape)
    model.set_attn_implementation("sdpa")
    told: list[tuple[float, int]] = []

    class AtEachStep(TrainerCallback):
        def on_step_end(self, *given: Any, **others: Any) -> None:
            bench.wait()
            told.append((time.perf_counter(), trainer.state.num_input_tokens_seen))

    with tempfile.TemporaryDirectory() as out:
        config = SFTConfig(
            output_dir=out,
            use_cpu=bench.device.type == "cpu",
            max_length=None,
            max_steps=TURNS,
            include_num_input_tokens_seen="non_padding",
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            **settings,
        )
        trainer = SFTTrainer(
            model=model,
            args=config,
            train_dataset=Dataset.from_list(rows),
            processing_class=AutoTokenizer.from_pretrained(str(bundled.base_path())),
            peft_config=LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"),
            callbacks=[AtEachStep()],
        )
        trainer.train()
    (first, seen), (last, all_seen) = told[1], told[-1]
    peak = round(peak_bytes(bench.device) / 2**30, 2)
    return {"arm": name, "tokens_a_second": round((all_seen - seen) / (last - first), 1), "peak_gib": peak}


def forests(bench: Bench, shape: str) -> dict[str, Any]:
    """Conversations taught turn by turn, each a sample with all that came before: isolated beside a forest."""
    rng, given = np.random.default_rng(0), []
    while sum(len(sequence) for sequence, _ in given) < bench.size(STEP_TOKENS):
        whole = rng.integers(3, TINY["vocab_size"], bench.size(ROW_TOKENS // 2)).astype(np.int32)
        turns = range(len(whole) // 6, len(whole) + 1, max(1, len(whole) // 6))
        given += [sample(whole[:stop], len(given) + n) for n, stop in enumerate(turns)]
    seconds = {}
    for arrangement in ("isolated", "forest"):
        stepper = Stepper(bench, shape, [given], arrangement)
        stepper()
        seconds[arrangement] = bench.seconds(stepper, 3)
        shares = stepper.step.flat_tokens / stepper.step.computed_tokens
        del stepper
        bench.forget()
    return {
        "flat_over_computed": round(shares, 2),
        "times": round(seconds["isolated"] / seconds["forest"], 2),
        "seconds": {name: round(value, 4) for name, value in seconds.items()},
    }


def attention(bench: Bench) -> dict[str, float]:
    """Microseconds of one layer's attention, forward and backward, over a row of drawn lengths."""
    row = bench.size(ROW_TOKENS)
    given = [sequence for sequence, _ in samples(lengths_of("drawn", row, row // 2)[:-1], TINY["vocab_size"])]
    heads, few, width = (4, 2, 16) if bench.is_tiny else (32, 8, 128)
    found = {}
    for name, arrangement, backend in (
        ("dense mask", "isolated", "sdpa"),
        ("groups of samples", "isolated", "grouped"),
        ("no mask (mask-free)", "mask-free", "grouped"),
    ):
        (rows,) = pack(given, arrangement, row, 1)  # pyright: ignore[reportArgumentType]
        layout = prepare(rows, backend, bench.device)
        shape = (1, heads, rows.input_ids.shape[1], width)
        query, key, value = (
            torch.randn(1, n, *shape[2:], device=bench.device, dtype=torch.bfloat16, requires_grad=True)
            for n in (heads, few, few)
        )

        def both(layout=layout, inputs=(query, key, value)) -> None:
            layout.attend(*inputs, Knobs(inputs[0].shape[-1] ** -0.5)).sum().backward()

        both()
        found[name] = round(1e6 * bench.seconds(both, 10), 1)
    return found


PARTS: dict[str, float] = {"attention": 20, "Qwen3-0.6B": 60, "Llama-3.1-8B": 220, "forests": 60, "Qwen3-1.7B": 60}
"""Seconds that each takes at most, in the order in which they are run."""
KINDS = ("drawn lengths", "rows of 4,096")
BEST = {"gradient_checkpointing": False, "train_sampling_strategy": "group_by_length"}


def measured(bench: Bench, part: str, rate: float) -> Iterator[tuple[str, Any]]:
    """The results of a part, as they come."""
    if part == "attention":
        yield "attention", attention(bench)
    elif part == "forests":
        yield "forests", forests(bench, "Qwen3-0.6B")
    else:
        for kind in KINDS:
            yield f"{part}, {kind}, frisket", training(bench, part, kind, rate)
            bench.forget()
        yield f"{part}, {KINDS[0]}, frisket, 8 samples a step", training(bench, part, KINDS[0], rate, 8)
        bench.forget()
        for name, settings in (("TRL default", {}), ("TRL by length, nothing recomputed", BEST)):
            yield f"{part}, {KINDS[0]}, {name}", beside(bench, part, KINDS[0], settings, name)
            bench.forget()


def run(bench: Bench, parts: list[str], seconds: float, out: Path) -> dict[str, Any]:
    """All parts for which there is time; results are kept after each."""
    end = time.monotonic() + seconds
    rate = bench.gemm_rate()
    found: dict[str, Any] = {"gemm_tflops": round(rate / 1e12, 3), "parts": {}, "left_out": []}
    found["environment"] = environment(bench.device, torch.bfloat16, "")
    for part in parts:
        if time.monotonic() + PARTS[part] > end:
            found["left_out"].append(f"{part}: no time left")
            continue
        try:
            for name, each in measured(bench, part, rate):
                found["parts"][name] = each
                Console(stderr=True).print(name, each)
                write_json(out, found)
        except (RuntimeError, ImportError) as error:  # one that is out of memory must not cost the others
            found["left_out"].append(f"{part}: {type(error).__name__}: {str(error)[:200]}")
        bench.forget()
    write_json(out, found)
    return found


def show(found: dict[str, Any]) -> None:
    """The tables for a person."""
    table = Table("what", "tokens/s", "MFU", "idle", "peak GiB", title=found["environment"]["machine"])
    for name, each in found["parts"].items():
        if "tokens_a_second" in each:
            shares = (f"{each[key]:.1%}" if key in each else "" for key in ("mfu", "idle"))
            table.add_row(name, f"{each['tokens_a_second']:,.0f}", *shares, f"{each['peak_gib']:.2f}")
        else:
            Console().print(name, each)
    Console().print(
        table, f"fastest product {found['gemm_tflops']} TFLOP/s; left out: {found['left_out'] or 'nothing'}"
    )


def main() -> None:
    """Measure, keep, show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--seconds", type=float, default=540)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--tiny", action="store_true")
    given = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    show(run(Bench(device, given.tiny), given.only, given.seconds, given.out))


if __name__ == "__main__":
    main()
