"""`also_train`: modules that move as a whole beside an adapter of PEFT, saved with it so that plain PEFT loads them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from frisket.adapt.where import Match, embedding_name, head_name, is_tied_head
from frisket.adapt.where import resolve as find
from frisket.errors import ConfigError, UnsupportedError

_TABLE = "embed_tokens"  # PEFT 0.21 knows a tied table by this name


def put_beside(model: nn.Module, config: Any, match: Match, words: Sequence[str]) -> Match:
    """Add modules to a configuration of PEFT, as its ``modules_to_save``.

    A head that is tied to the embedding moves with it, which PEFT knows for LoRA only (``ensure_weight_tying``).

    Returns:
        The match, with a note of what moves beside.

    Raises:
        ConfigError: the adapter sits on one of these modules.
        UnsupportedError: a tied head, alone or under another adapter than LoRA.
    """
    if not words:
        return match
    head = head_name(model)
    is_tied = is_tied_head(model, [head] if head else [])
    if is_tied and "head" in words:
        raise UnsupportedError(
            "adapt.also_train: the head's weight is the embedding's, so they move together or not at all.\n"
            f"Use adapt.also_train='[{', '.join(dict.fromkeys(['embeddings', *(w for w in words if w != 'head')]))}]'."
        )
    if is_tied and "embeddings" in words:
        if "ensure_weight_tying" not in vars(config) or not embedding_name(model).endswith(_TABLE):
            raise UnsupportedError(
                "adapt.also_train: the head is tied to the embeddings, and PEFT keeps them tied only for LoRA, where "
                f"the table is called {_TABLE}.\n"
                "Use adapt.method=full adapt.where=embeddings, or leave embeddings out of adapt.also_train."
            )
        config.ensure_weight_tying = True
        config.modules_to_tie = config.target_modules_to_tie = None  # what PEFT's own constructor adds with it
    names = list(dict.fromkeys(name for word in words for name in find(model, word).modules))
    claimed = {*match.modules, *match.linears(model)} & set(names)
    if claimed:
        raise ConfigError(
            f"adapt.also_train and adapt.where both claim {min(claimed)}.\nLeave it out of one of the two."
        )
    config.modules_to_save = names
    entries = sum(parameter.numel() for name in names for parameter in model.get_submodule(name).parameters())
    return replace(
        match, notes=(*match.notes, f"also {', '.join(words)}: {entries:,} entries move, at the adapter's own rate")
    )
