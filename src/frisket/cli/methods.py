"""``frisket methods``: what can move, and what it would cost on your model."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from frisket.cli.options import AsJson, Model, greet, load
from frisket.cli.screen import Screen

if TYPE_CHECKING:
    from frisket.run import Listed

_HEADS = ("method", "moving", "optimizer", "merges", "packed", "4-bit", "rate")
_LINE = "{:<17} {:>13} {:>12} {:>6} {:>6} {:>6} {:>9}"


def command(model: Model = None, as_json: AsJson = False) -> dict:
    """List every method: what moves and how much of your model, whether it merges, what it works with, its rate.

    Examples:
      frisket methods
      frisket methods --model Qwen/Qwen3-0.6B --json
    """
    named = model or "bundled"
    with Screen.open(as_json) as screen:
        greet(screen, "methods", None, named)
        recipe = load(None, named, None, needs_data=False)
        from frisket import run

        listed = run.list_methods(recipe.model)
        if not as_json:
            show(listed, screen.console)
            screen.say(
                "packed: several samples in a row, also as a forest or mask-free · 4-bit: also 8-bit (model.load)"
            )
            screen.say("optimizer: bytes of its state, without masters · rate: of a run of 1,000 steps")
    return {"model": named, "methods": [each.as_dict() for each in listed]}


def show(listed: Sequence["Listed"], console: Console) -> None:
    """Print one line a method, and below it what moves and the paper."""
    console.print(Text(_LINE.format(*_HEADS), style="dim"))
    for each in listed:
        moving = "–" if each.parameters is None else f"{each.parameters:,}"
        size = "–" if each.optimizer_bytes is None else _sized(each.optimizer_bytes)
        works = ("yes" if holds else "no" for holds in (each.merges, each.packs, each.quantised))
        line = _LINE.format(each.name, moving, size, *works, f"{each.rate:g}")
        console.print(Text(line, style="bold"), soft_wrap=True)
        about = [] if each.name.startswith("peft:") else [each.moves, each.source]
        told = "; ".join([*about, *([each.why_not] if each.why_not else [])])
        if told:
            console.print(Padding(Text(told, style="dim"), (0, 0, 0, 2)))


def _sized(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size / 1e3:,.1f} kB"
