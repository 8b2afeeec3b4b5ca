"""``frisket migrate``: the configuration of another tool becomes a recipe."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from frisket.cli.options import AsJson, greet
from frisket.cli.screen import Screen
from frisket.errors import ConfigError, counted

if TYPE_CHECKING:
    from rich.console import Group

    from frisket.migrate.translate import Migration

_COLOURS = {"mapped": "green", "not supported": "yellow", "unknown": "bold red"}
INCOMPLETE = 3
"""Exit code where keys of the file are unknown: the recipe is written, and they are not in it."""


def command(
    file: Annotated[Path, typer.Argument(help="YAML, JSON or shell file of TRL, Axolotl or LLaMA-Factory.")],
    tool: Annotated[
        str | None,
        typer.Option("--from", help="trl, axolotl or llama-factory; default: found by the keys.", show_default=False),
    ] = None,
    out: Annotated[Path, typer.Option(help="Recipe to write; a file that is there is not overwritten.")] = Path(
        "recipe.yaml"
    ),
    as_json: AsJson = False,
) -> dict[str, Any]:
    """Turn the configuration of another tool into a recipe, and account for each of its keys.

    Examples:
      frisket migrate axolotl.yml
      frisket migrate train.yaml --from llama-factory --out recipes/chats.yaml
    """
    with Screen.open(as_json) as screen:
        greet(screen, "migrate", [str(file)])
        if out.exists():
            raise ConfigError(f"{out} is there already, and nothing is overwritten.\nWrite elsewhere: --out new.yaml")
        from frisket.migrate.translate import translate
        from frisket.migrate.write import recipe_text

        migration = translate(file, tool)
        text = recipe_text(migration)
        out.parent.mkdir(parents=True, exist_ok=True)
        _write_checked(out, text)
        facts = {
            "file": str(file),
            "from": migration.tool.name,
            "recipe": str(out),
            "keys": {key: {"outcome": a.outcome, "text": a.text} for key, a in migration.answers.items()},
            "assumed": {key: {"outcome": a.outcome, "text": a.text} for key, a in migration.assumed.items()},
            "counts": migration.counts,
            "unknown": migration.unknown,
            "checks": list(migration.checks),
            "next": _next(out, migration.flags),
            "exit_code": INCOMPLETE if migration.unknown else 0,
        }
        screen.console.print(_screen(migration, facts))
    return facts


def _write_checked(out: Path, text: str) -> None:
    """Write the recipe beside its place, load it, and only then put it there."""
    from frisket.recipe import load_recipe

    trial = out.with_name(f".{out.name}.trial")
    trial.write_text(text, encoding="utf-8")
    try:
        load_recipe(trial)
        trial.rename(out)
    except ConfigError as error:
        raise ConfigError(f"The recipe would not load, so it was not written.\n{error}") from error
    finally:
        trial.unlink(missing_ok=True)


def _screen(migration: "Migration", facts: Mapping[str, Any]) -> "Group":
    """One line a key, in the order of the file; then the counts, what to look at, and the next command."""
    from rich.console import Group
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    from frisket.migrate.table import NOTHING

    table = Table.grid(padding=(0, 2))
    for _ in range(3):
        table.add_column(overflow="fold")
    empty = [key for key, answer in migration.answers.items() if answer == NOTHING]
    for key, answer in migration.answers.items():
        if answer == NOTHING:
            continue
        colour = _COLOURS.get(answer.outcome, "dim")
        table.add_row(Text(key), Text(answer.outcome, style=colour), Text(answer.text))
    if empty:
        table.add_row(Text(counted(len(empty), "empty key"), style="dim"), Text("default"), Text(", ".join(empty)))
    if migration.assumed:
        table.add_row(Text(f"what {migration.tool.title} does where the file is silent:", style="dim"))
    for key, answer in migration.assumed.items():
        table.add_row(Text(key, style="dim"), Text(answer.outcome, style="dim"), Text(answer.text))
    meanings = {"default": " (frisket does so by itself)"}
    counts = ", ".join(
        f"{count} {outcome}{meanings.get(outcome, '')}" for outcome, count in migration.counts.items() if count
    )
    keys = counted(len(migration.answers), "key")
    lines: list[Any] = [Text(f"{migration.tool.title}, {keys}: {counts}", style="bold")]
    if migration.lost:
        lines.append(Text(f"  not in the recipe: {', '.join(migration.lost)}", style="yellow"))
    lines += [Text(f"  look at: {check}", style="yellow") for check in migration.checks]
    lines.append(Text(f"Written: {facts['recipe']}\n  frisket plan {facts['recipe']}\n  {facts['next']}"))
    if migration.unknown:
        ask = "Mend a slip in the file and migrate again; the others are left out (all knobs: frisket plan --schema)."
        lines.append(Text(f"Exit code {INCOMPLETE}: {counted(len(migration.unknown), 'key')} unknown. {ask}"))
    return Group(Padding.indent(table, 2), *lines)


def _next(out: Path, flags: Mapping[str, str]) -> str:
    words = [f"{flag} {value}".strip() for flag, value in flags.items()]
    return " ".join([f"frisket train {out}", *words])
