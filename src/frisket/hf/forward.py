"""One forward of the backbone over rows: hidden states, never logits."""

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
    inputs = (
        {"input_ids": torch.from_numpy(rows.input_ids).to(device)}
        if embeddings is None
        else {"inputs_embeds": embeddings}
    )
    out = backbone_of(model)(
        **inputs,
        position_ids=torch.from_numpy(rows.position_ids).to(device),
        attention_mask=None,
        use_cache=False,
        rows=layout,
    )
    return out.last_hidden_state.flatten(0, 1)
