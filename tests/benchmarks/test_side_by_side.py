"""The side-by-side's other measurements: what is compared, what is named, and that the page says what was measured."""

import json

import numpy as np
import pytest
from benchmarks.speed import first_step, page, quick
from benchmarks.speed.same_numbers import Replay, final, start_from

from frisket.attend.pack import best_fit


def test_the_page_is_made_of_the_results():
    assert page.PAGE.read_text(encoding="utf-8") == page.page(), "python -m benchmarks.speed.page"


def test_a_part_that_was_not_measured_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "RESULTS", tmp_path)
    assert page.page() == page.HEAD + "\n"


def test_the_headline_is_the_lower_of_the_cases():
    told = json.loads((page.RESULTS / "cpu-headline.json").read_text(encoding="utf-8"))
    for key in ("ratio_to_best_peer", "ratio_to_peer_default"):
        assert told[key] == min(case[key] for case in told["cases"].values())
    assert set(told["cases"]) == {"q-and-v", "all-linear"}


@pytest.fixture
def kept(monkeypatch, tmp_path):
    """The best ratios so far, of one kind of machine."""
    monkeypatch.setattr(quick, "RESULTS", tmp_path / "quick.json")
    monkeypatch.setattr(quick, "machine", lambda device: "here")
    monkeypatch.setattr(quick.torch, "set_num_threads", lambda threads: None)
    return lambda: json.loads((tmp_path / "quick.json").read_text())["here"]["best"]


def test_what_fell_by_more_than_a_tenth_is_named(monkeypatch, kept, capsys):
    monkeypatch.setattr(quick, "measure", lambda: {"speed over a": 1.7, "speed over b": 0.95})
    monkeypatch.setattr("sys.argv", ["quick", "--keep"])
    quick.main()
    assert kept() == {"speed over a": 1.7, "speed over b": 0.95}
    monkeypatch.setattr("sys.argv", ["quick"])
    quick.main()
    monkeypatch.setattr(quick, "measure", lambda: {"speed over a": 1.5, "speed over b": 0.95})
    with pytest.raises(SystemExit, match=r"^speed over a fell from 1\.7 to 1\.5$"):
        quick.main()
    assert "nothing is committed" in capsys.readouterr().out


def test_a_better_ratio_is_kept_and_a_worse_one_is_not(monkeypatch, kept):
    monkeypatch.setattr("sys.argv", ["quick", "--keep"])
    for value in (1.7, 1.6, 1.8):
        monkeypatch.setattr(quick, "measure", lambda value=value: {"a": value})
        quick.main()
        assert kept() == {"a": max(value, 1.7)}


def test_the_instructions_become_pairs():
    made = quick.pairs()
    assert len(made) > 1000
    assert all(pair["prompt"].endswith("\n") and pair["completion"] for pair in made)


def test_the_replay_hands_out_the_given_steps():
    assert list(Replay([[3, 1], [2]])) == [[3, 1], [2]]
    assert len(Replay([[3, 1], [2]])) == 2


def test_every_start_value_must_find_its_place():
    torch = pytest.importorskip("torch")
    model = torch.nn.ModuleDict({"lora_A": torch.nn.Linear(2, 2, bias=False)})
    start_from(model, {"lora_A.weight": torch.full((2, 2), 7.0)})
    assert model["lora_A"].weight.tolist() == [[7.0, 7.0], [7.0, 7.0]]
    with pytest.raises(AssertionError, match="not in TRL's model"):
        start_from(model, {"lora_A.weight": torch.zeros(2, 2), "lora_B.weight": torch.zeros(2, 2)})


def test_the_final_loss_is_the_mean_of_the_last_tenth():
    assert final([*range(20)]) == 18.5


def test_the_commands_of_the_first_step_are_those_of_a_user(tmp_path):
    assert first_step.words_of(first_step.OFF, tmp_path)[1:] == [
        "-m",
        "frisket",
        "train",
        str(tmp_path / "recipe.yaml"),
        "--out",
        "out",
        "evaluate=off",
    ]
    assert "evaluate=off" not in first_step.words_of(first_step.DEFAULT, tmp_path)
    assert first_step.words_of(first_step.TRL, tmp_path)[1:] == [str(tmp_path / "sft.py")]


def test_rows_of_many_lengths_are_full():
    """Lengths as of a file of short answers: three in a thousand places stay empty, and nothing is lost."""
    lengths = np.random.default_rng(0).gamma(6, 35, 100_000).astype(int) + 40
    rows = best_fit(lengths.tolist(), 4096)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert max(lengths[row].sum() for row in rows) <= 4096
    assert lengths.sum() / (4096 * len(rows)) >= 0.995
