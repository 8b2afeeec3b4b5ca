"""LoRA: the method that reaches everything: linear layers, experts' tensors, a tied head, rows of added tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from frisket.adapt.base import About, Attached
from frisket.adapt.beside import put_beside
from frisket.adapt.peft import PeftMethod, attach_config, is_transposed, linear_targets
from frisket.adapt.ranks import largest_ranks, own_ranks, refuse_larger, refuse_larger_patterns
from frisket.adapt.rates import LORA, Declared, lora_rate
from frisket.adapt.where import Match, embedding_name, head_name, is_tied_head, short_tensor_names
from frisket.errors import ConfigError, UnsupportedError
from frisket.settings import knob


class Lora(PeftMethod):
    """Low-rank adaptation (Hu et al. 2021, arXiv 2106.09685): W + (alpha / rank) B A.

    `dora` splits off the magnitude (Liu et al. 2024, arXiv 2402.09353); `rslora` scales by alpha / sqrt(rank)
    (Kalajdzievski 2023, arXiv 2312.03732). `b_rate_factor` is LoRA+'s ratio of the rates of B and A (Hayou et al. 2024,
    arXiv 2402.12354, section 4; they advise 16, with A's rate below LoRA's). Differs from common defaults: no dropout.
    """

    rate: ClassVar[Declared] = LORA
    moves_weights: ClassVar[bool] = False
    about: ClassVar[About] = About("two low-rank factors beside each matrix", "arXiv 2106.09685", quantised=True)

    method: Literal["lora"] = "lora"
    rank: int = knob(32, "rank of the two factors", was=("r", "lora_r", "lora_rank"), gt=0)
    alpha: float | None = knob(None, "scale times rank; default: twice the rank", was=("lora_alpha",), gt=0)
    dora: bool = knob(False, "decompose into magnitude and direction", was=("use_dora", "peft_use_dora"))
    rslora: bool = knob(False, "scale by alpha / sqrt(rank)", was=("use_rslora", "peft_use_rslora"))

    b_rate_factor: float = knob(1.0, "LoRA+: rate of B over that of A", was=("loraplus_lr_ratio",), gt=0)
    rank_pattern: dict[str, int] = knob({}, "other ranks: pattern over module paths to rank; the last that fits counts")

    @property
    def declared_rate(self) -> Declared:
        """LoRA's rate for this rank and alpha."""
        return lora_rate(self.rank, self.alpha or 2 * self.rank, rslora=self.rslora)

    def resolve(self, model: nn.Module, seed: int = 0) -> Match:
        """Find what `where` names; a tied head may be among it, because LoRA leaves its weight alone."""
        match = super().resolve(model, seed)
        experts = match.experts(model)
        return replace(match, notes=match.notes + _told_of(model, experts)) if experts else match

    def attach(self, model: nn.Module, rng: torch.Generator, token_ids: Sequence[int] = ()) -> Attached:
        """Freeze the model, put PEFT's layers in, and return what moves.

        Args:
            token_ids: tokens whose rows in the embedding and in the head move themselves (``trainable_token_indices``).

        Raises:
            ConfigError: a rank above the smaller side of its matrix.
            UnsupportedError: DoRA on expert tensors; LoRA on a head whose rows move, or a head with a bias.
        """
        match = self.resolve(model)
        config = self._config(model, match)
        if token_ids:
            self._refuse_rows_twice()
            config.trainable_token_indices = _rows_of(model, match, token_ids)
        match = put_beside(model, config, match, self.also_train)
        attached = attach_config(model, config, match, rng)
        attached.b_rate_factor = self.b_rate_factor
        if token_ids:
            _check_rows(model)
        return attached

    def _other_ranks(self, layers: Sequence[str]) -> dict[str, int]:
        """Rank of each layer that a pattern names, by its path."""
        ranks: dict[str, int] = {}
        for pattern, rank in self.rank_pattern.items():
            found = [name for name in layers if fnmatchcase(name, pattern)]
            if not found or rank < 1:
                why = "must be above 0" if found else f"fits none of the {len(layers)} linear layers of adapt.where"
                raise ConfigError(
                    f"adapt.rank_pattern: {pattern!r}: {rank} {why}.\nPatterns are paths: frisket plan --names"
                )
            ranks |= dict.fromkeys(found, rank)
        return ranks

    def _refuse_larger_ranks(self, largest: Mapping[str, int], layers: Sequence[str]) -> None:
        decided: dict[str, str] = {n: p for p in self.rank_pattern for n in layers if fnmatchcase(n, p)}
        rest = {name: side for name, side in largest.items() if name not in decided}
        refuse_larger(self.rank, rest, "adapt.rank", own_ranks(self.rank, rest, layers) if not decided else "")
        by_pattern = {
            pattern: {name: side for name, side in largest.items() if decided.get(name) == pattern}
            for pattern in self.rank_pattern
        }
        refuse_larger_patterns(self.rank_pattern, by_pattern)

    def _refuse_rows_twice(self) -> None:
        tables = [word for word in self.also_train if word != "norms"]
        if tables:
            raise UnsupportedError(
                f"adapt.also_train moves all rows of {' and '.join(tables)}, and model.add_tokens those of its tokens: "
                "PEFT cannot do both in one module.\n"
                "Leave one of the two out, or use adapt.method=full adapt.where=embeddings-and-head."
            )

    def _config(self, model: nn.Module, match: Match) -> Any:
        from peft import LoraConfig

        experts = match.experts(model)
        if experts and self.dora:
            raise UnsupportedError(
                f"adapt.dora: PEFT has no DoRA for expert tensors, and adapt.where reaches {len(experts)} of them.\n"
                "Use adapt.dora=false, or adapt.where=all-linear without the experts."
            )
        only_experts = bool(experts) and not match.linears(model)
        ranks = self._other_ranks(match.linears(model))
        self._refuse_larger_ranks(largest_ranks(model, match.linears(model), experts), match.linears(model))
        return LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha or 2 * self.rank,  # pyright: ignore[reportArgumentType]
            rank_pattern=ranks,
            alpha_pattern={} if self.alpha else {name: 2 * rank for name, rank in ranks.items()},
            use_dora=self.dora,
            use_rslora=self.rslora,  # pyright: ignore[reportArgumentType]
            lora_dropout=0.0,
            fan_in_fan_out=not only_experts and is_transposed(model, match),
            target_modules=[] if only_experts else linear_targets(model, match, moves_weights=False),
            target_parameters=short_tensor_names(model, experts) if experts else None,
            task_type="CAUSAL_LM",
        )


