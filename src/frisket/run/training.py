"""The composition root of training: recipe to objects to loop, and what is proven before the first step."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from frisket.adapt.base import Attached
from frisket.adapt.head import has_adapted_tied_head
from frisket.adapt.methods import attach
from frisket.errors import CheckError, ConfigError
from frisket.hf import load, quantised, tokens
from frisket.hf.forward import Model
from frisket.hf.mixture import router_losses
from frisket.recipe import Recipe
from frisket.run import (
    baseline,
    best,
    finishing,
    folder,
    grafting,
    layer_search,
    locating,
    mask_free,
    mask_tuning,
    measuring,
    memory,
    notices,
    rates,
)
from frisket.run.during import During
from frisket.run.exhausted import told_with_knobs
from frisket.run.first_pass import refused_by_name
from frisket.run.matching import write_choice
from frisket.run.overfit import GOOD_LOSS, Verdict, explain
from frisket.run.overlap import overlap_of, warned
from frisket.run.prepare import Prepared, Records, prepare
from frisket.run.which import adapt_told
from frisket.train import checkpoint
from frisket.train.checks import Checks, check_model
from frisket.train.loop import Run, run_loop
from frisket.train.memory import release
from frisket.train.optim import Optimizer
from frisket.train.products import by_onednn
from frisket.train.settings import TrainSettings
from frisket.train.step import lay_out, micro_batch_loss
from frisket.train.tracking import require, tracked
from frisket.watch import Silent, StepRecord, Watcher, duration

LONG_RUN_SECONDS = 30 * 60
SHORT_RUN_SECONDS = 10 * 60
TIMED_TOKENS = 512
"""On a CPU so many tokens are timed before the first step; an accelerator's speed shows only on a whole micro-batch."""


@dataclass(frozen=True)
class Loaded:
    """A model that is ready to train.

    Attributes:
        base_dtype: type that the base's files hold, for merging and saving.
        foreseen: what memory and disk were predicted.
        compute: type that the model computes in.
    """

    model: Model
    attached: Attached
    optimizer: Optimizer
    device: torch.device
    compute: torch.dtype
    base_dtype: torch.dtype
    foreseen: memory.Forecast


@dataclass(frozen=True)
class Given:
    """What a caller hands over instead of paths.

    Attributes:
        start: checkpoint of an earlier stage, whose weights (not its optimizer) this run begins with.
        stage: index of the stage that put the method on the model that this run begins with.
        staged: where in a staged run this stage stands.
    """

    model: Model | None = None
    tokenizer: Any = None
    records: Records | None = None
    on_step: Callable[[StepRecord], None] | None = None
    start: Path | None = None
    stage: int = 0
    staged: finishing.Staged | None = None


_NOTHING, _SILENT = Given(), Silent()


@by_onednn()
def train_one(
    recipe: Recipe, out: Path, found: folder.Found, given: Given, overfit: int | None, watcher: Watcher
) -> dict:
    """Train one stage into ``out`` and return its summary.

    Raises:
        FrisketError: something that must be mended before, or that went wrong and was caught.
    """
    began = time.perf_counter()
    settings = recipe.train
    require(settings.track)
    torch.set_num_threads(settings.threads or torch.get_num_threads())
    prepared = _prepared(_searched(recipe, out, given, watcher), given, overfit, watcher)
    prepared = replace(prepared, settled=prepared.settled.remembered(out))
    recipe = prepared.recipe
    loaded = load_ready(recipe, prepared, given.model, watcher, given.stage)
    checks = check_before(prepared, loaded, watcher)
    with folder.claimed(out, recipe):
        _write_facts(out, prepared, loaded)
        if recipe.evaluate is None:
            watcher.say("evaluate   off: nothing is held out by default, and nothing is measured")
        shared = {} if overfit else warned(overlap_of(prepared, given.records, watcher), watcher)
        sets = None if overfit else measuring.make_sets(prepared, loaded.model, watcher, given.records)
        is_resumed = found.checkpoint is not None
        before = baseline.measured(out, loaded, sets, settings.seed, is_resumed=is_resumed) if sets else None
        if given.start is not None:
            loaded.optimizer.load_masters(checkpoint.load_masters(given.start))
            loaded.attached.begin_stage()
        start_values = loaded.attached.state()
        start = _resumed(found, loaded, folder.machine(loaded.device), watcher)
        done = start.step if start else 0
        config = recipe.model_dump(mode="json")
        with tracked(settings.track, out, done=done, config=config, watcher=watcher) as tracker:
            during = During(prepared, loaded, sets, before, out, done, tracker, watcher)
            if start is None:
                during.begin()
            say_speed(prepared, loaded, done, watcher)
            run = make_run(prepared, loaded, out, given, watcher, overfit=overfit is not None)
            run = replace(run, evaluate=during.evaluate, stops=during.stops, tracker=tracker)
            training_began = time.perf_counter()
            with _deterministic(settings, loaded.device):
                totals = run_loop(run, start)
            training = time.perf_counter() - training_began
            measured = during.end(totals.step)
        finishing.check_moved(start_values, loaded.optimizer.masters, during.result_step())
        graft = grafting.judged(loaded, sets, before, watcher)
        release()
        artifacts, checked, tuned = mask_tuning.save(out, prepared, loaded, checks, sets, before, start_values, watcher)
        verdict = explain(prepared, loaded, totals) if overfit else None
        seconds = {"total": time.perf_counter() - began, "training": training, "before": training_began - began}
        summary = (
            finishing.summarise(recipe, prepared, loaded, totals, measured, checked, artifacts, seconds, verdict, start)
            | during.summary()
            | {"overlap": shared, "train": prepared.settled.as_dict()}
            | {"memory": memory.spent(loaded.foreseen, loaded.device), **tuned, **graft}
        )
        finishing.write_report(out, summary, recipe, prepared, given.staged)
        folder.write_json(out / folder.SUMMARY, summary)
    _raise_if_not_fitted(verdict)
    return summary


