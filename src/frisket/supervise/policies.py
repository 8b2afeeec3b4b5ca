"""From provenance to weights: each policy is a small function of what the renderer found.

The weight of a token as a target is made in layers, each of which keeps its name: the policy with its two weights,
``roles``, the weight that a message brings, the recipe's rules in the order written, per-token weights of the data.
A message's weight replaces what stands there, a rule multiplies it, a token's own weight replaces all.
"""

from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64

from frisket.errors import ConfigError
from frisket.supervise.boilerplate import Phrase, constant_text
from frisket.supervise.settings import Rule, TeachSettings
from frisket.types import OWN_WEIGHT, Provenance, Sequence

Mask = Bool[np.ndarray, "token"]
Weights = Float64[np.ndarray, "token"]


def _of(*roles: Provenance) -> Bool[np.ndarray, "provenance"]:
    """True at some provenances: looked up by token, which is far quicker than a search."""
    return np.isin(np.arange(len(Provenance)), roles)


_ANSWER = _of(Provenance.ASSISTANT, Provenance.REASONING, Provenance.TOOL_CALL, Provenance.END_OF_TURN, Provenance.TEXT)
_ASKED = _of(Provenance.SYSTEM, Provenance.USER)
_NOBODYS = _of(Provenance.BOS, Provenance.TEMPLATE)


class Teaching(NamedTuple):
    """What a source teaches.

    Attributes:
        phrases: constant text of the source, for policy ``boilerplate``.
    """

    settings: TeachSettings
    phrases: tuple[Phrase, ...] = ()


class Layer(NamedTuple):
    """One thing that decides weights: its name, the tokens it speaks for, and all weights after it."""

    name: str
    tokens: Mask
    weights: Weights


def assistant(sequence: Sequence) -> Mask:
    """What an assistant writes, its end of turn included; raw text counts as written by it.

    >>> texts, sequence = CHAT
    >>> draw(texts, assistant(sequence))
    <s> [user] Hi ! <end> [bot] hm Yes . <end>
    0   0      0  0 0     0     1  1   1 1
    """
    return _ANSWER[sequence.roles]


def completion(sequence: Sequence) -> Mask:
    """What the assistant writes after the prompt: after the last token of a user or a system message.

    Tool calls before the final answer belong to it; tool results in between do not.

    >>> texts, sequence = TOOLS
    >>> draw(texts, completion(sequence))
    <s> Hi [bot] Yes <end> More [bot] call() <end> [tool] 42 [bot] It's 42 <end>
    0   0  0     0   0     0    0     1      1     0      0  0     1       1
    """
    answer = assistant(sequence)
    asked = np.flatnonzero(_ASKED[sequence.roles])
    if len(asked):
        answer[: asked[-1]] = False
    return answer


def last_turn(sequence: Sequence) -> Mask:
    """What the assistant writes in its last message.

    >>> texts, sequence = TOOLS
    >>> draw(texts, last_turn(sequence))
    <s> Hi [bot] Yes <end> More [bot] call() <end> [tool] 42 [bot] It's 42 <end>
    0   0  0     0   0     0    0     0      0     0      0  0     1       1
    """
    answer = assistant(sequence)
    return answer & (sequence.turns == sequence.turns[answer].max()) if answer.any() else answer


def instructions(sequence: Sequence) -> Mask:
    """Everything that somebody wrote; only template tokens are left out.

    Source: instruction modelling, Shi et al. 2024, arXiv 2405.14394, eq. 2. Differs: end-of-turn tokens of answers are
    taught; the released code leaves out only the very first marker, which is not what the paper says.

    >>> texts, sequence = CHAT
    >>> draw(texts, instructions(sequence))
    <s> [user] Hi ! <end> [bot] hm Yes . <end>
    0   0      1  1 0     0     1  1   1 1
    """
    return ~_NOBODYS[sequence.roles]


