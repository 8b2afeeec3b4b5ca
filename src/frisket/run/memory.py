"""Recipe and tokens to a prediction of memory and disk: the sizes are the run's own, the formula is docs/memory.md."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import nn

from frisket.adapt.full import Full
from frisket.adapt.lora import Lora
from frisket.adapt.methods import attach
from frisket.attend.pack import pack
from frisket.hf import load, quantised
from frisket.hf.forward import Model
from frisket.hf.kv_cache import cache_bytes
from frisket.run.measuring import learning_entries
from frisket.run.prepare import Prepared
from frisket.run.which import untouched
from frisket.train.checks import CONFORMANCE_TOKENS, PROBE_TOKENS
from frisket.train.memory import (
    HOLES,
    KERNEL_BYTES,
    KERNELS,
    LATER_PAGES,
    Choice,
    Phase,
    Prediction,
    Term,
    choose_recompute,
    free_bytes,
    peak_bytes,
    resident_bytes,
    sized,
)
from frisket.train.memory_trace import Trace, trace
from frisket.train.optim import has_own_masters, state_bytes
from frisket.train.products import by_onednn
from frisket.train.step import StepInput, lay_out
from frisket.watch import Watcher

_QUANTISED = {"4bit": 0.516, "8bit": 1.0}
"""Bytes a weight: NF4 with an 8-bit scale for 64 weights and an fp32 one for 256 of them; LLM.int8 a byte."""
_STORED_TOKEN, _STORED_SAMPLE = 4, 120  # bytes: its id; runs of provenance and marks, its place (measured)
_LOOKED_AT = 64  # steps whose lengths are counted; rows that are always full have few
_EVALUATED_AT_ONCE = 256  # distributions of frisket.evaluate.answers, of base and tuned model


@dataclass(frozen=True)
class Sizes:
    """What the run's tensors weigh, counted on the model without its weights.

    Attributes:
        compute: type of the model's matmuls.
        wide: float32 or wider.
        frozen: entries that stand still; ``quantised`` of them are in 4 or 8 bits.
        moving: entries that move.
        state: bytes of the optimizer's own tensors.
        own_masters: whether what moves is kept beside the model's parameters.
        vocab: rows of the head.
        quantised_width: bytes of a quantised entry, its scales included.
    """

    compute: torch.dtype
    wide: torch.dtype
    frozen: int
    quantised: int
    moving: int
    state: int
    own_masters: bool
    vocab: int
    quantised_width: float


@dataclass(frozen=True)
class Forecast:
    """Memory and disk of a run.

    Attributes:
        choice: how many layers are recomputed, and why.
        peak: with so many; None where the model's own code cannot run on the meta device.
        disk: what the run writes.
        uncounted: what neither of them holds, in words.
    """

    choice: Choice
    peak: Prediction | None
    disk: tuple[Term, ...]
    uncounted: tuple[str, ...] = ()

    def facts(self) -> list[tuple[str, str]]:
        """For the terminal and the page: (name, text)."""
        told = [("memory", "not predicted: this model cannot be traced without its weights")]
        if self.peak is not None:
            told = [("memory", "; ".join([self.peak.line(), *(f"not counted: {text}" for text in self.uncounted)]))]
        whole = sum(term.bytes for term in self.disk)
        if self.choice.told:
            told.append(("recompute", self.choice.told))
        return [*told, ("disk", f"{sized(whole)}: " + ", ".join(f"{t.name} {sized(t.bytes)}" for t in self.disk))]

    def details(self) -> list[tuple[str, str, str]]:
        """Every term of the highest phase: (name, bytes, arithmetic)."""
        terms = () if self.peak is None else self.peak.highest.terms
        return [(term.name, sized(term.bytes), term.why) for term in (*terms, *self.disk)]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for ``--json``."""
        peak = None if self.peak is None else self.peak.as_dict()
        told = {"uncounted": list(self.uncounted)}
        return {"memory": peak and peak | told, "disk": [term._asdict() for term in self.disk]}


