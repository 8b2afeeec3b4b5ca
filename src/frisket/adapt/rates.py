"""Default learning rates: what each method declares, where it comes from, and how it follows width and length.

Source: Thinking Machines, LoRA Without Regret (2025), and the formula in their tinker-cookbook (`hyperparam_utils`):
rate = 5e-5 · m · (2000 / hidden size) ^ p, with m = 10 for LoRA and 1 for full fine-tuning, p = 0.781 for Llama and
0.0775 for Qwen; the best LoRA rate hardly depends on the rank, and is nearer to 15 times the full one where the run has
fewer than about 100 steps. Their cookbook's later sweep of single models (Tulu 3, batch 128, 780 steps) found 3e-4 for
8B and 1e-3 for 1B and 3B of Llama, which p = 0.781 gives to within a factor of 3.

Differs: p = 0.781 for every family, which is the careful choice above a width of 2000 (a Qwen of width 4096 gets half
of what their formula says), and p = 1.3 below, where the source fitted nothing: it is what the bundled base (width 256)
wants on five data sets; Tensor Programs V (Yang et al. 2022, table 3: Adam's rate of hidden matrices goes with 1 /
width) would say 1. The factor of short runs holds up to 200 steps. The source held alpha at 32 at every rank, where the
best rate did not depend on it; with alpha = 2 * rank we found it to fall with rank ^ 0.2, and take the square root of
rsLoRA's argument (see `lora_rate`). Rates are for AdamW. What was measured: docs/decisions/0005-default-rates.md.
"""

import math
from dataclasses import dataclass, replace

WIDTH = 2000
EXPONENT, EXPONENT_BELOW = 0.781, 1.3
SHORT_RUN = 200
"""Steps; a run with fewer is short."""


@dataclass(frozen=True)
class Declared:
    """What a method declares.

    Attributes:
        value: peak rate of AdamW; where it follows the width, at a hidden size of 2000.
        source: where it comes from, in words.
        follows_width: whether it is scaled by the width.
        short_run: factor of runs with fewer than 200 steps.
        whole_run: whether ``value`` is the sum of the rates of all steps, and not their peak.
    """

    value: float
    source: str
    follows_width: bool = False
    short_run: float = 1.0
    whole_run: bool = False


@dataclass(frozen=True)
class Rate:
    """A peak rate and why it is so."""

    value: float
    why: str


def rate_of(declared: Declared, hidden_size: int, steps: int, *, falls: bool = True) -> Rate:
    """The rate of one run, to two digits.

    Args:
        falls: whether it falls from its peak to 0 (by cosine or evenly: its mean is half the peak), or stays there.

    >>> lora = Declared(5e-4, "a blog", follows_width=True, short_run=1.5)
    >>> [rate_of(lora, width, steps).value for width, steps in ((4096, 1000), (4096, 199), (250, 1000))]
    [0.00029, 0.00043, 0.0075]
    """
    value, why = declared.value, declared.source
    if declared.whole_run:
        value *= (2 if falls else 1) / steps
        why += f", {declared.value:g} in {steps:,} steps" + ("" if falls else " at a rate that does not fall")
    if declared.follows_width:
        value *= (WIDTH / hidden_size) ** (EXPONENT if hidden_size >= WIDTH else EXPONENT_BELOW)
        why += f", here for width {hidden_size:,}"
    if declared.short_run != 1 and steps < SHORT_RUN:
        value *= declared.short_run
        why += f", times {declared.short_run:g} because the run has fewer than {SHORT_RUN} steps"
    return Rate(float(f"{value:.2g}"), why)


FULL = Declared(5e-5, "LoRA Without Regret: 5e-5 at width 2000", follows_width=True)
LORA_ALPHA, LORA_RANK = 32.0, 32
LORA = Declared(
    5e-4,
    "LoRA Without Regret: ten times full fine-tuning, 5e-4 at width 2000",
    follows_width=True,
    short_run=1.5,
)


