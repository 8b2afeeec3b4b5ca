"""Mixtures of experts are known by their configuration, and what is left out of their training is said."""

import json

import pytest
import torch
from tests.families import measure
from tests.models import FAMILIES, configuration, tiny
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import frisket
from frisket.hf.load import cast_parameters, is_mixture, ready
from frisket.hf.mixture import expert_count, router_losses
from frisket.watch import Silent

MIXTURES = {name for name, family in FAMILIES.items() if "experts" in family.layers}


@pytest.mark.parametrize("name", FAMILIES)
def test_experts_are_counted_from_the_configuration(name):
    assert expert_count(configuration(name)) == (4 if name in MIXTURES else 0)


def test_experts_go_by_several_names():
    assert expert_count(CONFIG_MAPPING["ernie4_5_moe"](moe_num_experts=8)) == 8
    assert expert_count(CONFIG_MAPPING["hunyuan_v1_moe"](num_experts=6)) == 6


def test_router_losses_are_off_and_said_so():
    assert router_losses(configuration("llama")) is None
    said = "router     losses off: 4 experts and their router learn from the text alone"
    assert router_losses(configuration("qwen3_moe")) == said
    asked = configuration("qwen3_moe", output_router_logits=True, router_aux_loss_coef=0.02)
    assert router_losses(asked) == (
        "router     losses off, though the model's configuration asks for them (output_router_logits, "
        "router_aux_loss_coef 0.02): 4 experts and their router learn from the text alone"
    )


class Lines(Silent):
    def __init__(self):
        self.lines = []

    def say(self, line):
        self.lines.append(line)


def test_a_run_says_it_and_trains_the_same_with_and_without(tmp_path):
    """The configuration's wish changes the line and not one loss."""
    losses = []
    for asked in (False, True):
        base, lines = tmp_path / f"base-{asked}", Lines()
        measure.save_base("qwen3_moe", base)
        config = json.loads((base / "config.json").read_text())
        (base / "config.json").write_text(json.dumps(config | {"output_router_logits": asked}))
        recipe = {"train": {"max_steps": 2, "step_tokens": 200, "compute": "fp32"}, "evaluate": "off"}
        recipe["attend"] = {"arrangement": "isolated"}
        out = tmp_path / f"out-{asked}"
        frisket.finetune(recipe, model=str(base), data=measure.records(), out=out, watcher=lines)
        (said,) = [line for line in lines.lines if line.startswith("router")]
        assert ("though the model's configuration asks" in said) == asked
        losses.append((out / "metrics.jsonl").read_text())
    assert losses[0] == losses[1]


@pytest.mark.parametrize("name", ["qwen3_moe", "gpt_oss", "deepseek_v3", "gemma4_moe"])
def test_experts_compute_in_float64_where_the_run_does(name):
    """Torch's grouped matmul, which transformers takes by default, has no float64."""
    model = tiny(name, torch.float32)
    assert is_mixture(model)
    assert model.config._experts_implementation == "grouped_mm"
    cast_parameters(model, torch.float64)
    assert model.config._experts_implementation == "eager"
    model.set_experts_implementation("grouped_mm")
    assert ready(model).config._experts_implementation == "eager"
