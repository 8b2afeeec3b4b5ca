"""The least time that training on a token can take on this machine: useful operations over the measured rate.

Of T tokens, S of them targets, a linear layer of i inputs and o outputs takes 2 T i o operations forward and as many
for the gradient of its input, in blocks above the lowest in which something moves; attention 4 P w forward and twice
that backward, for P pairs of tokens that see each other and heads of width w together; the head 2 S h V each way;
LoRA's factors 6 T r (i + o); a moving matrix its share again. `benchmarks/method_floors.py` has the code. The rate is
the best of several matrix products of the shape's own sizes and of 2,048 x 2,048, in the type that the arm computes in.
"""

from pathlib import Path

import torch
from benchmarks.method_floors import Load, floor_of
from benchmarks.speed.case import Case, Tokens
from benchmarks.speed.frisket_arm import recipe_of
from transformers import AutoConfig

from benchmarks import method_floors
from frisket.hf.load import empty_model
from frisket.recipe import Recipe


def flops_of(case: Case, work: Path, tokens: Tokens) -> float:
    """Useful operations for one token of the samples."""
    model = empty_model(AutoConfig.from_pretrained(str(work / "model")))
    load = Load.of(model, list(map(len, tokens.ids)), taught=sum(map(sum, tokens.is_taught)), rows=1)
    method = Recipe.model_validate(recipe_of(case, work, "fp32")).adapt
    attached = method.attach(model, torch.Generator().manual_seed(0))
    return floor_of(method, attached, load).flops / load.tokens


def gemm_rate(case: Case, work: Path, compute: str) -> float:
    """Operations a second of the fastest matrix product, in the type that an arm computes in."""
    kind = {"bf16": torch.bfloat16, "fp32": torch.float32}[compute]
    return method_floors.gemm_rate(AutoConfig.from_pretrained(str(work / "model")), case.tokens, kind)
