"""`adapt.where={locate: search}`: which layer is tuned, found by a short run of each candidate on the user's own data.

LocFT-BF (arXiv 2509.22072) searched the place for each model; its released settings name layer 6 of Qwen2.5-7B and
layer 22 of Llama-3-8B, so no rule replaces the search. Each candidate's run lies in ``OUT/search/layer-N``. What
decides is the held-out loss plus the KL from the base on the user's own prompts, both in nats a token: what was
learned and what was lost count alike. Ties go to the lower layer.
"""

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from frisket.adapt.policies import Place, candidates, place_of, with_place
from frisket.errors import ConfigError
from frisket.evaluate.settings import ForgettingSettings
from frisket.hf import load
from frisket.recipe import Recipe
from frisket.run import folder
from frisket.run.rates import LOCATED_FILE, settled_place
from frisket.run.trial import shortened, tried
from frisket.watch import Watcher

if TYPE_CHECKING:
    from frisket.run.training import Given

KL = ForgettingSettings(name="kl", prompts=16, answer_tokens=32, text_tokens=0)


def searched(recipe: Recipe, out: Path, given: "Given", watcher: Watcher) -> Recipe:
    """The recipe with the best layer; as it is where it asks for no search.

    Finished candidates of a stopped search are not run again.

    Raises:
        ConfigError: nothing is measured that could decide, or no layer has the module.
    """
    place = place_of(recipe.adapt.where)
    if place is None or not place.is_search:
        return recipe
    layers = _candidates(recipe, place, given)
    watcher.say(f"locate     {place.module or 'the whole layer'}: {len(layers)} layers, {place.steps} steps each")
    with folder.claimed(out, recipe):
        found = [_tried(recipe, out, place, layer, given, watcher) for layer in layers]
        best = min(found, key=lambda entry: entry["score"])
        told = {"place": replace(place, layers=(best["layer"],)).told(), "steps": place.steps, "candidates": found}
        folder.write_json(out / LOCATED_FILE, told)
    watcher.say(f"locate     layer {best['layer']}: the lowest sum of held-out loss and KL from the base")
    return settled_place(recipe, out)


def planned(recipe: Recipe, watcher: Watcher) -> Recipe:
    """The recipe with one of the candidates, for counting what would move."""
    place = place_of(recipe.adapt.where)
    if place is None or not place.is_search:
        return recipe
    layers = _candidates(recipe, place, None)
    chosen = layers[len(layers) // 2]
    watcher.say(
        f"locate     {len(layers)} runs of {place.steps} steps will choose the layer; planned here is layer {chosen}"
    )
    return _with_layer(recipe, place, chosen)


def _candidates(recipe: Recipe, place: Place, given: "Given | None") -> list[int]:
    if recipe.evaluate is None:
        raise ConfigError(
            "adapt.where: `locate: search` decides by what is measured, and evaluate is off.\n"
            "Leave evaluate out, or name a layer: adapt.where='{locate: {layer: 6, module: mlp.down_proj}}'."
        )
    if given is not None and given.model is not None:
        return candidates(given.model, place)
    with torch.device("meta"):
        return candidates(load.empty_model(load.load_config(recipe.model)), place)


def _tried(recipe: Recipe, out: Path, place: Place, layer: int, given: "Given", watcher: Watcher) -> dict[str, Any]:
    target, label = out / "search" / f"layer-{layer}", f"locate     layer {layer}"
    short = shortened(_with_layer(recipe, place, layer), place.steps, (KL,))
    summary, took = tried(short, target, label, given, watcher)
    for name in ("checkpoints", "adapter", "model"):
        shutil.rmtree(target / name, ignore_errors=True)
    sides = next(iter(summary["learning"].values()), {})
    before, after = (sides.get(side, {}).get("loss", math.inf) for side in ("before", "after"))
    kl = summary["forgetting"]["kl"]["after"].get("kl", 0.0)
    watcher.say(f"{label}: held-out loss {after:.4f} from {before:.4f}, KL {kl:.4f}, {took}")
    return {"layer": layer, "loss": after, "kl": kl, "score": after + kl}


def _with_layer(recipe: Recipe, place: Place, layer: int) -> Recipe:
    where = with_place(recipe.adapt.where, replace(place, layers=(layer,)).told())
    return recipe.model_copy(update={"adapt": recipe.adapt.model_copy(update={"where": where})})
