"""Default learning rates: what each method declares, where it comes from, and how it follows width and length.

Source: Thinking Machines, LoRA Without Regret (2025), and the formula in their tinker-cookbook (`hyperparam_utils`):
rate = 5e-5 · m · (2000 / hidden size) ^ p, with m = 10 for LoRA and 1 for full fine-tuning, p = 0.781 for Llama and
0.0775 for Qwen; the best LoRA rate hardly depends on the rank, and is nearer to 15 times the full one where the run has
fewer than about 100 steps. Their cookbook's later sweep of single models (Tulu 3, batch 128, 780 steps) found 3e-4 for
8B and 1e-3 for 1B and 3B of Llama, which p = 0.781 gives to within a factor of 3.

Differs: p = 0.781 for every family, which is the careful choice above a width of 2000 (a Qwen of width 4096 gets 2.9e-4
instead of 4.7e-4), and p = 1 below, where nothing was fitted and Tensor Programs V (Yang et al. 2022, table 3: Adam's
rate of hidden matrices goes with 1 / width) is the only guide: on the bundled base (width 256, 150 steps) the 2.5e-3
that p = 0.781 gives was 2 to 6 % worse than 5e-3. The factor of short runs holds up to 200 steps: at 150 the best rate
was still 1.4 times the other. Rates are for AdamW. What was measured: docs/decisions/0005-default-rates.md.
"""

import math
from dataclasses import dataclass, replace

WIDTH = 2000
EXPONENT, EXPONENT_BELOW = 0.781, 1.0
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
    """

    value: float
    source: str
    follows_width: bool = False
    short_run: float = 1.0


@dataclass(frozen=True)
class Rate:
    """A peak rate and why it is so."""

    value: float
    why: str


def rate_of(declared: Declared, hidden_size: int, steps: int) -> Rate:
    """The rate of one run, to two digits.

    >>> lora = Declared(5e-4, "a blog", follows_width=True, short_run=1.5)
    >>> [rate_of(lora, width, steps).value for width, steps in ((4096, 1000), (4096, 199), (250, 1000))]
    [0.00029, 0.00043, 0.004]
    """
    value, why = declared.value, declared.source
    if declared.follows_width:
        value *= (WIDTH / hidden_size) ** (EXPONENT if hidden_size >= WIDTH else EXPONENT_BELOW)
        why += f", here for width {hidden_size:,}"
    if declared.short_run != 1 and steps < SHORT_RUN:
        value *= declared.short_run
        why += f", times {declared.short_run:g} because the run has fewer than {SHORT_RUN} steps"
    return Rate(float(f"{value:.2g}"), why)


FULL = Declared(5e-5, "LoRA Without Regret: 5e-5 at width 2000", follows_width=True)
LORA_ALPHA = 32.0
LORA = Declared(
    5e-4,
    "LoRA Without Regret: ten times full fine-tuning, 5e-4 at width 2000",
    follows_width=True,
    short_run=1.5,
)


def lora_rate(rank: int, alpha: float, *, rslora: bool) -> Declared:
    """LoRA's rate at another alpha than the source's 32: an update grows with scale times rank, so the rate shrinks.

    >>> [lora_rate(rank, 2 * rank, rslora=False).value for rank in (8, 16, 32)]
    [0.001, 0.0005, 0.00025]
    """
    reach = alpha * math.sqrt(rank) if rslora else alpha
    if reach == LORA_ALPHA:
        return LORA
    source = f"{LORA.source}, times 32 / {reach:g} because its alpha was 32 at every rank"
    return replace(LORA, value=LORA.value * LORA_ALPHA / reach, source=source)


IA3 = Declared(3e-3, "T-Few (arXiv 2205.05638), section 3.3")
LN_TUNING = Declared(1e-3, "ours: the paper's rates are for vision-language models")

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
UNKNOWN = Declared(1e-3, "ours: no source states one for this type, so try several: train.learning_rate=3e-4,1e-3,3e-3")
