"""Every method of the union, with what it promises: a new method is one more entry of ``CASES``."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tests.models import SHAPE, tiny

from frisket.adapt.base import MethodSettings
from frisket.adapt.methods import Method
from frisket.adapt.policies import resolve
from frisket.adapt.where import Match, is_linear
from frisket.explain import method_name

PER_LAYER = Callable[[int, int], float]
"""Entries of a linear layer with so many inputs and outputs."""


METHODS = {method_name(kind): kind for kind in Method.__origin__.__args__}
"""The union, by name."""


def made(name: str, **settings: Any) -> MethodSettings:
    """Settings of a method of the union."""
    return METHODS[name](method=name, **settings)


@dataclass(frozen=True)
class Case:
    """One method as it is tested.

    Attributes:
        method: its settings; `of` of a graft is filled in.
        entries: how many entries move, given the matched part of the base.
        starts_at_base: whether the model is the base before the first step; bar of the difference, None where not.
        draws: whether something is drawn from the seed.
        bar: of equalities in float64.
        resumes_in: type in which an exact resume is shown.
    """

    method: MethodSettings
    entries: "Callable[[Matched], int]"
    starts_at_base: float | None = 0.0
    draws: bool = True
    bar: float = 1e-10
    resumes_in: torch.dtype = torch.bfloat16


@dataclass(frozen=True)
class Matched:
    """What `where` matched of an untouched model.

    Attributes:
        linears: inputs and outputs of the linear layers, by path.
        tensors: sizes of all matched parameters, by name.
    """

    linears: Mapping[str, tuple[int, int]]
    tensors: Mapping[str, int]

    @classmethod
    def of(cls, model: Any, match: Match) -> "Matched":
        """Read it off."""
        shapes = {n: m.weight.shape for n, m in model.named_modules() if is_linear(m) and n in match.linears(model)}
        sizes = {name: model.get_parameter(name).numel() for name in match.parameters(model)}
        sizes |= {
            n: sum(b - a for a, b in rows) * (sizes[n] // len(model.get_parameter(n))) for n, rows in match.rows.items()
        }
        return cls({name: (i, o) for name, (o, i) in shapes.items()}, sizes)


def per_layer(entries: PER_LAYER, once: int = 0) -> Callable[[Matched], int]:
    """So many in each layer, and so many once."""
    return lambda matched: round(sum(entries(i, o) for i, o in matched.linears.values())) + once


def weights(matched: Matched) -> int:
    """Every weight of the matched linear layers."""
    return sum(i * o for i, o in matched.linears.values())


def everything(matched: Matched) -> int:
    """Every matched entry."""
    return sum(matched.tensors.values())


def mora(rank: int, *, even: bool) -> Callable[[Matched], int]:
    """Section 4 of the paper: R squared."""
    return per_layer(lambda i, o: ((side := math.floor(math.sqrt((i + o) * rank) + 0.5)) - (even and side % 2)) ** 2)


def spiel(budget: int) -> Callable[[Matched], int]:
    """The budget by size, rounded down in each layer."""
    return lambda matched: sum(budget * i * o // weights(matched) for i, o in matched.linears.values())


def _lokr(i: int, o: int) -> int:
    """Two factors of a Kronecker product, each size split as evenly as it divides."""
    (si, bi), (so, bo) = ((s := max(d for d in range(1, math.isqrt(n) + 1) if n % d == 0), n // s) for n in (i, o))
    return si * so + bi * bo


_H, _TOKENS, _LAYERS = SHAPE["hidden_size"], 4, SHAPE["num_hidden_layers"]
_KEYS = SHAPE["num_key_value_heads"] * SHAPE["head_dim"]
_MLP = _TOKENS * _H + 3 * _H * (_H + 1)
_LSTM = _TOKENS * _H + 2 * 4 * _H * (_H + _H + 2) + 2 * 4 * _H * (2 * _H + _H + 2) + 2 * _H * (2 * _H + 1 + _H) + _H


def _constant(count: int) -> Callable[[Matched], int]:
    return lambda matched: count


_FOURS: dict[str, tuple[dict[str, Any], Callable[[Matched], int]]] = {
    "VERA": ({"r": 4}, per_layer(lambda i, o: 4 + o)),
    "LOHA": ({"r": 4}, per_layer(lambda i, o: 2 * 4 * (i + o))),
    "LOKR": ({"r": 4}, per_layer(_lokr)),
    "OFT": ({"oft_block_size": 4}, per_layer(lambda i, o: i / 4 * 6)),
    "BOFT": ({"boft_block_size": 4}, per_layer(lambda i, o: i / 4 * 16 + o)),
    "FOURIERFT": ({"n_frequency": 16}, per_layer(lambda i, o: 16)),
    "HRA": ({"r": 4}, per_layer(lambda i, o: 4 * i)),
    "RANDLORA": ({"r": 4}, per_layer(lambda i, o: min(i, o) / 4 * (4 + min(i, o)))),
    "MISS": ({"r": 4}, per_layer(lambda i, o: 4 * o)),
    "DELORA": ({"r": 4}, per_layer(lambda i, o: 4 * (i + o) + 1)),
    "C3A": ({"block_size": 4}, per_layer(lambda i, o: i * o / 4)),
    "DEFT": ({"r": 4}, per_layer(lambda i, o: 4 * (i + o))),
    "GLORA": ({"r": 4}, per_layer(lambda i, o: 2 * 4 * (i + o))),
    "GRALORA": ({"r": 4, "gralora_k": 2}, per_layer(lambda i, o: 4 * (i + o))),
    "HIRA": ({"r": 4}, per_layer(lambda i, o: 4 * (i + o))),
    "PEANUT": ({"r": 4}, per_layer(lambda i, o: 2 * 4 * o)),
    "ROAD": ({"group_size": 4}, per_layer(lambda i, o: o)),
    "SHIRA": ({"r": 1}, per_layer(lambda i, o: i + o)),
    "TINYLORA": ({"r": 2}, per_layer(lambda i, o: 64)),
    "VBLORA": (
        {"r": 2, "num_vectors": 8, "vector_length": 4, "topk": 2},
        per_layer(lambda i, o: 2 * 8 * (i + o) / 4, once=8 * 4),
    ),
    "WAVEFT": ({"n_frequency": 16}, per_layer(lambda i, o: 16)),
}
OPTIONS = {kind: options for kind, (options, _) in _FOURS.items()}
ROUNDS = {"FOURIERFT", "C3A", "DEFT"}  # PEFT computes these changes in float32, whatever the model's type
STARTS_ELSEWHERE = {"FOURIERFT", "C3A", "VBLORA"}  # PEFT's default initialisation is not the base
CONSTANT = {"VERA", "OFT", "BOFT", "RANDLORA", "MISS", "ROAD", "SHIRA", "TINYLORA", "WAVEFT"}
"""These start at constants, or draw what is frozen from a seed in their own options."""


def _peft(kind: str) -> Case:
    options, entries = _FOURS[kind]
    bar = 1e-5 if kind in ROUNDS else 1e-10
    start = None if kind in STARTS_ELSEWHERE else bar if kind in ROUNDS else 1e-12
    draws = kind not in CONSTANT
    return Case(made("peft", peft_type=kind, options=options), entries, start, draws, bar, torch.float32)


CASES: dict[str, Case] = {
    "full": Case(made("full"), everything, draws=False),
    "lora": Case(made("lora", rank=4), per_layer(lambda i, o: 4 * (i + o))),
    "lora+dora": Case(made("lora", rank=4, dora=True), per_layer(lambda i, o: 4 * (i + o) + o)),
    "lora+rslora": Case(made("lora", rank=4, rslora=True), per_layer(lambda i, o: 4 * (i + o))),
    "lora+": Case(made("lora", rank=4, b_rate_factor=16.0), per_layer(lambda i, o: 4 * (i + o))),
    "lora of two ranks": Case(
        made("lora", rank=4, rank_pattern={"*.down_proj": 2}), per_layer(lambda i, o: (2 if i == 48 else 4) * (i + o))
    ),
    "ia3": Case(made("ia3"), per_layer(lambda i, o: i if (i, o) == (48, 32) else o), draws=False),
    "ln_tuning": Case(made("ln_tuning"), everything, draws=False),
    **{kind: _peft(kind) for kind in _FOURS},
    **{
        f"mora {kind}": Case(made("mora", rank=4, compression=kind), mora(4, even=kind == "rotation"), draws=False)
        for kind in ("truncation", "sharing", "sharing-contiguous", "decoupling", "rotation")
    },
    "mft": Case(made("mft"), weights, None),
    "mft global": Case(made("mft", scope="global"), weights, None),
    "spiel": Case(made("spiel", entries=200, reselect_every=4, accumulate=2), spiel(200)),
    "spiel momentum": Case(
        made("spiel", entries=200, criterion="momentum", reselect_every=4, accumulate=2), spiel(200)
    ),
    "graft": Case(made("graft", of="…"), weights, None),
    "prompt": Case(made("prompt", tokens=_TOKENS), _constant(_TOKENS * _H), None),
    "p-tuning": Case(made("p-tuning", tokens=_TOKENS), _constant(_MLP), None),
    "p-tuning lstm": Case(made("p-tuning", tokens=_TOKENS, encoder="lstm"), _constant(_LSTM), None),
    "prefix": Case(made("prefix", tokens=_TOKENS), _constant(_TOKENS * 2 * _LAYERS * _KEYS), None),
    "prefix projected": Case(
        made("prefix", tokens=_TOKENS, projection=True),
        _constant(_TOKENS * _KEYS + _H * (_KEYS + 1) + 2 * _LAYERS * _KEYS * (_H + 1)),
        None,
    ),
}
WHERES: dict[str, Any] = {
    "all": "all",
    "all-linear": "all-linear",
    "attention of layer 0": ["attention", {"layers": 0}],
    "mlp": "mlp",
    "norms": "norms",
    "embeddings": "embeddings",
    "head": "head",
    "last-layer": "last-layer",
    "kappa": ["all-linear", {"kappa": 0.5}],
    "locate": [{"locate": {"layer": 1, "module": "mlp.down_proj"}}],
    "half": ["all", {"half": "category"}],
    "rows": ["*.q_proj[3:9]", "head[0:5]"],
    "embeddings-and-head": "embeddings-and-head",
}
ON_LINEARS = [
    name for name in WHERES if name not in ("all", "norms", "embeddings", "half", "rows", "embeddings-and-head")
]
IN_BLOCKS = [name for name in ON_LINEARS if name != "head"]
EVERY_WHERE = {
    "full": list(WHERES),
    "lora": ON_LINEARS,
    "VERA": IN_BLOCKS,
    "mora rotation": IN_BLOCKS,
    "mft": IN_BLOCKS,
    "spiel": IN_BLOCKS,
    "graft": IN_BLOCKS,
}


@dataclass(frozen=True)
class Put:
    """A method on a fresh model: what it promises, its settings with this `where`, and what that matches."""

    promise: Case
    method: MethodSettings
    matched: Matched
    match: Match


def put(name: str, where: str | None, tuned: Path) -> Put:
    """A case with one of the wheres."""
    case = CASES[name]
    changes: dict[str, Any] = {} if where is None else {"where": WHERES[where]}
    if method_name(type(case.method)) == "graft":
        changes["of"] = str(tuned)
    method = case.method.model_copy(update=changes)
    model = tiny()
    match = (
        resolve(model, method.where, moves_weights=method.moves_weights) if method.where != "none" else Match((), {})
    )
    return Put(case, method, Matched.of(model, match), match)
