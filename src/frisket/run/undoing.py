"""`frisket export OUT --undo FOLDER`: take a sparse adapter's change out of a model folder again, bit for bit.

Works on the files: tensors that the change does not touch are copied as they are.
"""

import shutil
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from frisket.adapt import sparse
from frisket.adapt.tuned import places_of
from frisket.errors import CheckError, ConfigError, UnsupportedError, counted
from frisket.run.folder import SUMMARY
from frisket.run.merging import MADE_OF, written
from frisket.watch import Watcher


def undo(run: Path, model: Path, *, into: Path | None, watcher: Watcher) -> dict[str, Any]:
    """Write a model folder without the change that a run's sparse adapter made in it.

    Args:
        run: run folder whose adapter was merged.
        model: folder of the merged model; it is left as it is.
        into: folder to write; default ``OUT/undone``.

    Raises:
        ConfigError: the run is not finished, the target holds something, or there is no model in the folder.
        UnsupportedError: the adapter is not sparse, so its merge cannot be taken back.
        CheckError: the model does not hold this change, or not this change alone.
    """
    target = into or run / "undone"
    changes = _changes_of(run)
    if not model.is_dir():
        raise ConfigError(f"--undo {model}: there is no such folder.\nMerge first: frisket export {run} --to merged")
    files = places_of(model)
    stored = _stored_names(model, files, changes)
    missing = [name for name in changes if name not in stored]
    if missing:
        raise CheckError(
            f"{model} lacks {len(missing)} of the {len(changes)} changed tensors, first {missing[0]}: none has that "
            "name, and no other one its digest.\n"
            f"Give the model that {run} was merged into."
        )
    touched = _tensors(model, files, stored)
    restored = sparse.undo(touched, changes)
    if not restored:
        raise CheckError(
            f"{model} does not hold the change of {run}: its tensors are the base's.\n"
            "Use it as it is: nothing is to be taken back."
        )
    with written(target) as partial:
        shutil.copytree(model, partial, ignore=shutil.ignore_patterns(MADE_OF))
        for file in sorted({files[place] for place in stored.values()}):
            inside = {place: touched[name] for name, place in stored.items() if files[place] == file}
            _write(model / file, partial / file, inside)
        again = _tensors(partial, files, stored)
        for name, change in changes.items():
            if not sparse.is_digest_of(again[name], change.before):
                raise CheckError(f"{name} was not written as the base has it; nothing was kept.\nTry again.")
    entries = sparse.entries_of(changes)
    watcher.say(
        f"undo       {entries:,} entries of {counted(restored, 'tensor')} of {model} are what they were: every touched "
        "tensor has the base's digest"
    )
    return {"undone": str(target), "tensors": restored, "entries": entries}


def _changes_of(run: Path) -> dict[str, sparse.Change]:
    if not (run / SUMMARY).exists():
        raise ConfigError(f"{run} holds no finished run (no {SUMMARY}).\nFinish it: frisket train {run} --resume")
    if not sparse.is_sparse(run / "adapter"):
        raise UnsupportedError(
            f"--undo takes back what a sparse adapter changed (graft, mft, spiel), and {run} holds none: a merge of "
            "another one is rounded into the weights.\n"
            "Use the base itself: model.path in the run's recipe.yaml"
        )
    return sparse.read(run / "adapter")[0]


def _stored_names(folder: Path, files: Mapping[str, str], changes: Mapping[str, sparse.Change]) -> dict[str, str]:
    """What the files call the changed tensors, of those that are there.

    transformers stores some models under other names than the model's own: then it is the tensor of that shape with the
    digest that the change has for it, if there is one only.
    """
    found = {name: name for name in changes if name in files}
    others = {name: change for name, change in changes.items() if name not in found}
    shapes = {change.shape for change in others.values()}
    stored = defaultdict(list)
    for place in sorted(files.keys() - found.keys()) if others else ():
        tensor = _tensors(folder, files, {place: place})[place]
        if tuple(tensor.shape) in shapes and tensor.is_floating_point():
            stored[sparse.own_digest(tensor)].append(place)
    for name, change in others.items():
        known = change.after.items() | change.before.items()
        places = [place for each in known for place in stored[each]]
        if len(places) == 1:
            found[name] = places[0]
    return found


def _tensors(folder: Path, files: Mapping[str, str], stored: Mapping[str, str]) -> dict[str, Tensor]:
    """Tensors by the model's names.

    Args:
        files: the file of each stored name.
        stored: what the files call them.
    """
    found = {}
    for file in sorted({files[place] for place in stored.values()}):
        try:
            with safe_open(folder / file, "pt") as opened:
                found |= {name: opened.get_tensor(place) for name, place in stored.items() if files[place] == file}
        except (OSError, SafetensorError) as error:
            raise CheckError(f"{folder / file} cannot be read: {error}.\nExport the model again.") from error
    return found


def _write(source: Path, target: Path, restored: dict[str, Tensor]) -> None:
    """Write a file of weights with some tensors replaced, its own remarks kept."""
    with safe_open(source, "pt") as opened:
        remarks = opened.metadata()
    save_file(load_file(source) | restored, target, metadata=remarks)
