"""Soft prompts: `prompt`, `p-tuning` and `prefix`, as roots in front of every row.

What moves are PEFT's own prompt encoders, and what is saved is PEFT's folder. Differs from PEFT in where the virtual
tokens lie: in front of a row once, as the parent of all its samples, so that every sample of a packed row gives the
logits and gradients that PEFT gives for that sample alone; and with a projection the encoder computes in float32 at
least, so that what is saved is to the last bit what was measured.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.func import functional_call

from frisket.adapt import roots
from frisket.adapt.base import About, Attached, MethodSettings, freeze, seeded
from frisket.adapt.rates import PREFIX, PROMPT, PROMPT_NETWORK, Declared
from frisket.adapt.roots import KeyShape, Root
from frisket.adapt.where import Match, Where
from frisket.errors import CheckError, UnsupportedError
from frisket.settings import knob

ROOT_TYPES = frozenset({"PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING"})
_SAVED = "prompt_embeddings"


class RootMethod(MethodSettings):
    """What the soft prompts share: the base stays as it is, whatever moves lies in front of it."""

    tokens: int = knob(20, "virtual tokens in front of every sample", was=("num_virtual_tokens",), gt=0)
    where: Where = knob("none", "nothing of the base moves, so this stays as it is")

    @property
    def label(self) -> str:
        """Its name in the recipe."""
        return str(type(self).model_fields["method"].default)

    def check(self) -> None:
        """Refuse what can be refused without a model.

        Raises:
            UnsupportedError: `where` or `also_train` name something of the base.
        """
        if self.where != "none":
            raise UnsupportedError(
                f"adapt.where = {self.where!r}: adapt.method={self.label} moves nothing of the base.\n"
                "Leave adapt.where out, or use adapt.method=lora."
            )
        super().check()

    @property
    def virtual_tokens(self) -> int:
        """The virtual tokens."""
        return self.tokens

    def resolve(self, model: nn.Module, seed: int = 0) -> Match:
        """Nothing of the base."""
        self.check()
        return Match((), {}, notes=(f"{self.tokens} virtual tokens in front of every row, beside `attend.row_tokens`",))

    def attach(self, model: nn.Module, rng: torch.Generator) -> Attached:
        """Freeze the model and put a root in front of it.

        Raises:
            UnsupportedError: the model looks up more by token id than its embeddings.
        """
        return self._attach(model, self._config(model), rng)

    def _config(self, model: nn.Module) -> Any:
        raise NotImplementedError

    def _attach(self, model: Any, config: Any, rng: torch.Generator) -> "AttachedRoot":
        from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

        _refuse_layer_inputs(model, self.label)
        freeze(model)
        kind: Any = PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type]
        words = model.get_input_embeddings()
        with seeded(rng):
            # PEFT draws token ids for embeddings of the model, which may lie on another device than the generator
            encoder = kind(config, words) if config.peft_type == "PROMPT_TUNING" else kind(config)
        wide = torch.promote_types(model.dtype, torch.float32)
        return AttachedRoot(model, encoder.to(device=model.device, dtype=wide), config, self.resolve(model))


class Prompt(RootMethod):
    """Prompt tuning: input vectors in front of every sample (Lester et al. 2021, arXiv 2104.08691).

    They begin as the embeddings of random tokens (section 3.2, "sampled vocabulary"; differs: of all tokens, not of the
    5,000 commonest) or of a text, repeated or cut to the length.
    """

    rate: ClassVar[Declared] = PROMPT
    about: ClassVar[About] = About("input vectors of virtual tokens", "arXiv 2104.08691", merges=False, quantised=True)

    method: Literal["prompt"] = "prompt"
    init_text: str | None = knob(
        None, "begin with this text's embeddings; default: of random tokens", was=("prompt_tuning_init_text",)
    )

    def attach(self, model: nn.Module, rng: torch.Generator, text_ids: Sequence[int] = ()) -> "AttachedRoot":
        """Freeze the model and put a root in front of it.

        Args:
            text_ids: the tokens of ``init_text``.

        Raises:
            UnsupportedError: the model looks up more by token id than its embeddings.
        """
        attached = self._attach(model, self._config(model), rng)
        if text_ids:
            attached.begin_with(text_ids)
        return attached

    def _config(self, model: nn.Module) -> Any:
        from peft import PromptTuningConfig

        return PromptTuningConfig(**_shape(model), num_virtual_tokens=self.tokens, prompt_tuning_init="SAMPLE_VOCAB")


class PTuning(RootMethod):
    """P-tuning: input vectors made by a small network (Liu et al. 2021, arXiv 2103.10385, section 3.2).

    ``lstm`` is the paper's (an LSTM in both directions, then two layers); ``mlp`` is PEFT's default. Differs from the
    paper: all virtual tokens stand in front. Only what the network makes is saved.
    """

    rate: ClassVar[Declared] = PROMPT_NETWORK
    about: ClassVar[About] = About(
        "a network that makes the input vectors of virtual tokens", "arXiv 2103.10385", merges=False, quantised=True
    )

    method: Literal["p-tuning"] = "p-tuning"
    encoder: Literal["mlp", "lstm"] = knob(
        "mlp", "the network that makes the vectors", was=("encoder_reparameterization_type",)
    )
    width: int | None = knob(None, "its hidden width; default: the model's", was=("encoder_hidden_size",), gt=0)

    def _config(self, model: nn.Module) -> Any:
        from peft import PromptEncoderConfig

        shape = _shape(model)
        return PromptEncoderConfig(
            **shape,
            num_virtual_tokens=self.tokens,
            encoder_reparameterization_type=self.encoder.upper(),
            encoder_hidden_size=self.width or shape["token_dim"],
        )


class Prefix(RootMethod):
    """Prefix tuning: keys and values in front of every layer (Li and Liang 2021, arXiv 2101.00190, section 4).

    A table of them moves, as in P-tuning v2 (Liu et al. 2022, arXiv 2110.07602); with ``projection`` a network that
    makes them, as in section 4.3 of the first. Only the keys and values are saved. Keys stand behind the rotation of
    positions, as in PEFT.
    """

    rate: ClassVar[Declared] = PREFIX
    about: ClassVar[About] = About(
        "keys and values of virtual tokens in every layer", "arXiv 2110.07602", merges=False, quantised=True
    )

    method: Literal["prefix"] = "prefix"
    projection: bool = knob(False, "a network makes the keys and values", was=("prefix_projection",))
    width: int | None = knob(None, "hidden width of that network; default: the model's", gt=0)
    init: Literal["normal", "zero"] = knob("normal", "how keys and values begin", was=("init_weights",))

    @property
    def declared_rate(self) -> Declared:
        """Of the table, or of the network that makes it."""
        return PROMPT_NETWORK if self.projection else self.rate

    def _config(self, model: nn.Module) -> Any:
        from peft import PrefixTuningConfig

        keys = _key_shape(model)
        return PrefixTuningConfig(
            task_type="CAUSAL_LM",
            base_model_name_or_path=model.name_or_path,  # pyright: ignore[reportArgumentType]
            num_transformer_submodules=1,
            num_virtual_tokens=self.tokens,
            num_layers=keys.layers,
            num_attention_heads=keys.heads,
            token_dim=keys.heads * keys.width,
            prefix_projection=self.projection,
            encoder_hidden_size=self.width or _shape(model)["token_dim"],
            init_weights="zero" if self.init == "zero" else None,
        )


class AttachedRoot(Attached):
    """Virtual tokens in front of a model, and the network that makes them.

    Args:
        encoder: [virtual] numbers to [virtual, size].
        config: PEFT's.
    """

    def __init__(self, model: nn.Module, encoder: nn.Module, config: Any, match: Match) -> None:
        self._model = model
        self._encoder = encoder.requires_grad_(True)
        self._config = config
        self.match = match
        tokens, keys = config.num_virtual_tokens, None
        if config.peft_type == "PREFIX_TUNING":
            heads = config.num_attention_heads
            keys = KeyShape(config.num_layers, heads, config.token_dim // heads)
        self._tokens = tokens
        # The root knows the network and not the model, which would else never be freed.
        roots.put(model, Root(tokens, lambda: _made(encoder, tokens, dict(encoder.named_parameters())), keys))

    def parameters(self) -> dict[str, nn.Parameter]:
        """PEFT's prompt encoder."""
        return {f"prompt_encoder.{name}": parameter for name, parameter in self._encoder.named_parameters()}

    def begin_with(self, ids: Sequence[int]) -> None:
        """Copy the embeddings of tokens into the table, repeated or cut to its length."""
        count = self._tokens
        words: Any = self._model.get_input_embeddings()  # pyright: ignore[reportCallIssue]
        table = next(iter(self._encoder.parameters()))
        chosen = (list(ids) * math.ceil(count / len(ids)))[:count]
        with torch.no_grad():
            table.copy_(words(torch.tensor(chosen, device=table.device)))
        if len(ids) != count:
            cut = f"cut to its first {count}" if len(ids) > count else f"repeated to {count}"
            note = f"init_text has {len(ids)} tokens: {cut}"
            self.match = dataclasses.replace(self.match, notes=(*self.match.notes, note))

    def save(self, folder: Path, values: Mapping[str, Tensor]) -> None:
        """Write PEFT's folder; what a network makes is saved, not the network."""
        own = self.parameters()
        if len(own) > 1:  # the vectors that were measured are made of the rounded weights, not of their masters
            values = {name: value.to(own[name].dtype) for name, value in values.items()}
        inside = {name.removeprefix("prompt_encoder."): value.detach() for name, value in values.items()}
        with torch.no_grad():
            made = _made(self._encoder, self._tokens, {n: v.requires_grad_() for n, v in inside.items()})
        folder.mkdir(parents=True, exist_ok=True)
        save_file({_SAVED: made.cpu().contiguous()}, folder / "adapter_model.safetensors", {"format": "pt"})
        changes: dict[str, Any] = {"inference_mode": True}
        if self._config.peft_type == "PREFIX_TUNING":  # a table from now on, which PEFT can also train further
            changes |= {"prefix_projection": False, "encoder_hidden_size": None}
        dataclasses.replace(self._config, **changes).save_pretrained(folder)

    def merge(self) -> None:
        """Refused: no weight of the base can hold a virtual token.

        Raises:
            UnsupportedError: always.
        """
        raise UnsupportedError(
            "a soft prompt cannot be merged: its virtual tokens stand in front of the text, and no weight of the base "
            "can hold them.\nUse it as an adapter (frisket generate, or PEFT): the run's adapter/ folder."
        )

    def detach(self) -> None:
        """Take the root away."""
        roots.remove(self._model)

    @contextmanager
    def switched_off(self) -> Iterator[None]:
        """The base's outputs while the context lasts."""
        with roots.taken_off(self._model):
            yield


