"""TRL's ``SFTTrainer`` in each of its ways to lay samples out, on the tokens and targets that frisket trains on."""

import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.speed.case import Case, Tokens
from benchmarks.speed.frisket_arm import CHECKED
from benchmarks.speed.turns import Turns

DEFAULT: dict[str, Any] = {}
"""``SFTConfig(use_cpu=True, max_length=None)`` and nothing else: it computes in bf16 and recomputes activations."""
PADDED = {"gradient_checkpointing": False}
SETTINGS: dict[str, dict[str, Any]] = {
    "TRL default": DEFAULT,
    "TRL padded, fp32": {**PADDED, "bf16": False},
    "TRL padded, bf16": PADDED,
    "TRL by length, fp32": {**PADDED, "bf16": False, "train_sampling_strategy": "group_by_length"},
    "TRL by length, bf16": {**PADDED, "train_sampling_strategy": "group_by_length"},
    "TRL padding-free, bf16": {**PADDED, "padding_free": True},
    "TRL packed, fp32": {**PADDED, "bf16": False, "packing": True},
    "TRL packed, bf16": {**PADDED, "packing": True},
}
ROWS = 2048  # of a packed row, one row a step


def run(work: Path, turns: Turns, settings: dict[str, Any]) -> None:
    """Train until the parent has seen enough."""
    import torch
    import trl  # noqa: F401  its memory is not training's
    from transformers.trainer_callback import TrainerCallback

    torch.set_num_threads(2)
    turns.imported()
    case, tokens = Case.read(work), Tokens.read(work)
    with tempfile.TemporaryDirectory() as out:
        trainer = trainer_of(case, work, tokens, settings, out)
        counted = Counted(trainer.data_collator)
        trainer.data_collator = counted

        class AtEachStep(TrainerCallback):
            def on_step_end(self, *given: Any, **others: Any) -> None:
                turns.step(*counted.taken())

        trainer.add_callback(AtEachStep())
        turns.ready()
        trainer.train()


class Counted:
    """A collator that remembers how many real tokens and targets each of its batches held, in order."""

    def __init__(self, collator: Callable[[list], dict[str, Any]]) -> None:
        self._collator = collator
        self._made: list[tuple[int, int]] = []

    def __call__(self, samples: list) -> dict[str, Any]:
        """Collate, and count."""
        batch = self._collator(samples)
        self._made.append(counts_of(batch))
        return batch

    def taken(self) -> tuple[int, int]:
        """Tokens and targets of the oldest batch; the loader makes one batch ahead."""
        return self._made.pop(0)


def counts_of(batch: dict[str, Any]) -> tuple[int, int]:
    """Real tokens and targets of a batch; without a mask nothing is padded."""
    mask = batch.get("attention_mask")
    real = batch["input_ids"].numel() if mask is None else int(mask.sum())
    return real, int((batch["labels"] != -100).sum())


def trainer_of(case: Case, work: Path, tokens: Tokens, settings: dict[str, Any], out: str) -> Any:
    """An ``SFTTrainer`` on the case's model."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    rows = [
        {"input_ids": ids, "assistant_masks": is_taught}
        for ids, is_taught in zip(tokens.ids, tokens.is_taught, strict=True)
    ]
    batch = 1 if settings.get("packing") else case.batch
    config = SFTConfig(
        output_dir=out,
        use_cpu=True,
        max_length=ROWS if settings.get("packing") else None,
        per_device_train_batch_size=batch,
        num_train_epochs=1000,
        learning_rate=case.rate,
        lr_scheduler_type="constant",
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        **settings,
    )
    return SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(str(work / "model")),
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(str(work / "model")),
        peft_config=case.lora(),
    )


def check(work: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """All tokens, and the mean loss over the targets of the first samples, through the trainer's loader and loss."""
    import torch

    case, tokens = Case.read(work), Tokens.read(work)
    with tempfile.TemporaryDirectory() as out, torch.no_grad():
        trainer = trainer_of(case, work, tokens.first(CHECKED), settings, out)
        model = trainer.accelerator.prepare_model(trainer.model.eval(), evaluation_mode=True)  # with its autocast
        losses = [
            (float(trainer.compute_loss(model, dict(batch))), counts_of(batch)[1])
            for batch in trainer.get_train_dataloader()
        ]
    return {"digest": tokens.digest(), "loss": mean_over_targets(losses)}


def mean_over_targets(batches: Iterable[tuple[float, int]]) -> float:
    """Of pairs of a batch's mean loss and its targets."""
    found = list(batches)
    return sum(loss * targets for loss, targets in found) / sum(targets for _, targets in found)


ARMS = {
    name: (partial(check, settings=settings), partial(run, settings=settings)) for name, settings in SETTINGS.items()
}
