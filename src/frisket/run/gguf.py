"""A GGUF file through llama.cpp's own converter where it is installed; otherwise the exact commands."""

import importlib.util
import os
import shlex
import shutil
import struct
import subprocess
import sys
from collections.abc import Sequence as Seq
from pathlib import Path
from typing import Any

import numpy as np
import torch

from frisket.errors import CheckError, ConfigError
from frisket.hf import load
from frisket.hf.heads import logits_of
from frisket.run.merging import BARS, Trained, merged_folder, real_rows, written
from frisket.watch import Watcher

CONVERTER = "convert_hf_to_gguf.py"
FOLDER = "LLAMA_CPP"  # environment variable: a llama.cpp source tree
SOURCE = "https://github.com/ggml-org/llama.cpp"
QUANTISED = "Q4_K_M"
NOT_MADE = 2  # exit code: the user can mend it
_HEADER = struct.Struct("<4sIQQ")  # magic, version, tensors, metadata entries (llama.cpp, docs/gguf.md)


def export_gguf(run: Trained, target: Path, watcher: Watcher) -> dict[str, Any]:
    """Convert the merged model, or say which commands do it.

    The merged model is taken from ``OUT/merged``, where it is made if it is not there. Without the converter it is all
    that is written; ``exit_code`` then says that the file is not there.

    Raises:
        ConfigError: the converter fails, or ``OUT/merged`` holds something else.
        CheckError: what it wrote is no GGUF file, or computes something else.
    """
    merged = merged_folder(run, watcher)
    converter = find_converter()
    if converter is None:
        if run.recipe.model.path == "bundled":
            watcher.warn(
                "llama.cpp's converter refuses the bundled base, whose tokenizer is not on its list: serve the merged "
                "model, or train on a published base"
            )
        return _left_to_do(merged, target / "model.gguf", watcher)
    with written(target) as partial:
        partial.mkdir(parents=True)
        file = partial / "model.gguf"
        convert(converter, merged, file, watcher)
        facts = check_file(file)
        facts |= _compare(run, merged, file, watcher)
    return {"gguf": str(target / "model.gguf"), **facts, "quantise": quantise_command(target / "model.gguf")}


def find_converter() -> list[str] | None:
    """The command that starts llama.cpp's converter, or None.

    Raises:
        ConfigError: the environment variable names a folder without it.
    """
    folder = os.environ.get(FOLDER)
    if folder:
        script = Path(folder).expanduser() / CONVERTER
        if not script.is_file():
            raise ConfigError(
                f"{FOLDER} = {folder}: there is no {CONVERTER} in that folder.\n"
                f"Name a llama.cpp source tree, or unset it: unset {FOLDER}"
            )
        return [sys.executable, str(script)]
    found = shutil.which(CONVERTER)
    return [found] if found else None


def convert(converter: Seq[str], merged: Path, file: Path, watcher: Watcher) -> None:
    """Run the converter.

    Raises:
        ConfigError: it ends with an error; its last line is shown.
    """
    words = [*converter, str(merged), "--outfile", str(file), "--outtype", "auto"]
    watcher.say(f"convert    {shlex.join(words)}")
    ended = subprocess.run(words, capture_output=True, text=True, check=False)
    if ended.returncode:
        said = (ended.stderr or ended.stdout).strip().splitlines()
        raise ConfigError(
            f"llama.cpp's converter does not take {merged}: {said[-1] if said else f'exit {ended.returncode}'}\n"
            "Serve the merged folder itself, or use a newer llama.cpp."
        )


def check_file(file: Path) -> dict[str, Any]:
    """Read the header of a GGUF file.

    Raises:
        CheckError: it is no such file, or holds no tensor.
    """
    head = b""
    if file.exists():
        with file.open("rb") as opened:
            head = opened.read(_HEADER.size)
    magic, version, tensors, _ = _HEADER.unpack(head.ljust(_HEADER.size, b"\0"))
    if magic != b"GGUF" or not tensors:
        raise CheckError(
            f"{file} is no GGUF file with tensors in it, although the converter ended without an error; nothing was "
            "kept.\nServe the merged folder itself: --to merged"
        )
    return {"version": version, "tensors": tensors, "bytes": file.stat().st_size}


def _compare(run: Trained, merged: Path, file: Path, watcher: Watcher) -> dict[str, Any]:
    """Logits of the file in llama.cpp against those of the merged model, where its Python binding is installed."""
    if importlib.util.find_spec("llama_cpp") is None:
        watcher.say("checked    header only: with `pip install llama-cpp-python` the logits are compared as well")
        return {"compared": False}
    settings = run.plain(merged)
    model = load.load_model(settings, torch.float32, load.device_of(settings.device)).eval()
    difference, scale, same, places = 0.0, 0.0, 0, 0
    for batch in real_rows(run.recipe, run.tokenizer):
        ours = logits_of(model, batch).float().cpu().numpy()
        theirs = logits_in_llama_cpp(file, batch.input_ids[0].tolist())
        difference = max(difference, float(np.abs(ours - theirs).max()))
        scale = max(scale, float(np.abs(ours).max()))
        same += int((ours.argmax(1) == theirs.argmax(1)).sum())
        places += len(ours)
    dtype = load.stored_dtype(settings, None)
    bar = BARS[torch.bfloat16 if dtype == torch.bfloat16 else torch.float16] * max(1.0, scale)
    if not difference <= bar:
        raise CheckError(
            f"in llama.cpp the GGUF file gives logits that differ by {difference:.2g} (allowed: {bar:.2g}); nothing "
            "was kept.\nServe the merged folder itself: --to merged"
        )
    watcher.say(
        f"checked    largest difference of a logit in llama.cpp: {difference:.2g} of {bar:.2g} allowed; the likeliest "
        f"token is the same at {same} of {places} places"
    )
    return {"compared": True, "difference": difference, "largest_logit": scale, "same_likeliest": same / places}


def logits_in_llama_cpp(file: Path, input_ids: Seq[int]) -> np.ndarray:
    """Logits of a GGUF file at every place, computed on the CPU by llama.cpp."""
    from llama_cpp import Llama  # pyright: ignore[reportMissingImports]

    model = Llama(str(file), n_ctx=len(input_ids) + 8, n_batch=len(input_ids), logits_all=True, verbose=False)
    try:
        model.eval(list(input_ids))
        return np.array(model.scores[: len(input_ids)])
    finally:
        model.close()


def convert_command(merged: Path, file: Path) -> str:
    """The command that converts, for a person who has llama.cpp elsewhere."""
    return f"python llama.cpp/{CONVERTER} {shlex.quote(str(merged))} --outfile {shlex.quote(str(file))} --outtype auto"


def quantise_command(file: Path) -> str:
    """The command that makes a GGUF file smaller."""
    small = file.with_name(f"{file.stem}-{QUANTISED}.gguf")
    return shlex.join(["llama-quantize", str(file), str(small), QUANTISED])


def _left_to_do(merged: Path, file: Path, watcher: Watcher) -> dict[str, Any]:
    """What was written without the converter, and the commands that make the file."""
    watcher.warn(
        f"no GGUF file was made: llama.cpp's {CONVERTER} is not installed here ({FOLDER} may name its folder). "
        f"The merged model lies in {merged}. These commands remain"
    )
    made = f"mkdir -p {shlex.quote(str(file.parent))} && {convert_command(merged, file)}"
    commands = [made, quantise_command(file)]
    if not Path("llama.cpp", CONVERTER).is_file():
        commands.insert(0, f"git clone --depth 1 {SOURCE}")
    return {"merged": str(merged), "commands": commands, "exit_code": NOT_MADE}
