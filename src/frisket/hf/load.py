"""Loading and saving models and tokenizers; every refusal names what is missing."""

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from frisket import bundled
from frisket.errors import ConfigError, UnsupportedError, nearest
from frisket.hf import norms, quantised, tokens
from frisket.hf.attention import EAGER, NAME, OWN, supports_sdpa
from frisket.hf.mixture import expert_count
from frisket.hf.settings import ModelSettings

COMPUTE = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "fp64": torch.float64}
_RECURRENT = ("linear_attention", "mamba", "mamba2", "recurrent", "rwkv", "conv", "ssm", "lightning")
_ATTENTION = ("full_attention", "sliding_attention", "attention", "global", "local", "sliding", "full")
_BOTH = ("hybrid", "hybrid_sliding")  # attention and a recurrence side by side in one layer (Falcon-H1)
_TOKENWISE = ("mlp", "moe")  # a token sees itself only (Nemotron-H has layers of nothing else)


TESTED_DEVICES = ("cpu",)
# Imported by peft, bitsandbytes looks for a faster CPU kernel that frisket does not use, and tells everybody.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


@dataclass(frozen=True)
class Layers:
    """What a model's layers are, by its own configuration."""

    attention: int
    recurrent: int


def resolve_path(path: str) -> str:
    """``bundled`` becomes its folder; anything else stays."""
    return str(bundled.base_path()) if path == "bundled" else str(Path(path).expanduser()) if path[:1] == "~" else path


def device_of(name: str) -> torch.device:
    """The device that ``auto`` means here."""
    if name != "auto":
        return torch.device(name)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("cpu")  # mps has no float64, which sums are kept in; it was never tried


def compute_type(name: str, device: torch.device) -> torch.dtype:
    """The type of the model's matmuls; ``auto`` is bf16 where the machine multiplies it natively, else fp32.

    On CUDA without native bf16 (compute capability below 8, where torch emulates it) ``auto`` is fp16.
    """
    if name != "auto":
        return COMPUTE[name]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device)[0] >= 8 else torch.float16
    native = device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return torch.bfloat16 if native else torch.float32


def cautions(asked: str, compute: torch.dtype, device: torch.device) -> list[str]:
    """What a person should know of this device before the first step."""
    told = []
    if device.type not in TESTED_DEVICES:
        told.append(
            f"device {device}: frisket was never tested on {device.type}, only on {', '.join(TESTED_DEVICES)}; the "
            "checks below run on it"
        )
    if asked == "auto" and compute == torch.float16:
        told.append(f"device {device} has no bf16: computing in fp16 with a scaled loss (train.compute=fp32 without)")
    return told


def check_folder(path: str) -> None:
    """Refuse a local folder that is not a complete model.

    Raises:
        ConfigError: files are missing, all named.
    """
    folder = Path(path)
    if not _looks_local(path):
        return
    if not folder.is_dir():
        near = _near(path)
        fix = f"Did you mean this? model.path={near}" if near else "Give a hub id, a folder, or model.path=bundled."
        raise ConfigError(f"model.path = {path!r}: no such folder.\n{fix}")
    missing = [] if (folder / "config.json").exists() else ["config.json"]
    index = folder / "model.safetensors.index.json"
    if index.exists():
        shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        missing += [name for name in shards if not (folder / name).exists()]
    elif not (folder / "model.safetensors").exists():
        pickled = sorted(p.name for p in folder.glob("*.bin"))
        missing.append(
            "model.safetensors" + (f" (frisket does not read pickled weights: {pickled[0]})" if pickled else "")
        )
    if missing:
        raise ConfigError(f"model.path = {path!r}: the folder is not a complete model; missing: {', '.join(missing)}.")


def _looks_local(path: str) -> bool:
    """Whether a path is meant as a folder: a hub id is one or two words."""
    return Path(path).is_absolute() or path.startswith((".", "~")) or Path(path).exists() or path.count("/") > 1


def _near(path: str) -> str | None:
    """The model here whose name is most like one that is not: a folder beside it, or the bundled one."""
    place = Path(path).expanduser()
    beside = [found.parent.name for found in place.parent.glob("*/config.json")]
    near = nearest(place.name, [*beside, *(["bundled"] if place.name == path else [])])
    return None if near is None else near if place.name == path else str(place.parent / near)


def load_tokenizer(settings: ModelSettings, *, is_stored: bool = False) -> Any:
    """The tokenizer, with the recipe's tokens and a padding token that ends nothing; see ``load_prepared``."""
    return load_prepared(settings, is_stored=is_stored).tokenizer


