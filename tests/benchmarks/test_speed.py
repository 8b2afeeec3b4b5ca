"""The side-by-side of speed: what it counts, refuses and calls its headline."""

import io
import json

import pytest
import torch
from benchmarks.speed import __main__ as speed
from benchmarks.speed import turns
from benchmarks.speed.case import Case, Tokens
from benchmarks.speed.floor import flops_of
from benchmarks.speed.profile import kind_of
from benchmarks.speed.trl_arm import Counted, mean_over_targets

TOKENS = Tokens([[5, 6, 7], [8, 9]], [[0, 1, 1], [0, 1]])


def test_tokens_are_kept_whole_and_their_digest_does_not_hang_on_the_order(tmp_path):
    TOKENS.write(tmp_path)
    assert Tokens.read(tmp_path) == TOKENS
    assert Tokens(TOKENS.ids[::-1], TOKENS.is_taught[::-1]).digest() == TOKENS.digest()
    assert Tokens(TOKENS.ids, [[0, 1, 1], [1, 1]]).digest() != TOKENS.digest()


def test_real_tokens_and_targets_of_a_batch_are_counted_in_order():
    collator = Counted(lambda samples: samples[0])
    padded = {"input_ids": torch.zeros(2, 3), "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]])}
    collator([{**padded, "labels": torch.tensor([[-100, 6, 7], [-100, 9, -100]])}])
    collator([{"input_ids": torch.zeros(1, 4), "labels": torch.full((1, 4), -100)}])
    assert [collator.taken(), collator.taken()] == [(5, 3), (4, 0)]


def test_the_mean_is_over_targets_and_not_over_batches():
    assert mean_over_targets([(1.0, 1), (4.0, 3)]) == 3.25


@pytest.mark.parametrize(
    ("name", "shapes", "kind"),
    [
        ("aten::mm", [[100, 64], [64, 512]], "head"),
        ("aten::mm", [[100, 64], [64, 8]], "adapter"),
        ("aten::mm", [[100, 64], [64, 96]], "linear"),
        ("aten::bmm", [[4, 10, 16], [4, 16, 10]], "attention"),
        ("aten::_fused_adamw_", [], "optimizer"),
        ("aten::silu", [[100, 96]], "other"),
    ],
)
def test_an_operation_belongs_to_a_part(name, shapes, kind):
    assert kind_of(name, shapes, vocabulary=512, rank=8) == kind


def test_the_floor_is_what_the_formula_counts(tmp_path):
    from transformers import LlamaConfig

    config = LlamaConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=50,
    )
    config.save_pretrained(tmp_path / "model")
    case = Case("toy", "q-and-v", 2, 2, 5, rank=4)
    tokens, pairs, taught = 5, 6 + 3, 3
    linear = 2 * tokens * (16 * 16 + 2 * 16 * 8 + 16 * 16 + 3 * 16 * 24)
    attention, head = 4 * pairs * 16, 2 * taught * 16 * 50
    adapters = 6 * tokens * 4 * ((16 + 16) + (16 + 8))
    assert flops_of(case, tmp_path, TOKENS) * tokens == 2 * linear + 3 * attention + 2 * head + adapters


def test_an_arm_that_trains_on_something_else_is_refused(monkeypatch, tmp_path):
    told = {
        "frisket, fp32": {"digest": "a", "loss": 2.0},
        "TRL packed, fp32": {"digest": "a", "loss": 2.0001},
        "TRL packed, bf16": {"digest": "a", "loss": 2.001},
        "TRL default": {"digest": "b", "loss": 2.0},
    }
    monkeypatch.setattr(speed, "_told", lambda name, work: told[name])
    assert speed.check(["frisket, fp32", "TRL packed, bf16"], tmp_path)
    for other in ("TRL packed, fp32", "TRL default"):
        with pytest.raises(SystemExit, match="does not train on what"):
            speed.check(["frisket, fp32", other], tmp_path)


def results(q_and_v: float, all_linear: float) -> dict:
    def case(ratio: float) -> dict:
        arms = {name: {"frisket_is_faster_by": ratio + 1, "extra_mib": 400} for name in speed.ARMS}
        arms[speed.THEIR_DEFAULT] = {"frisket_is_faster_by": 2 * ratio, "extra_mib": 500}
        arms["TRL by length, bf16"] = {"frisket_is_faster_by": ratio, "extra_mib": 300}
        return {"arms": arms | {speed.OURS: {"frisket_is_faster_by": 1.0, "extra_mib": 150}}}

    return {"environment": {}, "cases": {"25M, q-and-v": case(q_and_v), "25M, all-linear": case(all_linear)}}


def test_the_headline_is_the_lower_case_and_needs_every_arm():
    found = speed.headline(results(3.0, 2.5))
    assert (found["ratio_to_best_peer"], found["ratio_to_peer_default"]) == (2.5, 5.0)
    assert found["cases"]["q-and-v"]["best_peer"] == "TRL by length, bf16"
    assert found["cases"]["q-and-v"]["memory_over_best_peer"] == 0.5
    lacking = results(3.0, 2.5)
    del lacking["cases"]["25M, all-linear"]["arms"]["TRL packed, bf16"]
    assert speed.headline(lacking) is None


def test_an_arm_tells_a_turn_when_its_steps_are_done(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("go 2\nstop\n"))
    monkeypatch.setattr(turns.os, "dup", lambda number: number)
    monkeypatch.setattr(turns.os, "dup2", lambda *numbers: None)
    told = io.StringIO()
    monkeypatch.setattr(turns.os, "fdopen", lambda *given, **named: told)
    arm = turns.Turns()
    arm.imported()
    arm.ready()
    arm.step(10, 4, 1.5)
    with pytest.raises(turns.Stop):
        arm.step(20, 6, 0.5)
    first, second = map(json.loads, told.getvalue().splitlines())
    assert first == {}
    assert (second["steps"], second["tokens"], second["taught"], second["losses"]) == (2, 30, 10, [1.5, 0.5])
