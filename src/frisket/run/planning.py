"""`frisket plan`: what training would do, before paying for it."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from frisket import __version__
from frisket.adapt.methods import attach
from frisket.adapt.policies import needs_weights
from frisket.adapt.where import Match
from frisket.errors import counted
from frisket.hf import load, quantised
from frisket.recipe import Recipe
from frisket.report.ledger import ledger_identities, named_ledgers
from frisket.report.mask_view import mask_fragment
from frisket.report.plan_page import ConstantText, plan_page
from frisket.report.render import quoted
from frisket.run import best, locating, mask_free, mask_tuning, measuring, notices
from frisket.run.advising import advice_for, boilerplate_of
from frisket.run.memory import Forecast, forecast
from frisket.run.overlap import overlap_of
from frisket.run.prepare import Prepared, prepare
from frisket.run.rates import Settled
from frisket.run.serving import Serving, expected_config, serving_of
from frisket.run.sharing import Sharing, bound_of, sharing_of
from frisket.run.training import every_steps
from frisket.run.viewing import VIEW_SAMPLES, VIEW_TOKENS, other_policies, sample_rows
from frisket.run.which import adapt_told, untouched, which_weights
from frisket.supervise.advice import Advice
from frisket.train.step import Laying, lay_out
from frisket.train.tracking import require
from frisket.types import Ledger, total
from frisket.watch import Watcher

_SHOWN = 160  # characters of constant text on the terminal; the page shows all


@dataclass(frozen=True)
class Plan:
    """What a run would do.

    Attributes:
        dropped: what was left out: sample, place, reason, tokens.
        notices: what a person should not miss, as warned of.
        ledgers: one a source, over the planned steps.
        laying: arrangement, backend, rows.
        why_so: why this arrangement.
        sharing: what one epoch's samples share.
        bound: flat over distinct tokens, were all of them in one forest.
        rows: rows of the first step.
        fill: share of the first step's row tokens that are not padding.
        match: what `adapt.where` found.
        adapt: which weights move, see ``which.which_weights``.
        moving: parameters that would move, None where the method cannot be attached without weights.
        serving: what vLLM would make of it.
        advice: what the papers say of each source, under its path.
        boilerplate: constant text that policy `boilerplate` leaves out.
        overlap: what each evaluation set shares with the training data.
        settled: what `auto` became.
        forecast: memory and disk.
        page: the plan as a page, where one was written.
    """

    recipe: Recipe
    steps: int
    samples: int
    held_out: int
    dropped: tuple[dict[str, Any], ...]
    notices: tuple[str, ...]
    longest: int
    ledgers: tuple[Ledger, ...]
    laying: Laying
    why_so: str
    sharing: Sharing
    bound: float
    rows: int
    fill: float
    match: Match
    adapt: dict[str, Any]
    moving: int | None
    parameters: int
    serving: Serving
    advice: tuple[tuple[str, Advice], ...]
    boilerplate: tuple[ConstantText, ...]
    overlap: dict[str, dict[str, Any]]
    settled: Settled
    forecast: Forecast
    page: Path | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for ``--json``."""
        whole = total(self.ledgers)
        return {
            "steps": self.steps,
            "samples": self.samples,
            "held_out": self.held_out,
            "dropped": list(self.dropped),
            "notices": list(self.notices),
            "longest": self.longest,
            "tokens": whole.as_dict() | {"sources": [ledger.as_dict() for ledger in self.ledgers]},
            "attend": self._attend(),
            "advice": [{"source": path, **advice._asdict()} for path, advice in self.advice],
            "boilerplate": [asdict(text) for text in self.boilerplate],
            "overlap": self.overlap,
            "page": None if self.page is None else str(self.page),
            "model": {"path": self.recipe.model.path, "parameters": self.parameters, "moving": self.moving},
            "adapt": self.adapt,
            **self.forecast.as_dict(),
            "serving": self.serving.as_dict(),
            "train": {
                **self.settled.as_dict(),
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

    def facts(self) -> list[tuple[str, str]]:
        """What a person wants to know first: (name, text)."""
        whole = total(self.ledgers)
        return [
            ("samples", self._samples()),
            ("steps", f"{self.steps:,} of about {self.settled.step.tokens:,} tokens, {whole.flat:,} in all"),
            ("step", f"{self.settled.step.tokens:,} tokens: {self.settled.step.why}"),
            ("attend", f"{self.laying.arrangement}: {self.why_so} · backend {self.laying.backend}"),
            ("shared", self._shared()),
            ("rows", f"{self.rows} in the first step, {100 * self.fill:.1f} % full"),
            ("teach", _taught(self.recipe)),
            ("model", f"{self.recipe.model.path}: {self.parameters:,} parameters"),
            ("adapt", adapt_told(self.recipe.adapt.method, self.moving, self.parameters, self.match)),
            *((("stages", _stages(self.recipe)),) if self.recipe.stages else ()),
            *self.forecast.facts(),
            ("rate", f"{self.settled.rate.value:g}: {self.settled.rate.why}"),
            ("serve", self.serving.line(load.resolve_path(self.recipe.model.path))),
        ]

    def lines(self) -> list[str]:
        """The same for a terminal, with the ledger of each source."""
        ledgers = self.named_ledgers()
        told = [f"{name:<10} {text}" for name, text in self.facts()]
        for text, holds in ledger_identities(ledgers):
            told.append(f"ledger     {text}" + ("" if holds else "  DOES NOT HOLD"))
        for name, ledger in ledgers.items():
            counts = ", ".join(f"{kind.replace('_', ' ')} {count:,}" for kind, count in ledger.taught.items())
            told.append(f"  taught   {name}: {counts}")
        told += [
            f"constant   {text.source}: {text.share:.0%} of {text.role} messages {text.side} with "
            f"{quoted(text.text, _SHOWN)}"
            for text in self.boilerplate
        ]
        told += [f"constant   {path}: none was found, so nothing more is left out" for path in self._without_constant()]
        for name, found in self.overlap.items():
            told.append(f"overlap    {name}: {found['sentence']}")
            told += [f"           {found['action']}"] if found["action"] else []
        for path, advice in self.advice:
            told += [f"advice     {path}: {advice.text}", f"           {advice.source}; try {advice.fix}"]
        return told + ([] if self.page is None else [f"written    {self.page}: all this and the masks, for a browser"])

    def _without_constant(self) -> list[str]:
        """Sources whose policy leaves constant text out, and which have none."""
        found = {text.source for text in self.boilerplate}
        policies = {s.path: (s.supervise or self.recipe.supervise).policy for s in self.recipe.data}
        return [path for path, policy in policies.items() if policy == "boilerplate" and path not in found]

    def named_ledgers(self) -> dict[str, Ledger]:
        """The ledger of each source, under a name of its own."""
        return named_ledgers(self.ledgers, [source.path for source in self.recipe.data])

    def _samples(self) -> str:
        left_out = f", {len(self.dropped):,} dropped" if self.dropped else ""
        return f"{self.samples:,} train, {self.held_out:,} held out{left_out}, longest {counted(self.longest, 'token')}"

    def _shared(self) -> str:
        sharing = self.sharing
        told = f"{sharing.flat_tokens:,} tokens an epoch, {sharing.forest_tokens:,} in a forest"
        if self.laying.arrangement != "forest":
            return told
        ratio = sharing.flat_tokens / sharing.forest_tokens
        return f"{told}: at most {ratio:.2f} times faster (all in one forest: {self.bound:.2f})"


def make_plan(recipe: Recipe, *, watcher: Watcher, page: Path | None = None) -> Plan:
    """Read and tokenise the data, lay out the first step, count what would move.

    Args:
        page: HTML file to write: the plan, the ledger and the masks of the first steps; None for none.

    Raises:
        FrisketError: whatever training would refuse before its first step, but for checks that need the weights.
    """
    mask_free.check(recipe)
    mask_tuning.check(recipe)
    recipe = locating.planned(recipe, watcher)
    recipe.adapt.check()
    if needs_weights(recipe.adapt.where):
        watcher.say("kappa      which matrices, plan --names says from their weights; counted here: as many, largest")
    require(recipe.train.track)
    prepared = prepare(recipe, watcher)
    quantised.refuse_here(recipe.model.load, prepared.config, load.device_of(recipe.model.device))
    best.rule_of(prepared.recipe, measuring.names_of(prepared))
    mask_tuning.tell(prepared, watcher)
    notices.tell(prepared, watcher)
    recipe = prepared.recipe
    base = untouched(prepared)
    moving, match, adapter = _attached(recipe, prepared)
    first = lay_out(
        [prepared.weighted(int(i)) for i in prepared.order.epoch(0)[0].samples],
        prepared.laying,
        recipe.supervise.normaliser,
    )
    epoch = prepared.order.epoch(0)
    plan = Plan(
        recipe,
        prepared.total_steps,
        len(prepared.order.families.flat),
        len(prepared.dataset.held_out),
        tuple(prepared.dataset.dropped),
        tuple(notices.notices(prepared)),
        int(prepared.dataset.lengths.max()),
        prepared.ledger_of_steps(prepared.total_steps),
        prepared.laying,
        prepared.why_so,
        sharing_of(prepared.dataset, epoch, recipe.attend.row_tokens),
        bound_of(prepared.dataset, epoch),
        sum(len(m.rows.input_ids) for m in first.micro_batches),
        sum(m.rows.real_tokens for m in first.micro_batches) / first.computed_tokens,
        match,
        which_weights(recipe, match, base),
        moving,
        sum(p.numel() for p in base.parameters()),
        serving_of(adapter, recipe.model.load),
        tuple(advice_for(prepared)),
        tuple(ConstantText(**text) for text in boilerplate_of(prepared)),
        overlap_of(prepared, None, watcher),
        prepared.settled,
        forecast(prepared, every_steps(recipe.train.save_every, prepared.total_steps)),
        page,
    )
    if page is not None:
        _write_page(plan, prepared, page)
    return plan


def _write_page(plan: Plan, prepared: Prepared, page: Path) -> None:
    rows, note = sample_rows(prepared, VIEW_SAMPLES, VIEW_TOKENS, other_policies(plan.recipe))
    sources = [source.path for source in plan.recipe.data]
    text = plan_page(
        plan.recipe.name or "plan",
        [*plan.facts(), *(("warning", line) for line in plan.notices)],
        plan.named_ledgers(),
        version=__version__,
        advice=[(f"{path}: {advice.text}", f"{advice.source}; {advice.fix}") for path, advice in plan.advice],
        overlap=plan.overlap,
        boilerplate=plan.boilerplate,
        memory=plan.forecast.details(),
        adapt=plan.adapt,
        train=plan.settled.as_dict(),
        fragment=mask_fragment(rows, truncated_note=note, sources=sources),
    )
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(text, encoding="utf-8")


def _stages(recipe: Recipe) -> str:
    changed = sorted({key for stage in recipe.stages for key in stage if key != "continue"})
    return (
        f"{len(recipe.stages)}, which change {', '.join(changed) or 'nothing'}; planned here is the recipe without them"
    )


def _taught(recipe: Recipe) -> str:
    """The policy and the loss in words."""
    teach = recipe.supervise
    own = sum(source.supervise is not None for source in recipe.data)
    loss = teach.loss + (f" smoothed by {teach.label_smoothing:g}" if teach.label_smoothing else "")
    weights = "" if teach.prompt_weight == 0 else f", prompts with weight {teach.prompt_weight:g}"
    others = "" if not own else f" ({own} of {len(recipe.data)} sources have rules of their own)"
    return f"policy {teach.policy}{weights}{others}; {loss}, divided by {teach.normaliser}"


def _attached(recipe: Recipe, prepared: Prepared) -> tuple[int | None, Match, dict[str, Any] | None]:
    """Moving parameters and what was matched, without loading a weight, and what the adapter will say of itself."""
    model, seed = untouched(prepared), recipe.train.seed
    try:
        attached = attach(recipe.adapt, model, torch.Generator().manual_seed(seed), prepared.added.ids)
    except (NotImplementedError, RuntimeError):  # some of PEFT's methods compute with the weights when they start
        base = untouched(prepared)
        match = recipe.adapt.resolve(base, seed)
        return None, match, expected_config(recipe.adapt, None, match.linears(base))
    moving = sum(p.numel() for p in attached.parameters().values())
    return moving, attached.match, expected_config(recipe.adapt, model)
