"""The checks at the start of a run pass where they should, and fail where a mask is gone."""

import numpy as np
import pytest
import torch
from tests.models import PLAIN, samples, tiny
from transformers import StableLmConfig, StableLmForCausalLM

from frisket.attend.backends import grouped
from frisket.attend.pack import pack
from frisket.errors import CheckError
from frisket.hf import attention
from frisket.hf.load import ready
from frisket.train.checks import check_model, check_seam, conformance
from frisket.train.step import Laying

ISOLATED = Laying("isolated", 64, 1, "grouped", 64)


@pytest.mark.parametrize("family", PLAIN)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_families_pass(family, dtype):
    model = tiny(family, dtype=dtype)
    checks = check_model(model, samples(0, [12, 9, 30, 7]), ISOLATED)
    assert checks.seam.startswith("2 attention layers")
    check_model(model, samples(0, [12, 9, 30, 7]), Laying("padded", 64, 1, "grouped", 64))


def relatives(lengths, shared):
    """Samples of which all begin with the same tokens."""
    made = samples(0, lengths)
    for one in made:
        one.input_ids[:shared] = made[0].input_ids[:shared]
    return made


@pytest.mark.parametrize("family", PLAIN)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", ["grouped", "sdpa"])
def test_forests_and_chains_pass(family, dtype, backend):
    model = tiny(family, dtype=dtype)
    few = relatives([22, 19, 30, 17], 9)
    told = check_model(model, few, Laying("forest", 64, 1, backend, 64)).isolation
    assert "a shared segment replaced" in told
    assert "own forward of its" in told
    told = check_model(model, few, Laying("mask-free", 64, 1, backend, 64)).isolation
    assert "that follow it change" in told


def test_one_length_together_is_probed_too():
    told = check_model(tiny(dtype=torch.float32), samples(0, [12, 9, 30, 7]), Laying("alone", 64, 1, "grouped", 64))
    assert "21 foreign tokens bit-identical" in told.isolation


def test_where_everything_follows_what_is_shared_that_is_said():
    told = check_model(tiny(dtype=torch.float32), relatives([22, 19], 9), Laying("forest", 64, 1, "grouped", 64))
    assert "a shared segment replaced: every other token of the row follows it, so none had to stay" in told.isolation
    assert " 0 foreign tokens" not in told.isolation


def test_long_relatives_are_cut_to_what_they_share_and_what_follows():
    model = tiny(dtype=torch.float32, max_position_embeddings=4096)
    told = check_model(model, relatives([1500, 1400, 1600], 1300), Laying("forest", 4096, 1, "grouped", 64)).isolation
    assert "a shared segment replaced" in told


def _without_trunks(rows, device):
    from dataclasses import replace

    return grouped.prepare(replace(rows, parent_segment=np.full_like(rows.parent_segment, -1)), device)


def test_a_backend_that_drops_what_is_shared_fails(monkeypatch):
    monkeypatch.setitem(attention.BACKENDS, "grouped", _without_trunks)
    with pytest.raises(CheckError, match="drops what a row shares"):
        check_model(tiny(dtype=torch.float32), relatives([22, 19, 30, 17], 9), Laying("forest", 64, 1, "grouped", 64))


def test_positions_that_do_not_go_on_from_the_trunk_fail(monkeypatch):
    """Planted: branches restart at 0. The probe sees no leak; the comparison with the model's own forward does."""
    from frisket.train import checks

    def restarted(*arguments):
        batches = pack(*arguments)
        for rows in batches:
            for segment in range(len(rows.parent_segment)):
                at = rows.segment_ids == segment
                rows.position_ids[at] = np.arange(at.sum())
        return batches

    monkeypatch.setattr(checks, "pack", restarted)
    with pytest.raises(CheckError, match="logits of a forest row differ"):
        check_model(tiny(dtype=torch.float32), relatives([22, 19, 30, 17], 9), Laying("forest", 64, 1, "grouped", 64))


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
