"""The ``supervise`` section of the recipe: which tokens teach, and what the sum is divided by."""

from typing import Annotated, Literal

from pydantic import Field

from frisket.settings import Section, knob


class SuperviseSettings(Section):
    """Policy that gives each token its weight, and the normaliser of a step."""

    policy: Literal["assistant", "completion", "all"] = knob(
        "assistant",
        "'assistant': every assistant turn; 'completion': the last assistant turn; 'all': every token",
        was=("train_on_inputs", "assistant_only_loss", "completion_only_loss", "mask_history"),
    )
    normaliser: Literal["weights", "tokens", "sequences"] | Annotated[float, Field(gt=0)] = knob(
        "weights",
        "what the summed loss of a step is divided by: sum of weights, count of taught tokens, samples, or a number",
    )
    chunk_tokens: int = knob(1024, "predictions whose logits exist at one time", gt=0)
