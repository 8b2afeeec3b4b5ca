"""``frisket view``: what every token does, as one offline page or on the terminal."""

from pathlib import Path
from typing import Annotated

import typer

from frisket.cli.options import AsJson, Data, Model, Words, greet, load
from frisket.cli.screen import Screen


def command(
    words: Words = None,
    model: Model = None,
    data: Data = None,
    out: Annotated[
        Path | None, typer.Option(help="HTML file to write; default: out/NAME-view.html.", show_default=False)
    ] = None,
    terminal: Annotated[bool, typer.Option("--terminal", help="Show rows here instead of writing a page.")] = False,
    samples: Annotated[
        int | None, typer.Option(min=1, help="Most samples shown; default: 60, on the terminal 6.", show_default=False)
    ] = None,
    sample: Annotated[
        str | None,
        typer.Option("--id", help="Show the row of this sample (its id, or file:line).", show_default=False),
    ] = None,
    compare: Annotated[
        str | None,
        typer.Option(help="Policies to compare with, such as assistant,all (default: these).", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> dict:
    """Show sample rows: weights, segments, what sees what, and the rules behind each weight.

    Examples:
      frisket view --model bundled --data chats.jsonl --out view.html
      frisket view recipe.yaml --id chats.jsonl:17
      frisket view recipe.yaml --terminal --samples 3
    """
    with Screen.open(as_json) as screen:
        greet(screen, "view", words, model, data or ())
        recipe = load(words, model, data)
        with screen.loading():
            from frisket import run

        page = None if terminal and out is None else out or Path("out") / f"{recipe.name or 'run'}-view.html"
        facts = run.view(
            recipe,
            out=page,
            watcher=screen,
            console=screen.console if terminal else None,
            compare=None if compare is None else [name.strip() for name in compare.split(",") if name.strip()],
            sample=sample,
            samples=samples,
        )
    if page is None:
        return facts
    screen.say(f"wrote {page}")
    return {**facts, "page": str(page)}
