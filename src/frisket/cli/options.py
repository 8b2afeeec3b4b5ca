"""What several verbs share: their options, the recipe they load, the first line they print."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from frisket import __version__
from frisket.cli.screen import Screen
from frisket.errors import ConfigError, nearest

if TYPE_CHECKING:
    from frisket.recipe import Recipe

Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[RECIPE] [KEY=VALUE ...]",
        help="A recipe (a YAML file or a run folder) or none, and settings such as train.epochs=2 that come before it; "
        "all settings with their meaning: docs/recipe.md, or frisket plan --schema.",
        show_default=False,
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL",
        help="The model to start from: a hub id, a folder, or 'bundled' (a small one that is here). Same as "
        "model.path=MODEL.",
        show_default=False,
    ),
]
Data = Annotated[
    list[str] | None,
    typer.Option(
        metavar="DATA",
        help="What to learn from: a file, a folder, a hub id, or 'bundled'; may be repeated. Same as data.0.path=DATA, "
        "data.1.path=DATA …",
        show_default=False,
    ),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON object, for programs; everything else goes to stderr.")
]
RunFolder = Annotated[Path, typer.Argument(metavar="OUT", help="Folder of a finished run.", show_default=False)]


def split_words(words: Sequence[str] | None) -> tuple[str | None, list[str]]:
    """Tell the recipe from the overrides: only an override holds ``=``, and only where no such file or folder is.

    Raises:
        ConfigError: more than one recipe.
    """
    recipes = [word for word in words or () if _is_recipe(word)]
    if len(recipes) > 1:
        raise ConfigError(
            f"{recipes[1]!r}: only one recipe can be given, and {recipes[0]!r} is one already.\n"
            f"A setting has the form key=value; model and data are options: --model {recipes[0]} --data {recipes[1]}"
        )
    return (recipes[0] if recipes else None), [word for word in words or () if not _is_recipe(word)]


def _is_recipe(word: str) -> bool:
    """Folders of a grid hold ``=``, too: ``out/grid/rank=4/seed-0``."""
    return "=" not in word or os.path.exists(word)  # Path.exists raises where a long value is no possible name


def greet(
    screen: Screen, verb: str, words: Sequence[str] | None, model: str | None = None, data: Sequence[str] = ()
) -> None:
    """Print the first line, before anything is loaded."""
    recipe, _ = split_words(words)
    named = [recipe, model, " + ".join(data) if data else None]
    screen.head(" · ".join(["frisket " + __version__, verb, *(name for name in named if name)]))


def load(
    words: Sequence[str] | None, model: str | None, data: Sequence[str] | None, *, needs_data: bool = True
) -> "Recipe":
    """Load the recipe that the command line describes.

    Raises:
        ConfigError: what `load_recipe` refuses, or no data where it is needed.
    """
    from frisket.recipe import load_recipe

    path, overrides = split_words(words)
    recipe = load_recipe(path, overrides, model=model, data=data or ())
    stages = [recipe.stage(index) for index in range(len(recipe.stages))] or [recipe]
    if needs_data and not all(stage.data for stage in stages):
        raise ConfigError("No data is named.\nGive a file, a folder, a hub id or 'bundled': --data chats.jsonl")
    return recipe


def run_folder(path: Path) -> Path:
    """Check that a folder is there.

    Raises:
        ConfigError: it is not.
    """
    if not path.is_dir():
        near = nearest(path.name, [found.name for found in path.parent.glob("*/")])
        hint = f"There is {path.parent / near}" if near else "Train one: frisket train --model M --data D --out OUT"
        raise ConfigError(f"{path}: there is no such run folder.\n{hint}")
    return path
