"""Tokens that a recipe adds, the padding token, and what a tokenizer takes along into the folder of a run."""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from frisket.data.chat import BUILT_IN, load_template
from frisket.errors import ConfigError
from frisket.hf.settings import ModelSettings

# Padding tokens that publishers or trainers have chosen, then any special token that its name says nobody uses.
_PADDING = ("<|finetune_right_pad_id|>", "<pad>", "[PAD]", "<|pad|>", "<|padding|>", "<|vision_pad|>")
_UNUSED = re.compile("reserved|unused|placeholder|dummy|extra_id|control_", re.IGNORECASE)
_ROWS_AT_ONCE = 1 << 14


@dataclass(frozen=True)
class Prepared:
    """A tokenizer that is ready for a run.

    Attributes:
        added: ids of the tokens that were new, in the order of the recipe.
        lines: what was changed, for the user.
    """

    tokenizer: Any
    added: tuple[int, ...] = ()
    lines: tuple[str, ...] = ()


def prepare(tokenizer: Any, settings: ModelSettings, ends: Collection[int] = (), rows: int | None = None) -> Prepared:
    """Add the recipe's tokens to a tokenizer and settle what it pads with; the tokenizer itself is changed.

    Args:
        ends: tokens at which the model stops, beside the tokenizer's end token.
        rows: of the model's embedding, before it grows; None where nobody knows.

    Raises:
        ConfigError: a token is empty, or given twice; a built-in template does not fit the tokenizer.
    """
    added, lines = _add(tokenizer, settings.add_tokens)
    usable = None if rows is None else max([rows, *(place + 1 for place in added)])
    padding = _settle_padding(tokenizer, _template_text(settings.template, tokenizer), ends, usable)
    return Prepared(tokenizer, added, (*lines, *([padding] if padding else [])))


def _add(tokenizer: Any, wanted: Sequence[str]) -> tuple[tuple[int, ...], list[str]]:
    for place, token in enumerate(wanted):
        if not token.strip():
            raise ConfigError(f"model.add_tokens.{place} = {token!r} is empty: text cannot be searched for it.")
        if token in wanted[:place]:
            raise ConfigError(f"model.add_tokens.{place} = {token!r} is given twice.\nLeave one of them out.")
    known = [token for token in wanted if tokenizer.backend_tokenizer.token_to_id(token) is not None]
    new = [token for token in wanted if token not in known]
    tokenizer.add_tokens(new, special_tokens=True)
    ids = tuple(tokenizer.convert_tokens_to_ids(new))
    lines = [f"{token}: added as token {place:,}" for token, place in zip(new, ids, strict=True)]
    lines += [f"{token}: known to the tokenizer already, so not added; its rows stay as they are" for token in known]
    return ids, lines


def _template_text(choice: str | None, tokenizer: Any) -> str:
    """Source of the chosen template; empty for the tokenizer's own, or where the file is not there any more."""
    if choice in BUILT_IN:
        return load_template(choice, tokenizer).text
    file = Path(choice).expanduser() if choice else None
    return file.read_text(encoding="utf-8") if file is not None and file.is_file() else ""


def _settle_padding(tokenizer: Any, template: str, ends: Collection[int], rows: int | None) -> str | None:
    """Choose a padding token that ends nothing, where the tokenizer's own is missing, ends a text or a turn.

    Training needs none (padding is known by its segment), but other tools leave every padding token out of the loss:
    with one that is the end token as well, what they train on this run's result never learns to stop. And they look
    its row up: a tokenizer of Qwen2's class brings a padding token of its own, which a model may have no row for.
    """
    was = tokenizer.pad_token
    written = json.dumps(template or tokenizer.chat_template or "", ensure_ascii=False)
    stops = {tokenizer.eos_token, *tokenizer.convert_ids_to_tokens(sorted(ends))}
    has_row = was is None or _fits(tokenizer.pad_token_id, rows)
    if was is not None and was not in stops and was not in written and has_row:
        return None
    tokenizer.pad_token = chosen = _unused(tokenizer, template, stops, rows)
    ending = "ends the text" if was in stops else "is written by the chat template"
    why = "the tokenizer has none" if was is None else f"{was} {ending} as well" if has_row else f"{was} has no row"
    return f"padding: {why}; {f'now {chosen}' if chosen else 'left without one, since no token is free for it'}"


