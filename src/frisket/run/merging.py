"""A run's result as one plain model: the adapter folded into its base in fp32, written, loaded again, compared."""

import hashlib
import os
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from frisket.adapt import methods
from frisket.attend.pack import pack
from frisket.data.chat import Template, encode_many, load_template
from frisket.data.problem import Problem
from frisket.data.source import read_conversations
from frisket.errors import CheckError, ConfigError
from frisket.evaluate.text import plain_sequence
from frisket.hf import load, quantised, tokens
from frisket.hf.forward import Model
from frisket.hf.heads import logits_of
from frisket.hf.settings import ModelSettings
from frisket.recipe import Recipe, load_recipe
from frisket.run.adding import stored_tokenizer
from frisket.run.folder import SUMMARY, follow_umask, read_json, refuse_unshipped, with_base, write_json
from frisket.run.opening import dtype_name
from frisket.types import Rows
from frisket.watch import Watcher

REAL_ROWS = 4
LONGEST = 2048
MADE_OF = "frisket.json"  # beside the model: of which bytes it was made, and what was measured then
# The merged weight is rounded once to the base's type; the bar is that rounding, in units of the largest logit.
BARS = {torch.float32: 1e-5, torch.float64: 1e-5, torch.bfloat16: 2**-4, torch.float16: 2**-7}


@dataclass(frozen=True)
class Trained:
    """What a finished run left: everything but the weights.

    Attributes:
        artifact: the adapter's folder or, after full fine-tuning, the model's.
        tokenizer: as saved with it, with the chat template that was trained on.
    """

    folder: Path
    recipe: Recipe
    artifact: Path
    tokenizer: Any
    template: Template

    @property
    def is_full(self) -> bool:
        """Whether the run made a whole model."""
        return self.artifact.name == "model"

    def plain(self, folder: Path) -> ModelSettings:
        """How a folder that stands for itself is loaded: its own tokenizer, nothing added, nothing quantised."""
        alone = {"path": str(folder), "revision": None, "tokenizer": None, "load": "none", "add_tokens": ()}
        return self.recipe.model.model_copy(update=alone)

    def base(self) -> Model:
        """The base model in float32, as the adapter was trained on it."""
        settings = self.recipe.model
        return load.load_model(settings, torch.float32, load.device_of(settings.device)).eval()


def trained(folder: Path) -> Trained:
    """Find what a run made.

    Raises:
        ConfigError: the folder holds no finished run.
    """
    if not (folder / SUMMARY).exists():
        raise ConfigError(f"{folder} holds no finished run (no {SUMMARY}).\nFinish it: frisket train {folder} --resume")
    refuse_unshipped(folder)
    recipe = with_base(load_recipe(folder), folder)
    artifact = folder / ("adapter" if (folder / "adapter").is_dir() else "model")
    tokenizer, template = stored_tokenizer(recipe, artifact)
    tokens.carry_template(tokenizer, template.text, template.variables)
    return Trained(folder, recipe, artifact, tokenizer, template)


def merge(run: Trained, target: Path, watcher: Watcher) -> dict[str, Any]:
    """Write base plus adapter as one model in the base's type; after full fine-tuning, copy the model.

    A folder that was made so of the same bytes is left as it is.

    Raises:
        ConfigError: the target holds something else.
        UnsupportedError: PEFT cannot merge this adapter.
        CheckError: what was written differs from what was trained by more than the type's rounding.
    """
    facts = _made_before(run, target)
    if facts is not None:
        watcher.say(f"merged     {target} is this run's already, and is left as it is")
    else:
        refuse_full_target(target)
        facts = _copy_model(run, target, watcher) if run.is_full else _merge(run, target, watcher)
        write_json(target / MADE_OF, {"made_of": _fingerprint(run.artifact), "facts": facts})
    return {"merged": str(target), **facts}


def merged_folder(run: Trained, watcher: Watcher) -> Path:
    """The merged model of a run, made now if need be; after full fine-tuning the model itself.

    Raises:
        ConfigError: something else lies where it belongs.
    """
    if run.is_full:
        return run.artifact
    merged = run.folder / "merged"
    if _made_before(run, merged) is None and merged.exists() and any(merged.iterdir()):
        raise ConfigError(
            f"{merged} holds no model that was made of {run.artifact}.\n"
            f"Move it away: {shlex.join(['mv', str(merged), f'{merged}-other'])}"
        )
    merge(run, merged, watcher)
    return merged


def _made_before(run: Trained, target: Path) -> dict[str, Any] | None:
    """What was measured when a folder was made of this run's bytes; None where it was not.

    Raises:
        ConfigError: it was, and files are gone since.
    """
    found = read_json(target / MADE_OF) if (target / MADE_OF).is_file() else {}
    if found.get("made_of") != _fingerprint(run.artifact):
        return None
    load.check_folder(str(target.resolve()))
    return found["facts"]


