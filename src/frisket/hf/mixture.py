"""Mixtures of experts: how many experts a model has, and what is said of the losses of their router."""

from typing import Any

_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


def expert_count(config: Any) -> int:
    """Experts of a layer that has them, by the model's configuration; 0 where no token is routed."""
    text = config.get_text_config()
    return max(getattr(text, name, None) or 0 for name in _COUNTS)


def router_losses(config: Any) -> str | None:
    """The line of the screen that says a mixture's router losses are off; None where there is no mixture.

    frisket computes the backbone and the loss of the text. The auxiliary losses of a router (load balance, as in Switch
    Transformers, arXiv 2101.03961, equation 4) are means over all tokens of a batch, so they would depend on how
    samples are laid into rows. transformers adds them only where ``output_router_logits`` is set.
    """
    experts = expert_count(config)
    if experts < 2:
        return None
    text = config.get_text_config()
    if not getattr(text, "output_router_logits", False):
        return f"router     losses off: {experts} experts and their router learn from the text alone"
    coefficient = getattr(text, "router_aux_loss_coef", None)
    asked = "output_router_logits" + (f", router_aux_loss_coef {coefficient:g}" if coefficient else "")
    return (
        f"router     losses off, though the model's configuration asks for them ({asked}): {experts} experts and their "
        "router learn from the text alone"
    )
