"""The only list of built-in methods."""

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from frisket.adapt.base import Attached, MethodSettings
from frisket.adapt.full import Full
from frisket.adapt.lora import Lora
from frisket.adapt.peft import Ia3, LnTuning, Peft
from frisket.errors import UnsupportedError

Method = Annotated[Full | Lora | Ia3 | LnTuning | Peft, Field(discriminator="method")]


def attach(method: MethodSettings, model: nn.Module, rng: torch.Generator, token_ids: Sequence[int] = ()) -> Attached:
    """Put a method on a model; the rows of added tokens move with it.

    Args:
        token_ids: the added tokens, whose rows the model has already.

    Raises:
        UnsupportedError: the method would leave those rows as they are.
    """
    if not token_ids:
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
