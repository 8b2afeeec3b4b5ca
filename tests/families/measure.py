"""What is measured of each family: float64 equality with transformers, the checks of a run, real runs reloaded."""

import json
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from tests.equivalence.test_arrangements import loss_and_gradients, weighted
from tests.equivalence.test_forests import relatives
from tests.models import FAMILIES, configuration, gradients, samples, tiny
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, PreTrainedModel

import frisket
from frisket import bundled
from frisket.adapt.methods import load_adapter
from frisket.attend.forest import plant
from frisket.attend.pack import lay_forest, pack
from frisket.errors import CheckError, UnsupportedError
from frisket.hf.attention import own_attention
from frisket.hf.heads import logits_of
from frisket.hf.load import decoder_layers, layer_counts, load_model, load_tokenizer, recompute_layers
from frisket.hf.settings import ModelSettings
from frisket.train.checks import Checks, check_model, check_seam
from frisket.train.step import Laying
from frisket.types import Leaf, Rows, Sequence

LENGTHS = [7, 3, 12, 1, 16, 3]
NOTHING = 1e-12  # of the largest gradient; below it there is only rounding (softmax takes no notice of key biases)
VOCABULARY = 3072  # the bundled tokenizer's
RANK = 16
METHODS = ("lora", "full")


def packs(name: str) -> bool:
    """Whether samples of this family may share a row."""
    return not layer_counts(configuration(name)).recurrent


# --- equality -------------------------------------------------------------------------------------------------------


def own_loss_and_gradients(model: PreTrainedModel, sequences: list[Sequence], pairs: dict) -> tuple[float, dict]:
    """The weighted loss by the model's own forward, one sample at a time."""
    model.zero_grad()
    total = 0.0
    with own_attention(model):
        for sequence in sequences:
            ids = torch.from_numpy(sequence.input_ids.astype(np.int64))
            logits = model(input_ids=ids[None], use_cache=False).logits[0]
            each = F.cross_entropy(logits[:-1], ids[1:], reduction="none")
            loss = (each * torch.from_numpy(pairs[sequence.sample_id][1][1:])).sum()
            loss.backward()
            total += loss.item()
    return total, {name: grad.clone() for name, grad in gradients(model)}


def largest_difference(ours: tuple[float, dict], truth: tuple[float, dict]) -> float:
    """The largest relative difference of the loss and of each parameter's gradient."""
    assert ours[1].keys() == truth[1].keys()
    norms = {name: float(grad.norm()) for name, grad in truth[1].items()}
    least = NOTHING * max(norms.values())
    apart = [abs(ours[0] - truth[0]) / max(1.0, abs(truth[0]))]
    for name, grad in ours[1].items():
        apart.append(float((grad - truth[1][name]).norm()) / max(norms[name], least))
    return max(apart)


def arrangements(name: str) -> list[str]:
    """What is compared for a family."""
    return ["alone", "padded", *(["isolated", "forest"] if packs(name) else [])]


def differences(name: str) -> dict[str, float]:
    """Largest relative difference to transformers' own forward, by arrangement, in float64."""
    model = tiny(name)
    freeze_other_towers(model)
    moving = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    apart, alike = samples(1, LENGTHS), relatives(3, 6, depth=4)
    found = {}
    for sequences, wanted in ((apart, ("alone", "padded", "isolated")), (alike, ("forest",))):
        chosen = [arrangement for arrangement in arrangements(name) if arrangement in wanted]
        pairs = weighted(sequences, 2)
        truth = own_loss_and_gradients(model, sequences, pairs)
        assert truth[1].keys() == moving, "what has no gradient would be equal without being compared"
        for arrangement in chosen:
            ours = loss_and_gradients(model, _rows(arrangement, sequences), pairs)
            found[arrangement] = largest_difference(ours, truth)
    return found


def _rows(arrangement: str, sequences: list[Sequence]) -> list[Rows]:
    if arrangement == "forest":
        trees = plant(sequences, 25, 1)
        return [lay_forest([[tree] for tree in trees[i : i + 3]], sequences) for i in range(0, len(trees), 3)]
    return pack(sequences, arrangement, 24, 2)


def recomputed_is_kept(name: str) -> bool:
    """Whether recomputing every layer in the backward pass gives the very same gradients (fp32)."""
    model = tiny(name, torch.float32)
    sequences = samples(1, LENGTHS)
    pairs = weighted(sequences, 2)
    rows = _rows("isolated" if packs(name) else "alone", sequences)
    kept = loss_and_gradients(model, rows, pairs)
    recompute_layers(model, len(decoder_layers(model)))
    again = loss_and_gradients(model, rows, pairs)
    return kept[0] == again[0] and all(torch.equal(kept[1][name], again[1][name]) for name in kept[1])


