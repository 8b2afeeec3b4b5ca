"""Which overrides open a grid of runs."""

from collections.abc import Sequence

from frisket.recipe import knobs

Axes = list[tuple[str, tuple[str, ...]]]
"""Knobs and the values that each takes, as they were written."""


def split_axes(words: Sequence[str]) -> tuple[Axes, list[str]]:
    """Tell the overrides that open a grid from the others.

    A comma opens one where the knob takes neither free text, nor a list, nor a mapping, because there it can mean
    nothing else: ``adapt.rank=8,16`` is two runs; ``train.betas=[0.9, 0.99]`` and ``data.0.path=a,b.jsonl`` are values.

    >>> split_axes(["adapt.rank=8,16", "train.betas=[0.9, 0.99]", "train.epochs=1"])
    ([('adapt.rank', ('8', '16'))], ['train.betas=[0.9, 0.99]', 'train.epochs=1'])
    """
    axes, others = [], []
    for word in words:
        key, _, text = word.partition("=")
        if "," in text and _takes_one_word(key):
            axes.append((key, tuple(part.strip() for part in text.split(","))))
        else:
            others.append(word)
    return axes, others


def _takes_one_word(key: str) -> bool:
    name = ".".join("N" if step.isdecimal() else step for step in key.split("."))
    types = [knob.type for knob in knobs() if knob.name == name]
    return bool(types) and not any(word in kind for kind in types for word in ("text", "a list", "a mapping"))
