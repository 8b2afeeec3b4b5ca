"""The checks at the start of a run pass where they should, and fail where a mask is gone."""

import numpy as np
import pytest
import torch
from tests.models import FAMILIES, samples, tiny
from transformers import StableLmConfig, StableLmForCausalLM

from frisket.attend.backends import grouped
from frisket.attend.pack import pack
from frisket.errors import CheckError
from frisket.hf import attention
from frisket.hf.load import ready
from frisket.train.checks import check_model, check_seam, conformance
from frisket.train.step import Laying

ISOLATED = Laying("isolated", 64, 1, "grouped", 64)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_families_pass(family, dtype):
    model = tiny(family, dtype=dtype)
    checks = check_model(model, samples(0, [12, 9, 30, 7]), ISOLATED)
    assert checks.seam.startswith("2 attention layers")
    check_model(model, samples(0, [12, 9, 30, 7]), Laying("padded", 64, 1, "grouped", 64))


def test_without_the_mask_the_probe_fails(monkeypatch):
    def one_segment(rows, device):
        merged = np.zeros_like(rows.segment_ids)
        return grouped.prepare(
            type(rows)(rows.input_ids, rows.position_ids, merged, np.array([-1]), rows.leaves), device
        )

    monkeypatch.setitem(attention.BACKENDS, "grouped", one_segment)
    with pytest.raises(CheckError, match="see each other"):
        check_model(tiny(dtype=torch.float32), samples(0, [12, 9, 30, 7]), ISOLATED)


@pytest.mark.parametrize(
    ("family", "field"),
    [("gemma2", "attn_logit_softcapping"), ("gemma2", "final_logit_softcapping"), ("granite", "logits_scaling")],
)
def test_something_not_honoured_fails_conformance(family, field, monkeypatch):
    """Planted: our path forgets what the family adds."""
    model = tiny(family, dtype=torch.float32)
    rows = pack(samples(0, [20]), "alone", 1)[0]
    difference, bar = conformance(model, rows, "grouped")
    assert difference <= bar
    if field == "attn_logit_softcapping":
        layout = attention.prepare
        monkeypatch.setattr("frisket.hf.forward.prepare", lambda *a: _Forgetful(layout(*a)))
    else:
        monkeypatch.setattr("frisket.train.checks.head_of", lambda m: attention_free_head(m))
    difference, bar = conformance(model, rows, "grouped")
    assert difference > bar


class _Forgetful:
    def __init__(self, layout):
        self.layout = layout

    def attend(self, query, key, value, knobs):
        return self.layout.attend(query, key, value, attention.Knobs(knobs.scaling, knobs.window))


def attention_free_head(model):
    from frisket.supervise.loss import Head

    return Head(model.get_output_embeddings().weight)


def test_a_model_that_drops_the_layout_is_refused():
    config = StableLmConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
    )
    model = ready(StableLmForCausalLM(config))
    with pytest.raises(CheckError, match="did not pass on the layout"):
        check_seam(model, pack(samples(0, [8]), "alone", 1)[0], "grouped")


def test_a_model_that_never_calls_us_is_refused():
    from transformers import BloomConfig, BloomForCausalLM

    model = BloomForCausalLM(BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4))
    with pytest.raises((CheckError, TypeError)):
        check_seam(model, pack(samples(0, [8]), "alone", 1)[0], "grouped")
