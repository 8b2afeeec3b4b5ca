"""Whether vLLM can serve an adapter as it is, or needs a merged model.

An adapter says of itself what it is: PEFT's in ``adapter_config.json``, frisket's own in ``frisket_adapter.json``.

Source: vLLM 0.26 (`docs.vllm.ai/en/v0.26.0/api/vllm/config/lora`, `vllm/lora/peft_helper.py`, `vllm/lora/utils.py`).
What its loader does not read is refused there by name (DoRA, `modules_to_save`, a trained bias, rows of added tokens:
vLLM issue 36501) or applied wrongly (ranks and scales of single modules are not read; LoRA on fused expert tensors is
transposed, vLLM pull request 52198). vLLM itself was not run: it needs a GPU.
"""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from frisket.adapt.base import MethodSettings
from frisket.adapt.full import Full
from frisket.adapt.peft import PEFT_CONFIG, SOFT_PROMPTS, Peft, PeftMethod
from frisket.adapt.sparse import HEADER

VLLM = "0.26"
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what --max-lora-rank may be
DEFAULT_RANK = 16
PEFT_RANK = 8  # of a LoraConfig that names none
_VARIANTS = ("use_qalora", "use_bdlora", "kasa_config")  # of PEFT, which vLLM's loader does not read
HEAD_VOCABULARY = 258_048  # largest vocabulary for LoRA on the output head


@dataclass(frozen=True)
class Serving:
    """What vLLM makes of a run.

    Attributes:
        is_full: the run made a whole model, so there is no adapter to ask about.
        max_lora_rank: what ``--max-lora-rank`` must be, at least; None where the adapter cannot be served.
        reasons: why the adapter needs a merge; empty where it does not.
        merges: whether it can be merged at all.
        notes: what to know although it is served.
    """

    is_full: bool = False
    max_lora_rank: int | None = None
    reasons: tuple[str, ...] = ()
    merges: bool = True
    notes: tuple[str, ...] = ()

    @property
    def needs_merge(self) -> bool:
        """Whether the adapter itself cannot be served."""
        return bool(self.reasons)

    def line(self, base: str, out: str | Path = "OUT") -> str:
        """One line for a person: the verdict and the command."""
        told = f"; {'; '.join(self.notes)}" if self.notes else ""
        if self.is_full:
            return f"vLLM {VLLM} serves the model as it is: vllm serve {shlex.quote(f'{out}/model')}{told}"
        if not self.merges:
            return f"vLLM {VLLM} cannot serve it ({'; '.join(self.reasons)}), and it cannot be merged: frisket generate"
        if self.needs_merge:
            return (
                f"vLLM {VLLM} needs a merge ({'; '.join(self.reasons)}): "
                f"frisket export {shlex.quote(str(out))} --to merged"
            )
        rank = f" --max-lora-rank {self.max_lora_rank}" if self.max_lora_rank != DEFAULT_RANK else ""
        command = (
            f"vllm serve {shlex.quote(base)} --enable-lora{rank} --lora-modules tuned={shlex.quote(f'{out}/adapter')}"
        )
        return f"vLLM {VLLM} serves the adapter as it is: {command}{told}"

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for ``--json``."""
        return {
            "vllm": VLLM,
            "as_it_is": not self.needs_merge,
            "merges": self.merges,
            "max_lora_rank": self.max_lora_rank,
            "reasons": list(self.reasons),
            "notes": list(self.notes),
        }


def serving_of(config: Mapping[str, Any] | None, load: str = "none") -> Serving:
    """The verdict on an adapter.

    Args:
        config: what the adapter says of itself; None for a run that made a whole model.
        load: how the base was quantised in training (``model.load``).
    """
    if config is None:
        return Serving(is_full=True)
    kind = config.get("peft_type") or config["method"]
    if kind != "LORA":
        merges = config.get("merges", kind not in SOFT_PROMPTS)
        return Serving(reasons=(f"it serves LoRA only, not {kind}",), merges=merges)
    rank = int(config["r"])
    reasons = [reason for holds, reason in _refused(config, rank) if holds]
    notes = [] if load == "none" else [f"trained on a {load} base: only a merge is exactly what was trained"]
    targets = config.get("target_modules") or ()
    if "lm_head" in ([targets] if isinstance(targets, str) else targets):
        notes.append(
            f"LoRA on the head is served for models whose class in vLLM allows it, up to {HEAD_VOCABULARY:,} tokens"
        )
    fitting = next((allowed for allowed in LORA_RANKS if allowed >= max(rank, DEFAULT_RANK)), None)
    return Serving(max_lora_rank=None if reasons else fitting, reasons=tuple(reasons), notes=tuple(notes))


def serving_line(out: Path, base: str, load: str, named: Path | None = None) -> str:
    """One line on a finished run; ``load`` as in ``serving_of``, ``named`` the folder that commands name instead."""
    adapter = out / "adapter"
    return serving_of(config_of(adapter) if adapter.exists() else None, load).line(base, named or out)


def config_of(adapter: Path) -> dict[str, Any]:
    """What a saved adapter says of itself."""
    name = PEFT_CONFIG if is_of_peft(adapter) else HEADER
    return json.loads((adapter / name).read_text(encoding="utf-8"))


def is_of_peft(adapter: Path) -> bool:
    """Whether PEFT reads an adapter's folder."""
    return (adapter / PEFT_CONFIG).exists()


def _refused(config: Mapping[str, Any], rank: int) -> list[tuple[bool, str]]:
    """What vLLM does not serve: (whether it is there, in words)."""
    return [
        (bool(config.get("use_dora")), "no DoRA"),
        (rank > LORA_RANKS[-1], f"rank {rank} is above {LORA_RANKS[-1]}"),
        (bool(config.get("modules_to_save")), "no whole modules beside the adapter (modules_to_save)"),
        (bool(config.get("trainable_token_indices")), "no rows of added tokens"),
        (bool(config.get("target_parameters")), "LoRA on fused expert tensors is read transposed"),
        (config.get("bias", "none") != "none" or bool(config.get("lora_bias")), "no trained bias"),
        (any(config.get(name) for name in _VARIANTS), "no variant of LoRA"),
        (bool(config.get("rank_pattern") or config.get("alpha_pattern")), "one rank and scale for all modules"),
    ]


def expected_config(
    adapt: MethodSettings, attached: nn.Module | None, linears: Sequence[str] = ()
) -> dict[str, Any] | None:
    """What the adapter of a run will say of itself; None where it makes a whole model.

    Args:
        attached: a model with the method on it; None where that needs weights, as with PEFT's further types.
        linears: the layers that the method would be put on, where ``attached`` is None.
    """
    if isinstance(adapt, Full):
        return None
    if not isinstance(adapt, PeftMethod):
        return {"method": adapt.label, "merges": adapt.about.merges}
    if attached is not None:
        configs: Any = attached.peft_config
        config = configs["default"].to_dict()
        return config | {"peft_type": config["peft_type"].value}
    options = adapt.options if isinstance(adapt, Peft) else {}
    return {"r": PEFT_RANK, "target_modules": list(linears), **options, "peft_type": adapt.label}
