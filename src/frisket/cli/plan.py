"""``frisket plan``: what training would do, and what can be said in a recipe."""

import json
from pathlib import Path
from typing import Annotated

import typer

from frisket.cli.options import AsJson, Data, Model, Words, greet, load
from frisket.cli.screen import Screen


def command(
    words: Words = None,
    model: Model = None,
    data: Data = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of a recipe, and stop.")] = False,
    names: Annotated[
        bool, typer.Option("--names", help="List the model's modules, and what adapt.where matches of them.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="PAGE",
            help="Where the plan as a page (HTML) is written; default: out/NAME-plan.html.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> dict | None:
    """Say what training would do: tokens, rows, steps, what teaches, what moves; and draw it on a page.

    Examples:
      frisket plan --model bundled --data chats.jsonl
      frisket plan recipes/gsm8k.yaml --names
      frisket plan --schema
    """
    if schema:
        return _schema(as_json)
    with Screen.open(as_json) as screen:
        greet(screen, "plan", words, model, data or ())
        recipe = load(words, model, data, needs_data=not names)
        with screen.loading():
            from frisket import run

        if names:
            found = run.module_names(recipe, watcher=screen)
            for name, parameters in found.items():
                screen.say(f"{parameters:>15,}  {name}")
            report = run.match_report(recipe, watcher=screen)
            for line in report.lines():
                screen.say(line)
            return {"modules": found, "match": report.as_dict()}
        page = out or Path("out") / f"{recipe.name or 'run'}-plan.html"
        plan = run.make_plan(recipe, watcher=screen, page=page)
        for line in plan.lines():
            screen.say(line)
    return plan.as_dict()


def _schema(as_json: bool) -> dict | None:
    from frisket.recipe import schema

    if as_json:
        return schema()
    print(json.dumps(schema(), indent=2, ensure_ascii=False))
    return None
