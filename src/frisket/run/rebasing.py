"""A sparse adapter is made of the base as it was computed with; this makes it one of the base as it is stored."""

from pathlib import Path

import torch

from frisket.adapt import sparse
from frisket.hf import load
from frisket.hf.settings import ModelSettings
from frisket.run.folder import read_json


def rebase(adapter: Path, base: ModelSettings) -> None:
    """Let a sparse adapter speak of the base as it is stored, where it was trained in another type; else do nothing.

    Raises:
        CheckError: the stored base is not what it was trained on.
    """
    if not sparse.is_sparse(adapter):
        return
    header = read_json(adapter / sparse.HEADER)
    stored = load.load_model(base, torch.float32, torch.device("cpu"))
    changes = sparse.rebased(sparse.read(adapter)[0], dict(stored.named_parameters()))
    sparse.write(adapter, header["method"], changes, header["settings"])
