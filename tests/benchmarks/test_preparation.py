"""The benchmark of preparation: the file, the turns, the ratios, and what memory it sees."""

import json
import mmap
import time

import pytest
from benchmarks.preparation import (
    CASES,
    by_turns,
    largest_memory,
    prepare_with_frisket,
    summary,
    template_of,
    tokenizer_of,
    write_messages,
)

from frisket.types import Provenance


@pytest.fixture
def folder(tmp_path):
    rows = [{"question": f"What is {i} + {i}?", "answer": f"It is {2 * i}."} for i in range(5)]
    (tmp_path / "gsm8k_train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_the_file_is_repeated_or_filled_up(folder):
    twice = write_messages(folder, folder / "twice.jsonl", copies=2).read_text().splitlines()
    assert len(twice) == 10
    assert json.loads(twice[0])["messages"][1] == {"role": "assistant", "content": "It is 0."}
    filled = write_messages(folder, folder / "filled.jsonl", size=2000)
    assert 2000 <= filled.stat().st_size < 2200


@pytest.mark.parametrize("case", [name for name, (tokenizer, *_) in CASES.items() if tokenizer == "bundled"])
def test_frisket_prepares_the_file(folder, case, monkeypatch):
    monkeypatch.setenv("FRISKET_CACHE", str(folder / "cache"))
    kind, template_name, columns = CASES[case]
    tokenizer = tokenizer_of(kind, folder, folder)
    template = template_of(template_name, tokenizer)
    file = write_messages(folder, folder / "messages.jsonl", copies=1, columns=columns)
    dataset = prepare_with_frisket(file, template, tokenizer, folder / "cache")
    assert len(dataset) == 5
    answer = dataset[1].input_ids[dataset[1].roles == Provenance.ASSISTANT]
    assert tokenizer.decode(answer) == "It is 2."


def test_arms_take_turns_and_the_first_is_not_counted():
    calls = []
    seconds = by_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, turns=2)
    assert calls == ["a", "b"] * 3
    assert {arm: len(times) for arm, times in seconds.items()} == {"a": 2, "b": 2}


def test_ratios_are_medians_over_the_turns():
    told = summary({"encode_batch": [1.0, 1.0, 9.0], "frisket": [2.0, 4.0, 2.0], "trl": [8.0, 8.0, 8.0]}, 10, 100)
    assert told["of_encode_batch"] == 0.5
    assert told["faster_than_trl"] == 4.0
    assert told["samples_per_second"] == 5
    assert "faster_than_trl" not in summary({"encode_batch": [1.0], "frisket": [2.0]}, 10, 100)


def test_memory_that_is_taken_meanwhile_is_seen():
    with largest_memory() as largest:
        # Fresh pages: a freed block of the heap could be resident already.
        taken = mmap.mmap(-1, 50_000_000, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        taken.write(b"x" * 50_000_000)
        time.sleep(0.1)
    assert taken[-1] == ord("x")
    assert largest["anonymous_mb"] > 40
