"""Adapters on the output head, whose logits frisket computes itself and whose weight may be the embedding's."""

import torch
from torch import Tensor, nn

Change = tuple[Tensor, Tensor, float]  # down [rank, hidden], up [vocab, rank], scale


def low_rank_of(module: nn.Module) -> tuple[nn.Module, Change | None] | None:
    """A layer with an adapter on it: the base's own layer, and the low-rank change that the adapter makes.

    Plain LoRA is such a change, and so are the trained rows of added tokens: ``up`` then picks those rows, and ``down``
    is by how much they differ from the base's.

    Returns:
        None where the module is no such layer; no change where the adapter is switched off or merged, or the layer is
        a copy that moves as a whole.
    """
    if type(module) is nn.Linear:  # the usual head, without loading peft
        return None
    from peft.tuners.lora import Linear
    from peft.utils.other import ModulesToSaveWrapper, TrainableTokensWrapper

    if isinstance(module, ModulesToSaveWrapper):
        off = module.disable_adapters or not module.active_adapters
        return (module.original_module if off else module.modules_to_save[module.active_adapters[0]]), None
    if isinstance(module, TrainableTokensWrapper):
        return _trained_rows(module)
    if type(module) is not Linear or module.use_dora.get("default") or module.lora_variant:
        return None
    if module.disable_adapters or module.merged:
        return module.get_base_layer(), None
    (name,) = module.active_adapters
    if module.lora_B[name].bias is not None:
        return None
    down, up = module.lora_A[name].weight, module.lora_B[name].weight
    return module.get_base_layer(), (down, up, module.scaling[name])  # pyright: ignore[reportReturnType]


def _trained_rows(module: nn.Module) -> tuple[nn.Module, Change | None]:
    """PEFT's own form is a copy of the whole matrix with these rows replaced, which would get a gradient as large."""
    rows = module.token_adapter  # pyright: ignore
    base = rows.get_base_layer()  # pyright: ignore
    if rows.disable_adapters or rows.merged:  # pyright: ignore
        return base, None  # pyright: ignore[reportReturnType]
    (name,) = rows.active_adapters  # pyright: ignore
    weight, trained = base.weight, rows.trainable_tokens_delta[name]  # pyright: ignore
    ids = torch.tensor(rows.token_indices[name], device=weight.device)  # pyright: ignore
    wide = torch.promote_types(weight.dtype, torch.float32)
    down = trained.to(wide) - weight.detach()[ids].to(wide)
    up = torch.zeros(len(weight), len(ids), dtype=wide, device=weight.device)
    up[ids, torch.arange(len(ids), device=weight.device)] = 1.0
    return base, (down, up, 1.0)  # pyright: ignore[reportReturnType]


def has_adapted_tied_head(model: nn.Module) -> bool:
    """Whether LoRA sits on a head whose weight is the input embedding's."""
    found = low_rank_of(model.get_output_embeddings())  # pyright: ignore[reportCallIssue]
    return found is not None and found[1] is not None and found[0].weight is model.get_input_embeddings().weight  # pyright: ignore


def untie_adapted_head(model: nn.Module) -> None:
    """Give a tied head with LoRA on it a weight of its own: merging into it would change the embedding as well."""
    if has_adapted_tied_head(model):
        base = model.get_output_embeddings().get_base_layer()  # pyright: ignore
        base.weight = nn.Parameter(base.weight.detach().clone(), requires_grad=False)  # pyright: ignore
        model.config.get_text_config().tie_word_embeddings = False  # pyright: ignore
        model.config.tie_word_embeddings = False  # pyright: ignore
