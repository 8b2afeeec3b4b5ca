"""What published experiments say of a source's lengths and size: sentences, each with its paper."""

from typing import NamedTuple

from frisket.errors import counted
from frisket.supervise.settings import TeachSettings

FEW_SAMPLES = 15_000  # the largest set on which instruction modelling was found to help (2405.14394, Table 1)
MANY_SAMPLES = 35_000  # at a ratio of about 10 the gain was gone with so many samples (2405.14394, section 4)
LONG_PROMPTS = 1.0  # prompt tokens over answer tokens; below 1 prompt-loss weights did not matter (2401.13586)
SHORT_PROMPTS = 0.3  # at 0.09 (LIMA) the gain on generated answers was gone (2405.14394, Table 1)
_TEACHES_PROMPTS = ("instructions", "boilerplate", "all")


class Lengths(NamedTuple):
    """What advice is given on.

    Attributes:
        samples: of the source that are trained on.
        ratio: median over samples of prompt tokens (system, user, tool results) over answer tokens.
        tool_results: tokens of tool results that are taught.
    """

    samples: int
    ratio: float
    tool_results: int


class Advice(NamedTuple):
    """One sentence, where it comes from, and the override that follows it."""

    text: str
    source: str
    fix: str


def advise(lengths: Lengths, settings: TeachSettings) -> list[Advice]:
    """What the literature advises for a source.

    >>> [advice.fix for advice in advise(Lengths(1_000, 4.0, 0), TeachSettings())]
    ['supervise.policy=instructions']
    >>> advise(Lengths(1_000, 0.5, 0), TeachSettings())
    []
    """
    found = []
    teaches_prompts = settings.policy in _TEACHES_PROMPTS or settings.prompt_weight > 0
    measured = f"prompts {lengths.ratio:.2g} times as long as their answers in {counted(lengths.samples, 'sample')}"
    if not teaches_prompts and lengths.ratio >= LONG_PROMPTS and lengths.samples <= FEW_SAMPLES:
        found.append(
            Advice(
                f"{measured}: with few samples and short answers, teaching the prompts too has raised scores "
                "(or a prompt-loss weight of 0.01 to 0.5: supervise.prompt_weight=0.1)",
                "instruction modelling, arXiv 2405.14394, Table 1; prompt-loss weight, arXiv 2401.13586",
                "supervise.policy=instructions",
            )
        )
    if teaches_prompts and (lengths.ratio < SHORT_PROMPTS or lengths.samples >= MANY_SAMPLES):
        found.append(
            Advice(
                f"{measured}: with long answers or many samples, teaching the prompts too has not helped",
                "instruction modelling, arXiv 2405.14394, Table 1 and section 4",
                "supervise.policy=assistant",
            )
        )
    if lengths.tool_results:
        found.append(
            Advice(
                f"tool results are taught ({counted(lengths.tool_results, 'token')}): the model learns to write what a "
                "tool is to answer",
                "no paper studied this",
                "supervise.roles.tool_result=0",
            )
        )
    return found
