"""The one artefact of everything sparse: for each touched tensor which entries change, and to what.

A folder holds ``frisket_adapter.json`` (method, settings, and for each tensor its mode, shape and digests) and
``adapter.safetensors`` (``NAME.indices`` flat and ascending, or ``NAME.bits`` where packed bits are smaller, and
``NAME.values``); ``old.safetensors`` holds what the entries were, so that the change can be taken back bit for bit.

Digests of a tensor before and after the change say whether this is its base, whether it was applied already, and
whether what came out is what was saved. They are taken in the tensor's own type and in those that are no wider, so that
a base that is loaded in another type is known.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from frisket.errors import CheckError
from frisket.version import __version__

Mode = Literal["add", "replace", "zero"]
HEADER, VALUES, OLD = "frisket_adapter.json", "adapter.safetensors", "old.safetensors"
_TYPES = {"float64": torch.float64, "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Change:
    """What happens to one tensor.

    Attributes:
        mode: ``add`` values to entries, ``replace`` entries by values, or ``zero`` entries.
        shape: of the tensor.
        indices: flat indices of the entries, ascending.
        values: one for each entry; None for ``zero``.
        old: what the entries were, in the tensor's own type.
        before: digests of the whole tensor without the change, by type, its own first.
        after: digests with it: of the tensor rounded to the type, then changed, then rounded again.
    """

    mode: Mode
    shape: tuple[int, ...]
    indices: Tensor
    values: Tensor | None
    old: Tensor
    before: Mapping[str, str]
    after: Mapping[str, str]


def change_of(weight: Tensor, mode: Mode, indices: Tensor, values: Tensor | None = None) -> Change:
    """Describe a change of a tensor, which is left as it is.

    Args:
        weight: the base's tensor.
        mode: what happens to its entries.
        indices: flat indices, unique, in any order.
        values: one for each index, in that order; None for ``zero``.

    Raises:
        ValueError: indices are not unique, or there are more or fewer values.
    """
    order = torch.argsort(indices)
    indices = indices[order].to(torch.int64)
    values = None if values is None else values.detach()[order]
    if (indices.diff() <= 0).any() or (values is None) != (mode == "zero"):
        raise ValueError(f"a change needs unique indices, and values but for `zero`: mode {mode}")
    flat = weight.detach().flatten()
    after = {}
    for dtype in _no_wider(flat.dtype):
        changed = flat.to(dtype, copy=True)
        changed[indices] = _new(changed[indices], mode, values)
        after[_name_of(dtype)] = _digest(changed, dtype)
    return Change(mode, tuple(weight.shape), indices, values, flat[indices].clone(), digests(flat), after)


def apply(weights: Mapping[str, Tensor], changes: Mapping[str, Change]) -> dict[str, Tensor]:
    """Make the changes in place, all or none.

    Returns:
        What the entries are without the changes, in the weights' own types, to be put back by ``put``.

    Raises:
        CheckError: a tensor is not there, is not the base that the change was made for, has an addition already, or
            would not become what it was when the change was saved.
    """
    old, new = {}, {}
    for name, change in changes.items():
        weight = _tensor(weights, name, change)
        if is_digest_of(weight, change.before):
            flat = weight.detach().flatten()
            old[name] = flat[change.indices.to(flat.device)]
            new[name] = _new(old[name], change.mode, change.values)
            if not is_digest_of(_with_entries(weight, change, new[name]), change.after):
                raise CheckError(
                    f"{name} would not become what it was in training: the adapter's entries are not those that were "
                    "saved.\nExport it again from its run."
                )
        elif not _holds(weight, change):
            raise _no_base_of(name)
        elif change.mode == "add":
            raise CheckError(
                f"{name} has this change already: adding it twice would be wrong.\nUse the model as it is."
            )
        else:
            old[name] = _old_of(name, weight, change)
    for name, entries in new.items():
        put(weights[name], changes[name].indices, entries)
    return old


def put(weight: Tensor, indices: Tensor, entries: Tensor) -> None:
    """Write entries into a tensor, also into one that does not lie in one piece."""
    at = torch.unravel_index(indices.to(weight.device), weight.shape)
    with torch.no_grad():
        weight[at] = entries.to(weight.device, weight.dtype)


def entries_at(weight: Tensor, indices: Tensor) -> Tensor:
    """Copies of a tensor's entries."""
    return weight.detach()[torch.unravel_index(indices.to(weight.device), weight.shape)]


