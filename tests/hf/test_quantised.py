"""Layers in 4 and 8 bits on the CPU: what they compute, that samples stay apart, what moves, and the way back."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.models import samples, tiny
from transformers import AutoTokenizer, PreTrainedModel

import frisket
from frisket import bundled
from frisket.adapt.methods import Full, LnTuning, Lora, load_adapter
from frisket.attend.pack import pack
from frisket.errors import ConfigError, UnsupportedError
from frisket.hf import load, quantised
from frisket.hf.heads import logits_of
from frisket.hf.settings import ModelSettings
from frisket.run.opening import open_folder
from frisket.train.checks import check_model
from frisket.train.optim import Optimizer
from frisket.train.settings import TrainSettings
from frisket.train.step import Laying, lay_out, run_step

CPU = torch.device("cpu")
LAYING = Laying("isolated", 128, 1, "auto", 64)
SAMPLES = samples(0, [30, 20, 25, 40])
STEP = lay_out([(s, np.ones(len(s))) for s in SAMPLES], LAYING, "weights")

needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("small")
    model = tiny("llama", torch.float32, hidden_size=64, intermediate_size=128)
    model.set_attn_implementation("sdpa")
    model.save_pretrained(path)
    return str(path)


def loaded(folder, kind, dtype=torch.float32, **settings):
    return load.load_model(ModelSettings(path=folder, load=kind, **settings), dtype, CPU)


def logits(model):
    return logits_of(model, pack(SAMPLES, "isolated", 200)[0])


@needs_bitsandbytes
@pytest.mark.parametrize("kind", ["4bit", "8bit"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_loaded_layers_are_narrow_and_computed_in_the_run_s_type(folder, kind, dtype):
    model, plain = loaded(folder, kind, dtype), loaded(folder, "none", dtype)
    layers = quantised.quantised_layers(model)
    assert len(layers) == 14  # the seven linear layers of two blocks; neither head nor embedding
    assert {layer.weight.dtype for layer in layers.values()} == {torch.uint8 if kind == "4bit" else torch.int8}
    assert {p.dtype for p in model.parameters() if p.is_floating_point()} == {dtype}
    assert sum(map(quantised.entries, model.parameters())) == sum(p.numel() for p in plain.parameters())
    bar = 0.11 if kind == "4bit" else 0.02
    for name, layer in layers.items():
        exact = plain.get_submodule(name).weight.detach()
        assert float((quantised.dense_weight(layer, dtype) - exact).norm() / exact.norm()) < bar, name
    if kind == "4bit":
        state = layers["model.layers.0.mlp.up_proj"].weight.quant_state
        assert (state.quant_type, state.nested, state.blocksize) == ("nf4", True, 64)


@needs_bitsandbytes
@pytest.mark.parametrize("kind", ["4bit", "8bit"])
@pytest.mark.parametrize("arrangement", ["isolated", "forest", "padded"])
def test_samples_stay_apart_bit_for_bit(folder, kind, arrangement):
    model = loaded(folder, kind)
    Lora().attach(model, torch.Generator().manual_seed(0))
    checks = check_model(model, SAMPLES, Laying(arrangement, 128, 1, "auto", 64))
    assert "bit-identical" in checks.isolation


@needs_bitsandbytes
@pytest.mark.parametrize("kind", ["4bit", "8bit"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_those_of_the_dequantised_model(folder, kind, dtype):
    found = []
    for model in (loaded(folder, kind, dtype), quantised.dequantised(loaded(folder, kind, dtype), dtype)):
        attached = Lora().attach(model, torch.Generator().manual_seed(0))
        load.cast_parameters(model, dtype)
        load.recompute_layers(model, 1)
        optimizer = Optimizer(attached.parameters(), TrainSettings(), dtype)
        losses = [run_step(model, attached, optimizer, STEP, LAYING, number=n, rate=1e-3).loss for n in (1, 2, 3)]
        found.append((losses, dict(optimizer.masters)))
    assert found[0][0][2] < found[0][0][0]
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    for name, value in found[0][1].items():
        torch.testing.assert_close(value, found[1][1][name], rtol=1e-3, atol=1e-6)


@needs_bitsandbytes
@pytest.mark.parametrize("method", [Lora(), Lora(dora=True), Lora(where=["all-linear", "head"]), LnTuning()])
def test_methods_move_what_they_name_and_come_off(folder, method):
    model = loaded(folder, "4bit")
    bare = logits(model)
    packed = {name: layer.weight.data.clone() for name, layer in quantised.quantised_layers(model).items()}
    attached = method.attach(model, torch.Generator().manual_seed(0))
    optimizer = Optimizer(attached.parameters(), TrainSettings(weight_decay=0.1), torch.float32)
    losses = [run_step(model, attached, optimizer, STEP, LAYING, number=n, rate=1e-2).loss for n in (1, 2, 3)]
    assert losses[2] < losses[0]
    attached.detach()
    for name, before in packed.items():
        assert torch.equal(model.get_submodule(name).weight.data, before)
    if method.method != "ln_tuning":
        assert torch.equal(logits(model), bare)


@needs_bitsandbytes
@pytest.mark.parametrize("kind", ["4bit", "8bit"])
def test_dequantised_computes_the_same_and_saves_as_a_plain_model(folder, kind, tmp_path):
    model = loaded(folder, kind)
    before = logits(model)
    plain = quantised.dequantised(model, torch.float32)
    assert plain is model
    assert not quantised.quantised_layers(plain)
    assert torch.equal(logits(plain), before)
    plain.set_attn_implementation("sdpa")
    plain.save_pretrained(tmp_path)
    assert quantised.stored_as(load.load_config(ModelSettings(path=str(tmp_path)))) == "none"
    torch.testing.assert_close(logits(loaded(str(tmp_path), "none")), before, rtol=1e-5, atol=1e-6)


@needs_bitsandbytes
@pytest.mark.parametrize("kind", ["4bit", "8bit"])
def test_files_that_are_quantised_already_load_the_same(folder, kind, tmp_path):
    model = loaded(folder, kind)
    before = logits(model)
    model.set_attn_implementation("sdpa")
    model.save_pretrained(tmp_path)
    again = loaded(str(tmp_path), "none")
    assert len(quantised.quantised_layers(again)) == 14
    assert torch.equal(logits(again), before)
    other = "8bit" if kind == "4bit" else "4bit"
    with pytest.raises(ConfigError, match=f"model.load = {other}: the model's files are quantised to {kind} already"):
        loaded(str(tmp_path), other)
    config = load.load_config(ModelSettings(path=str(tmp_path)))
    with pytest.raises(UnsupportedError, match=f"the model's files are quantised to {kind}: adapt.method = full"):
        quantised.refuse_method("none", config, "full", works=False)


@needs_bitsandbytes
def test_how_much_is_narrow_is_said(folder):
    assert quantised.lines(loaded(folder, "none")) == []
    (line,) = quantised.lines(loaded(folder, "4bit"))
    assert "in NF4" in line
    (line,) = quantised.lines(loaded(folder, "8bit"))
    assert "LLM.int8" in line


@needs_bitsandbytes
def test_a_device_that_bitsandbytes_does_not_know_is_refused(folder):
    config = load.load_config(ModelSettings(path=folder))
    with pytest.raises(UnsupportedError, match=r"bitsandbytes has nothing for device vulkan.*\nUse model.load=none"):
        quantised.options_of("4bit", config, torch.float32, torch.device("vulkan"))


def test_without_the_package_the_command_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UnsupportedError, match=r"needs the package bitsandbytes: pip install 'frisket\[quantised\]'"):
        loaded(folder, "4bit")


@pytest.mark.parametrize(
    ("method", "why"), [("full", "moves the base's own weights"), ("ia3", "was not tried on them")]
)
def test_methods_that_do_not_fit_are_refused_by_name(folder, method, why):
    config = load.load_config(ModelSettings(path=folder))
    with pytest.raises(UnsupportedError, match=f"model.load = 4bit: adapt.method = {method} {why}.*\n.*method=lora"):
        quantised.refuse_method("4bit", config, method, works=False)
    quantised.refuse_method("none", config, method, works=False)
    assert not Full.about.quantised


@needs_bitsandbytes
@pytest.mark.parametrize("kind", ["4bit", "8bit"])
def test_the_codes_do_not_depend_on_the_type_that_is_computed_in(folder, kind):
    """Training computes in bf16, merging in fp32: both must have the weights that were trained on."""
    assert load.stored_dtype(ModelSettings(path=folder), None) == torch.float32
    narrow, wide, again = (
        quantised.quantised_layers(loaded(folder, kind, t)) for t in (torch.bfloat16, torch.float32, torch.float16)
    )
    for name, layer in wide.items():
        assert torch.equal(layer.weight.data, narrow[name].weight.data), name
        assert torch.equal(layer.weight.data, again[name].weight.data), name
        dense = (quantised.dense_weight(found[name], torch.float32) for found in (narrow, wide))
        assert torch.equal(*dense), name


@pytest.mark.parametrize(
    ("method", "hint"), [("fp8", ""), ("gptq", ""), ("awq", ""), ("mxfp4", " in bf16"), ("compressed-tensors", "")]
)
def test_files_that_others_quantised_are_refused_by_name(folder, tmp_path, method, hint):
    for file in Path(folder).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method, "bits": 4, "group_size": 32}
    (tmp_path / "config.json").write_text(json.dumps(config))
    message = f"files are quantised with {method};.*\nGive a checkpoint of the same model{hint} that is not quantised"
    with pytest.raises(UnsupportedError, match=message):
        loaded(str(tmp_path), "none")
    with pytest.raises(UnsupportedError, match=message):
        quantised.refuse_method("none", load.load_config(ModelSettings(path=str(tmp_path))), "lora", works=True)


def test_eight_bit_floats_are_codes_and_never_cast():
    model = tiny(dtype=torch.float32)
    layer = model.get_submodule("model.layers.0.mlp.up_proj")
    layer.weight = torch.nn.Parameter(layer.weight.detach().to(torch.float8_e4m3fn), requires_grad=False)
    load.cast_parameters(model, torch.bfloat16)
    assert layer.weight.dtype == torch.float8_e4m3fn
    assert model.get_input_embeddings().weight.dtype == torch.bfloat16


@needs_bitsandbytes
def test_a_model_handed_over_must_be_quantised_as_the_recipe_says(folder):
    plain, four = loaded(folder, "none"), loaded(folder, "4bit")
    quantised.refuse_given("none", plain)
    quantised.refuse_given("4bit", four)
    quantised.refuse_given("none", four, stored="4bit")
    with pytest.raises(ConfigError, match=r"model.load = 4bit: .* handed over is not quantised.*\nUse model.load=none"):
        quantised.refuse_given("4bit", plain)
    with pytest.raises(ConfigError, match=r"handed over is 4bit quantised, and .* on a 8bit base"):
        quantised.refuse_given("8bit", four)
    with pytest.raises(
        ConfigError, match=r"load = none: .* is 4bit quantised, .* on unquantised weights.*\nUse .*=4bit,"
    ):
        quantised.refuse_given("none", four)


@needs_bitsandbytes
@pytest.mark.parametrize("other", [{"bnb_4bit_quant_type": "fp4"}, {"bnb_4bit_use_double_quant": False}])
def test_codes_that_cannot_be_made_again_are_refused(folder, other):
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    own = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    same, given = (
        AutoModelForCausalLM.from_pretrained(folder, quantization_config=BitsAndBytesConfig(**(own | changed)))
        for changed in ({}, other)
    )
    quantised.refuse_given("4bit", same)
    quantised.refuse_given("none", given, stored="4bit")
    with pytest.raises(ConfigError, match=r"has other 4-bit codes than NF4 .*\nGive model.path and no model"):
        quantised.refuse_given("4bit", given)


@needs_bitsandbytes
def test_a_quantised_model_in_python_is_trained_as_what_it_is_or_not_at_all(tmp_path):
    """What is opened later computes what was trained: the same 4-bit base below the adapter."""
    words = AutoTokenizer.from_pretrained(bundled.base_path())
    records = [{"prompt": f"a {n}", "completion": "b"} for n in range(6)]
    settings = {"evaluate": "off", "train": {"max_steps": 1, "step_tokens": 64, "compute": "fp32"}}

    def four() -> PreTrainedModel:
        return load.load_model(ModelSettings(path="bundled", load="4bit"), torch.float32, CPU)

    with pytest.raises(ConfigError, match=r"Use model.load=4bit, or hand over"):
        frisket.finetune(settings, model=four(), tokenizer=words, data=records, out=tmp_path / "none")
    assert not (tmp_path / "none").exists()
    given = settings | {"model": {"load": "4bit"}}
    frisket.finetune(given, model=four(), tokenizer=words, data=records, out=tmp_path / "four")
    opened = open_folder(tmp_path / "four", compute="fp32").model
    again = four()
    load_adapter(again, tmp_path / "four" / "adapter")
    assert torch.equal(logits(opened), logits(again.eval()))
    assert quantised.quantised_layers(opened)


@needs_bitsandbytes
def test_quantised_layers_that_are_handed_over_compute_as_those_that_we_load(folder):
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    given = AutoModelForCausalLM.from_pretrained(folder, quantization_config=BitsAndBytesConfig(load_in_8bit=True))
    assert torch.equal(logits(load.ready(given).eval()), logits(loaded(folder, "8bit").eval()))
