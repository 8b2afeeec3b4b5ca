"""From a recipe to a prediction: what is counted, what is said when it does not fit, what a run writes down."""

import json
import os
from dataclasses import replace

import pytest
import torch

from frisket import bundled
from frisket.recipe import load_recipe
from frisket.run import memory
from frisket.run.memory import forecast, foresee, spent
from frisket.run.prepare import prepare
from frisket.train import products
from frisket.train.memory import KERNEL_BYTES, KERNELS, bound_kernels, peak_bytes
from frisket.watch import Silent


class _Heard(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []
        self.warned: list[str] = []

    def say(self, line: str) -> None:
        self.said.append(line)

    def warn(self, line: str) -> None:
        self.warned.append(line)


@pytest.fixture(scope="module")
def chats(tmp_path_factory):
    path = tmp_path_factory.mktemp("memory") / "chats.jsonl"
    asked = [{"role": "user", "content": f"Say {n}."} for n in range(8)]
    answers = [{"role": "assistant", "content": "one two three four " * 20} for _ in asked]
    path.write_text("".join(json.dumps({"messages": pair}) + "\n" for pair in zip(asked, answers, strict=True)))
    return path


def _prepared(chats, *words: str):
    common = ["data.0.hold_out=0", "train.max_steps=4", "train.compute=bf16"]
    if not any(word.startswith("evaluate.") for word in words):
        common.append("evaluate=off")
    return prepare(load_recipe(None, [*common, *words], model="bundled", data=[str(chats)]), Silent())


def _terms(found, phase: str) -> dict[str, int]:
    assert found.peak is not None
    return {term.name: term.bytes for each in found.peak.phases if each.name == phase for term in each.terms}


def test_every_tensor_of_full_fine_tuning_is_counted(chats):
    config = json.loads((bundled.base_path() / "config.json").read_text())
    found = _terms(forecast(_prepared(chats, "adapt.method=full"), 0), "train step")
    moving = found["masters"] // 4
    assert moving > config["vocab_size"] * config["hidden_size"]
    assert found["moving weights"] == 2 * moving
    assert 8 * moving <= found["optimizer"] <= 8 * moving + 4096
    assert "weights" not in found
    assert "masters" not in _terms(forecast(_prepared(chats, "adapt.method=full", "train.compute=fp32"), 0), "saving")


def test_lora_moves_little_and_keeps_the_base_once(chats):
    lora = forecast(_prepared(chats, "adapt.method=lora", "adapt.rank=16"), 0)
    full = forecast(_prepared(chats, "adapt.method=full"), 0)
    found, whole = _terms(lora, "train step"), _terms(full, "train step")
    assert found["weights"] == whole["moving weights"]
    assert found["optimizer"] < whole["optimizer"] / 10
    sgd = _terms(
        forecast(_prepared(chats, "adapt.method=lora", "train.optimizer=sgd", "train.learning_rate=1"), 0), "train step"
    )
    assert sgd["optimizer"] == 0


def test_longer_rows_take_more_and_recomputing_takes_less(chats):
    short, long = (_terms(forecast(_prepared(chats, f"attend.row_tokens={n}"), 0), "train step") for n in (128, 512))
    assert long["activations"] > 2 * short["activations"]
    again = forecast(_prepared(chats, "attend.row_tokens=512", "train.recompute=all"), 0)
    assert again.choice.layers == 4
    assert _terms(again, "train step")["activations"] < long["activations"] / 2


def test_quantised_weights_are_counted_in_their_own_width(chats):
    prepared = _prepared(chats, "adapt.method=lora")
    quantised = prepared.recipe.model_copy(update={"model": prepared.recipe.model.model_copy(update={"load": "4bit"})})
    plain = _terms(forecast(prepared, 0), "saving")
    found = _terms(forecast(replace(prepared, recipe=quantised), 0), "saving")
    assert found["quantised weights"] == pytest.approx((plain["weights"] - found["weights"]) / 2 * 0.516, rel=1e-6)


def test_what_does_not_fit_is_said_with_knobs_and_figures(chats, monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda device: 10 << 20)
    heard = _Heard()
    words = ("adapt.method=lora", "adapt.rank=16", "attend.row_tokens=2048")
    found = foresee(_prepared(chats, *words), 0, None, heard)
    assert not found.choice.fits
    assert found.choice.layers == 4
    (line,) = heard.warned
    for knob in ("attend.row_tokens=1024", "adapt.rank=8", "model.load=4bit"):
        assert knob in line
    assert any(text.startswith("recompute  4 of 4 layers, predicted") for text in heard.said)


def test_a_model_that_cannot_be_traced_is_said_and_trained(chats, monkeypatch):
    def refuse(*_: object) -> None:
        raise NotImplementedError("no meta kernel")

    monkeypatch.setattr(memory, "trace", refuse)
    found = forecast(_prepared(chats), 0)
    assert (found.peak, found.choice.layers) == (None, 0)
    assert found.facts()[0] == ("memory", "not predicted: this model cannot be traced without its weights")
    assert found.as_dict()["memory"] is None
    assert spent(found, torch.device("cpu"))["predicted_bytes"] is None


def test_answering_keeps_keys_and_values_of_the_largest_batch(chats):
    config = json.loads((bundled.base_path() / "config.json").read_text())
    width = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    each = 2 * 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * width  # bf16, keys and values
    forgetting = "evaluate.forgetting=[{name: d, prompts: 5, answer_tokens: 30}]"
    prepared = _prepared(chats, "evaluate.samples=0", "evaluate.learning=[]", forgetting)
    row = int(prepared.dataset.lengths.max()) + 30
    assert _terms(forecast(prepared, 0), "answering")["keys and values"] == 5 * row * each
    few = _prepared(chats, "evaluate.samples=0", "evaluate.learning=[]", forgetting, f"evaluate.batch_tokens={2 * row}")
    assert _terms(forecast(few, 0), "answering")["keys and values"] == 2 * row * each
    exact = "evaluate.learning=[{name: m, metric: exact_match, max_new_tokens: 100, path: " + str(chats) + "}]"
    many = _terms(forecast(_prepared(chats, exact, forgetting), 0), "answering")["keys and values"]
    assert many == (8192 // (row + 70)) * (row + 70) * each
    without = "evaluate.forgetting=[{name: d, prompts: 0}]"
    none = forecast(_prepared(chats, "evaluate.samples=0", "evaluate.learning=[]", without), 0)
    assert "keys and values" not in _terms(none, "answering")
    assert "keys and values" not in _terms(forecast(_prepared(chats, "evaluate=off"), 0), "answering")


def test_what_is_not_counted_is_said(chats, monkeypatch):
    def refuse(*_: object) -> None:
        raise RuntimeError("Tensor.item() cannot be called on meta tensors")

    whole = forecast(_prepared(chats), 0)
    assert "not counted" not in whole.facts()[0][1]
    assert whole.as_dict()["memory"]["uncounted"] == []
    monkeypatch.setattr(memory, "cache_bytes", refuse)
    monkeypatch.setattr(memory, "attach", refuse)
    name, text = forecast(_prepared(chats, "adapt.method=lora", "evaluate.samples=2"), 0).facts()[0]
    assert name == "memory"
    assert "; not counted: the adapter, since PEFT builds lora on weights only" in text
    assert "; not counted: keys and values of generated answers" in text


def test_disk_counts_checkpoints_that_are_kept_and_one_more(chats):
    prepared = _prepared(chats, "adapt.method=lora", "train.keep=2")
    disk = {steps: {t.name: t.bytes for t in forecast(prepared, steps).disk} for steps in (0, 1)}
    assert disk[1]["checkpoints"] * 2 == disk[0]["checkpoints"] * 3
    assert disk[0]["adapter"] * 3 < disk[0]["checkpoints"] / 2 * 1.1
    assert disk[0]["token store"] > 0


def test_the_summary_gets_both_figures(chats):
    told = spent(forecast(_prepared(chats), 0), torch.device("cpu"))
    assert told["predicted_bytes"] > 100 << 20
    assert told["peak_bytes"] <= peak_bytes(torch.device("cpu"))


def test_few_kernels_are_kept_unless_the_environment_says_otherwise(monkeypatch):
    monkeypatch.delenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", raising=False)
    bound_kernels()
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "64"
    monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "200")
    bound_kernels()
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "200"


def test_each_length_brings_kernels_and_a_mixture_soon_has_all(chats, monkeypatch):
    prepared = _prepared(chats)
    few = _terms(forecast(prepared, 0), "train step")["kernels"]
    monkeypatch.setattr(memory.load, "is_mixture", lambda model: True)
    assert 0 < few < _terms(forecast(prepared, 0), "train step")["kernels"] == KERNELS * KERNEL_BYTES
    assert "kernels" not in _terms(forecast(_prepared(chats, "train.compute=fp64"), 0), "train step")
    monkeypatch.setattr(products, "is_exact", lambda: False)  # then torch's own library computes fp32
    assert "kernels" not in _terms(forecast(_prepared(chats, "train.compute=fp32"), 0), "train step")
