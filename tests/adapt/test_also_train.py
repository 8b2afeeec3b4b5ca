"""`also_train`: whole modules beside an adapter, saved so that plain PEFT loads them, taken off bit for bit."""

import re

import peft
import pytest
import torch
from tests.adapt.test_methods import PACKED, PAIRS, SEQUENCES, gradients, shake
from tests.models import tiny, tiny_gpt2

from frisket.adapt.full import Full
from frisket.adapt.head import has_adapted_tied_head
from frisket.adapt.lora import Lora
from frisket.adapt.methods import attach, load_adapter
from frisket.adapt.mora import Mora
from frisket.adapt.peft import Ia3, LnTuning, Peft
from frisket.attend.pack import pack
from frisket.errors import ConfigError, UnsupportedError
from frisket.hf.forward import hidden_states
from frisket.hf.heads import head_of, logits_of
from frisket.train.optim import Optimizer
from frisket.train.settings import TrainSettings
from frisket.train.step import Laying, lay_out, run_step

pytestmark = [  # plain PEFT warns of these
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Unsupported layer type:UserWarning"),
]
ALL = ("embeddings", "head", "norms")
CASES = {
    "lora": (Lora(rank=2, also_train=ALL), {}),
    "lora tied": (Lora(rank=2, also_train=("embeddings", "norms")), {"tie_word_embeddings": True}),
    "ia3": (Ia3(also_train=("norms", "head")), {}),
    "ln_tuning": (LnTuning(also_train=("embeddings",)), {}),
    "vera": (Peft(peft_type="VERA", options={"r": 4}, also_train=("head",)), {}),
}


def base_of(name, dtype=torch.float32):
    return tiny(dtype=dtype, **CASES[name][1])


def attached_to(name, dtype=torch.float64):
    model = base_of(name, dtype)
    attached = attach(CASES[name][0], model, torch.Generator().manual_seed(0))
    return model.to(dtype), attached


@pytest.mark.parametrize("name", CASES)
def test_it_starts_at_the_base_and_detaching_gives_the_base_back(name):
    base = base_of(name, torch.float64)
    before = logits_of(base, PACKED[0])
    model, attached = attached_to(name)
    assert torch.equal(logits_of(model, PACKED[0]), before)
    shake(attached)
    assert not torch.equal(logits_of(model, PACKED[0]), before)
    with attached.switched_off():
        assert torch.equal(logits_of(model, PACKED[0]), before)
    attached.detach()
    assert model.state_dict().keys() == base.state_dict().keys()
    assert all(torch.equal(tensor, base.state_dict()[n]) for n, tensor in model.state_dict().items())
    tied = CASES[name][1].get("tie_word_embeddings", False)
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied


@pytest.mark.parametrize("name", CASES)
def test_what_is_named_moves_and_no_byte_of_the_base(name):
    model, attached = attached_to(name)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    words = {"embeddings": "embed_tokens", "head": "lm_head", "norms": "norm"}
    for word in CASES[name][0].also_train:
        assert any(words[word] in parameter and "modules_to_save" in parameter for parameter in attached.parameters())
    optimizer = Optimizer(attached.parameters(), TrainSettings(weight_decay=0.1), torch.float64, method=attached)
    laying = Laying("isolated", 20, 1, "grouped", 64)
    for number in (1, 2, 3):
        run_step(model, attached, optimizer, lay_out(list(PAIRS.values()), laying, "weights"), laying,
                 number=number, rate=1e-2)  # fmt: skip
    moved = {n for n, t in model.state_dict().items() if not torch.equal(t, before[n])}
    shared = {id(p) for p in attached.parameters().values()}
    assert moved == {n for n, p in model.named_parameters(remove_duplicate=False) if id(p) in shared}
    attached.detach()
    base = base_of(name, torch.float64).state_dict()
    assert all(torch.equal(tensor, base[n]) for n, tensor in model.state_dict().items())


