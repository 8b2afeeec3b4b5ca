"""The artefact of our own adapters that are whole tensors: ``adapter.safetensors`` and a header beside it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from frisket.adapt.sparse import HEADER, VALUES
from frisket.errors import CheckError
from frisket.version import __version__


def write(folder: Path, method: str, values: Mapping[str, Tensor], settings: Mapping[str, Any]) -> None:
    """Write the tensors, and of the method what they do not say themselves.

    Args:
        settings: JSON values, for ``read``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in values.items()}, folder / VALUES)
    header = {"method": method, "frisket": __version__, "settings": settings}
    (folder / HEADER).write_text(json.dumps(header, indent=1), encoding="utf-8")


def read(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors, and the method's own settings.

    Raises:
        CheckError: a file is missing or is none of ours.
    """
    try:
        return load_file(folder / VALUES), json.loads((folder / HEADER).read_text(encoding="utf-8"))["settings"]
    except (OSError, KeyError, ValueError) as error:
        raise CheckError(f"{folder} holds no whole adapter: {error}.\nExport it again from its run.") from error
