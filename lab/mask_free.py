"""Packing without packing-aware masking: python -m lab.mask_free [benign|contradictory].

Three ways to train the same samples in the same steps: a dense mask (`isolated`, backend `sdpa`), our segment backend
(`isolated`, backend `grouped`), and no mask (`mask-free`: plain causal attention over the row). LoRA on query and
value, as the method asks. All are evaluated on prompts alone. In *benign* rows samples do not contradict each other
(each copies letters of its own); in *contradictory* rows they do: every sample lists values of the same few keys, each
time others, and asks for one. Rate and skills were chosen by a look at one seed of the segment arm, so that it learns.

Source: Seo and Jung, Mathematics 2025, 13(20), 3344, of which only the abstract could be read (see
``evaluate.contamination``).
"""

import argparse
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from frisket import bundled
from lab.experiment import Arm, Expectation, Experiment, conduct, train_on_bundled

MEANING = {
    "mask-free-benign": (
        "The method needs no mask and is yet slower here than our segment backend, which computes only what the mask "
        "allows; against a dense mask nothing could be shown. Whether it costs quality where samples do not contradict "
        "each other stayed undecided: all five seeds were lower, by one to eight points. There is no reason here to "
        "prefer it."
    ),
    "mask-free-contradictory": (
        "Every one of five seeds was lower without a mask, by 2.8 points in the mean: less than the five that were "
        "called an effect beforehand, so this stayed undecided. A dense mask and our segments give the same quality, "
        "as they must; the segments are faster."
    ),
}
WORK = Path(__file__).with_name("work") / "mask-free"
SKILLS = {"benign": ("copy",), "contradictory": ("lookup",)}
ARMS = {
    "dense mask": ["attend.arrangement=isolated", "attend.backend=sdpa"],
    "segments": ["attend.arrangement=isolated", "attend.backend=grouped"],
    "no mask": ["attend.arrangement=mask-free", "attend.backend=grouped"],
}
COMMON = [
    "adapt.rank=16",
    'adapt.where=["*.q_proj", "*.v_proj"]',
    "train.learning_rate=1e-2",
    "train.step_tokens=4096",
    "train.max_steps=48",
    "train.threads=2",
    "attend.row_tokens=1024",
    "data.0.hold_out=0",
    "evaluate.every=0",
    "evaluate.budget_seconds=120",
    "evaluate.learning.0.name=taught",
    "evaluate.learning.0.metric=exact_match",
    "evaluate.learning.0.max_new_tokens=48",
    "evaluate.forgetting=[]",
]


def files(content: str) -> tuple[Path, Path]:
    """Write the training and evaluation samples of some skills of the bundled data."""
    WORK.mkdir(parents=True, exist_ok=True)
    made = []
    for name, source in (("train", bundled.train_path()), ("eval", bundled.eval_path())):
        lines = source.read_text(encoding="utf-8").splitlines(keepends=True)
        made.append(WORK / f"{content}-{name}.jsonl")
        made[-1].write_text("".join(x for x in lines if json.loads(x)["skill"] in SKILLS[content]), encoding="utf-8")
    return made[0], made[1]


def measure(content: str, arm: Arm, seed: int) -> dict[str, float]:
    """Train one arm and return what it learned, what a step took, and what the meter says."""
    train, held = files(content)
    settings: Sequence[str] = arm.settings
    places = [f"data.0.path={train}", f"evaluate.learning.0.path={held}", f"train.seed={seed}"]
    summary = train_on_bundled([*settings, *places])
    after = summary["learning"]["taught"]["after"]
    found = {
        "exact_match": after["exact_match"],
        "loss": after["loss"],
        "seconds_a_step": summary["seconds"]["steps"] / summary["steps"],
    }
    for moment in ("before", "after") if "contamination" in summary else ():
        metered = summary["contamination"][moment]
        found |= {
            f"{name} {moment}": metered[name]
            for name in ("foreign_mass", "foreign_share", "foreign_norm", "attenuation")
            if metered[name] is not None
        }
    return found


def experiment(content: str) -> Experiment:
    """The experiment on one content of rows; its expectations were written before its first run."""
    quality = "no difference that counts" if content == "benign" else "worse"
    return Experiment(
        name=f"mask-free-{content}",
        question=f"What does training without a mask cost and save, on {content} rows?",
        arms={name: [*COMMON, *settings] for name, settings in ARMS.items()},
        expectations=[
            Expectation("no mask", "segments", "exact_match", good="higher", expected=quality, smallest=0.05),
            Expectation("no mask", "segments", "seconds_a_step", good="lower", expected="worse", smallest=0.01),
            Expectation("no mask", "dense mask", "seconds_a_step", good="lower", expected="better", smallest=0.01),
            Expectation(
                "dense mask",
                "segments",
                "exact_match",
                good="higher",
                expected="no difference that counts",
                smallest=0.05,
            ),
        ],
        measure=partial(measure, content),
        budget_seconds=900,
    )


def main() -> None:
    """Run one experiment or both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("content", nargs="?", choices=list(SKILLS), help="default: both")
    content = parser.parse_args().content
    for each in [content] if content else SKILLS:
        conduct(experiment(each))


if __name__ == "__main__":
    main()
