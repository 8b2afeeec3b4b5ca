"""The end of a run: save, reload and compare, add up, write the report."""

import json
import os
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from frisket import __version__
from frisket.adapt import methods
from frisket.adapt.full import copy_into
from frisket.attend.pack import pack
from frisket.data.dataset import Dataset
from frisket.errors import CheckError
from frisket.hf import load, quantised
from frisket.hf.heads import logits_of
from frisket.recipe import Recipe, dump
from frisket.report.card import model_card
from frisket.report.mask_view import mask_fragment
from frisket.report.page import report_page
from frisket.run import notices
from frisket.run.adding import write_how_to_load
from frisket.run.folder import SUMMARY, follow_umask, read_lines
from frisket.run.overfit import Verdict
from frisket.run.prepare import Prepared
from frisket.run.rebasing import rebase
from frisket.run.serving import is_of_peft, serving_line
from frisket.run.system_message import shared_system
from frisket.run.viewing import REPORT_SAMPLES, REPORT_TOKENS, other_policies, sample_rows
from frisket.run.which import untouched, which_weights
from frisket.train.checkpoint import State
from frisket.train.checks import Checks
from frisket.train.loop import Totals
from frisket.types import Rows, total

if TYPE_CHECKING:
    from frisket.run.training import Loaded

RELOAD_BAR = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 2**-8, torch.bfloat16: 2**-5}


@dataclass(frozen=True)
class Staged:
    """Where in a staged run a stage stands.

    Attributes:
        recipe: of the whole run.
        earlier: what ``report.moved.stage_row`` says of each finished stage.
        is_last: whether it ends the run.
    """

    recipe: Recipe
    earlier: Sequence[dict]
    is_last: bool


def check_moved(start: Mapping[str, Tensor], masters: Mapping[str, Tensor], steps: int) -> None:
    """Refuse to save what did not move or is not finite.

    Args:
        steps: after which these masters are the result.

    Raises:
        CheckError: every weight is what it was, or one is not finite.
    """
    broken = [name for name, value in masters.items() if not torch.isfinite(value).all()]
    if broken:
        raise CheckError(
            f"{len(broken)} trained tensors are not finite, first {broken[0]}; nothing was saved.\n"
            "Use a lower train.learning_rate."
        )
    if steps and all(torch.equal(start[name], value.to(start[name].dtype)) for name, value in masters.items()):
        raise CheckError(
            f"after {steps} steps every trained weight is what it was at the start; nothing was saved.\n"
            "Use a higher train.learning_rate."
        )


def save_and_verify(
    out: Path, prepared: Prepared, loaded: "Loaded", checks: Checks
) -> tuple[dict[str, str], dict[str, str]]:
    """Write the adapter or the model, load it again, and compare logits on real rows.

    Returns:
        Artifacts (name to path in ``out``) and all checks in words.

    Raises:
        CheckError: what was read back is not what was trained.
    """
    rows = _real_rows(prepared)
    trained = logits_of(loaded.model, rows, prepared.laying.backend)
    is_full = prepared.recipe.adapt.method == "full"
    name = "model" if is_full else "adapter"
    partial, final = out / f"{name}.partial", out / name
    shutil.rmtree(partial, ignore_errors=True)
    scale = max(1.0, float(trained.abs().max()))
    note = ""
    if is_full:
        again = _save_full(prepared, loaded, partial, rows, loaded.base_dtype)
        bar = RELOAD_BAR[loaded.compute] if loaded.base_dtype == loaded.compute else RELOAD_BAR[torch.bfloat16]
        rounded = _largest(again, trained)
        if rounded > bar * scale and loaded.compute != loaded.base_dtype:  # updates below the steps of the base's type
            again, bar = _save_full(prepared, loaded, partial, rows, loaded.compute), RELOAD_BAR[loaded.compute]
            wide, narrow = (str(dtype).removeprefix("torch.") for dtype in (loaded.compute, loaded.base_dtype))
            note = f"; written in {wide}, because rounded to {narrow} a logit would change by {rounded:.2g}"
    else:
        again = _save_adapter(prepared, loaded, partial, rows)
        bar = RELOAD_BAR[loaded.compute]
    difference = _largest(again, trained)
    if not difference <= bar * scale:
        raise CheckError(
            f"{partial} was written, but loaded again it differs by {difference:.2g} in a logit (allowed: "
            f"{bar * scale:.2g}).\nThe last checkpoint is whole: {out / 'checkpoints'}"
        )
    follow_umask(partial)
    shutil.rmtree(final, ignore_errors=True)
    os.replace(partial, final)
    return {name: name}, {**checks.as_dict(), "reload": f"{difference:.2g} of {bar * scale:.2g} allowed{note}"}


