"""The weights of a model that was fine-tuned from this base: of a finished run, or of a plain model folder."""

import copy
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from frisket.adapt.peft import PEFT_CONFIG
from frisket.adapt.sparse import HEADER
from frisket.errors import CheckError, ConfigError, UnsupportedError

_INDEX, _WHOLE = "model.safetensors.index.json", "model.safetensors"


@dataclass(frozen=True)
class Moved:
    """What a fine-tuning did to some weights of its base.

    Attributes:
        tuned: the weights afterwards.
        tops: True at the entries that moved most.
        told: how much of the fine-tuning they are, in words.
    """

    tuned: Mapping[str, Tensor]
    tops: Mapping[str, Bool[Tensor, "..."]]
    told: str = ""


def tuned_weights(model: nn.Module, folder: Path, names: Sequence[str]) -> tuple[dict[str, Tensor], float]:
    """Some parameters of a fine-tuned model, in the base's type, on the CPU.

    Args:
        model: the base, a model of transformers, which is left as it is.
        folder: a run that fine-tuned the model itself (``model/``) or an adapter (``adapter/``, which is merged to
            see what it does), such an adapter's own folder, or a model folder.
        names: of parameters of the base.

    Returns:
        The parameters, and which share of the whole change lies in others (squared lengths).

    Raises:
        ConfigError: there is no such folder, nothing fine-tuned in it, or these parameters are the base's.
        CheckError: its tensors cannot be read, or it was fine-tuned from another base.
    """
    found = _weights(model, folder)
    missing = [name for name in names if name not in found]
    if missing:
        raise CheckError(f"adapt.of = {str(folder)!r} lacks {len(missing)} matched tensors, first {missing[0]}.")
    squares = {name: float(moved(model.get_parameter(name), weight).square().sum()) for name, weight in found.items()}
    inside, total = sum(squares[name] for name in names), sum(squares.values())
    if inside > sum(float(model.get_parameter(name).detach().float().square().sum()) for name in names):
        raise CheckError(
            f"adapt.of = {str(folder)!r} differs from model.path by more than that itself: it has another base.\n"
            "Set model.path to the base that it was fine-tuned from."
        )
    if inside == 0:
        raise ConfigError(
            f"adapt.of = {str(folder)!r} is model.path itself in every module of adapt.where: nothing has moved.\n"
            "Give a run that fine-tuned these modules."
        )
    return {name: found[name] for name in names}, 1 - inside / total


def moved(base: Tensor, tuned: Tensor) -> Tensor:
    """Fine-tuned minus base, in float32 on the CPU; of narrower tensors, what their rounding leaves of it."""
    return tuned.detach().cpu().float() - base.detach().cpu().float()


def most_moved(model: nn.Module, folder: Path, bases: Mapping[str, Tensor], keep: float) -> Moved:
    """Read fine-tuned weights and find the entries that moved most; on the meta device nothing is read.

    Args:
        folder: see ``tuned_weights``.
        bases: the base's weights among which the entries are looked for.
        keep: share of their entries.

    Raises:
        UnsupportedError: the base is narrower than float32.
    """
    if next(iter(bases.values())).is_meta:
        return Moved(
            {name: torch.empty_like(base) for name, base in bases.items()}, {n: b > 0 for n, b in bases.items()}
        )
    for name, base in bases.items():
        if base.dtype.itemsize < 4:
            raise UnsupportedError(
                f"a graft ranks movements far below the steps of {base.dtype}, in which {name} is.\n"
                "Attach it to the base in float32, and cast the model afterwards."
            )
    tuned, outside = tuned_weights(model, folder, list(bases))
    changes = [moved(base, tuned[name]) for name, base in bases.items()]
    tops = top_moved(changes, keep)
    total = sum(float(change.square().sum()) for change in changes)
    carried = sum(float((change * top).square().sum()) for change, top in zip(changes, tops, strict=True)) / total
    told = (
        f"the {sum(int(top.sum()) for top in tops):,} entries of {sum(map(torch.numel, tops)):,} that moved most carry "
        f"{carried * (1 - outside):.1%} of the fine-tuning (squared); {outside:.1%} lies outside of adapt.where"
    )
    return Moved(tuned, dict(zip(bases, tops, strict=True)), told)


