"""The laboratory's harness: arms times seeds into one file, resumable, and judged by what was written down before.

An experiment is a module that ends like this::

    RANK = Experiment(
        name="rank",
        question="Does a higher rank learn more in the same steps?",
        arms={"rank 4": ["adapt.rank=4"], "rank 16": ["adapt.rank=16"]},
        expectations=[Expectation("rank 16", "rank 4", "exact_match", good="higher", expected="better", smallest=0.02)],
        measure=measure,  # measure(arm, seed) trains with arm.settings and returns {"exact_match": [1.0, 0.0, …]}
        budget_seconds=600,
    )
    if __name__ == "__main__":
        conduct(RANK)
"""

import hashlib
import importlib.metadata
import json
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from frisket import __version__
from frisket.errors import CheckError, ConfigError, gather
from frisket.evaluate.compare import Interval, is_known, t_interval
from frisket.hf.load import versions
from frisket.recipe import load_recipe
from frisket.run import make_plan, train
from frisket.run.folder import machine, read_json, write_json
from frisket.types import total
from frisket.watch import Silent, duration

SEEDS, MORE_SEEDS = 3, 5
MOST_TOKENS = 200_000
_ROOT = Path(__file__).parents[1]
_RESULTS = Path(__file__).with_name("results")

Outcome = Literal["better", "worse", "no difference that counts"]
Value = float | Sequence[float] | np.ndarray
Results = dict[str, Any]


@dataclass(frozen=True)
class Arm:
    """One way of doing it: what ``measure`` is handed."""

    name: str
    settings: Any


@dataclass(frozen=True)
class Expectation:
    """What is expected of one comparison, written down before the first run.

    Attributes:
        arm: the arm that is judged; differences are this arm minus the other.
        against: the arm it is compared with.
        metric: key of what ``measure`` returns.
        good: which direction of the metric is good.
        expected: the verdict that is expected.
        smallest: smallest difference that counts, in the metric's unit; above 0.
    """

    arm: str
    against: str
    metric: str
    good: Literal["higher", "lower"]
    expected: Outcome
    smallest: float


