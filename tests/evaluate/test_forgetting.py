"""KL on the base's own answers and text before and after, exact and as a lower bound."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch

from frisket.errors import ConfigError
from frisket.evaluate.answers import base_answers
from frisket.evaluate.forgetting import compared, forgetting_set, measure_base, measure_tuned
from frisket.evaluate.settings import ForgettingSettings
from frisket.evaluate.text import plain_sequence
from frisket.hf.attention import own_attention

SETTINGS = ForgettingSettings(prompts=6, answer_tokens=5, text_tokens=600)


@pytest.fixture
def prompts(tokenizer) -> list[list[int]]:
    words = ["sort these", "add", "a much longer prompt than the others", "copy", "x", "reverse me", "one more", "copy"]
    return [[0, *tokenizer(word, add_special_tokens=False)["input_ids"]] for word in words]


@pytest.fixture
def switchable(model, other):
    """A model whose weights are ``other``'s, and ``model``'s while it is switched off."""
    tuned = type(model)(model.config).to(torch.float64).eval()
    tuned.load_state_dict(other.state_dict())

    @contextmanager
    def switched_off():
        tuned.load_state_dict(model.state_dict())
        yield
        tuned.load_state_dict(other.state_dict())

    return tuned, switched_off


def dense_kl(model, other, answered) -> float:
    ids = torch.from_numpy(answered.sequence.input_ids.astype(np.int64))[None]
    with torch.no_grad(), own_attention(model), own_attention(other):
        p, q = (torch.softmax(m(input_ids=ids, use_cache=False).logits[0].double(), -1) for m in (model, other))
    span = slice(answered.first, answered.first + answered.count)
    return float((p[span] * (p[span] / q[span]).log()).sum())


def test_kl_is_the_dense_formula_and_the_bound_is_below(model, switchable, other, tokenizer, prompts, each_arrangement):
    made = forgetting_set(SETTINGS, tokenizer, prompts=prompts)
    assert len(made.prompts) == 6
    base = measure_base(model, made, each_arrangement, keep_base=True)
    assert base.measures["kl"].value == 0
    tuned, switched_off = switchable
    exact = measure_tuned(tuned, made, base, each_arrangement, switched_off=switched_off)
    expected = [dense_kl(model, other, answered) for answered in base.answered]
    assert exact["kl"].total == pytest.approx(expected, rel=1e-5)
    assert exact["kl"].count.tolist() == [a.count for a in base.answered]
    bound = measure_tuned(tuned, made, base, each_arrangement)
    assert (bound["kl"].total <= exact["kl"].total).all()
    assert (bound["kl"].total > 0.3 * exact["kl"].total).all()
    found = compared(made, base, exact, is_exact=True)
    assert found["kl_is"] == "exact"
    assert found["after"]["kl"] == pytest.approx(sum(expected) / sum(a.count for a in base.answered), rel=1e-5)
    assert found["units"]["kl"] == 6
    assert found["difference"]["kl_verdict"] == "worse"
    assert "lower bound" in compared(made, base, bound, is_exact=False)["kl_is"]
    assert set(found["texts"]) == {"prose", "code"}
    assert found["python"].startswith("CPython") or found["python"]
    names = {"kl", "bits_per_character_prose", "bits_per_character_code"}
    assert {n for n in found["after"] if not n.endswith("_interval")} == names


def test_an_unchanged_model_forgot_nothing(model, tokenizer, prompts, instruments):
    made = forgetting_set(SETTINGS, tokenizer, prompts=prompts)
    base = measure_base(model, made, instruments, keep_base=True)

    @contextmanager
    def switched_off():
        yield

    exact = measure_tuned(model, made, base, instruments, switched_off=switched_off)
    assert exact["kl"].total.tolist() == [0.0] * 6
    for name in ("bits_per_character_prose", "bits_per_character_code"):
        assert exact[name].total.tolist() == base.measures[name].total.tolist()
    bound = measure_tuned(model, made, base, instruments)
    assert np.abs(bound["kl"].total).max() < 1e-12


def test_answers_end_where_the_base_stops(model, tokenizer, instruments, prompts):
    free = base_answers(model, prompts, [2, 0], 5, instruments)
    assert [a.sequence.sample_id for a in free] == ["kl:2", "kl:0"]
    assert [a.first for a in free] == [len(prompts[2]) - 1, len(prompts[0]) - 1]
    assert all(a.count == 5 for a in free)
    second = int(free[0].sequence.input_ids[len(prompts[2]) + 1])
    stopping = type(instruments)(**vars(instruments) | {"stop_ids": (second,)})
    (stopped,) = base_answers(model, prompts, [2], 5, stopping)
    assert stopped.count <= 2
    assert len(stopped.sequence) == len(prompts[2]) + stopped.count - 1


def test_the_budget_is_kept_and_the_same_units_measured_after(
    model, other, tokenizer, prompts, instruments, monkeypatch
):
    monkeypatch.setattr("frisket.evaluate.budget.FIRST", 2)
    lines = []
    watched = type(instruments)(**vars(instruments) | {"watcher": instruments.watcher})
    monkeypatch.setattr(type(watched.watcher), "say", lambda self, line: lines.append(line))
    made = forgetting_set(SETTINGS.model_copy(update={"text_tokens": 2000}), tokenizer, prompts=prompts)
    base = measure_base(model, made, watched, keep_base=True, seconds=0.0)
    assert len(base.answered) == 2
    assert [len(chosen) for chosen in base.chosen.values()] == [2, 2]
    assert len(lines) == 3
    assert lines[0].startswith("default: kl: 2 of 6 fit")
    tuned = measure_tuned(other, made, base, watched)
    assert {len(measure) for measure in tuned.values()} == {2}


def test_an_own_file_is_measured_alone(model, tokenizer, prompts, instruments, tmp_path):
    path = tmp_path / "own.txt"
    path.write_text("words that matter here " * 40)
    settings = ForgettingSettings(name="own", path=str(path))
    made = forgetting_set(settings, tokenizer, prompts=prompts)
    assert made.prompts == ()
    base = measure_base(model, made, instruments, keep_base=False)
    assert list(base.measures) == ["bits_per_character_text"]
    assert base.kept is None
    samples = [(plain_sequence("a", prompts[0]), np.ones(len(prompts[0])))]
    made = forgetting_set(settings, tokenizer, samples=samples)
    assert list(measure_base(model, made, instruments, keep_base=False).measures) == ["loss"]


def test_prompts_without_room_are_noted(tokenizer, prompts):
    made = forgetting_set(SETTINGS, tokenizer, prompts=prompts, context=12)
    assert max(len(prompt) for prompt in made.prompts) <= 7
    assert "leave no room for 5 tokens" in made.notes[0]
    assert all(len(s) <= 12 for windows in made.windows for s in windows.sequences)
    none = forgetting_set(SETTINGS, tokenizer)
    assert none.notes == ("default: no KL, because there is no prompt to measure it on",)


def test_what_is_missing_is_noted(tokenizer, prompts, monkeypatch):
    monkeypatch.setattr("frisket.evaluate.text.PROSE", (("no-such-topic",),))
    made = forgetting_set(SETTINGS, tokenizer, prompts=prompts)
    assert made.notes == ("default: this Python has no standard-library text for prose",)


def test_a_set_that_measures_nothing_is_refused(tokenizer):
    with pytest.raises(ConfigError, match=r"(?s)evaluate.forgetting.1 \(default\) measures nothing.*forgetting=\[\]"):
        forgetting_set(ForgettingSettings(text_tokens=0), tokenizer, index=1)


def test_kl_without_the_base_is_refused(model, tokenizer, prompts, instruments):
    made = forgetting_set(SETTINGS, tokenizer, prompts=prompts)
    base = measure_base(model, made, instruments, keep_base=False)
    with pytest.raises(ValueError, match="KL needs the base"):
        measure_tuned(model, made, base, instruments)