# --- checks of a run, and real runs ---------------------------------------------------------------------------------


@cache
def records() -> list[dict]:
    """Conversations of the bundled set."""
    lines = bundled.train_path().read_text(encoding="utf-8").splitlines()[:12]
    return [{"messages": json.loads(line)["messages"]} for line in lines]


def real_samples() -> list[Sequence]:
    """The conversations as tokens."""
    tokenizer = load_tokenizer(ModelSettings())
    tokens = [tokenizer.apply_chat_template(record["messages"])["input_ids"] for record in records()]
    blank = samples(0, [len(ids) for ids in tokens])
    return [replace(one, input_ids=np.array(ids, np.int32)) for one, ids in zip(blank, tokens, strict=True)]


def wide(name: str, dtype: torch.dtype) -> PreTrainedModel:
    """A family with room for the bundled tokenizer's vocabulary."""
    per_layer = {"vocab_size_per_layer_input": VOCABULARY} if FAMILIES[name].kind == "gemma4_text" else {}
    return tiny(name, dtype, vocab_size=VOCABULARY, **per_layer)


def checks(name: str, dtype: torch.dtype) -> Checks:
    """What every run proves before its first step, on real conversations in one row where the family packs."""
    model = wide(name, dtype)
    freeze_other_towers(model)
    return check_model(model, real_samples(), Laying("forest" if packs(name) else "alone", 512, 2, "grouped", 256))


def freeze_other_towers(model: PreTrainedModel) -> None:
    """Let the text part and the head move only."""
    text = {id(parameter) for parameter in model.get_decoder().parameters()}
    for parameter in model.base_model.parameters():
        parameter.requires_grad_(id(parameter) in text)


@dataclass(frozen=True)
class Trained:
    """A real run of four steps.

    Attributes:
        first: loss of the first step.
        last: loss of the last one.
        apart: largest difference of a logit between frisket's reading of what was saved and plain transformers' or
            PEFT's.
        moved: largest difference of a logit between the base and what was saved.
    """

    first: float
    last: float
    apart: float
    moved: float


def save_base(name: str, folder: Path) -> None:
    """The family as a plain transformers folder with the bundled tokenizer."""
    model = wide(name, torch.float32)
    model.set_attn_implementation("eager")
    model.save_pretrained(folder)
    load_tokenizer(ModelSettings()).save_pretrained(folder)


def train(name: str, method: str, base: Path, out: Path) -> Trained:
    """Train four steps on the conversations, and read what was saved without frisket."""
    recipe = {
        "adapt": {"method": method} | ({"rank": RANK} if method == "lora" else {}),
        "train": {
            "max_steps": 4,
            "step_tokens": 200,
            "compute": "fp32",
            "learning_rate": 0.003,
            "recompute": "none",
            "save_every": 0,
        },
        "attend": {"row_tokens": 256},
        "evaluate": "off",
    }
    frisket.finetune(recipe, model=str(base), data=records(), out=out)
    losses = [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    ids = torch.from_numpy(real_samples()[0].input_ids.astype(np.int64))[None]
    with torch.no_grad():
        before = AutoModelForCausalLM.from_pretrained(base).eval()(ids).logits
        plain = _without_frisket(method, base, out).eval()(ids).logits
        ours = _with_frisket(method, base, out, ids)
    return Trained(losses[0], losses[-1], float((plain[0] - ours).abs().max()), float((plain - before).abs().max()))


def _without_frisket(method: str, base: Path, out: Path) -> torch.nn.Module:
    if method == "full":
        return AutoModelForCausalLM.from_pretrained(out / "model")
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), out / "adapter")


def _with_frisket(method: str, base: Path, out: Path, ids: torch.Tensor) -> torch.Tensor:
    folder = out / "model" if method == "full" else base
    model = load_model(ModelSettings(path=str(folder)), torch.float32, torch.device("cpu"))
    if method != "full":
        load_adapter(model, out / "adapter")
    length = ids.shape[1]
    zeros = np.zeros((1, length), np.int64)
    rows = Rows(ids.numpy(), np.arange(length)[None], zeros, np.array([-1]), (Leaf("s0", 0, 0),))
    return logits_of(model, rows)


# --- refusals -------------------------------------------------------------------------------------------------------


def refusal(name: str) -> str:
    """Why a family of ``REFUSED`` is not trained, in the words of the error that says so.

    Raises:
        AssertionError: it is not refused.
    """
    try:
        layer_counts(configuration(name))
        check_seam(tiny(name, torch.float32), pack(samples(0, [8]), "alone", 1)[0], "grouped")
    except (UnsupportedError, CheckError) as error:
        return str(error)
    raise AssertionError(f"{name} is not refused")
