"""Train the base model: python -m lab.base.train. Stopped and started again, it goes on where it was.

One process a core, each with one thread, that add up their gradients once a step: nothing waits for
a thread in between, so other work on the machine costs its share of the time and no more.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, multiprocessing
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from . import corpus, model, stream, tokenizer, world

SEED = 7
OUT = Path("src/frisket/bundled/base")
WORK = Path("lab/base/work")
LOG = Path(__file__).with_name("training.json")
# (rows, tokens a row) of a micro-batch, and of every fourth step's; both hold as many tokens.
SHAPE, LONG_SHAPE, LONG_EVERY = (8, 256), (4, 512), 4
MICRO_TOKENS = SHAPE[0] * SHAPE[1]
MICRO_BATCHES = 6
STEP_TOKENS = MICRO_BATCHES * MICRO_TOKENS
MATRIX_RATE = 6e-3
VECTOR_RATE = 3e-3
# Steps of each lesson, and the steps it was prepared for: the first three were left early.
LESSON_STEPS = ((1000, 1300), (200, 600), (200, 400), (200, 200))
STEPS = sum(steps for steps, _ in LESSON_STEPS)
# The rate as a share of its peak: linear between these steps.
RATE_STEPS = (0, 99, 100, 1000, 1030, 1400, STEPS)
RATE_SHARES = (0.01, 1.0, 1.0, 0.25, 0.5, 0.5, 0.0)
WEIGHT_DECAY = 0.1
SAVE_EVERY = 200
LOG_EVERY = 20


@dataclass
class State:
    """All that a run needs to go on.

    Attributes:
        net: The model, float32.
        optimizers: Muon for the matrices of the layers, AdamW for embeddings and norms.
        step: Optimizer steps done.
        seconds: Seconds spent on them.
        log: One entry for every ``LOG_EVERY`` steps.
    """

    net: LlamaForCausalLM
    optimizers: list[torch.optim.Optimizer]
    step: int = 0
    seconds: float = 0.0
    log: list[dict[str, float]] = field(default_factory=list)


def _optimizers(net: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    matrices = [weight for weight in net.model.layers.parameters() if weight.ndim == 2]
    known = {id(weight) for weight in matrices}
    others = [weight for weight in net.parameters() if id(weight) not in known]
    return [
        torch.optim.Muon(matrices, lr=MATRIX_RATE, weight_decay=WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=VECTOR_RATE, betas=(0.9, 0.95), weight_decay=WEIGHT_DECAY, fused=True),
    ]


def _micro_batches(tokens: np.ndarray, step: int, rank: int, ranks: int) -> Iterator[Tensor]:
    """Cut this rank's part of the step's tokens into rows; a row's last target is the token after it."""
    rows, length = LONG_SHAPE if step % LONG_EVERY == LONG_EVERY - 1 else SHAPE
    for number in range(rank, MICRO_BATCHES, ranks):
        starts = step * STEP_TOKENS + number * MICRO_TOKENS + np.arange(rows) * length
        yield torch.from_numpy(np.stack([tokens[start : start + length + 1] for start in starts]).astype(np.int64))


def _loss_function(net: LlamaForCausalLM, *, compiled: bool) -> Callable[[Tensor], Tensor]:
    def loss(rows: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = net.lm_head(net.model(rows[:, :-1], use_cache=False).last_hidden_state)
        return F.cross_entropy(logits.flatten(0, 1).float(), rows[:, 1:].flatten(), reduction="sum") / STEP_TOKENS

    return torch.compile(loss, dynamic=False) if compiled else loss


def _save(state: State, path: Path) -> None:
    content = {
        "net": state.net.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in state.optimizers],
        "step": state.step,
        "seconds": state.seconds,
        "log": state.log,
    }
    torch.save(content, path.with_suffix(".part"))
    path.with_suffix(".part").replace(path)


