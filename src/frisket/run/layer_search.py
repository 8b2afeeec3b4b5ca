"""`adapt.search`: which group of consecutive layers is masked, found by a short run of each group.

The groups of the authors' released runs (arXiv 2503.22764: four layers of 32, others for each task) were found by such
a sweep. Each group's run lies in ``OUT/search/layers-A-B``; the lowest held-out loss wins, ties go to the first.
"""

import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frisket.adapt.mft import Mft
from frisket.errors import ConfigError
from frisket.hf.load import load_config
from frisket.recipe import Recipe
from frisket.run import folder
from frisket.run.rates import SEARCH_FILE, settled_layers
from frisket.run.trial import shortened, tried
from frisket.watch import Watcher

if TYPE_CHECKING:
    from frisket.run.training import Given

SEARCH_FOLDER = "search"


def refuse_search(recipe: Recipe) -> None:
    """Refuse a search where layers are chosen otherwise.

    Raises:
        ConfigError: `adapt.where` restricts layers itself.
    """
    method = recipe.adapt
    if isinstance(method, Mft) and method.search and any(isinstance(item, dict) for item in _listed(method)):
        raise ConfigError(
            f"adapt.search = {method.search} chooses the layers, and adapt.where restricts them too.\n"
            "Leave one out: adapt.search=null"
        )


def groups(layers: int, size: int) -> list[str]:
    """Groups of consecutive layers, as `where` writes them; the last may be smaller.

    >>> groups(6, 4)
    ['0-3', '4-5']

    Raises:
        ConfigError: they make one group.
    """
    if size >= layers:
        raise ConfigError(
            f"adapt.search = {size}: the model has {layers} layers, which make one group.\n"
            f"Use adapt.search={max(1, layers // 4)}"
        )
    return [f"{first}-{min(first + size, layers) - 1}" for first in range(0, layers, size)]


def searched(recipe: Recipe, out: Path, given: "Given", watcher: Watcher) -> Recipe:
    """The recipe with the best group of layers; as it is where it asks for no search.

    Finished groups of a stopped search are not run again.

    Raises:
        ConfigError: the groups cannot be made.
    """
    method = recipe.adapt
    if not isinstance(method, Mft) or not method.search:
        return recipe
    config = given.model.config if given.model else load_config(recipe.model)
    named = groups(config.get_text_config().num_hidden_layers, method.search)
    watcher.say(f"search     {len(named)} groups of {method.search} layers, {method.search_steps} steps each")
    with folder.claimed(out, recipe):
        found = [_tried(recipe, out, group, number, len(named), given, watcher) for number, group in enumerate(named)]
        best = min(found, key=lambda entry: entry.get("loss", math.inf))
        told = {"size": method.search, "decided_by": best["decided_by"], "best": best["layers"], "groups": found}
        folder.write_json(out / SEARCH_FILE, told | {"where": _within(method, best["layers"])})
    for group in named:
        for name in ("checkpoints", "adapter"):
            shutil.rmtree(out / SEARCH_FOLDER / f"layers-{group}" / name, ignore_errors=True)
    watcher.say(f"search     layers {best['layers']} have the lowest loss of {best['decided_by']}")
    return settled_layers(recipe, out)


def _tried(
    recipe: Recipe, out: Path, group: str, number: int, of: int, given: "Given", watcher: Watcher
) -> dict[str, Any]:
    place, label = out / SEARCH_FOLDER / f"layers-{group}", f"search     {number + 1} of {of}: layers {group}"
    summary, took = tried(_short(recipe, group), place, label, given, watcher)
    told = summary["mask_tuning"]
    learnt, none = (told["sets"][told["decided_by"]][name] for name in ("learnt", "none"))
    losses = [side.get("loss", math.inf) for side in (learnt, none)]
    watcher.say(f"{label}: loss {losses[0]:.4f}, without a mask {losses[1]:.4f}, {took}")
    return {"layers": group, "decided_by": told["decided_by"], **learnt}


def _short(recipe: Recipe, group: str) -> Recipe:
    """The run of one group."""
    method = recipe.adapt
    assert isinstance(method, Mft)
    within = method.model_copy(update={"where": _within(method, group), "search": None})
    return shortened(recipe.model_copy(update={"adapt": within}), method.search_steps)


def _listed(method: Mft) -> list[Any]:
    return [method.where] if isinstance(method.where, str) else list(method.where)


def _within(method: Mft, group: str) -> list[Any]:
    return [*_listed(method), {"layers": group}]
