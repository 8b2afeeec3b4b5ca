"""What all methods of PEFT share, and those without a file of their own. PEFT is imported inside functions only: it is
slow to import.

PEFT's layers are put into the model in place, so module paths stay those of the base and the backbone is called
directly; PEFT's wrapper is kept beside the model for saving, merging and switching off.
"""

import dataclasses
import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from frisket.adapt.base import About, Attached, MethodSettings, freeze, seeded
from frisket.adapt.beside import put_beside
from frisket.adapt.head import untie_adapted_head
from frisket.adapt.lean import compute_lean
from frisket.adapt.ranks import largest_ranks, refuse_larger
from frisket.adapt.rates import IA3, LN_TUNING, PEFT_RATES, UNKNOWN, Declared
from frisket.adapt.where import Match, Where, is_linear, refuse_tied_head, short_names
from frisket.errors import CheckError, ConfigError, UnsupportedError, counted, nearest
from frisket.settings import knob

PEFT_CONFIG = "adapter_config.json"
SOFT_PROMPTS = frozenset(
    {"PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CPT", "CARTRIDGE", "ADAPTION_PROMPT"}
)
# The methods that are their exact forms, and are saved as these types.
EXACT_FORMS = {"PROMPT_TUNING": "prompt", "P_TUNING": "p-tuning", "PREFIX_TUNING": "prefix"}
# These need calls of their own during training (budgets, gradient projection, routing) that our step does not make.
NEEDS_OWN_LOOP = frozenset({"ADALORA", "XLORA", "POLY", "OSF", "ADAMSS", "SHADOW", "UNILORA", "SUPERTUNING"})
# `where` names linear layers for these types in vain: they move something else.
NOT_OF_LINEARS = {
    "LN_TUNING": "Use adapt.method=ln_tuning.",
    "TRAINABLE_TOKENS": "Use adapt.method=full adapt.where=embeddings.",
}
# Their `r` is the rank of two factors; others take it for a number of reflections, of blocks, or of shared vectors.
LOW_RANK = frozenset({"LORA", "LOHA", "DELORA", "DEFT", "GLORA", "GRALORA", "HIRA"})
# Options that change the forward, the layers or the loss around the adapter, where frisket calls the backbone itself.
REFUSED_OPTIONS = frozenset(
    {
        "alora_invocation_tokens",
        "arrow_config",
        "layer_replication",
        "modules_to_save",
        "monteclora_config",
        "target_parameters",
        "trainable_token_indices",
    }
)
# Shown by tests/adapt/test_invariants.py to give, in packed rows, the gradients of one sample at a time.
PACKS = frozenset(
    {
        "LORA",
        "IA3",
        "LN_TUNING",
        "VERA",
        "LOHA",
        "LOKR",
        "OFT",
        "BOFT",
        "FOURIERFT",
        "HRA",
        "RANDLORA",
        "MISS",
        "DELORA",
        "C3A",
        "DEFT",
        "GLORA",
        "GRALORA",
        "HIRA",
        "PEANUT",
        "ROAD",
        "SHIRA",
        "TINYLORA",
        "VBLORA",
        "WAVEFT",
    }
)


class PeftMethod(MethodSettings):
    """Shared by all PEFT methods: build the configuration, put its layers in."""

    can_also_train: ClassVar[bool] = True

    def attach(self, model: nn.Module, rng: torch.Generator) -> Attached:
        """Freeze the model, put PEFT's layers in, and return what moves.

        Raises:
            UnsupportedError: `where` reaches expert tensors, which only LoRA can adapt.
        """
        match = self.resolve(model)
        if match.experts(model):
            raise UnsupportedError(
                f"adapt.where reaches {len(match.experts(model))} expert tensors, and in PEFT only LoRA adapts those, "
                f"not {self.label}.\n"
                "Use adapt.method=lora, or adapt.where=all-linear without the experts."
            )
        config = self._config(model, match)
        return attach_config(model, config, put_beside(model, config, match, self.also_train), rng)

    def _config(self, model: nn.Module, match: Match) -> Any:
        raise NotImplementedError