def _made(encoder: nn.Module, tokens: int, values: Mapping[str, Tensor]) -> Tensor:
    """[virtual, size] of an encoder with these parameters, in float32 at least."""
    wide = {name: value.to(torch.promote_types(value.dtype, torch.float32)) for name, value in values.items()}
    numbers = torch.arange(tokens, device=next(iter(wide.values())).device)
    # oneDNN's LSTM rounds otherwise where no gradient is asked for: what is measured would not be what is trained.
    with torch.enable_grad():
        made = functional_call(encoder, wide, (numbers[None],))[0]
    return made if torch.is_grad_enabled() else made.detach()


def load_root(model: Any, folder: Path) -> AttachedRoot:
    """Put a soft prompt in PEFT's format on a freshly loaded base model.

    Raises:
        CheckError: it was made for a model of another shape.
    """
    from peft import PeftConfig

    config: Any = PeftConfig.from_pretrained(str(folder))
    table = load_file(folder / "adapter_model.safetensors")[_SAVED]
    is_prefix = config.peft_type == "PREFIX_TUNING"
    size = _key_shape(model).size if is_prefix else _shape(model)["token_dim"]
    if table.shape != (config.num_virtual_tokens, size):
        raise CheckError(
            f"{folder} holds virtual tokens of shape {list(table.shape)}, and this base takes "
            f"{[config.num_virtual_tokens, size]}: it was made for another model.\n"
            "Load the base that its adapter_config.json names."
        )
    encoder = nn.Embedding.from_pretrained(table.to(model.device), freeze=False)
    _refuse_layer_inputs(model, config.peft_type)
    return AttachedRoot(model, encoder, config, Match((), {}))


