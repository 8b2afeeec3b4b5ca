import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frisket import bundled
from frisket.data.settings import SourceSettings
from frisket.data.source import read_conversations
from frisket.evaluate.overlap import Overlap, SampleText, Share, overlaps, sample_text
from frisket.types import Conversation, Message

RNG_WORDS = [f"w{i}" for i in range(5000)]


def texts(name: str, count: int, rng: np.random.Generator, prompt: int = 30, answer: int = 40) -> list[SampleText]:
    """Samples of words drawn at random: no two share a run."""

    def draw(size: int) -> str:
        return " ".join(rng.choice(RNG_WORDS, size))

    return [SampleText(f"{name}:{i + 1}", draw(prompt), draw(answer)) for i in range(count)]


def one(train: list[SampleText], samples: list[SampleText]) -> Overlap:
    return overlaps(train, {"set": samples})["set"]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 12), st.integers(1, 40))
def test_planted_duplicates_are_found_and_no_others(seed, planted, length):
    rng = np.random.default_rng(seed)
    samples = texts("eval", 12, rng, length, length)
    train = [*texts("train", 30, rng, length, length), *samples[:planted]]
    found = one([train[i] for i in rng.permutation(len(train))], samples)
    if length > 2:  # shorter texts may be equal by chance
        assert found.duplicates == found.whole.most == found.whole.some == planted
        assert {match.name for match in found.worst} <= {sample.name for sample in samples[:planted]}
        assert all(match.name == match.train and match.whole == 1 for match in found.worst)


def test_unrelated_text_gives_nothing():
    rng = np.random.default_rng(0)
    found = one(texts("train", 200, rng), texts("eval", 50, rng))
    assert (found.whole, found.prompt, found.answer, found.worst) == (Share(0, 0), Share(0, 0), Share(0, 0), ())
    assert found.sentence() == (
        "None of 50 evaluation samples is trained on as well, whole or by a fifth of its words."
    )
    assert found.action() == ""


def test_one_changed_word_costs_one_word():
    rng = np.random.default_rng(1)
    (sample,) = texts("eval", 1, rng)
    words = sample.prompt.split()
    changed = sample._replace(name="train:7", prompt=" ".join([*words[:15], "other", *words[16:]]))
    found = one([*texts("train", 5, rng), changed], [sample])
    assert (found.duplicates, found.same_prompt, found.whole) == (0, 0, Share(1, 1))
    (match,) = found.worst
    assert (match.train, match.answer) == ("train:7", 1.0)
    assert match.prompt == pytest.approx(29 / 30)
    assert match.whole == pytest.approx(69 / 70)


def test_case_punctuation_and_space_do_not_hide_a_run():
    words = [f"Word{i}" for i in range(14)]
    train = SampleText("t:1", "x", f"so: {', '.join(words)}!")
    found = one([train], [SampleText("e:1", "\n".join(words).upper(), "y")])
    assert found.prompt == Share(1, 1)
    assert found.answer == Share(0, 0)


def test_a_run_of_twelve_words_is_not_seen():
    words = [f"word{i}" for i in range(14)]
    near = SampleText("t:1", " ".join(["a", *words[:12], "b"]), "x")
    assert one([near], [SampleText("e:1", " ".join(words), "y")]).whole == Share(0, 0)


def test_short_samples_are_compared_as_a_whole_and_signs_count():
    train = [SampleText("t:1", "41 + 28", "69"), SampleText("t:2", "How much is it?", "72")]
    samples = [
        SampleText("e:1", "41 - 28", "13"),
        SampleText("e:2", "41  +  28 ", "69"),
        SampleText("e:3", "how much\nis it?", "5"),
        SampleText("e:4", "Something else", "72"),
    ]
    found = one(train, samples)
    assert (found.duplicates, found.same_prompt, found.short) == (1, 2, 4)
    assert [(match.name, match.train) for match in found.worst] == [("e:2", "t:1"), ("e:3", "t:2")]
    assert found.sentence() == (
        "2 of 4 evaluation samples are trained on as well (1 word for word, 1 with another answer): that score shows "
        "memory, not learning."
    )
    assert "(first: e:2, trained on as t:1), or measure on a file of its own" in found.action()
    (clean,) = overlaps(train, {"clean": samples[3:]}).values()
    assert clean.sentence().endswith("(1 under 13 words, compared only as wholes).")


def test_a_template_that_everything_shares_is_boilerplate():
    rng = np.random.default_rng(2)
    header = " ".join(f"header{i}" for i in range(25))

    def headed(name: str, count: int) -> list[SampleText]:
        return [s._replace(prompt=f"{header} {s.prompt}") for s in texts(name, count, rng, prompt=10)]

    train, samples = headed("train", 300), headed("eval", 20)
    found = one(train, samples)
    assert found.boilerplate_from == 15
    assert found.boilerplate == 13
    assert (found.whole, found.prompt) == (Share(0, 0), Share(0, 0))
    few = one(train[:10], samples)
    assert (few.boilerplate, few.prompt) == (0, Share(0, 20))
    assert one([*train, samples[3]], samples).duplicates == 1