@by_onednn()
def forecast(prepared: Prepared, save_steps: int, *, free: float | None = None, held: int = 0) -> Forecast:
    """Predict the memory and the disk of a run, and choose what is recomputed.

    Args:
        save_steps: steps between two checkpoints; 0: only at the end.
        free: bytes that the run may take; default: what the device has.
        held: bytes of the model that the process holds already.

    Raises:
        ConfigError: more layers are to be recomputed than the model has.
    """
    setting = prepared.recipe.train.recompute
    device = load.device_of(prepared.recipe.model.device)
    model, sizes, is_whole = _on_meta(prepared, device)
    uncounted = [] if is_whole else [f"the adapter, since PEFT builds {prepared.recipe.adapt.label} on weights only"]
    disk = tuple(_disk(prepared, sizes, save_steps))
    layers = len(load.decoder_layers(model))
    steps = _steps(prepared)
    largest = max((m for step in steps for m in step.micro_batches), key=lambda m: m.rows.computed_tokens)
    laying = prepared.laying
    try:
        traced = trace(model, largest, laying.backend, laying.chunk_tokens, laying.loss)
    except (NotImplementedError, RuntimeError):  # an operation that needs values, or has no form without them
        return Forecast(choose_recompute(setting, layers, None, None), None, disk, tuple(uncounted))
    answering = _answering(prepared, traced, model)
    if answering is None:
        uncounted.append("keys and values of generated answers, since the model's code needs values there")
    several = any(len(step.micro_batches) > 1 for step in steps)
    kernels = _kernels(prepared, traced, model) if device.type == "cpu" else 0
    process = resident_bytes() - held + LATER_PAGES if device.type == "cpu" else 0
    predict = partial(_prediction, prepared, sizes, traced, answering or (), several, process, kernels, device)
    choice = choose_recompute(setting, layers, predict, free_bytes(device) if free is None else free)
    return Forecast(choice, predict(choice.layers), disk, tuple(uncounted))


def foresee(prepared: Prepared, save_steps: int, given: Model | None, watcher: Watcher) -> Forecast:
    """Predict before anything is loaded, and say what was chosen and what does not fit."""
    held = 0 if given is None else sum(p.numel() * p.element_size() for p in given.parameters())
    found = forecast(prepared, save_steps, held=held)
    for name, text in found.facts():
        watcher.say(f"{name:<10} {text}")
    if not found.choice.fits and found.peak is not None:
        watcher.warn(
            f"the run is predicted to take {sized(found.peak.bytes)}, more than is free, with every layer recomputed "
            f"(highest: {found.peak.highest.name}). Smaller: {'; '.join(_smaller(prepared))}"
        )
    return found


def spent(found: Forecast, device: torch.device) -> dict[str, int | None]:
    """What ``summary.json`` says of memory: predicted and highest so far."""
    predicted = None if found.peak is None else found.peak.bytes
    return {"predicted_bytes": predicted, "peak_bytes": peak_bytes(device)}


