"""The least time that training on a token can take on this machine: useful operations over the measured rate.

Of T tokens, S of them targets, a linear layer of i inputs and o outputs takes 2 T i o operations forward and as many
for the gradient of its input, in blocks above the lowest in which something moves; attention 4 P w forward and twice
that backward, for P pairs of tokens that see each other and heads of width w together; the head 2 S h V each way;
LoRA's factors 6 T r (i + o); a moving matrix its share again. `benchmarks/method_floors.py` has the code. The rate is
the best of several matrix products of the shape's own sizes and of 2,048 x 2,048, in the type that the arm computes in.
"""

import time
from collections.abc import Callable
from pathlib import Path

import torch
from benchmarks.method_floors import Load, floor_of
from benchmarks.speed.case import Case, Tokens
from benchmarks.speed.frisket_arm import recipe_of
from transformers import AutoConfig

from frisket.adapt.layers import sizes_of
from frisket.adapt.where import head_name, is_linear
from frisket.hf.load import empty_model
from frisket.recipe import Recipe


def flops_of(case: Case, work: Path, tokens: Tokens) -> float:
    """Useful operations for one token of the samples."""
    config = AutoConfig.from_pretrained(str(work / "model"))
    model = empty_model(config)
    linears = {name: sizes_of(m) for name, m in model.named_modules() if is_linear(m) and name != head_name(model)}
    lengths = [len(ids) for ids in tokens.ids]
    method = Recipe.model_validate(recipe_of(case, work, "fp32")).adapt
    attached = method.attach(model, torch.Generator().manual_seed(0))
    load = Load(
        linears=linears,
        tokens=sum(lengths),
        rows=1,
        pairs=sum(n * (n + 1) // 2 for n in lengths),
        taught=sum(map(sum, tokens.is_taught)),
        hidden=config.hidden_size,
        heads=config.num_attention_heads * (config.head_dim or config.hidden_size // config.num_attention_heads),
        vocabulary=config.vocab_size,
        layers=config.num_hidden_layers,
        bytes=4,
    )
    return floor_of(method, attached, load).flops / load.tokens


def gemm_rate(case: Case, work: Path, compute: str) -> float:
    """Operations a second of the fastest matrix product, of either kind."""
    config = AutoConfig.from_pretrained(str(work / "model"))
    kind = {"bf16": torch.bfloat16, "fp32": torch.float32}[compute]
    tall = torch.randn(case.tokens, config.hidden_size).to(kind)
    wide = torch.randn(config.hidden_size, config.intermediate_size).to(kind)
    square = torch.randn(2048, 2048).to(kind)
    own = 2 * len(tall) * config.hidden_size * config.intermediate_size / _fastest(lambda: tall @ wide, 30)
    return max(own, 2 * 2048**3 / _fastest(lambda: square @ square, 10))


def _fastest(call: Callable[[], object], times: int) -> float:
    call()
    found = []
    for _ in range(times):
        begun = time.perf_counter()
        call()
        found.append(time.perf_counter() - begun)
    return min(found)
