"""``frisket export``: write what was trained for a server, and verify what was written."""

from pathlib import Path
from typing import Annotated, Any

import typer

from frisket.cli.options import AsJson, RunFolder, greet, run_folder
from frisket.cli.screen import Screen
from frisket.errors import ConfigError, nearest

TARGETS = ("merged", "peft", "gguf", "ollama")
_COMMANDS = {"commands": "run, in this order:", "quantise": "a smaller file:", "create": "give it to Ollama:"}
_NOT_SHOWN = ("serving", "exit_code", *_COMMANDS)


def command(
    out: RunFolder,
    to: Annotated[
        str,
        typer.Option(
            help="What to write: 'merged', a model in Hugging Face's format; 'peft', the adapter alone; 'gguf', "
            "for llama.cpp; 'ollama', a Modelfile."
        ),
    ] = "merged",
    into: Annotated[
        Path | None, typer.Option(help="Folder to write; default: OUT/<to>, or OUT/undone.", show_default=False)
    ] = None,
    undo: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Instead: take this run's sparse change (graft, mft, spiel) out of that merged model, bit for bit.",
            show_default=False,
        ),
    ] = None,
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
      frisket export out/graft --undo out/graft/merged --into models/base
    """
    with Screen.open(as_json) as screen:
        greet(screen, "export", [str(out)])
        if to not in TARGETS:
            near = nearest(to, TARGETS) or TARGETS[0]
            raise ConfigError(f"--to {to}: must be one of {', '.join(TARGETS)}.\nWrite: --to {near}")
        run_folder(out)
        with screen.loading():
            from frisket import run

        if undo is not None and push is not None:
            raise ConfigError("--undo gives the base back, which is not pushed.\nLeave out --push.")
        if undo is None:
            facts = run.export(out, to=to, into=into, push=push, watcher=screen)
        else:
            facts = run.undo(out, undo, into=into, watcher=screen)
    if not as_json:
        _show(screen, facts)
    return facts


def _show(screen: Screen, facts: dict[str, Any]) -> None:
    """Facts in words, then commands as lines that a shell takes: never broken where the screen ends."""
    shown = {name: value for name, value in facts.items() if name not in _NOT_SHOWN}
    screen.show_facts({name: ", ".join(value) if isinstance(value, list) else value for name, value in shown.items()})
    for name, told in _COMMANDS.items():
        if name in facts:
            screen.say(f"  {told}")
            commands = facts[name] if isinstance(facts[name], list) else [facts[name]]
            screen.console.print("\n".join(commands), markup=False, soft_wrap=True)
