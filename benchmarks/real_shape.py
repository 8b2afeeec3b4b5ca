"""Three LoRA steps on a Qwen3-0.6B shape with its real vocabulary: frisket beside plain transformers + PEFT.

    make real-shape

Random weights, random tokens, the same in both; each side in a process of its own, so that peak memory is its own.
Losses must agree to 1e-3 in bf16. Results go to benchmarks/results/real-shape.json.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

SHAPE = {
    "vocab_size": 151936,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
}
STEPS, SAMPLES, RATE, RANK, SEED = 3, 6, 2e-4, 16, 0


def samples() -> list[dict]:
    """Ready-made tokens: the first half of each is a prompt."""
    rng = np.random.default_rng(SEED)
    made = []
    for length in rng.integers(150, 400, SAMPLES):
        ids = rng.integers(0, SHAPE["vocab_size"], int(length)).tolist()
        made.append({"input_ids": ids, "labels": [-100] * (len(ids) // 2) + ids[len(ids) // 2 :]})
    return made


def random_model(attention: str) -> torch.nn.Module:
    """The shape with random weights in bf16."""
    from transformers import AutoModelForCausalLM, Qwen3Config

    torch.manual_seed(SEED)
    torch.set_default_dtype(torch.bfloat16)
    model = AutoModelForCausalLM.from_config(Qwen3Config(**SHAPE), attn_implementation=attention)
    torch.set_default_dtype(torch.float32)
    return model


def with_frisket() -> list[dict]:
    """All steps through frisket.finetune."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    import frisket

    backend = Tokenizer(models.WordLevel({"<unk>": 0, "<end>": 1}, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>", unk_token="<unk>")
    steps: list[dict] = []
    recipe = {
        "train": {
            "max_steps": STEPS,
            "step_tokens": 100_000,
            "learning_rate": RATE,
            "schedule": "constant",
            "warmup": 0,
            "clip": 0,
            "compute": "bf16",
            "save_every": 0,
            "recompute": "none",
        },
        "adapt": {"rank": RANK, "alpha": RANK},
        "evaluate": "off",
        "attend": {"row_tokens": 2048},
    }
    with tempfile.TemporaryDirectory() as out:
        frisket.finetune(
            recipe,
            out=Path(out) / "run",
            model=random_model("sdpa"),
            tokenizer=tokenizer,
            data=samples(),
            on_step=lambda r: steps.append({"loss": r.loss, "seconds": r.seconds, "norm": r.gradient_norm}),
        )
    return steps


def with_plain() -> list[dict]:
    """The same steps by hand: one padded batch, the mean over supervised tokens."""
    from peft import LoraConfig, get_peft_model

    rng = torch.Generator().manual_seed(SEED)
    model = random_model("sdpa")
    torch.manual_seed(int(torch.randint(0, 2**62, (1,), generator=rng)))
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=RANK, target_modules=targets, task_type="CAUSAL_LM"))
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=RATE, weight_decay=0.0, fused=True
    )
    rows = samples()
    width = max(len(row["input_ids"]) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    labels = torch.full_like(ids, -100)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row["input_ids"])] = torch.tensor(row["input_ids"])
        labels[i, : len(row["labels"])] = torch.tensor(row["labels"])
        mask[i, : len(row["input_ids"])] = 1
    steps = []
    for _ in range(STEPS):
        started = time.perf_counter()
        loss = model(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        steps.append({"loss": float(loss), "seconds": time.perf_counter() - started})
    return steps


def measured(side: str) -> dict:
    """Run one side in its own process."""
    told = subprocess.run([sys.executable, __file__, "--side", side], capture_output=True, text=True, check=False)
    if told.returncode:
        sys.exit(told.stderr)
    return json.loads(told.stdout.splitlines()[-1])


def main() -> None:
    """Measure both sides, or be one of them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--side", choices=("frisket", "plain"))
    side = parser.parse_args().side
    if side:
        steps = with_frisket() if side == "frisket" else with_plain()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(json.dumps({"steps": steps, "peak_gib": round(peak, 2)}))
        return
    from frisket.run.folder import environment

    told = {name: measured(name) for name in ("plain", "frisket")}
    difference = max(
        abs(a["loss"] - b["loss"]) / b["loss"]
        for a, b in zip(told["frisket"]["steps"], told["plain"]["steps"], strict=True)
    )
    seconds = {name: statistics.median(step["seconds"] for step in entry["steps"][1:]) for name, entry in told.items()}
    result = {
        "environment": environment(torch.device("cpu"), torch.bfloat16, ""),
        "tokens": sum(len(s["input_ids"]) for s in samples()),
        **told,
        "largest_relative_difference_of_loss": difference,
        "seconds_per_step": seconds,
    }
    Path("benchmarks/results").mkdir(exist_ok=True)
    Path("benchmarks/results/real-shape.json").write_text(json.dumps(result, indent=1) + "\n")
    print(f"{'':10}{'s/step':>10}{'peak GiB':>10}   losses")
    for name, entry in told.items():
        print(
            f"{name:10}{seconds[name]:10.2f}{entry['peak_gib']:10.2f}   {[round(s['loss'], 4) for s in entry['steps']]}"
        )
    print(f"largest relative difference of a loss: {difference:.1e}")
    if difference > 1e-3:
        sys.exit("the losses differ by more than 1e-3")


if __name__ == "__main__":
    main()