@dataclass(frozen=True)
class Experiment:
    """A question, how it is asked, and what was expected; its results are one JSON file.

    Attributes:
        name: lower-case words joined by hyphens; names the file.
        question: one sentence.
        arms: name to settings, which must survive JSON.
        expectations: every comparison that will be made.
        measure: one run. Returns figures, or lists of figures, one a sample. In a list the n-th entry belongs to the
            same sample in every run (not so in a hold-out, which ``train.seed`` draws).
        budget_seconds: of all runs together; a run that is expected to pass it is not begun.
        folder: where the results lie.

    Raises:
        ConfigError: all that is wrong with the definition, gathered.
    """

    name: str
    question: str
    arms: Mapping[str, Any]
    expectations: Sequence[Expectation]
    measure: Callable[[Arm, int], Mapping[str, Value]]
    budget_seconds: float
    folder: Path = _RESULTS

    def __post_init__(self) -> None:
        problems = list(_problems(self))
        if problems:
            raise ConfigError(gather(problems, f"experiment {self.name!r} is ill-defined: {len(problems)} problems"))

    @property
    def file(self) -> Path:
        """Where the results lie."""
        return self.folder / f"{self.name}.json"

    @property
    def fingerprint(self) -> str:
        """Hash of name, arms and expectations: what may not change under results."""
        definition = [self.name, dict(self.arms), [asdict(expectation) for expectation in self.expectations]]
        return hashlib.sha256(json.dumps(definition, sort_keys=True).encode()).hexdigest()[:16]

    def run(
        self, seeds: int = SEEDS, only: Sequence[Expectation] | None = None, console: Console | None = None
    ) -> Results:
        """Measure what is missing, compare, and return what the file holds.

        Seed by seed, all arms in turn, each seed beginning with another arm: a slow drift of the machine meets all
        arms alike. The file is replaced after every run, so a stopped experiment goes on where it was.

        Args:
            seeds: 0 to ``seeds`` - 1; more than before extends.
            only: measure only the arms of these comparisons, for example ``undecided()``.
            console: where progress is shown.

        Raises:
            ConfigError: fewer than three seeds; the file holds another definition; the budget is spent.
            CheckError: ``measure`` returned something that cannot be compared.
        """
        if seeds < SEEDS:
            raise ConfigError(
                f"seeds = {seeds}: differences of so few seeds have no interval.\nMeasure at least seeds={SEEDS}"
            )
        results = self._read() or self._fresh()
        runs, pairs = results["runs"], self._pairs(seeds, only)
        finished = {(run["arm"], run["seed"]) for run in runs}
        missing = [pair for pair in pairs if pair not in finished]
        number_of_environment = _environment_number(results["environments"]) if missing else None
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.file, results)  # what is expected lies there before the first run
        for number, (arm, seed) in enumerate(missing):
            left = [name for name, _ in missing[number:]]
            self._refuse_over_budget(runs, arm)
            (console or Console()).print(
                f"run {len(pairs) - len(left) + 1} of {len(pairs)} · {escape(arm)}, seed {seed} · {_time(runs, left)}"
            )
            began = time.perf_counter()
            values = self._checked(self.measure(Arm(arm, self.arms[arm]), seed), arm, seed, runs)
            run = {"arm": arm, "seed": seed, "seconds": time.perf_counter() - began, "values": values}
            runs.append(run | {"environment": number_of_environment})
            write_json(self.file, results | {"comparisons": []})
        results["comparisons"] = [found for expectation in self.expectations if (found := compare(expectation, runs))]
        write_json(self.file, results)
        return results

    def undecided(self) -> list[Expectation]:
        """The comparisons whose verdict hangs on more seeds: ``run(seeds=5, only=…)``.

        Raises:
            ConfigError: nothing was compared yet.
        """
        if not (results := self._read()) or not results["comparisons"]:
            raise ConfigError(f"{self.file} holds no comparisons.\nMeasure three seeds first: .run()")
        names = {(c["arm"], c["against"], c["metric"]) for c in results["comparisons"] if c["verdict"] == "undecided"}
        return [e for e in self.expectations if (e.arm, e.against, e.metric) in names]

    def _fresh(self) -> Results:
        return {
            "name": self.name,
            "question": self.question,
            "fingerprint": self.fingerprint,
            "arms": dict(self.arms),
            "expectations": [asdict(expectation) for expectation in self.expectations],
            "environments": [],
            "runs": [],
            "comparisons": [],
        }

    def _read(self) -> Results | None:
        if not self.file.exists():
            return None
        results = read_json(self.file)
        if not results["runs"]:
            return None
        if results["fingerprint"] != self.fingerprint:
            raise ConfigError(
                f"{self.file} holds results of another definition (fingerprint {results['fingerprint']}, this one is "
                f"{self.fingerprint}).\n"
                "Arms and expectations are written down before the first run and may not change under its results.\n"
                f"Delete or rename the file: mv {self.file} {self.file.with_suffix('.old.json')}"
            )
        return results

    def _pairs(self, seeds: int, only: Sequence[Expectation] | None) -> list[tuple[str, int]]:
        names = list(self.arms)
        wanted = set(names) if only is None else {name for e in only for name in (e.arm, e.against)}
        turned = [(seed, (place + seed) % len(names)) for seed in range(seeds) for place in range(len(names))]
        return [(names[place], seed) for seed, place in turned if names[place] in wanted]

    def _refuse_over_budget(self, runs: Sequence[Mapping], arm: str) -> None:
        used, expected = sum(run["seconds"] for run in runs), _expected_seconds(runs, arm)
        if used + expected > self.budget_seconds:
            raise ConfigError(
                f"{len(runs)} runs took {used:.0f} s of budget_seconds = {self.budget_seconds:g}, and the next would "
                f"take about {expected:.0f} s.\n"
                f"What is measured is kept. Go on with budget_seconds={2 * max(used, self.budget_seconds):.0f}"
            )

    def _checked(self, given: Mapping[str, Value], arm: str, seed: int, runs: Sequence[Mapping]) -> dict:
        """Plain figures and lists, complete, finite, and of the size that earlier runs have."""
        values = {name: np.asarray(value, dtype=np.float64) for name, value in given.items()}
        place = f"measure({arm!r}, seed {seed})"
        for name in {e.metric for e in self.expectations if arm in _both(e)}:
            if name not in values:
                raise CheckError(
                    f"{place} returned no {name!r}, which an expectation names; it returned {sorted(values)}.\n"
                    "Return it, or name another metric: Expectation(…, metric=…)"
                )
        for name, value in values.items():
            if value.ndim > 1 or not value.size or not np.isfinite(value).all():
                raise CheckError(
                    f"{place} returned {name!r} of shape {value.shape}, of which {np.isfinite(value).sum()} of "
                    f"{value.size} figures are finite.\n"
                    "Return a finite figure, or a list of finite figures, one a sample."
                )
            sizes = {np.size(run["values"][name]) for run in runs if name in run["values"]}
            if sizes - {value.size}:
                raise CheckError(
                    f"{place} returned {value.size} values of {name!r}; earlier runs have {sizes.pop()}.\n"
                    "The n-th value must belong to the same sample in every run: evaluate them all on one set."
                )
        return {name: value.tolist() for name, value in values.items()}


def conduct(experiment: Experiment) -> Results:
    """Measure three seeds, five where a verdict hangs on them, and print the tables."""
    console = Console()
    results = experiment.run(console=console)
    if undecided := experiment.undecided():
        results = experiment.run(MORE_SEEDS, only=undecided, console=console)
    show(results, console)
    return results


