"""``frisket export``: fold an adapter into its model and verify what was written."""

from pathlib import Path
from typing import Annotated

import typer

from frisket.cli.options import AsJson, RunFolder, greet, run_folder
from frisket.cli.screen import Screen
from frisket.errors import ConfigError, nearest

TARGETS = ("merged",)


def command(
    out: RunFolder,
    to: Annotated[str, typer.Option(help="What to write: 'merged', a model in Hugging Face's format.")] = "merged",
    into: Annotated[Path | None, typer.Option(help="Folder to write; default: OUT/merged.", show_default=False)] = None,
    as_json: AsJson = False,
) -> dict:
    """Export a trained model.

    Examples:
      frisket export out/chats --to merged --into models/chats
    """
    with Screen.open(as_json) as screen:
        greet(screen, "export", [str(out)])
        if to not in TARGETS:
            near = nearest(to, TARGETS) or TARGETS[0]
            raise ConfigError(f"--to {to}: must be one of {', '.join(TARGETS)}.\nWrite: --to {near}")
        run_folder(out)
        from frisket import run

        facts = run.export(out, to=to, into=into, watcher=screen)
    screen.show_facts(facts)
    return facts
