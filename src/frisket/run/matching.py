"""What `adapt.where` matches: the report of `frisket plan --names`, and what a policy chose, kept in the run folder."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from frisket.adapt import policies
from frisket.adapt.base import Attached
from frisket.adapt.kappa import condition_numbers
from frisket.adapt.where import Match, Where
from frisket.errors import counted
from frisket.hf import load
from frisket.hf.forward import Model
from frisket.recipe import Recipe
from frisket.run.folder import write_json
from frisket.run.locating import planned
from frisket.watch import Watcher

WHERE_FILE = "where.json"


@dataclass(frozen=True)
class Found:
    """A pattern, what a policy left, or what is matched by nothing.

    Attributes:
        parameters: tensors.
        entries: of them; of row ranges those rows' alone.
        share: of all entries of the model.
    """

    name: str
    parameters: int
    entries: int
    share: float


@dataclass(frozen=True)
class MatchReport:
    """What `where` matched.

    Attributes:
        patterns: each by itself, within the layers asked for.
        policies: what each policy left.
        whole: all that is matched in the end.
        left_out: what is not, by the last segment of the module's path.
        kappa: condition number of each ranked matrix, ascending, and whether it was chosen; empty without that policy.
        notes: of the match.
    """

    patterns: tuple[Found, ...]
    policies: tuple[Found, ...]
    whole: Found
    left_out: tuple[Found, ...]
    kappa: tuple[tuple[str, float, bool], ...]
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for ``--json``."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The same for a terminal."""
        told = [_line("pattern", each) for each in self.patterns]
        told += [_line("policy", each) for each in self.policies]
        told += [f"note       {note}" for note in self.notes]
        if self.kappa:
            told.append(f"kappa      {'condition':>15}  matrix (* chosen)")
            told += [
                f"           {kappa:>15,.1f}  {name}{' *' if chosen else ''}" for name, kappa, chosen in self.kappa
            ]
        told.append(_line("where", self.whole))
        return told + [_line("left out", each) for each in self.left_out]


def match_report(recipe: Recipe, *, watcher: Watcher) -> MatchReport:
    """Match `adapt.where`; the weights are loaded only where a policy needs them.

    Raises:
        ConfigError: a pattern or a policy matches nothing.
        UnsupportedError: the method does not take a policy.
    """
    recipe = planned(recipe, watcher)
    method = recipe.adapt
    model = _model(recipe)
    match = method.resolve(model, recipe.train.seed)
    total = sum(parameter.numel() for parameter in model.parameters())
    items = [method.where] if isinstance(method.where, str) else method.where
    layers = [{"layers": item["layers"]} for item in items if not isinstance(item, str) and "layers" in item]
    patterns = []
    for pattern, count in match.by_pattern.items():
        alone = policies.resolve(model, [pattern, *layers], moves_weights=method.moves_weights).entries(model)
        patterns.append(Found(pattern, count, alone, alone / total))
    entries = match.entries(model)
    left = [Found(name, count, entries, entries / total) for name, count in match.by_policy.items()]
    whole = Found("in all", len(match.parameters(model)), entries, entries / total)
    return MatchReport(
        tuple(patterns), tuple(left), whole, tuple(_left_out(model, match, total)), _kappa(model, method.where, match),
        match.notes,
    )  # fmt: skip


def module_names(recipe: Recipe, *, watcher: Watcher) -> dict[str, int]:
    """Dotted path of every module with parameters, and how many it has: what ``adapt.where`` matches."""
    with torch.device("meta"):
        model = load.empty_model(load.load_config(recipe.model))
    return {
        name: sum(p.numel() for p in module.parameters())
        for name, module in model.named_modules()
        if name and any(True for _ in module.parameters())
    }


def write_choice(out: Path, attached: Attached) -> None:
    """``where.json``: which parameters and rows of the base a policy chose, where one did."""
    match = attached.match
    if match.by_policy or match.rows:
        told = {"by_policy": dict(match.by_policy), "modules": list(match.modules), "parameters": list(match.tensors)}
        rows = {name: [list(span) for span in spans] for name, spans in match.rows.items()}
        write_json(out / WHERE_FILE, told | {"rows": rows, "notes": list(match.notes)})


def _model(recipe: Recipe) -> Model:
    if policies.needs_weights(recipe.adapt.where):
        return load.load_model(recipe.model, load.stored_dtype(recipe.model, None), torch.device("cpu"))
    with torch.device("meta"):
        return load.empty_model(load.load_config(recipe.model))


def _left_out(model: nn.Module, match: Match, total: int) -> list[Found]:
    matched = set(match.parameters(model))
    groups: dict[str, list[int]] = {}
    for name, parameter in model.named_parameters():
        if name not in matched:
            groups.setdefault(name.rpartition(".")[0].rpartition(".")[2], []).append(parameter.numel())
        elif name in match.rows:
            moving = sum(end - first for first, end in match.rows[name]) * parameter[0].numel()
            groups.setdefault(f"other rows of {name}", []).append(parameter.numel() - moving)
    return [Found(name, len(sizes), sum(sizes), sum(sizes) / total) for name, sizes in groups.items()]


def _kappa(model: nn.Module, where: Where, match: Match) -> tuple[tuple[str, float, bool], ...]:
    if not policies.needs_weights(where):
        return ()
    measured = condition_numbers(model)
    chosen = {*match.modules, *match.tensors}
    every = measured.modules | measured.tensors
    return tuple((name, every[name], name in chosen) for name in sorted(every, key=lambda name: every[name]))


def _line(kind: str, found: Found) -> str:
    percent = 100 * found.share
    share = f"{percent:.2g}%" if percent < 0.1 else f"{percent:.1f}%" if percent < 99.95 else f"{percent:.0f}%"
    return f"{kind:<10} {found.entries:>15,}  {share:>7}  {found.name} ({counted(found.parameters, 'tensor')})"
