"""Which arrangement and backend a run takes, and why: what the recipe asks, the model allows and the method allows."""

from dataclasses import replace
from typing import Any, cast

from frisket.attend.pack import Arrangement
from frisket.data.dataset import Dataset
from frisket.data.loader import Order
from frisket.errors import ConfigError, UnsupportedError
from frisket.hf.load import device_of, layer_counts
from frisket.recipe import Recipe
from frisket.run.sharing import WORTH, few_steps, sharing_of
from frisket.supervise.loss import LossRule, chunk_of
from frisket.train.step import Laying


def laying_of(recipe: Recipe, config: Any, dataset: Dataset, order: Order, loss: LossRule) -> tuple[Laying, str]:
    """Arrangement, backend and loss, and why this arrangement.

    Raises:
        UnsupportedError: rows were asked for that this model or this method cannot have.
    """
    attend = recipe.attend
    if attend.backend in ("varlen", "flex"):
        raise UnsupportedError(
            f"attend.backend = '{attend.backend}' calls kernels of CUDA, and this version was written without a "
            "device to run them on.\n"
            "Use attend.backend=auto: grouped, which runs on any device."
        )
    arrangement, why = _arrangement(recipe, config, dataset, order)
    backend = "grouped" if attend.backend == "auto" else attend.backend
    chunk = recipe.supervise.chunk_tokens
    if chunk == "auto":
        chunk = chunk_of(config.get_text_config().vocab_size, device_of(recipe.model.device))
    laying = Laying(arrangement, attend.row_tokens, attend.micro_rows, backend, chunk, loss)
    return replace(laying, virtual_tokens=recipe.adapt.virtual_tokens), why


def _arrangement(recipe: Recipe, config: Any, dataset: Dataset, order: Order) -> tuple[Arrangement, str]:
    asked, method = recipe.attend.arrangement, recipe.adapt
    recurrent = layer_counts(config).recurrent
    if recurrent:
        if asked not in ("auto", "padded"):
            raise UnsupportedError(
                f"attend.arrangement = '{asked}': the model has {recurrent} recurrent layers, which carry state from "
                "sample to sample of a row.\n"
                "Use attend.arrangement=auto: one sample a row, samples of one length together."
            )
        return "alone", f"the model has {recurrent} recurrent layers, which carry state from token to token"
    if not method.packs and asked != "padded":
        if asked in ("forest", "mask-free"):
            raise UnsupportedError(
                f"attend.arrangement = '{asked}': {method.label} is not shown to be exact where rows hold several "
                "samples.\n"
                "Use attend.arrangement=auto: one sample a row."
            )
        return "alone", f"{method.label} is not shown to be exact in packed rows"
    if asked == "auto":
        saved = sharing_of(dataset, few_steps(order), recipe.attend.row_tokens).saved
        if saved >= WORTH:
            return "forest", f"samples of a step share {100 * saved:.0f} % of their tokens: computed once"
        return "isolated", f"a forest would save {100 * saved:.1f} %, less than {100 * WORTH:.0f} %"
    return cast(Arrangement, asked), "as the recipe says"


def room_for_samples(context: int | None, virtual: int) -> int | None:
    """Longest sample that the model takes behind so many virtual tokens.

    Raises:
        ConfigError: there is no room.
    """
    if context is None or virtual < context:
        return None if context is None else context - virtual
    raise ConfigError(
        f"adapt.tokens = {virtual:,}: the model takes {context:,} tokens in all, so no sample has room.\n"
        "Use adapt.tokens=20."
    )
