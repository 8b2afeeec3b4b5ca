"""Settings that change how a run computes, never what it computes; and models that cannot share rows."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.equivalence.test_arrangements import assert_same, loss_and_gradients, weighted
from tests.models import samples
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from frisket.attend.pack import pack
from frisket.errors import ConfigError, UnsupportedError
from frisket.hf.load import ready
from frisket.recipe import Recipe
from frisket.run import train


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    lines = [{"prompt": f"alpha {'beta ' * n}", "completion": f"gamma {'delta ' * (n % 3)}"} for n in range(1, 9)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def run(model: Path, data: Path, out: Path, **train_settings) -> dict[str, torch.Tensor]:
    settings = {"max_steps": 2, "step_tokens": 200, "learning_rate": 0.01, "compute": "fp32"} | train_settings
    recipe = {"model": {"path": str(model)}, "data": [{"path": str(data)}], "train": settings, "evaluate": "off"}
    train(Recipe.model_validate(recipe), out=out)
    return load_file(out / "adapter" / "adapter_model.safetensors")


@pytest.mark.parametrize("recompute", ["all", 1])
def test_recomputed_layers_change_nothing(small_model, pairs, tmp_path, recompute):
    kept = run(small_model, pairs, tmp_path / "kept", recompute="none")
    again = run(small_model, pairs, tmp_path / "again", recompute=recompute)
    assert all(torch.equal(kept[name], again[name]) for name in kept)


def test_more_layers_than_there_are_cannot_be_recomputed(small_model, pairs, tmp_path):
    with pytest.raises(ConfigError, match="the model has 2 layers"):
        run(small_model, pairs, tmp_path / "out", recompute=3)


def test_tensorboard_events_are_written(small_model, pairs, tmp_path):
    pytest.importorskip("tensorboard")
    run(small_model, pairs, tmp_path / "out", track=["tensorboard"])
    assert list((tmp_path / "out" / "tensorboard").glob("events*"))


@pytest.fixture(scope="module")
def hybrid(small_model, tmp_path_factory) -> Path:
    """Three recurrent layers and one of attention, in the manner of Qwen3.5."""
    if "qwen3_5_text" not in CONFIG_MAPPING:
        pytest.skip("this transformers has no Qwen3.5")
    config = CONFIG_MAPPING["qwen3_5_text"](
        vocab_size=320,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        layer_types=["linear_attention", "full_attention"],
        linear_num_key_heads=2,
        linear_num_value_heads=2,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        max_position_embeddings=512,
    )
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("hybrid")
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(small_model).save_pretrained(folder)
    return folder


def test_samples_of_one_length_go_through_a_hybrid_together(hybrid):
    """A batch of equally long rows gives the loss and gradients of its samples alone."""
    model = ready(AutoModelForCausalLM.from_pretrained(hybrid, dtype=torch.float32))
    sequences = samples(0, [14, 9, 14, 14])
    pairs = weighted(sequences, 1)
    together = pack(sequences, "alone", 64)
    assert [rows.input_ids.shape for rows in together] == [(3, 14), (1, 9)]
    singly = [rows for sequence in sequences for rows in pack([sequence], "alone", 64)]
    assert_same(loss_and_gradients(model, together, pairs), loss_and_gradients(model, singly, pairs), bar=1e-5)


def test_a_hybrid_model_gets_one_sample_a_row(hybrid, pairs, tmp_path):
    run(hybrid, pairs, tmp_path / "out")
    checks = json.loads((tmp_path / "out" / "summary.json").read_text())["checks"]
    assert checks["seam"] == "1 attention layers, 1 recurrent layers beside them"
    assert "foreign tokens bit-identical, gradient into it 0" in checks["isolation"]


def test_a_hybrid_model_refuses_shared_rows(hybrid, pairs, tmp_path):
    recipe = {"model": {"path": str(hybrid)}, "data": [{"path": str(pairs)}], "attend": {"arrangement": "isolated"}}
    with pytest.raises(UnsupportedError, match="carry state from sample to sample"):
        train(Recipe.model_validate(recipe), out=tmp_path / "out")
