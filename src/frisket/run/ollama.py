"""A Modelfile for Ollama: weights, the chat template in Ollama's language, the tokens that end an answer."""

import json
import os
import shlex
from pathlib import Path
from typing import Any

from frisket.data.chat import encode
from frisket.data.tokens import codec_of
from frisket.errors import UnsupportedError
from frisket.hf import load
from frisket.run.gguf import check_file, convert, find_converter
from frisket.run.go_template import go_template, trims
from frisket.run.merging import Trained, merged_folder, written
from frisket.run.serving import config_of, serving_of
from frisket.run.system_message import system_of
from frisket.types import Conversation, Message, Provenance
from frisket.watch import Watcher

# Families whose safetensors folders `ollama create` takes without a GGUF file (docs.ollama.com/import, read in 2026).
IMPORTED = ("Llama", "Mistral", "Mixtral", "Gemma", "Phi3", "Qwen2", "Qwen3", "Cohere")


def export_ollama(run: Trained, target: Path, watcher: Watcher) -> dict[str, Any]:
    """Write a Modelfile, beside a GGUF file where llama.cpp's converter is installed.

    Raises:
        UnsupportedError: the chat template cannot be written in Ollama's language.
        ConfigError: the converter fails.
    """
    template = ollama_template(run)  # before the merge: it is the part that may be refused
    merged = merged_folder(run, watcher)
    converter = find_converter()
    with written(target) as partial:
        partial.mkdir(parents=True)
        if converter is None:
            weights = os.path.relpath(merged, target) if merged.is_relative_to(target.parent) else str(merged.resolve())
            _say_family(run, watcher)
        else:
            convert(converter, merged, partial / "model.gguf", watcher)
            check_file(partial / "model.gguf")
            weights = "./model.gguf"
        stops = stop_words(run)
        beside = target.resolve().is_relative_to(run.folder.resolve())
        adapter = os.path.relpath(run.artifact, target) if beside else f"./{run.artifact.name}"
        text = modelfile(run, weights, adapter, template, stops) + _system_lines(run, template, watcher)
        (partial / "Modelfile").write_text(text, encoding="utf-8")
    command = shlex.join(["ollama", "create", run.folder.name, "-f", str(target / "Modelfile")])
    watcher.say("checked    the template renders 5 conversations exactly as they were in training")
    return {"ollama": str(target / "Modelfile"), "from": weights, "stop": stops, "create": command}


def ollama_template(run: Trained) -> str:
    """The run's chat template in Go's template language, for ``TEMPLATE``.

    Raises:
        UnsupportedError: it cannot be written so.
    """
    codec = codec_of(run.tokenizer)
    begin = str(run.tokenizer.bos_token) if codec.adds_bos else ""
    text = go_template(run.template, begin).text()
    if '"""' in text:
        raise UnsupportedError(
            f"template '{run.template.name}' holds three quotation marks, which end a text in a Modelfile.\n"
            "Serve the GGUF file with llama.cpp, which runs the template itself: --to gguf"
        )
    return text


def modelfile(run: Trained, weights: str, adapter: str, template: str, stops: list[str]) -> str:
    """The text of the Modelfile; it may be sent to the Hub, so the adapter's path is a relative one."""
    lines = [f"# {run.folder.name}: made by frisket export. Tools, reasoning and images are not in the template."]
    if trims(run.template):
        lines.append("# The chat template strips white space around contents; Ollama does not.")
    lines.append(f"FROM {weights}")
    if not run.is_full and not serving_of(config_of(run.artifact)).needs_merge:
        lines.append("# Without a merge: FROM the same base, not quantised, as Ollama's library names it, and")
        lines.append(f"# ADAPTER {adapter}")  # from the Modelfile's own folder
    lines.append(f'TEMPLATE """{template}"""')
    lines += [f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}" for stop in stops]
    return "\n".join(lines) + "\n"


def _system_lines(run: Trained, template: str, watcher: Watcher) -> str:
    """The system message that the training samples share, for ``SYSTEM``; empty where there is none to write."""
    system = system_of(run.folder)
    if system is None:
        return ""
    if '"""' in system.text or system.text.endswith('"') or "$.System" not in template:
        watcher.warn(f"a Modelfile cannot hold this run's system message: {system.told()}")
        return ""
    watcher.say(f"system     the Modelfile sends it: {json.dumps(system.text, ensure_ascii=False)}")
    part = "" if system.is_everywhere else f"# {system.samples:,} of {system.of:,} training samples have it.\n"
    return f'{part}SYSTEM """{system.text}"""\n'


def stop_words(run: Trained) -> list[str]:
    """The tokens that end an answer, as text: the template's end of turn and the tokenizer's end token."""
    conversation = Conversation("turn", 0, "turn", 1, (Message("user", "a"), Message("assistant", "b")))
    sequence = encode(conversation, run.template, run.tokenizer).sequence
    ids = {int(i) for i in sequence.input_ids[sequence.roles == Provenance.END_OF_TURN]}
    if run.tokenizer.eos_token_id is not None:
        ids.add(int(run.tokenizer.eos_token_id))
    return run.tokenizer.convert_ids_to_tokens(sorted(ids))


def _say_family(run: Trained, watcher: Watcher) -> None:
    """Whether Ollama imports the merged folder as it is."""
    classes = load.load_config(run.recipe.model).architectures or ["unknown"]
    if classes[0].startswith(IMPORTED):
        return
    watcher.warn(
        f"Ollama is not known to import {classes[0]} from safetensors; make a GGUF file of it first: --to gguf"
    )
