"""`frisket evaluate OUT`: measure a finished run again, perhaps on other sets."""

from collections.abc import Sequence as Seq
from pathlib import Path

from frisket.adapt import methods
from frisket.errors import ConfigError
from frisket.hf import load
from frisket.recipe import load_recipe
from frisket.run import measuring
from frisket.run.folder import SUMMARY, with_base, write_json
from frisket.run.opening import refuse_full
from frisket.run.prepare import prepare
from frisket.watch import Watcher


def evaluate_run(folder: Path, *, overrides: Seq[str] = (), watcher: Watcher) -> dict:
    """Measure base and adapter of a run on the recipe's sets, or on those of the overrides.

    Of a run in stages it is the last one's recipe that says what is measured, and on what data.

    Writes ``OUT/evaluation.json``; the run's own ``summary.json`` stays what it was.

    Raises:
        ConfigError: the folder holds no finished run, or the recipe measures nothing.
        UnsupportedError: the run has no adapter, so its base is not in memory.
    """
    if not (folder / SUMMARY).exists():
        raise ConfigError(f"{folder} holds no finished run (no {SUMMARY}).\nFinish it: frisket train {folder} --resume")
    refuse_full(folder)
    recipe = load_recipe(folder, overrides)
    if recipe.stages:
        recipe = with_base(recipe, folder).stage(len(recipe.stages) - 1)
    prepared = prepare(recipe, watcher)
    device = load.device_of(recipe.model.device)
    compute = load.compute_type(recipe.train.compute, device)
    model = load.load_model(recipe.model, compute, device)
    attached = methods.load_adapter(model, folder / "adapter")
    load.cast_parameters(model, compute)
    sets = measuring.make_sets(prepared, model, watcher, None)
    if sets is None:
        raise ConfigError(f"{folder}: the recipe says `evaluate: off`.\nName a set: evaluate.learning.0.name=hold-out")
    with attached.switched_off():
        before = measuring.measure_before(model, sets, attached, recipe.train.seed)
    measured = measuring.measure_after(model, sets, before, attached)
    write_json(folder / "evaluation.json", measured)
    return measured
