"""The artefact of our own adapters that are whole tensors: ``adapter.safetensors`` and a header beside it.

The header has digests of the weights that the adapter lies beside, so that it is put on no other base. Of quantised
weights it has none: their codes are made anew at each loading, and a merge puts the adapter on dequantised ones.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from frisket.adapt.sparse import HEADER, VALUES, digests, is_digest_of, rounds_to
from frisket.errors import CheckError
from frisket.version import __version__


def write(
    folder: Path,
    method: str,
    values: Mapping[str, Tensor],
    settings: Mapping[str, Any],
    layers: Mapping[str, nn.Module],
) -> None:
    """Write the tensors, and of the method what they do not say themselves.

    Args:
        settings: JSON values, for ``read``.
        layers: those that the adapter lies beside, by dotted path.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in values.items()}, folder / VALUES)
    base = {name: digests(weight) for name, weight in _plain_weights(layers).items()}
    header = {"method": method, "frisket": __version__, "settings": settings, "base": base}
    (folder / HEADER).write_text(json.dumps(header, indent=1), encoding="utf-8")


def read(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors, and the method's own settings.

    Raises:
        CheckError: a file is missing or is none of ours.
    """
    try:
        return load_file(folder / VALUES), _header(folder)["settings"]
    except (OSError, KeyError, ValueError) as error:
        raise CheckError(f"{folder} holds no whole adapter: {error}.\nExport it again from its run.") from error


def check_base(folder: Path, layers: Mapping[str, nn.Module]) -> None:
    """Refuse layers that are not those which an adapter was trained beside.

    Raises:
        CheckError: the digest of a weight differs.
    """
    told = _header(folder)["base"]
    for name, weight in _plain_weights(layers).items():
        if name in told and not is_digest_of(weight, told[name]):
            raise _other_base(name)


def rebase(folder: Path, layers: Mapping[str, nn.Module]) -> None:
    """Let an adapter tell the digests of its base as it is stored, or wider, instead of as it was computed with.

    Args:
        layers: all of the stored base, by dotted path.

    Raises:
        CheckError: it is another base.
    """
    header = _header(folder)
    beside = {name: layers[name] for name in header["base"]}
    for name, weight in _plain_weights(beside).items():
        if not rounds_to(weight, header["base"][name]):
            raise _other_base(name)
        header["base"][name] = digests(weight)
    (folder / HEADER).write_text(json.dumps(header, indent=1), encoding="utf-8")


def _other_base(name: str) -> CheckError:
    return CheckError(
        f"{name}.weight is not the one that this adapter was trained beside: its digest differs.\n"
        "Use the base that the adapter was trained on."
    )


def _header(folder: Path) -> dict[str, Any]:
    return json.loads((folder / HEADER).read_text(encoding="utf-8"))


def _plain_weights(layers: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    weights = {name: layer.get_parameter("weight") for name, layer in layers.items()}
    return {name: each for name, each in weights.items() if each.is_floating_point() and each.element_size() > 1}
