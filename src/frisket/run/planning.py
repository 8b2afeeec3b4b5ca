"""`frisket plan`: what training would do, before paying for it."""

from dataclasses import dataclass, replace
from typing import Any

import torch

from frisket.adapt.peft import PACKS
from frisket.hf import load
from frisket.recipe import Recipe
from frisket.run import mask_free
from frisket.run.prepare import Prepared, prepare
from frisket.run.sharing import Sharing, bound_of, sharing_of
from frisket.run.training import every_steps, peak_rate
from frisket.train.step import Laying, lay_out
from frisket.types import Ledger, total
from frisket.watch import Watcher


@dataclass(frozen=True)
class Plan:
    """What a run would do.

    Attributes:
        ledgers: one a source, over the planned steps.
        laying: arrangement, backend, rows.
        why_so: why this arrangement.
        sharing: what one epoch's samples share.
        bound: flat over distinct tokens, were all of them in one forest.
        rows: rows of the first step.
        fill: share of the first step's row tokens that are not padding.
        moving: parameters that would move, None where the method cannot be attached without weights.
    """

    recipe: Recipe
    steps: int
    samples: int
    held_out: int
    longest: int
    ledgers: tuple[Ledger, ...]
    laying: Laying
    why_so: str
    sharing: Sharing
    bound: float
    rows: int
    fill: float
    moving: int | None
    parameters: int

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for ``--json``."""
        whole = total(self.ledgers)
        return {
            "steps": self.steps,
            "samples": self.samples,
            "held_out": self.held_out,
            "longest": self.longest,
            "tokens": whole.as_dict() | {"sources": [ledger.as_dict() for ledger in self.ledgers]},
            "attend": self._attend(),
            "model": {"path": self.recipe.model.path, "parameters": self.parameters, "moving": self.moving},
            "train": {
                "learning_rate": peak_rate(self.recipe),
                "save_steps": every_steps(self.recipe.train.save_every, self.steps),
            },
        }

    def _attend(self) -> dict[str, Any]:
        """All counts are those of one epoch's steps, but for the rows and their fill, which are the first step's."""
        sharing = self.sharing
        return {
            "arrangement": self.laying.arrangement,
            "why": self.why_so,
            "backend": self.laying.backend,
            "row_tokens": self.laying.row_tokens,
            "rows_of_first_step": self.rows,
            "fill": round(self.fill, 4),
            "flat_tokens": sharing.flat_tokens,
            "forest_tokens": sharing.forest_tokens,
            "forest_ratio": round(sharing.flat_tokens / sharing.forest_tokens, 4),
            "bound": round(self.bound, 4),
            "row_bound": round(sharing.row_bound, 4),
        }

    def lines(self) -> list[str]:
        """The same for a person."""
        whole = total(self.ledgers)
        taught = sum(whole.taught.values())
        kept = taught + sum(whole.untaught.values())
        moving = "" if self.moving is None else f", {self.moving:,} move ({100 * self.moving / self.parameters:.2f} %)"
        return [
            f"samples    {self.samples:,} train, {self.held_out:,} held out, longest {self.longest:,} tokens",
            f"tokens     {whole.read:,} read = {whole.dropped:,} dropped + {whole.truncated:,} truncated + "
            f"{whole.held_out:,} held out "
            f"+ {whole.other_objective:,} other objective + {taught:,} taught + {kept - taught:,} untaught",
            *(f"  taught   {name}: {count:,}" for name, count in whole.taught.items()),
            f"steps      {self.steps:,} of about {self.recipe.train.step_tokens:,} tokens, {whole.flat:,} in all",
            f"attend     {self.laying.arrangement}: {self.why_so} · backend {self.laying.backend}",
            self._shared_line(),
            f"rows       {self.rows} in the first step, {100 * self.fill:.1f} % full",
            f"model      {self.recipe.model.path}: {self.parameters:,} parameters{moving}",
            f"rate       {peak_rate(self.recipe):g} ({self._rate_source()})",
        ]

    def _shared_line(self) -> str:
        sharing = self.sharing
        told = f"{sharing.flat_tokens:,} tokens an epoch, {sharing.forest_tokens:,} in a forest"
        if self.laying.arrangement != "forest":
            return f"  shared   {told}"
        ratio = sharing.flat_tokens / sharing.forest_tokens
        return f"  shared   {told}: at most {ratio:.2f} times faster (all in one forest: {self.bound:.2f})"

    def _rate_source(self) -> str:
        return self.recipe.adapt.rate_source if self.recipe.train.learning_rate == "auto" else "as the recipe says"


def make_plan(recipe: Recipe, *, watcher: Watcher) -> Plan:
    """Read and tokenise the data, lay out the first step, count what would move.

    Raises:
        FrisketError: whatever training would refuse before its first step, but for checks that need the weights.
    """
    mask_free.check(recipe)
    prepared = prepare(recipe, watcher)
    moving, parameters, packs = _parameters(recipe, prepared)
    if not packs and prepared.laying.arrangement not in ("alone", "padded"):
        why = f"{recipe.adapt.method} is not shown to be exact in packed rows"
        prepared = replace(prepared, laying=replace(prepared.laying, arrangement="alone"), why_so=why)
    first = lay_out(
        [prepared.weighted(int(i)) for i in prepared.order.epoch(0)[0].samples],
        prepared.laying,
        recipe.supervise.normaliser,
    )
    lengths = prepared.dataset.lengths
    epoch = prepared.order.epoch(0)
    return Plan(
        recipe,
        prepared.total_steps,
        sum(len(family) for family in prepared.order.families),
        len(prepared.dataset.held_out),
        int(lengths.max()),
        prepared.ledger_of_steps(prepared.total_steps),
        prepared.laying,
        prepared.why_so,
        sharing_of(prepared.dataset, epoch, recipe.attend.row_tokens),
        bound_of(prepared.dataset, epoch),
        sum(len(m.rows.input_ids) for m in first.micro_batches),
        sum(m.rows.real_tokens for m in first.micro_batches) / first.computed_tokens,
        moving,
        parameters,
    )


def module_names(recipe: Recipe, *, watcher: Watcher) -> dict[str, int]:
    """Dotted path of every module with parameters, and how many it has: what ``adapt.where`` matches."""
    with torch.device("meta"):
        model = load.empty_model(load.load_config(recipe.model))
    return {
        name: sum(p.numel() for p in module.parameters())
        for name, module in model.named_modules()
        if name and any(True for _ in module.parameters())
    }


def _parameters(recipe: Recipe, prepared: Prepared) -> tuple[int | None, int, bool]:
    """Moving and all parameters, counted without loading a weight; and whether the method takes packed rows."""
    with torch.device("meta"):
        model = load.empty_model(prepared.config)
    parameters = sum(p.numel() for p in model.parameters())
    try:
        attached = recipe.adapt.attach(model, torch.Generator().manual_seed(0))
    except (NotImplementedError, RuntimeError):  # some of PEFT's methods compute with the weights when they start
        return None, parameters, recipe.adapt.method != "peft" or recipe.adapt.peft_type.upper() in PACKS
    return sum(p.numel() for p in attached.parameters().values()), parameters, attached.packs