def undo(weights: Mapping[str, Tensor], changes: Mapping[str, Change]) -> int:
    """Take the changes back in place, bit for bit, all or none.

    Returns:
        How many tensors were restored; the others did not hold the change.

    Raises:
        CheckError: a tensor is neither with nor without the change, or is not what it was afterwards.
    """
    restored: dict[str, Tensor] = {}
    for name, change in changes.items():
        weight = _tensor(weights, name, change)
        if _holds(weight, change):
            restored[name] = _old_of(name, weight, change)
        elif not is_digest_of(weight, change.before):
            raise CheckError(
                f"{name} does not hold this change: its digest is neither that with it nor that without.\n"
                "Use the model that the adapter was merged into, and that nothing else has changed."
            )
    for name, entries in restored.items():
        put(weights[name], changes[name].indices, entries)
    return len(restored)


def _holds(weight: Tensor, change: Change) -> bool:
    """Whether a tensor has the change, also where it was rounded to a narrower type and opened in a wider one."""
    if is_digest_of(weight, change.after):
        return True
    narrower = [kind for kind in change.after if _TYPES[kind].itemsize < weight.dtype.itemsize]
    return any(
        torch.equal(weight, weight.to(_TYPES[kind]).to(weight.dtype))
        and _digest(weight, _TYPES[kind]) == change.after[kind]
        for kind in narrower
    )


def _old_of(name: str, weight: Tensor, change: Change) -> Tensor:
    """What the entries of a tensor that has the change were, in its type.

    Raises:
        CheckError: with them it would not be the base, or, in a type wider than any that the change has digests of,
            nothing would say so.
    """
    old = change.old.to(weight.device, weight.dtype)
    seen = _name_of(weight.dtype) in change.after
    exact = seen or torch.equal(weight, weight.to(change.old.dtype).to(weight.dtype))
    if not (exact and is_digest_of(_with_entries(weight, change, old), change.before)):
        raise CheckError(f"{name} would not be what it was before the change.\nLoad the base itself.")
    return old


def _with_entries(weight: Tensor, change: Change, entries: Tensor) -> Tensor:
    """A flat copy of a tensor with other entries."""
    flat = weight.detach().flatten().clone()
    flat[change.indices.to(flat.device)] = entries
    return flat


def _no_base_of(name: str) -> CheckError:
    return CheckError(
        f"{name} is not the tensor that this change was made for: its digest differs.\n"
        "Use the base that the adapter was trained on."
    )


def rebased(changes: Mapping[str, Change], weights: Mapping[str, Tensor]) -> dict[str, Change]:
    """The same changes of the same base in a wider type: what was trained in bf16 on a base that is stored in fp32.

    Args:
        weights: the base as it is stored, or wider.

    Raises:
        CheckError: it is another base.
    """
    found = {}
    for name, change in changes.items():
        weight = _tensor(weights, name, change)
        if not rounds_to(weight, change.before):
            raise _no_base_of(name)
        at = change.indices.to(weight.device)
        found[name] = change_of(weight, change.mode, at, None if change.values is None else change.values.to(at.device))
    return found


