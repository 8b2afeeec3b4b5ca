"""Row ranges: only those rows are a parameter; everything else of the tensor stays bit for bit."""

import pytest
import torch
from tests.adapt.test_methods import PACKED, PAIRS, SEQUENCES, gradients
from tests.models import tiny

from frisket.adapt.full import Full, copy_into
from frisket.attend.pack import pack
from frisket.hf import load
from frisket.train.optim import Optimizer
from frisket.train.settings import TrainSettings
from frisket.train.step import Laying, lay_out, run_step

TABLE = "model.embed_tokens.weight"
WHERE = ["embeddings[10:20]", "embeddings[30:31]", "head[5:9]", "*.layers.0.self_attn.q_proj[:7]", "norms"]
RANGES = {
    TABLE: [(10, 20), (30, 31)],
    "lm_head.weight": [(5, 9)],
    "model.layers.0.self_attn.q_proj.weight": [(0, 7)],
}
LAYING = Laying("isolated", 20, 1, "grouped", 64)


def attached_to(dtype=torch.float64, where=WHERE, **changes):
    model = tiny(dtype=dtype, **changes)
    return model, Full(where=where).attach(model, torch.Generator())


def train(model, attached, compute, optimizer="adamw", steps=3):
    settings = TrainSettings(weight_decay=0.5, optimizer=optimizer)
    moving = Optimizer(attached.parameters(), settings, compute, method=attached)
    load.cast_parameters(model, compute)
    step = lay_out(list(PAIRS.values()), LAYING, "weights")
    for number in range(1, steps + 1):
        run_step(model, attached, moving, step, LAYING, number=number, rate=1e-2)
    return moving


def outside(name, tensor):
    kept = torch.ones(len(tensor), dtype=torch.bool)
    for first, end in RANGES[name]:
        kept[first:end] = False
    return tensor[kept]


@pytest.mark.parametrize("optimizer", ["adamw", "adamw-8bit", "sgd", "schedule-free"])
@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16, torch.float16])
def test_rows_move_with_decay_and_every_other_byte_stays(compute, optimizer):
    model, attached = attached_to(torch.float32)
    start = {name: parameter.detach().clone().to(compute) for name, parameter in model.named_parameters()}
    moving = train(model, attached, compute, optimizer)
    for name, parameter in model.named_parameters():
        if name not in RANGES:
            assert torch.equal(parameter, start[name]) == ("norm" not in name)
            continue
        assert torch.equal(outside(name, parameter), outside(name, start[name]))
        for first, end in RANGES[name]:
            rows = parameter[first:end]
            assert torch.equal(rows, moving.masters[f"{name}[{first}:{end}]"].to(compute))
            assert not torch.equal(rows, start[name][first:end])
        assert parameter.grad is None


def test_what_moves_has_state_and_decay_and_nothing_else_does():
    model, attached = attached_to(torch.float32)
    moving = train(model, attached, torch.float32)
    assert sum(p.numel() for p in attached.parameters().values()) == 11 * 32 + 4 * 32 + 7 * 32 + 5 * 32
    assert attached.match.entries(model) == 22 * 32 + 5 * 32
    assert moving.state_of(f"{TABLE}[10:20]")["exp_avg"].shape == (10, 32)
    assert set(moving.masters) == {
        *(f"{name}[{first}:{end}]" for name, ranges in RANGES.items() for first, end in ranges),
        *(name for name, _ in model.named_parameters() if "norm" in name),
    }
    assert attached.decays(f"{TABLE}[10:20]")


def test_gradients_are_those_of_the_whole_tensor_and_add_up_over_micro_batches():
    model, attached = attached_to()
    whole, plain = attached_to(where="all")
    ours, theirs = gradients(model, attached, PACKED), gradients(whole, plain, PACKED)
    for name, ranges in RANGES.items():
        for first, end in ranges:
            assert torch.equal(ours[f"{name}[{first}:{end}]"], theirs[name][first:end])
    for parameter in attached.parameters().values():
        parameter.grad = None
    alone = gradients(model, attached, pack(SEQUENCES, "alone", 1))
    assert all((alone[name] - ours[name]).norm() <= 1e-10 * ours[name].norm() for name in ours)


def test_all_rows_of_a_tensor_move_as_the_tensor_does():
    model, attached = attached_to(where=["embeddings[:]", "norms"])
    whole, plain = attached_to(where=["embeddings", "norms"])
    train(model, attached, torch.float64)
    train(whole, plain, torch.float64)
    other = dict(whole.named_parameters())
    assert all(torch.equal(parameter, other[name]) for name, parameter in model.named_parameters())


def test_rows_of_a_tied_table_move_embedding_and_head():
    model, attached = attached_to(torch.float32, ["embeddings[10:20]"], tie_word_embeddings=True)
    before = model.get_output_embeddings().weight.detach().clone()
    train(model, attached, torch.float32)
    after = model.get_output_embeddings().weight
    assert torch.equal(after[:10], before[:10])
    assert not torch.equal(after[10:20], before[10:20])


def test_what_was_saved_is_put_into_another_copy_and_loaded_again(tmp_path):
    from safetensors.torch import load_file

    model, attached = attached_to(torch.float32)
    moving = train(model, attached, torch.float32)
    attached.save(tmp_path, moving.masters)
    saved = load_file(tmp_path / "moving.safetensors")
    fresh = tiny(dtype=torch.float32)
    copy_into(fresh, saved)
    trained = dict(model.named_parameters())
    assert all(torch.equal(parameter, trained[name]) for name, parameter in fresh.named_parameters())
    again, other = attached_to(torch.float32)
    other.load(saved)
    assert all(torch.equal(parameter, trained[name]) for name, parameter in again.named_parameters())


def test_a_stopped_and_resumed_run_is_the_whole_one():
    model, attached = attached_to(torch.float32)
    moving = train(model, attached, torch.float32, steps=2)
    kept = {n: t.clone() for n, t in moving.moving().items()}, {n: t.clone() for n, t in moving.state().items()}
    again, other = attached_to(torch.float32)
    resumed = Optimizer(other.parameters(), TrainSettings(weight_decay=0.5), torch.float32, method=other)
    resumed.load(*kept)
    step = lay_out(list(PAIRS.values()), LAYING, "weights")
    for each, optimizer, put in ((model, moving, attached), (again, resumed, other)):
        run_step(each, put, optimizer, step, LAYING, number=3, rate=1e-2)
    trained = dict(model.named_parameters())
    assert all(torch.equal(parameter, trained[name]) for name, parameter in again.named_parameters())
