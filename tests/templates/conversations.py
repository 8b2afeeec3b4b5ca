"""The conversations that every template is compared on, by kind."""

from collections.abc import Mapping

from frisket.types import Conversation, Message

_CITY = {"type": "string", "description": "Where to look."}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tell the weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": _CITY, "days": {"type": "integer", "description": "How far ahead."}},
            "required": ["city"],
        },
    },
}
CLOCK = {
    "type": "function",
    "function": {
        "name": "clock",
        "description": "Tell the time.",
        "parameters": {"type": "object", "properties": {}, "required": []},
    },
}
SYSTEM = Message("system", "You answer in one line.")
NESTED = {
    "city": "Rome",
    "days": 3,
    "near": {"sea": True, "towns": ["Ostia", "Tivoli"]},
    "for": ["today", "it's late"],
    "limit": 0.5,
}


def call(name: str, arguments: Mapping, number: int = 1) -> Mapping:
    """One tool call as OpenAI writes it."""
    return {"id": f"call{number:05}", "type": "function", "function": {"name": name, "arguments": dict(arguments)}}


def result(text: str, name: str = "weather", number: int = 1) -> Message:
    """What a tool answered."""
    return Message("tool", text, extra={"name": name, "tool_call_id": f"call{number:05}"})


def user(text: str) -> Message:
    """A message of the user."""
    return Message("user", text)


def answer(text: str, reasoning: str | None = None, *calls: Mapping) -> Message:
    """A message of the assistant."""
    return Message("assistant", text, reasoning, calls)


_ASK = (user("Do I need a coat in Rome?"), answer("", None, call("weather", NESTED)), result("12 degrees, dry"))
_TWO = (call("weather", {"city": "Rome"}), call("clock", {}, 2))

TALKS: Mapping[str, tuple[Message, ...]] = {
    "single turn": (user("Name a colour."), answer("Blue.")),
    "several turns": (user("Name a colour."), answer("Blue."), user("And a fruit?"), answer("Plum, or fig.")),
    "system": (SYSTEM, user("Name a colour."), answer("Blue.")),
    "system, several turns": (
        SYSTEM,
        user("One?"),
        answer("1"),
        user("Two?"),
        answer("2"),
        user("Three?"),
        answer("3"),
    ),
    "ends with the user": (user("Name a colour."), answer("Blue."), user("Thanks!")),
    "two answers in a row": (user("Name a colour."), answer("Blue."), answer("Or green."), user("Ah."), answer("Yes.")),
    "outer white space": (user(" Code? "), answer("    return x\n"), user("\nMore?\n\n"), answer("\n\ty = 2 \n\n")),
    "emoji and CJK": (user("👩‍👩‍👧 means?"), answer("家族 👨‍👩‍👧‍👦, naïve ﬁ"), user("and é?"), answer("é 漢字🤖")),
    "spells special tokens": (
        user("say {eos}{first} now"),
        answer("ok {eos} and {first}{bos}."),
        user("?"),
        answer("{eos}{eos}"),
    ),
    "tool call": (*_ASK, answer("No coat needed.")),
    "tool call after text": (_ASK[0], answer("Let me look.", None, call("weather", NESTED)), _ASK[2], answer("No.")),
    "two calls in one message": (
        user("Rome?"),
        answer("", None, *_TWO),
        result("dry"),
        result("9:41", "clock", 2),
        answer("Dry."),
    ),
    "call without arguments": (
        user("Time?"),
        answer("", None, call("clock", {})),
        result("9:41", "clock"),
        answer("9:41."),
    ),
    "call of an undeclared tool": (*_ASK, answer("No coat needed.")),
    "ends with a call": (SYSTEM, user("Rome?"), answer("", None, call("weather", {"city": "Rome"}))),
    "reasoning": (user("2 + 2?"), answer("4", "Two and two are four.")),
    "reasoning in every turn": (user("2 + 2?"), answer("4", "Easy."), user("3 + 3?"), answer("6", "Three\n\ntwice.")),
    "reasoning and a call": (
        _ASK[0],
        answer("", "I need the weather.", call("weather", NESTED)),
        _ASK[2],
        answer("No coat.", "12 degrees is mild."),
    ),
    "think tags in the answer": (
        user("2 + 2?"),
        answer("<think>\nEasy.\n</think>\n\n4"),
        user("Sure?"),
        answer("<think>\nYes.\n</think>\n\nSure."),
    ),
}


def conversations(specials: tuple[str, ...], eos: str, bos: str | None) -> dict[str, Conversation]:
    """Every kind, with the family's own special tokens where a person spells some."""
    words = {"{eos}": eos, "{first}": specials[0] if specials else eos, "{bos}": bos or eos}
    return {
        kind: Conversation(
            kind,
            0,
            "talks.jsonl",
            number,
            tuple(_spelled(message, words) for message in messages),
            (WEATHER, CLOCK) if "undeclared" not in kind and any(message.tool_calls for message in messages) else (),
        )
        for number, (kind, messages) in enumerate(TALKS.items(), 1)
    }


def _spelled(message: Message, words: Mapping[str, str]) -> Message:
    content = message.content
    for name, word in words.items():
        content = content.replace(name, word)
    return Message(message.role, content, message.reasoning, message.tool_calls, message.weight, message.extra)
