"""The output head as a value."""

import pytest
import torch
from tests.models import tiny, tiny_gpt2

from frisket.adapt.lora import Lora
from frisket.adapt.peft import Ia3, Peft
from frisket.errors import UnsupportedError
from frisket.hf.attention import own_attention
from frisket.hf.heads import head_of

EXPECTED = {"llama": (1.0, None), "gemma2": (1.0, 3.0), "granite": (1 / 3.0, None), "cohere": (0.25, None)}


@pytest.mark.parametrize("family", EXPECTED)
def test_scale_and_softcap_of_each_family(family):
    model = tiny(family, dtype=torch.float32)
    head = head_of(model)
    assert (head.scale, head.softcap) == EXPECTED[family]
    assert head.weight is model.get_output_embeddings().weight
    assert head.bias is None


@pytest.mark.parametrize("family", EXPECTED)
def test_logits_are_the_models_own(family):
    model = tiny(family, dtype=torch.float32).eval()
    ids = torch.arange(3, 12)[None]
    with own_attention(model), torch.no_grad():
        out = model(ids, output_hidden_states=True)
        ours = head_of(model).logits(out.hidden_states[-1][0])
    assert (ours - out.logits[0]).abs().max() <= 1e-5


def test_a_tied_head_is_the_embedding():
    model = tiny_gpt2()
    assert head_of(model).weight is model.get_input_embeddings().weight


def test_a_bias_is_carried():
    model = tiny(dtype=torch.float32)
    old = model.get_output_embeddings()
    new = torch.nn.Linear(old.in_features, old.out_features)
    model.set_output_embeddings(new)
    assert head_of(model).bias is new.bias


@pytest.mark.parametrize(("family", "knobs"), [("llama", {}), ("gemma2", {"rslora": True}), ("cohere", {"alpha": 3})])
def test_lora_on_the_head_gives_pefts_own_logits(family, knobs):
    model = tiny(family, dtype=torch.float32).eval()
    attached = Lora(rank=2, where="*", **knobs).attach(model, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in attached.parameters().values():
            parameter.normal_(0, 0.3)
    ids = torch.arange(3, 12)[None]
    with own_attention(model), torch.no_grad():
        out = model(ids, output_hidden_states=True)
        head = head_of(model)
        with attached.switched_off():
            assert head_of(model).low_rank is None
    assert head.low_rank is not None
    assert (head.logits(out.hidden_states[-1][0]) - out.logits[0]).abs().max() <= 1e-5


@pytest.mark.parametrize(
    "method",
    [
        Lora(rank=2, where="head", dora=True),
        Ia3(where=["*.k_proj", "lm_head"]),
        Peft(peft_type="LORA", where="head", options={"lora_bias": True}),
    ],
)
@pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed")
def test_other_adapters_on_the_head_are_refused(method):
    model = tiny(dtype=torch.float32)
    method.attach(model, torch.Generator().manual_seed(0))
    with pytest.raises(UnsupportedError, match=r"LoRA with dora or with a bias of its own is not plain.\n.*all-linear"):
        head_of(model)
