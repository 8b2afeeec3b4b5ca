"""What the drawings in docstrings share: two conversations written by hand, and a policy's weights drawn below them."""

import numpy as np
import pytest

from frisket.types import Provenance, Sequence

P = Provenance


def drawn(*tokens: tuple[str, Provenance, int]) -> tuple[list[str], Sequence]:
    """A sequence from (text, provenance, message) triples, and its texts."""
    texts, roles, turns = zip(*tokens, strict=True)
    length = len(tokens)
    return list(texts), Sequence(
        "drawn",
        0,
        np.arange(length, dtype=np.int32),
        np.array(roles, np.uint8),
        np.array(turns, np.int32),
        np.zeros(length, np.uint32),
        np.full(length, np.nan),
    )


CHAT = drawn(
    ("<s>", P.BOS, -1),
    ("[user]", P.TEMPLATE, 0),
    ("Hi", P.USER, 0),
    ("!", P.USER, 0),
    ("<end>", P.TEMPLATE, 0),
    ("[bot]", P.TEMPLATE, 1),
    ("hm", P.REASONING, 1),
    ("Yes", P.ASSISTANT, 1),
    (".", P.ASSISTANT, 1),
    ("<end>", P.END_OF_TURN, 1),
)
TOOLS = drawn(
    ("<s>", P.BOS, -1),
    ("Hi", P.USER, 0),
    ("[bot]", P.TEMPLATE, 1),
    ("Yes", P.ASSISTANT, 1),
    ("<end>", P.END_OF_TURN, 1),
    ("More", P.USER, 2),
    ("[bot]", P.TEMPLATE, 3),
    ("call()", P.TOOL_CALL, 3),
    ("<end>", P.END_OF_TURN, 3),
    ("[tool]", P.TEMPLATE, 4),
    ("42", P.TOOL_RESULT, 4),
    ("[bot]", P.TEMPLATE, 5),
    ("It's 42", P.ASSISTANT, 5),
    ("<end>", P.END_OF_TURN, 5),
)


def draw(texts: list[str], values: np.ndarray) -> None:
    """Print the texts, and below each its value."""
    cells = [f"{value:g}" for value in np.asarray(values, float)]
    widths = [max(len(a), len(b)) for a, b in zip(texts, cells, strict=True)]
    for line in (texts, cells):
        print(" ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


@pytest.fixture(autouse=True)
def _drawings(doctest_namespace: dict) -> None:
    doctest_namespace.update({"CHAT": CHAT, "TOOLS": TOOLS, "draw": draw, "np": np})
