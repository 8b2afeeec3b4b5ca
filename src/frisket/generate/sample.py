"""Decoding with the model's own ``generate``, where it can: many prompts in batches, or one token by token."""

import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from frisket.generate.settings import GenerateSettings
from frisket.hf import decoding
from frisket.hf.attention import own_attention
from frisket.hf.roots import with_root

GREEDY = GenerateSettings()


def generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    stop_ids: Sequence[int],
    pad_id: int,
    settings: GenerateSettings = GREEDY,
    batch_tokens: int = 8192,
    progress: Callable[[int], None] = lambda done: None,
) -> list[list[int]]:
    """Continue each prompt.

    Args:
        model: a causal language model of transformers, with or without an adapter in it.
        prompts: token ids of each; none may be empty.
        stop_ids: tokens that end an answer, see ``stop_ids_of``.
        pad_id: any token id; it stands left of shorter prompts, where nothing sees it.
        settings: length and choice of tokens.
        batch_tokens: longest prompt plus new tokens, times prompts, of one batch.
        progress: told how many prompts were finished since its last call.

    Returns:
        The new token ids of each prompt, in the order of the prompts, without the token that stopped them.

    Raises:
        ValueError: a prompt is empty.
    """
    if any(len(prompt) == 0 for prompt in prompts):
        raise ValueError(f"prompt {[len(p) for p in prompts].index(0)} of {len(prompts)} has no token; each needs one")
    answers: list[list[int]] = [[] for _ in prompts]
    with measuring(model), _seeded(model, settings):
        for batch in batches([len(prompt) for prompt in prompts], settings.max_new_tokens, batch_tokens):
            inputs = left_padded([prompts[index] for index in batch], pad_id)
            new = _decode(model, inputs, stop_ids, pad_id, settings, None)
            for index, ids in zip(batch, new.tolist(), strict=True):
                answers[index] = until_stop(ids, stop_ids)
            progress(len(batch))
    return answers


def stream(
    model: Any, prompt: Sequence[int], *, stop_ids: Sequence[int], pad_id: int, settings: GenerateSettings = GREEDY
) -> Iterator[int]:
    """Continue one prompt, yielding each token as soon as it is chosen; the token that stops it is not yielded.

    Keys and values are cached within one answer and never kept for the next: a template may render an earlier turn in
    another way once an answer follows it, and the adapter may be switched off in between.

    Decoding runs in a thread of its own and ends, one token later, when the iterator is closed.
    """
    handed = _Handed()

    def decode() -> None:
        try:
            with measuring(model), _seeded(model, settings):
                _decode(model, left_padded([prompt], pad_id), stop_ids, pad_id, settings, handed)
            handed.tokens.put(None)
        except _ReaderGoneError:
            pass
        except BaseException as error:  # handed to the reader, who raises it
            handed.tokens.put(error)

    thread = threading.Thread(target=decode, name="frisket-generate", daemon=True)
    thread.start()
    try:
        while (token := handed.tokens.get()) is not None:
            if isinstance(token, BaseException):
                raise token
            if token not in stop_ids:
                yield token
    finally:
        handed.reader_gone.set()
        thread.join()


def stop_ids_of(model: Any, end_of_turn: Iterable[int] = ()) -> tuple[int, ...]:
    """Collect the tokens that end an answer: the model's own and those of the chat template, sorted.

    Args:
        model: a causal language model of transformers.
        end_of_turn: tokens with which the chat template ends an assistant turn.
    """
    found = set(end_of_turn)
    for declared in (model.generation_config.eos_token_id, model.config.get_text_config().eos_token_id):
        if declared is not None:
            found.update([declared] if isinstance(declared, int) else declared)
    return tuple(sorted(found))


def pad_id_of(tokenizer: Any) -> int:
    """Give a token id that may stand at padding, where nothing sees it: the tokenizer's own, else 0."""
    return 0 if tokenizer.pad_token_id is None else tokenizer.pad_token_id


def until_stop(ids: Sequence[int], stop_ids: Sequence[int]) -> list[int]:
    """Cut before the first token that ends an answer.

    >>> until_stop([7, 8, 2, 0, 0], stop_ids=[2])
    [7, 8]
    """
    stops = set(stop_ids)
    end = next((place for place, token in enumerate(ids) if token in stops), len(ids))
    return list(ids[:end])


