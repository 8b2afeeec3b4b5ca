"""A run's chat template (Jinja) in the template language of Ollama (Go), derived by rendering and then checked.

The template is asked to render short conversations whose contents are marks; the text between the marks says what
stands before and after each role's content. What is derived must then render longer conversations exactly as the
template does, or it is refused. Tools, reasoning and images are not carried.
"""

from collections.abc import Sequence as Seq
from dataclasses import dataclass

from frisket.data.chat import Template
from frisket.data.problem import BadSample
from frisket.errors import UnsupportedError
from frisket.report.render import quoted

Turns = Seq[tuple[str, str]]
_MARKS = "".join(chr(0xE100 + i) for i in range(8))
_CHECKED: tuple[Turns, ...] = (
    (("user", "one"),),
    (("user", 'a {{ b }} ""\' c\n\nd'), ("assistant", "two"), ("user", "3")),
    (("user", "1"), ("assistant", "2"), ("user", "3"), ("assistant", "4"), ("user", "5")),
    (("system", "s t"), ("user", "one")),
    (("system", "s"), ("user", "1"), ("assistant", "2\n3"), ("user", "4"), ("assistant", "5"), ("user", "6")),
)
_SHOWN = 120  # characters of a rendering in a refusal
_FIX = "Serve the GGUF file with llama.cpp, which runs the template itself: --to gguf"


@dataclass(frozen=True)
class GoTemplate:
    """The text around each message.

    Attributes:
        system: before and after the system message, which is the first; None where the template refuses one.
        first_user: before the first message, where that is the user's.
        user: before and after a user's message that follows an answer.
        assistant: before and after an answer.
        ask: after the last message: what makes the model answer.
    """

    system: tuple[str, str] | None
    first_user: str
    user: tuple[str, str]
    assistant: tuple[str, str]
    ask: str

    def render(self, turns: Turns) -> str:
        """What ``text`` renders, computed without Go."""
        parts = []
        for index, (role, content) in enumerate(turns):
            before, after = self._around(role, index, turns[0][0] == "system")
            parts += [before, content, after]
        return "".join(parts) + self.ask

    def _around(self, role: str, index: int, has_system: bool) -> tuple[str, str]:
        if role == "system":
            return self.system or ("", "")
        if role == "assistant":
            return self.assistant
        if index == 0 or (has_system and index == 1):
            return ("" if index and self.system else self.first_user), self.user[1]
        return self.user

    def text(self) -> str:
        """The template for Ollama's ``TEMPLATE``; it reads ``.Messages`` and, for whether one is there, ``.System``."""
        first = f"{{{{ if eq $i 0 }}}}{_literal(self.first_user)}"
        second = f"{{{{ else if and $.System (eq $i 1) }}}}{_literal('' if self.system else self.first_user)}"
        later = f"{{{{ else }}}}{_literal(self.user[0])}{{{{ end }}}}"
        around = {
            **({"system": self.system} if self.system else {}),
            "user": ("", self.user[1]),
            "assistant": self.assistant,
        }
        branches = []
        for role, (before, after) in around.items():
            chosen = first + second + later if role == "user" else _literal(before)
            branches.append(f'if eq $m.Role "{role}" }}}}{chosen}{{{{ $m.Content }}}}{_literal(after)}')
        turns = "{{ else ".join(branches)
        return f"{{{{ range $i, $m := .Messages }}}}{{{{ {turns}{{{{ end }}}}{{{{ end }}}}{_literal(self.ask)}"


def go_template(template: Template, begin: str) -> GoTemplate:
    """Derive Ollama's template from the run's.

    Args:
        template: the run's chat template.
        begin: the begin token where the tokenizer writes it itself (then the server does, too), else empty; it is left
            out of the result.

    Raises:
        UnsupportedError: the template cannot be written so, or what was derived does not render the same.
    """
    try:
        derived = _derive(template, begin)
        checked = [turns for turns in _CHECKED if derived.system is not None or turns[0][0] != "system"]
        rendered = [(_rendered(template, turns, True, begin), derived.render(turns)) for turns in checked]
    except BadSample as error:
        raise UnsupportedError(f"{error}, in order, so it cannot be written in Ollama's language.\n{_FIX}") from error
    for wanted, got in rendered:
        if wanted != got:
            raise UnsupportedError(
                f"template '{template.name}' cannot be written in Ollama's language: {quoted(got, _SHOWN)} would "
                f"stand for {quoted(wanted, _SHOWN)}.\n{_FIX}"
            )
    return derived


def trims(template: Template) -> bool:
    """Whether the template takes white space off the ends of contents, which Ollama's does not."""
    return " x " not in _rendered(template, (("user", " x "),), True, "")


def _derive(template: Template, begin: str) -> GoTemplate:
    if "strftime_now" in template.text:
        raise UnsupportedError(
            f"template '{template.name}' writes today's date, which Ollama's language cannot.\n{_FIX}"
        )
    _, user_end = _pieces(template, ("user",), False, begin)
    first_user, ask = _pieces(template, ("user",), True, begin)
    # An answer of earlier turns, as all are that a server renders: some templates write the last one otherwise.
    _, to_answer, to_user, _ = _pieces(template, ("user", "assistant", "user"), False, begin)
    answer_end = _pieces(template, ("user", "assistant"), False, begin)[-1]
    user_after = user_end if to_answer.startswith(user_end) and ask.startswith(user_end) else ""
    answer_after = answer_end if to_user.startswith(answer_end) else ""
    try:
        before_system, after_system, _ = _pieces(template, ("system", "user"), True, begin)
        system = before_system, after_system
    except BadSample:
        system = None
    return GoTemplate(
        system,
        first_user,
        (to_user.removeprefix(answer_after), user_after),
        (to_answer.removeprefix(user_after), answer_after),
        ask.removeprefix(user_after),
    )


def _pieces(template: Template, roles: Seq[str], ask: bool, begin: str) -> list[str]:
    """The texts before, between and after the contents of a conversation of these roles.

    Raises:
        BadSample: the template refuses the conversation, or leaves out, repeats or reorders a content.
    """
    text = _rendered(template, [(role, _MARKS[i]) for i, role in enumerate(roles)], ask, begin)
    pieces = []
    for mark in _MARKS[: len(roles)]:
        if text.count(mark) != 1:
            raise BadSample(f"template '{template.name}' does not render each message once")
        before, _, text = text.partition(mark)
        pieces.append(before)
    return [*pieces, text]


def _rendered(template: Template, turns: Turns, ask: bool, begin: str) -> str:
    messages = [{"role": role, "content": content} for role, content in turns]
    return template.render(messages, [], add_generation_prompt=ask).removeprefix(begin)


def _literal(text: str) -> str:
    """Text that Go's template language leaves as it is; a brace at the end would join those of the next action."""
    return text.replace("{", '{{ "{" }}') if "{{" in text or text.endswith("{") else text
