"""`adapt.method=mft`: whether the learnt mask is worth shipping, and what is said of it before and after.

After training four candidates are measured on the same held-out samples: the model without a mask, with a random mask
and with a magnitude mask (the smallest weights off) of the same share, and with the learnt one. It is shipped where its
loss on `evaluate.watch` is lower than without a mask by more than chance: the paired 95 % interval of the difference
lies below 0. Otherwise the run ends without an adapter, with exit code 4. Where the same samples chose the group of
layers or the step, the interval is that of the best of so many: `evaluate/looks.py`.

Source: candidates of the authors' `apply_masks.py` (arXiv 2503.22764); the verdict is ours. A replication on BERT lost
on well-trained models, so that a gain cannot be taken for granted.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from frisket.adapt.mft import AttachedMft, Mft
from frisket.errors import ConfigError
from frisket.evaluate.compare import FEWEST_UNITS, Measure, comparison, one_side, verdict
from frisket.evaluate.looks import widened
from frisket.evaluate.losses import sample_losses
from frisket.recipe import Recipe
from frisket.run import finishing, measuring
from frisket.run.folder import SUMMARY, read_json
from frisket.run.layer_search import refuse_search
from frisket.run.prepare import Prepared
from frisket.run.rates import SEARCH_FILE
from frisket.train.checks import Checks
from frisket.train.optim import rate_at
from frisket.watch import Watcher

if TYPE_CHECKING:
    from frisket.run.training import Loaded

NOT_SHIPPED = 4
"""Exit code of a run whose mask did not beat the model without one."""
_RANDOM_MASK = 0x6D61736B  # no stage has this number: [seed, stage] is what a stage draws its start with
ENOUGH_REACH = 0.2  # below it a run can hardly leave its random start; the authors' runs have 0.24 to 0.47


def check(recipe: Recipe, *, overfit: int | None = None) -> None:
    """Refuse what could not be judged, before anything is read.

    Raises:
        ConfigError: nothing is measured, ``--overfit``, or a search that cannot be made.
    """
    if not isinstance(recipe.adapt, Mft):
        return
    refuse_search(recipe)
    if overfit:
        raise ConfigError(
            "--overfit tries whether samples can be learned by heart, which a mask over frozen weights cannot.\n"
            "Leave --overfit out."
        )
    if recipe.evaluate is None or recipe.evaluate.learning == ():
        raise ConfigError(
            "adapt.method = mft ships a mask only where it beats the model without one on held-out data, and "
            f"{'evaluate is off' if recipe.evaluate is None else 'evaluate.learning is empty'}.\n"
            "Leave that out, or use adapt.method=lora."
        )


def tell(prepared: Prepared, watcher: Watcher) -> None:
    """Say how far the scores can go, which is decided before the first step.

    Raises:
        ConfigError: there are too few held-out samples for an interval.
    """
    method, settings = prepared.recipe.adapt, prepared.recipe.evaluate
    if not isinstance(method, Mft) or settings is None:
        return
    entries = measuring.learning_entries(prepared, settings)
    watched = next((entry for entry in entries if settings.watch in (None, entry.name)), None)
    held_out = len(prepared.dataset.held_out)
    if watched is None or (watched.path is None and held_out < FEWEST_UNITS):
        raise ConfigError(
            f"adapt.method = mft is judged on held-out samples; there are {held_out}, and an interval needs "
            f"{FEWEST_UNITS}.\nHold more out: data.0.hold_out=0.1"
        )
    steps, peak = prepared.total_steps, prepared.settled.rate.value
    reach = sum(rate_at(step, steps, peak, prepared.recipe.train) for step in range(1, steps + 1))
    ratio, near = reach / method.score_spread, _share_within(method.keep, reach / method.score_spread)
    watcher.say(
        f"mft        {100 * (1 - method.keep):.3g} % off; rates sum to {reach:.3g}, {ratio:.2g} of adapt.score_spread: "
        f"at most {100 * near:.0f} % of the entries can end up off"
    )
    if ratio < ENOUGH_REACH and method.keep < 1:
        watcher.warn(
            f"the mask will hardly leave its random start: raise train.learning_rate to "
            f"{peak / ratio:.2g}, or lower adapt.score_spread to {reach:.2g}"
        )


def _share_within(keep: float, ratio: float) -> float:
    """Share of N(0, 1) that the sum of the rates, in spreads, can bring to where the share 1 - keep lies at first."""
    normal = torch.distributions.Normal(0.0, 1.0)
    threshold = float(normal.icdf(torch.tensor(1 - keep / 2, dtype=torch.float64))) if keep < 1 else 0.0
    return 2 * float(normal.cdf(torch.tensor(threshold + ratio, dtype=torch.float64))) - 1 if keep < 1 else 0.0


def save(
    out: Path,
    prepared: Prepared,
    loaded: "Loaded",
    checks: Checks,
    sets: measuring.Sets | None,
    before: measuring.Before | None,
    start: Mapping[str, Tensor],
    watcher: Watcher,
) -> tuple[dict[str, str], dict[str, str], dict[str, Any]]:
    """Save what was trained, whatever the method; a mask only where it beats the model without one.

    Args:
        start: the scores before the first step.

    Returns:
        Artifacts and checks as ``finishing.save_and_verify`` gives them, and what the summary holds of a mask.
    """
    attached = loaded.attached
    if not isinstance(attached, AttachedMft) or sets is None or before is None:
        return *finishing.save_and_verify(out, prepared, loaded, checks), {}
    told = judged(loaded.model, attached, sets, before, start, prepared.recipe.train.seed, looks(prepared, out))
    found: dict[str, Any] = {"mask_tuning": told}
    if (out / SEARCH_FILE).is_file():
        found["layer_search"] = read_json(out / SEARCH_FILE)
    watcher.say(f"mask       {told['sentence']}")
    if told["shipped"]:
        return *finishing.save_and_verify(out, prepared, loaded, checks), found
    attached.detach()
    base = prepared.recipe.model.path
    watcher.warn(f"no adapter is written: use {base} as it is")
    return {}, checks.as_dict(), found | {"exit_code": NOT_SHIPPED}


def looks(prepared: Prepared, out: Path) -> int:
    """Among how many masks the watched samples chose: groups of a search times steps that could have been kept."""
    settings, total = prepared.recipe.evaluate, prepared.total_steps
    held = out / SEARCH_FILE
    groups = len(read_json(held)["groups"]) if held.is_file() else 1
    if settings is None or not settings.every or not (settings.stop_after or settings.keep == "best"):
        return groups
    between = math.ceil(settings.every * total) if settings.every < 1 else int(settings.every)
    return groups * math.ceil(total / between)


def is_shipped(out: Path) -> bool:
    """Whether a finished run left something to go on from: always, but for a mask that did not beat none."""
    return read_json(out / SUMMARY).get("mask_tuning", {}).get("shipped", True)


def judged(
    model: Any,
    attached: AttachedMft,
    sets: measuring.Sets,
    before: measuring.Before,
    start: Mapping[str, Tensor],
    seed: int,
    among: int = 1,
) -> dict[str, Any]:
    """Measure the four candidates, all in one way: laid out otherwise, equal models would differ in the last digits.

    Args:
        among: how many masks the learnt one was chosen from by the watched samples (see ``looks``).

    Returns:
        ``shipped``, ``sentence``, ``decided_by`` (the set), ``chosen_among``, ``entries``, ``off``, ``moved`` (off
        entries that were on at the start), and under ``sets`` for each set ``none``, ``random``, ``magnitude``,
        ``learnt``: loss and interval, and but for the first ``difference`` to it, its interval and verdict.
    """
    learnt = attached.masks_of(attached.parameters())
    masks = {
        "none": {name: torch.ones_like(mask) for name, mask in learnt.items()},
        "random": attached.masks_of(_random(attached.weights(), seed)),
        "magnitude": attached.masks_of(attached.weights()),
        "learnt": learnt,
    }
    measured: dict[str, dict[str, Measure]] = {each.settings.name: {} for each in sets.learning}
    for name, mask in masks.items():
        with attached.masked_by(mask):
            for each, scores in zip(sets.learning, before.learning, strict=True):
                samples = [each.samples[index] for index in scores.samples]
                measured[each.settings.name][name] = sample_losses(model, samples, sets.instruments)
    watch = sets.settings.watch or next(iter(measured))
    told = {name: _told(candidates, among if name == watch else 1) for name, candidates in measured.items()}
    first = attached.masks_of(start)
    off = sum(int((~mask).sum()) for mask in learnt.values())
    moved = sum(int((first[name] & ~mask).sum()) for name, mask in learnt.items())
    return {
        "shipped": told[watch]["learnt"].get("verdict") == "better",
        "sentence": _sentence(told[watch], watch, among),
        "decided_by": watch,
        "chosen_among": among,
        "entries": sum(mask.numel() for mask in learnt.values()),
        "off": off,
        "moved": moved,
        "sets": told,
    }


def _random(weights: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Scores of a random mask; drawn with the seed itself they would be those that the learnt mask starts from."""
    own = np.random.SeedSequence([seed, _RANDOM_MASK]).generate_state(1, np.uint64)[0] >> 2
    generator = torch.Generator().manual_seed(int(own))
    return {name: torch.randn(w.shape, generator=generator).to(w.device) for name, w in weights.items()}


