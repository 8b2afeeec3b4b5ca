"""Who learns random identifiers by heart first? python -m lab.memorising [--pilot]

Jiang et al. 2024 (MoRA, arXiv 2405.12130, section 3): 10,000 pairs of random UUIDs, Llama-2-7B; characters of the
values reproduced after 300, 500, 700 and 900 steps: full fine-tuning 42.5, 100, 100, 100 %; LoRA of rank 8 9.9, 10.0,
10.7, 54.2; MoRA with as many parameters 10.1, 15.7, 87.4, 100; LoRA of rank 256 9.9, 70.6, 100, 100. Here the bundled
base learns ``PAIRS`` pairs, each a key and a value of random hex digits (one token a digit), which no model can know
or guess. All arms see the same pairs in the same order; metrics are of the very pairs that are trained on, because
nothing else can be learned here. *Characters*: share of the value's digits that a greedy answer has at their places
(1 in 16 by chance); *exact*: of values that are wholly right. Each is the mean over the moments of the race, step 0
left out: an arm that learns sooner has more, even where all arrive.

LoRA and MoRA sit on all linear layers but the head; 128 is the largest rank that each of them allows (keys and values
of the attention are 256 wide on one side, 128 on the other). Full fine-tuning moves the embeddings too, as in the
paper.

Rates: ``--pilot`` tries four for each arm, its own ``auto``, three times that, a third and a ninth, on seed 100, which
is not in the race; the one with the highest mean of characters is used, of equal ones the lowest mean of losses. (It
was three; LoRA of rank 8 was best at the lowest, so all got a lower one.)
"""

import argparse
import json
import random
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from frisket.errors import ConfigError
from frisket.run.folder import read_json, read_lines, write_json
from lab.experiment import Arm, Expectation, Experiment, Results, conduct, environment, train_on_bundled
from lab.figure import draw

PAIRS, KEY, VALUE = 128, 6, 8
STEPS, EVERY = 200, 10
MOMENTS = tuple(range(EVERY, STEPS + 1, EVERY))
ARMS = {
    "full": ["adapt.method=full"],
    "LoRA r=8": ["adapt.method=lora", "adapt.rank=8"],
    "LoRA r=128": ["adapt.method=lora", "adapt.rank=128"],
    "MoRA r=8": ["adapt.method=mora", "adapt.rank=8"],
}
COMMON = [
    "data.0.render=raw",
    "data.0.hold_out=0",
    "train.step_tokens=512",
    f"train.max_steps={STEPS}",
    "train.threads=2",
    "train.save_every=0",
    "evaluate.learning.0.name=pairs",
    f"evaluate.every={EVERY}",
    f"evaluate.samples={PAIRS}",
    f"evaluate.sample_tokens={VALUE + 2}",
    "evaluate.budget_seconds=120",
    "evaluate.forgetting=[]",
]
PILOT = Path(__file__).with_name("results") / "memorising-pilot.json"
PILOT_SEED, FACTORS = 100, (1 / 9, 1 / 3, 1.0, 3.0)
AUTO = {"full": 7.2e-4, "LoRA r=8": 7.2e-3, "LoRA r=128": 1.8e-3, "MoRA r=8": 7.2e-3}
"""What ``train.learning_rate=auto`` settles on at this width and length; see ``adapt.rates``."""
MEANING = {
    "memorising": (
        "For learning by heart the rank of the change counts, not the number of parameters: with as many of them as "
        "LoRA of rank 8, MoRA has every identifier after 110 steps, and LoRA has 86 % of the characters after 200. "
        "LoRA of rank 128, with 16 times the parameters, is a little sooner than MoRA and level with full fine-tuning; "
        "the paper's lead of full fine-tuning over it did not show. A step of MoRA took 1.3 times as long as one of "
        "LoRA of rank 8."
    )
}


def pairs(seed: int, count: int = PAIRS) -> list[dict[str, str]]:
    """Keys, all different, and values, as records of prompt and completion."""
    rng = random.Random(seed)
    keys: dict[str, str] = {}
    while len(keys) < count:
        keys[_digits(rng, KEY)] = _digits(rng, VALUE)
    return [{"prompt": f"{key}=", "completion": value} for key, value in keys.items()]


def _digits(rng: random.Random, count: int) -> str:
    return "".join(rng.choice("0123456789abcdef") for _ in range(count))


def right(answer: str, value: str) -> float:
    """Share of the value's characters that the answer has at their places.

    >>> right("12f", "1234")
    0.5
    """
    return sum(one == other for one, other in zip(answer, value, strict=False)) / len(value)


