"""A finished run, ready to answer: `frisket generate`, `frisket evaluate`."""

from collections.abc import Callable, Generator
from collections.abc import Sequence as Seq
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from frisket.adapt import methods
from frisket.data.chat import Template, prompt_ids
from frisket.data.messages import read_messages
from frisket.errors import ConfigError, DataError, UnsupportedError
from frisket.generate.reply import Reply
from frisket.generate.sample import generate, pad_id_of, stop_ids_of, stream
from frisket.generate.settings import GenerateSettings
from frisket.hf import load
from frisket.hf.forward import Model
from frisket.recipe import Recipe, load_recipe
from frisket.run.adding import stored_tokenizer
from frisket.run.folder import SUMMARY, refuse_unshipped, with_base
from frisket.run.system_message import SystemMessage, system_of
from frisket.watch import Watcher

Messages = Seq[dict[str, Any]]


@dataclass(frozen=True)
class Opened:
    """Model, tokenizer and template of a run.

    Attributes:
        switched_off: makes the model the base while the context lasts; None where the base is not in memory.
    """

    folder: Path
    recipe: Recipe
    model: Model
    tokenizer: Any
    template: Template
    switched_off: Callable[[], AbstractContextManager[None]] | None


@dataclass(frozen=True)
class Answered:
    """One answer, and whether ``max_new_tokens`` ended it."""

    text: str
    is_cut: bool


@dataclass(frozen=True)
class Chat:
    """Asks a trained model, or its base.

    Attributes:
        system: the system message that training samples shared.
    """

    opened: Opened
    base_model: Callable[[], Model]
    stop_ids: tuple[int, ...]
    system: SystemMessage | None

    @property
    def folder(self) -> Path:
        """Of the run."""
        return self.opened.folder

    def answer(self, conversations: Seq[Messages], settings: GenerateSettings, base: bool = False) -> list[Answered]:
        """Answer several conversations at once, each ending with a user's message."""
        prompts = [self._prompt(messages) for messages in conversations]
        model, off = self._side(base)
        with off():
            answers = generate(
                model, prompts, stop_ids=self.stop_ids, pad_id=pad_id_of(self.opened.tokenizer), settings=settings
            )
        return [Answered(self._decode(ids), len(ids) >= settings.max_new_tokens) for ids in answers]

    def stream(self, messages: Messages, settings: GenerateSettings, base: bool = False) -> Reply:
        """Answer one conversation, piece by piece.

        Raises:
            DataError: the conversation is longer than the model's context, or its template refuses it.
        """
        prompt = self._prompt(messages)
        context = load.context_length(self.opened.model.config)
        used = len(prompt) + (0 if base else self.opened.recipe.adapt.virtual_tokens)
        room = settings.max_new_tokens if context is None else context - used
        if room < 1:
            raise DataError(
                f"the conversation has {used:,} tokens, and the model takes {context:,} with the answer.\n"
                "Take the question back and shorten it, or begin anew: /reset"
            )
        is_short = room < settings.max_new_tokens
        if is_short:
            settings = settings.model_copy(update={"max_new_tokens": room})
        return Reply(self._tokens(prompt, settings, base), self._decode, settings.max_new_tokens, is_short)

    def _tokens(self, prompt: list[int], settings: GenerateSettings, base: bool) -> Generator[int]:
        model, off = self._side(base)
        with off():
            pad_id = pad_id_of(self.opened.tokenizer)
            yield from stream(model, prompt, stop_ids=self.stop_ids, pad_id=pad_id, settings=settings)

    def _decode(self, ids: list[int]) -> str:
        return self.opened.tokenizer.decode(ids, skip_special_tokens=True)

    def _prompt(self, messages: Messages) -> list[int]:
        return prompt_ids(read_messages(list(messages)), self.opened.template, self.opened.tokenizer)

    def _side(self, base: bool) -> tuple[Model, Callable[[], AbstractContextManager[None]]]:
        if not base:
            return self.opened.model, nullcontext
        if self.opened.switched_off is not None:
            return self.opened.model, self.opened.switched_off
        return self.base_model(), nullcontext


def open_folder(folder: Path, overrides: Seq[str] = (), compute: str | None = None) -> Opened:
    """Load what a run made.

    Raises:
        ConfigError: the folder holds no finished run.
    """
    if not (folder / SUMMARY).exists():
        raise ConfigError(f"{folder} holds no finished run (no {SUMMARY}).\nFinish it: frisket train {folder} --resume")
    refuse_unshipped(folder)
    recipe = with_base(load_recipe(folder, overrides), folder)
    device = load.device_of(recipe.model.device)
    dtype = load.compute_type(compute or recipe.train.compute, device)
    settings = recipe.model
    is_adapter = (folder / "adapter").is_dir()
    if not is_adapter:
        settings = settings.model_copy(update={"path": str(folder / "model"), "tokenizer": None})
    tokenizer, template = stored_tokenizer(recipe, folder / ("adapter" if is_adapter else "model"))
    model = load.load_model(settings, dtype, device)
    attached = methods.load_adapter(model, folder / "adapter") if is_adapter else None
    if attached is not None:
        load.cast_parameters(model, dtype)
    model.eval()
    return Opened(folder, recipe, model, tokenizer, template, attached.switched_off if attached else None)


def open_run(folder: Path, *, watcher: Watcher) -> Chat:
    """Open a run for asking.

    Raises:
        ConfigError: the folder holds no finished run.
    """
    opened = open_folder(folder)
    watcher.say(
        f"model      {opened.recipe.model.path} with {folder / ('adapter' if opened.switched_off else 'model')}"
    )
    base: list[Model] = []

    def base_model() -> Model:
        if not base:
            device = load.device_of(opened.recipe.model.device)
            base.append(load.load_model(opened.recipe.model, opened.model.dtype, device).eval())
        return base[0]

    return Chat(opened, base_model, stop_ids_of(opened.model, _end_of_turn(opened)), system_of(folder))


def _end_of_turn(opened: Opened) -> set[int]:
    """Tokens that end an assistant's turn, by rendering one."""
    from frisket.data.chat import encode
    from frisket.types import Conversation, Message, Provenance

    conversation = Conversation("turn", 0, "turn", 1, (Message("user", "a"), Message("assistant", "b")))
    sequence = encode(conversation, opened.template, opened.tokenizer).sequence
    return {int(i) for i in sequence.input_ids[sequence.roles == Provenance.END_OF_TURN]}


def refuse_full(folder: Path) -> None:
    """Refuse what only makes sense for an adapter.

    Raises:
        UnsupportedError: the run fine-tuned the model itself.
    """
    if not (folder / "adapter").is_dir():
        raise UnsupportedError(
            f"{folder} holds no adapter: the model itself was fine-tuned, and {folder / 'model'} is ready to use as it "
            "is."
        )


def dtype_name(dtype: torch.dtype) -> str:
    """``float32`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")