def _searched(recipe: Recipe, out: Path, given: Given, watcher: Watcher) -> Recipe:
    """The recipe with what earlier starts settled, and with the layers that a search finds."""
    recipe = layer_search.searched(rates.kept(recipe, out), out, given, watcher)
    return locating.searched(recipe, out, given, watcher)


def _write_facts(out: Path, prepared: Prepared, loaded: Loaded) -> None:
    """What is known before the first step: the environment, and every sample that was left out."""
    facts = folder.environment(loaded.device, loaded.compute, prepared.dataset.fingerprint)
    folder.write_json(out / "environment.json", facts)
    folder.write_json(out / rates.SETTLED_FILE, prepared.settled.as_dict())
    finishing.write_dropped(out, prepared.dataset.dropped)
    write_choice(out, loaded.attached)


def _prepared(recipe: Recipe, given: Given, overfit: int | None, watcher: Watcher) -> Prepared:
    prepared = prepare(
        recipe,
        watcher,
        tokenizer=given.tokenizer,
        config=given.model.config if given.model else None,
        records=given.records,
        overfit=overfit,
    )
    if overfit is None:
        best.rule_of(prepared.recipe, measuring.names_of(prepared))
        mask_tuning.tell(prepared, watcher)
    notices.tell(prepared, watcher, notices.ALL_OF_A_RUN)
    return prepared


def load_ready(recipe: Recipe, prepared: Prepared, model: Model | None, watcher: Watcher, stage: int = 0) -> Loaded:
    """Load the model, attach the method, make masters, choose what is recomputed.

    Args:
        stage: index of the stage that attaches the method; each draws anew.
    """
    if model is not None:
        quantised.refuse_given(recipe.model.load, model, load.files_quantised(recipe.model))
    device = load.device_of(recipe.model.device) if model is None else model.device
    compute = load.compute_type(recipe.train.compute, device)
    for line in load.cautions(recipe.train.compute, compute, device):
        watcher.warn(line)
    foreseen = memory.foresee(prepared, every_steps(recipe.train.save_every, prepared.total_steps), model, watcher)
    method = recipe.adapt
    grafting.refuse_fp16(recipe.adapt, compute)
    wide = torch.promote_types(compute, torch.float32)
    base_dtype = load.stored_dtype(recipe.model, model)
    if model is None:
        model = load.load_model(recipe.model, wide if method.starts_wide else compute, device)
    else:
        tokens.grow(load.ready(model), prepared.added.ids)
        load.cast_parameters(model, wide if method.starts_wide else compute)
    dropped_out = load.switch_off_dropout(model)
    if dropped_out:
        watcher.say(f"dropout    set to 0 in {len(dropped_out)} places (was {dropped_out[0]})")
    rng = torch.Generator().manual_seed(stage_seed(recipe.train.seed, stage))
    with load.without_bars():  # a graft reads a second model
        attached = attach(method, model, rng, prepared.added.ids, prepared.tokenize)
    if has_adapted_tied_head(model):
        watcher.warn("the head is tied to the embedding; merge with frisket export: PEFT's merge would move both")
    if told := router_losses(model.config):
        watcher.say(told)
    laying = prepared.laying
    _warn_of_rows(prepared, watcher)
    optimizer = Optimizer(attached.parameters(), recipe.train, compute, load.embedding_names(model), attached)
    load.cast_parameters(model, compute)
    model.train()
    layers = foreseen.choice.layers
    load.recompute_layers(model, layers)
    moving = sum(p.numel() for p in attached.parameters().values())
    total = sum(quantised.entries(p) for p in model.parameters())
    inside = sum(p.numel() for p in model.parameters() if p.requires_grad)  # some methods' lie beside the model
    base = total - (inside if method.method != "full" else 0)
    watcher.say(
        f"model      {recipe.model.path}: {base:,} parameters on {device} in {str(compute).removeprefix('torch.')}"
    )
    watcher.say(f"adapt      {adapt_told(method.method, moving, base, attached.match)}")
    for note in attached.match.notes:
        watcher.say(f"           {note}")
    watcher.say(f"attend     {_ROWS[laying.arrangement]} of {laying.row_tokens:,} tokens: {prepared.why_so}")
    watcher.say(f"           backend {laying.backend}" + (f" · {layers} layers recomputed" if layers else ""))
    for line in (*prepared.settled.lines(), *quantised.lines(model), *optimizer.lines()):
        watcher.say(line)
    return Loaded(model, attached, optimizer, device, compute, base_dtype, foreseen)