def test_a_word_that_follows_boilerplate_by_chance_is_no_evidence():
    header = " ".join(f"header{i}" for i in range(20))
    train = [SampleText(f"t:{i}", f"{header} {'what' if i < 3 else f'word{i}'} now", "x") for i in range(60)]
    found = one(train, [SampleText("e:1", f"{header} what is that", "y")])
    assert found.prompt == Share(0, 0)


def test_a_prompt_that_many_samples_have_is_no_finding():
    train = [SampleText(f"t:{i}", "Tell me a joke", f"joke {i}") for i in range(60)]
    found = one(train, [SampleText("e:1", "Tell me a joke", "another"), SampleText("e:2", "Tell me a joke", "joke 5")])
    assert (found.same_prompt, found.duplicates) == (1, 1)
    assert found.worst[0].train == "t:5"


def test_a_prompt_found_in_training_answers_counts_and_prompts_do_not_run_into_answers():
    words = [f"word{i}" for i in range(20)]
    found = one([SampleText("t:1", "x", " ".join(words))], [SampleText("e:1", " ".join(words), "y")])
    assert found.prompt == Share(1, 1)
    split = one(
        [SampleText("t:1", " ".join(words), "")], [SampleText("e:1", " ".join(words[:10]), " ".join(words[10:]))]
    )
    assert split.whole == Share(0, 0)


def test_runs_do_not_cross_from_one_training_sample_to_the_next():
    words = [f"word{i}" for i in range(20)]
    train = [SampleText("t:1", "", " ".join(words[:10])), SampleText("t:2", " ".join(words[10:]), "")]
    assert one(train, [SampleText("e:1", " ".join(words), "")]).whole == Share(0, 0)


def test_sets_are_told_apart_and_the_training_data_may_be_an_iterator_of_many_batches():
    rng = np.random.default_rng(3)
    a, b, train = texts("a", 9, rng), texts("b", 7, rng), texts("train", 1300, rng)
    stream = iter(itertools.chain(train[:700], a[:2], train[700:], b[:3]))
    found = overlaps(stream, {"a": a, "b": b, "none": []})
    assert [(each.samples, each.duplicates) for each in found.values()] == [(9, 2), (7, 3), (0, 0)]
    assert found["a"].train_samples == 1305
    assert json.loads(json.dumps(found["b"].as_dict()))["worst"][0]["train"].startswith("b:")


def test_the_counterpart_is_the_training_sample_that_shares_most():
    rng = np.random.default_rng(4)
    (sample,) = texts("eval", 1, rng)
    words = sample.prompt.split()
    train = [SampleText("t:little", " ".join(words[:14]), "x"), SampleText("t:most", " ".join(words[:25]), "x")]
    assert one([*texts("train", 600, rng), *train], [sample]).worst[0].train == "t:most"


def test_signs_of_chinese_are_words():
    text = "今天天气很好我们去公园散步吧然后一起吃午饭"
    found = one([SampleText("t:1", "x", f"他说{text}")], [SampleText("e:1", text, "y")])
    assert found.prompt == Share(1, 1)


def test_samples_without_text_are_said():
    found = one([SampleText("t:1", "", "")], [SampleText("e:1", "", "")])
    assert (found.without_text, found.duplicates) == (1, 0)
    assert found.sentence() == "The evaluation samples have no text, so nothing was compared."


def test_text_of_a_conversation():
    call = {"type": "function", "function": {"name": "look", "arguments": {"at": "é"}}}
    messages = (
        Message("system", "Be brief."),
        Message("user", "Hi"),
        Message("assistant", "", tool_calls=(call,)),
        Message("tool", "7"),
        Message("assistant", "It is 7.", reasoning="So 7."),
    )
    conversation = Conversation("0:1", 0, "chats.jsonl", 4, messages)
    assert sample_text(conversation) == SampleText(
        "chats.jsonl:4", 'Be brief.\nHi\nlook {"at": "é"}\n7', "So 7.\nIt is 7."
    )
    assert sample_text(Conversation("0:2", 0, "f", 2, text="raw")) == SampleText("f:2", "", "raw")
    assert sample_text(Conversation("0:3", 0, "f", 3, messages[:2])) == SampleText("f:3", "Be brief.\nHi", "")


def test_the_bundled_evaluation_sets_are_not_in_the_bundled_training_data():
    def read(path: str) -> list[SampleText]:
        return [sample_text(c) for c in read_conversations(SourceSettings(path=path), 0).conversations]

    found = overlaps(read("bundled"), {"t": read(str(bundled.eval_path())), "u": read(str(bundled.unseen_path()))})
    assert [(each.samples, each.same_prompt) for each in found.values()] == [(600, 0), (100, 0)]
