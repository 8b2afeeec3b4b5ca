"""``frisket view``: one offline page that shows what every token does."""

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
    as_json: AsJson = False,
) -> dict:
    """Write an HTML page of sample rows: weights, segments, and the rule behind each weight.

    Examples:
      frisket view --model bundled --data chats.jsonl --out view.html
    """
    with Screen.open(as_json) as screen:
        greet(screen, "view", words, model, data or ())
        recipe = load(words, model, data)
        from frisket import run

        page = out or Path("out") / f"{recipe.name or 'run'}-view.html"
        facts = run.view(recipe, out=page, watcher=screen)
    screen.say(f"wrote {page}")
    return {**facts, "page": str(page)}
