"""Does teaching the prompts too help? python -m lab.instruction_modelling [short|long].

Shi et al. 2024 (arXiv 2405.14394) found that instruction modelling helps where samples are few and answers short beside
their prompts, and not where answers are long; Huerta-Enochian and Ko 2024 (arXiv 2401.13586) found the same of a small
prompt-loss weight. Here on the bundled base, which is small and was never tuned: 300 samples, eight epochs, LoRA.
*Short*: looking a value up in a list. *Long*: every letter of a list written three times (made from the bundled rows
that write it twice; six times was tried first, and no arm learned it). Evaluated on prompts that were not trained on.
The rate is the demo's; nothing was tuned.
"""

import argparse
import json
from functools import partial
from pathlib import Path

from frisket import bundled
from lab.experiment import Arm, Expectation, Experiment, conduct, train_on_bundled

MEANING = {
    "instruction-modelling-short": (
        "The gain that the papers report for few samples with short answers was not seen here: all differences are "
        "negative, and none is decided. The base knows this skill as plain text, so 300 samples left little to gain. "
        "Teach the answers alone unless an experiment of your own says otherwise."
    ),
    "instruction-modelling-long": (
        "All arms learned little, so this says little; teaching the boilerplate too was lower on each seed, undecided."
    ),
}
WORK = Path(__file__).with_name("work") / "instruction-modelling"
SAMPLES, HELD_OUT, TIMES = 300, 100, 3
ARMS = {
    "assistant": ["supervise.policy=assistant"],
    "instructions": ["supervise.policy=instructions"],
    "boilerplate": ["supervise.policy=boilerplate"],
    "prompt weight 0.1": ["supervise.policy=assistant", "supervise.prompt_weight=0.1"],
}
COMMON = [
    "adapt.rank=16",
    "adapt.where=all-linear",
    "train.learning_rate=4e-3",
    "train.step_tokens=2048",
    "train.epochs=8",
    "train.threads=2",
    "data.0.hold_out=0",
    "evaluate.every=0",
    "evaluate.budget_seconds=120",
    "evaluate.learning.0.name=taught",
    "evaluate.learning.0.metric=exact_match",
    "evaluate.learning.0.max_new_tokens=64",
    "evaluate.forgetting=[]",
]


def records(content: str) -> list[dict]:
    """All samples of a content: the bundled training rows of its skill."""
    skill = "lookup" if content == "short" else "double"
    lines = bundled.train_path().read_text(encoding="utf-8").splitlines()
    rows = [record for record in map(json.loads, lines) if record["skill"] == skill]
    return rows if content == "short" else [_longer(row) for row in rows]


def _longer(row: dict) -> dict:
    """The same list of letters, each written ``TIMES`` times."""
    asked, answered = (message["content"] for message in row["messages"])
    letters = answered.split()[::2]
    longer = " ".join(letter for letter in letters for _ in range(TIMES))
    return {
        "messages": [
            {"role": "user", "content": asked.replace("twice", "three times").replace("double", "three times")},
            {"role": "assistant", "content": longer},
        ],
        "skill": "longer",
    }


def files(content: str) -> tuple[Path, Path]:
    """Write training and evaluation samples; no prompt is in both."""
    WORK.mkdir(parents=True, exist_ok=True)
    rows = list({row["messages"][0]["content"]: row for row in records(content)}.values())
    parts = {"train": rows[:SAMPLES], "eval": rows[SAMPLES : SAMPLES + HELD_OUT]}
    for name, part in parts.items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in part)
        (WORK / f"{content}-{name}.jsonl").write_text(text, encoding="utf-8")
    return WORK / f"{content}-train.jsonl", WORK / f"{content}-eval.jsonl"


def measure(content: str, arm: Arm, seed: int) -> dict[str, float]:
    """Train one arm; exact answers to held-out prompts. Losses are over what an arm teaches, so they do not compare."""
    train, held = files(content)
    places = [f"data.0.path={train}", f"evaluate.learning.0.path={held}", f"train.seed={seed}"]
    summary = train_on_bundled([*arm.settings, *places])
    after = summary["learning"]["taught"]["after"]
    return {"exact_match": after["exact_match"], "taught tokens": sum(summary["tokens"]["taught"].values())}


def experiment(content: str) -> Experiment:
    """The experiment on one length of answers; its expectations were written before its first run."""
    claimed = "better" if content == "short" else "no difference that counts"
    return Experiment(
        name=f"instruction-modelling-{content}",
        question=f"Does teaching the prompts too help where samples are few and answers {content}?",
        arms={name: [*COMMON, *settings] for name, settings in ARMS.items()},
        expectations=[
            Expectation(arm, "assistant", "exact_match", good="higher", expected=claimed, smallest=0.05)
            for arm in ("instructions", "boilerplate", "prompt weight 0.1")
        ],
        measure=partial(measure, content),
        budget_seconds=1200,
    )


def main() -> None:
    """Run one experiment or both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("content", nargs="?", choices=("short", "long"), help="default: both")
    content = parser.parse_args().content
    for each in [content] if content else ("short", "long"):
        conduct(experiment(each))


if __name__ == "__main__":
    main()