@dataclass(frozen=True)
class Overlap:
    """What two sets of entries share.

    Attributes:
        entries: of each set.
        shared: in both.
        chance: what two random sets of these sizes would share on average.
        among: entries that could have been chosen.
    """

    entries: tuple[int, int]
    shared: int
    chance: float
    among: int

    @property
    def jaccard(self) -> float:
        """Shared entries over those in either."""
        return _jaccard(self.shared, *self.entries)

    @property
    def chance_jaccard(self) -> float:
        """The same at the level of chance."""
        return _jaccard(self.chance, *self.entries)


def overlap(a: Mapping[str, Change], b: Mapping[str, Change], among: int) -> Overlap:
    """Which entries two changes have in common, whatever they do to them.

    Args:
        among: entries that could have been chosen.

    Raises:
        CheckError: a tensor that both change has two shapes: they are of two models.
    """
    shared = 0
    for name in a.keys() & b.keys():
        if a[name].shape != b[name].shape:
            shapes = " and ".join(str(list(change[name].shape)) for change in (a, b))
            raise CheckError(f"{name} has the shapes {shapes}: these are changes of two models.\nCompare others.")
        shared += int(torch.isin(a[name].indices, b[name].indices, assume_unique=True).sum())
    entries = (entries_of(a), entries_of(b))
    return Overlap(entries, shared, entries[0] * entries[1] / among, among)


def entries_of(changes: Mapping[str, Change]) -> int:
    """How many entries are changed."""
    return sum(len(change.indices) for change in changes.values())


def _jaccard(shared: float, a: int, b: int) -> float:
    return shared / (a + b - shared) if a + b else 0.0


def write(folder: Path, method: str, changes: Mapping[str, Change], settings: Mapping[str, Any]) -> None:
    """Write the artefact.

    Args:
        settings: JSON values of the method's own, for ``read``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    for name, change in changes.items():
        tensors |= {f"{name}.{part}": value for part, value in _parts(change).items()}
    save_file(tensors, folder / VALUES)
    save_file({name: change.old.contiguous() for name, change in changes.items()}, folder / OLD)
    listed = {
        name: {"mode": c.mode, "shape": list(c.shape), "entries": len(c.indices), "before": c.before, "after": c.after}
        for name, c in changes.items()
    }
    header = {"method": method, "frisket": __version__, "settings": settings, "tensors": listed}
    (folder / HEADER).write_text(json.dumps(header, indent=1), encoding="utf-8")


def read(folder: Path) -> tuple[dict[str, Change], dict[str, Any]]:
    """Read an artefact: its changes by tensor, and the method's own settings.

    Raises:
        CheckError: a file is missing or does not belong to the others.
    """
    try:
        header = json.loads((folder / HEADER).read_text(encoding="utf-8"))
        tensors, old = load_file(folder / VALUES), load_file(folder / OLD)
        changes = {}
        for name, told in header["tensors"].items():
            indices = _indices(tensors, name, told["shape"])
            values = tensors.get(f"{name}.values")
            change = Change(
                told["mode"], tuple(told["shape"]), indices, values, old[name], told["before"], told["after"]
            )
            _check_whole(name, change, told["entries"])
            changes[name] = change
    except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
        raise CheckError(f"{folder} holds no whole sparse adapter: {error}.\nExport it again from its run.") from error
    return changes, header["settings"]


def is_sparse(folder: Path) -> bool:
    """Whether a folder holds such an artefact, and not another adapter."""
    if not (folder / HEADER).is_file():
        return False
    return "tensors" in json.loads((folder / HEADER).read_text(encoding="utf-8"))


def _check_whole(name: str, change: Change, entries: int) -> None:
    """Refuse parts that do not belong together; what ``read`` catches."""
    values = change.indices if change.values is None else change.values
    wrong = {len(change.indices), len(values), len(change.old)} - {entries}
    if wrong:
        raise ValueError(f"{name}: {min(wrong)} entries instead of {entries}")
    if change.mode not in get_args(Mode) or (change.values is None) != (change.mode == "zero"):
        raise ValueError(f"{name}: mode {change.mode}")
    inside = int(np.prod(change.shape))
    if entries and not (change.indices[0] >= 0 and change.indices[-1] < inside):
        raise ValueError(f"{name}: an index outside of the {inside:,} entries")
    if (change.indices.diff() <= 0).any():
        raise ValueError(f"{name}: indices do not ascend")


def digests(tensor: Tensor) -> dict[str, str]:
    """SHA-256 of the values in the tensor's own type, then in the others that are no wider."""
    return {_name_of(dtype): _digest(tensor, dtype) for dtype in _no_wider(tensor.dtype)}


