"""Write docs/models.md from what was measured, and with ``--measure`` measure it again first.

    python -m tests.families.page [--measure]

Measuring takes a few minutes and writes tests/families/results.json.
"""

import json
import sys
import tempfile
import warnings
from pathlib import Path

import peft
import torch
import transformers
from tests.families import measure
from tests.models import FAMILIES, REFUSED, configuration, tiny

from frisket.hf.load import layer_counts

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
RECORD = Path(__file__).parent / "results.json"

HEAD = """# Models

Which model families were checked, and how. Each is built from its transformers configuration at reduced depth (2 to 6
layers) with its real kinds of layers and random weights, because what can go wrong in rows of several samples is
decided by the kinds of layers, not by their size. Measured with torch {torch}, transformers {transformers}, PEFT
{peft} on a CPU; a family that is not in this list is checked by the same three checks at the start of every run, and
refused if they fail.

This page is written by `python -m tests.families.page` from `tests/families/results.json`, and with `--measure` the
file is measured again. Tests check that the page is that of the file, that the file has every family, and, on each run,
that every family keeps the bars below and every refusal says what is written here.

- **alone, padded, isolated, forest**: the weighted loss and the gradient of every parameter in float64, compared with
  transformers' own forward of one sample at a time; the figure is the largest relative difference among them. Rounding
  of float64 is 2e-16; the bar is 1e-10. Where transformers computes in float32 (norms, softmaxes, routers,
  recurrences), the test lets the same code compute in float64. `-`: the family has layers that carry state from token
  to token, so its samples share no row; they are trained `alone`, with samples of one length together.
- **recomputed**: whether recomputing every layer in the backward pass gives the very same gradients, bit by bit (fp32).
- **fp32, bf16**: the largest difference of a logit to transformers' own forward of a real conversation, of what is
  allowed (see `docs/numerics.md`); seam and isolation passed, too, on rows of real conversations.
- **LoRA, full**: four real steps on conversations: first loss → last loss, and the largest difference of a logit
  between what frisket and what plain PEFT or plain transformers read from the folder that was saved (bar: 1e-4).

"""

NOTES = """
## Mixtures of experts

Samples of a row are isolated: a router sees one token at a time, so what a token's experts compute does not depend on
its neighbours. **Router losses are off, and the run says so** (`router     losses off: …`), also where the model's
configuration asks for them (`output_router_logits`): they are means over all tokens of a batch, so they would depend on
how samples are laid into rows, on padding and on what a forest shares. What is minimised is the loss of the text,
divided once. A router that moves without them can come to prefer few experts: full fine-tuning moves it, LoRA on
`all-linear` only where it is a plain linear layer (Gemma 4). In float64 (`train.compute=fp64`) experts are computed one
by one, since torch's grouped matmul has no float64.

## Models that also see or hear

`AutoModelForCausalLM` gives the whole model for Gemma 3 and Gemma 4 checkpoints (`…ForConditionalGeneration`), towers
included, and the text model alone for Qwen3.5. frisket trains the text part: the words of `adapt.where` (`all`,
`all-linear`, ...) mean the language model only. A run whose pattern reaches a tower is refused, because no text would
train it. Checkpoints that transformers does not offer as a causal language model (Mistral 3, Qwen3-VL)
are refused when they are loaded, by the name of their configuration.

## Refused

| family | kind of layers | what frisket says |
|---|---|---|
"""


def page(found: dict) -> str:
    """The page, from what was measured."""
    lines = [HEAD.format(**found["versions"]), *_exactness(found["families"]), "\n## Runs\n\n", *_runs(found)]
    return "".join([*lines, NOTES, *_refused(found["refused"])])


def _exactness(families: dict) -> list[str]:
    lines = [
        "## Exactness\n\n",
        "| family | transformers class | layers | attention + recurrent | alone | padded | isolated | forest |"
        " recomputed |\n",
        "|---|---|---|---:|---:|---:|---:|---:|---|\n",
    ]
    for name, entry in families.items():
        family = FAMILIES[name]
        figures = [_figure(entry["differences"].get(a)) for a in ("alone", "padded", "isolated", "forest")]
        same = "same bits" if entry["recomputed"] else "differs"
        words = [family.label, f"`{entry['class']}`", family.layers, entry["counts"], *figures, same]
        lines.append("| " + " | ".join(words) + " |\n")
    return lines


def _runs(found: dict) -> list[str]:
    lines = ["| family | fp32 | bf16 | LoRA | apart | full | apart |\n", "|---|---|---|---|---:|---|---:|\n"]
    for name, entry in found["families"].items():
        words = [FAMILIES[name].label, *(entry["conformance"][dtype] for dtype in ("fp32", "bf16"))]
        for method in measure.METHODS:
            run = entry[method]
            words += [f"{run['first']:.2f} → {run['last']:.2f}", f"{run['apart']:.1e}"]
        lines.append("| " + " | ".join(words) + " |\n")
    lines.append(
        f"\n`adapt.where` is the default, all-linear for LoRA (rank {measure.RANK}) and all for full fine-tuning. "
        "All-linear leaves out the\n"
    )
    return [*lines, "`out_proj` of Mamba layers, which their fused kernels read past any adapter; the run says so.\n"]


def _refused(refused: dict) -> list[str]:
    return [
        f"| {REFUSED[name].label} | {REFUSED[name].layers} | {' '.join(why.split())} |\n"
        for name, why in refused.items()
    ]


def _figure(difference: float | None) -> str:
    return "-" if difference is None else f"{difference:.0e}"


def recorded() -> dict:
    """What was measured."""
    return json.loads(RECORD.read_text(encoding="utf-8"))


def measured() -> dict:
    """Measure every family and every refusal now."""
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__}
    families = {}
    for name in FAMILIES:
        families[name] = _measured(name)
        print(name, max(families[name]["differences"].values()), flush=True)
    return {
        "versions": {name: version.split("+")[0] for name, version in versions.items()},
        "families": families,
        "refused": {name: measure.refusal(name) for name in REFUSED},
    }


def _measured(name: str) -> dict:
    counts = layer_counts(configuration(name))
    entry = {
        "class": type(tiny(name)).__name__,
        "counts": f"{counts.attention} + {counts.recurrent}",
        "differences": measure.differences(name),
        "recomputed": measure.recomputed_is_kept(name),
        "conformance": {
            "fp32": measure.checks(name, torch.float32).conformance.removesuffix(" allowed"),
            "bf16": measure.checks(name, torch.bfloat16).conformance.removesuffix(" allowed"),
        },
    }
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "base"
        measure.save_base(name, base)
        for method in measure.METHODS:
            trained = measure.train(name, method, base, Path(folder) / method)
            entry[method] = {"first": trained.first, "last": trained.last, "apart": trained.apart}
    return entry


def main() -> None:
    """Write the page."""
    torch.set_num_threads(1)
    if "--measure" in sys.argv[1:]:
        warnings.simplefilter("ignore")
        RECORD.write_text(json.dumps(measured(), indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page(recorded()), encoding="utf-8")


if __name__ == "__main__":
    main()