def _load(state: State, path: Path) -> None:
    content = torch.load(path, weights_only=True)
    state.net.load_state_dict(content["net"])
    for optimizer, saved in zip(state.optimizers, content["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    state.step, state.seconds, state.log = content["step"], content["seconds"], content["log"]


def _add_up(net: LlamaForCausalLM, loss: float) -> float:
    """Add up the gradients and the loss of all ranks."""
    grads = [weight.grad for weight in net.parameters() if weight.grad is not None]
    flat = torch.cat([*(grad.flatten() for grad in grads), torch.tensor([loss])])
    dist.all_reduce(flat)
    for grad, part in zip(grads, flat[:-1].split([grad.numel() for grad in grads]), strict=True):
        grad.copy_(part.view_as(grad))
    return flat[-1].item()


def _take_step(state: State, tokens: np.ndarray, loss: Callable[[Tensor], Tensor]) -> float:
    """Make one optimizer step and return its mean loss in nats per token."""
    total = 0.0
    for rows in _micro_batches(tokens, state.step, dist.get_rank(), dist.get_world_size()):
        value = loss(rows)
        value.backward()
        total += value.item()
    total = _add_up(state.net, total)
    torch.nn.utils.clip_grad_norm_(state.net.parameters(), 1.0)
    share = float(np.interp(state.step, RATE_STEPS, RATE_SHARES))
    for optimizer, rate in zip(state.optimizers, (MATRIX_RATE, VECTOR_RATE), strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate * share
        optimizer.step()
        optimizer.zero_grad()
    state.step += 1
    return total


def _prepare(work: Path) -> tuple[PreTrainedTokenizerFast, np.ndarray]:
    """Build the tokenizer and the stream of all lessons, or read those of an earlier start."""
    folder, path = work / "tokenizer", work / "stream.npy"
    if path.exists():
        return PreTrainedTokenizerFast.from_pretrained(folder), np.load(path, mmap_mode="r")
    work.mkdir(parents=True, exist_ok=True)
    built = tokenizer.build(SEED, model.CONTEXT)
    built.save_pretrained(folder)
    parts = []
    for number, (lesson, (steps, prepared)) in enumerate(zip(world.LESSONS, LESSON_STEPS, strict=True)):
        tokens = stream.build(built, lesson, prepared * STEP_TOKENS + 1, SEED + number)
        parts.append(tokens[: steps * STEP_TOKENS])
    parts.append(tokens[-1:])
    tokens = np.concatenate(parts)
    np.save(path, tokens)
    return built, tokens


def _progress(state: State, loss: float) -> str:
    recent = state.log[-2] if len(state.log) > 1 else {"step": 0, "seconds": 0.0}
    rate = (state.step - recent["step"]) * STEP_TOKENS / (state.seconds - recent["seconds"])
    left = (STEPS - state.step) * STEP_TOKENS / rate / 60
    return f"step {state.step}/{STEPS}  loss {loss:.3f}  {rate:,.0f} tokens/s  {left:.1f} min left"


def _train(state: State, tokens: np.ndarray, loss: Callable[[Tensor], Tensor], checkpoint: Path) -> None:
    losses: list[float] = []
    first = dist.get_rank() == 0
    while state.step < STEPS:
        start = time.perf_counter()
        losses.append(_take_step(state, tokens, loss))
        state.seconds += time.perf_counter() - start
        if first and (state.step % LOG_EVERY == 0 or state.step == STEPS):
            mean, losses = sum(losses) / len(losses), []
            state.log.append({"step": state.step, "loss": round(mean, 4), "seconds": round(state.seconds, 1)})
            print(_progress(state, mean), flush=True)
        if first and (state.step % SAVE_EVERY == 0 or state.step == STEPS):
            _save(state, checkpoint)


def _write_log(state: State, options: argparse.Namespace) -> None:
    record = {
        "python": corpus.python_version(),
        "torch": torch.__version__,
        "seed": SEED,
        "steps": STEPS,
        "lesson_steps": [steps for steps, _ in LESSON_STEPS],
        "tokens": STEPS * STEP_TOKENS,
        "cores": options.cores,
        "minutes": round(state.seconds / 60, 1),
        "tokens_per_second": round(STEPS * STEP_TOKENS / state.seconds),
        "loss": state.log,
    }
    LOG.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _work(rank: int, options: argparse.Namespace) -> None:
    """Train as one of the processes; the first one writes."""
    torch.set_num_threads(1)
    meeting = (options.work / "meeting").resolve().as_uri()
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=options.cores)
    built, tokens = _prepare(options.work)
    net = model.create(built, SEED)
    state = State(net, _optimizers(net))
    checkpoint = options.work / "checkpoint.pt"
    if checkpoint.exists():
        _load(state, checkpoint)
    _train(state, tokens, _loss_function(net, compiled=not options.no_compile), checkpoint)
    if rank == 0:
        model.export(net, built, options.out)
        _write_log(state, options)
    dist.destroy_process_group()


def main() -> None:
    """Train, export, and write the log of the loss."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cores", type=int, default=2, choices=(1, 2, 3, 6))
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--work", type=Path, default=WORK, help="tokenizer, stream and checkpoint, to go on from")
    parser.add_argument("--no-compile", action="store_true", help="where there is no C++ compiler; slower")
    options = parser.parse_args()
    begun = time.perf_counter()
    _, tokens = _prepare(options.work)
    print(f"{len(tokens):,} tokens ready after {time.perf_counter() - begun:.0f} s", flush=True)
    (options.work / "meeting").unlink(missing_ok=True)
    multiprocessing.spawn(_work, args=(options,), nprocs=options.cores)


if __name__ == "__main__":
    main()