def everything(sequence: Sequence) -> Mask:
    """Every token; that nothing predicts the first is seen to in ``token_weights``.

    >>> texts, sequence = CHAT
    >>> draw(texts, everything(sequence))
    <s> [user] Hi ! <end> [bot] hm Yes . <end>
    1   1      1  1 1     1     1  1   1 1
    """
    return np.ones(len(sequence), dtype=bool)


def nothing(sequence: Sequence) -> Mask:
    """Nothing: ``roles`` alone says what teaches."""
    return np.zeros(len(sequence), dtype=bool)


POLICIES: dict[str, Callable[[Sequence], np.ndarray]] = {
    "assistant": assistant,
    "completion": completion,
    "last-turn": last_turn,
    "instructions": instructions,
    "boilerplate": instructions,
    "all": everything,
    "roles": nothing,
}


def token_weights(sequence: Sequence, teaching: Teaching) -> Weights:
    """Weight of each token as a target; the first token is nobody's target and has weight 0.

    Prompt-loss weight (Huerta-Enochian and Ko 2024, arXiv 2401.13586): ``prompt_weight`` on what the policy does not
    teach. Weighted instruction tuning (Chatterjee et al. 2025, arXiv 2507.07817): both weights, and the normaliser
    ``tokens``, because the paper divides by the count of weights that are not 0. Differs from both: template tokens
    are part of the prompt.

    >>> texts, sequence = CHAT
    >>> draw(texts, token_weights(sequence, Teaching(TeachSettings(prompt_weight=0.4, answer_weight=0.6))))
    <s> [user] Hi  !   <end> [bot] hm  Yes .   <end>
    0   0.4    0.4 0.4 0.4   0.4   0.6 0.6 0.6 0.6

    With text that is constant across the source (here ``Hi``) left out:

    >>> greeting = Phrase(Provenance.USER, "start", (2,), messages=90, of=100)
    >>> draw(texts, token_weights(sequence, Teaching(TeachSettings(policy="boilerplate"), (greeting,))))
    <s> [user] Hi ! <end> [bot] hm Yes . <end>
    0   0      0  1 0     0     1  1   1 1

    With ``roles`` and a rule:

    >>> rule = Rule(roles=("assistant",), turns="last", weight=0.5)
    >>> settings = TeachSettings(policy="roles", roles={"assistant": 1, "reasoning": 0.2}, rules=(rule,))
    >>> draw(texts, token_weights(sequence, Teaching(settings)))
    <s> [user] Hi ! <end> [bot] hm  Yes .   <end>
    0   0      0  0 0     0     0.2 0.5 0.5 0
    """
    *_, last = _layers(sequence, teaching)
    return last.weights


def rule_names(sequence: Sequence, teaching: Teaching) -> list[tuple[str, ...]]:
    """The rules that gave each token its weight, in the order applied."""
    names: list[tuple[str, ...]] = [()] * len(sequence)
    for layer in _layers(sequence, teaching):
        for place in np.flatnonzero(layer.tokens):
            names[place] = (*names[place], layer.name)
    return names


def _layers(sequence: Sequence, teaching: Teaching) -> Iterator[Layer]:
    settings = teaching.settings
    taught = POLICIES[settings.policy](sequence)
    weights = np.where(taught, settings.answer_weight, settings.prompt_weight)
    yield Layer(_weighed(f"policy {settings.policy}", "answer_weight", settings.answer_weight, 1.0), taught, weights)
    if settings.policy == "boilerplate":
        constant = constant_text(sequence, teaching.phrases)
        weights = np.where(constant, settings.prompt_weight, weights)
        yield Layer("constant across the source", constant, weights)
        taught = taught & ~constant
    untaught = f"not taught by policy {settings.policy}"
    yield Layer(_weighed(untaught, "prompt_weight", settings.prompt_weight, 0.0), ~taught, weights)
    for role, weight in settings.roles.items():
        of_role = sequence.roles == Provenance[role.upper()]
        weights = np.where(of_role, weight, weights)
        yield Layer(f"roles.{role} = {weight:g}", of_role, weights)
    yield from _data_and_rules(sequence, settings.rules, weights)


