"""The entry point: find the verb, import it, print its result or its error, return the exit code.

Nothing heavy is imported here: ``frisket --help`` answers before torch, pydantic or typer are loaded.
"""

import json
import math
import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from importlib import import_module
from typing import TYPE_CHECKING, Any

from frisket import __version__
from frisket.errors import ConfigError, FrisketError, nearest

if TYPE_CHECKING:
    from frisket.cli.help import Verb

VERBS = {
    "train": "fine-tune a model on conversations",
    "plan": "say what training would do, before paying for it (--schema, --names)",
    "view": "write an offline page that shows what every token does",
    "evaluate": "measure learning and forgetting of a finished run again",
    "compare": "put finished runs, or a grid's, beside each other",
    "generate": "answer prompts with a trained model (--chat, --beside-base)",
    "methods": "list what can move, and what it costs on your model",
    "migrate": "turn a configuration of TRL, Axolotl or LLaMA-Factory into a recipe",
    "export": "merge an adapter into its model and verify the result",
}
FAILED, USER_ERROR, INTERRUPTED = 1, 2, 130


def main() -> None:
    """Run the command line of this process."""
    # Where the hub cannot be reached its library tells of each of five retries; our one error says it all.
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    try:
        code = run_words(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # the reader went away: `frisket plan --schema | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = FAILED
    sys.exit(code)


def run_words(words: Sequence[str]) -> int:
    """Run one command line.

    Args:
        words: what stands after ``frisket``.

    Returns:
        The exit code: 0, 2 for what the user can mend, 130 after Ctrl-C, 1 for a failure of frisket itself.
    """
    if not words or words[0] in ("--help", "-h", "help"):
        print(help_text() if words else greeting())
        return 0
    if words[0] in ("--version", "-V"):
        print(f"frisket {__version__}")
        return 0
    as_json = "--json" in words
    try:
        with redirect_stdout(sys.stderr if as_json else sys.stdout):
            result = _invoke(words[0], list(words[1:]))
    except FrisketError as error:
        return _fail(type(error).__name__, str(error), USER_ERROR, as_json)
    except KeyboardInterrupt as stop:
        return _fail("Interrupted", str(stop) or "Stopped.", INTERRUPTED, as_json)
    except Exception as error:
        if not as_json:
            raise
        import traceback

        traceback.print_exc()
        return _fail(type(error).__name__, str(error), FAILED, as_json)
    if as_json and result is not None:
        print(json.dumps(_finite(result), ensure_ascii=False))
    return result.get("exit_code", 0) if result else 0


def greeting() -> str:
    """What ``frisket`` alone prints: the three commands that matter."""
    return (
        f"frisket {__version__}: fine-tune language models under four explicit masks\n\n"
        "  frisket plan  --model MODEL --data chats.jsonl             what training would do, before paying for it\n"
        "  frisket train --model MODEL --data chats.jsonl --out OUT   learn, and say what was learned and forgotten\n"
        "  frisket generate OUT --chat                                talk to it\n\n"
        "No model or data at hand: --model bundled --data bundled trains one that ships with frisket, in minutes.\n"
        "All verbs: frisket --help"
    )


def help_text() -> str:
    """What ``frisket --help`` prints."""
    verbs = "\n".join(f"  {verb:<9} {about}" for verb, about in VERBS.items())
    return (
        f"frisket {__version__}: fine-tune language models under four explicit masks\n\n"
        "Usage: frisket VERB [RECIPE] [--model M] [--data D] [--out OUT] [key=value ...] [--json]\n\n"
        f"Verbs:\n{verbs}\n\n"
        "Try:\n"
        "  frisket train --model bundled --data bundled --out out/first\n"
        "  frisket VERB --help      what a verb takes; -h is the same\n"
        "  frisket --version        the version that is installed"
    )


def _invoke(verb: str, words: list[str]) -> dict | None:
    if verb not in VERBS:
        near = nearest(verb, VERBS)
        hint = f"Did you mean: frisket {near}" if near else f"Verbs: {', '.join(VERBS)}"
        raise ConfigError(f"{verb!r} is no verb of frisket.\n{hint}")
    import typer

    command = _command(verb)
    try:
        with command.make_context(f"frisket {verb}", words) as context:
            return command.invoke(context)
    except typer.Exit:
        return None
    except typer.TyperException as error:
        raise ConfigError(f"{error.format_message()}\nSee: frisket {verb} --help") from error


def _command(verb: str) -> "Verb":
    import typer

    from frisket.cli.help import Verb

    app = typer.Typer(add_completion=False, context_settings={"help_option_names": ["--help", "-h"]})
    app.command(cls=Verb)(import_module(f"frisket.cli.{verb}").command)
    command = typer.main.get_command(app)
    assert isinstance(command, Verb)
    return command


def _fail(kind: str, message: str, code: int, as_json: bool) -> int:
    if as_json:
        print(json.dumps({"error": {"type": kind, "message": message}}, ensure_ascii=False))
    else:
        from rich.console import Console

        style = "yellow" if code == INTERRUPTED else "red"
        Console(stderr=True).print(message, style=style, markup=False, highlight=False, soft_wrap=True)
    return code


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
