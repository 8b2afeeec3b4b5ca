"""An adapter of ours tells digests of the base as it was computed with; this makes them those of the base as stored."""

from pathlib import Path

import torch

from frisket.adapt import dense, sparse
from frisket.hf import load
from frisket.hf.settings import ModelSettings
from frisket.run.folder import read_json


def rebase(adapter: Path, base: ModelSettings) -> None:
    """Let an adapter with digests speak of the base as it is stored, where it was trained in another type.

    Raises:
        CheckError: the stored base is not what it was trained on.
    """
    if not (adapter / sparse.HEADER).is_file():
        return
    header = read_json(adapter / sparse.HEADER)
    if not sparse.is_sparse(adapter) and not header["base"]:  # beside quantised weights: it has no digests
        return
    stored = load.load_model(base, torch.float32, torch.device("cpu"))
    if not sparse.is_sparse(adapter):
        dense.rebase(adapter, dict(stored.named_modules()))
        return
    changes = sparse.rebased(sparse.read(adapter)[0], dict(stored.named_parameters()))
    sparse.write(adapter, header["method"], changes, header["settings"])