def _smaller(prepared: Prepared) -> Iterator[str]:
    """Knobs that lower the peak, each with what it would be."""
    recipe = prepared.recipe
    method, rows = recipe.adapt, recipe.attend.row_tokens // 2
    tries: list[tuple[str, dict[str, Any]]] = []
    if rows >= int(prepared.dataset.lengths.max()):
        tries.append((f"attend.row_tokens={rows}", {"attend": recipe.attend.model_copy(update={"row_tokens": rows})}))
    if isinstance(method, Full):
        tries.append(("adapt.method=lora", {"adapt": Lora()}))
    if isinstance(method, Lora) and method.rank > 8:
        less = method.model_copy(update={"rank": method.rank // 2})
        tries.append((f"adapt.rank={less.rank}", {"adapt": less}))
    if isinstance(method, Lora) and recipe.model.load == "none":
        tries.append(("model.load=4bit", {"model": recipe.model.model_copy(update={"load": "4bit"})}))
    for told, update in tries:
        changed = recipe.model_copy(update=update)
        laying = replace(prepared.laying, row_tokens=changed.attend.row_tokens)
        peak = forecast(replace(prepared, recipe=changed, laying=laying), 0).peak
        if peak is not None:
            yield f"{told} {sized(peak.bytes)}"


def _on_meta(prepared: Prepared, device: torch.device) -> tuple[Model, Sizes, bool]:
    """The model as it will compute, without its weights, what its tensors weigh, and whether the method is on it."""
    recipe = prepared.recipe
    compute = load.compute_type(recipe.train.compute, device)
    wide = torch.promote_types(compute, torch.float32)
    model, moving, is_whole = _attached(prepared)
    names = load.embedding_names(model)
    parameters = dict(model.named_parameters())
    frozen = [p for name, p in parameters.items() if name not in moving]
    kind = recipe.model.load if recipe.model.load != "none" else quantised.stored_as(prepared.config)
    linear = set() if kind == "none" else {id(module.weight) for module in _decoder_linears(model)}
    shapes = [p.shape for name, p in moving.items() if name not in names]
    state = state_bytes(recipe.train.optimizer, shapes, [moving[name].shape for name in names if name in moving])
    sizes = Sizes(
        compute,
        wide,
        sum(p.numel() for p in frozen),
        sum(p.numel() for p in frozen if id(p) in linear),
        sum(p.numel() for p in moving.values()),
        state,
        has_own_masters(recipe.train.optimizer, compute),
        model.get_input_embeddings().weight.shape[0],  # pyright: ignore
        _QUANTISED.get(kind, 0.0),
    )
    load.cast_parameters(model, compute)
    return model.train(), sizes, is_whole


def _attached(prepared: Prepared) -> tuple[Model, dict[str, nn.Parameter], bool]:
    """The model on the meta device, what moves, and whether the method is on it: PEFT builds some on weights only."""
    recipe = prepared.recipe
    model = untouched(prepared)
    load.switch_off_dropout(model)
    try:
        attached = attach(recipe.adapt, model, torch.Generator().manual_seed(recipe.train.seed), prepared.added.ids)
    except (NotImplementedError, RuntimeError):
        model.get_input_embeddings().register_forward_hook(lambda module, args, out: out.requires_grad_())
        return model.requires_grad_(False), {}, False
    model.to(torch.device("meta"))  # adapters are made on the CPU  # pyright: ignore[reportArgumentType]
    return model, attached.parameters(), True


def _decoder_linears(model: Model) -> list[nn.Linear]:
    return [m for layer in load.decoder_layers(model) for m in layer.modules() if isinstance(m, nn.Linear)]


def _steps(prepared: Prepared) -> list[StepInput]:
    """The first step, and the one with the longest sample."""
    epoch, lengths = prepared.order.epoch(0), prepared.dataset.lengths
    chosen = {0, max(range(len(epoch)), key=lambda i: int(lengths[epoch[i].samples].max()))}
    rule = prepared.recipe.supervise.normaliser
    return [lay_out([prepared.weighted(int(i)) for i in epoch[at].samples], prepared.laying, rule) for at in chosen]


def _kernels(prepared: Prepared, traced: Trace, model: Model) -> int:
    """Shapes of matmuls in 16 bits that the run meets: each length of a micro-batch brings its own.

    In a mixture each expert meets another number of tokens every time, so that all places are soon taken.
    """
    if not traced.matmuls:
        return 0
    if load.is_mixture(model):
        return KERNELS
    settings = prepared.recipe.evaluate
    lengths = (
        2 if settings is None else 2 + sum(7 + each.prompts * each.answer_tokens // 256 for each in settings.forgetting)
    )
    found = traced.forward_matmuls * lengths + traced.matmuls  # the checks' lengths, and the probe's backward
    met: set[int] = set()
    for step in islice(prepared.order.steps(), min(prepared.total_steps, _LOOKED_AT)):
        if found + traced.matmuls * len(met) >= KERNELS:
            return KERNELS
        samples = [prepared.dataset[int(i)] for i in step.samples]
        laying = prepared.laying
        met.update(
            rows.computed_tokens for rows in pack(samples, laying.arrangement, laying.row_tokens, laying.micro_rows)
        )
    return min(KERNELS, found + traced.matmuls * len(met))


def _prediction(
    prepared: Prepared,
    sizes: Sizes,
    traced: Trace,
    answering: tuple[Term, ...],
    several: bool,
    process: int,
    kernels: int,
    device: torch.device,
    recomputed: int,
) -> Prediction:
    """All phases with so many layers recomputed."""
    always = [*_always(sizes, process, kernels)]
    holes = HOLES if device.type == "cpu" else 0.0
    phases = {
        "checks": tuple(_checks(prepared, sizes, traced)),
        "evaluation": tuple(_evaluation(prepared, sizes, traced)),
        "answering": answering,
        "train step": tuple(_step(sizes, traced, several, recomputed)),
    }
    told = []
    for name, terms in phases.items():
        moment = sum(term.bytes for term in terms)
        lost = Term("fragmentation", int(holes * moment), f"{holes:.0%} of what this phase allocates and frees")
        told.append(Phase(name, (*always, *terms, *((lost,) if holes else ()))))
    told.append(Phase("saving", (*always, *_saving(prepared, sizes))))
    return Prediction(tuple(told), recomputed, len(traced.layers), device.type)


def _always(sizes: Sizes, process: int, kernels: int) -> Iterator[Term]:
    """What stays in memory from the first step to the last."""
    width, wide = sizes.compute.itemsize, sizes.wide.itemsize
    if process:
        yield Term("process", process, "Python, torch, tokenizer and data: measured, and code that is read later")
    if kernels:
        yield Term(
            "kernels", kernels * KERNEL_BYTES, f"{kernels:,} shapes of matmuls x {KERNEL_BYTES // 1024} KiB (oneDNN)"
        )
    plain = sizes.frozen - sizes.quantised
    if sizes.frozen:
        yield Term("weights", plain * width, f"{plain:,} frozen entries x {width}")
    if sizes.quantised:
        each = sizes.quantised_width
        yield Term("quantised weights", int(sizes.quantised * each), f"{sizes.quantised:,} entries x {each}")
    yield Term("moving weights", sizes.moving * width, f"{sizes.moving:,} moving entries x {width}")
    if sizes.own_masters:
        yield Term("masters", sizes.moving * wide, f"{sizes.moving:,} x {wide}")
    yield Term("optimizer", sizes.state, "state of the optimizer")
    yield Term(
        "start values", sizes.moving * width, f"{sizes.moving:,} x {width}, to see at the end that weights moved"
    )


def _step(sizes: Sizes, traced: Trace, several: bool, recomputed: int) -> Iterator[Term]:
    """The largest micro-batch, at the moment when most is in memory."""
    wide = sizes.wide.itemsize
    if several:
        yield Term(
            "gradient buffers", sizes.moving * wide, f"{sizes.moving:,} x {wide}, from the second micro-batch on"
        )
    kept = traced.kept_with(recomputed)
    told = f"kept of {traced.tokens:,} tokens in {len(traced.layers)} layers, {recomputed} of them recomputed (traced)"
    yield Term("activations", kept, told)
    again = traced.largest(recomputed)
    name, most = max(
        (("forward", traced.forward), ("logits", traced.loss), ("backward", traced.backward + again)),
        key=lambda moment: moment[1],
    )
    yield Term(name, most, "most beyond the activations in forward, logits and backward (traced)")


def _checks(prepared: Prepared, sizes: Sizes, traced: Trace) -> Iterator[Term]:
    """Logits of one sample three times over, or the probe's forward and backward; nothing is recomputed less."""
    lengths = np.sort(prepared.dataset.lengths)
    probe = int(min(PROBE_TOKENS, max(lengths[:4].sum(), 2 * min(CONFORMANCE_TOKENS, lengths[0]))))
    compared = int(min(CONFORMANCE_TOKENS, lengths[-1]))
    wide = sizes.wide.itemsize
    kept = math.ceil(traced.kept / traced.tokens * probe)
    logits = 4 * compared * sizes.vocab * wide
    if logits > kept:
        yield Term(
            "logits", logits, f"{compared:,} tokens x {sizes.vocab:,} x {wide}, four times: both and differences"
        )
    else:
        yield Term("activations", kept, f"of the isolation probe's {probe:,} tokens")


def _evaluation(prepared: Prepared, sizes: Sizes, traced: Trace) -> Iterator[Term]:
    """A batch without gradients, and the logits that KL compares."""
    settings = prepared.recipe.evaluate
    if settings is None:
        return
    batch = max(int(prepared.dataset.lengths.max()), min(settings.batch_tokens, prepared.laying.row_tokens))
    layer = max(traced.layers, default=0)
    yield Term("a layer", layer * batch // traced.tokens, f"of a batch of {batch:,} tokens, without gradients")
    wide = sizes.wide.itemsize
    compared = 3 * _EVALUATED_AT_ONCE * sizes.vocab * wide
    yield Term("logits", compared, f"{_EVALUATED_AT_ONCE} x {sizes.vocab:,} x {wide} of base and tuned, and a copy")


def _answering(prepared: Prepared, traced: Trace, model: Model) -> tuple[Term, ...] | None:
    """The largest batch of prompts that evaluation answers; None where the model's code needs values."""
    batch = max(_batches(prepared), key=math.prod, default=None)
    if batch is None:
        return ()
    rows, tokens = batch
    try:
        cache = cache_bytes(model, rows, tokens)
    except (NotImplementedError, RuntimeError):
        return None
    layer = max(traced.layers, default=0) * rows * tokens // traced.tokens
    return (
        Term("a layer", layer, f"of {rows:,} prompts x {tokens:,} tokens, without gradients"),
        Term("keys and values", cache, f"of {rows:,} prompts x {tokens:,} tokens with their answers (traced)"),
    )


def _batches(prepared: Prepared) -> Iterator[tuple[int, int]]:
    """The batches of prompts of each set that is answered: (rows, tokens), as if prompts were samples."""
    settings = prepared.recipe.evaluate
    if settings is None:
        return
    longest, entries = int(prepared.dataset.lengths.max()), learning_entries(prepared, settings)
    asked = [(each.prompts, each.answer_tokens) for each in settings.forgetting if each.path is None]
    asked += [(settings.samples, settings.sample_tokens)] if entries else []
    asked += [(e.limit or settings.batch_tokens, e.max_new_tokens) for e in entries if e.metric == "exact_match"]
    for prompts, answer in asked:
        tokens = longest + answer
        if prompts:
            yield min(prompts, max(1, settings.batch_tokens // tokens)), tokens


def _saving(prepared: Prepared, sizes: Sizes) -> Iterator[Term]:
    """A fresh model that takes the trained values, and the file that it is read from."""
    if not isinstance(prepared.recipe.adapt, Full):
        wide = sizes.wide.itemsize
        yield Term("adapter", 2 * sizes.moving * wide, f"{sizes.moving:,} x {wide}, written and read again")
        return
    count = sizes.frozen + sizes.moving
    stored = load.stored_dtype(prepared.recipe.model, None)
    fresh = torch.promote_types(stored, torch.float32).itemsize
    yield Term("fresh model", count * fresh, f"{count:,} x {fresh}")
    yield Term("its file", count * stored.itemsize, f"{count:,} x {stored.itemsize}, while it is read")


def _disk(prepared: Prepared, sizes: Sizes, save_steps: int) -> Iterator[Term]:
    """What the run writes; figures and the report come on top, at most a few MiB."""
    recipe, wide = prepared.recipe, sizes.wide.itemsize
    one = sizes.moving * wide + sizes.state
    made = 1 + ((prepared.total_steps - 1) // save_steps if save_steps else 0)
    kept = min(recipe.train.keep, made) + 1
    why = f"{kept} x ({sizes.moving:,} x {wide} + optimizer); a new one is whole before the oldest goes"
    yield Term("checkpoints", one * kept, why)
    if isinstance(recipe.adapt, Full):
        stored = load.stored_dtype(recipe.model, None).itemsize
        count = sizes.frozen + sizes.moving
        yield Term("model", count * stored, f"{count:,} x {stored}")
    else:
        yield Term("adapter", sizes.moving * wide, f"{sizes.moving:,} x {wide}")
    read, samples = sum(ledger.read for ledger in prepared.ledgers), len(prepared.dataset.lengths)
    why = f"{read:,} tokens x {_STORED_TOKEN} + {samples:,} samples x {_STORED_SAMPLE}, in the cache"
    yield Term("token store", read * _STORED_TOKEN + samples * _STORED_SAMPLE, why)
