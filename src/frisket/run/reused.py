"""Whether a run measures itself on samples that the run it starts from was trained on."""

from collections.abc import Iterator
from pathlib import Path

from frisket.adapt.graft import Graft
from frisket.errors import FrisketError, counted
from frisket.recipe import RECIPE_FILE, Recipe, load_recipe
from frisket.run.folder import SUMMARY
from frisket.run.prepare import Prepared, prepare
from frisket.watch import Silent


def reused_line(prepared: Prepared) -> str | None:
    """A warning where held-out samples were trained on before; None where that is not so.

    Samples are compared by their tokens. Only finished runs are known: that of `adapt.of`, and the one that made
    `model.path`.
    """
    held_out = {prepared.dataset[int(i)].input_ids.tobytes() for i in prepared.dataset.held_out}
    if not held_out or prepared.recipe.evaluate is None:
        return None
    for folder in _started_from(prepared.recipe):
        try:
            trained = [_trained_on(before, held_out) for before in _unlike(prepared.recipe, folder)]
        except (FrisketError, OSError) as error:
            why = str(error).partition("\n")[0]
            return f"whether {folder} was trained on the held-out samples cannot be said: {why}"
        seen = set().union(*trained)
        if seen:
            return (
                f"{counted(len(seen), 'held-out sample')} of {len(held_out)} {'was' if len(seen) == 1 else 'were'} "
                f"trained on by {folder}, which this run starts from: figures on them say nothing of unseen samples. "
                "Train it with this run's data.hold_out, train.seed and evaluation"
            )
    return None


def _started_from(recipe: Recipe) -> Iterator[Path]:
    """Folders of finished runs that made what this one starts from."""
    paths = [recipe.model.path, *([recipe.adapt.of] if isinstance(recipe.adapt, Graft) else [])]
    for path in map(Path, paths):
        for folder in (path, path.parent):
            if (folder / RECIPE_FILE).is_file() and (folder / SUMMARY).is_file():
                yield folder
                break


def _unlike(recipe: Recipe, folder: Path) -> list[Recipe]:
    """The recipes of a run's stages whose hold-out is not by construction that of this run."""
    whole = load_recipe(folder)
    stages = [whole.stage(index) for index in range(len(whole.stages))] or [whole]
    return [stage for stage in stages if _split_by(stage) != _split_by(recipe)]


def _split_by(recipe: Recipe) -> tuple:
    """What decides which samples are held out: of equal ones the split is equal."""
    return recipe.data, recipe.train.seed, recipe.evaluate and recipe.evaluate.learning, recipe.evaluate is None


def _trained_on(recipe: Recipe, held_out: set[bytes]) -> set[bytes]:
    """Which of these samples a run was trained on."""
    dataset = prepare(recipe, Silent()).dataset
    return held_out & {dataset[int(i)].input_ids.tobytes() for i in dataset.train}