def load_prepared(settings: ModelSettings, *, is_stored: bool = False) -> tokens.Prepared:
    """The tokenizer, with truncation and padding off, and what was changed in it.

    Args:
        is_stored: it lies beside trained weights, which may have rows that the base does not have.

    Raises:
        ConfigError: it is missing, or has no fast (Rust) implementation; a token that cannot be added.
    """
    path = resolve_path(settings.tokenizer or settings.path)
    if _looks_local(path) and not Path(path).is_dir():
        raise ConfigError(f"model.tokenizer: {path!r} is no folder.\nGive a hub id or a folder with a tokenizer.")
    try:
        tokenizer = _tokenizer_class(path).from_pretrained(
            path, revision=settings.revision, trust_remote_code=settings.remote_code
        )
    except (OSError, ValueError, ImportError) as error:
        raise ConfigError(
            f"model.tokenizer: no tokenizer could be loaded from {path!r}: {_first_line(error)}"
        ) from error
    if not getattr(tokenizer, "is_fast", False):
        raise ConfigError(
            f"{path!r}: the tokenizer has no fast (Rust) implementation, so no token can be traced to its characters."
        )
    if tokenizer.vocab_size == 0:
        raise ConfigError(f"{path!r}: the tokenizer that was loaded has an empty vocabulary.")
    return tokens.prepare(tokenizer, settings, ending_ids(settings), None if is_stored else _row_count(settings))


def _row_count(settings: ModelSettings) -> int | None:
    """Rows of the model's embedding by its own files; None where there are none."""
    try:
        return load_config(settings).get_text_config().vocab_size
    except ConfigError:
        return None


def files_quantised(settings: ModelSettings) -> quantised.Load:
    """How the model's own files are quantised; "none" too where there are no files."""
    try:
        return quantised.stored_as(load_config(settings))
    except ConfigError:
        return "none"


def ending_ids(settings: ModelSettings) -> tuple[int, ...]:
    """Tokens at which generation stops, by the model's own files; none where they do not say."""
    try:
        config = GenerationConfig.from_pretrained(resolve_path(settings.path), revision=settings.revision or "main")
    except (OSError, ValueError):
        return ()
    found = config.eos_token_id
    return tuple(found) if isinstance(found, list) else () if found is None else (found,)


def _tokenizer_class(path: str) -> Any:
    """AutoTokenizer; for a bare SentencePiece file, where it gives other ids than Llama's, that tokenizer."""
    folder = Path(path)
    bare = (
        (folder / "tokenizer.model").exists()
        and not (folder / "tokenizer.json").exists()
        and not (folder / "tokenizer_config.json").exists()
    )
    return transformers.LlamaTokenizer if bare else AutoTokenizer


def load_model(settings: ModelSettings, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """The model, on our attention seam, dropout off.

    Raises:
        ConfigError: it is missing or incomplete.
        UnsupportedError: it cannot take an attention function.
    """
    path = resolve_path(settings.path)
    check_folder(path)
    options = {"revision": settings.revision, "trust_remote_code": settings.remote_code}
    try:
        config = AutoConfig.from_pretrained(path, **options)
        with without_bars():
            model, report = AutoModelForCausalLM.from_pretrained(  # pyright: ignore[reportGeneralTypeIssues]
                path,
                config=config,
                attn_implementation=NAME,
                use_safetensors=True,
                output_loading_info=True,
                **options,
                **quantised.options_of(settings.load, config, dtype, device),
            )
    except (OSError, KeyError, RuntimeError, SafetensorError) as error:
        raise _not_loaded(settings, error) from error
    except ValueError as error:
        raise UnsupportedError(f"model.path = {settings.path!r} is refused: {_first_line(error)}") from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise ConfigError(
            f"model.path = {settings.path!r}: the files lack {len(missing)} of the model's tensors, which would be "
            f"random: {', '.join(missing[:3])}{' …' if len(missing) > 3 else ''}."
        )
    if settings.add_tokens:
        tokens.grow(model, load_prepared(settings).added)
    return ready(quantised.placed(model, dtype, device))


def empty_model(config: Any) -> PreTrainedModel:
    """The model's modules without its weights (call it under ``torch.device("meta")``)."""
    return AutoModelForCausalLM.from_config(config, attn_implementation=NAME)


def ready(model: PreTrainedModel) -> PreTrainedModel:
    """Put a model on our seam with its dropout at 0."""
    if model.config._attn_implementation != NAME:
        model.set_attn_implementation(NAME)
    quantised.compute_plainly(model)
    norms.compute_lean(model)
    tokens.learn_padding_row(model)
    _set_experts(model)
    return model


def _set_experts(model: PreTrainedModel) -> None:
    """In float64 experts are computed one by one: torch's grouped matmul has no float64."""
    if model.dtype == torch.float64 and is_mixture(model):
        model.set_experts_implementation("eager")


def switch_off_dropout(model: PreTrainedModel) -> list[str]:
    """Set every dropout to 0 and return what was not 0 already; layer drop and a router's jitter are of the kind."""
    found = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Dropout) and module.p:
            found.append(f"{name} {module.p:g}")
            module.p = 0.0
        for field, value in list(vars(module).items()):
            if isinstance(value, float) and value and ("drop" in field or "jitter" in field):
                found.append(f"{name}.{field} {value:g}")
                setattr(module, field, 0.0)
    return found


