"""`frisket export`: fold the adapter into the base in fp32, write it in the base's type, load it again, compare."""

import os
import shutil
from pathlib import Path

import torch
from torch import Tensor

from frisket.adapt import peft
from frisket.attend.pack import pack
from frisket.data.chat import encode_many, load_template
from frisket.data.problem import Problem
from frisket.data.source import read_conversations
from frisket.errors import CheckError, ConfigError
from frisket.hf import load
from frisket.hf.heads import logits_of
from frisket.recipe import Recipe, load_recipe
from frisket.run.opening import dtype_name, refuse_full
from frisket.types import Rows
from frisket.watch import Watcher

REAL_ROWS = 4
# The merged weight is rounded once to the base's type; the bar is that rounding, in units of the largest logit.
BARS = {torch.float32: 1e-5, torch.float64: 1e-5, torch.bfloat16: 2**-4, torch.float16: 2**-7}


def export(folder: Path, *, to: str, into: Path | None, watcher: Watcher) -> dict:
    """Merge a run's adapter into its base.

    Args:
        folder: run folder.
        to: ``merged``.
        into: folder to write; default ``OUT/merged``.

    Raises:
        ConfigError: the target exists already.
        UnsupportedError: the run has no adapter.
        CheckError: what was written differs from base plus adapter by more than the type's rounding.
    """
    refuse_full(folder)
    target = into or folder / "merged"
    if target.exists() and any(target.iterdir()):
        raise ConfigError(f"--into {target} is not empty.\nGive another folder: --into {target}-2")
    recipe = load_recipe(folder)
    device = load.device_of(recipe.model.device)
    tokenizer = load.load_tokenizer(recipe.model)
    rows = real_rows(recipe, tokenizer)
    base_dtype = load.stored_dtype(recipe.model, None)
    watcher.say(f"merge      {folder / 'adapter'} into {recipe.model.path}, in float32")
    model = load.load_model(recipe.model, torch.float32, device).eval()
    attached = peft.load_adapter(model, folder / "adapter")
    apart = [logits_of(model, batch) for batch in rows]
    attached.merge()
    merged = [logits_of(model, batch) for batch in rows]
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    load.save_model(model, tokenizer, partial, base_dtype)
    again_model = load.load_model(
        recipe.model.model_copy(update={"path": str(partial), "tokenizer": None}), torch.float32, device
    ).eval()
    again = [logits_of(again_model, batch) for batch in rows]
    in_memory, written = _largest(apart, merged), _largest(apart, again)
    scale = max(float(logits.abs().max()) for logits in apart)
    bar = BARS[base_dtype] * max(1.0, scale)
    if in_memory > BARS[torch.float32] * max(1.0, scale) or written > bar:
        shutil.rmtree(partial)
        raise CheckError(
            f"the merged model differs from base + adapter by {in_memory:.2g} in fp32 and {written:.2g} as written "
            f"(allowed: {bar:.2g}); nothing was kept.\n"
            "Serve the adapter itself instead."
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(target, ignore_errors=True)
    os.replace(partial, target)
    watcher.say(
        f"checked    largest difference of a logit: {in_memory:.2g} merged in fp32, {written:.2g} as written in "
        f"{dtype_name(base_dtype)} (largest logit {scale:.3g})"
    )
    return {
        "merged": str(target),
        "dtype": dtype_name(base_dtype),
        "difference_fp32": in_memory,
        "difference_written": written,
        "largest_logit": scale,
    }


def real_rows(recipe: Recipe, tokenizer: object) -> list[Rows]:
    """A few of the run's own samples, or a plain sentence where its data is not there any more."""
    template = load_template(recipe.model.template, tokenizer)
    source = recipe.data[0].model_copy(update={"limit": REAL_ROWS}) if recipe.data else None
    try:
        conversations = read_conversations(source, 0).conversations if source else []
    except Exception:  # the data may be gone: any text will do for comparing logits
        conversations = []
    encoded = [e for e in encode_many(conversations, template, tokenizer) if not isinstance(e, Problem)]
    sequences = [e.sequence for e in encoded if len(e.sequence) <= 2048]
    if not sequences:
        from frisket.evaluate.text import plain_sequence

        sequences = [plain_sequence("plain", tokenizer("The quick brown fox jumps over the lazy dog.")["input_ids"])]  # pyright: ignore
    return pack(sequences, "alone", 1)


def _largest(a: list[Tensor], b: list[Tensor]) -> float:
    return max(float((x - y).abs().max()) for x, y in zip(a, b, strict=True))
