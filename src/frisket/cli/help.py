"""The help of a verb as plain text: what to write, an example a line, and no types of Python."""

import inspect
from typing import Any

from typer.core import TyperArgument, TyperCommand, TyperOption

_WORDS = {"int": "N", "float": "X"}


class Verb(TyperCommand):
    """A verb of the command line."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write usage, what the verb does, examples, and what its words and options mean."""
        arguments = [each for each in self.get_params(ctx) if isinstance(each, TyperArgument)]
        options = [each for each in self.get_params(ctx) if isinstance(each, TyperOption)]
        about, _, examples = inspect.cleandoc(self.help or "").partition("Examples:\n")
        words = " ".join([ctx.command_path, *map(_named, arguments), "[OPTIONS]"])
        formatter.write(f"Usage: {words}\n\n{about.strip()}\n")
        if examples:
            with formatter.section("Examples"):
                formatter.write("".join(f"  {line.strip()}\n" for line in examples.splitlines()))
        if arguments:
            with formatter.section("Words"):
                formatter.write_dl([(_named(each), each.help or "") for each in arguments])
        with formatter.section("Options"):
            formatter.write_dl([(_written(each), _meaning(each)) for each in options])


def _named(argument: TyperArgument) -> str:
    """The word as it is written; what may be left out in brackets."""
    if argument.metavar is not None and (argument.required or "[" in argument.metavar):
        return argument.metavar
    name = argument.metavar or argument.display_name_raw.upper()
    return name if argument.required else f"[{name} ...]" if argument.nargs != 1 else f"[{name}]"


def _written(option: TyperOption) -> str:
    """The option as it is written: ``--out PATH``; a flag stands alone."""
    given = option.type_descriptor
    name = max(option.opts, key=len)  # the names of help come in any order
    if option.is_flag:
        return name
    if option.metavar is not None:
        return f"{name} {option.metavar}"
    if given.is_path:
        return f"{name} PATH"
    return f"{name} {_WORDS.get(given.ranged_type_name, 'N') if given.is_ranged else 'TEXT'}"


def _meaning(option: TyperOption) -> str:
    """Its help, with the default where there is one to show."""
    default = "" if option.is_flag or option.default in (None, "") or not option.show_default else option.default
    return f"{option.help or ''}{f' [default: {default}]' if default != '' else ''}"
