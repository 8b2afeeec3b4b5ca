"""Plain Python: the same run as the command line's, with a model, a tokenizer or records in memory where wanted."""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from frisket.errors import ConfigError
from frisket.notebook import MaskView, in_notebook, live_block
from frisket.recipe import Recipe, load_recipe
from frisket.run import Given, Plan, train
from frisket.run import make_plan as _make_plan
from frisket.run import view as _view
from frisket.watch import StepRecord, WarningsOnly, Watcher

IN_MEMORY = "<in memory>"  # no file, folder or hub id can have this name
RecipeLike = Recipe | Mapping[str, Any] | str | Path | None


def finetune(
    recipe: RecipeLike = None,
    *,
    out: str | Path | None = None,
    model: Any = None,
    tokenizer: Any = None,
    data: Sequence[Any] | None = None,
    on_step: Callable[[StepRecord], None] | None = None,
    resume: bool = False,
    watcher: Watcher | None = None,
) -> dict:
    """Fine-tune, and return what ``summary.json`` holds.

    Args:
        recipe: a ``Recipe``, a mapping of its sections, a YAML file or run folder, or None for the defaults.
        out: folder of the run; default ``out/<name of the recipe or data>``.
        model: hub id or folder; or a loaded ``PreTrainedModel``, which is changed in place (the adapter is taken off
            again at the end). Its ``name_or_path`` is what the run folder then names as the base.
        tokenizer: a fast tokenizer, instead of the model's own; required with a loaded model.
        data: for each source a path or an iterable of records; or simply a list of records, which is one source.
        on_step: called with a ``StepRecord`` after every step; raising stops the run.
        resume: continue from the newest complete checkpoint.
        watcher: where progress is shown; default: in a notebook a block below the cell, elsewhere warnings on stderr.

    Raises:
        ConfigError: a loaded model without a tokenizer, or to be fine-tuned in full.
        FrisketError: see ``frisket.errors``; before the first step nothing is left behind.
    """
    paths, records = _sources(data)
    loaded: Any = None if isinstance(model, str | Path) else model
    path = None if model is None else str(model) if loaded is None else str(loaded.name_or_path or IN_MEMORY)
    resolved = _recipe(recipe, path, paths)
    if loaded is not None and tokenizer is None:
        raise ConfigError("a loaded model was given without its tokenizer.\nGive both: finetune(…, tokenizer=…)")
    if loaded is not None and resolved.adapt.method == "full":
        raise ConfigError(
            "full fine-tuning saves the base's own bytes where nothing moved, so it needs the base's files.\n"
            "Give its folder or hub id: finetune(…, model='…')"
        )
    folder = Path("out") / (resolved.name or "run") if out is None else Path(out)
    given = Given(loaded, tokenizer, records, on_step)
    with _watched(watcher) as shown:
        return train(resolved, out=folder, resume=resume, given=given, watcher=shown)


def make_plan(recipe: RecipeLike = None, *, watcher: Watcher | None = None) -> Plan:
    """Say what a recipe would do, before paying for it."""
    with _watched(watcher) as shown:
        return _make_plan(_recipe(recipe, None, ()), watcher=shown)


def show_masks(
    recipe: RecipeLike = None,
    *,
    model: str | Path | None = None,
    data: Sequence[str | Path] = (),
    sample: str | None = None,
    samples: int | None = None,
    compare: Sequence[str] | None = None,
) -> MaskView:
    """Show what every token of the first steps does: weights, segments, what sees what, and the rules behind it.

    Args:
        recipe: a ``Recipe``, a mapping of its sections, a YAML file or the folder of a run, or None for the defaults.
        model: hub id or folder, instead of the recipe's.
        data: paths of the sources, instead of the recipe's.
        sample: show the row of this sample alone (its id or ``file:line``).
        samples: at most so many samples; default 60.
        compare: policies to compare the recipe's weights with.

    Returns:
        A value that a notebook shows as a page of its own; ``save`` writes it to a file.

    Raises:
        ConfigError: there is no such policy.
        DataError: there is no such sample, or it was left out.
    """
    resolved = _recipe(recipe, None if model is None else str(model), [str(path) for path in data])
    with TemporaryDirectory() as folder, _watched(None) as shown:
        page = Path(folder) / "view.html"
        _view(resolved, out=page, watcher=shown, compare=compare, sample=sample, samples=samples)
        return MaskView(page.read_text(encoding="utf-8"))


def _watched(watcher: Watcher | None) -> AbstractContextManager[Watcher]:
    if watcher is not None:
        return nullcontext(watcher)
    return live_block() if in_notebook() else nullcontext(WarningsOnly(_to_stderr))


def _to_stderr(line: str) -> None:
    print(f"warning {line}", file=sys.stderr)


def _recipe(recipe: RecipeLike, model: str | None, paths: Sequence[str]) -> Recipe:
    if isinstance(recipe, str | Path) or recipe is None:
        return load_recipe(recipe, model=model, data=paths)
    given = recipe.model_dump(mode="json") if isinstance(recipe, Recipe) else dict(recipe)
    if isinstance(recipe, Recipe) and recipe.evaluate is None:
        given["evaluate"] = "off"
    if model is not None:
        given["model"] = {**given.get("model", {}), "path": model}
    if paths:
        known = list(given.get("data", ()))
        given["data"] = [{**(known[i] if i < len(known) else {}), "path": path} for i, path in enumerate(paths)]
    return Recipe.model_validate(given)


def _sources(data: Sequence[Any] | None) -> tuple[list[str], Sequence[Iterable[Mapping] | None] | None]:
    """Paths of the sources, and the records of those that are in memory."""
    if data is None:
        return [], None
    sources = [data] if data and isinstance(data[0], Mapping) else list(data)
    paths = [str(source) if isinstance(source, str | Path) else IN_MEMORY for source in sources]
    records: list[Iterable[Mapping] | None] = [None if isinstance(s, str | Path) else list(s) for s in sources]
    return paths, records if any(entry is not None for entry in records) else None
