"""The run folder: who may write to it, what a resumed run finds there, what every run leaves there."""

import hashlib
import json
import os
import platform
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from frisket import __version__
from frisket.errors import ConfigError
from frisket.hf.load import versions
from frisket.recipe import RECIPE_FILE, Recipe, dump
from frisket.run.rates import kept
from frisket.train import checkpoint

LOCK = "run.lock"
SUMMARY = "summary.json"
# What a resumed run may change: nothing of it touches the weights.
_MAY_CHANGE = {"train": {"save_every", "keep", "track", "threads"}}


@dataclass(frozen=True)
class Found:
    """What lies in the output folder.

    Attributes:
        checkpoint: newest complete checkpoint, or None to start afresh.
        is_finished: the run has ended; nothing is to be done.
    """

    checkpoint: Path | None
    is_finished: bool


def recipe_hash(recipe: Recipe) -> str:
    """Hash of all that decides the weights."""
    given = recipe.model_dump(mode="json", exclude={"evaluate", "name"})
    for section, names in _MAY_CHANGE.items():
        for name in names:
            given[section].pop(name, None)
    return hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()[:16]


def look(out: Path, recipe: Recipe, resume: bool) -> Found:
    """Decide what an output folder means for this run.

    Raises:
        ConfigError: it is in use, or is not ours to write to.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out} is a file.\nGive a folder: --out {out}-run")
    if not out.exists() or not any(out.iterdir()):
        return Found(None, False)
    _refuse_if_running(out)
    if not resume:
        raise ConfigError(
            f"--out {out} is not empty.\nContinue it with --resume, or give another folder: --out {out}-2"
        )
    if not (out / RECIPE_FILE).exists():
        raise ConfigError(
            f"--out {out} holds no run of frisket (no {RECIPE_FILE}).\nGive another folder: --out {out}-2"
        )
    from frisket.recipe import load_recipe

    if recipe_hash(kept(load_recipe(out), out)) != recipe_hash(kept(recipe, out)):
        raise ConfigError(
            f"--out {out} holds a run of another recipe (see {out / RECIPE_FILE}).\nGive another folder: --out {out}-2"
        )
    checkpoint.clean(out)
    if (out / SUMMARY).exists():
        return Found(None, True)
    found = checkpoint.complete(out)
    return Found(found[-1] if found else None, False)


def with_base(recipe: Recipe, out: Path) -> Recipe:
    """The recipe of a run with the base that its result stands on: in stages that may be what an earlier one made."""
    from frisket.recipe import load_recipe

    last = out / f"stage-{len(recipe.stages)}"
    if not recipe.stages or not (last / RECIPE_FILE).is_file():
        return recipe
    return recipe.model_copy(update={"model": load_recipe(last).model})


def refuse_unshipped(folder: Path) -> None:
    """Refuse to open a finished run that shipped nothing.

    Raises:
        ConfigError: its mask did not beat the model without one.
    """
    summary = read_json(folder / SUMMARY)
    told = summary.get("mask_tuning")
    if told and not told["shipped"]:
        raise ConfigError(
            f"{folder} ships no mask: {told['sentence']}.\n"
            f"Use {summary['model']['path']} as it is, or try other settings: adapt.keep=0.99"
        )


def where_stopped(out: Path) -> str:
    """What a resumed run goes on from, in words: the newest complete checkpoint of a run that is not finished."""
    written = out.rglob(f"checkpoints/step-*/{checkpoint.COMPLETE}")
    found = [path for path in written if not (path.parents[2] / SUMMARY).exists()]
    if not found:
        return "No checkpoint of it was written yet, so it begins anew"
    newest = max(found, key=lambda path: path.stat().st_mtime).parent
    state, place = checkpoint.load_state(newest), newest.parents[1]
    inner = "" if place == out else f" of {place.relative_to(out)}"
    return f"It goes on after step {state.step:,} of {state.total_steps:,}{inner}"


@contextmanager
def claimed(out: Path, recipe: Recipe) -> Iterator[None]:
    """Hold the folder while a run writes to it; a folder in which no step was made is left as it was found."""
    was_there = out.exists() and any(out.iterdir())
    out.mkdir(parents=True, exist_ok=True)
    lock = out / LOCK
    try:
        with lock.open("x") as file:
            json.dump({"pid": os.getpid(), "host": platform.node()}, file)
    except FileExistsError:
        raise ConfigError(
            f"--out {out} was taken by another run meanwhile.\nGive another folder: --out {out}-2"
        ) from None
    (out / RECIPE_FILE).write_text(dump(recipe))
    try:
        yield
    except BaseException:
        if not was_there and not any(out.rglob(checkpoint.COMPLETE)):
            shutil.rmtree(out, ignore_errors=True)
        raise
    finally:
        lock.unlink(missing_ok=True)


def machine(device: torch.device) -> str:
    """What byte-identical resume is promised for: processor, thread count, torch."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    return f"{_processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def environment(device: torch.device, compute: torch.dtype, fingerprint: str) -> dict:
    """What the run ran on, for ``environment.json``."""
    return {
        "frisket": __version__,
        **versions(),
        "platform": _system(),
        "machine": machine(device),
        "device": str(device),
        "compute": str(compute).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "commit": _commit(),
        "data": fingerprint,
    }


def write_json(path: Path, value: object) -> None:
    """Write beside, then rename: a reader sees the old file or the new one."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(partial, path)


def follow_umask(place: Path) -> None:
    """Give weights the mode of every other new file: safetensors writes them for the owner alone."""
    probe = place / ".mode"
    probe.touch()
    mode = probe.stat().st_mode
    probe.unlink()
    for path in place.rglob("*.safetensors"):
        path.chmod(mode)


def read_json(path: Path) -> dict:
    """What ``write_json`` wrote."""
    return json.loads(path.read_text(encoding="utf-8"))


def read_lines(path: Path) -> list[dict]:
    """The records of a JSONL file; none where it is not there."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8") as file:  # str.splitlines would end lines inside of texts, too: at U+0085, U+2028
        return [json.loads(line) for line in file]


def _refuse_if_running(out: Path) -> None:
    lock = out / LOCK
    if not lock.exists():
        return
    try:
        held = json.loads(lock.read_text())
    except ValueError:
        held = {}
    if held.get("host", platform.node()) != platform.node():
        raise ConfigError(f"--out {out} is in use on {held['host']}.\nIf that run is dead, delete {lock}.")
    if held.get("pid") != os.getpid() and _is_alive(held.get("pid")):
        raise ConfigError(
            f"--out {out} is in use by process {held['pid']}.\nWait for it, or give another folder: --out {out}-2"
        )
    lock.unlink(missing_ok=True)


def _is_alive(pid: int | None) -> bool:
    if not pid:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _system() -> str:
    """Operating system and its release, such as ``Linux 6.8``: a whole kernel's name can tell whose machine it is."""
    release = re.match(r"\d+(\.\d+)?", platform.release())
    return " ".join([platform.system(), *([release[0]] if release else []), platform.machine()])


def _commit() -> str | None:
    """Commit of the source tree that frisket runs from, if it is one."""
    head = Path(__file__).parents[3] / ".git" / "HEAD"
    if not head.exists():
        return None
    text = head.read_text().strip()
    if not text.startswith("ref: "):
        return text
    ref = head.parent / text[5:]
    return ref.read_text().strip() if ref.exists() else None
