"""The rows of added tokens: with LoRA only they move in the embedding and the head, and they are saved small."""

import re
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from tests.models import VOCAB, samples, tiny

from frisket.adapt.full import Full
from frisket.adapt.head import has_adapted_tied_head
from frisket.adapt.lora import Lora
from frisket.adapt.methods import attach, load_adapter
from frisket.adapt.peft import Ia3, LnTuning, Peft
from frisket.attend.pack import pack
from frisket.errors import UnsupportedError
from frisket.hf.attention import own_attention
from frisket.hf.forward import hidden_states
from frisket.hf.heads import head_of
from frisket.hf.tokens import grow
from frisket.supervise.loss import summed_loss
from frisket.supervise.predictions import predictions
from frisket.train.optim import Optimizer
from frisket.train.settings import TrainSettings
from frisket.train.step import Laying, lay_out, run_step

NEW = (VOCAB, VOCAB + 1, VOCAB + 2)
LORA = Lora(rank=2)
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
KINDS = {  # family and whether head and embedding share a weight
    "llama untied": ("llama", False),
    "llama tied": ("llama", True),
    "gemma2 tied": ("gemma2", True),  # soft-capped logits, embeddings scaled in their forward
    "granite untied": ("granite", False),  # divided logits
}


def with_tokens():
    """Samples that hold new tokens, as inputs and as targets."""
    sequences = samples(0, [7, 3, 12, 5])
    for sequence in sequences:
        sequence.input_ids[1:3] = NEW[:2]
    return sequences


SEQUENCES = with_tokens()
PAIRS = {s.sample_id: (s, np.r_[0.0, np.linspace(0.5, 1.5, len(s) - 1)]) for s in SEQUENCES}
PACKED = pack(SEQUENCES, "isolated", 64)


def grown(kind, dtype=torch.float64):
    family, tied = KINDS[kind]
    model = tiny(family, dtype=dtype, tie_word_embeddings=tied)
    grow(model, NEW)
    return model


def attached_to(kind, method=LORA, dtype=torch.float64):
    model = grown(kind, dtype)
    attached = attach(method, model, torch.Generator().manual_seed(0), NEW)
    return model.to(dtype), attached


def _bytes(folder):
    return sum(path.stat().st_size for path in folder.iterdir())


def rows_of(attached):
    return {name: value for name, value in attached.parameters().items() if "trainable_tokens" in name}


def shake(attached):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in attached.parameters().values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype))


def gradients(model, attached, batches):
    model.zero_grad()
    for rows in batches:
        summed_loss(hidden_states(model, rows), predictions(rows, PAIRS), head_of(model), 8).backward()
    return {name: parameter.grad.clone() for name, parameter in attached.parameters().items()}


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_a_tied_pair_are_one_and_else_two(kind):
    _, attached = attached_to(kind)
    assert {tuple(rows.shape) for rows in rows_of(attached).values()} == {(3, 32)}
    assert len(rows_of(attached)) == (1 if KINDS[kind][1] else 2)


