"""``frisket evaluate``: measure a finished run again."""

from pathlib import Path
from typing import Annotated

import typer

from frisket.cli.options import AsJson, greet, run_folder, split_words
from frisket.cli.screen import Screen
from frisket.errors import ConfigError


def command(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="OUT [KEY=VALUE ...]",
            help="Folder of a finished run, and settings that differ from the run's own.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> dict:
    """Measure learning and forgetting of a finished run again: on its own sets, or on others.

    Examples:
      frisket evaluate out/chats
      frisket evaluate out/chats evaluate.learning.0.limit=100
    """
    with Screen.open(as_json) as screen:
        greet(screen, "evaluate", words)
        folder, overrides = split_words(words)
        if folder is None:
            raise ConfigError("No run folder is given.\nWrite: frisket evaluate OUT")
        run_folder(Path(folder))
        with screen.loading():
            from frisket import run

        result = run.evaluate_run(Path(folder), overrides=overrides, watcher=screen)
    if not as_json:
        screen.show_measures(result)
    return result