def _unused(tokenizer: Any, template: str, stops: Collection[str], rows: int | None) -> str | None:
    """The first special token that nothing uses and that has a row, else the unknown token, else None."""
    known = tokenizer.added_tokens_decoder
    specials = [known[place].content for place in sorted(known) if known[place].special and _fits(place, rows)]
    written = template + json.dumps(tokenizer.chat_template or "", ensure_ascii=False)
    others = {tokenizer.bos_token, *stops}
    candidates = [token for token in _PADDING if token in specials]
    candidates += [token for token in specials if _UNUSED.search(token)]
    candidates += [tokenizer.unk_token] if tokenizer.unk_token and _fits(tokenizer.unk_token_id, rows) else []
    return next((token for token in candidates if token not in others and token not in written), None)


def _fits(place: int, rows: int | None) -> bool:
    return rows is None or place < rows


@torch.no_grad()
def grow(model: PreTrainedModel, ids: Sequence[int]) -> None:
    """Give new tokens their rows in the embedding and the head; each starts as the mean of the rows before the first.

    With the mean no new token gets more than 1 / n of the probability of the n known ones, so the model's predictions
    move by at most log(1 + k / n) nats for k new tokens (Hewitt 2021, "Initializing New Word Embeddings for Pretrained
    Language Models"; it holds where logits are an affine function of the hidden state). Differs: the mean itself,
    without the noise that Hewitt and transformers add.
    """
    if not ids:
        return
    if max(ids) >= len(model.get_input_embeddings().weight):  # pyright: ignore[reportArgumentType]
        model.resize_token_embeddings(max(ids) + 1, mean_resizing=False)
    head: Any = model.get_output_embeddings()
    tables = [model.get_input_embeddings().weight, *([] if head is None else [head.weight, head.bias])]
    for table in {id(table): table for table in tables if isinstance(table, Tensor)}.values():
        table[list(ids)] = _mean(table[: min(ids)]).to(table.dtype)


def _mean(rows: Tensor) -> Tensor:
    """Mean of rows in float64, without a float64 copy of them all."""
    parts = [part.sum(0, dtype=torch.float64) for part in rows.split(_ROWS_AT_ONCE)]
    return torch.stack(parts).sum(0) / len(rows)


def learn_padding_row(model: PreTrainedModel) -> None:
    """Let the row of the padding token learn like any other.

    transformers makes the embedding drop that row's gradient, and in many models padding is the end token; rows of
    frisket hold no padding token that counts.
    """
    model.get_input_embeddings().padding_idx = None  # pyright: ignore[reportArgumentType]


def share_padding(model: PreTrainedModel, tokenizer: Any) -> None:
    """Let saved configurations name the tokenizer's padding token; none where the model has no row for it.

    Without one a text model within a larger one keeps its own: Gemma 4 puts that row where an image stands.
    """
    rows = len(model.get_input_embeddings().weight)  # pyright: ignore[reportArgumentType]
    padding = tokenizer.pad_token_id
    named = None if padding is None or padding >= rows else padding
    text = model.config.get_text_config()
    for config in (model.config, model.generation_config, text):
        if config is not None and (named is not None or config is not text or text is model.config):
            config.pad_token_id = named


def carry_template(tokenizer: Any, text: str, variables: Mapping[str, Any]) -> None:
    """Store the template that a run is trained on in its tokenizer, so that ``apply_chat_template`` renders the same.

    Args:
        text: Jinja source; the source for conversations with tools follows after a NUL where there is one.
        variables: what the source names beside messages and tools. The tokenizer hands over its special tokens
            itself; the others are written into the source.
    """
    own = tokenizer.special_tokens_map
    missing = {name: value for name, value in variables.items() if own.get(name) != value}
    lines = "".join(f"{{%- set {name} = {json.dumps(value)} -%}}" for name, value in missing.items())
    plain, *with_tools = (lines + source for source in text.split("\0"))
    carried = {"default": plain, "tool_use": with_tools[0]} if with_tools else plain
    was = tokenizer.chat_template
    if isinstance(was, dict) and isinstance(carried, dict) and carried.items() <= was.items():
        return  # its own, among others
    tokenizer.chat_template = carried


def loading_lines(folder: Path, base: str, rows: int | None) -> str:
    """How plain transformers and PEFT load an adapter, for a folder's README.

    Args:
        folder: where the adapter lies.
        base: path or hub id of its base model.
        rows: what the base's embedding must grow to; None where it has room.
    """
    grow_line = f"model.resize_token_embeddings({rows}, mean_resizing=False)\n" if rows else ""
    return (
        "from peft import PeftModel\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f'tokenizer = AutoTokenizer.from_pretrained("{folder}")\n'
        f'model = AutoModelForCausalLM.from_pretrained("{base}", dtype="auto")\n'
        f"{grow_line}"
        f'model = PeftModel.from_pretrained(model, "{folder}")\n'
    )
