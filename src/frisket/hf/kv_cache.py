"""What the model remembers of a text while it goes on with it: keys and values, and states of recurrent layers."""

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel

from frisket.hf.attention import own_attention


@torch.no_grad()
def cache_bytes(model: PreTrainedModel, rows: int, tokens: int) -> int:
    """Bytes that generation keeps once all rows have so many tokens, by the model's own code.

    Args:
        model: on the meta device, where it computes nothing.

    Raises:
        NotImplementedError: its code needs values.
        RuntimeError: likewise.
    """
    with own_attention(model):
        out = model(input_ids=torch.zeros(rows, tokens, dtype=torch.long, device="meta"), use_cache=True)
    kept = [value for layer in out.past_key_values.layers for value in tree_leaves(vars(layer))]
    return sum(value.nbytes for value in kept if isinstance(value, Tensor))