def stage_seed(seed: int, stage: int) -> int:
    """Seed of what a method draws in a stage; the first stage's is the run's own."""
    return int(np.random.SeedSequence([seed, stage]).generate_state(1, np.uint64)[0] >> 2) if stage else seed


_ROWS = {
    "isolated": "isolated samples in rows",
    "padded": "padded, one sample a row, batches",
    "forest": "forest: shared prefixes once, in rows",
    "mask-free": "mask-free: each sample sees those before it, in rows",
    "alone": "one sample a row, samples of one length together, batches",
}


def _warn_of_rows(prepared: Prepared, watcher: Watcher) -> None:
    if prepared.laying.arrangement == "alone":
        watcher.warn(f"{prepared.why_so}: every sample gets a row of its own")
    if prepared.laying.arrangement == "mask-free":
        watcher.warn("mask-free rows train on samples that see each other: compare with attend.arrangement=isolated")


def check_before(prepared: Prepared, loaded: Loaded, watcher: Watcher) -> Checks:
    """Seam, conformance, isolation, on samples of the first step."""
    first = next(iter(prepared.order.steps())).samples
    members = first if len(first) > 1 else prepared.order.families.flat
    samples = [prepared.dataset[int(i)] for i in members[:64]]
    with refused_by_name(prepared.recipe.adapt, loaded.compute):
        checks = check_model(loaded.model, samples, prepared.laying)
    told = " · ".join(f"{name}: {found}" for name, found in checks.as_dict().items())
    watcher.say(f"checked    all {len(checks.as_dict())} passed · {told}")
    return checks


def make_run(prepared: Prepared, loaded: Loaded, out: Path, given: Given, watcher: Watcher, *, overfit: bool) -> Run:
    """Everything the loop needs."""
    recipe, settings = prepared.recipe, prepared.recipe.train
    if overfit:
        settings = settings.model_copy(update={"schedule": "constant", "warmup": 0.0, "save_every": 0.0})
    every = recipe.evaluate.every if recipe.evaluate else 0

    def on_step(record: StepRecord) -> None:
        watcher.step(record)
        if record.skipped:
            watcher.warn(f"step {record.step}: gradient not finite in fp16; computed again {record.skipped} × at half")
        if given.on_step:
            given.on_step(record)

    return Run(
        loaded.model,
        loaded.attached,
        loaded.optimizer,
        prepared.order,
        prepared.weighted,
        prepared.laying,
        recipe.supervise.normaliser,
        settings,
        prepared.settled.rate.value,
        prepared.total_steps,
        every_steps(settings.save_every, prepared.total_steps),
        every_steps(every, prepared.total_steps),
        out,
        folder.recipe_hash(recipe),
        folder.machine(loaded.device),
        on_step,
        enough=(lambda record: record.loss < GOOD_LOSS) if overfit else (lambda record: False),
    )


def every_steps(every: float, total: int) -> int:
    """Steps between two: a share of the run below 1, else the number itself; 0 for never."""
    return max(1, math.ceil(every * total)) if 0 < every < 1 else int(every)


