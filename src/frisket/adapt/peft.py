"""Every method that PEFT has, through one file. PEFT is imported inside functions only: it is slow to import.

PEFT's layers are put into the model in place, so module paths stay those of the base and the backbone is called
directly; PEFT's wrapper is kept beside the model for saving, merging and switching off.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from frisket.adapt.base import Attached, MethodSettings, freeze, seeded
from frisket.adapt.where import Match, Where, head_name, is_linear, short_names
from frisket.errors import CheckError, ConfigError, UnsupportedError, nearest
from frisket.settings import knob

SOFT_PROMPTS = frozenset(
    {"PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CPT", "CARTRIDGE", "ADAPTION_PROMPT"}
)
# These need calls of their own during training (budgets, gradient projection, routing) that our step does not make.
NEEDS_OWN_LOOP = frozenset({"ADALORA", "XLORA", "POLY", "OSF", "ADAMSS", "SHADOW", "UNILORA", "SUPERTUNING"})
# Shown by tests/adapt/test_peft.py to give, in packed rows, the gradients of one sample at a time.
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
    }
)
_INNER = "base_model.model."


class _PeftMethod(MethodSettings):
    """Shared by all PEFT methods: build the configuration, put its layers in."""

    def attach(self, model: nn.Module, rng: torch.Generator) -> Attached:
        """Freeze the model, put PEFT's layers in, and return what moves."""
        match = self.resolve(model)
        config = self._config(model, match)
        return _attach(model, config, match, rng)

    def _config(self, model: nn.Module, match: Match) -> Any:
        raise NotImplementedError


class Lora(_PeftMethod):
    """Low-rank adaptation (Hu et al. 2021, arXiv 2106.09685): W + (alpha / rank) B A.

    `dora` splits off the magnitude (Liu et al. 2024, arXiv 2402.09353); `rslora` scales by alpha / sqrt(rank)
    (Kalajdzievski 2023, arXiv 2312.03732). Differs from common defaults: no dropout.
    """

    rate: ClassVar[float] = 2e-4
    rate_source: ClassVar[str] = "QLoRA (arXiv 2305.14314), 7B to 13B; about ten times full fine-tuning"

    method: Literal["lora"] = "lora"
    rank: int = knob(16, "rank of the two factors", was=("r", "lora_r", "lora_rank"), gt=0)
    alpha: float | None = knob(None, "scale times rank; default: twice the rank", was=("lora_alpha",), gt=0)
    dora: bool = knob(False, "decompose into magnitude and direction", was=("use_dora", "peft_use_dora"))
    rslora: bool = knob(False, "scale by alpha / sqrt(rank)", was=("use_rslora", "peft_use_rslora"))

    def _config(self, model: nn.Module, match: Match) -> Any:
        from peft import LoraConfig

        targets = _linear_targets(model, match)
        return LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha or 2 * self.rank,
            use_dora=self.dora,
            use_rslora=self.rslora,  # pyright: ignore[reportArgumentType]
            lora_dropout=0.0,
            target_modules=targets,
            task_type="CAUSAL_LM",
        )


class Ia3(_PeftMethod):
    """(IA)3: learned scales of keys, values and feed-forward inputs (Liu et al. 2022, arXiv 2205.05638)."""

    rate: ClassVar[float] = 3e-3
    rate_source: ClassVar[str] = "T-Few (arXiv 2205.05638), section 3.3"

    method: Literal["ia3"] = "ia3"
    where: Where = knob(
        ["*.k_proj", "*.v_proj", "*.down_proj"],
        "linear layers that are scaled; those of the feed-forward block at their input",
    )

    def _config(self, model: nn.Module, match: Match) -> Any:
        from peft import IA3Config

        targets = _linear_targets(model, match)
        linears = match.linears(model)
        fed = [name for name in linears if not any(part in name for part in ("attn", "attention"))]
        return IA3Config(
            target_modules=targets, feedforward_modules=short_names(model, fed) if fed else [], task_type="CAUSAL_LM"
        )


class LnTuning(_PeftMethod):
    """Only the normalisation layers move (Zhao et al. 2023, arXiv 2312.11420)."""

    rate: ClassVar[float] = 1e-3
    rate_source: ClassVar[str] = "ours; the paper's rates are for vision-language models"

    method: Literal["ln_tuning"] = "ln_tuning"
    where: Where = knob("norms", "which normalisation layers")

    def _config(self, model: nn.Module, match: Match) -> Any:
        from peft import LNTuningConfig

        return LNTuningConfig(target_modules=short_names(model, match.modules), task_type="CAUSAL_LM")


