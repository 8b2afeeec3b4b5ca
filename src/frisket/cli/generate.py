"""``frisket generate``: ask a trained model, once or in a conversation, beside its base if wanted."""

import json
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from frisket.cli.options import AsJson, RunFolder, greet, run_folder
from frisket.cli.screen import Screen
from frisket.cli.talk import Talk
from frisket.cli.words import shorten
from frisket.errors import ConfigError, DataError, gather

if TYPE_CHECKING:
    from frisket.run.opening import Answered
    from frisket.run.system_message import SystemMessage

Messages = list[dict[str, Any]]
_OPTION = re.compile(r"(?:\w+\.)?(max_new_tokens|temperature|top_p|seed|system)=(.*)")
_SHOWN = 60  # characters of a system message


def command(
    out: RunFolder,
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="PROMPT", help="A prompt, in quotation marks.", show_default=False),
    ] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="A prompt; may be repeated.", show_default=False)] = None,
    file: Annotated[
        Path | None,
        typer.Option(help="Prompts: JSONL with 'prompt' or 'messages', else one prompt a line.", show_default=False),
    ] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Talk; /help lists commands, Ctrl-D ends.")] = False,
    beside_base: Annotated[
        bool,
        typer.Option("--beside-base", help="Show what the base answers, too; in a chat below 100 columns underneath."),
    ] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 256,
    temperature: Annotated[float, typer.Option(min=0, help="0: the most likely token each time.")] = 0.0,
    top_p: Annotated[
        float, typer.Option(min=0.001, max=1, help="Sample only from the likeliest tokens of this probability.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of sampling.")] = 0,
    system: Annotated[
        str | None,
        typer.Option(
            help="System message of conversations that have none; default: that of all training samples, where they "
            "share one; '' for none.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> dict | None:
    """Answer prompts with a trained model.

    Examples:
      frisket generate out/chats "What is a frisket?" --beside-base
      frisket generate out/chats --chat --beside-base --system "Answer in one sentence."
    """
    if chat and (as_json or words or prompt or file):
        raise ConfigError("--chat reads from the keyboard; it takes no --json, prompt or --file.\nLeave --chat out.")
    with Screen.open(as_json) as screen:
        greet(screen, "generate", [str(out)])
        run_folder(out)
        conversations = [] if chat else _conversations([*_worded(words or (), out), *(prompt or ())], file)
        with screen.loading():
            from frisket import run
            from frisket.generate.settings import GenerateSettings
        settings = GenerateSettings(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed)
        model = run.open_run(out, watcher=screen)
        if system is None and model.system and (chat or not all(map(_has_system, conversations))):
            system = _of_training(model.system, screen)
        if chat:
            Talk(model, screen, settings, beside_base, system).run()
            return None
        conversations = [_under(system, messages) for messages in conversations]
        answers = model.answer(conversations, settings)
        bases = model.answer(conversations, settings, base=True) if beside_base else None
    if not as_json:
        _show(screen, conversations, answers, bases, max_new_tokens)
    return {"answers": _told(conversations, answers, bases)}


def _show(
    screen: Screen,
    conversations: list[Messages],
    answers: "Sequence[Answered]",
    bases: "Sequence[Answered] | None",
    longest: int,
) -> None:
    screen.show_answers([messages[-1]["content"] for messages in conversations], answers, bases)
    if any(answer.is_cut for answer in (*answers, *(bases or ()))):
        screen.say(f"… (cut): --max-new-tokens {longest} was reached; longer: --max-new-tokens {2 * longest}")


def _told(
    conversations: list[Messages], answers: "Sequence[Answered]", bases: "Sequence[Answered] | None"
) -> list[dict[str, Any]]:
    """For a program; without ``base`` unless it was asked for."""
    told: list[dict[str, Any]] = [
        {"messages": messages, "answer": answer.text, "cut": answer.is_cut}
        for messages, answer in zip(conversations, answers, strict=True)
    ]
    for entry, base in zip(told, bases or (), strict=False):
        entry |= {"base": base.text, "base_cut": base.is_cut}
    return told


def _conversations(prompts: list[str], file: Path | None) -> list[Messages]:
    found = [_user(prompt) for prompt in prompts]
    if file:
        found += _read(file)
    elif not prompts and not sys.stdin.isatty():
        text = sys.stdin.read().strip()
        found += [_user(text)] if text else []
    if not found:
        raise ConfigError('No prompt is given.\nWrite --prompt "…", --file FILE or --chat.')
    return found


def _worded(words: Sequence[str], out: Path) -> list[str]:
    """The prompt that stands behind the folder.

    Raises:
        ConfigError: it is several words, or an option written as an override.
    """
    if len(words) > 1:
        whole = shlex.join(["frisket", "generate", str(out), "--prompt", " ".join(words)])
        raise ConfigError(f"{words[1]!r}: a prompt is one word for the shell.\nPut it in quotation marks: {whole}")
    if words and (option := _OPTION.fullmatch(words[0])):
        name, value = option[1].replace("_", "-"), shlex.quote(option[2])
        raise ConfigError(
            f"{words[0]!r}: generate has options where other verbs have key=value.\nWrite --{name} {value}"
        )
    return list(words)


def _user(text: str) -> Messages:
    return [{"role": "user", "content": text}]


def _read(file: Path) -> list[Messages]:
    if not file.is_file():
        raise ConfigError(f"{file}: there is no such file of prompts.\nGive --file a text or JSONL file.")
    with file.open(encoding="utf-8") as text:  # str.splitlines would end lines inside of JSON texts, too: at U+2028
        lines = [(number, line.rstrip("\n")) for number, line in enumerate(text, 1) if line.strip()]
    if file.suffix not in (".jsonl", ".json"):
        return [_user(line) for _, line in lines]
    found, problems = [], []
    for number, line in lines:
        try:
            found.append(_messages(json.loads(line)))
        except ValueError as error:
            problems.append(f"{file}:{number}: {error}")
    if problems:
        raise DataError(
            gather(problems, f"{file}: {len(problems)} lines hold no prompt", 'Write {"prompt": "…"} a line')
        )
    return found


def _messages(record: object) -> Messages:
    if isinstance(record, dict) and isinstance(record.get("prompt"), str):
        return _user(record["prompt"])
    if isinstance(record, dict) and isinstance(record.get("messages"), list) and record["messages"]:
        messages = record["messages"]
        return messages[:-1] if messages[-1].get("role") == "assistant" and len(messages) > 1 else messages
    raise ValueError("neither a text 'prompt' nor a list 'messages'")


def _under(system: str | None, messages: Messages) -> Messages:
    own = not system or _has_system(messages)
    return messages if own else [{"role": "system", "content": system}, *messages]


def _has_system(messages: Messages) -> bool:
    return messages[0].get("role") == "system"


def _of_training(found: "SystemMessage", screen: Screen) -> str | None:
    """What every training sample began with, said; where only most did, said alone."""
    text = shorten(" ".join(found.text.split()), _SHOWN)
    if found.is_everywhere:
        screen.say(f"system     {text} · as in all training samples; --system '' for none")
        return found.text
    screen.say(f"system     none; {found.samples:,} of {found.of:,} training samples have one: {text} · --system TEXT")
    return None
