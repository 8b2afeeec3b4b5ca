"""From provenance to weights: each policy is a small function of what the renderer found."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float64

from frisket.supervise.settings import SuperviseSettings
from frisket.types import Provenance, Sequence

_ANSWER = (Provenance.ASSISTANT, Provenance.REASONING, Provenance.TOOL_CALL, Provenance.END_OF_TURN, Provenance.TEXT)


def _assistant(sequence: Sequence) -> Bool[np.ndarray, "token"]:
    """What an assistant writes, its end of turn included; raw text counts as written by it."""
    return np.isin(sequence.roles, _ANSWER)


def _completion(sequence: Sequence) -> Bool[np.ndarray, "token"]:
    """What the assistant writes in its last turn."""
    answer = _assistant(sequence)
    if not answer.any():
        return answer
    return answer & (sequence.turns == sequence.turns[answer].max())


def _all(sequence: Sequence) -> Bool[np.ndarray, "token"]:
    """Every token but the very first, which nothing predicts."""
    return np.ones(len(sequence), dtype=bool)


POLICIES: dict[str, Callable[[Sequence], np.ndarray]] = {
    "assistant": _assistant,
    "completion": _completion,
    "all": _all,
}


def token_weights(sequence: Sequence, settings: SuperviseSettings) -> Float64[np.ndarray, "token"]:
    """Weight of each token as a target.

    The policy weighs by provenance; what the data says replaces it. The first token is nobody's target: weight 0.
    """
    weights = POLICIES[settings.policy](sequence).astype(np.float64)
    said = ~np.isnan(sequence.data_weights)
    weights[said] = sequence.data_weights[said]
    weights[:1] = 0.0
    return weights


def rule_names(sequence: Sequence, settings: SuperviseSettings) -> list[str]:
    """Which rule gave each token its weight, for the mask view."""
    taught = POLICIES[settings.policy](sequence)
    names = [
        f"policy {settings.policy}: {Provenance(role).name.lower()}" + ("" if hit else " is not taught")
        for role, hit in zip(sequence.roles, taught, strict=True)
    ]
    for place in np.flatnonzero(~np.isnan(sequence.data_weights)):
        names[place] = f"the data says {sequence.data_weights[place]:g}"
    if names:
        names[0] = "first token: nothing predicts it"
    return names


def problem_of(sequence: Sequence, settings: SuperviseSettings) -> str | None:
    """Why this sample cannot be taught, or None."""
    weights = token_weights(sequence, settings)
    if settings.normaliser == "weights" and (weights < 0).any():
        return "a weight is negative, and supervise.normaliser = 'weights' divides by their sum; use tokens"
    if weights.any():
        return None
    last = Provenance(sequence.roles[np.flatnonzero(sequence.turns >= 0)[-1]]) if (sequence.turns >= 0).any() else None
    seen = f": it ends with a {last.name.lower().replace('_', ' ')} token" if last is not None else ""
    return f"nothing is supervised under `{settings.policy}`{seen}"
