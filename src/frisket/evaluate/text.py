"""Text that measures what a model knew, cut into windows: bits per character compare models of any tokenizer.

The default text is on every machine and never stored: documentation topics and standard-library sources of the running
Python. Which texts were used, and of which version, is part of the result.
"""

import importlib.util
import math
import platform
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from frisket.errors import DataError
from frisket.evaluate.compare import Measure
from frisket.types import Provenance, Sequence

WINDOW_TOKENS = 512
# The bundled base never saw those named first; the others only fill up where the first are too short.
PROSE = (
    ("assert", "context-managers", "exceptions", "lambda", "naming", "slicings", "try", "while"),
    ("class", "comparisons", "customization", "function", "import", "objects", "string-methods", "typesseq"),
)
CODE = (
    ("argparse.py", "csv.py", "heapq.py", "json/decoder.py", "queue.py", "shelve.py", "statistics.py", "textwrap.py"),
    ("configparser.py", "difflib.py", "fractions.py", "mailbox.py", "tarfile.py", "uuid.py"),
)


@dataclass(frozen=True)
class Text:
    """One text by name."""

    name: str
    content: str


@dataclass(frozen=True)
class Windows:
    """A text, or several, cut for one measurement.

    Attributes:
        name: ``prose``, ``code`` or ``text``; part of the measure's name.
        sequences: windows of tokens; where the tokenizer has a BOS token, each begins with it.
        characters: characters of each window that are predicted.
        texts: the texts that windows were taken from.
        version: the Python they are of; empty for a file of the user's.
    """

    name: str
    sequences: tuple[Sequence, ...]
    characters: Float64[np.ndarray, "window"]
    texts: tuple[str, ...]
    version: str = ""

    @property
    def measure_name(self) -> str:
        """The name in table and summary."""
        return f"bits_per_character_{self.name}"

    def weighted(self) -> list[tuple[Sequence, Float64[np.ndarray, "token"]]]:
        """Sequences with weight 1 on every token, so that their summed loss is that of the text."""
        return [(sequence, np.ones(len(sequence))) for sequence in self.sequences]

    def bits(self, losses: Measure, chosen: np.ndarray) -> Measure:
        """Turn summed losses of the chosen windows, in nats, into bits per character."""
        return Measure(losses.total / math.log(2), self.characters[chosen])


def standard_windows(tokenizer: Any, text_tokens: int, window_tokens: int = WINDOW_TOKENS) -> list[Windows]:
    """Windows of prose and of code from the running Python, about ``text_tokens`` tokens of each.

    What this Python lacks is left out; the texts used are named in the result.
    """
    version = f"{platform.python_implementation()} {platform.python_version()}"
    made = []
    for name, groups, read in (("prose", PROSE, _topics), ("code", CODE, _sources)):
        texts = [[Text(n, found[n]) for n in group if n in found] for group in groups if (found := read(group))]
        if texts and text_tokens:
            made.append(windows(name, texts, tokenizer, text_tokens, window_tokens, version))
    return made


def file_windows(path: str, tokenizer: Any, text_tokens: int | None, window_tokens: int = WINDOW_TOKENS) -> Windows:
    """Windows of the user's own UTF-8 text file.

    Raises:
        DataError: the file cannot be read, is not UTF-8, or holds no text.
    """
    fix = "Name a UTF-8 text file: evaluate.forgetting.0.path=FILE"
    try:
        content = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start:,} is not UTF-8 text.\n{fix}") from None
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}.\n{fix}") from None
    if not content.strip():
        raise DataError(f"{path} holds no text to measure on.\n{fix}")
    return windows("text", [[Text(path, content)]], tokenizer, text_tokens, window_tokens)


def windows(
    name: str, groups: list[list[Text]], tokenizer: Any, text_tokens: int | None, window_tokens: int, version: str = ""
) -> Windows:
    """Cut texts into windows: in turn from each text of the first group, then from those of the next.

    Args:
        name: of the measure.
        groups: texts, the preferred ones in the first group.
        tokenizer: a fast tokenizer of transformers; offsets give the characters of each window.
        text_tokens: tokens to take in all; None takes everything.
        window_tokens: longest window, BOS included.
        version: of what the texts belong to.
    """
    left = math.inf if text_tokens is None else text_tokens
    sequences: list[Sequence] = []
    characters: list[int] = []
    used: dict[str, None] = {}
    for group in groups:
        for text, ids, count in _in_turn(group, tokenizer, window_tokens):
            if left <= 0:
                break
            sequences.append(plain_sequence(f"{name}:{len(sequences)}", ids))
            characters.append(count)
            used[text] = None
            left -= len(ids)
    return Windows(name, tuple(sequences), np.array(characters, dtype=np.float64), tuple(used), version)


def _in_turn(group: list[Text], tokenizer: Any, window_tokens: int) -> Iterator[tuple[str, list[int], int]]:
    """The first window of every text, then the second of every text …"""
    streams = [(text.name, _cut(text.content, tokenizer, window_tokens)) for text in group]
    while streams:
        alive = []
        for name, stream in streams:
            window = next(stream, None)
            if window is not None:
                yield name, *window
                alive.append((name, stream))
        streams = alive


def _cut(content: str, tokenizer: Any, window_tokens: int) -> Iterator[tuple[list[int], int]]:
    """Token ids and predicted characters of each window.

    A window's first token is predicted only after a BOS; without one its characters are not counted either.
    """
    # `verbose=False`: the whole text is longer than the model's context, and is never given to it whole.
    coded = tokenizer(content, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids, offsets = coded["input_ids"], coded["offset_mapping"]
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    step = window_tokens - len(bos)
    for start in range(0, len(ids), step):
        stop = min(start + step, len(ids))
        begin = offsets[start][0] if bos else offsets[start][1]
        characters = offsets[stop - 1][1] - begin
        if characters > 0:
            yield [*bos, *ids[start:stop]], characters


def plain_sequence(sample_id: str, ids: list[int]) -> Sequence:
    """Tokens of no conversation."""
    size = len(ids)
    return Sequence(
        sample_id=sample_id,
        source=-1,
        input_ids=np.array(ids, dtype=np.int32),
        roles=np.full(size, Provenance.TEXT, dtype=np.uint8),
        turns=np.zeros(size, dtype=np.int32),
        marks=np.zeros(size, dtype=np.uint32),
        data_weights=np.full(size, np.nan),
    )


def _topics(names: tuple[str, ...]) -> dict[str, str]:
    if importlib.util.find_spec("pydoc_data") is None:  # some distributions leave it out
        return {}
    from pydoc_data.topics import topics

    return {name: topics[name] for name in names if name in topics}


def _sources(names: tuple[str, ...]) -> dict[str, str]:
    library = Path(sysconfig.get_paths()["stdlib"])
    return {name: (library / name).read_text(encoding="utf-8") for name in names if (library / name).is_file()}