def is_digest_of(tensor: Tensor, told: Mapping[str, str]) -> bool:
    """Whether a tensor, in whatever type it was loaded, is the one whose digests are told."""
    own = _name_of(tensor.dtype)
    if own in told:
        return _digest(tensor, tensor.dtype) == told[own]
    narrower = [name for name in told if _TYPES[name].itemsize < tensor.dtype.itemsize]
    return bool(narrower) and _digest(tensor, _TYPES[narrower[0]]) == told[narrower[0]]


def rounds_to(tensor: Tensor, told: Mapping[str, str]) -> bool:
    """Whether a tensor, rounded to the type that digests were first taken in, is the one whose digests are told."""
    kind, digest = next(iter(told.items()))
    return _digest(tensor, _TYPES[kind]) == digest


def own_digest(tensor: Tensor) -> tuple[str, str]:
    """Its type and its digest in that, as an item of ``digests``."""
    return _name_of(tensor.dtype), _digest(tensor, tensor.dtype)


def _no_wider(dtype: torch.dtype) -> list[torch.dtype]:
    return [dtype, *(each for each in _TYPES.values() if each != dtype and each.itemsize <= dtype.itemsize)]


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _digest(tensor: Tensor, dtype: torch.dtype) -> str:
    values = tensor.detach().to(dtype).cpu().contiguous()
    return hashlib.sha256(values.flatten().view(torch.uint8).numpy().data).hexdigest()


def _new(entries: Tensor, mode: Mode, values: Tensor | None) -> Tensor:
    if values is None:
        return torch.zeros_like(entries)
    values = values.to(entries.device)
    if mode == "replace":
        return values.to(entries.dtype)
    wide = torch.promote_types(entries.dtype, values.dtype)
    return (entries.to(wide) + values.to(wide)).to(entries.dtype)


def _tensor(weights: Mapping[str, Tensor], name: str, change: Change) -> Tensor:
    weight = weights.get(name)
    if weight is None or tuple(weight.shape) != change.shape:
        found = "is not there" if weight is None else f"is {list(weight.shape)}"
        raise CheckError(
            f"the adapter changes {name} of shape {list(change.shape)}, which {found} in this model.\n"
            "Use the base that the adapter was trained on."
        )
    return weight


def _parts(change: Change) -> dict[str, Tensor]:
    """Indices as int32 (int64 above 2^31 entries), or packed bits where those are smaller; and the values."""
    size = int(np.prod(change.shape))
    kind = torch.int32 if size < 2**31 else torch.int64
    values = {} if change.values is None else {"values": change.values.cpu().contiguous()}
    if len(change.indices) * kind.itemsize <= (size + 7) // 8:
        return {"indices": change.indices.to(kind).cpu(), **values}
    bits = np.zeros(size, dtype=bool)
    bits[change.indices.cpu().numpy()] = True
    return {"bits": torch.from_numpy(np.packbits(bits)), **values}


def _indices(tensors: Mapping[str, Tensor], name: str, shape: list[int]) -> Tensor:
    if f"{name}.indices" in tensors:
        return tensors[f"{name}.indices"].to(torch.int64)
    bits = np.unpackbits(tensors[f"{name}.bits"].numpy(), count=int(np.prod(shape)))
    return torch.from_numpy(np.flatnonzero(bits))