@pytest.mark.parametrize("kind", KINDS)
def test_attaching_starts_at_the_grown_base_and_detaching_gives_it_back(kind):
    model = grown(kind)
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    before = head_of(model).logits(hidden_states(model, PACKED[0]))
    attached = attach(LORA, model, torch.Generator().manual_seed(0), NEW)
    model.to(torch.float64)
    assert torch.equal(head_of(model).logits(hidden_states(model, PACKED[0])), before)
    shake(attached)
    assert not torch.equal(head_of(model).logits(hidden_states(model, PACKED[0])), before)
    with attached.switched_off():
        assert head_of(model).low_rank is None
        assert torch.equal(head_of(model).logits(hidden_states(model, PACKED[0])), before)
    attached.detach()
    assert model.state_dict().keys() == base.keys()
    assert all(torch.equal(tensor, base[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("kind", KINDS)
def test_our_head_gives_the_models_own_logits_and_gradients(kind):
    """PEFT computes with a copy of the whole matrix; frisket with the rows alone."""
    model, attached = attached_to(kind)
    shake(attached)
    (sequence,) = samples(3, [9])
    ids = torch.from_numpy(sequence.input_ids.astype(np.int64))[None]
    ids[0, 3:6] = torch.tensor(NEW)
    rows = pack([sequence], "alone", 1)[0]
    rows.input_ids[:] = ids.numpy()
    ours = head_of(model).logits(hidden_states(model, rows))
    found = []
    with own_attention(model):
        theirs = model(ids).logits[0]
    assert (ours - theirs).abs().max() <= 1e-10
    for logits in (ours, theirs):
        model.zero_grad()
        torch.log_softmax(logits[:-1].double(), -1).gather(1, ids[0, 1:, None]).sum().backward()
        found.append({name: parameter.grad.clone() for name, parameter in attached.parameters().items()})
    for name, gradient in found[0].items():
        assert (gradient - found[1][name]).norm() <= 1e-9 * gradient.norm(), name


@pytest.mark.parametrize("kind", KINDS)
def test_packed_rows_give_the_gradients_of_one_sample_at_a_time(kind):
    model, attached = attached_to(kind)
    shake(attached)
    packed, alone = gradients(model, attached, PACKED), gradients(model, attached, pack(SEQUENCES, "alone", 1))
    for name, gradient in alone.items():
        assert gradient.norm() > 0
        assert (packed[name] - gradient).norm() <= 1e-10 * gradient.norm(), name


@pytest.mark.parametrize("kind", KINDS)
def test_three_steps_with_decay_leave_every_byte_of_the_base_alone(kind):
    base = grown(kind).state_dict()
    model, attached = attached_to(kind)
    started = attached.state()
    optimizer = Optimizer(attached.parameters(), TrainSettings(weight_decay=0.1), torch.float64)
    laying = Laying("isolated", 20, 1, "grouped", 64)
    step = lay_out(list(PAIRS.values()), laying, "weights")
    for number in (1, 2, 3):
        run_step(model, attached, optimizer, step, laying, number=number, rate=1e-2)
    assert all(not torch.equal(value, started[name]) for name, value in attached.state().items())
    attached.detach()
    assert all(torch.equal(tensor, base[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("kind", KINDS)
def test_plain_peft_computes_with_the_saved_rows_and_they_are_small(kind, tmp_path: Path):
    model, attached = attached_to(kind, dtype=torch.float32)
    shake(attached)
    masters = {name: 1.5 * value for name, value in attached.state().items()}
    attached.save(tmp_path / "with", masters)
    attached.load(masters)
    ours = head_of(model).logits(hidden_states(model.eval(), PACKED[0]))
    fresh, again = (grown(kind, torch.float32).eval() for _ in range(2))
    with torch.no_grad():  # the adapter holds the rows themselves, whatever the base put there
        fresh.get_input_embeddings().weight[list(NEW)] = 0.5
    wrapper = peft.PeftModel.from_pretrained(fresh, str(tmp_path / "with"))
    load_adapter(again, tmp_path / "with")
    for other in (fresh, again):
        assert (head_of(other).logits(hidden_states(other, PACKED[0])) - ours).abs().max() <= 1e-5
    with own_attention(fresh), torch.no_grad():
        alone = pack([SEQUENCES[0]], "alone", 1)[0]
        plain = wrapper(torch.from_numpy(alone.input_ids)).logits[0]
        assert (plain - head_of(model).logits(hidden_states(model, alone))).abs().max() <= 1e-5
    without = LORA.attach(grown(kind, torch.float32), torch.Generator().manual_seed(0))
    without.save(tmp_path / "without", without.state())
    small, large = (_bytes(tmp_path / name) for name in ("without", "with"))
    assert 0 < large - small < 4 * len(NEW) * 32 * len(rows_of(attached)) + 1000


@pytest.mark.parametrize("kind", KINDS)
def test_merging_writes_the_rows_into_both_and_keeps_a_tie(kind):
    model, attached = attached_to(kind)
    shake(attached)
    rows = [value.clone() for value in rows_of(attached).values()]
    before = head_of(model).logits(hidden_states(model, PACKED[0]))
    assert not has_adapted_tied_head(model)
    attached.merge()
    assert (head_of(model).logits(hidden_states(model, PACKED[0])) - before).abs().max() <= 1e-10
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert torch.equal(embedding[list(NEW)], rows[0])
    assert torch.equal(head[list(NEW)], rows[-1])
    assert (embedding is head) == KINDS[kind][1]
    assert set(model.state_dict()) == set(grown(kind).state_dict())


@pytest.mark.parametrize("kind", KINDS)
def test_full_moves_all_rows(kind):
    model, attached = attached_to(kind, Full())
    found = gradients(model, attached, PACKED)
    assert found["model.embed_tokens.weight"][list(NEW[:2])].norm() > 0
    assert rows_of(attached) == {}


def test_under_bf16_the_rows_have_masters_that_hold_the_bases_values():
    model = grown("llama tied", torch.bfloat16)
    start = model.get_input_embeddings().weight[list(NEW)].clone()
    attached = attach(LORA, model, torch.Generator().manual_seed(0), NEW)
    optimizer = Optimizer(attached.parameters(), TrainSettings(), torch.bfloat16)
    (name,) = rows_of(attached)
    assert torch.equal(optimizer.masters[name], start.float())
    assert rows_of(attached)[name].dtype == torch.bfloat16
    assert head_of(model).low_rank is not None
    assert head_of(model).logits(hidden_states(model, PACKED[0])).isfinite().all()


@pytest.mark.parametrize("where", ["*", ["all-linear", "head"]])
@pytest.mark.parametrize("kind", ["llama tied", "llama untied"])
def test_lora_on_a_head_whose_rows_move_is_refused(kind, where):
    with pytest.raises(UnsupportedError, match="reaches the output head, where model"):
        attached_to(kind, Lora(rank=2, where=where))


def test_a_head_with_a_bias_is_refused():
    model = tiny(dtype=torch.float32)
    model.set_output_embeddings(torch.nn.Linear(32, VOCAB))
    grow(model, NEW)
    with pytest.raises(UnsupportedError, match="the output head has a bias, which PEFT's trained rows would leave out"):
        attach(LORA, model, torch.Generator().manual_seed(0), NEW)


def test_a_tie_that_peft_does_not_see_is_refused():
    model = grown("llama tied")
    model.config.tie_word_embeddings = False
    with pytest.raises(UnsupportedError, match="PEFT found no tie in the model's configuration"):
        attach(LORA, model, torch.Generator().manual_seed(0), NEW)


@pytest.mark.parametrize("method", [Ia3(), LnTuning(), Peft(peft_type="LORA"), Peft(peft_type="VERA")])
def test_other_methods_are_refused_by_name(method):
    with pytest.raises(UnsupportedError, match=f"move with lora or full, and adapt.method is {method.label}"):
        attached_to("llama untied", method)


@pytest.mark.parametrize(
    ("kind", "where", "left"),
    [
        ("llama tied", "all-linear", "embeddings, head"),
        ("llama untied", "all-linear", "embeddings, head"),
        ("llama untied", ["all-linear", "embeddings"], "head"),
        ("llama untied", "head", "embeddings"),
    ],
)
def test_full_must_reach_both_tables(kind, where, left):
    with pytest.raises(
        UnsupportedError, match=f"leaves out the {left.replace(', ', ' and the ')}, so the rows"
    ) as told:
        attached_to(kind, Full(where=where))
    assert re.search(f"Add to adapt.where: {left}$", str(told.value))


def test_without_tokens_nothing_changes():
    model = tiny(dtype=torch.float32)
    attached = attach(LORA, model, torch.Generator().manual_seed(0))
    assert rows_of(attached) == {}
    assert type(model.get_output_embeddings()) is torch.nn.Linear
