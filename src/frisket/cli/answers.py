"""Answers on the screen while they are made: one below the other, or two in columns where the terminal is wide."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from frisket.generate.reply import Reply

WIDE = 100
_RULE = 40  # a heading's length, where answers stand one below the other
_BELOW = 4  # lines of a terminal that a growing answer leaves free
_WHY = {"end": "end of turn", "context": "the model's context is full", "stopped": "stopped"}


@dataclass
class Answer:
    """What one side says.

    Attributes:
        who: ``tuned`` or ``base``.
        begin: starts the answer.
        most: ``max_new_tokens``, for saying that it was reached.
        is_whole: nobody stopped it.
    """

    who: str
    begin: Callable[[], "Reply"]
    most: int
    text: str = ""
    status: str = ""
    is_whole: bool = False

    def make(self, show: Callable[[str], None]) -> None:
        """Make the answer, handing on each piece; Ctrl-C ends it where it is."""
        reply = self.begin()
        pieces = iter(reply)
        try:
            for piece in pieces:
                self.text += piece
                show(piece)
        except KeyboardInterrupt:
            pass
        finally:
            pieces.close()
        self.text = reply.text
        self.status = _status(reply, self.most)
        self.is_whole = reply.ended != "stopped"


def show_answers(console: Console, answers: Sequence[Answer]) -> None:
    """Make the answers in their order and show them as they grow."""
    if len(answers) > 1 and console.is_terminal and console.width >= WIDE:
        _in_columns(console, answers)
        return
    for answer in answers:
        if len(answers) > 1:
            console.print(Text(f"\n{answer.who} {'─' * (_RULE - len(answer.who))}", style=_style(answer.who)))
        else:
            console.print(Text(f"{answer.who:<7}", style=_style(answer.who)), end="")
        answer.make(lambda piece: _write(console, piece))
        console.print()
        console.print(Text(f"       {answer.status}", style="dim"))


def _in_columns(console: Console, answers: Sequence[Answer]) -> None:
    def growing() -> RenderableType:
        return _columns(console, answers, max(console.height - _BELOW, 3))

    with Live(get_renderable=growing, console=console, refresh_per_second=12, transient=True):
        for answer in answers:
            answer.make(lambda piece: None)
    console.print(_columns(console, answers, None))


def _columns(console: Console, answers: Sequence[Answer], lines: int | None) -> RenderableType:
    """The answers side by side; of long ones only the last lines while they grow."""
    width = (console.width - 3) // len(answers)
    table = Table.grid(padding=(0, 3, 0, 0))
    for _ in answers:
        table.add_column(width=width - 2, overflow="fold")
    table.add_row(*(Text(answer.who, style=_style(answer.who)) for answer in answers))
    table.add_row(*(_tail(console, _shown(answer.text), width - 2, lines) for answer in answers))
    return Group(table, Text(" · ".join(f"{a.who}: {a.status}" for a in answers if a.status), style="dim"))


def _tail(console: Console, text: str, width: int, lines: int | None) -> Text:
    wrapped = Text(text).wrap(console, width)
    return Text("\n").join(wrapped if lines is None else wrapped[-lines:])


def _write(console: Console, piece: str) -> None:
    console.out(_shown(piece), end="", highlight=False)
    console.file.flush()


def _shown(text: str) -> str:
    """A model may write escape sequences; a terminal must not obey them."""
    return text.replace("\x1b", "␛")


def _status(reply: "Reply", most: int) -> str:
    why = f"max_new_tokens ({most:,}) reached" if reply.ended == "length" else _WHY[reply.ended or "stopped"]
    speed = f" · {reply.tokens / reply.seconds:,.0f} tokens/s" if reply.seconds else ""
    return f"{reply.tokens:,} token{'' if reply.tokens == 1 else 's'}{speed} · {why}"


def _style(who: str) -> str:
    return "bold cyan" if who == "tuned" else "bold"
