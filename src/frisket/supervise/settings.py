"""The ``supervise`` section of the recipe: which tokens teach, how, and what the sum is divided by."""

from typing import Annotated, Literal

from pydantic import Field

from frisket.settings import Section, knob

RoleName = Literal[
    "bos",
    "template",
    "system",
    "user",
    "assistant",
    "reasoning",
    "tool_call",
    "tool_result",
    "end_of_turn",
    "text",
]


class Rule(Section):
    """A factor on some tokens. It follows the weights that messages bring, so what they switch off stays off."""

    roles: tuple[RoleName, ...] | None = knob(None, "provenances it is for; default: all")
    turns: Literal["all", "last", "earlier"] = knob(
        "all", "'last': the last assistant message; 'earlier': all messages before it"
    )
    weight: float = knob(..., "factor on the weight of these tokens")


class TeachSettings(Section):
    """Which tokens teach, and how much."""

    policy: Literal["assistant", "completion", "last-turn", "instructions", "boilerplate", "all", "roles"] = knob(
        "assistant",
        "'assistant': every assistant turn; 'completion': all that the assistant writes after the prompt; 'last-turn': "
        "its last message; 'instructions': everything but template tokens; 'boilerplate': the same without text that "
        "is constant across the source; 'all': every token; 'roles': only what `roles` names",
        was=("train_on_inputs", "assistant_only_loss", "completion_only_loss", "mask_history", "roles_to_train"),
    )
    prompt_weight: float = knob(
        0.0, "prompt-loss weight: weight of the tokens that the policy does not teach", was=("prompt_loss_weight",)
    )
    answer_weight: float = knob(1.0, "weight of the tokens that the policy teaches")
    roles: dict[RoleName, float] = knob({}, "weights by provenance, instead of the policy's: {tool_result: 0.5}")
    rules: tuple[Rule, ...] = knob((), "factors, applied in order after the weights that messages bring")
    boilerplate: Literal["auto"] | tuple[str, ...] = knob(
        "auto", "texts that prompts begin or end with and that policy 'boilerplate' leaves out; 'auto' finds them"
    )


class SuperviseSettings(TeachSettings):
    """Which tokens teach, the loss of each, and the normaliser of a step."""

    loss: Literal["cross-entropy", "dft"] = knob(
        "cross-entropy", "loss of a prediction: -log p, or 'dft': -p log p with p held fixed", was=("loss_type",)
    )
    label_smoothing: float = knob(
        0.0, "share of a target that is spread over the vocabulary", was=("label_smoothing_factor",), ge=0, lt=1
    )
    normaliser: Literal["weights", "tokens", "sequences"] | Annotated[float, Field(gt=0)] = knob(
        "weights",
        "what the summed loss of a step is divided by: sum of weights, count of taught tokens, samples, or a number",
    )
    chunk_tokens: Annotated[int, Field(gt=0)] | Literal["auto"] = knob(
        "auto",
        "predictions whose logits exist at one time; 'auto': as many as fit the cache on a CPU, from 128 to 4,096",
    )
