"""The seam: it refuses whatever it does not honour, and gives the model's own attention back."""

import re

import pytest
import torch
from tests.models import samples, tiny

from frisket.attend.pack import pack
from frisket.errors import CheckError, UnsupportedError
from frisket.hf import attention
from frisket.hf.attention import NAME, counted, own_attention, prepare, supports_sdpa
from frisket.hf.forward import hidden_states

ROWS = pack(samples(0, [4]), "alone", 1)[0]
CPU = torch.device("cpu")


class Attn(torch.nn.Module):
    is_causal = True


def call(module=None, **words):
    query = torch.randn(1, 4, 4, 8)
    key = torch.randn(1, 2, 4, 8)
    words = {"attention_mask": None, "rows": prepare(ROWS, "auto", CPU), **words}
    return attention._attention(module or Attn(), query, key, key, **words)


def test_the_output_is_row_token_head_width():
    out, shares = call()
    assert out.shape == (1, 4, 4, 8)
    assert shares is None


def test_without_the_layout_it_raises():
    with pytest.raises(CheckError, match="Attn did not pass on the layout of the rows: its attention would run across"):
        call(rows=None)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ({"attention_mask": torch.ones(1)}, ["attention_mask"]),
        ({"position_bias": torch.ones(1)}, ["position_bias"]),
        ({"head_mask": torch.ones(1), "chunk_size": 4}, ["chunk_size", "head_mask"]),
    ],
)
def test_words_it_does_not_know_are_refused(words, named):
    with pytest.raises(UnsupportedError, match=re.escape(f"Attn hands {named} to attention, which frisket does not")):
        call(**words)


def test_words_that_change_nothing_pass():
    out, _ = call(position_ids=torch.arange(4), use_cache=True, position_bias=None, output_attentions=False)
    assert out.isfinite().all()


@pytest.mark.parametrize("said", ["module", "word"])
def test_attention_that_is_not_causal_is_refused(said):
    module = Attn()
    module.is_causal = said != "module"
    with pytest.raises(UnsupportedError, match=r"Attn.*is not causal"):
        call(module, **({"is_causal": False} if said == "word" else {}))


def test_dropout_is_refused():
    with pytest.raises(UnsupportedError, match="attention dropout is not 0: rows would not equal their samples"):
        call(dropout=0.1)


def test_scaling_is_one_over_the_root_of_the_width_unless_said():
    torch.manual_seed(0)
    default, _ = call()
    torch.manual_seed(0)
    said, _ = call(scaling=8**-0.5)
    torch.manual_seed(0)
    other, _ = call(scaling=1.0)
    assert torch.equal(default, said)
    assert not torch.equal(default, other)


def test_calls_are_counted_by_module_while_asked():
    model = tiny(dtype=torch.float32)
    with counted() as count:
        hidden_states(model, ROWS)
    assert list(count.calls.values()) == [1, 1]
    hidden_states(model, ROWS)
    assert list(count.calls.values()) == [1, 1]


def test_the_models_own_attention_is_used_and_given_back():
    model = tiny(dtype=torch.float32).eval()
    ids = torch.from_numpy(ROWS.input_ids)
    with counted() as count:
        with own_attention(model):
            assert model.config._attn_implementation == "sdpa"
            theirs = model.model(ids).last_hidden_state
        assert not count.calls
    assert model.config._attn_implementation == NAME
    assert (hidden_states(model, ROWS) - theirs[0]).abs().max() <= 1e-5
    with own_attention(model, "eager"):
        assert model.config._attn_implementation == "eager"


def test_the_seam_is_given_back_after_an_error():
    model = tiny(dtype=torch.float32)
    with pytest.raises(RuntimeError, match="planted"), own_attention(model):
        raise RuntimeError("planted")
    assert model.config._attn_implementation == NAME


def test_sinks_have_no_sdpa_form():
    model = tiny("gpt_oss", dtype=torch.float32)
    assert not supports_sdpa(model)
    assert supports_sdpa(tiny(dtype=torch.float32))
    with own_attention(model):
        assert model.config._attn_implementation == "eager"
