"""What is wrong with one sample, kept until everything has been read, so that all of it is said at once."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One sample that cannot be used.

    Attributes:
        place: ``file:line``.
        message: what is wrong there, and what is required.
    """

    place: str
    message: str

    def __str__(self) -> str:
        return f"{self.place}: {self.message}"


class BadSample(ValueError):  # noqa: N818 - it never reaches a user: it becomes a Problem
    """Raised while one sample is read or rendered; whoever knows its place turns it into a ``Problem``."""