class Ia3(PeftMethod):
    """(IA)3: learned scales of keys, values and feed-forward inputs (Liu et al. 2022, arXiv 2205.05638)."""

    rate: ClassVar[Declared] = IA3
    about: ClassVar[About] = About("a scale for each channel", "arXiv 2205.05638")  # cannot be taken off 4-bit layers

    method: Literal["ia3"] = "ia3"
    where: Where = knob(
        ["*.k_proj", "*.v_proj", "*.down_proj"],
        "linear layers that are scaled; those of the feed-forward block at their input",
    )

    def _config(self, model: nn.Module, match: Match) -> Any:
        from peft import IA3Config

        targets = linear_targets(model, match)
        linears = match.linears(model)
        fed = [name for name in linears if not any(part in name for part in ("attn", "attention"))]
        fed_targets = short_names(model, fed) if fed else []
        if not set(fed_targets) <= set(targets):  # PEFT wants a subset; GPT-2 has a c_proj in both kinds of block
            targets, fed_targets = linears, fed
        return IA3Config(
            target_modules=targets,
            feedforward_modules=fed_targets,
            fan_in_fan_out=is_transposed(model, match),
            task_type="CAUSAL_LM",
        )


class LnTuning(PeftMethod):
    """Only the normalisation layers move (Zhao et al. 2023, arXiv 2312.11420)."""

    rate: ClassVar[Declared] = LN_TUNING
    about: ClassVar[About] = About("the normalisation layers", "arXiv 2312.11420", quantised=True)

    method: Literal["ln_tuning"] = "ln_tuning"
    where: Where = knob("norms", "which normalisation layers")

    def _config(self, model: nn.Module, match: Match) -> Any:
        from peft import LNTuningConfig

        return LNTuningConfig(target_modules=short_names(model, match.modules), task_type="CAUSAL_LM")


