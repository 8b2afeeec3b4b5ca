"""The data of the experiment on teaching prompts."""

import json

from lab.instruction_modelling import HELD_OUT, SAMPLES, TIMES, experiment, files, records

from lab import instruction_modelling


def test_no_prompt_is_trained_and_evaluated(tmp_path, monkeypatch):
    monkeypatch.setattr(instruction_modelling, "WORK", tmp_path)
    for content in ("short", "long"):
        train, held = ([json.loads(line) for line in path.read_text().splitlines()] for path in files(content))
        prompts = [{row["messages"][0]["content"] for row in rows} for rows in (train, held)]
        assert [len(each) for each in prompts] == [SAMPLES, HELD_OUT]
        assert not prompts[0] & prompts[1]


def test_long_answers_repeat_every_letter():
    row = records("long")[0]["messages"]
    letters = row[1]["content"].split()
    assert letters == [letter for letter in letters[::TIMES] for _ in range(TIMES)]
    assert "three times" in row[0]["content"]


def test_the_arms_differ_only_in_what_teaches():
    arms = experiment("short").arms.values()
    rest = [[word for word in arm if not word.startswith("supervise.")] for arm in arms]
    assert all(each == rest[0] for each in rest)
