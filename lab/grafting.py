"""How few fine-tuned entries keep a skill? python -m lab.grafting

Panigrahi et al. 2023 (arXiv 2302.06600): of RoBERTa fine-tuned with SGD, 0.01 % of the entries keep 95 % of the
accuracy, once a mask over the entries that moved most is learnt; after AdamW only where an L1 penalty (1e-3) on the
change held the fine-tuning back. Here the bundled base is fine-tuned in full (AdamW, all linear layers) on the one
skill that it never met, writing every letter twice, with and without that penalty. Then entries are put back onto the
base: those that *moved most*; those of a *learnt* mask (`adapt.method=graft`, which starts at the most moved ones and
grows); as many of the most moved as the learnt mask ended with (*most moved, as many*); as many *at random* as the
first; and *all*.

Kept is what the graft gains over the base, as a share of what the whole fine-tuning gains: of exact answers to 100
prompts that nobody trained on (`kept`), and of the loss on them (`kept_loss`). A mask is learnt, and the best one
chosen, on training samples alone. A share can be below 0 (a graft can be worse than the base); of no gain it is 0.
`calibration_error` is the expected calibration error of the graft on those prompts' answers.

The expectations were written after a look at seed 100, which is not in the experiment (docs/log.md): of the gain in
loss the most moved entries kept 2 and 15 % (plain), 8 and 66 % (L1) at 0.1 and 1 %. Searches of 24 steps that began at
0.1 % ended at 0.6 and 0.7 % (L1, plain) with the authors' rate, 1e7, which is taken; at 2.1 and 5.2 % with 1e8, and at
3.8 and 15.5 % with 1e9.
"""

import functools
import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from frisket import bundled
from frisket.adapt import sparse
from frisket.adapt.tuned import moved, top_moved
from frisket.recipe import load_recipe
from lab.experiment import Arm, Expectation, Experiment, Results, conduct, train_on_bundled
from lab.figure import draw
from lab.judging import Judge, Scores

WORK = Path(__file__).with_name("work") / "grafting"
SKILL = "double"
SIZES = {"0.01 %": 1e-4, "0.1 %": 1e-3, "1 %": 1e-2}
MASKS = ("most moved", "learnt", "most moved, as many", "random")
PENALTIES = {"plain": 0.0, "L1": 1e-3}
COMMON = [
    "train.threads=2",
    "train.save_every=0",
    "train.compute=fp32",
    "evaluate.forgetting=[]",
    "evaluate.samples=0",
    "evaluate.budget_seconds=120",
]
TUNE = [*COMMON, "adapt.method=full", "adapt.where=all-linear", "train.step_tokens=1024", "train.epochs=3"]
SEARCH = [*COMMON, "adapt.method=graft", "train.step_tokens=2048", "train.max_steps=16", "train.learning_rate=1e7"]
ARMS = {
    f"{penalty}, {size}, {mask}": {"l1": strength, "keep": keep, "mask": mask}
    for penalty, strength in PENALTIES.items()
    for size, keep in SIZES.items()
    for mask in MASKS
} | {f"{penalty}, all": {"l1": strength, "keep": 1.0, "mask": "most moved"} for penalty, strength in PENALTIES.items()}
MEANING = {
    "grafting": (
        "A skill of this small base does not sit in few entries: of the exact answers, no graft that began at 0.01 to "
        "1 % kept more than 2 %, where the paper's RoBERTa kept 95 % of its accuracy with 0.01 %. In loss the order is "
        "the paper's: the L1 penalty concentrates the change (the most moved 1 % keep 65 % of the gain, 16 % without), "
        "and a learnt mask keeps more than as many of the most moved entries, more than twice as much without L1. "
        "A search grows its mask, from 0.01 % to 0.4 and 0.6 %, so compare at the size that it ended with."
    )
}


def training_file() -> Path:
    """The bundled training samples of the one skill."""
    WORK.mkdir(parents=True, exist_ok=True)
    lines = bundled.train_path().read_text(encoding="utf-8").splitlines(keepends=True)
    file = WORK / f"{SKILL}.jsonl"
    file.write_text("".join(line for line in lines if json.loads(line)["skill"] == SKILL), encoding="utf-8")
    return file


def run(overrides: Sequence[str]) -> Path:
    """Train once: a finished run with the same words is used again."""
    words = [f"data.0.path={training_file()}", "data.0.hold_out=60", *overrides]
    out = WORK / hashlib.sha256(json.dumps(words).encode()).hexdigest()[:12]
    if not (out / "summary.json").exists():
        shutil.rmtree(out, ignore_errors=True)
        train_on_bundled(words, out)
    return out


def tuned(l1: float, seed: int) -> Path:
    """The full fine-tuning that all masks of one seed and penalty are taken from."""
    return run([*TUNE, f"adapt.l1_to_start={l1}", f"train.seed={seed}", "evaluate.every=0"])


def learnt(l1: float, seed: int, keep: float) -> Path:
    """The search for a mask, which begins with the share ``keep``."""
    of = f"adapt.of={tuned(l1, seed)}"
    return run([*SEARCH, of, f"adapt.keep={keep}", f"train.seed={seed}", "evaluate.every=0.25"])


@functools.cache
def judge() -> Judge:
    """What measures all of them: prompts that nobody trained on."""
    held = ["evaluate.learning.0.name=held", f"evaluate.learning.0.path={bundled.unseen_path()}"]
    asks = ["evaluate.learning.0.metric=exact_match", "evaluate.learning.0.max_new_tokens=32"]
    words = [*COMMON, *held, *asks, f"data.0.path={training_file()}"]
    return Judge(load_recipe(None, words, model="bundled", data=["bundled"]))


