"""The tokenizer of a run: added tokens, padding, chat template, and how others load an adapter that has new rows."""

import copy
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from frisket.data.chat import Template, load_template
from frisket.data.dataset import Dataset
from frisket.errors import ConfigError
from frisket.hf import tokens
from frisket.hf.load import ending_ids, load_config, load_prepared, load_tokenizer
from frisket.recipe import Recipe
from frisket.run.folder import read_json
from frisket.watch import Watcher


@dataclass(frozen=True)
class Added:
    """The tokens that a recipe adds.

    Attributes:
        ids: of the new tokens, in the order of the recipe.
        grows_to: rows that the base's embedding must get for them; None where it has room.
    """

    ids: tuple[int, ...] = ()
    grows_to: int | None = None


def tokenizer_of(recipe: Recipe, given: Any, config: Any, watcher: Watcher) -> tuple[Any, Template, Added]:
    """The tokenizer with everything that is saved with it: added tokens, a padding token, the chat template.

    Args:
        given: a tokenizer instead of the recipe's; it stays as it is, so that the next run can have it too.
        config: the base's configuration, before anything grows.
    """
    if given is None:
        ready = load_prepared(recipe.model)
    else:
        rows = config.get_text_config().vocab_size
        ready = tokens.prepare(copy.deepcopy(given), recipe.model, ending_ids(recipe.model), rows)
    for line in ready.lines:
        watcher.say(f"tokens     {line}")
    chosen = load_template(recipe.model.template, ready.tokenizer)
    tokens.carry_template(ready.tokenizer, chosen.text, chosen.variables)
    watcher.say(f"template   {chosen.name}")
    needed = max(ready.added, default=-1) + 1
    grows_to = needed if needed and needed > _rows_of_files(recipe, config) else None
    return ready.tokenizer, chosen, Added(ready.added, grows_to)


def _rows_of_files(recipe: Recipe, config: Any) -> int:
    """Rows of the base's embedding as others load it; a model that was handed over may have grown in an earlier run."""
    rows = config.get_text_config().vocab_size
    try:
        stored = load_config(recipe.model.model_copy(update={"path": config.name_or_path}))
    except ConfigError:  # a model that was never in a file
        return rows
    return min(rows, stored.get_text_config().vocab_size)


def stored_tokenizer(recipe: Recipe, folder: Path) -> tuple[Any, Template]:
    """The tokenizer and the template that lie beside trained weights; the recipe's where an older run stored none."""
    settings = recipe.model.model_copy(update={"tokenizer": str(folder), "add_tokens": ()})
    tokenizer = load_tokenizer(settings, is_stored=True)
    return tokenizer, load_template(None if tokenizer.chat_template else recipe.model.template, tokenizer)


def say_unused(dataset: Dataset, train: Seq[int] | np.ndarray, tokenizer: Any, ids: Seq[int], watcher: Watcher) -> None:
    """Warn of new tokens that no sample holds: their rows get no gradient but that of not being predicted."""
    missing = set(ids)
    for sequence in dataset.walk(train) if missing else ():
        missing -= missing & set(sequence.input_ids.tolist())
        if not missing:
            break
    for token in tokenizer.convert_ids_to_tokens(sorted(missing)):
        watcher.warn(f"{token} is in no sample: the chat template must write it; a message that spells it stays text")


def write_how_to_load(folder: Path, name: str, added: Added) -> None:
    """A README beside an adapter whose base needs new rows: the lines that load it without frisket.

    Args:
        folder: where the adapter was written.
        name: what the folder will be called.
    """
    base = read_json(folder / "adapter_config.json")["base_model_name_or_path"]
    lines = tokens.loading_lines(Path(name), base, added.grows_to)
    (folder / "README.md").write_text(
        f"---\nlibrary_name: peft\nbase_model: {base}\n---\n\n"
        f"This adapter brings {len(added.ids)} tokens that its base does not have; their rows are in the adapter.\n"
        "In this order, from the folder above:\n\n"
        f"```python\n{lines}```\n",
        encoding="utf-8",
    )
