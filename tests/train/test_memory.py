"""Which layers are computed again, what a step is predicted to allocate, and what is free."""

from functools import partial

import numpy as np
import pytest
import torch
from tests.models import samples, tiny
from torch import Tensor

from frisket.adapt.lora import Lora
from frisket.attend.pack import pack
from frisket.errors import ConfigError
from frisket.hf.attention import counted
from frisket.hf.forward import hidden_states
from frisket.hf.load import cast_parameters, recompute_layers
from frisket.supervise.loss import CROSS_ENTROPY
from frisket.supervise.predictions import predictions
from frisket.train.memory import Phase, Prediction, Term, choose_recompute, free_bytes, left_in_group, peak_bytes, sized
from frisket.train.memory_trace import trace
from frisket.types import MicroBatch

GIB = 1 << 30


def test_a_recomputed_layer_runs_twice_and_the_others_once():
    model = tiny(dtype=torch.float32)
    recompute_layers(model, 1)
    with counted() as count:
        hidden_states(model, pack(samples(0, [9]), "alone", 1)[0]).sum().backward()
    layers = {module.layer_idx: calls for module, calls in count.calls.items()}
    assert layers == {0: 2, 1: 1}


def _model(family: str, dtype: torch.dtype, rank: int | None):
    model = tiny(family, dtype=torch.float32)
    if rank:
        Lora(rank=rank).attach(model, torch.Generator().manual_seed(0))
    cast_parameters(model, dtype)
    return model


def _micro_batch(lengths: list[int]) -> MicroBatch:
    made = samples(0, lengths)
    rows = pack(made, "isolated", sum(lengths))[0]
    listed = predictions(rows, {s.sample_id: (s, np.ones(len(s))) for s in made})
    return MicroBatch(rows, listed, sum(lengths))


