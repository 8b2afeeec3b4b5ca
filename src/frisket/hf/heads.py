"""Reading a model's output head: weight, bias, and what its family does to the logits."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from frisket.adapt.head import low_rank_of
from frisket.errors import UnsupportedError
from frisket.hf.forward import hidden_states
from frisket.supervise.loss import Head, LowRank
from frisket.types import Rows


def head_of(model: PreTrainedModel) -> Head:
    """The head as a value. That nothing is missing here is checked at the start of a run (conformance).

    Raises:
        UnsupportedError: the head is neither a plain linear layer nor one with plain LoRA on it.
    """
    module = model.get_output_embeddings()
    found = low_rank_of(module)  # pyright: ignore[reportArgumentType]
    low_rank = None
    if found is not None:
        module, factors = found
        low_rank = None if factors is None else LowRank(*factors)
    if type(module) is not nn.Linear:
        raise UnsupportedError(
            f"the output head ({type(module).__module__}.{type(module).__name__}) is neither a plain linear layer nor "
            "one with plain LoRA; LoRA with dora or with a bias of its own is not plain.\n"
            "Keep other adapters off the head: adapt.where=all-linear."
        )
    config = model.config.get_text_config()
    scale = getattr(config, "logit_scale", None) or 1.0  # Cohere multiplies
    scale /= getattr(config, "logits_scaling", None) or 1.0  # Granite divides
    return Head(module.weight, module.bias, float(scale), getattr(config, "final_logit_softcapping", None), low_rank)


@torch.no_grad()
def logits_of(model: PreTrainedModel, rows: Rows, backend: str = "auto") -> Float[Tensor, "place vocab"]:
    """Logits at every place of the flattened rows, through frisket's own path, in evaluation mode."""
    was_training = model.training
    model.eval()
    try:
        return head_of(model).logits(hidden_states(model, rows, backend))
    finally:
        model.train(was_training)
