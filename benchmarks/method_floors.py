"""The least arithmetic of one optimizer step of each method, in words and as a formula.

T tokens go through the model, S of them are taught, a linear layer has i inputs and o outputs, P pairs of tokens see
each other. One product over a layer is 2 T i o operations. Shared by all methods:

- forward: one product a layer, 4 P times the width of all heads for attention, 2 S h V for the head;
- gradients of inputs: the same again (attention twice), but only in blocks above the lowest in which something moves.

What each method adds stands at its function. Bytes are of passes over whole matrices that the formulas cannot avoid,
once a micro-batch or once a step, and of the update: AdamW reads and writes 28 bytes of each moving entry, 12 more
where the model computes in 2 bytes (its gradient is added into a buffer, its master rounded into the model).
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from frisket.adapt.base import Attached, MethodSettings
from frisket.adapt.full import Full
from frisket.adapt.graft import Graft
from frisket.adapt.layers import sizes_of
from frisket.adapt.lora import Lora
from frisket.adapt.mft import Mft
from frisket.adapt.mora import Mora
from frisket.adapt.peft import Peft
from frisket.adapt.prompts import Prefix, RootMethod
from frisket.adapt.spiel import Spiel
from frisket.adapt.where import head_name, is_linear, layer_of

ADAMW_BYTES, SGD_BYTES, NARROW_BYTES = 28, 12, 12


@dataclass(frozen=True)
class Load:
    """One step on one model.

    Attributes:
        linears: inputs and outputs of the linear layers without the head, by path.
        tokens: T, without virtual ones.
        rows: of the step, which are its micro-batches.
        pairs: P.
        taught: S.
        hidden: h.
        heads: width of all query heads together.
        vocabulary: V.
        layers: blocks.
        bytes: of a number that the model computes with.
    """

    linears: Mapping[str, tuple[int, int]]
    tokens: int
    rows: int
    pairs: int
    taught: int
    hidden: int
    heads: int
    vocabulary: int
    layers: int
    bytes: int

    @staticmethod
    def of(model: Any, lengths: Sequence[int], taught: int, rows: int) -> "Load":
        """Samples of these lengths on a model without a method."""
        config = model.config
        layers = {n: m for n, m in model.named_modules() if is_linear(m) and n != head_name(model)}
        return Load(
            linears={name: sizes_of(module) for name, module in layers.items()},
            tokens=sum(lengths),
            rows=rows,
            pairs=sum(n * (n + 1) // 2 for n in lengths),
            taught=taught,
            hidden=config.hidden_size,
            heads=config.num_attention_heads * (config.head_dim or config.hidden_size // config.num_attention_heads),
            vocabulary=config.vocab_size,
            layers=config.num_hidden_layers,
            bytes=model.dtype.itemsize,
        )

    def product(self, sizes: tuple[int, int]) -> float:
        """One product over a layer."""
        return 2 * self.tokens * sizes[0] * sizes[1]

    def head(self) -> float:
        """One product over the head, at taught places."""
        return 2 * self.taught * self.hidden * self.vocabulary


@dataclass(frozen=True)
class Work:
    """Operations in matrix products, and bytes read and written beside them."""

    flops: float = 0.0
    bytes: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        return Work(self.flops + other.flops, self.bytes + other.bytes)


@dataclass(frozen=True)
class Rates:
    """Of this machine, measured in the same run: operations and bytes a second."""

    flops: float
    bytes: float

    def seconds(self, work: Work) -> float:
        """Both, one after the other."""
        return work.flops / self.flops + work.bytes / self.bytes


def gemm_rate(config: Any, tokens: int, kind: torch.dtype) -> float:
    """Operations a second of the fastest matrix product: a feed-forward layer over so many tokens, or a square."""
    tall = torch.randn(tokens, config.hidden_size).to(kind)
    wide = torch.randn(config.hidden_size, config.intermediate_size).to(kind)
    square = torch.randn(2048, 2048).to(kind)
    own = 2 * tokens * config.hidden_size * config.intermediate_size / fastest(lambda: tall @ wide, 50)
    return max(own, 2 * len(square) ** 3 / fastest(lambda: square @ square, 10))


def fastest(call: Callable[[], object], times: int) -> float:
    """Seconds of the fastest of several calls, after one that is not counted."""
    call()
    found = []
    for _ in range(times):
        begun = time.perf_counter()
        call()
        found.append(time.perf_counter() - begun)
    return min(found)


def floor_of(method: MethodSettings, attached: Attached, load: Load) -> Work:
    """The least work of a step."""
    work = _through(load, _lowest(method, attached, load)) + _update(method, attached, load)
    matched = {name: sizes for name, sizes in load.linears.items() if _is_matched(name, attached)}
    if isinstance(method, Full):
        return work + _full(attached, load)
    if isinstance(method, Lora):
        return work + _lora(method, matched, load)
    if isinstance(method, Mora):
        return work + _mora(method, matched, load)
    if isinstance(method, Mft | Graft | Spiel):
        return work + _masked(method, matched, load)
    if isinstance(method, RootMethod):
        return work + _root(method, attached, load)
    if isinstance(method, Peft):
        return work + _peft(method, matched, load)
    return work  # (IA)3 and norms: products with a vector


def _is_matched(name: str, attached: Attached) -> bool:
    return any(name == root or name.startswith(f"{root}.") or not root for root in attached.match.modules)


def _lowest(method: MethodSettings, attached: Attached, load: Load) -> int:
    """The lowest block whose inputs need a gradient; all of them below an embedding or a soft prompt."""
    if isinstance(method, RootMethod):
        return 0
    blocks = [layer_of(name) for name in attached.parameters()]
    tables = [name for name, block in zip(attached.parameters(), blocks, strict=True) if block is None]
    if any("embed" in name for name in tables):
        return 0
    return min((block for block in blocks if block is not None), default=load.layers)


def _through(load: Load, lowest: int) -> Work:
    """Forward, and gradients of inputs from the top down to a block."""
    attention = 4 * load.pairs * load.heads
    forward = sum(map(load.product, load.linears.values())) + load.layers * attention + load.head()
    above = [sizes for name, sizes in load.linears.items() if (layer_of(name) or 0) >= lowest]
    backward = sum(map(load.product, above)) + (load.layers - lowest) * 2 * attention + load.head()
    return Work(forward + backward)


def _update(method: MethodSettings, attached: Attached, load: Load) -> Work:
    """The optimizer over what moves; SGD for a graft."""
    each = (SGD_BYTES if isinstance(method, Graft) else ADAMW_BYTES) + (NARROW_BYTES if load.bytes == 2 else 0)
    return Work(bytes=each * sum(parameter.numel() for parameter in attached.parameters().values()))


def _full(attached: Attached, load: Load) -> Work:
    """A product a layer that moves (of rows: their share), for the weight's gradient; one for a head that does.

    The embedding's own gradient is a sum of rows; both shapes that are measured tie it to the head.
    """
    layers, tables = 0.0, [0.0]
    for name, parameter in attached.parameters().items():
        if name.partition("[")[0].removesuffix(".weight") in load.linears:
            layers += 2 * load.tokens * parameter.numel()
        elif parameter.dim() == 2:
            tables.append(2 * load.taught * parameter.numel())
    return Work(layers + max(tables))


def _lora(method: Lora, matched: Mapping[str, tuple[int, int]], load: Load) -> Work:
    """Two thin products, forward, for inputs and for factors: 3 x 2 T r (i + o).

    With DoRA also the norm of W + B A: 2 r i o, and a pass over W, once a micro-batch.
    """
    flops = sum(6 * load.tokens * method.rank * (i + o) for i, o in matched.values())
    if not method.dora:
        return Work(flops)
    entries = sum(i * o for i, o in matched.values())
    return Work(flops + load.rows * 2 * method.rank * entries, load.rows * load.bytes * entries)


def _mora(method: Mora, matched: Mapping[str, tuple[int, int]], load: Load) -> Work:
    """A product with the square of side R for each stretch of R inputs (for one sum of them, with sharing), 3 times."""
    flops = 0.0
    for i, o in matched.values():
        side = int(math.sqrt((i + o) * method.rank) + 0.5)
        stretches = -(-i // side) if method.compression in ("rotation", "decoupling") else 1
        flops += 6 * load.tokens * stretches * side**2
    return Work(flops)


def _masked(method: MethodSettings, matched: Mapping[str, tuple[int, int]], load: Load) -> Work:
    """The dense gradient of each weight: one product; and passes over the matrices, in units of the model's numbers.

    `mft`: forward reads W and the mask (1 byte) and writes W m; backward reads the gradient, W and S and writes one;
    once a step |S| is read (a k-th value needs one pass at least) and the mask written. `graft`: forward reads W, the
    fine-tuned values, `top` and S and writes one; backward the same and the gradient. `spiel`: forward writes W + D
    once, backward makes it again (both read W), and the dense gradient is written before its few entries are taken.
    """
    entries, b = sum(i * o for i, o in matched.values()), load.bytes
    if isinstance(method, Mft):
        passes = load.rows * ((2 * b + 1) + 4 * b) + (b + 1)
    elif isinstance(method, Graft):
        passes = load.rows * ((4 * b + 1) + (5 * b + 1))
    else:
        passes = load.rows * (2 * b + 2 * b + b)
    return Work(sum(map(load.product, matched.values())), passes * entries)


def _root(method: RootMethod, attached: Attached, load: Load) -> Work:
    """V virtual tokens in front of each row: keys that every token sees, 3 x 4 T V; inputs go through all layers too.

    Of `prefix` they do not: keys and values of its V tokens are given. A network that makes the vectors runs once a row
    over V tokens.
    """
    seen = 12 * load.tokens * method.tokens * load.heads * load.layers
    network = 6 * method.tokens * load.rows * sum(p.numel() for p in attached.parameters().values() if p.dim() == 2)
    network -= 6 * method.tokens**2 * load.rows * load.hidden  # the table itself is no product
    through = 0 if isinstance(method, Prefix) else 4 * method.tokens * load.rows * _entries(load)
    return Work(seen + max(network, 0) * (len(attached.parameters()) > 1) + through)


def _entries(load: Load) -> int:
    return sum(i * o for i, o in load.linears.values())


def _peft(method: Peft, matched: Mapping[str, tuple[int, int]], load: Load) -> Work:
    """Of the types that are measured.

    VERA: two thin frozen products, forward and for inputs. LOHA: W + D is a product of its own size only once, so what
    it adds is the gradient of D, and making D and its factors' gradients: 6 x 2 r i o a micro-batch. OFT: inputs times
    blocks of size b, 3 times.
    """
    options: Mapping[str, Any] = method.options
    flops = 0.0
    for i, o in matched.values():
        if method.label == "VERA":
            flops += 4 * load.tokens * options["r"] * (i + o)
        elif method.label == "LOHA":
            flops += 2 * load.tokens * i * o + load.rows * 12 * options["r"] * i * o
        elif method.label == "OFT":
            flops += 6 * load.tokens * i * options["oft_block_size"]
    return Work(flops)