@functools.cache
def judged(l1: float | None, seed: int) -> Scores:
    """The whole fine-tuning; without a penalty's strength, the base."""
    return judge().of({} if l1 is None else load_file(tuned(l1, seed) / "model" / "model.safetensors"))


def masks(base: Mapping[str, Tensor], after: Mapping[str, Tensor], arm: Mapping, seed: int) -> dict[str, Tensor]:
    """True at the entries that one arm puts back, by name of their tensor; of the tensors in ``after``."""
    changes = [moved(base[name], after[name]) for name in after]
    keep = arm["keep"]
    if arm["mask"] in ("learnt", "most moved, as many"):
        found = sparse.read(learnt(arm["l1"], seed, keep) / "adapter")[0]
        keep = sparse.entries_of(found) / sum(change.numel() for change in changes)
        if arm["mask"] == "learnt":
            return {name: at_indices(change, found.get(name)) for name, change in zip(after, changes, strict=True)}
    if arm["mask"] == "random":
        generator = torch.Generator().manual_seed(seed)
        changes = [torch.rand(change.shape, generator=generator) + 1e-9 for change in changes]
    return dict(zip(after, top_moved(changes, keep), strict=True))


def at_indices(like: Tensor, change: sparse.Change | None) -> Tensor:
    """True at the entries that a sparse change touches."""
    mask = torch.zeros(like.numel(), dtype=torch.bool)
    if change is not None:
        mask[change.indices] = True
    return mask.view_as(like)


def measure(arm: Arm, seed: int) -> dict[str, float]:
    """What one mask keeps of the fine-tuning."""
    whole, base = judged(arm.settings["l1"], seed), judged(None, 0)
    weights = load_file(tuned(arm.settings["l1"], seed) / "model" / "model.safetensors")
    after = {name: value for name, value in weights.items() if name.endswith("_proj.weight")}
    chosen = masks(judge().base, after, arm.settings, seed)
    graft = judge().of({name: torch.where(chosen[name], after[name].float(), judge().base[name]) for name in after})

    def kept(metric: str) -> float:
        low, high = base.learning["held"][metric], whole.learning["held"][metric]
        return (graft.learning["held"][metric] - low) / (high - low) if high != low else 0.0

    return {
        "kept": kept("exact_match"),
        "kept_loss": kept("loss"),
        "exact_match": graft.learning["held"]["exact_match"],
        "loss": graft.learning["held"]["loss"],
        "calibration_error": graft.calibration.error,
        "entries": sum(int(mask.sum()) for mask in chosen.values()),
        "tuned_exact_match": whole.learning["held"]["exact_match"],
        "tuned_loss": whole.learning["held"]["loss"],
        "tuned_calibration_error": whole.calibration.error,
        "base_loss": base.learning["held"]["loss"],
    }


def expectations() -> list[Expectation]:
    """What the paper claims, as far as it can be asked here; and that 0.01 % is too little for so small a model."""
    loss = {"metric": "kept_loss", "good": "higher", "smallest": 0.05}
    found = [
        Expectation(f"L1, {size}, most moved", f"plain, {size}, most moved", expected="better", **loss)
        for size in ("0.1 %", "1 %")
    ]
    found += [
        Expectation(f"L1, {size}, learnt", f"L1, {size}, most moved, as many", expected="better", **loss)
        for size in SIZES
    ]
    found += [
        Expectation("plain, 1 %, learnt", "plain, 1 %, most moved, as many", expected="better", **loss),
        Expectation("L1, 1 %, most moved", "L1, 1 %, random", expected="better", **loss),
        Expectation("L1, 1 %, learnt", "L1, all", expected="worse", **loss),
        Expectation("L1, 0.01 %, learnt", "L1, all", "kept", good="higher", expected="worse", smallest=0.05),
        Expectation("L1, 1 %, learnt", "L1, all", "kept", good="higher", expected="worse", smallest=0.05),
        Expectation("L1, 1 %, learnt", "L1, all", "calibration_error", good="lower", expected="better", smallest=0.02),
    ]
    return found


EXPERIMENT = Experiment(
    name="grafting",
    question="How much of a skill do 0.01, 0.1 and 1 % of the fine-tuned entries keep, with and without an L1 penalty?",
    arms=ARMS,
    expectations=expectations(),
    measure=measure,
    budget_seconds=1500,
)


def main() -> None:
    """Run the experiment and draw it."""
    results = conduct(EXPERIMENT)
    picture(results, EXPERIMENT.file.with_suffix(".svg"))


def picture(results: Results, file: Path) -> None:
    """Share of the gain in loss that each kind of mask keeps, over its entries."""
    lines = {}
    for penalty in PENALTIES:
        for mask in MASKS:
            points = [_point(results, f"{penalty}, {size}, {mask}") for size in SIZES]
            lines[f"{penalty}, {mask}"] = sorted(point for point in points if point)
    draw(file, "Grafts of a skill", "entries", "share of the gain in loss", lines, log_x=True)


def _point(results: Results, arm: str) -> tuple[float, float, float, float] | None:
    runs = [each["values"] for each in results["runs"] if each["arm"] == arm]
    if not runs:
        return None
    kept = [values["kept_loss"] for values in runs]
    entries = sum(values["entries"] for values in runs) / len(runs)
    return entries, sum(kept) / len(kept), min(kept), max(kept)


if __name__ == "__main__":
    main()