def _refuse_layer_inputs(model: Any, label: str) -> None:
    if getattr(model.config.get_text_config(), "hidden_size_per_layer_input", None):
        raise UnsupportedError(
            f"adapt.method={label}: every layer of {type(model).__name__} looks up an input of its own by token id, "
            "and a virtual token has none.\nUse adapt.method=lora."
        )


def _shape(model: Any) -> dict[str, Any]:
    """What PEFT's configurations ask about the model."""
    text = model.config.get_text_config()
    return {
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": model.name_or_path,
        "num_transformer_submodules": 1,
        "num_layers": text.num_hidden_layers,
        "num_attention_heads": text.num_attention_heads,
        "token_dim": text.hidden_size,
    }


def _key_shape(model: Any) -> KeyShape:
    """What the configuration says of keys; values of another shape are refused where they are computed.

    Raises:
        UnsupportedError: layers differ.
    """
    text = model.config.get_text_config()
    shapes = {_key_shape_of(text.per_layer_config[layer]) for layer in range(text.num_hidden_layers)}
    if len(shapes) > 1:
        told = " and ".join(f"{heads} heads of width {width}" for heads, width in sorted(shapes))
        raise UnsupportedError(
            f"adapt.method=prefix gives every layer keys and values of one shape, and this model's have {told}.\n"
            "Use adapt.method=prompt, or adapt.method=lora."
        )
    return KeyShape(text.num_hidden_layers, *shapes.pop())


def _key_shape_of(layer: Any) -> tuple[int, int]:
    heads = getattr(layer, "num_key_value_heads", None) or layer.num_attention_heads
    return heads, getattr(layer, "head_dim", None) or layer.hidden_size // layer.num_attention_heads
