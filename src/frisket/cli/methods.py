"""``frisket methods``: what can move, and what it would cost on your model."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from frisket.cli.options import AsJson, Model, Words, greet, load
from frisket.cli.screen import Screen

if TYPE_CHECKING:
    from frisket.run import Listed

_HEADS = (
    ("", "", "share", "", "", "", "mask-", "", "rate of"),
    ("method", "moving", "in %", "optimizer", "merge", "forest", "free", "4-bit", "1k steps"),
)
_LINE = "{:<15} {:>13} {:>6} {:>9} {:>5} {:>6} {:>5} {:>5} {:>8}"


def command(words: Words = None, model: Model = None, as_json: AsJson = False) -> dict:
    """List every method: what moves and how much of your model, whether it merges, what it works with, its rate.

    A recipe's method has the recipe's settings (marked *), every other its defaults.

    Examples:
      frisket methods
      frisket methods --model Qwen/Qwen3-0.6B adapt.rank=64
      frisket methods out/chats --json
    """
    with Screen.open(as_json) as screen:
        recipe = load(words, model, None, needs_data=False)
        greet(screen, "methods", words, recipe.model.path)
        from frisket import run

        listed = run.list_methods(recipe.model, recipe.adapt if words else None)
        if not as_json:
            show(listed, screen.console)
            screen.say("forest, mask-free: samples share rows (attend.arrangement) · 4-bit: also 8-bit (model.load)")
            screen.say("share: of the base · optimizer: bytes of its state, without masters")
    return {"model": recipe.model.path, "methods": [each.as_dict() for each in listed]}


def show(listed: Sequence["Listed"], console: Console) -> None:
    """Print one line a method, and below it what moves, the paper, and why there is no count."""
    for heads in _HEADS:
        console.print(Text(_LINE.format(*heads), style="dim"), soft_wrap=True)
    for each in listed:
        moving = "no count" if each.parameters is None else f"{each.parameters:,}"
        share = "–" if each.share is None else _percent(each.share)
        size = "–" if each.optimizer_bytes is None else _sized(each.optimizer_bytes)
        works = ("yes" if holds else "no" for holds in (each.merges, each.packs, each.packs, each.quantised))
        name = f"{each.name}{' *' if each.is_own else ''}"
        line = _LINE.format(name, moving, share, size, *works, f"{each.rate:g}")
        console.print(Text(line, style="bold"), soft_wrap=True)
        told = "; ".join([each.moves, each.source, *([each.why_not] if each.why_not else [])])
        console.print(Padding(Text(told, style="dim"), (0, 0, 0, 2)))


def _percent(share: float) -> str:
    """Two digits that count, however small the share.

    >>> _percent(1.0), _percent(0.162), _percent(0.0003)
    ('100', '16', '0.03')
    """
    return f"{100 * share:.2g}" if share < 0.995 else f"{100 * share:.0f}"


def _sized(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size / 1e3:,.1f} kB"
