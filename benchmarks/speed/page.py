"""The side-by-side as a page: ``python -m benchmarks.speed.page`` writes docs/side-by-side.md from the results."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from frisket.run.folder import read_json

ROOT = Path(__file__).parents[2]
RESULTS, PAGE = ROOT / "benchmarks" / "results", ROOT / "docs" / "side-by-side.md"
TARGETS = {
    "q-and-v": "LoRA r=16 on q and v",
    "all-linear": "LoRA r=16 on all linear layers",
    "full": "full fine-tuning",
}
HEAD = """\
# Beside TRL and plain transformers

Every arm below is a process of its own; all train on the same samples with the same tokens, targets, LoRA and AdamW,
and take turns in one run. Before the first step all must report the same tokens and targets and start from the same
loss (1e-5 in fp32, 1e-2 in bf16); otherwise nothing is measured. Tokens are real ones, without padding. The floor is
the least time the machine could take: the operations of linear layers, attention pairs and head that the samples need,
over the rate of the fastest matrix product measured in the same run (`benchmarks/speed/floor.py`). Memory is the
largest resident memory beyond that after all imports. `TRL default` is `SFTConfig(use_cpu=True, max_length=None)` and
nothing else.
"""


def page() -> str:
    """The page, from what was measured; a part that was not measured is left out."""
    parts = {name: _read(name) for name in ("speed", "cpu-headline", "first-step", "same-numbers", "growth")}
    told = [HEAD]
    if speed := parts["speed"]:
        told += _speed(speed, parts["cpu-headline"])
    for name, section in (("first-step", _first_step), ("same-numbers", _same_numbers), ("growth", _growth)):
        if found := parts[name]:
            told += section(found)
    return "\n".join(told) + "\n"


def _read(name: str) -> Any:
    path = RESULTS / f"{name}.json"
    return read_json(path) if path.exists() else None


def _where(results: Mapping[str, Any]) -> str:
    told = results["environment"]
    others = ", ".join(f"{name} {told[name]}" for name in ("transformers", "trl", "peft") if name in told)
    return f"*{told['machine']}, {others}, commit `{told['commit'][:9]}`.*"


def _speed(results: Mapping[str, Any], headline: Mapping[str, Any] | None) -> Iterable[str]:
    told = ["## Speed and memory of a step", "", _where(results), "", "Again: `make bench DATA=folder`.", ""]
    if headline:
        told += [
            "On the shape of 25 million parameters frisket in bf16 is "
            f"**{headline['ratio_to_best_peer']:.2f} times** as fast as the best other arm and "
            f"**{headline['ratio_to_peer_default']:.1f} times** as fast as TRL's default "
            "(the lower of the first two cases; `benchmarks/results/cpu-headline.json`).",
            "",
        ]
    for name, case in results["cases"].items():
        shape, targets = name.rsplit(", ", 1)
        rate = ", ".join(f"{kind} {value:,.0f}" for kind, value in case["gflops"].items())
        told += [
            f"### {shape}, {TARGETS[targets]}",
            "",
            f"{case['flops_a_token'] / 1e6:,.0f} million operations a token; GFLOP/s of the fastest product: {rate}; "
            f"{case['turns']} turns of {case['steps_a_turn']} steps of {case['case']['step_tokens']:,} tokens.",
            "",
            "| arm | tokens/s | taught/s | of the floor | frisket bf16 is | MiB |",
            "|---|---:|---:|---:|---:|---:|",
        ]
        for arm, row in case["arms"].items():
            times = f"{row['frisket_is_faster_by']:.2f} ×" if row["frisket_is_faster_by"] else ""
            cells = (f"{row['tokens_a_second']:,.0f}", f"{row['taught_a_second']:,.0f}", f"{row['of_the_floor']:.2f}")
            told.append(f"| {arm} | {' | '.join(cells)} | {times} | {row['extra_mib']:,} |")
        told.append("")
    return told


def _first_step(results: Mapping[str, Any]) -> Iterable[str]:
    told = [
        "## From the command to the first step",
        "",
        _where(results),
        "",
        f"All {results['samples']:,} problems of GSM8K, no store of tokens, files read before; until the end of the "
        f"first step of {results['batch']} problems (medians of {len(results['arms']['TRL']['turns'])} turns). "
        f"`frisket --help` takes {results['help_seconds']:.2f} s.",
        "",
        "| command | seconds | of TRL's |",
        "|---|---:|---:|",
    ]
    told += [f"| {name} | {row['seconds']:.1f} | {row['of_trl']:.2f} |" for name, row in results["arms"].items()]
    why = "The default measures what was known before: held-out samples, the text that it forgets on, some answers."
    return [*told, "", why, ""]


def _same_numbers(results: Mapping[str, Any]) -> Iterable[str]:
    exact = results["fp32 beside TRL"]
    told = [
        "## The same numbers",
        "",
        _where(results),
        "",
        f"In fp32 TRL, padded, replays {exact['steps']} steps of frisket's: the largest gap between the losses of a "
        f"step is {exact['largest gap']:.1g}, of losses from {exact['frisket'][0]:.2f} to {exact['frisket'][-1]:.2f}. "
        "In bf16 the mean final loss (the last tenth of the steps) of the seeds, beside fp32's:",
        "",
        "| shape | steps | seeds | fp32 | bf16 | difference |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for shape, each in results["bf16 beside fp32"].items():
        means, seeds = each["mean"], len(each["final"]["fp32"])
        cells = (each["steps"], seeds, f"{means['fp32']:.4f}", f"{means['bf16']:.4f}", f"{each['difference']:+.3%}")
        told.append(f"| {shape} | {' | '.join(map(str, cells))} |")
    return [*told, ""]


def _growth(results: Mapping[str, Any]) -> Iterable[str]:
    told = [
        "## What grows with the data",
        "",
        _where(results),
        "",
        "| samples in the store | tokens/s | of a step: the loader | resident MiB |",
        "|---:|---:|---:|---:|",
    ]
    for count, row in results["samples"].items():
        cells = (f"{row['tokens_a_second']:,.0f}", f"{row['loader_share']:.2%}", f"{row['resident_mib']:,}")
        told.append(f"| {int(count):,} | {' | '.join(cells)} |")
    rows, fit = results["row_length"], results["row_length"]["fit"]
    told += [
        "",
        f"Forward and backward over {rows['tokens']:,} tokens in rows of one length take {fit['seconds']:.2f} s and "
        f"{fit['seconds_a_1000_tokens_of_length']:.2f} s for every thousand tokens of length: at {rows['tokens']:,} "
        f"attention's quadratic part is {rows['quadratic_share_of_the_longest']:.0%}.",
        "",
        f"| length | {' | '.join(rows['seconds'])} |",
        f"|---|{'---:|' * len(rows['seconds'])}",
        f"| seconds | {' | '.join(f'{value:.2f}' for value in rows['seconds'].values())} |",
        "",
        "A million lengths of GSM8K's, packed best-fit decreasing: "
        + "; ".join(
            f"rows of {int(capacity):,}: {each['seconds']:.1f} s, {each['fill']:.2%} full"
            for capacity, each in results["packing"].items()
        )
        + ".",
    ]
    return told


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
