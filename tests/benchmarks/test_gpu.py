"""The GPU's benchmark in small, on a CPU: every kind of part runs, and what there is no time for is named."""

import json

import pytest
import torch
from benchmarks.gpu import Bench, lengths_of

from benchmarks import gpu

TINY = Bench(torch.device("cpu"), True)


def test_parts_that_fit_are_measured_and_kept(tmp_path, capsys):
    found = gpu.run(TINY, ["attention", "forests"], 600, tmp_path / "gpu.json")
    assert found["parts"]["forests"]["flat_over_computed"] > 2
    assert set(found["parts"]["attention"]) == {"dense mask", "groups of samples", "no mask (mask-free)"}
    assert not found["left_out"]
    assert json.loads((tmp_path / "gpu.json").read_text())["parts"] == found["parts"]
    gpu.show(found)
    assert "left out: nothing" in capsys.readouterr().out


def test_a_step_of_a_shape_is_timed_beside_its_floor():
    told = gpu.training(TINY, "Qwen3-0.6B", "drawn lengths", TINY.gemm_rate())
    assert told["tokens_a_second"] > 0
    assert 0 < told["mfu"] < 1


def test_what_does_not_fit_or_fails_is_named_and_costs_nothing_else(tmp_path, monkeypatch):
    assert gpu.run(TINY, ["attention"], 1, tmp_path / "a.json")["left_out"] == ["attention: no time left"]

    def fails(bench):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(gpu, "attention", fails)
    found = gpu.run(TINY, ["attention", "forests"], 600, tmp_path / "b.json")
    assert found["left_out"] == ["attention: RuntimeError: out of memory"]
    assert "forests" in found["parts"]


def test_lengths_fill_a_step_and_no_row_is_too_long():
    drawn = lengths_of("drawn lengths", 32768, 4096)
    assert sum(drawn) >= 32768
    assert 109 <= min(drawn) <= 4096
    assert 300 < sorted(drawn)[len(drawn) // 2] < 500  # the median of the percentiles is 342
    assert lengths_of("rows of 4,096", 32768, 4096) == [4096] * 8


def test_all_parts_fit_into_one_call():
    assert sum(gpu.PARTS.values()) < 540


@pytest.mark.parametrize("shape", gpu.SHAPES)
def test_the_configurations_are_the_models_they_are_named_after(shape):
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    from frisket.hf.load import empty_model

    settings = dict(gpu.SHAPES[shape])
    with torch.device("meta"):
        model = empty_model(CONFIG_MAPPING[settings.pop("model_type")](**settings))
    billions = {"Llama-3.1-8B": 8.03, "Qwen3-1.7B": 1.72, "Qwen3-0.6B": 0.596}[shape]
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e9 == pytest.approx(billions, rel=0.01)