def top_moved(changes: list[Float[Tensor, "..."]], keep: float) -> list[Bool[Tensor, "..."]]:
    """True at the round(keep * n) largest of all n entries (at least one), the first of equal ones; never at a zero.

    >>> [each.int().tolist() for each in top_moved([torch.tensor([1.0, -3.0]), torch.tensor([2.0, 0.0, -2.0])], 0.4)]
    [[0, 1], [1, 0, 0]]
    """
    flat = torch.cat([change.abs().flatten() for change in changes])
    count = max(1, round(keep * len(flat)))
    threshold = flat.kthvalue(len(flat) - count + 1).values
    chosen = flat > threshold
    equal = (flat == threshold).nonzero()[:, 0]
    chosen[equal[: count - int(chosen.sum())]] = True
    chosen &= flat > 0
    parts = chosen.split([change.numel() for change in changes])
    return [part.view_as(change) for part, change in zip(parts, changes, strict=True)]


def digest_of(tensors: Iterable[Tensor]) -> bytes:
    """SHA-256 of the values of several tensors."""
    whole = hashlib.sha256()
    for tensor in tensors:
        whole.update(b"" if tensor.is_meta else tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return whole.digest()


def _weights(model: nn.Module, folder: Path) -> dict[str, Tensor]:
    """All parameters that a folder holds, by the base's names."""
    adapter = next((place for place in (folder / "adapter", folder) if _is_adapter(place)), None)
    stored = next((place for place in (folder / "model", folder) if _is_model(place)), None)
    if adapter is not None:
        return _merged(model, adapter)
    if stored is not None:
        return _read(model, stored)
    wrong = "holds no finished run and no model" if folder.is_dir() else "there is no such folder"
    raise ConfigError(
        f"adapt.of = {str(folder)!r}: {wrong}.\nGive the folder of a run that fine-tuned model.path: adapt.of=out/full"
    )


def _is_adapter(folder: Path) -> bool:
    return (folder / PEFT_CONFIG).is_file() or (folder / HEADER).is_file()


def _is_model(folder: Path) -> bool:
    return (folder / _WHOLE).is_file() or (folder / _INDEX).is_file()


def _merged(model: nn.Module, folder: Path) -> dict[str, Tensor]:
    """Fold the adapter into a copy of the base; a head that it unties from the embedding is a weight of its own."""
    from frisket.adapt import methods  # which lists the methods that read here

    merged = copy.deepcopy(model)
    methods.load_adapter(merged, folder).merge()
    return {name: parameter.detach().cpu() for name, parameter in merged.named_parameters()}


def _read(model: nn.Module, folder: Path) -> dict[str, Tensor]:
    """Read a model folder as transformers does, which may store tensors under other names, or split."""
    places_of(folder)
    try:
        tuned, report = type(model).from_pretrained(  # pyright: ignore[reportAttributeAccessIssue]
            folder,
            config=model.config,
            generation_config=model.generation_config,  # which else must lie there
            dtype=next(model.parameters()).dtype,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckError(f"{folder} cannot be read: {error}.\nTrain or copy it again.") from error
    for name, stored, own in sorted(report["mismatched_keys"]):
        raise CheckError(
            f"adapt.of = {str(folder)!r}: {name} is {list(stored)}, and the base has {list(own)}: it was "
            "fine-tuned from another base.\nSet model.path to the base that it was fine-tuned from."
        )
    return {name: value.detach() for name, value in tuned.named_parameters() if name not in report["missing_keys"]}


def places_of(folder: Path) -> dict[str, str]:
    """The file that holds each tensor of a model folder.

    Raises:
        CheckError: the folder's list of tensors cannot be read.
    """
    try:
        if (folder / _INDEX).is_file():
            return json.loads((folder / _INDEX).read_text(encoding="utf-8"))["weight_map"]
        with safe_open(folder / _WHOLE, "pt") as file:
            return dict.fromkeys(file.keys(), _WHOLE)
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        raise CheckError(f"{folder} holds no readable model: {error}.\nTrain or copy it again.") from error