class Peft(_PeftMethod):
    """Any other type of PEFT, its options checked against that type's own configuration."""

    rate: ClassVar[float] = 1e-3
    rate_source: ClassVar[str] = "ours; see the method's own paper"

    method: Literal["peft"] = "peft"
    peft_type: str = knob(..., "PEFT's name of the method, for example VERA")
    options: dict[str, Any] = knob({}, "fields of that method's configuration in PEFT")

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
        return known[kind](target_modules=_linear_targets(model, match), task_type="CAUSAL_LM", **self.options)


def refuse_by_name(kind: str, known: Mapping[str, Any]) -> None:
    """Refuse PEFT types that do not exist, or that would be silently wrong here.

    Raises:
        ConfigError: no such type.
        UnsupportedError: a soft prompt, or a type that needs a training loop of its own.
    """
    if kind in SOFT_PROMPTS:
        raise UnsupportedError(
            f"adapt.peft_type = {kind}: PEFT's soft prompts leak between the samples of a packed row "
            "and this version has no exact form of them.\nUse adapt.method=lora."
        )
    if kind in NEEDS_OWN_LOOP:
        raise UnsupportedError(
            f"adapt.peft_type = {kind} needs calls of its own in the training loop, which frisket does not make.\n"
            "Use adapt.method=lora."
        )
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

    def parameters(self) -> dict[str, nn.Parameter]:
        """The adapter's parameters."""
        return {name: p for name, p in self._model.named_parameters() if p.requires_grad}

    def save(self, folder: Path, values: Mapping[str, Tensor]) -> None:
        """Write PEFT's folder: ``adapter_config.json`` and ``adapter_model.safetensors``."""
        state = dict(self._wrapper.state_dict())
        state.update({_INNER + name: value for name, value in values.items()})
        self._wrapper.save_pretrained(folder, state_dict=state, save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty card; the run folder has a real one

    def merge(self) -> None:
        """Fold the adapter into the base weights; refuses a non-finite result."""
        self._wrapper.merge_and_unload(safe_merge=True)

    def detach(self) -> None:
        """Put the base's own layers back."""
        self._wrapper.unload()

    @contextmanager
    def switched_off(self) -> Iterator[None]:
        """The base's outputs while the context lasts."""
        with self._wrapper.disable_adapter():
            yield


def _attach(model: nn.Module, config: Any, match: Match, rng: torch.Generator) -> AttachedPeft:
    from peft import PeftModel

    freeze(model)
    with seeded(rng):
        wrapper = PeftModel(model, config)  # adapters in fp32, whatever the base's type
    attached = AttachedPeft(wrapper, model, match, str(getattr(config.peft_type, "value", config.peft_type)))
    if not attached.parameters():
        raise ConfigError(f"adapt.where: PEFT's {type(config).__name__} found nothing to move in the matched modules.")
    return attached


def _linear_targets(model: nn.Module, match: Match) -> list[str]:
    """Target list for PEFT: the linear layers at or below the matched modules."""
    linears = match.linears(model)
    if not linears:
        kinds = sorted({type(model.get_submodule(name)).__name__ for name in match.modules})
        raise ConfigError(
            f"adapt.where matched {len(match.modules)} modules ({', '.join(kinds[:4])}) but no linear layer, and this "
            "method moves linear layers.\n"
            "Use adapt.where=all-linear, or adapt.method=full."
        )
    head = head_name(model)
    if head in linears and model.get_output_embeddings().weight is model.get_input_embeddings().weight:  # pyright: ignore
        raise UnsupportedError(
            "adapt.where reaches the output head, whose weight is tied to the input embedding: a merge would change "
            "both.\nUse adapt.where=all-linear."
        )
    return short_names(model, linears)


def load_adapter(model: nn.Module, folder: Path) -> AttachedPeft:
    """Put a saved adapter on a freshly loaded base model, as plain PEFT would.

    Raises:
        CheckError: the folder holds no adapter, or an empty or non-finite one.
    """
    from peft import PeftModel

    if not (folder / "adapter_config.json").exists():
        raise CheckError(f"{folder} holds no adapter_config.json.")
    kind = json.loads((folder / "adapter_config.json").read_text())["peft_type"]
    wrapper = PeftModel.from_pretrained(model, str(folder))  # pyright: ignore[reportArgumentType]
    names = [name for name, module in model.named_modules() if is_linear(module)]
    return AttachedPeft(wrapper, model, Match(tuple(names), {}), kind)


def saved_tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors of a saved adapter, checked.

    Raises:
        CheckError: no tensors, or a value that is not finite.
    """
    from safetensors.torch import load_file

    tensors = load_file(folder / "adapter_model.safetensors")
    if not tensors:
        raise CheckError(f"{folder} holds an empty adapter.")
    broken = [name for name, value in tensors.items() if not torch.isfinite(value).all()]
    if broken:
        raise CheckError(f"{folder}: {len(broken)} tensors are not finite, first {broken[0]}.")
    return tensors