def _told_of(model: nn.Module, experts: Sequence[str]) -> tuple[str, ...]:
    """What LoRA on expert tensors costs: PEFT adds the change to a copy, which autograd keeps until the backward."""
    sizes = [model.get_parameter(name).numel() for name in experts]
    return (
        f"{len(experts)} expert tensors: rank r for each expert; every forward makes a changed copy of {sum(sizes):,} "
        f"parameters and keeps it for the backward (with train.recompute=all one layer's, of {max(sizes):,} each)",
    )


def _rows_of(model: nn.Module, match: Match, token_ids: Sequence[int]) -> dict[str, list[int]]:
    """Module names and token ids, as PEFT wants them; of a tied pair the embedding alone: the head follows."""
    head, embedding = head_name(model), embedding_name(model)
    if head in match.linears(model):
        raise UnsupportedError(
            "adapt.where reaches the output head, where model.add_tokens moves rows: PEFT cannot do both in one "
            "module.\nUse adapt.where=all-linear, or leave model.add_tokens out."
        )
    if head is None or is_tied_head(model, [head]):
        return {embedding: list(token_ids)}
    if model.get_submodule(head).bias is not None:
        raise UnsupportedError(
            "model.add_tokens: the output head has a bias, which PEFT's trained rows would leave out.\n"
            "Use adapt.method=full adapt.where='[embeddings, head]'."
        )
    return {embedding: list(token_ids), head: list(token_ids)}


def _check_rows(model: nn.Module) -> None:
    """PEFT decides by the configuration whether head and embedding are tied; the weights decide what is right."""
    from peft.utils.other import TrainableTokensWrapper

    head = model.get_output_embeddings()  # pyright: ignore[reportCallIssue]
    if head is not None and not isinstance(head, TrainableTokensWrapper):
        raise UnsupportedError(
            "model.add_tokens: the head shares the embedding's weight, but PEFT found no tie in the model's "
            "configuration, so the new tokens' rows in the head would stay as they are.\n"
            "Use adapt.method=full adapt.where=embeddings."
        )
