"""`frisket export`: what a run made, in the form that a server reads, checked by loading it again."""

import shlex
import shutil
from pathlib import Path
from typing import Any

import torch

from frisket.adapt import methods
from frisket.errors import CheckError, UnsupportedError
from frisket.hf import load, tokens
from frisket.hf.heads import logits_of
from frisket.run import hub
from frisket.run.gguf import export_gguf
from frisket.run.merging import (
    BARS,
    Trained,
    largest_difference,
    merge,
    real_rows,
    refuse_full_target,
    trained,
    written,
)
from frisket.run.ollama import export_ollama
from frisket.run.serving import config_of, is_of_peft, serving_of
from frisket.run.system_message import system_of
from frisket.watch import Watcher


def export(folder: Path, *, to: str, into: Path | None, push: str | None = None, watcher: Watcher) -> dict[str, Any]:
    """Write a run's result for serving.

    Args:
        folder: run folder.
        to: ``merged`` (a plain model), ``peft`` (the adapter alone), ``gguf`` (llama.cpp) or ``ollama``.
        into: folder to write; default ``OUT/<to>``.
        push: repository on the Hugging Face Hub (``user/name``) to which the written folder, and nothing else, is sent.

    Raises:
        ConfigError: the folder holds no finished run, the target holds something, or nothing can be pushed.
        UnsupportedError: the run has no adapter, the adapter cannot be merged, or the template cannot be translated.
        CheckError: what was written is not what was trained; nothing is kept.
    """
    if push is not None:
        hub.refuse_to_push(push, to)
    target = into or folder / to
    if to != "merged":  # which may lie there, made for another format
        refuse_full_target(target)
    run = trained(folder)
    system = system_of(folder)
    if to == "merged":
        facts = merge(run, target, watcher)
        watcher.say(f'load       AutoModelForCausalLM.from_pretrained("{target}", dtype="auto"), and so its tokenizer')
    elif to == "peft":
        facts = _copy_adapter(run, target, watcher)
    elif to == "gguf":
        facts = export_gguf(run, target, watcher)
    else:
        facts = export_ollama(run, target, watcher)
    if system is not None and to != "ollama":  # whose Modelfile holds it
        watcher.say(f"system     {system.told()}")
    if push is not None:
        facts["pushed"] = hub.push(target, push, watcher)
    return facts


def _merged_of(run: Trained) -> str:
    return shlex.join(["frisket", "export", str(run.folder), "--to", "merged"])


def _copy_adapter(run: Trained, target: Path, watcher: Watcher) -> dict[str, Any]:
    """Copy the adapter's folder, put it on a fresh base, and compare with the run's own."""
    if run.is_full:
        raise UnsupportedError(
            f"{run.folder} holds no adapter: the model itself was fine-tuned.\nExport the model: {_merged_of(run)}"
        )
    if not is_of_peft(run.artifact):
        method = config_of(run.artifact)["method"]
        raise UnsupportedError(
            f"{run.folder} holds an adapter of {method}, which PEFT does not have.\nExport the model: {_merged_of(run)}"
        )
    rows = real_rows(run.recipe, run.tokenizer)
    with written(target) as partial:
        shutil.copytree(run.artifact, partial)
        run.tokenizer.save_pretrained(partial)
        found = []
        for adapter in (run.artifact, partial):
            model = run.base()
            methods.load_adapter(model, adapter)
            found.append([logits_of(model, batch) for batch in rows])
        difference, scale = largest_difference(*found), max(float(logits.abs().max()) for logits in found[0])
        if not difference <= BARS[torch.float32] * max(1.0, scale):
            raise CheckError(
                f"the copied adapter gives logits that differ by {difference:.2g}; nothing was kept.\n"
                f"Use {run.artifact} itself."
            )
        config = config_of(partial)
        (partial / "README.md").write_text(_card(run, config), encoding="utf-8")
    base = config["base_model_name_or_path"]
    if not hub.is_hub_id(base):
        watcher.warn(
            f"the adapter names its base by a folder of this machine ({base}): elsewhere, give that base there"
        )
    watcher.say(f"checked    on a fresh base the adapter gives the same logits (difference {difference:.2g})")
    watcher.say(f"load       as the lines in {target / 'README.md'} do")
    serving = serving_of(config, run.recipe.model.load)
    watcher.say(f"serve      {serving.line(load.resolve_path(run.recipe.model.path), run.folder)}")
    return {"peft": str(target), "difference": difference, "serving": serving.as_dict()}


def _card(run: Trained, config: dict[str, Any]) -> str:
    """How to load the adapter, as the Hugging Face Hub shows it."""
    base = config["base_model_name_or_path"]
    system = system_of(run.folder)
    asked = f"Asked as it was trained: {system.told()}\n\n" if system else ""
    named = f"base_model: {base}\n" if hub.is_hub_id(base) else ""  # the Hub refuses what is no id
    return (
        f"---\nlibrary_name: peft\n{named}tags: [frisket, {config['peft_type'].lower()}]\n---\n\n"
        f"An adapter for `{base}`, fine-tuned with frisket. The chat template is in the tokenizer's files.\n"
        f"{asked}`.` is this folder; on the Hub it is the repository's name.\n\n"
        f"```python\n{tokens.loading_lines(Path(), base, _grown_rows(run))}```\n"
    )


def _grown_rows(run: Trained) -> int | None:
    """Rows that the base's embedding must grow to for added tokens; None where it has room."""
    ids = run.tokenizer.convert_tokens_to_ids(list(run.recipe.model.add_tokens))
    rows = load.load_config(run.recipe.model).get_text_config().vocab_size
    return max(ids) + 1 if ids and max(ids) >= rows else None
