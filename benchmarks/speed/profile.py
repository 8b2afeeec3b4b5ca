"""Where the time of frisket's step goes: ``python -m benchmarks.speed FOLDER --profile``.

Operations are sorted by what they are and by their shapes: a product with a side of the vocabulary is the head's, one
with a side of the adapter's rank the adapter's. `reading` is taking samples out of the store and weighing them,
`packing` laying them out; `waiting` is time in which no operation ran: Python and the launch of operations.
"""

import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.speed.case import Case
from benchmarks.speed.frisket_arm import recipe_of
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig

import frisket
from frisket.run.prepare import Prepared
from frisket.train import loop

WARM, STEPS = 6, 8
PRODUCTS = {"aten::mm", "aten::addmm", "aten::addmm_", "aten::linear", "aten::mkldnn_linear", "aten::matmul"}
ATTENTION = {
    "aten::bmm",
    "aten::baddbmm",
    "aten::_softmax",
    "aten::_softmax_backward_data",
    "aten::index_select",
    "aten::index_add_",
    "aten::masked_fill_",
    "aten::masked_fill",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::_scaled_dot_product_flash_attention_for_cpu_backward",
}


def kind_of(name: str, shapes: Iterable[Any], vocabulary: int, rank: int) -> str:
    """Which part of a step an operation belongs to."""
    sides = {side for shape in shapes for side in (shape if isinstance(shape, list | tuple) else ())}
    if "adam" in name or "_foreach" in name or "linalg" in name:
        return "optimizer"
    if vocabulary in sides:
        return "head"
    if name in PRODUCTS:
        return "adapter" if rank in sides else "linear"
    return "attention" if name in ATTENTION else "other"


def measure(case: Case, work: Path) -> dict[str, float]:
    """Seconds of each part, in the mean of a few steps; printed with the largest of the other operations."""
    host: Counter[str] = Counter()
    own_weighted, own_lay_out = Prepared.weighted, loop.lay_out

    def timed(name: str, call: Any) -> Any:
        def run(*given: Any, **named: Any) -> Any:
            begun = time.perf_counter()
            try:
                return call(*given, **named)
            finally:
                host[name] += time.perf_counter() - begun

        return run

    profiler = profile(activities=[ProfilerActivity.CPU], record_shapes=True)
    clock = [0.0, 0.0]

    def on_step(record: Any) -> None:
        if record.step == WARM:
            host.clear()
            profiler.start()
            clock[0] = time.perf_counter()
        if record.step == WARM + STEPS:
            clock[1] = time.perf_counter()
            profiler.stop()
            raise StopIteration

    Prepared.weighted, loop.lay_out = timed("reading", own_weighted), timed("packing", own_lay_out)
    try:
        with tempfile.TemporaryDirectory() as out:
            frisket.finetune(recipe_of(case, work, "bf16"), out=Path(out) / "run", on_step=on_step)
    except StopIteration:
        pass
    finally:
        Prepared.weighted, loop.lay_out = own_weighted, own_lay_out
    return _told(profiler, host, clock[1] - clock[0], case, work)


def _told(profiler: Any, host: Counter[str], wall: float, case: Case, work: Path) -> dict[str, float]:
    vocabulary = AutoConfig.from_pretrained(str(work / "model")).vocab_size
    parts: Counter[str] = Counter()
    others: Counter[str] = Counter()
    for event in profiler.key_averages(group_by_input_shape=True):
        seconds = event.self_cpu_time_total / 1e6
        kind = kind_of(event.key, event.input_shapes or (), vocabulary, case.rank)
        parts[kind] += seconds
        if kind in ("other", "attention"):
            others[f"{kind}: {event.key}"] += seconds
    found = {**parts, **host, "waiting": wall - sum(parts.values()) - sum(host.values())}
    table = Table("part", "ms a step", "share", title=f"frisket, bf16, {case.shape}, {case.targets}")
    for name, seconds in sorted(found.items(), key=lambda item: -item[1]):
        table.add_row(name, f"{1e3 * seconds / STEPS:.1f}", f"{seconds / wall:.1%}")
    table.add_row("in all", f"{1e3 * wall / STEPS:.1f}", "")
    for name, seconds in others.most_common(25):
        table.add_row(f"  {name}", f"{1e3 * seconds / STEPS:.1f}", f"{seconds / wall:.1%}")
    Console().print(table)
    return {name: seconds / STEPS for name, seconds in found.items()}