def compare(expectation: Expectation, runs: Sequence[Mapping]) -> dict | None:
    """Compare two arms on the seeds that both have; None where these are fewer than three.

    The interval is Student's t over the seeds' mean differences, as in ``frisket compare``; it speaks of other seeds
    on the same samples. Where all seeds differ by one and the same number there is none.
    """
    values = {(run["arm"], run["seed"]): run["values"].get(expectation.metric) for run in runs}
    seeds = sorted({seed for _, seed in values if all((arm, seed) in values for arm in _both(expectation))})
    if len(seeds) < SEEDS:
        return None
    one, other = (
        np.stack([np.atleast_1d(np.asarray(values[arm, seed], dtype=np.float64)) for seed in seeds])
        for arm in _both(expectation)
    )
    differences = one - other
    difference, interval = float(differences.mean()), t_interval(differences.mean(axis=1))
    verdict = judge(expectation, difference, interval)
    return asdict(expectation) | {
        "seeds": seeds,
        "samples": differences.shape[1],
        "by_seed": differences.mean(axis=1).tolist(),
        "difference": difference,
        "interval": list(interval) if is_known(interval) else None,
        "verdict": verdict,
        "as_expected": None if verdict == "undecided" else verdict == expectation.expected,
    }


def judge(expectation: Expectation, difference: float, interval: Interval) -> str:
    """Turn a difference and its interval into a verdict.

    ``no difference that counts``: the whole interval is smaller than the smallest effect, on either side of 0.
    ``better``, ``worse``: the interval leaves out 0, and the difference is at least the smallest effect.
    ``undecided``: anything else; the interval holds 0, or the smallest effect, or there is none: more seeds could say.
    """
    if not is_known(interval):
        return "undecided"
    low, high = interval
    if max(abs(low), abs(high)) < expectation.smallest:
        return "no difference that counts"
    if low <= 0 <= high or abs(difference) < expectation.smallest:
        return "undecided"
    return "better" if (difference > 0) == (expectation.good == "higher") else "worse"


def show(results: Results, console: Console) -> None:
    """Print the tables for a person."""
    console.print(f"[bold]{escape(results['name'])}[/bold] · {escape(results['question'])}")
    for header, rows in (_arms(results), _comparisons(results)):
        table = Table()
        for name in header:
            table.add_column(escape(name), overflow="fold")
        for row in rows:
            table.add_row(*map(escape, row))
        console.print(table)
    for line in _provenance(results):
        console.print(escape(line))


def markdown(results: Results) -> str:
    """One section of ``docs/evidence.md``."""
    parts = [f"## {results['name']}", results["question"]]
    for header, rows in (_arms(results), _comparisons(results)):
        cells = [[cell.replace("|", "\\|") for cell in line] for line in (header, ["---"] * len(header), *rows)]
        parts.append("\n".join(f"| {' | '.join(line)} |" for line in cells))
    return "\n\n".join([*parts, "  \n".join(_provenance(results))]) + "\n"


def train_on_bundled(overrides: Sequence[str], out: Path | None = None) -> dict:
    """Fine-tune the bundled base as ``frisket train --model bundled --data bundled`` would, in silence.

    Args:
        overrides: words such as ``train.max_steps=20``; give the seed as ``train.seed=…``.
        out: keep the run's folder here; None: it is removed.

    Returns:
        What ``summary.json`` holds.

    Raises:
        ConfigError: more than 200,000 tokens; stages.
    """
    recipe = load_recipe(None, overrides, model="bundled", data=["bundled"])
    if recipe.stages:
        raise ConfigError("stages: a run of the laboratory has one stage.\nLeave them out: stages=[]")
    plan = make_plan(recipe, watcher=Silent())
    tokens, step_tokens = total(plan.ledgers).flat, min(plan.settled.step.tokens, MOST_TOKENS)
    if tokens > MOST_TOKENS:
        raise ConfigError(
            f"this run would train on {tokens:,} tokens in {plan.steps:,} steps.\n"
            f"A run of the laboratory has at most {MOST_TOKENS:,}, so that three seeds of all arms take minutes.\n"
            f"Shorten it: train.step_tokens={step_tokens} train.max_steps={MOST_TOKENS // step_tokens}"
        )
    with tempfile.TemporaryDirectory() as scratch:
        return train(recipe, out=out or Path(scratch) / "run")


