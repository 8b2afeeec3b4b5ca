"""One forward of the backbone over rows: hidden states, never logits."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from frisket.adapt.roots import root_of
from frisket.hf.attention import Layout, Prefixed, prepare
from frisket.transfer import to_device
from frisket.types import ROOT, Leaf, Rows

Model = PreTrainedModel  # so that callers outside hf/ can name it


def backbone_of(model: PreTrainedModel) -> nn.Module:
    """The model without its output head."""
    return getattr(model, model.base_model_prefix)


def hidden_states(
    model: PreTrainedModel, rows: Rows, backend: str = "auto", embeddings: Tensor | None = None
) -> Float[Tensor, "place hidden"]:
    """Last hidden states (after the final norm) of the flattened rows.

    Where the model has a root, its virtual tokens are put in front of every row and cut off the result again.

    Args:
        backend: which attention backend computes them.
        embeddings: [row, token, hidden] input vectors in place of the token ids' own.
    """
    root = root_of(model)
    ids = to_device(rows.input_ids, model.device)
    if root is None:
        inputs = (
            {"input_ids": ids}
            if embeddings is None
            else {"inputs_embeds": embeddings, **_beside_embeddings(model, ids)}
        )
        return _through(model, rows, prepare(rows, backend, model.device), inputs).flatten(0, 1)
    words = model.get_input_embeddings()(ids) if embeddings is None else embeddings
    vectors = root.vectors(words).expand(len(words), -1, -1)
    whole = rooted(rows, root.tokens)
    layout = prepare(whole, backend, model.device)
    prefix = root.keys_and_values(words)
    hidden = _through(
        model,
        whole,
        layout if prefix is None else Prefixed(layout, prefix),
        {"inputs_embeds": torch.cat([vectors, words], dim=1)},
    )
    return hidden[:, root.tokens :].flatten(0, 1)


def _through(
    model: PreTrainedModel, rows: Rows, layout: Layout | Prefixed, inputs: dict[str, Tensor]
) -> Float[Tensor, "row token hidden"]:
    out = backbone_of(model)(
        **inputs,
        position_ids=to_device(rows.position_ids, model.device),
        attention_mask=None,
        use_cache=False,
        rows=layout,
    )
    return out.last_hidden_state


def rooted(rows: Rows, tokens: int) -> Rows:
    """Put a root segment of so many tokens in front of every row: the parent of all segments that had none.

    >>> from frisket.types import Leaf
    >>> two = Rows(np.array([[5, 6, 7]]), np.array([[0, 1, 0]]), np.array([[0, 0, 1]]), np.array([-1, -1]),
    ...            (Leaf("a", 0, 0), Leaf("b", 1, 1)))
    >>> whole = rooted(two, 2)
    >>> whole.segment_ids.tolist(), whole.position_ids.tolist(), whole.parent_segment.tolist()
    ([[0, 0, 1, 1, 2]], [[0, 1, 2, 3, 2]], [-1, 0, 0])
    """
    count = len(rows.input_ids)
    is_real = rows.is_real
    row_of = np.zeros(len(rows.parent_segment), dtype=np.int64)
    row_of[rows.segment_ids[is_real]] = np.nonzero(is_real)[0]
    parents = np.where(rows.parent_segment == ROOT, row_of, rows.parent_segment + count)
    own = np.broadcast_to(np.arange(tokens), (count, tokens))
    return Rows(
        np.concatenate([np.zeros_like(own), rows.input_ids], axis=1),
        np.concatenate([own, np.where(is_real, rows.position_ids + tokens, 0)], axis=1),
        np.concatenate(
            [np.broadcast_to(np.arange(count)[:, None], own.shape), np.where(is_real, rows.segment_ids + count, -1)],
            axis=1,
        ),
        np.concatenate([np.full(count, ROOT), parents]),
        tuple(Leaf(leaf.sample_id, leaf.first + count, leaf.last + count) for leaf in rows.leaves),
    )


def _beside_embeddings(model: PreTrainedModel, ids: Tensor) -> dict[str, Tensor]:
    """What a family looks up by token id apart from the embeddings: an input of each layer (Gemma 3n and 4)."""
    if not getattr(model.config.get_text_config(), "hidden_size_per_layer_input", None):
        return {}
    look_up: Any = model.get_decoder().get_per_layer_inputs
    return {"per_layer_inputs": look_up(ids)}
