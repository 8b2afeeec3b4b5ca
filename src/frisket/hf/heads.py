"""Reading a model's output head: weight, bias, and what its family does to the logits."""

from torch import nn
from transformers import PreTrainedModel

from frisket.errors import UnsupportedError
from frisket.supervise.loss import Head


def head_of(model: PreTrainedModel) -> Head:
    """The head as a value. That nothing is missing here is checked at the start of a run (conformance).

    Raises:
        UnsupportedError: the head is no plain linear layer (for example an adapter sits on it).
    """
    module = model.get_output_embeddings()
    if type(module) is not nn.Linear:
        raise UnsupportedError(
            f"the output head is a {type(module).__name__}, not a plain linear layer.\n"
            "Keep adapters off it: adapt.where=all-linear."
        )
    config = model.config.get_text_config()
    scale = getattr(config, "logit_scale", None) or 1.0  # Cohere multiplies
    scale /= getattr(config, "logits_scaling", None) or 1.0  # Granite divides
    return Head(module.weight, module.bias, float(scale), getattr(config, "final_logit_softcapping", None))