class Peft(PeftMethod):
    """Any other type of PEFT, its options checked against that type's own configuration."""

    rate: ClassVar[Declared] = UNKNOWN
    about: ClassVar[About] = About("what PEFT's type says", "PEFT's documentation of the type")

    method: Literal["peft"] = "peft"
    peft_type: str = knob(..., "PEFT's name of the method, for example VERA")
    options: dict[str, Any] = knob({}, "fields of that method's configuration in PEFT")

    @property
    def label(self) -> str:
        """PEFT's name of the method."""
        return self.peft_type.upper()

    @property
    def declared_rate(self) -> Declared:
        """The rate of this type, where a source states one."""
        return PEFT_RATES.get(self.label, self.rate)

    @property
    def packs(self) -> bool:
        """Whether this type is on the list of those that were shown to be exact in packed rows."""
        return self.label in PACKS

    def attach(self, model: nn.Module, rng: torch.Generator) -> Attached:
        """Put PEFT's layers in, and check that they left the base as it was.

        Raises:
            UnsupportedError: the options let the base's own weights move, or have changed them already.
        """
        base = [(parameter, _checksum(parameter)) for parameter in model.parameters()]
        attached = super().attach(model, rng)
        if any(parameter.requires_grad or _checksum(parameter) != bits for parameter, bits in base):
            raise UnsupportedError(
                f"adapt.options let PEFT's {self.peft_type} change the base's own weights: they would be neither "
                "frozen nor restored.\nLeave out `bias` and initialisations that are made from the weights."
            )
        return attached

    def _config(self, model: nn.Module, match: Match) -> Any:
        from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

        known = {kind.value: config for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
        kind = self.peft_type.upper()
        refuse_by_name(kind, known)
        fields = {f.name for f in dataclasses.fields(known[kind])}
        own = {"target_modules", "task_type", "peft_type"}
        for name in self.options:
            if name not in fields - own:
                hint = nearest(name, fields - own)
                raise ConfigError(
                    f"adapt.options.{name}: PEFT's {known[kind].__name__} has no such option."
                    + (f" Nearest: {hint}." if hint else "")
                )
            if "dropout" in name and self.options[name]:
                raise UnsupportedError(
                    f"adapt.options.{name} = {self.options[name]}: with dropout a row would not equal its samples.\n"
                    f"Leave adapt.options.{name} out."
                )
            if name in REFUSED_OPTIONS:
                raise UnsupportedError(
                    f"adapt.options.{name} changes the model around the adapter, which frisket does not carry.\n"
                    f"Leave adapt.options.{name} out."
                )
        targets = linear_targets(model, match)
        with _said_by_peft(known[kind].__name__):
            config = known[kind](target_modules=targets, task_type="CAUSAL_LM", **self.options)  # pyright: ignore
        rank = self.options.get("r")
        if kind in LOW_RANK and isinstance(rank, int):  # PEFT itself refuses other types, in its words
            refuse_larger(rank, largest_ranks(model, match.linears(model)), "adapt.options.r")
        return config


def _checksum(tensor: Tensor) -> int:
    """Sum of a tensor's bytes, so that a change is seen without a copy."""
    return 0 if tensor.is_meta else int(tensor.detach().contiguous().view(torch.uint8).sum(dtype=torch.int64))


def refuse_by_name(kind: str, known: Mapping[str, Any]) -> None:
    """Refuse PEFT types that do not exist, or that would be silently wrong here.

    Raises:
        ConfigError: no such type.
        UnsupportedError: a soft prompt, or a type that needs a training loop of its own.
    """
    if kind in SOFT_PROMPTS:
        raise UnsupportedError(
            f"adapt.peft_type = {kind}: PEFT's soft prompts leak between the samples of a packed row"
            + (".\n" if kind in EXACT_FORMS else ", and this version has no exact form of this one.\n")
            + f"Use adapt.method={EXACT_FORMS.get(kind, 'prompt')}, which is exact in every row."
        )
    if kind in NEEDS_OWN_LOOP:
        raise UnsupportedError(
            f"adapt.peft_type = {kind} needs calls of its own in the training loop, which frisket does not make.\n"
            "Use adapt.method=lora."
        )
    if kind in NOT_OF_LINEARS:
        raise UnsupportedError(f"adapt.peft_type = {kind} does not move linear layers.\n{NOT_OF_LINEARS[kind]}")
    if kind not in known:
        hint = nearest(kind, known)
        raise ConfigError(f"adapt.peft_type = {kind!r} is no method of PEFT." + (f" Nearest: {hint}." if hint else ""))


class AttachedPeft(Attached):
    """PEFT's layers inside the model."""

    def __init__(self, wrapper: Any, model: nn.Module, match: Match, kind: str) -> None:
        self._wrapper = wrapper
        self._model = model
        self.match = match
        self.packs = kind in PACKS
        self.b_rate_factor = 1.0

    def rate_factor(self, name: str) -> float:
        """LoRA+: another rate for the factor that begins at 0."""
        return self.b_rate_factor if ".lora_B." in name else 1.0

    def parameters(self) -> dict[str, nn.Parameter]:
        """The adapter's parameters."""
        return {name: p for name, p in self._model.named_parameters() if p.requires_grad}

    def save(self, folder: Path, values: Mapping[str, Tensor]) -> None:
        """Write PEFT's folder: ``adapter_config.json`` and ``adapter_model.safetensors``."""
        state = dict(self._wrapper.state_dict())
        masters = {id(parameter): values[name] for name, parameter in self.parameters().items()}
        for name, parameter in self._wrapper.named_parameters(remove_duplicate=False):  # VBLORA shares its bank
            if id(parameter) in masters:
                state[name] = masters[id(parameter)]
        self._wrapper.save_pretrained(folder, state_dict=state, save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty card; the run folder has a real one

    def merge(self) -> None:
        """Fold the adapter into the base weights; a tied head with an adapter on it gets a weight of its own first.

        Raises:
            UnsupportedError: PEFT cannot merge this type, or the result is not finite.
        """
        untie_adapted_head(self._model)
        try:
            self._wrapper.merge_and_unload(safe_merge=True)
            for name, copy in _whole_modules(self._model).items():  # LN tuning's own way to merge leaves them
                self._model.set_submodule(name, copy.moving)
        except (NotImplementedError, ValueError) as error:
            raise UnsupportedError(
                f"PEFT cannot merge this adapter: {error}\nUse it as an adapter: the run's adapter/ folder."
            ) from error

    def detach(self) -> None:
        """Put the base's own layers back."""
        whole = _whole_modules(self._model)
        self._wrapper.unload()
        for name, copy in whole.items():  # PEFT leaves the trained copies there
            self._model.set_submodule(name, copy.base)

    @contextmanager
    def switched_off(self) -> Iterator[None]:
        """The base's outputs while the context lasts."""
        with self._wrapper.disable_adapter():
            yield


class _Copy(NamedTuple):
    """A module of the base, and the copy of it that moves (`also_train`)."""

    base: nn.Module
    moving: nn.Module


def _whole_modules(model: nn.Module) -> dict[str, _Copy]:
    """What moves as a whole beside the adapter, by dotted path."""
    from peft.utils.other import ModulesToSaveWrapper

    wrapped = {name: module for name, module in model.named_modules() if isinstance(module, ModulesToSaveWrapper)}
    return {name: _Copy(m.original_module, m.modules_to_save[m.active_adapters[0]]) for name, m in wrapped.items()}


def attach_config(model: nn.Module, config: Any, match: Match, rng: torch.Generator) -> AttachedPeft:
    """Freeze the model and put the layers of a configuration of PEFT into it.

    Raises:
        ConfigError: PEFT refuses the configuration, or nothing would move.
    """
    from peft import PeftModel

    freeze(model)
    with seeded(rng), _without_its_warnings(), _said_by_peft(type(config).__name__):
        wrapper = PeftModel(model, config)  # adapters in fp32, whatever the base's type
    compute_lean(model)
    attached = AttachedPeft(wrapper, model, match, str(getattr(config.peft_type, "value", config.peft_type)))
    if not attached.parameters():
        raise ConfigError(f"adapt.where: PEFT's {type(config).__name__} found nothing to move in the matched modules.")
    return attached


@contextmanager
def _said_by_peft(config: str) -> Iterator[None]:
    """What PEFT refuses (sizes that do not divide, layers that it does not know) is the recipe's to mend."""
    try:
        yield
    except (ValueError, TypeError, NotImplementedError, ImportError) as error:
        said = str(error).strip().split("\n")[0]
        if "register_meta" in said:  # a model without weights, which PEFT's options cannot help
            raise
        raise ConfigError(f"PEFT's {config} refuses these options or layers: {said}") from error


@contextmanager
def _without_its_warnings() -> Iterator[None]:
    """Warnings of PEFT 0.21 that nobody who runs frisket can mend.

    It reads a property that transformers 5.23 calls deprecated; it does not know the size of norms, which it only
    copies; BOFT looks for a compiler of CUDA code and says that it goes on without; an adapter on a tied head is untied
    by ``merge`` before it is folded in; patterns for ranks that transformers hands it match nothing where a mixture's
    dense layers have no experts.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        warnings.filterwarnings("ignore", message="Unsupported layer type .*Norm", category=UserWarning)
        warnings.filterwarnings("ignore", message="Failed to load the CUDA extension", category=UserWarning)
        warnings.filterwarnings("ignore", message=".*a tied layer is part of the adapter", category=UserWarning)
        warnings.filterwarnings("ignore", message="Setting boft_n_butterfly_factor to 1", category=UserWarning)
        warnings.filterwarnings("ignore", message="The following .*_pattern keys did not", category=RuntimeWarning)
        yield


def linear_targets(model: nn.Module, match: Match, *, moves_weights: bool = True) -> list[str]:
    """Target list for PEFT: the linear layers at or below the matched modules."""
    linears = match.linears(model)
    if not linears:
        kinds = sorted({type(model.get_submodule(name)).__name__ for name in match.modules})
        raise ConfigError(
            f"adapt.where matched {counted(len(match.modules), 'module')} ({', '.join(kinds[:4])}) but no linear "
            "layer, and this method moves linear layers.\n"
            "Use adapt.where=all-linear, or adapt.method=full."
        )
    if moves_weights:
        refuse_tied_head(model, linears)
    return short_names(model, linears)


def is_transposed(model: nn.Module, match: Match) -> bool:
    """Whether the matched layers keep their weight as [in, out] (GPT-2's Conv1D)."""
    return all(not isinstance(model.get_submodule(name), nn.Linear) for name in match.linears(model))


def load_peft(model: nn.Module, folder: Path) -> AttachedPeft:
    """Put an adapter in PEFT's format on a freshly loaded base model, as plain PEFT would.

    Raises:
        CheckError: the model has not the layers that it was made for.
    """
    from peft import PeftModel

    kind = json.loads((folder / PEFT_CONFIG).read_text())["peft_type"]
    try:
        with _without_its_warnings():
            warnings.filterwarnings("error", message="Found missing adapter keys")
            wrapper = PeftModel.from_pretrained(model, str(folder))  # pyright: ignore[reportArgumentType]
            # Which tensors it had no place for is told by this call alone.
            lost = wrapper.load_adapter(str(folder), "default").unexpected_keys
        if lost:
            raise ValueError(f"{len(lost)} of its tensors have no place here, first {lost[0]}")
    except (RuntimeError, ValueError, UserWarning) as error:
        told = next((line.strip() for line in str(error).split("\n") if "size mismatch" in line), str(error))
        raise CheckError(
            f"{folder} holds an adapter of other shapes or layers than this base's: {shorten(told, 240)}\n"
            f"Use the base that its {PEFT_CONFIG} names."
        ) from error
    compute_lean(model)
    names = [name for name, module in model.named_modules() if is_linear(module)]
    return AttachedPeft(wrapper, model, Match(tuple(names), {}), kind)