def _largest(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


def _save_full(prepared: Prepared, loaded: "Loaded", target: Path, rows: Rows, dtype: torch.dtype) -> Tensor:
    """Write a fully fine-tuned model in one type and return the logits of what was written."""
    recipe = prepared.recipe
    shutil.rmtree(target, ignore_errors=True)
    if recipe.model.path:
        fresh = load.load_model(recipe.model, torch.promote_types(loaded.base_dtype, torch.float32), loaded.device)
        copy_into(fresh, loaded.optimizer.masters)
        load.save_model(fresh, prepared.tokenizer, target, dtype)
        del fresh
    written = recipe.model.model_copy(update={"path": str(target), "tokenizer": None})
    again = load.load_model(written, loaded.compute, loaded.device)
    return logits_of(again, rows, prepared.laying.backend)


def _save_adapter(prepared: Prepared, loaded: "Loaded", target: Path, rows: Rows) -> Tensor:
    """Write the adapter, put it on the bare base as PEFT would, and return the logits of that."""
    loaded.attached.save(target, loaded.optimizer.masters)
    if loaded.base_dtype != loaded.compute and prepared.recipe.model.path:
        rebase(target, prepared.recipe.model)
    methods.saved_tensors(target)
    prepared.tokenizer.save_pretrained(target)
    if prepared.added.ids:
        write_how_to_load(target, "adapter", prepared.added)
    loaded.attached.detach()
    again = methods.load_adapter(loaded.model, target)
    load.cast_parameters(loaded.model, loaded.compute)
    logits = logits_of(loaded.model, rows, prepared.laying.backend)
    again.detach()
    return logits


def summarise(
    recipe: Recipe,
    prepared: Prepared,
    loaded: "Loaded",
    totals: Totals,
    measured: dict,
    checks: dict[str, str],
    artifacts: dict[str, str],
    seconds: dict[str, float],
    verdict: Verdict | None,
    start: State | None,
) -> dict:
    """``summary.json``: what the run was, cost, learned and forgot.

    Args:
        totals: of the whole run, the steps before a resume included; so are the rates and ``seconds.steps``.
        seconds: of this part of the run.
        start: where it was resumed; ``resumed`` then says how many of the steps, and of their seconds, are this part's.
    """
    ledgers = prepared.ledger_of_steps(totals.step)
    moving = sum(p.numel() for p in loaded.optimizer.masters.values())
    parameters = sum(quantised.entries(p) for p in loaded.model.parameters())
    seconds = {name: round(value, 3) for name, value in seconds.items()}
    train_seconds = max(totals.seconds, 1e-9)
    tokens = total(ledgers).as_dict() | {"sources": [ledger.as_dict() for ledger in ledgers]}
    return {
        "frisket": __version__,
        "recipe": recipe.name or "recipe",
        "model": {"path": recipe.model.path, "parameters": parameters, "moving": moving, "method": recipe.adapt.method},
        "adapt": which_weights(recipe, loaded.attached.match, untouched(prepared)),
        "data": [
            {"path": source.path, "format": text, "samples": int((prepared.dataset.source_of == i).sum())}
            for i, (source, text) in enumerate(zip(recipe.data, prepared.dataset.formats, strict=True))
        ],
        "optimizer": {"name": recipe.train.optimizer, "state_bytes": loaded.optimizer.state_bytes()},
        "steps": totals.step,
        "loss": totals.last.loss if totals.last else None,
        "learning": measured.get("learning", {}),
        "forgetting": measured.get("forgetting", {}),
        "tokens": tokens,
        "rates": {
            "real_tokens_per_second": round(totals.tokens["flat"] / train_seconds, 1),
            "computed_tokens_per_second": round(totals.tokens["computed"] / train_seconds, 1),
            "supervised_tokens_per_second": round(totals.tokens["supervised"] / train_seconds, 1),
        },
        "seconds": {**seconds, "steps": round(totals.seconds, 3), "loader": round(totals.loader_seconds, 3)},
        "checks": checks,
        "artifacts": {**artifacts, "report": "report.html", "card": "README.md"},
        "examples": measured.get("examples", []),
        "system": shared_system(prepared),
        "notices": notices.notices(prepared, notices.ALL_OF_A_RUN),
        **({"overfit": verdict.text} if verdict else {}),
        **({"resumed": _since(start, totals)} if start else {}),
    }


def _since(start: State, totals: Totals) -> dict:
    spent = round(totals.seconds - start.seconds, 3)
    return {"step": start.step, "steps": totals.step - start.step, "seconds": spent}


def next_command(base: str, out: Path, *, is_shipped: bool) -> str:
    """What to do with a finished run; of a mask that was not shipped with what it started from.

    Args:
        base: model that the run started from.
    """
    made_by = Path(base).parent
    if is_shipped or (made_by / SUMMARY).is_file():
        return f"frisket generate {shlex.quote(str(out if is_shipped else made_by))} --chat"
    return f"frisket train {shlex.quote(str(out))} --out {shlex.quote(f'{out}-2')} adapt.keep=0.99"


def write_report(out: Path, summary: dict, recipe: Recipe, prepared: Prepared, staged: Staged | None = None) -> None:
    """``report.html`` and the model card; the next command is added to the summary.

    Args:
        staged: where this is a stage; the last one's pages and commands are those of the whole run.
    """
    place, asked = (out.parent, staged.recipe) if staged and staged.is_last else (out, recipe)
    if staged and staged.earlier:
        summary["earlier"] = list(staged.earlier)
    is_shipped = "adapter" in summary["artifacts"] or "model" in summary["artifacts"]
    summary["next"] = next_command(recipe.model.path, place, is_shipped=is_shipped)
    if is_shipped:
        summary["serving"] = serving_line(out, load.resolve_path(recipe.model.path), recipe.model.load, named=place)
    summary["of_peft"] = is_of_peft(out / "adapter")
    environment = json.loads((out / "environment.json").read_text())
    names = ("metrics", "timings", "evaluations", "contamination", "samples")
    records = {name: read_lines(out / f"{name}.jsonl") for name in names}
    written = dump(asked)
    rows, note = sample_rows(prepared, REPORT_SAMPLES, REPORT_TOKENS, other_policies(recipe))
    fragment = mask_fragment(rows, truncated_note=note, sources=[source.path for source in recipe.data])
    page = report_page(
        summary,
        records["metrics"],
        records["timings"],
        fragment,
        written,
        environment,
        evaluations=records["evaluations"],
        contamination=records["contamination"],
        samples=records["samples"],
    )
    (out / "report.html").write_text(page, encoding="utf-8")
    (out / "README.md").write_text(model_card(summary, written, environment), encoding="utf-8")


def write_dropped(out: Path, dropped: list[dict]) -> None:
    """``dropped.jsonl``: every sample that was left out, with the reason."""
    if dropped:
        (out / "dropped.jsonl").write_text(
            "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in dropped), encoding="utf-8"
        )


def _real_rows(prepared: Prepared, tokens: int = 512) -> Rows:
    """A real sample of a manageable length."""
    dataset: Dataset = prepared.dataset
    chosen = min(dataset.train[:200], key=lambda i: abs(int(dataset.lengths[i]) - tokens))
    sequence = dataset[int(chosen)]
    if len(sequence) > 4 * tokens:
        sequence = replace(
            sequence,
            **{
                name: getattr(sequence, name)[:tokens]
                for name in ("input_ids", "roles", "turns", "marks", "data_weights")
            },
        )
    return pack([sequence], "alone", tokens)[0]
