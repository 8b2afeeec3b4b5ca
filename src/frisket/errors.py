"""What can go wrong, said so that it can be mended: at most four lines each, gathered, the last line the fix."""

import difflib
from collections.abc import Iterable, Sequence


class FrisketError(Exception):
    """Base of every error that is the user's to mend; the command line prints it without a traceback."""


class ConfigError(FrisketError):
    """The recipe, an override or the command line asks for something that cannot be."""


class DataError(FrisketError):
    """The data cannot be used as it is; names file and line."""


class UnsupportedError(FrisketError):
    """A combination that frisket refuses because it could not prove it right."""


class CheckError(FrisketError):
    """A run's own check (seam, conformance, isolation, reload) found that something is not what it should be."""


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name most like ``name``, or None when nothing is close.

    >>> nearest("lerning_rate", ["learning_rate", "epochs"])
    'learning_rate'
    """
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return found[0] if found else None


def counted(count: int, noun: str) -> str:
    """A number with its noun.

    >>> [counted(count, "sample") for count in (0, 1, 2000)]
    ['0 samples', '1 sample', '2,000 samples']
    """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def gather(problems: Sequence[str], heading: str, fix: str | None = None, shown: int = 20) -> str:
    """Join many problems into one message: a heading, at most ``shown`` of them, and the fix as the last line."""
    lines = [heading, *(f"  - {p}" for p in problems[:shown])]
    if len(problems) > shown:
        lines.append(f"  … and {len(problems) - shown:,} more")
    if fix:
        lines.append(fix)
    return "\n".join(lines)
