"""``frisket train``: fine-tune, and show what was learned; with several values or seeds, a grid of runs."""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from frisket.cli.compare import AllowUnequal, show
from frisket.cli.options import AsJson, Data, Model, Words, greet, load, split_words
from frisket.cli.screen import Screen
from frisket.errors import ConfigError

if TYPE_CHECKING:
    from frisket.recipe import Recipe

Out = Annotated[
    Path | None,
    typer.Option(
        metavar="OUT",
        help="Folder to write; default: out/NAME, NAME that of the recipe or of the data.",
        show_default=False,
    ),
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume", help="Go on with the run in OUT from its newest checkpoint; begin it where there is none."
    ),
]
Seeds = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        help="Train with seeds 0 to N-1, one after the other, and compare. Values with commas make a grid, with or "
        "without seeds: adapt.rank=8,16",
    ),
]
Overfit = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        help="Train on N samples alone until their loss is below 0.05: a test that they can be learned.",
    ),
]


def command(
    words: Words = None,
    model: Model = None,
    data: Data = None,
    out: Out = None,
    resume: Resume = False,
    seeds: Seeds = None,
    allow_unequal: AllowUnequal = False,
    overfit: Overfit = None,
    as_json: AsJson = False,
) -> dict:
    """Fine-tune a model.

    Examples:
      frisket train --model Qwen/Qwen3-0.6B --data chats.jsonl --out out/chats
      frisket train recipes/gsm8k.yaml adapt.rank=32
      frisket train recipes/gsm8k.yaml --seeds 3 adapt.rank=8,16,32
      frisket train out/chats --resume
    """
    with Screen.open(as_json) as screen:
        greet(screen, "train", words, model, data or ())
        from frisket.cli.axes import split_axes
        from frisket.recipe import GRID_FILE

        place, overrides = split_words(words)
        if out is None and resume and place is not None and Path(place).is_dir():
            out = Path(place)
        axes, shared = split_axes(overrides)
        is_begun = resume and out is not None and str(out) == place and (out / GRID_FILE).is_file()
        if not (axes or seeds is not None or is_begun):
            return _train(load(words, model, data), out, resume, overfit, screen, as_json)
        if overfit is not None:
            raise ConfigError("--overfit tries one recipe, and this is a grid.\nLeave out --seeds and lists of values.")
        with screen.loading():
            from frisket import run

        if out is not None and is_begun and not axes and seeds is None:
            grid = run.load_grid(out)
        else:
            load([*([place] if place else []), *shared], model, data)
            grid = run.make_grid(place, shared, axes, seeds, model=model, data=data or (), allow_unequal=allow_unequal)
        folder = out or Path("out") / grid.name
        with _stoppable(folder):
            result = run.train_grid(grid, out=folder, resume=resume, allow_unequal=allow_unequal, watcher=screen)
    if not as_json:
        show(result, screen.console)
    return {**result, "out": str(folder)}


def _train(
    recipe: "Recipe", out: Path | None, resume: bool, overfit: int | None, screen: Screen, as_json: bool
) -> dict:
    folder = out or Path("out") / (recipe.name or "run")
    with screen.loading():
        from frisket import run

    with _stoppable(folder, "" if overfit is None else f" --overfit {overfit}"):
        summary = run.train(recipe, out=folder, resume=resume, overfit=overfit, watcher=screen)
    if not as_json:
        screen.show_summary(summary, folder)
    return {**summary, "out": str(folder)}


@contextmanager
def _stoppable(folder: Path, flags: str = "") -> Iterator[None]:
    """Say where and how to go on after Ctrl-C."""
    try:
        yield
    except KeyboardInterrupt as stop:
        from frisket import run

        if not folder.exists():
            raise KeyboardInterrupt("Stopped before the first checkpoint. Nothing was left behind.") from stop
        command = f"frisket train {shlex.quote(str(folder))} --resume{flags}"
        raise KeyboardInterrupt(f"Stopped. {run.where_stopped(folder)}: {command}") from stop