@pytest.mark.parametrize("name", CASES)
def test_packed_rows_give_the_gradients_of_one_sample_at_a_time(name):
    model, attached = attached_to(name)
    shake(attached)
    packed, alone = gradients(model, attached, PACKED), gradients(model, attached, pack(SEQUENCES, "alone", 1))
    assert all((packed[n] - alone[n]).norm() <= 1e-10 * alone[n].norm() for n in packed)


@pytest.mark.parametrize("name", CASES)
def test_plain_peft_loads_the_saved_masters_and_merging_equals_them(name, tmp_path):
    model, attached = attached_to(name, torch.float32)
    shake(attached)
    masters = {n: 1.5 * value for n, value in attached.state().items()}
    attached.save(tmp_path, masters)
    attached.load(masters)
    ours = logits_of(model, PACKED[0])
    fresh = base_of(name).eval()
    peft.PeftModel.from_pretrained(fresh, str(tmp_path))
    states = hidden_states(fresh, PACKED[0])
    theirs = fresh.get_output_embeddings()(states)  # by PEFT's own module, not by frisket's reading of it
    assert (ours - theirs).abs().max() <= 1e-5
    again = base_of(name)
    loaded = load_adapter(again, tmp_path)
    assert (logits_of(again, PACKED[0]) - ours).abs().max() <= 1e-5
    loaded.merge()
    assert (logits_of(again, PACKED[0]) - ours).abs().max() <= 1e-4
    assert set(again.state_dict()) == set(base_of(name).state_dict())


def test_the_note_says_what_moves_and_a_tied_head_follows():
    model, attached = attached_to("lora tied")
    assert attached.match.notes[-1] == "also embeddings, norms: 2,208 entries move, at the adapter's own rate"
    shake(attached)
    assert not has_adapted_tied_head(model)
    assert head_of(model).weight is model.get_input_embeddings().weight
    assert sum("modules_to_save" in name for name in attached.parameters()) == 6


@pytest.mark.parametrize(
    ("method", "tied", "error", "message"),
    [
        (Lora(also_train=("head",)), True, UnsupportedError, "the head's weight is the embedding's, so they move "
         "together or not at all.\nUse adapt.also_train='[embeddings]'."),
        (Ia3(also_train=("embeddings",)), True, UnsupportedError, "PEFT keeps them tied only for LoRA, where"),
        (Lora(also_train=("head",), where=["all-linear", "head"]), False, ConfigError, "adapt.also_train and "
         "adapt.where both claim lm_head."),
        (LnTuning(also_train=("norms",)), False, ConfigError, "both claim model.layers.0.input_layernorm."),
        (Full(also_train=("head",)), False, UnsupportedError, "adapt.also_train goes with adapters that PEFT saves, "
         "and adapt.method is full.\nUse adapt.where='[head]'."),
        (Mora(also_train=("norms",)), False, UnsupportedError, "adapt.method is mora.\nLeave it out."),
    ],
)  # fmt: skip
def test_what_it_does_not_go_with_is_refused(method, tied, error, message):
    with pytest.raises(error, match=re.escape(message)):
        attach(method, tiny(dtype=torch.float32, tie_word_embeddings=tied), torch.Generator())


def test_rows_of_added_tokens_and_whole_tables_are_refused():
    with pytest.raises(UnsupportedError, match=r"moves all rows of embeddings and head, and model\.add_tokens those"):
        attach(Lora(also_train=("embeddings", "head")), tiny(dtype=torch.float32), torch.Generator(), [60])


def test_a_tied_table_that_peft_does_not_know_is_refused_and_norms_of_that_family_move():
    with pytest.raises(UnsupportedError, match=r"only for LoRA, where the table is called embed_tokens"):
        attach(Lora(also_train=("embeddings",)), tiny_gpt2(), torch.Generator())
    attached = attach(Lora(rank=2, also_train=("norms",)), tiny_gpt2(), torch.Generator())
    assert sum("ln_" in name for name in attached.parameters()) == 2 * 5
