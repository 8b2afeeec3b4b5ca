"""``frisket export``: write what was trained for a server, and verify what was written."""

from pathlib import Path
from typing import Annotated

import typer

from frisket.cli.options import AsJson, RunFolder, greet, run_folder
from frisket.cli.screen import Screen
from frisket.errors import ConfigError, nearest

TARGETS = ("merged", "peft", "gguf", "ollama")


def command(
    out: RunFolder,
    to: Annotated[
        str,
        typer.Option(
            help="What to write: 'merged', a model in Hugging Face's format; 'peft', the adapter alone; 'gguf', "
            "for llama.cpp; 'ollama', a Modelfile."
        ),
    ] = "merged",
    into: Annotated[Path | None, typer.Option(help="Folder to write; default: OUT/<to>.", show_default=False)] = None,
    push: Annotated[
        str | None,
        typer.Option(
            metavar="USER/NAME",
            help="Send the written folder to this repository of the Hugging Face Hub (private if it is new).",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> dict:
    """Export what was trained: merge, convert, verify, and push only when asked.

    Examples:
      frisket export out/chats --to merged --into models/chats
      frisket export out/chats --to ollama
      frisket export out/chats --to peft --push me/chats-lora
    """
    with Screen.open(as_json) as screen:
        greet(screen, "export", [str(out)])
        if to not in TARGETS:
            near = nearest(to, TARGETS) or TARGETS[0]
            raise ConfigError(f"--to {to}: must be one of {', '.join(TARGETS)}.\nWrite: --to {near}")
        run_folder(out)
        from frisket import run

        facts = run.export(out, to=to, into=into, push=push, watcher=screen)
    screen.show_facts(facts)
    return facts
