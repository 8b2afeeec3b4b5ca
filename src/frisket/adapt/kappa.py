"""KappaTune's measure: the condition number of each matrix, computed by PEFT's own helper and kept on disk.

Source: KappaTune (arXiv 2506.16289): κ = largest singular value / (smallest + 1e-8); the matrices of the smallest κ are
the least specialised, so changing them disturbs least what the model knows. κ of experts is the mean over them.
"""

import hashlib
import json
import os
from dataclasses import asdict, dataclass

import torch
from torch import nn

from frisket.adapt.where import expert_tensors, is_linear
from frisket.cache import cache_folder


@dataclass(frozen=True)
class ConditionNumbers:
    """κ by dotted path; PEFT's helper skips matrices with a side above 16,384, and knows neither Conv1D nor tensors of
    experts under unusual names.

    Attributes:
        modules: of linear layers.
        tensors: of the experts of a mixture.
    """

    modules: dict[str, float]
    tensors: dict[str, float]


def condition_numbers(model: nn.Module) -> ConditionNumbers:
    """κ of every matrix; the singular values of one base are computed once, then read from frisket's cache."""
    file = cache_folder() / "kappa" / f"{_digest(model)}.json"
    if file.exists():
        return ConditionNumbers(**json.loads(file.read_text(encoding="utf-8")))
    found = _measured(model)
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(json.dumps(asdict(found)), encoding="utf-8")
    os.replace(partial, file)
    return found


def _measured(model: nn.Module) -> ConditionNumbers:
    from peft.helpers import KappaTuneSelector

    selector = KappaTuneSelector(model, show_progress=False)
    selector.get_best_targets()  # measures both kinds; the helper hands out names alone
    return ConditionNumbers(dict(selector._condition_numbers or {}), dict(selector._parameter_condition_numbers or {}))


def _digest(model: nn.Module) -> str:
    """SHA-256 over names, shapes, types and bytes of everything that κ is taken of."""
    whole = hashlib.sha256()
    tensors = {name: module.weight for name, module in model.named_modules() if is_linear(module)}
    for name, tensor in (tensors | expert_tensors(model)).items():
        whole.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())  # pyright: ignore
        whole.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())  # pyright: ignore
    return whole.hexdigest()