def lora_rate(rank: int, alpha: float, *, rslora: bool) -> Declared:
    """LoRA's rate at another rank or alpha than 32.

    Adam moves each entry of B by about the rate, so an update grows with scale times the root of the rank (the argument
    of rsLoRA, Kalajdzievski 2023, section 3); the rate shrinks by as much.

    >>> [round(lora_rate(rank, 2 * rank, rslora=False).value, 6) for rank in (8, 32, 128)]
    [0.0005, 0.00025, 0.000125]
    """
    reach = alpha if rslora else alpha / math.sqrt(rank)
    factor = LORA_ALPHA / math.sqrt(LORA_RANK) / reach
    if math.isclose(factor, 1):
        return LORA
    source = f"{LORA.source}, times {factor:.2g} because that is for alpha 32, here at rank {rank} and alpha {alpha:g}"
    return replace(LORA, value=LORA.value * factor, source=source)


IA3 = Declared(3e-3, "T-Few (arXiv 2205.05638), section 3.3")
LN_TUNING = Declared(1e-3, "ours: the paper's rates are for vision-language models")
# Full fine-tuning of the bundled base on 340 problems of GSM8K, then 50 steps, layers 2-3, 3 % off: a held-out loss of
# 1.661 without a mask; of sums of 1, 3 and 6 spreads 1.632, 1.628, 1.625 (one seed).
MFT = Declared(3.0, "ours: the rates of the run sum to three spreads of the scores", whole_run=True)
GRAFT = Declared(1e7, "the authors' own (arXiv 2302.06600): plain SGD on scores that start near -10")
MORA = Declared(5e-4, "MoRA (arXiv 2405.12130): 3e-4 at width 4096, which is 5e-4 at 2000", follows_width=True)
# Bundled base (docs/log.md, one seed): 29 steps want 4e-2 to 6e-2, 116 about 2e-2, so the sum is what hardly changes.
# 0.04 at width 2000 is 0.58 there, and 7.7e-6 for the paper's example of 13B in 5,000 steps, which took 1e-5.
SPIEL = Declared(
    0.04,
    "ours: the rates of a run sum to 0.04 at width 2000; SpIEL (arXiv 2401.16405) took 1e-5 for 13B in 5,000 steps",
    follows_width=True,
    whole_run=True,
)
SPIEL_MOMENTUM = Declared(2e-3, "SpIEL (arXiv 2401.16405): the highest of its grid for SM3, 4e-4 to 2e-3")

_SUITE = "PEFT's method comparison (Llama-3.2-3B on MetaMathQA, 5,000 steps of 4 samples, commit 5d602fd)"
_OWN = {
    "C3A": 0.3,
    "DELORA": 1e-3,
    "GRALORA": 2e-4,
    "HIRA": 4.5e-3,
    "LOKR": 3e-3,
    "ROAD": 1e-3,
    "SHIRA": 3e-4,
    "VBLORA": 5e-4,
    "VERA": 1e-3,
}
_SHARED = ("BOFT", "DEFT", "GLORA", "HRA", "LOHA", "MISS", "OFT", "PEANUT", "RANDLORA", "WAVEFT")
# FourierFT at 1e-4 and TinyLoRA at 1e-3 learned next to nothing there (10 % and 1 % of GSM8K), so they have no source.
PEFT_RATES = {kind: Declared(value, f"{_SUITE}: this type's own rate") for kind, value in _OWN.items()}
PEFT_RATES |= {kind: Declared(1e-4, f"{_SUITE}: the rate that most types share") for kind in _SHARED}
# Virtual tokens have a way to go whatever the number of steps: with the peak of 5,000 steps, 24 steps move nothing.
_WAY = f"{_SUITE}: 1e-3, whose steps sum to 2.5"
PROMPT = Declared(2.5, _WAY, whole_run=True)
PREFIX = Declared(2.5, _WAY, whole_run=True)
PROMPT_NETWORK = Declared(1e-4, f"{_SUITE}: the rate that most types share; short runs: ours", short_run=10)
UNKNOWN = Declared(1e-3, "ours: no source states one for this type, so try several: train.learning_rate=3e-4,1e-3,3e-3")