def _data_and_rules(sequence: Sequence, rules: Seq[Rule], weights: Weights) -> Iterator[Layer]:
    own = (sequence.marks & OWN_WEIGHT) != 0
    said = ~np.isnan(sequence.data_weights)
    by_message = said & ~own
    for weight in np.unique(sequence.data_weights[by_message]) if by_message.any() else ():
        message = by_message & (sequence.data_weights == weight)
        weights = np.where(message, weight, weights)
        yield Layer(f"the message's weight {weight:g}", message, weights)
    for number, rule in enumerate(rules):
        hit = _reached(sequence, rule)
        weights = np.where(hit, weights * rule.weight, weights)
        yield Layer(f"rule {number + 1}: × {rule.weight:g}", hit, weights)
    if own.any():
        weights = np.where(own & said, sequence.data_weights, weights)
        yield Layer("the token's own weight", own & said, weights)
    first = np.zeros(len(sequence), bool)
    first[:1] = True
    weights = weights.copy()
    weights[:1] = 0.0
    yield Layer("first token: nothing predicts it", first, weights)


def _weighed(name: str, knob: str, weight: float, usual: float) -> str:
    return name if weight == usual else f"{name}, {knob} {weight:g}"


def _reached(sequence: Sequence, rule: Rule) -> Mask:
    wanted = [Provenance[name.upper()] for name in rule.roles] if rule.roles else Provenance
    hit = _of(*wanted)[sequence.roles]
    if rule.turns == "all":
        return hit
    answer = assistant(sequence)
    last = sequence.turns[answer].max() if answer.any() else np.inf
    return hit & ((sequence.turns == last) if rule.turns == "last" else (sequence.turns < last))


def check(settings: TeachSettings, place: str = "supervise") -> None:
    """Refuse settings that contradict one another.

    Raises:
        ConfigError: policy `roles` without roles, or texts of boilerplate under another policy.
    """
    if settings.policy == "roles" and not settings.roles:
        raise ConfigError(
            f"{place}.policy = 'roles' teaches only what {place}.roles names, and it names nothing.\n"
            f"Say which: {place}.roles={{assistant: 1, end_of_turn: 1}}"
        )
    if settings.boilerplate != "auto" and settings.policy != "boilerplate":
        raise ConfigError(
            f"{place}.boilerplate names texts, but only policy 'boilerplate' leaves them out.\n"
            f"Use {place}.policy=boilerplate"
        )


def problem_of(sequence: Sequence, teaching: Teaching, normaliser: str | float = "weights") -> str | None:
    """Why this sample cannot be taught, or None."""
    weights = token_weights(sequence, teaching)
    if normaliser == "weights" and (weights < 0).any():
        return "a weight is negative, and supervise.normaliser = 'weights' divides by their sum; use tokens"
    if weights.any():
        return _endless(sequence, weights, teaching.settings)
    policy = teaching.settings.policy
    if POLICIES[policy](sequence).any() and policy != "boilerplate":
        return f"every token that `{policy}` teaches has weight 0, by the data or by the recipe"
    written = np.flatnonzero((sequence.turns >= 0) & ~_NOBODYS[sequence.roles])
    if not len(written):
        return f"nothing is supervised under `{policy}`"
    last = Provenance(sequence.roles[written[-1]]).name.lower().replace("_", " ")
    return f"nothing is supervised under `{policy}`: its last written token is of the {last}"


def _endless(sequence: Sequence, weights: Weights, settings: TeachSettings) -> str | None:
    """An answer that is taught without its end token, though nobody asked for that."""
    ends = np.flatnonzero(sequence.roles == Provenance.END_OF_TURN)
    if weights[ends].all():
        return None
    if "end_of_turn" in settings.roles or any("end_of_turn" in (r.roles or ()) for r in settings.rules):
        return None
    before = ends[(ends > 0) & np.isnan(sequence.data_weights[ends])] - 1
    bad = before[(weights[before] != 0) & (weights[before + 1] == 0) & _ANSWER[sequence.roles[before]]]
    if not len(bad):
        return None
    return f"messages[{sequence.turns[bad[0]]}] (assistant) is taught without its end token; the model would not stop"