def _merge(run: Trained, target: Path, watcher: Watcher) -> dict[str, Any]:
    rows = real_rows(run.recipe, run.tokenizer)
    base_dtype = load.stored_dtype(run.recipe.model, None)
    if run.recipe.adapt.about.merges:  # else it is refused below
        watcher.say(f"merge      {run.artifact} into {run.recipe.model.path}, in float32")
    model = run.base()
    attached = methods.load_adapter(model, run.artifact)
    apart = [logits_of(model, batch) for batch in rows]
    if quantised.quantised_layers(model):
        watcher.say("dequantise the quantised base becomes a plain one first; compared is with what was trained")
        attached.detach()
        model = quantised.dequantised(model, torch.float32)
        attached = methods.load_adapter(model, run.artifact)
    attached.merge()
    merged = [logits_of(model, batch) for batch in rows]
    with written(target) as partial:
        load.save_model(model, run.tokenizer, partial, base_dtype)
        del model, attached
        again = _reloaded(run, partial, rows)
        facts = _compare(apart, merged, again, base_dtype)
    watcher.say(
        f"checked    largest difference of a logit: {facts['difference_fp32']:.2g} merged in fp32, "
        f"{facts['difference_written']:.2g} as written in {facts['dtype']} (largest logit {facts['largest_logit']:.3g})"
    )
    return facts


def _compare(apart: list[Tensor], merged: list[Tensor], again: list[Tensor], dtype: torch.dtype) -> dict[str, Any]:
    """The differences, or a refusal."""
    in_memory, as_written = largest_difference(apart, merged), largest_difference(apart, again)
    scale = max(float(logits.abs().max()) for logits in apart)
    bar = BARS[dtype] * max(1.0, scale)
    if not (in_memory <= BARS[torch.float32] * max(1.0, scale) and as_written <= bar):
        raise CheckError(
            f"the merged model differs from base + adapter by {in_memory:.2g} in fp32 and {as_written:.2g} as written "
            f"(allowed: {bar:.2g}); nothing was kept.\n"
            "Serve the adapter itself instead."
        )
    return {
        "dtype": dtype_name(dtype),
        "difference_fp32": in_memory,
        "difference_written": as_written,
        "largest_logit": scale,
    }


def _fingerprint(folder: Path) -> str:
    """Hash of all files of a folder."""
    whole = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            whole.update(f"{path.relative_to(folder)} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return whole.hexdigest()


def _copy_model(run: Trained, target: Path, watcher: Watcher) -> dict[str, Any]:
    """Nothing is to be merged after full fine-tuning: the model is copied, loaded and compared with the original."""
    rows = real_rows(run.recipe, run.tokenizer)
    watcher.say(f"merge      nothing to merge: the model itself was fine-tuned; {run.artifact} is copied")
    original = _reloaded(run, run.artifact, rows)
    with written(target) as partial:
        shutil.copytree(run.artifact, partial)
        run.tokenizer.save_pretrained(partial)
        difference = largest_difference(original, _reloaded(run, partial, rows))
        if difference != 0:
            raise CheckError(
                f"the copy of {run.artifact} differs by {difference:.2g} in a logit; nothing was kept.\n"
                f"Use {run.artifact} itself: it is a plain model folder."
            )
    watcher.say("checked    the copy gives the same logits, bit for bit")
    dtype = load.stored_dtype(run.plain(target), None)
    return {"dtype": dtype_name(dtype), "difference_written": difference}


def _reloaded(run: Trained, folder: Path, rows: list[Rows]) -> list[Tensor]:
    """Logits of a model folder."""
    settings = run.plain(folder)
    model = load.load_model(settings, torch.float32, load.device_of(settings.device)).eval()
    return [logits_of(model, batch) for batch in rows]


@contextmanager
def written(target: Path) -> Iterator[Path]:
    """A folder beside ``target`` that takes its name at the end, or vanishes where something fails.

    Raises:
        ConfigError: the target holds something.
    """
    refuse_full_target(target)
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield partial
        follow_umask(partial)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def refuse_full_target(target: Path) -> None:
    """Refuse to write over anything.

    Raises:
        ConfigError: the target holds something.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"--into {target} is not empty.\nGive another folder: --into {target}-2")


def real_rows(recipe: Recipe, tokenizer: object) -> list[Rows]:
    """A few of the run's own samples, or a plain sentence where its data is not there any more."""
    template = load_template(recipe.model.template, tokenizer)
    source = recipe.data[0].model_copy(update={"limit": REAL_ROWS}) if recipe.data else None
    try:
        conversations = read_conversations(source, 0).conversations if source else []
    except Exception:  # the data may be gone: any text will do for comparing logits
        conversations = []
    encoded = [e for e in encode_many(conversations, template, tokenizer) if not isinstance(e, Problem)]
    sequences = [e.sequence for e in encoded if len(e.sequence) <= LONGEST]
    if not sequences:
        sequences = [plain_sequence("plain", tokenizer("The quick brown fox jumps over the lazy dog.")["input_ids"])]  # pyright: ignore
    return pack(sequences, "alone", 1)


def largest_difference(a: list[Tensor], b: list[Tensor]) -> float:
    """Largest difference of a logit over several batches."""
    return max(float((x - y).abs().max()) for x, y in zip(a, b, strict=True))