def say_speed(prepared: Prepared, loaded: Loaded, done: int, watcher: Watcher) -> None:
    """Time a part of the first step, and say how long the run will take before it begins."""
    first = next(iter(prepared.order.steps()))
    lengths = prepared.dataset.lengths[first.samples]
    some = 1 + int(np.searchsorted(np.cumsum(lengths), TIMED_TOKENS)) if loaded.device.type == "cpu" else len(lengths)
    laid = lay_out([prepared.weighted(int(i)) for i in first.samples[:some]], prepared.laying, 1.0)
    middle = laid.micro_batches[len(laid.micro_batches) // 2]
    started = 0.0
    for _ in range(2):  # the first touches memory for the first time
        started = time.perf_counter()
        micro_batch_loss(loaded.model, loaded.attached, middle, prepared.laying).backward()
        loaded.optimizer.clear()
    seconds = time.perf_counter() - started
    rate = middle.flat_tokens / seconds
    left = prepared.total_steps - done
    step_tokens = sum(int(prepared.dataset.lengths[step.samples].sum()) for step in prepared.order.epoch(0))
    tokens = step_tokens / len(prepared.order.epoch(0)) * left
    expected = tokens / rate
    end = time.strftime("%H:%M", time.localtime(time.time() + expected))
    watcher.say(
        f"train      {left:,} steps, about {tokens:,.0f} tokens at {rate:,.0f} a second: {duration(expected)}, until "
        f"{end}"
    )
    if expected > LONG_RUN_SECONDS:
        fitting = max(1, int(left * SHORT_RUN_SECONDS / expected))
        watcher.say(f"           in 10 minutes: train.max_steps={fitting}")


def _resumed(found: folder.Found, loaded: Loaded, machine: str, watcher: Watcher) -> checkpoint.State | None:
    if found.checkpoint is None:
        return None
    state = checkpoint.load_state(found.checkpoint)
    loaded.optimizer.load(*checkpoint.load_tensors(found.checkpoint))
    watcher.say(f"resume     from step {state.step} of {state.total_steps}")
    if state.machine != machine:
        watcher.warn(f"the run began on {state.machine}; this is {machine}: the result will not be byte-identical")
    return state


class _deterministic:  # noqa: N801  reads as a word after `with`
    """Deterministic kernels on CUDA where asked; a CPU needs none."""

    def __init__(self, settings: TrainSettings, device: torch.device) -> None:
        self._asked = settings.deterministic and device.type == "cuda"

    def __enter__(self) -> None:
        if self._asked:
            torch.use_deterministic_algorithms(True)

    def __exit__(self, *exception: object) -> None:
        if self._asked:
            torch.use_deterministic_algorithms(False)


def _raise_if_not_fitted(verdict: Verdict | None) -> None:
    if verdict and not verdict.fitted:
        raise CheckError(verdict.text)


@told_with_knobs
def train(
    recipe: Recipe,
    *,
    out: Path,
    resume: bool = False,
    overfit: int | None = None,
    given: Given = _NOTHING,
    watcher: Watcher = _SILENT,
) -> dict:
    """Train what the recipe says into ``out`` and return ``summary.json``.

    Args:
        recipe: with or without stages.
        out: folder of the run; must not exist or be empty, unless ``resume``.
        resume: continue from the newest complete checkpoint; a finished run is left alone.
        overfit: train only on so many samples until the loss is below 0.05.
        given: a model, tokenizer or records instead of paths.
        watcher: is told what happens.

    Raises:
        FrisketError: see ``errors.py``; before the first step nothing is left behind.
    """
    mask_free.check(recipe, overfit=overfit)
    mask_tuning.check(recipe, overfit=overfit)
    found = folder.look(out, recipe, resume)
    if found.is_finished and recipe.attend.compare:
        summary = folder.read_json(out / folder.SUMMARY)
        if "verdict" not in summary:
            return mask_free.judged(rates.kept(recipe, out), out, summary, given, resume, watcher)
    if found.is_finished:
        watcher.say(f"{out} is finished; nothing to do. Look at it: {out / 'report.html'}")
        return folder.read_json(out / folder.SUMMARY)
    if resume and found.checkpoint is None and not recipe.stages:
        watcher.say(f"resume     no complete checkpoint in {out}: starting afresh")
    if recipe.stages and overfit:
        raise ConfigError("--overfit tries one recipe, and this one has stages.\nLeave them out: stages=[]")
    if recipe.stages:
        from frisket.run.stages import train_stages

        return train_stages(recipe, out, given, resume, watcher)
    summary = train_one(recipe, out, found, given, overfit, watcher)
    if not recipe.attend.compare:
        return summary
    return mask_free.judged(rates.kept(recipe, out), out, summary, given, resume, watcher)