def _told(candidates: Mapping[str, Measure], among: int) -> dict[str, dict[str, Any]]:
    """Loss of each candidate, and its paired difference to the model without a mask; the learnt one's as chosen."""
    none = {"loss": candidates["none"]}
    told = {"none": one_side(none)}
    for name in ("random", "magnitude", "learnt"):
        found = comparison(none, {"loss": candidates[name]})
        difference = found["difference"]
        if name == "learnt" and "loss_interval" in difference:
            weighed = int((none["loss"].count > 0).sum())
            wide = widened(difference["loss_interval"], difference["loss"], among, weighed)
            difference |= {"loss_interval": list(wide), "loss_verdict": verdict("loss", wide)}
        told[name] = found["after"] | {key.replace("loss", "difference"): value for key, value in difference.items()}
        told[name] = {key.replace("difference_verdict", "verdict"): value for key, value in told[name].items()}
    return told


def _sentence(told: Mapping[str, Mapping[str, Any]], watch: str, among: int) -> str:
    """Loss of the learnt mask against none, and the verdict, in words."""
    learnt, none = told["learnt"], told["none"]
    if "difference" not in learnt:
        return f"on {watch} a loss is not finite, so nothing can be said of the learnt mask"
    figures = f"on {watch} the learnt mask has a loss of {learnt['loss']:.4f}, no mask {none['loss']:.4f}"
    if "difference_interval" not in learnt:
        return f"{figures}; fewer than {FEWEST_UNITS} samples tell no difference from chance"
    low, high = learnt["difference_interval"]
    chosen = f", wider because these samples chose it among {among}" if among > 1 else ""
    beats = "beats" if learnt["verdict"] == "better" else "does not beat"
    return f"{figures}: it {beats} no mask (difference {learnt['difference']:+.4f}, {low:+.4f} to {high:+.4f}{chosen})"
