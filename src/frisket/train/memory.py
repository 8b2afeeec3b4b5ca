"""How much memory activations take, and which layers are computed again instead of kept."""

from typing import Literal

import numpy as np
import torch

from frisket.errors import ConfigError
from frisket.hf.forward import Model
from frisket.hf.load import decoder_layers
from frisket.train.step import Laying

KEPT_SHARE = 0.5  # of the memory that is free: the rest is for logits, gradients and the allocator


def choose_recompute(
    setting: Literal["auto", "none", "all"] | int, model: Model, laying: Laying, lengths: np.ndarray, dtype: torch.dtype
) -> int:
    """How many layers are recomputed in the backward pass.

    ``auto`` keeps everything where the estimate fits half of the free memory, else recomputes as many layers as needed.

    Raises:
        ConfigError: more layers than the model has.
    """
    layers = len(decoder_layers(model))
    if setting == "none":
        return 0
    if setting == "all":
        return layers
    if setting == "auto":
        free = _free_bytes(model.device)
        if free is None:
            return 0
        per_layer = (
            activation_bytes(model, max(int(lengths.max()), laying.row_tokens * laying.micro_rows), dtype) / layers
        )
        return int(min(layers, max(0, np.ceil(layers - KEPT_SHARE * free / per_layer))))
    if not 0 <= setting <= layers:
        raise ConfigError(
            f"train.recompute = {setting}: the model has {layers} layers.\n"
            f"Use train.recompute=all, or a number up to {layers}."
        )
    return setting


def activation_bytes(model: Model, tokens: int, dtype: torch.dtype) -> float:
    """Bytes that a forward keeps for the backward, all layers.

    A token and layer keep about 14 hidden vectors (norms, residuals, attention in and out), the query, key and value
    vectors twice, and 4 intermediate vectors of the feed-forward block.
    """
    config = model.config.get_text_config()
    hidden = config.hidden_size
    intermediate = getattr(config, "intermediate_size", None) or 4 * hidden
    kept = 20 * hidden + 4 * intermediate
    return float(tokens) * kept * len(decoder_layers(model)) * torch.finfo(dtype).bits / 8


def _free_bytes(device: torch.device) -> float | None:
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    try:
        with open("/proc/meminfo") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return float(line.split()[1]) * 1024
    except OSError:
        return None
    return None
