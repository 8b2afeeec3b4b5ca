"""The floors of the benchmark of methods, by hand on a model of one block; and that every case is measured."""

import json

import pytest
import torch
from benchmarks.method_floors import Load, Rates, Work, floor_of
from benchmarks.methods import CASES, arm_of, load_of, measure, page
from pydantic import TypeAdapter
from tests.adapt.cases import METHODS
from tests.models import tiny

from frisket.adapt.methods import Method

ONE = {"num_hidden_layers": 1, "tie_word_embeddings": False}
LINEARS = [(32, 32), (32, 16), (32, 16), (32, 32), (32, 48), (32, 48), (48, 32)]
T, P, S = 100, 1000, 40


def floor(settings: dict) -> Work:
    """Of a method on one block, whose layers are named as in the model."""
    model = tiny(dtype=torch.float32, **ONE)
    names = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]
    names += ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
    linears = {f"model.layers.0.{name}": sizes for name, sizes in zip(names, LINEARS, strict=True)}
    load = Load(linears, T, 2, P, S, 32, 32, 64, 1, 4)
    method = TypeAdapter(Method).validate_python(settings)
    return floor_of(method, method.attach(model, torch.Generator().manual_seed(0)), load)


PRODUCTS = sum(2 * T * i * o for i, o in LINEARS)
THROUGH = 2 * PRODUCTS + 3 * 4 * P * 32 + 2 * 2 * S * 32 * 64
ENTRIES = sum(i * o for i, o in LINEARS)
BY_HAND = {
    "full": ({"method": "full"}, THROUGH + PRODUCTS + 2 * S * 32 * 64),
    "lora": ({"method": "lora", "rank": 4}, THROUGH + sum(6 * T * 4 * (i + o) for i, o in LINEARS)),
    "mft": ({"method": "mft"}, THROUGH + PRODUCTS),
    "spiel": ({"method": "spiel", "entries": 100}, THROUGH + PRODUCTS),
    "ia3": ({"method": "ia3"}, THROUGH),
    "prompt": ({"method": "prompt", "tokens": 5}, THROUGH + 12 * T * 5 * 32 + 4 * 5 * 2 * ENTRIES),
    "prefix": ({"method": "prefix", "tokens": 5}, THROUGH + 12 * T * 5 * 32),
    "head": ({"method": "full", "where": "head"}, PRODUCTS + 4 * P * 32 + 3 * 2 * S * 32 * 64),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_the_operations_of_a_floor_are_those_counted_by_hand(name):
    settings, flops = BY_HAND[name]
    assert floor(settings).flops == flops


def test_the_bytes_of_a_floor_are_those_of_the_update_and_of_the_passes():
    assert floor({"method": "lora", "rank": 4}).bytes == 28 * sum(4 * (i + o) for i, o in LINEARS)
    passes = 2 * ((2 * 4 + 1) + 4 * 4) + (4 + 1)
    assert floor({"method": "mft"}).bytes == (28 + passes) * ENTRIES


def test_operations_and_bytes_take_their_time_one_after_the_other():
    assert Rates(10.0, 5.0).seconds(Work(20.0, 15.0)) == 5.0


def test_every_method_is_measured_and_none_is_below_its_forward():
    assert {case["method"] for case in CASES.values()} == set(METHODS)
    plain = arm_of(TypeAdapter(Method).validate_python(CASES["ln_tuning"]), "bundled")
    load = load_of(plain.model, plain.step)
    assert load.tokens == plain.step.flat_tokens
    assert len(load.linears) == 28


def test_a_case_takes_turns_with_lora_and_becomes_a_line_of_the_page():
    told = measure("bundled", ["spiel"], 1)
    (entry,) = told["methods"].values()
    assert len(entry["turns"]) == 1
    assert entry["of_floor"] == pytest.approx(entry["floor_seconds"] / entry["seconds"], abs=2e-3)
    environment = {"machine": "a machine", "threads": 2, "compute": "bfloat16", "commit": "0"}
    assert "| spiel |" in page(json.loads(json.dumps({"environment": environment, "shapes": {"bundled": told}})))
