"""A conversation with a trained model: questions, commands, and the base's answers beside where they are wanted."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from frisket.cli.answers import Answer, show_answers
from frisket.cli.screen import Screen
from frisket.errors import FrisketError, counted, nearest

if TYPE_CHECKING:
    from frisket.generate.settings import GenerateSettings
    from frisket.run import Chat

QUOTE = '"""'
COMMANDS = {
    "/reset": "begin anew; the system message stays",
    "/system": "with a text behind it: the system message from now on; alone: none",
    "/undo": "take back the last question and its answer",
    "/again": "answer the last question once more, with the next seed; needs --temperature above 0",
    "/help": "this list",
    "/quit": "end; so does Ctrl-D",
}
ALIASES = {"/new": "/reset", "/exit": "/quit"}


@dataclass(frozen=True)
class Turn:
    """A question and what each side answered.

    Attributes:
        is_whole: no answer was stopped.
    """

    question: str
    answers: Mapping[str, str]
    is_whole: bool


class Talk:
    """The state of a conversation.

    Args:
        model: a trained model and its base.
        screen: where it is shown and read.
        settings: length and choice of tokens.
        beside_base: ask the base the same, with its own history.
        system: system message, or None.
    """

    def __init__(
        self, model: "Chat", screen: Screen, settings: "GenerateSettings", beside_base: bool, system: str | None
    ) -> None:
        self._model, self._screen, self._settings = model, screen, settings
        self._sides = ("tuned", "base") if beside_base else ("tuned",)
        self._system = system
        self._turns: list[Turn] = []
        self._attempt = 0

    def run(self) -> None:
        """Read and answer until the input ends or the user does."""
        self._screen.say("           /help lists commands · Ctrl-C stops an answer · Ctrl-D ends")
        is_asked_to_end = False
        while True:
            try:
                text = self._read()
            except EOFError:
                return
            except KeyboardInterrupt:
                if is_asked_to_end:
                    return
                is_asked_to_end = True
                self._screen.say("\n(Ctrl-C once more, Ctrl-D or /quit ends)")
                continue
            is_asked_to_end = False
            if text.startswith("/"):
                if not self._obey(text):
                    return
            elif text.strip():
                self._ask(text.strip(), 0)

    def _read(self) -> str:
        """One message: a line, or all lines between two lines of three quotation marks."""
        text = self._screen.ask().rstrip()
        if text != QUOTE:
            return text
        lines = []
        while (line := self._screen.ask(go_on=True)).rstrip() != QUOTE:
            lines.append(line)
        return " " + "\n".join(lines)  # a quoted message is never a command

    def _obey(self, text: str) -> bool:
        """Obey a command; False ends the conversation."""
        word, _, rest = text.partition(" ")
        command = ALIASES.get(word, word)
        if command == "/quit":
            return False
        if command == "/help":
            lines = [f"  {name:<8} {told}" for name, told in COMMANDS.items()]
            self._screen.say("\n".join([*lines, f"  {QUOTE:<8} begins and ends a message of several lines"]))
        elif command == "/reset":
            self._turns = []
            self._screen.say("  a new conversation" + (", under the same system message" if self._system else ""))
        elif command == "/system":
            self._system = rest.strip() or None
            self._screen.say(f"  system message: {self._system or 'none'}")
        elif command in ("/undo", "/again"):
            self._back(once_more=command == "/again")
        else:
            near = nearest(word, [*COMMANDS, *ALIASES])
            hint = f"Did you mean {near}?" if near else "/help lists them."
            self._screen.warn(f"{word} is no command. {hint} A message may begin with / after a space.")
        return True

    def _back(self, once_more: bool) -> None:
        if not self._turns:
            self._screen.say("  nothing has been asked yet")
            return
        if once_more and self._settings.temperature == 0 and self._turns[-1].is_whole:
            self._screen.say(
                "  not asked again: at temperature 0 the answer is always the same\n"
                "  Begin a chat that varies: "
                f"frisket generate {shlex.quote(str(self._model.folder))} --chat --temperature 0.8"
            )
            return
        last = self._turns.pop()
        if not once_more:
            stay = "stays" if len(self._turns) == 1 else "stay"
            self._screen.say(f"  taken back; {counted(len(self._turns), 'question')} before it {stay}")
            return
        if not self._ask(last.question, self._attempt + 1):
            self._turns.append(last)

    def _ask(self, question: str, attempt: int) -> bool:
        """Ask all sides and keep what they say; False where the question could not be asked."""
        settings = self._settings.model_copy(update={"seed": self._settings.seed + attempt})
        answers = [Answer(side, self._begin(side, question, settings), settings.max_new_tokens) for side in self._sides]
        try:
            show_answers(self._screen.console, answers)
        except FrisketError as error:
            self._screen.console.print()
            self._screen.warn(str(error))
            return False
        self._attempt = attempt
        is_whole = all(answer.is_whole for answer in answers)
        self._turns.append(Turn(question, {answer.who: answer.text for answer in answers}, is_whole))
        return True

    def _begin(self, side: str, question: str, settings: "GenerateSettings") -> Any:
        messages = [*self._history(side), {"role": "user", "content": question}]
        return lambda: self._model.stream(messages, settings, base=side == "base")

    def _history(self, side: str) -> list[dict[str, Any]]:
        told = [{"role": "system", "content": self._system}] if self._system else []
        for turn in self._turns:
            told.append({"role": "user", "content": turn.question})
            told.append({"role": "assistant", "content": turn.answers[side]})
        return told