def layer_counts(config: Any) -> Layers:
    """Count attention and recurrent layers of a configuration.

    Raises:
        UnsupportedError: a kind of layer whose visibility frisket does not know.
    """
    text = config.get_text_config()
    kinds = (
        getattr(text, "layer_types", None)
        or getattr(text, "layers_block_type", None)
        or ["attention"] * text.num_hidden_layers
    )
    recurrent = sum(1 for kind in kinds if kind in _BOTH or any(word in kind for word in _RECURRENT))
    attention = sum(1 for kind in kinds if kind in _BOTH or kind in _ATTENTION)
    known = (*_ATTENTION, *_BOTH, *_TOKENWISE)
    strange = sorted({kind for kind in kinds if kind not in known and not any(word in kind for word in _RECURRENT)})
    if strange:
        raise UnsupportedError(
            f"{type(config).__name__} has layers of type {', '.join(strange)}, whose mask frisket does not know."
        )
    return Layers(attention, recurrent)


def decoder_layers(model: PreTrainedModel) -> list[Any]:
    """The layers that transformers can recompute, in order."""
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def recompute_layers(model: PreTrainedModel, count: int) -> None:
    """Recompute the first ``count`` decoder layers in the backward pass; the others keep what they computed.

    Set layer by layer: the model's own switch has another name in 5.23 than in 5.17, and knows only all or every n-th.
    """
    for layer in decoder_layers(model)[:count]:
        layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
        layer.gradient_checkpointing = True


def stored_dtype(settings: ModelSettings, model: PreTrainedModel | None) -> torch.dtype:
    """Type of the base's weights as they are stored, or as they were handed over."""
    if model is not None:
        return model.dtype
    return quantised.stored_type(load_config(settings))


def cast_parameters(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Cast every floating parameter; buffers stay (rotary frequencies need fp32), and so do 8-bit floats' codes.

    Frozen projections that PEFT keeps in a ``BufferDict`` are cast too: VeRA multiplies with them as they are.
    """
    for parameter in model.parameters():
        if parameter.is_floating_point() and parameter.element_size() > 1 and parameter.dtype != dtype:
            parameter.data = parameter.data.to(dtype)
    for module in model.modules():
        if type(module).__name__ == "BufferDict":
            for name, buffer in list(module.named_buffers(recurse=False)):
                setattr(module, name, buffer.to(dtype) if buffer.is_floating_point() else buffer)
    _set_experts(model)


def embedding_names(model: PreTrainedModel) -> set[str]:
    """Names of the input embedding's weights."""
    own = {id(parameter) for parameter in model.get_input_embeddings().parameters()}
    return {name for name, parameter in model.named_parameters() if id(parameter) in own}


def is_mixture(model: PreTrainedModel) -> bool:
    """Whether tokens are routed to experts."""
    return expert_count(model.config) > 1


def context_length(model_config: Any) -> int | None:
    """Longest sample the model's configuration allows."""
    return getattr(model_config.get_text_config(), "max_position_embeddings", None)


def load_config(settings: ModelSettings) -> Any:
    """The model's configuration alone.

    Raises:
        ConfigError: it is missing.
    """
    path = resolve_path(settings.path)
    check_folder(path)
    try:
        return AutoConfig.from_pretrained(path, revision=settings.revision, trust_remote_code=settings.remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise _not_loaded(settings, error) from error


def _not_loaded(settings: ModelSettings, error: Exception) -> ConfigError:
    """What the hub's library says, and where else a model can come from."""
    if Path(resolve_path(settings.path)).is_dir():
        return ConfigError(f"model.path = {settings.path!r} cannot be loaded: {_first_line(error)}")
    near = _near(settings.path)
    if near:
        return ConfigError(
            f"model.path = {settings.path!r}: no such folder, and as a hub id it cannot be loaded: "
            f"{_first_line(error)}\nDid you mean this? model.path={near}"
        )
    offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
    return ConfigError(
        f"model.path = {settings.path!r} cannot be loaded{offline}: {_first_line(error)}"
        "\nName a folder (model.path=FOLDER), or fill the hub's cache where there is a network and set HF_HOME to it: "
        f"hf download {settings.path}\nA gated model needs a token: hf auth login"
    )


def save_model(model: PreTrainedModel, tokenizer: Any, folder: Path, dtype: torch.dtype) -> None:
    """Write a plain transformers folder that loads without frisket."""
    before = model.config._attn_implementation
    model.set_attn_implementation(OWN if supports_sdpa(model) else EAGER)
    tokens.share_padding(model, tokenizer)
    with without_bars():
        model.to(dtype).save_pretrained(folder)  # pyright: ignore[reportArgumentType]
    tokenizer.save_pretrained(folder)
    model.set_attn_implementation(before)  # pyright: ignore[reportArgumentType]


@contextmanager
def without_bars() -> Iterator[None]:
    """Loading and saving without transformers' own progress bars, which would break ours."""
    was_on = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            transformers.utils.logging.enable_progress_bar()


def versions() -> dict[str, str]:
    """Versions that decide what a run computes."""
    import platform

    import numpy
    import tokenizers

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "tokenizers": tokenizers.__version__,
        "numpy": numpy.__version__,
    }


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:300]