def measure(arm: Arm, seed: int) -> dict[str, float | list[float]]:
    """Run one arm of the race."""
    with tempfile.TemporaryDirectory() as scratch:
        file, out = Path(scratch) / "pairs.jsonl", Path(scratch) / "run"
        file.write_text("".join(json.dumps(pair) + "\n" for pair in pairs(seed)), encoding="utf-8")
        places = [f"data.0.path={file}", f"evaluate.learning.0.path={file}", f"train.seed={seed}"]
        summary = train_on_bundled([*arm.settings, *places], out)
        losses = {line["step"]: line["learning"]["pairs"]["loss"] for line in read_lines(out / "evaluations.jsonl")}
        found = race(read_lines(out / "samples.jsonl"))
    losses[summary["steps"]] = summary["learning"]["pairs"]["after"]["loss"]
    return {
        **found,
        "loss": [losses[step] for step in MOMENTS],
        "parameters": summary["model"]["moving"],
        "rate": summary["train"]["learning_rate"],
        "seconds a step": summary["seconds"]["steps"] / summary["steps"],
    }


def race(answers: Iterable[Mapping]) -> dict[str, list[float]]:
    """Characters and exact values at each moment, of what a run wrote into ``samples.jsonl``."""
    characters: dict[int, list[float]] = {}
    for line in answers:
        characters.setdefault(line["step"], []).append(right(line["answer"].strip(), line["reference"]))
    return {
        "characters": [float(np.mean(characters[step])) for step in MOMENTS],
        "exact": [float(np.mean(np.array(characters[step]) == 1)) for step in MOMENTS],
    }


def arms(rates: Mapping[str, float]) -> dict[str, list[str]]:
    """Recipes of the arms, at a rate each."""
    return {name: [*COMMON, *settings, f"train.learning_rate={rates[name]:.2g}"] for name, settings in ARMS.items()}


def pilot() -> Results:
    """Run every arm at four rates; what is there already is not run again."""
    found = read_json(PILOT) if PILOT.exists() else {"seed": PILOT_SEED, "environment": environment(), "runs": []}
    done = {(run["arm"], run["factor"]) for run in found["runs"]}
    for factor in FACTORS:
        words = arms({name: factor * rate for name, rate in AUTO.items()})
        for name in [name for name in ARMS if (name, factor) not in done]:
            found["runs"].append({"arm": name, "factor": factor, "values": measure(Arm(name, words[name]), PILOT_SEED)})
            write_json(PILOT, found)
    return found


def chosen(runs: Iterable[Mapping]) -> dict[str, float]:
    """The rate of each arm that the pilot found best.

    Raises:
        ConfigError: the pilot is not complete.
    """
    tried = {name: [run["values"] for run in runs if run["arm"] == name] for name in ARMS}
    if missing := [name for name, values in tried.items() if len(values) < len(FACTORS)]:
        raise ConfigError(
            f"the pilot has not tried all {len(FACTORS)} rates of {', '.join(missing)}, and the race needs one of each."
            "\nRun it first: python -m lab.memorising --pilot"
        )
    best = {
        name: max(values, key=lambda v: (np.mean(v["characters"]), -np.mean(v["loss"])))
        for name, values in tried.items()
    }
    return {name: values["rate"] for name, values in best.items()}


def experiment(rates: Mapping[str, float]) -> Experiment:
    """The race; its expectations were written before its first run."""
    return Experiment(
        name="memorising",
        question="Who learns random identifiers by heart first: full fine-tuning, LoRA, or MoRA?",
        arms=arms(rates),
        expectations=[
            Expectation(arm, against, metric, good="higher", expected="better", smallest=0.05)
            for metric in ("characters", "exact")
            for arm, against in (
                ("MoRA r=8", "LoRA r=8"),
                ("LoRA r=128", "LoRA r=8"),
                ("LoRA r=128", "MoRA r=8"),
                ("full", "LoRA r=128"),
            )
        ],
        measure=measure,
        budget_seconds=900,
    )


def picture(results: Results, file: Path) -> None:
    """The race: characters over steps, with the number of parameters that move."""
    lines = {}
    for arm in results["arms"]:
        runs = [run["values"] for run in results["runs"] if run["arm"] == arm]
        if runs:
            moving = f"{runs[0]['parameters'] / 1000:,.0f} k"
            heights = zip(*(values["characters"] for values in runs), strict=True)
            points = [(x, float(np.mean(ys)), min(ys), max(ys)) for x, ys in zip(MOMENTS, heights, strict=True)]
            lines[f"{arm} ({moving})"] = points
    draw(file, "Random identifiers learned by heart", "steps", "share of characters reproduced", lines)


def main() -> None:
    """Run the pilot, or the race with what it chose, and draw it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pilot", action="store_true", help="four rates for each arm, and nothing else")
    if parser.parse_args().pilot:
        print(chosen(pilot()["runs"]))
        return
    asked = experiment(chosen(read_json(PILOT)["runs"] if PILOT.exists() else []))
    picture(conduct(asked), asked.file.with_suffix(".svg"))


if __name__ == "__main__":
    main()
