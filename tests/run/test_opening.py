"""A trained model answers: streamed as at once, beside its base, and never beyond its context."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from frisket.errors import DataError
from frisket.generate.settings import GenerateSettings
from frisket.run import Chat, open_run, train
from frisket.watch import Silent

from .test_best import recipe
from .test_training import records

SHORT = GenerateSettings(max_new_tokens=8)
SAMPLED = GenerateSettings(max_new_tokens=8, temperature=1.5, top_p=0.9)


@pytest.fixture(scope="module")
def chat(small_model, tmp_path_factory) -> Chat:
    folder = tmp_path_factory.mktemp("chat")
    path: Path = folder / "chats.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records(12)))
    train(recipe(small_model, path, "off", max_steps=4), out=folder / "out")
    return open_run(folder / "out", watcher=Silent())


def question(text: str) -> list[dict]:
    return [{"role": "system", "content": "alpha"}, {"role": "user", "content": text}]


def answered(chat: Chat, text: str, settings: GenerateSettings, base: bool = False) -> str:
    return "".join(chat.stream(question(text), settings, base))


def test_streaming_is_answering(chat):
    for base in (False, True):
        whole = chat.answer([question("beta"), question("gamma delta")], SHORT, base)
        assert [answered(chat, text, SHORT, base) for text in ("beta", "gamma delta")] == [each.text for each in whole]
    assert answered(chat, "beta", SHORT) != answered(chat, "beta", SHORT, base=True)


def test_an_answer_that_is_left_leaves_nothing_behind(chat):
    """The adapter is on again, and no cached key of the answer that was stopped is seen by the next."""
    expected = [answered(chat, "beta", SHORT), answered(chat, "beta", SHORT, base=True)]
    for base in (True, False):
        reply = replace(chat, stop_ids=()).stream(question("kappa " * 9), GenerateSettings(max_new_tokens=300), base)
        pieces = iter(reply)
        next(pieces)
        pieces.close()
        assert reply.ended == "stopped"
        assert [answered(chat, "beta", SHORT), answered(chat, "beta", SHORT, base=True)] == expected


def test_sampling_follows_the_seed(chat):
    seeds = [SAMPLED.model_copy(update={"seed": seed}) for seed in range(4)]
    first = [answered(chat, "beta", settings) for settings in seeds]
    assert first == [answered(chat, "beta", settings) for settings in seeds]
    assert len(set(first)) > 1


def test_a_conversation_near_the_context_is_cut_and_one_beyond_it_refused(chat, monkeypatch):
    length = len(chat._prompt(question("beta")))
    monkeypatch.setattr(chat.opened.model.config, "max_position_embeddings", length + 3)
    reply = chat.stream(question("beta"), SHORT)
    "".join(reply)
    assert reply.tokens <= 3
    assert reply.ended in ("context", "end")
    monkeypatch.setattr(chat.opened.model.config, "max_position_embeddings", length)
    with pytest.raises(DataError, match=rf"has {length} tokens, and the model takes {length} with the answer"):
        chat.stream(question("beta"), SHORT)