def batches(lengths: Sequence[int], new_tokens: int, batch_tokens: int) -> list[list[int]]:
    """Group prompts of like length, longest first; a prompt over the budget gets a batch of its own.

    >>> batches([3, 9, 4], new_tokens=1, batch_tokens=10)
    [[1], [2, 0]]
    """
    grouped: list[list[int]] = []
    room = 0
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if room == 0:
            grouped.append([])
            room = max(1, batch_tokens // (lengths[index] + new_tokens))
        grouped[-1].append(index)
        room -= 1
    return grouped


def left_padded(prompts: Sequence[Sequence[int]], pad_id: int) -> dict[str, Tensor]:
    """Lay prompts into one array, right-aligned, with their mask and positions.

    >>> {name: value.tolist() for name, value in left_padded([[5, 6], [7]], pad_id=0).items()}
    {'input_ids': [[5, 6], [0, 7]], 'attention_mask': [[1, 1], [0, 1]], 'position_ids': [[0, 1], [0, 0]]}
    """
    width = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), width), pad_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    return {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}


@contextmanager
def measuring(model: Any) -> Iterator[None]:
    """Switch to evaluation without gradients, and back to what the model was."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def _decode(
    model: Any,
    inputs: dict[str, Tensor],
    stop_ids: Sequence[int],
    pad_id: int,
    settings: GenerateSettings,
    streamer: "_Handed | None",
) -> Tensor:
    """[row, new token] after left-padded prompts, with the model's root in front of each."""
    chosen = {"do_sample": settings.temperature > 0}
    if settings.temperature > 0:
        # A top_k of 0 means all tokens; transformers' own default is 50.
        chosen |= {"temperature": settings.temperature, "top_p": settings.top_p, "top_k": 0}
    inputs = {name: value.to(model.device) for name, value in inputs.items()}
    taken = with_root(model, inputs)
    if "inputs_embeds" in taken and not decoding.takes_vectors(model):
        return _decode_uncached(model, inputs, stop_ids, pad_id, settings, streamer)
    with own_attention(model), _plain_generation(model):
        out = model.generate(
            **taken,
            **chosen,
            max_new_tokens=settings.max_new_tokens,
            eos_token_id=list(stop_ids) or None,
            pad_token_id=pad_id,
            streamer=streamer,
        )
    # Given vectors in place of token ids, `generate` returns the new tokens alone.
    return out if "inputs_embeds" in taken else out[:, taken["input_ids"].shape[1] :]


def _decode_uncached(
    model: Any,
    inputs: dict[str, Tensor],
    stop_ids: Sequence[int],
    pad_id: int,
    settings: GenerateSettings,
    streamer: "_Handed | None",
) -> Tensor:
    if streamer:
        streamer.put(inputs["input_ids"])
    with own_attention(model):
        return decoding.decode(
            model,
            inputs,
            new_tokens=settings.max_new_tokens,
            stop_ids=stop_ids,
            pad_id=pad_id,
            temperature=settings.temperature,
            top_p=settings.top_p,
            on_token=streamer.put if streamer else lambda chosen: None,
        )


@contextmanager
def _plain_generation(model: Any) -> Iterator[None]:
    # `generate` fills whatever it is not told from the checkpoint's generation_config.json, where many published models
    # keep sampling and repetition penalties: "greedy" would then not be greedy.
    was = model.generation_config
    model.generation_config = type(was)()
    try:
        yield
    finally:
        model.generation_config = was


@contextmanager
def _seeded(model: Any, settings: GenerateSettings) -> Iterator[None]:
    if settings.temperature == 0:
        yield
        return
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(settings.seed)
        yield


class _ReaderGoneError(Exception):
    pass


class _Handed:
    """A streamer of transformers (``put``, ``end``) that hands tokens to another thread until nobody reads."""

    def __init__(self) -> None:
        self.tokens: queue.SimpleQueue[int | BaseException | None] = queue.SimpleQueue()
        self.reader_gone = threading.Event()
        self._is_prompt = True

    def put(self, value: Tensor) -> None:
        """Take the next token; the first call brings the prompt, which is left out."""
        if self.reader_gone.is_set():
            raise _ReaderGoneError
        if not self._is_prompt:
            self.tokens.put(int(value))
        self._is_prompt = False

    def end(self) -> None:
        """Do nothing: the thread itself says when it is done."""
