"""A small base model and an instruction set for it, so that the first run needs no network."""

from importlib.resources import files
from pathlib import Path

SKILLS = ("copy", "reverse", "sort", "arithmetic", "lookup", "facts")
UNSEEN_SKILL = "double"


def base_path() -> Path:
    """Return the folder of the base model, its tokenizer and its card."""
    return _path("base")


def train_path() -> Path:
    """Return the training file of the instruction set."""
    return _path("instructions/train.jsonl")


def eval_path() -> Path:
    """Return the evaluation file of the instruction set."""
    return _path("instructions/eval.jsonl")


def unseen_path() -> Path:
    """Return the evaluation file of the skill that the base model has never seen."""
    return _path("instructions/eval-unseen.jsonl")


def _path(name: str) -> Path:
    return Path(str(files(__name__).joinpath(name)))
