"""What of PEFT is refused by name, GPT-2's transposed layers, and adapters read back from a folder."""

import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.models import samples, tiny, tiny_gpt2

from frisket.adapt.lora import Lora
from frisket.adapt.methods import load_adapter, saved_tensors
from frisket.adapt.peft import (
    NEEDS_OWN_LOOP,
    NOT_OF_LINEARS,
    REFUSED_OPTIONS,
    SOFT_PROMPTS,
    Ia3,
    LnTuning,
    Peft,
)
from frisket.attend.pack import pack
from frisket.errors import CheckError, ConfigError, UnsupportedError
from frisket.hf.forward import hidden_states

ROWS = pack(samples(0, [6, 9]), "isolated", 64)[0]


def attach(method, model=None):
    model = tiny(dtype=torch.float32) if model is None else model
    return method.attach(model, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", sorted(SOFT_PROMPTS))
def test_soft_prompts_are_refused(kind):
    with pytest.raises(UnsupportedError, match=f"{kind}: PEFT's soft prompts leak between the samples"):
        attach(Peft(peft_type=kind.lower()))


@pytest.mark.parametrize("kind", sorted(NEEDS_OWN_LOOP))
def test_types_with_a_loop_of_their_own_are_refused(kind):
    with pytest.raises(UnsupportedError, match=f"{kind} needs calls of its own in the training loop"):
        attach(Peft(peft_type=kind))


@pytest.mark.parametrize("kind", sorted(NOT_OF_LINEARS))
def test_types_that_move_something_else_are_refused(kind):
    with pytest.raises(UnsupportedError, match=f"{kind} does not move linear layers.\nUse adapt.method="):
        attach(Peft(peft_type=kind))


def test_every_refused_type_exists_in_peft():
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    assert {kind.value for kind in PEFT_TYPE_TO_CONFIG_MAPPING} >= {*SOFT_PROMPTS, *NEEDS_OWN_LOOP, *NOT_OF_LINEARS}


@pytest.mark.parametrize(("kind", "hint"), [("VERO", " Nearest: VERA."), ("lorra", " Nearest: LORA."), ("XYZXYZ", "")])
def test_an_unknown_type_is_answered_with_the_nearest(kind, hint):
    with pytest.raises(ConfigError, match=re.escape(f"= {kind.upper()!r} is no method of PEFT.{hint}") + "$"):
        attach(Peft(peft_type=kind))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("n_freqency", "adapt.options.n_freqency: PEFT's FourierFTConfig has no such option. Nearest: n_frequency."),
        ("qqq", "adapt.options.qqq: PEFT's FourierFTConfig has no such option."),
        ("task_type", "adapt.options.task_type: PEFT's FourierFTConfig has no such option."),
    ],
)
def test_an_unknown_option_is_answered_with_the_nearest(option, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        attach(Peft(peft_type="FOURIERFT", options={option: 3}))


def test_dropout_is_refused():
    with pytest.raises(UnsupportedError, match="with dropout a row would not equal its samples"):
        attach(Peft(peft_type="LORA", options={"lora_dropout": 0.1}))
    attach(Peft(peft_type="LORA", options={"lora_dropout": 0.0}))


@pytest.mark.parametrize("option", sorted(REFUSED_OPTIONS))
def test_options_that_change_the_model_around_the_adapter_are_refused(option):
    with pytest.raises(UnsupportedError, match=f"adapt.options.{option} changes the model around the adapter"):
        attach(Peft(peft_type="LORA", options={option: ["lm_head"]}))


@pytest.mark.parametrize(
    ("options", "model"),
    [
        ({"init_lora_weights": "pissa"}, tiny),
        ({"init_lora_weights": "olora"}, tiny),
        ({"bias": "all"}, tiny_gpt2),
        ({"bias": "lora_only"}, tiny_gpt2),
    ],
)
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")
def test_options_that_move_the_base_itself_are_refused(options, model):
    with pytest.raises(UnsupportedError, match="change the base's own weights: they would be neither"):
        attach(Peft(peft_type="LORA", options=options), model(dtype=torch.float32))


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        ("C3A", {"block_size": 7}, "PEFT's C3AConfig refuses these options or layers: The block size should be"),
        ("LORA", {"r": "many"}, "PEFT's LoraConfig refuses these options or layers: '<=' not supported"),
        ("LORA", {"loftq_config": 3, "init_lora_weights": "loftq"}, "PEFT's LoraConfig refuses these options"),
    ],
)
def test_what_peft_refuses_is_said_in_its_words(kind, options, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        attach(Peft(peft_type=kind, options=options))


@pytest.mark.parametrize(
    "method", [Lora(where="norms"), Ia3(where="embeddings"), Peft(peft_type="VERA", where="norms")]
)
def test_methods_of_linear_layers_refuse_other_modules(method):
    with pytest.raises(ConfigError, match=r"(1 module|\d modules) \(.*(Norm|Embedding).*\) but no linear layer"):
        attach(method)


def test_a_method_that_finds_nothing_to_move_is_refused(monkeypatch):
    monkeypatch.setattr("frisket.adapt.peft.AttachedPeft.parameters", lambda self: {})
    with pytest.raises(ConfigError, match=r"LoraConfig.*found nothing to move in the matched modules"):
        attach(Lora(rank=2))


@pytest.mark.parametrize("method", [Lora(rank=2), Lora(rank=2, dora=True), Ia3(where="all-linear"), LnTuning()])
def test_gpt2_attaches_without_a_warning_merges_and_detaches(method):
    model = tiny_gpt2(torch.float64).eval()
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    before = hidden_states(model, ROWS)
    attached = attach(method, model)
    model.to(torch.float64)
    assert torch.equal(hidden_states(model, ROWS), before) or isinstance(method, Lora)
    attached.detach()
    assert all(torch.equal(tensor, base[name]) for name, tensor in model.state_dict().items())
    attached = attach(method, model)
    with torch.no_grad():
        for parameter in attached.parameters().values():
            parameter.add_(0.05)
    moved = hidden_states(model.to(torch.float64), ROWS)
    attached.merge()
    assert (hidden_states(model, ROWS) - moved).abs().max() <= 1e-10
    assert (moved - before).abs().max() > 1e-3


@pytest.mark.filterwarnings("ignore:Detected that the base layer has no bias:UserWarning")
@pytest.mark.parametrize("kind", ["LILY", "BEFT"])
def test_what_cannot_be_merged_says_so(kind):
    attached = attach(Peft(peft_type=kind, options={"r": 4, "num_B": 2, "stride_A": 1} if kind == "LILY" else {}))
    with pytest.raises(UnsupportedError, match=r"PEFT cannot merge this adapter: (This method|Base layer)"):
        attached.merge()


def test_a_broken_adapter_is_not_merged():
    attached = attach(Lora(rank=2))
    with torch.no_grad():
        next(iter(attached.parameters().values())).fill_(float("nan"))
    with pytest.raises(UnsupportedError, match="PEFT cannot merge this adapter: NaNs detected"):
        attached.merge()


def test_a_folder_without_adapter_is_refused(tmp_path):
    with pytest.raises(CheckError, match=r"holds neither adapter_config\.json nor frisket_adapter\.json: no adapter"):
        load_adapter(tiny(dtype=torch.float32), tmp_path)


def test_saved_tensors_are_checked(tmp_path):
    attached = attach(Lora(rank=2))
    attached.save(tmp_path, attached.state())
    tensors = saved_tensors(tmp_path)
    assert len(tensors) == len(attached.parameters())
    file = tmp_path / "adapter_model.safetensors"
    broken = load_file(file)
    name = sorted(broken)[3]
    broken[name][0, 0] = float("inf")
    save_file(broken, file)
    with pytest.raises(CheckError, match=f"1 tensors are not finite, first {re.escape(name)}"):
        saved_tensors(tmp_path)
    save_file({}, file)
    with pytest.raises(CheckError, match="holds an empty adapter"):
        saved_tensors(tmp_path)
