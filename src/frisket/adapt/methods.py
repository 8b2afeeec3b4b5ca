"""The only list of built-in methods, and how what they saved is put on a model again."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field
from safetensors.torch import load_file
from torch import Tensor, nn

from frisket.adapt import applied
from frisket.adapt.base import Attached, MethodSettings
from frisket.adapt.full import Full
from frisket.adapt.graft import Graft
from frisket.adapt.lora import Lora
from frisket.adapt.mft import Mft
from frisket.adapt.mora import Mora, load_mora
from frisket.adapt.peft import PEFT_CONFIG, Ia3, LnTuning, Peft, load_peft
from frisket.adapt.prompts import ROOT_TYPES, Prefix, Prompt, PTuning, load_root
from frisket.adapt.sparse import HEADER
from frisket.adapt.spiel import Spiel
from frisket.errors import CheckError, UnsupportedError

Method = Annotated[
    Full | Lora | Mft | Graft | Ia3 | LnTuning | Peft | Mora | Spiel | Prompt | PTuning | Prefix,
    Field(discriminator="method"),
]
# Methods that write a format of their own; the others write PEFT's.
LOADERS: Mapping[str, Callable[[nn.Module, Path], Attached]] = {
    "mft": applied.load,
    "graft": applied.load,
    "mora": load_mora,
    "spiel": applied.load,
}


def attach(
    method: MethodSettings,
    model: nn.Module,
    rng: torch.Generator,
    token_ids: Sequence[int] = (),
    tokenize: Callable[[str], list[int]] | None = None,
) -> Attached:
    """Put a method on a model; the rows of added tokens move with it.

    Args:
        token_ids: the added tokens, whose rows the model has already.
        tokenize: for methods that begin with a text; without it they begin at random.

    Raises:
        UnsupportedError: the method would leave those rows as they are.
    """
    method.check()
    if not token_ids:
        if isinstance(method, Prompt) and method.init_text and tokenize:
            return method.attach(model, rng, tokenize(method.init_text))
        return method.attach(model, rng)
    if isinstance(method, Lora):
        return method.attach(model, rng, token_ids)
    if isinstance(method, Full):
        attached = method.attach(model, rng)
        _refuse_still_rows(model, attached)
        return attached
    raise UnsupportedError(
        f"model.add_tokens: the rows of new tokens move with lora or full, and adapt.method is {method.label}.\n"
        "Use adapt.method=lora, or leave model.add_tokens out."
    )


def load_adapter(model: nn.Module, folder: Path) -> Attached:
    """Put a saved adapter on a freshly loaded base model.

    Raises:
        CheckError: the folder holds no adapter, or an empty, a non-finite or an unknown one.
    """
    if (folder / PEFT_CONFIG).exists():
        kind = json.loads((folder / PEFT_CONFIG).read_text(encoding="utf-8"))["peft_type"]
        return load_root(model, folder) if kind in ROOT_TYPES else load_peft(model, folder)
    if not (folder / HEADER).exists():
        raise CheckError(f"{folder} holds neither {PEFT_CONFIG} nor {HEADER}: no adapter.")
    method = json.loads((folder / HEADER).read_text(encoding="utf-8"))["method"]
    if method not in LOADERS:
        raise CheckError(f"{folder} was made with adapt.method={method}, which this version does not know.")
    return LOADERS[method](model, folder)


def saved_tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors of a saved adapter, checked.

    Raises:
        CheckError: no tensors, or a value that is not finite.
    """
    name = "adapter_model.safetensors" if (folder / PEFT_CONFIG).exists() else "adapter.safetensors"
    tensors = load_file(folder / name)
    if not tensors:
        raise CheckError(f"{folder} holds an empty adapter.")
    broken = [name for name, value in tensors.items() if not torch.isfinite(value).all()]
    if broken:
        raise CheckError(f"{folder}: {len(broken)} tensors are not finite, first {broken[0]}.")
    return tensors


def _refuse_still_rows(model: nn.Module, attached: Attached) -> None:
    moving = {id(parameter) for parameter in attached.parameters().values()}
    head = model.get_output_embeddings()  # pyright: ignore[reportCallIssue]
    tables = {"embeddings": model.get_input_embeddings(), "head": head}  # pyright: ignore[reportCallIssue]
    still = [word for word, table in tables.items() if table is not None and id(table.weight) not in moving]
    if still:
        raise UnsupportedError(
            f"model.add_tokens: adapt.where leaves out the {' and the '.join(still)}, so the rows of the new tokens "
            "would stay as they are.\n"
            f"Add to adapt.where: {', '.join(still)}"
        )