def _problems(experiment: Experiment) -> Iterator[str]:
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", experiment.name):
        yield f"name = {experiment.name!r} must be lower-case words joined by hyphens → name='packing-quality'"
    try:
        json.dumps(dict(experiment.arms), sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        yield f"arms: the settings must survive JSON ({error}) → give names, and look functions up in measure"
    if not experiment.expectations:
        yield "expectations: none, and what counts is written down before a run → expectations=[Expectation(…)]"
    for expectation in experiment.expectations:
        for arm in _both(expectation):
            if arm not in experiment.arms:
                yield f"an expectation names the arm {arm!r}, which is not there → one of {sorted(experiment.arms)}"
        if not expectation.smallest > 0:
            yield f"smallest = {expectation.smallest} of {expectation.metric!r} must be above 0 → smallest=0.01"


def _both(expectation: Expectation) -> tuple[str, str]:
    return expectation.arm, expectation.against


def _expected_seconds(runs: Sequence[Mapping], arm: str) -> float:
    """Mean seconds of the arm's runs, else of all runs; 0 before the first."""
    own = [run["seconds"] for run in runs if run["arm"] == arm] or [run["seconds"] for run in runs]
    return sum(own) / max(len(own), 1)


def _time(runs: Sequence[Mapping], left: Sequence[str]) -> str:
    used, expected = sum(run["seconds"] for run in runs), sum(_expected_seconds(runs, arm) for arm in left)
    return f"{duration(used)} used, about {duration(expected)} left" if runs else "time left unknown"


def _environment_number(environments: list[dict]) -> int:
    """Index of the present environment, added where the last one differs in more than its date."""
    now = environment()
    if not environments or {**environments[-1], "date": ""} != {**now, "date": ""}:
        environments.append(now)
    return len(environments) - 1


def environment() -> dict:
    """What decides a result beside its definition; ``changed``: files unlike the commit's, ``source``: their hash."""
    commit, changed = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "--", ":(glob)**/*.py", "src")
    source = b"".join(path.read_bytes() for path in sorted(_ROOT.glob("src/**/*.py")))
    return {
        "frisket": __version__,
        "commit": commit[0] if commit else None,
        "changed": None if changed is None else [line[3:] for line in changed],
        "source": hashlib.sha256(source).hexdigest()[:16],
        **versions(),
        "peft": importlib.metadata.version("peft"),
        "machine": machine(torch.device("cpu")),
        "threads": torch.get_num_threads(),
        "date": time.strftime("%Y-%m-%d"),
    }


def _git(*words: str) -> list[str] | None:
    """Lines of git's answer; None where there is no git or no repository."""
    if shutil.which("git") is None:
        return None
    done = subprocess.run(["git", "--no-optional-locks", *words], cwd=_ROOT, capture_output=True, text=True)
    return done.stdout.splitlines() if done.returncode == 0 else None


def _arms(results: Results) -> tuple[list[str], list[list[str]]]:
    metrics = list(dict.fromkeys(name for run in results["runs"] for name in run["values"]))
    rows = []
    for arm in results["arms"]:
        runs = [run for run in results["runs"] if run["arm"] == arm]
        figures = [[float(np.mean(run["values"][name])) for run in runs if name in run["values"]] for name in metrics]
        rows.append([arm, str(len(runs)), *map(_with_range, [*figures, [run["seconds"] for run in runs]])])
    return ["arm", "seeds", *metrics, "seconds a run"], rows


def _with_range(figures: Sequence[float]) -> str:
    return f"{np.mean(figures):.4g} ({min(figures):.4g} to {max(figures):.4g})" if figures else "–"


def _comparisons(results: Results) -> tuple[list[str], list[list[str]]]:
    header = ["comparison", "metric", "expected", "counts from", "difference", "95 % interval", "seeds", "verdict"]
    rows = []
    for c in results["comparisons"]:
        told = {True: "as expected", False: "not as expected", None: "open"}
        rows.append(
            [
                f"{c['arm']} − {c['against']}",
                f"{c['metric']} ({c['good']} is better)",
                c["expected"],
                f"{c['smallest']:.4g}",
                f"{c['difference']:+.4g}",
                " to ".join(f"{end:+.4g}" for end in c["interval"] or ()) or "none",
                str(len(c["seeds"])) + (f" × {c['samples']} samples" if c["samples"] > 1 else ""),
                f"{c['verdict']} ({told[c['as_expected']]})",
            ]
        )
    return header, rows


def _provenance(results: Results) -> list[str]:
    """One line an environment."""
    lines = []
    for number, env in enumerate(results["environments"]):
        runs = [run for run in results["runs"] if run["environment"] == number]
        commit = "no commit" if env["commit"] is None else f"commit {env['commit'][:9]}"
        changed = f" with {len(env['changed'])} changed files" if env["changed"] else ""
        lines.append(
            f"{len(runs)} runs in {sum(run['seconds'] for run in runs):.0f} s on {env['date']}: frisket "
            f"{env['frisket']}, {commit}{changed}, Python {env['python']}, transformers {env['transformers']}, peft "
            f"{env['peft']}, {env['machine']}."
        )
    return lines
