"""Answers to the same prompts over time: what is asked, what is written, and that training does not notice."""

import json

import numpy as np
import pytest

from frisket.evaluate.settings import EvaluateSettings
from frisket.run import train
from frisket.run.samples import Samples, choose
from frisket.types import Provenance, Sequence
from frisket.watch import Silent

from .test_best import chats as chats  # a fixture
from .test_best import recipe


class Letters:
    """A tokenizer of one letter a token."""

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return "".join(chr(i) for i in ids)


def sequence(text: str, roles: str, turns: str, name: str = "s") -> Sequence:
    kinds = {"t": Provenance.TEMPLATE, "u": Provenance.USER, "a": Provenance.ASSISTANT, "x": Provenance.TEXT}
    n = len(text)
    return Sequence(
        name, 0, np.array([ord(c) for c in text], np.int32), np.array([kinds[r] for r in roles], np.uint8),
        np.array([int(t) for t in turns], np.int32), np.zeros(n, np.uint32), np.full(n, np.nan),
    )  # fmt: skip


def settings(**given) -> EvaluateSettings:
    return EvaluateSettings(sample_tokens=4, **given)


def test_the_last_answer_is_asked_for_with_all_that_comes_before_it():
    (asked,) = choose([sequence("<u>one<a>two<u>who<a>you", "tttuuutttaaatttuuutttaaa", "000000111111222222333333")],
                      Letters(), settings(), None)  # fmt: skip
    assert asked.prompt == "who"
    assert asked.reference == "you"
    assert "".join(map(chr, asked.ids)) == "<u>one<a>two<u>who<a>"


def test_raw_text_is_continued_and_what_cannot_be_asked_is_passed_over():
    raw = sequence("abcdefgh", "xxxxxxxx", "00000000", "raw")
    no_prompt = sequence("aa", "aa", "00", "none")
    long = sequence("u" * 20 + "a", "u" * 20 + "a", "0" * 20 + "1", "long")
    chosen = choose([no_prompt, long, raw, raw, raw], Letters(), settings(samples=2), 12)
    assert [(a.id, a.prompt, a.reference) for a in chosen] == [("raw", "abcd", "efgh")] * 2
    assert choose([raw], Letters(), settings(samples=0), None) == ()


@pytest.mark.parametrize("compute", ["fp32", "bf16"])
def test_training_is_byte_identical_with_and_without_samples(small_model, chats, tmp_path, compute):
    made = {}
    for samples in (0, 3):
        wanted = recipe(small_model, chats, {"samples": samples, "every": 2}, max_steps=4, compute=compute)
        made[samples] = train(wanted, out=tmp_path / str(samples))
    off, on = tmp_path / "0", tmp_path / "3"
    for name in ("metrics.jsonl", "evaluations.jsonl", "adapter/adapter_model.safetensors"):
        assert (off / name).read_bytes() == (on / name).read_bytes()
    assert not (off / "samples.jsonl").exists()
    assert "samples" not in made[0]
    lines = [json.loads(line) for line in (on / "samples.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 0, 0, 2, 2, 2, 4, 4, 4]
    assert len({line["id"] for line in lines}) == 3
    assert len({line["answer"] for line in lines}) > 1
    assert all(line["prompt"] and line["reference"] and line["tokens"] <= 3 for line in lines)
    told = made[3]["samples"]
    assert (told["prompts"], told["moments"]) == (3, 3)
    assert told["tokens"] == sum(line["tokens"] for line in lines)


def test_answers_that_fail_after_the_last_step_cost_no_adapter(small_model, chats, tmp_path, monkeypatch):
    true, told = Samples.write, []

    def broken(self, step):
        if step == 2:
            raise ValueError("no answer to this")
        return true(self, step)

    class Heard(Silent):
        def warn(self, line):
            told.append(line)

    monkeypatch.setattr(Samples, "write", broken)
    wanted = recipe(small_model, chats, {"samples": 1, "every": 0}, max_steps=2)
    summary = train(wanted, out=tmp_path / "out", watcher=Heard())
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").exists()
    assert (tmp_path / "out" / "summary.json").exists()
    assert summary["samples"]["moments"] == 1
    assert any("no answers after the last step, the rest is saved: ValueError: no answer to this" in x for x in told)
