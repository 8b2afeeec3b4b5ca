"""Does a mask improve a fine-tuned model that has converged? python -m lab.mask_fine_tuning skills|maths [FOLDER]

Mask fine-tuning (arXiv 2503.22764) switches about 10 % of the weights of a few layers off, by scores that are learned
on the data of a full fine-tuning that has reached its best checkpoint; longer training would only overfit. The paper
reports gains over that checkpoint on six of six pairs of model and task (46.9 to 47.3 up to 59.8 to 65.8), and losses
for a random and for a magnitude mask. A replication on BERT lost on well-trained models.

Here the bundled base is fine-tuned in full on so few samples that the held-out loss passes a minimum; its weights there
are the start of everything else. The minimum is chosen on one half of the held-out samples, and every candidate is
judged on the other, so that choosing favours nobody. *Skills*: the bundled instructions, judged by loss and exact
match. *Maths*: the public GSM8K (``gsm8k_train.jsonl`` in FOLDER), judged by loss; a model this small solves none of
it. Candidates, as ``adapt.method=mft`` measures them: no mask, a random mask, the smallest weights off, and the learnt
mask, over the share that is kept and the steps in which it is learnt. *Full again* goes on with full fine-tuning from
the same weights: what the same time buys otherwise, and whether the start had converged.

Layers: ``--pilot`` learns one mask on each of ``GROUPS`` (of four layers), on seed 100, which is not in the experiment;
the group with the lowest loss is used, as the authors found theirs by a sweep. Rates are ``auto``.

``loss`` is over the answers, in nats a token. ``shipped`` says what frisket would do. Runs are kept in
``lab/work/mask-fine-tuning`` and used again; delete it after a change of frisket.
"""

import argparse
import hashlib
import json
import random
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from frisket import bundled
from frisket.errors import ConfigError
from frisket.run.folder import SUMMARY, read_json, read_lines, write_json
from lab.experiment import Arm, Expectation, Experiment, Results, conduct, environment, train_on_bundled
from lab.figure import draw

WORK = Path(__file__).with_name("work") / "mask-fine-tuning"
RESULTS = Path(__file__).with_name("results")
KEEP, STEPS = (0.99, 0.97, 0.9), (20, 60)
SMALLEST = 0.01  # nats a token
GROUPS, PILOT_SEED = ("0-1", "2-3", "0-3"), 100
PILOT_MASK = {"keep": 0.97, "steps": 40}
NONE, RANDOM, MAGNITUDE, LEARNT, AGAIN = "no mask", "random", "smallest off", "learnt", "full again"
CANDIDATES = {NONE: "none", RANDOM: "random", MAGNITUDE: "magnitude", LEARNT: "learnt"}
COMMON = [
    "data.0.hold_out=0",
    "train.step_tokens=1024",
    "train.threads=2",
    "train.save_every=0",
    "evaluate.forgetting=[]",
    "evaluate.samples=0",
    "evaluate.budget_seconds=120",
]
ASKED = {
    "skills": ["evaluate.learning.0.metric=exact_match", "evaluate.learning.0.max_new_tokens=32"],
    "maths": [],
}
MEANING = {
    "mask-fine-tuning-maths": (
        "A learnt mask can improve a full fine-tuning that has converged, by 0.02 nats a token (1 %) with 1 % of the "
        "weights of the chosen layers off, and with 3 % off after 60 steps; going on with full fine-tuning showed no "
        "gain. With 10 % off, the paper's share, it is worse after 20 steps and undecided after 60: so short a run "
        "does not find that many weights to do without. A random mask of 10 % costs 0.19 nats; switching the smallest "
        "weights off changes nothing, either way. frisket shipped eight of these 22 masks, "
        "none of them worse than no mask."
    )
}