def _kept(model, micro_batch: MicroBatch) -> int:
    """Bytes of all storages that autograd saves in a real forward on the CPU, but for the model's own."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    found: dict[int, tuple[int, Tensor]] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden_states(model, micro_batch.rows, "grouped")
    return sum(count for count, _ in found.values())


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "qwen3_moe", "gpt_oss"])
@pytest.mark.parametrize(("dtype", "rank"), [(torch.float32, None), (torch.bfloat16, 4)])
@pytest.mark.parametrize("lengths", [[300], [40, 70, 30]])
def test_what_the_meta_device_keeps_is_what_autograd_keeps(family, dtype, rank, lengths):
    if family in ("qwen3_moe", "gpt_oss") and dtype == torch.float32:
        pytest.skip("torch 2.13 has grouped matmuls on the meta device in bf16 only: such a run is not predicted")
    model, micro_batch = _model(family, dtype, rank), _micro_batch(lengths)
    kept = _kept(model, micro_batch)
    traced = trace(model.to("meta"), micro_batch, "grouped", 1024, CROSS_ENTROPY)
    assert traced.kept == pytest.approx(kept, rel=0.04)
    assert sum(traced.layers) == pytest.approx(traced.kept, rel=0.3)  # embedding, positions and the last norm aside


def test_recomputed_layers_keep_their_inputs_only():
    model, micro_batch = _model("llama", torch.float32, None), _micro_batch([300])
    traced = trace(_model("llama", torch.float32, None).to("meta"), micro_batch, "grouped", 1024, CROSS_ENTROPY)
    recompute_layers(model, 1)
    assert traced.kept_with(1) == pytest.approx(_kept(model, micro_batch), rel=0.1)
    assert traced.kept_with(1) < traced.kept_with(0) == traced.kept
    assert traced.largest(1) == traced.layers[0]
    assert traced.largest(0) == 0


def test_the_loss_holds_a_chunk_of_logits_and_not_all():
    model, micro_batch = _model("llama", torch.bfloat16, 4), _micro_batch([300])
    of = {c: trace(model.to("meta"), micro_batch, "grouped", c, CROSS_ENTROPY).loss for c in (64, 256)}
    vocab = model.config.vocab_size
    assert of[256] - of[64] == pytest.approx(192 * vocab * 12, rel=0.2)


def test_the_trace_leaves_no_gradient_and_counts_shapes_in_16_bits_only():
    model = _model("llama", torch.bfloat16, None).to("meta")
    assert trace(model, _micro_batch([30]), "grouped", 64, CROSS_ENTROPY).matmuls > 0
    assert all(parameter.grad is None for parameter in model.parameters())
    wide = _model("llama", torch.float32, None).to("meta")
    assert trace(wide, _micro_batch([30]), "grouped", 64, CROSS_ENTROPY).matmuls == 0


def _predict(recomputed: int, always: int = 2 * GIB, layer: int = GIB) -> Prediction:
    kept = Term("activations", (10 - recomputed) * layer, "")
    phases = (Phase("checks", (Term("weights", always, ""),)), Phase("train step", (Term("weights", always, ""), kept)))
    return Prediction(phases, recomputed, 10, "cpu")


def test_auto_recomputes_as_few_layers_as_fit():
    assert choose_recompute("auto", 10, _predict, 20.0 * GIB).layers == 0
    found = choose_recompute("auto", 10, _predict, 9.0 * GIB)
    assert (found.layers, found.fits) == (3, True)
    assert found.told == "3 of 10 layers, predicted 9.0 GiB of 9.0 GiB free"


def test_auto_says_when_not_even_all_layers_recomputed_fit():
    found = choose_recompute("auto", 10, partial(_predict, always=8 * GIB), 4.0 * GIB)
    assert (found.layers, found.fits) == (10, False)


def test_what_is_asked_for_is_done_and_nothing_is_predicted_without_free_memory():
    assert choose_recompute("none", 10, _predict, 1.0).layers == 0
    assert choose_recompute("all", 10, _predict, 1.0).layers == 10
    assert choose_recompute(4, 10, _predict, 1.0).layers == 4
    assert choose_recompute("auto", 10, _predict, None).layers == 0
    assert choose_recompute("auto", 10, None, 1.0).layers == 0
    with pytest.raises(ConfigError, match=r"train\.recompute = 11: the model has 10 layers"):
        choose_recompute(11, 10, _predict, 1.0)


def test_the_highest_phase_decides_and_is_told():
    found = _predict(0)
    assert found.highest.name == "train step"
    assert found.line() == "12.0 GiB at the highest (train step): activations 10.0 GiB, weights 2.0 GiB"
    assert found.as_dict()["bytes"] == found.bytes == 12 * GIB


def test_the_limits_of_control_groups_count(tmp_path):
    own = tmp_path / "cgroup"
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "memory" / "c").mkdir(parents=True)
    for folder, limit, usage, names in (
        ("a/b", "max", "0", ("memory.max", "memory.current")),
        ("a", "5000", "2000", ("memory.max", "memory.current")),
        ("memory/c", "9223372036854771712", "7", ("memory.limit_in_bytes", "memory.usage_in_bytes")),
        ("memory", "4000", "3000", ("memory.limit_in_bytes", "memory.usage_in_bytes")),
    ):
        for name, text in zip(names, (limit, usage), strict=True):
            (tmp_path / folder / name).write_text(text)
        (tmp_path / folder / "memory.stat").write_text("inactive_file 500\n")
    own.write_text("0::/a/b\n")
    assert left_in_group(tmp_path, own) == 5000 - 2000 + 500
    own.write_text("4:cpu,memory:/c\n")
    assert left_in_group(tmp_path, own) == 4000 - 3000 + 500
    own.write_text("4:cpu:/c\n")
    assert left_in_group(tmp_path, own) is None


def test_this_machine_says_what_is_free_and_what_was_used():
    free = free_bytes(torch.device("cpu"))
    assert free is None or free > 0
    assert peak_bytes(torch.device("cpu")) > 50 << 20
    assert sized(3 * GIB) == "3.0 GiB"
