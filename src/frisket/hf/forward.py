"""One forward of the backbone over rows: hidden states, never logits."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from frisket.hf.attention import Layout, prepare
from frisket.types import Rows

Model = PreTrainedModel  # so that callers outside hf/ can name it


def backbone_of(model: PreTrainedModel) -> nn.Module:
    """The model without its output head."""
    return getattr(model, model.base_model_prefix)


def hidden_states(
    model: PreTrainedModel, rows: Rows, backend: str = "auto", embeddings: Tensor | None = None
) -> Float[Tensor, "place hidden"]:
    """Last hidden states (after the final norm) of the flattened rows.

    Args:
        backend: which attention backend computes them.
        embeddings: [row, token, hidden] input vectors in place of the token ids' own.
    """
    device = model.device
    layout: Layout = prepare(rows, backend, device)
    ids = torch.from_numpy(rows.input_ids).to(device)
    inputs = (
        {"input_ids": ids} if embeddings is None else {"inputs_embeds": embeddings, **_beside_embeddings(model, ids)}
    )
    out = backbone_of(model)(
        **inputs,
        position_ids=torch.from_numpy(rows.position_ids).to(device),
        attention_mask=None,
        use_cache=False,
        rows=layout,
    )
    return out.last_hidden_state.flatten(0, 1)


def _beside_embeddings(model: PreTrainedModel, ids: Tensor) -> dict[str, Tensor]:
    """What a family looks up by token id apart from the embeddings: an input of each layer (Gemma 3n and 4)."""
    if not getattr(model.config.get_text_config(), "hidden_size_per_layer_input", None):
        return {}
    look_up: Any = model.get_decoder().get_per_layer_inputs
    return {"per_layer_inputs": look_up(ids)}