@dataclass(frozen=True)
class Content:
    """What is learned, and of how much.

    Attributes:
        name: ``skills`` or ``maths``.
        samples: that are trained on, so few that the fine-tuning passes its best step.
        held_out: samples that choose and as many that judge.
        epochs: of the full fine-tuning.
        folder: where GSM8K lies; None for the skills.
    """

    name: str
    samples: int
    held_out: int
    epochs: float
    folder: Path | None = None

    def lines(self) -> tuple[list[str], list[str]]:
        """What can be trained on, and twice ``held_out`` that nobody trains on."""
        if self.folder is None:
            rows, held = (file.read_text(encoding="utf-8") for file in (bundled.train_path(), bundled.eval_path()))
            held = held.splitlines(keepends=True)
            return rows.splitlines(keepends=True), held[:: len(held) // (2 * self.held_out)][: 2 * self.held_out]
        text = (self.folder / "gsm8k_train.jsonl").read_text(encoding="utf-8")
        problems = [json.loads(line) for line in text.splitlines()]
        pairs = [json.dumps({"prompt": each["question"], "completion": each["answer"]}) + "\n" for each in problems]
        return pairs[2 * self.held_out :], pairs[: 2 * self.held_out]

    def files(self, seed: int) -> dict[str, Path]:
        """Write what a seed trains on (``train``), and the two halves of what is held out (``choose``, ``judge``)."""
        WORK.mkdir(parents=True, exist_ok=True)
        rows, held = self.lines()
        parts = {
            "train": random.Random(seed).sample(rows, self.samples),
            "choose": held[::2],
            "judge": held[1::2],
        }
        places = {name: WORK / f"{self.name}-{name}-{seed}.jsonl" for name in parts}
        for name, part in parts.items():
            places[name].write_text("".join(part), encoding="utf-8")
        return places


SKILLS = Content("skills", samples=400, held_out=150, epochs=8)
MATHS = Content("maths", samples=80, held_out=60, epochs=8)


def run(content: Content, seed: int, words: Sequence[str]) -> Path:
    """Train once: a finished run with the same words is used again."""
    words = [*COMMON, f"data.0.path={content.files(seed)['train']}", f"train.seed={seed}", *words]
    out = WORK / hashlib.sha256(json.dumps(words).encode()).hexdigest()[:12]
    if not (out / SUMMARY).exists():
        shutil.rmtree(out, ignore_errors=True)
        train_on_bundled(words, out)
    return out


def tuned(content: Content, seed: int) -> Path:
    """The full fine-tuning that all arms of a seed share; its model is that of the best step."""
    measured = [*_measured(content, seed, 0, "choose"), *_measured(content, seed, 1, "judge")]
    ends = ["evaluate.every=0.125", "evaluate.watch=choose", "evaluate.keep=best"]
    return run(content, seed, ["adapt.method=full", f"train.epochs={content.epochs}", *measured, *ends])


def masked(content: Content, seed: int, mask: Mapping, by: str = "judge") -> dict:
    """Summary of the run that learns a mask, in which all four candidates are measured on one of the halves."""
    where = f"adapt.where=[all-linear, {{layers: {mask['layers']}}}]"
    method = ["adapt.method=mft", f"adapt.keep={mask['keep']}", where]
    return read_json(run(content, seed, [*method, *_after(content, seed, mask["steps"], by)]) / SUMMARY)


def again(content: Content, seed: int, steps: int) -> dict:
    """Summary of the run that goes on with full fine-tuning."""
    return read_json(run(content, seed, ["adapt.method=full", *_after(content, seed, steps, "judge")]) / SUMMARY)


def _after(content: Content, seed: int, steps: int, by: str) -> list[str]:
    """What all runs share that start from the best weights: where they start, their length, what measures them."""
    length = [f"train.max_steps={steps}", "evaluate.every=0"]
    measured = [*_measured(content, seed, 0, by), *ASKED[content.name]]
    return [f"model.path={tuned(content, seed) / 'model'}", *length, *measured]


def _measured(content: Content, seed: int, number: int, name: str) -> list[str]:
    place = f"evaluate.learning.{number}"
    return [f"{place}.name={name}", f"{place}.path={content.files(seed)[name]}"]


def measure(content: Content, arm: Arm, seed: int) -> dict[str, float]:
    """Judge one candidate."""
    kind = arm.settings["kind"]
    if kind == AGAIN:
        return _scores(again(content, seed, arm.settings["steps"])["learning"]["judge"]["after"])
    summary = masked(content, seed, arm.settings)
    told, learned = summary["mask_tuning"], summary["learning"]["judge"]
    loss = {"loss": told["sets"]["judge"][CANDIDATES[kind]]["loss"]}
    if kind == LEARNT:
        moved = told["moved"] / told["off"]
        return _scores(learned["after"]) | loss | {"shipped": float(told["shipped"]), "moved": moved}
    if kind == NONE:
        out = tuned(content, seed)
        last = read_lines(out / "evaluations.jsonl")[-1]["learning"]["judge"]["loss"]
        ends = {"best_step": read_json(out / SUMMARY)["best"]["step"], "loss_at_the_end": last}
        return _scores(learned["before"]) | loss | ends
    return loss


def _scores(found: Mapping[str, float]) -> dict[str, float]:
    return {name: found[name] for name in ("loss", "exact_match") if name in found}


def pilot(content: Content) -> Results:
    """Learn a mask on each group of layers, and keep what was found; the judge's half is not looked at."""
    found = {}
    for group in GROUPS:
        summary = masked(content, PILOT_SEED, {**PILOT_MASK, "layers": group}, by="choose")
        told = summary["mask_tuning"]["sets"]["choose"]
        found[group] = {name: candidate["loss"] for name, candidate in told.items()}
    results = {**PILOT_MASK, "seed": PILOT_SEED, "environment": environment(), "losses": found}
    write_json(pilot_file(content), results)
    return results


def pilot_file(content: Content) -> Path:
    """Where the pilot's figures lie."""
    return RESULTS / f"mask-fine-tuning-{content.name}-pilot.json"


def chosen(content: Content) -> str:
    """The layers whose learnt mask the pilot found best.

    Raises:
        ConfigError: there was no pilot.
    """
    file = pilot_file(content)
    if not file.exists():
        raise ConfigError(
            f"{file} is not there, and the pilot chooses the layers that are masked.\n"
            f"Run it first: python -m lab.mask_fine_tuning {content.name} --pilot"
        )
    losses = read_json(file)["losses"]
    return min(losses, key=lambda group: losses[group]["learnt"])


def arms(layers: str) -> dict[str, dict]:
    """Every candidate; what a random mask and a magnitude mask do hangs on the share alone."""

    def mask(kind: str, keep: float, steps: int) -> dict:
        return {"kind": kind, "keep": keep, "steps": steps, "layers": layers}

    found: dict[str, dict] = {NONE: mask(NONE, KEEP[0], STEPS[0])}
    for keep in KEEP:
        found |= {f"{kind}, keep {keep}": mask(kind, keep, STEPS[0]) for kind in (RANDOM, MAGNITUDE)}
        found |= {f"{LEARNT}, keep {keep}, {steps} steps": mask(LEARNT, keep, steps) for steps in STEPS}
    return found | {f"{AGAIN}, {STEPS[-1]} steps": {"kind": AGAIN, "steps": STEPS[-1]}}


def expectations(content: Content) -> list[Expectation]:
    """The claims of the paper: a learnt mask is better than none and than a random one; the rest is worse than none."""
    most = f"{LEARNT}, keep {KEEP[-1]}, {STEPS[-1]} steps"
    better = [(f"{LEARNT}, keep {keep}, {steps} steps", NONE) for keep in KEEP for steps in STEPS]
    better.append((most, f"{RANDOM}, keep {KEEP[-1]}"))
    worse = [f"{RANDOM}, keep {KEEP[-1]}", f"{MAGNITUDE}, keep {KEEP[-1]}", f"{AGAIN}, {STEPS[-1]} steps"]
    found = [Expectation(arm, other, "loss", "lower", "better", SMALLEST) for arm, other in better]
    found += [Expectation(arm, NONE, "loss", "lower", "worse", SMALLEST) for arm in worse]
    if ASKED[content.name]:
        found.append(Expectation(most, NONE, "exact_match", "higher", "better", 0.02))
    return found


def experiment(content: Content, layers: str) -> Experiment:
    """The experiment on one content; its expectations were written before its first run."""
    return Experiment(
        name=f"mask-fine-tuning-{content.name}",
        question=f"Does a learnt mask improve a full fine-tuning that has converged, on {content.name}?",
        arms=arms(layers),
        expectations=expectations(content),
        measure=partial(measure, content),
        budget_seconds=900,
    )


def picture(results: Results, file: Path) -> None:
    """Loss minus the loss without a mask, over the share that is kept; one line a kind of mask and number of steps."""
    without = {run["seed"]: run["values"]["loss"] for run in results["runs"] if run["arm"] == NONE}
    lines: dict[str, list[tuple[float, float, float, float]]] = {}
    for name, settings in results["arms"].items():
        runs = [run for run in results["runs"] if run["arm"] == name and run["seed"] in without]
        gaps = [run["values"]["loss"] - without[run["seed"]] for run in runs]
        for keep in KEEP if settings["kind"] == AGAIN else [settings["keep"]]:
            if gaps and settings["kind"] != NONE:
                point = (100 * keep, float(np.mean(gaps)), min(gaps), max(gaps))
                lines.setdefault(_line(settings), []).append(point)
    draw(file, "Masks on a converged fine-tuning", "% of the weights kept", "loss minus that without a mask", lines)


def _line(settings: Mapping) -> str:
    is_fixed = settings["kind"] in (RANDOM, MAGNITUDE)
    return settings["kind"] if is_fixed else f"{settings['kind']}, {settings['steps']} steps"


def main() -> None:
    """Run the pilot, or one experiment on the layers that it chose, and draw it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("content", choices=list(ASKED))
    parser.add_argument("folder", nargs="?", type=Path, help="where gsm8k_train.jsonl lies")
    parser.add_argument("--pilot", action="store_true", help="choose the layers, and nothing else")
    given = parser.parse_args()
    if given.content == MATHS.name and given.folder is None:
        parser.error("maths needs the FOLDER of gsm8k_train.jsonl")
    content = SKILLS if given.content == SKILLS.name else replace(MATHS, folder=given.folder)
    if given.pilot:
        pilot(content)
        return
    asked = experiment(content, chosen(content))
    picture(conduct(asked), asked.file.with_suffix(".svg"))


if __name__ == "__main__":
    main()
