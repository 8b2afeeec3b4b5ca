"""The laboratory's harness, on measures whose figures are known."""

import io
import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from lab.experiment import Arm, Expectation, Experiment, compare, judge, markdown, train_on_bundled
from rich.console import Console

from frisket.errors import CheckError, ConfigError
from lab import experiment as lab

QUIET = Console(quiet=True)
HIGHER = Expectation("new", "old", "score", good="higher", expected="better", smallest=0.1)
LOWER = replace(HIGHER, good="lower")
SCORES = {("new", 0): 0.9, ("new", 1): 0.7, ("new", 2): 0.8, ("old", 0): 0.5, ("old", 1): 0.5, ("old", 2): 0.4}


class Bench:
    """A measure that answers from a table, writes down what it was asked, and may fail once."""

    def __init__(self, values=SCORES, fails_at: int | None = None) -> None:
        self.values, self.fails_at = values, fails_at
        self.asked: list[tuple[str, int]] = []

    def __call__(self, arm: Arm, seed: int):
        if len(self.asked) == self.fails_at:
            self.fails_at = None
            raise RuntimeError("the power went out")
        self.asked.append((arm.name, seed))
        return {"score": self.values[arm.name, seed]}


def experiment(folder: Path, measure=None, **changes) -> Experiment:
    given = {
        "name": "new-or-old",
        "question": "Is new better than old?",
        "arms": {"new": ["adapt.rank=8"], "old": []},
        "expectations": [HIGHER],
        "measure": measure or Bench(),
        "budget_seconds": 60,
        "folder": folder,
    }
    return Experiment(**given | changes)


def stored(one: Experiment) -> dict:
    return json.loads(one.file.read_text())


def test_arms_take_turns_inside_each_seed_and_none_is_always_first(tmp_path):
    bench = Bench()
    experiment(tmp_path, bench).run(console=QUIET)
    assert bench.asked == [("new", 0), ("old", 0), ("old", 1), ("new", 1), ("new", 2), ("old", 2)]


def test_measure_gets_the_settings_of_the_arm(tmp_path):
    seen = {}

    def measure(arm, seed):
        seen[arm.name] = arm.settings
        return {"score": 0.0}

    experiment(tmp_path, measure).run(console=QUIET)
    assert seen == {"new": ["adapt.rank=8"], "old": []}


def test_what_is_expected_lies_in_the_file_before_the_first_run(tmp_path):
    def measure(arm, seed):
        if not seen:
            seen.append(stored(one))
        return {"score": 0.0}

    seen: list[dict] = []
    one = experiment(tmp_path, measure)
    one.run(console=QUIET)
    assert seen[0]["runs"] == []
    assert seen[0]["expectations"][0]["smallest"] == 0.1


def test_a_stopped_experiment_goes_on_where_it_was(tmp_path):
    whole = experiment(tmp_path / "whole").run(console=QUIET)
    bench = Bench(fails_at=3)
    stopped = experiment(tmp_path / "stopped", bench)
    with pytest.raises(RuntimeError, match="power went out"):
        stopped.run(console=QUIET)
    assert len(stored(stopped)["runs"]) == 3
    assert stored(stopped)["comparisons"] == []
    resumed = stopped.run(console=QUIET)
    assert len(bench.asked) == len(set(bench.asked)) == 6
    assert resumed["comparisons"] == whole["comparisons"] == stored(stopped)["comparisons"]
    stopped.run(console=QUIET)
    assert len(bench.asked) == 6


def test_a_write_that_fails_leaves_the_earlier_results(tmp_path, monkeypatch):
    one = experiment(tmp_path)
    one.run(console=QUIET)
    before = one.file.read_bytes()
    values = SCORES | {("new", 3): 0.8, ("old", 3): 0.4}

    def write_half(path, text, **_):
        with path.open("w") as file:
            file.write(text[: len(text) // 2])
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_text", write_half)
    with pytest.raises(OSError, match="disk full"):
        experiment(tmp_path, Bench(values)).run(4, console=QUIET)
    assert one.file.read_bytes() == before


@pytest.mark.parametrize(
    "change",
    [
        {"arms": {"new": ["adapt.rank=16"], "old": []}},
        {"expectations": [replace(HIGHER, smallest=0.01)]},
        {"expectations": [replace(HIGHER, expected="worse")]},
    ],
)
def test_a_changed_definition_is_refused_under_results(tmp_path, change):
    one = experiment(tmp_path)
    one.run(console=QUIET)
    with pytest.raises(
        ConfigError, match=r"holds results of another definition[\s\S]*\nDelete or rename the file: mv "
    ):
        experiment(tmp_path, **change).run(console=QUIET)


def test_question_and_budget_may_change_and_without_a_run_all_may(tmp_path):
    bench = Bench()
    experiment(tmp_path, bench).run(console=QUIET)
    experiment(tmp_path, bench, question="Really?", budget_seconds=90).run(console=QUIET)
    assert len(bench.asked) == 6
    with pytest.raises(RuntimeError, match="power"):
        experiment(tmp_path / "other", Bench(fails_at=0)).run(console=QUIET)
    changed = experiment(tmp_path / "other", expectations=[LOWER]).run(console=QUIET)
    assert changed["expectations"][0]["good"] == "lower"


def test_a_definition_says_all_that_is_wrong_with_it(tmp_path):
    with pytest.raises(ConfigError, match="is ill-defined: 5 problems") as caught:
        experiment(
            tmp_path,
            name="New Or Old",
            arms={"new": {1, 2}, "old": []},
            expectations=[replace(HIGHER, arm="newer", smallest=0.0), replace(HIGHER, against="older")],
        )
    for part in ("joined by hyphens", "must survive JSON", "'newer', which is not there", "'older'", "must be above 0"):
        assert part in str(caught.value)
    with pytest.raises(ConfigError, match="written down before a run"):
        experiment(tmp_path, expectations=[])


def test_fewer_than_three_seeds_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="seeds = 2: differences of so few seeds have no interval"):
        experiment(tmp_path).run(2, console=QUIET)


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ({"other": 1.0}, r"returned no 'score', which an expectation names; it returned \['other'\]"),
        ({"score": float("nan")}, r"of which 0 of 1 figures are finite"),
        ({"score": [1.0, float("inf")]}, r"of which 1 of 2 figures are finite"),
        ({"score": []}, r"of shape \(0,\)"),
        ({"score": [[1.0]]}, r"of shape \(1, 1\)"),
    ],
)
def test_what_cannot_be_compared_is_refused_and_not_stored(tmp_path, returned, said):
    one = experiment(tmp_path, lambda arm, seed: returned)
    with pytest.raises(CheckError, match=said):
        one.run(console=QUIET)
    assert stored(one)["runs"] == []


def test_lists_of_another_length_are_refused(tmp_path):
    one = experiment(tmp_path, lambda arm, seed: {"score": [1.0] * (4 if arm.name == "new" else 5)})
    with pytest.raises(CheckError, match=r"returned 5 values of 'score'; earlier runs have 4"):
        one.run(console=QUIET)


def test_a_run_that_would_pass_the_budget_is_not_begun(tmp_path, monkeypatch):
    clock = itertools.count(step=10)  # every reading is ten seconds after the last one
    monkeypatch.setattr(lab.time, "perf_counter", lambda: next(clock))
    bench = Bench()
    one = experiment(tmp_path, bench, budget_seconds=45)
    with pytest.raises(
        ConfigError, match=r"4 runs took 40 s of budget_seconds = 45.*about 10 s\.\n.*budget_seconds=90"
    ):
        one.run(console=QUIET)
    assert len(bench.asked) == 4
    experiment(tmp_path, bench, budget_seconds=90).run(console=QUIET)
    assert len(bench.asked) == 6


def test_progress_says_how_many_how_long_and_how_much_is_left(tmp_path, monkeypatch):
    seconds = {"new": 30, "old": 10}
    clock = [0]
    monkeypatch.setattr(lab.time, "perf_counter", lambda: clock[0])

    def measure(arm, seed):
        clock[0] += seconds[arm.name]
        return {"score": 0.0}

    console = Console(record=True, width=120, file=io.StringIO())
    experiment(tmp_path, measure, budget_seconds=1000).run(console=console)
    lines = console.export_text().splitlines()
    assert lines[0] == "run 1 of 6 · new, seed 0 · time left unknown"
    assert lines[2] == "run 3 of 6 · old, seed 1 · 40 s used, about 1 min 20 s left"  # two of each are left


# --- intervals and verdicts


def test_the_interval_is_students_over_the_means_of_the_seeds():
    found = compare(HIGHER, runs_of([[0.9, 0.7], [0.7, 0.5], [0.8, 0.6]], [[0.4, 0.4]] * 3))
    assert found is not None
    half = 4.302653 * 0.1 / 3**0.5  # the means are 0.4, 0.2 and 0.3; t of two degrees of freedom
    assert found["interval"] == pytest.approx([0.3 - half, 0.3 + half], rel=1e-3)


def test_equal_arms_are_called_different_in_one_comparison_of_twenty():
    drawn = np.random.default_rng(3).normal(size=(2000, 2, 3))
    alike = replace(HIGHER, smallest=1e-9)
    found = [compare(alike, runs_of(*pair)) for pair in drawn.tolist()]
    wrong = sum(each is not None and each["verdict"] != "undecided" for each in found) / len(found)
    assert 0.035 < wrong < 0.065


def test_where_all_seeds_differ_by_one_number_nothing_is_decided():
    found = compare(HIGHER, runs_of([0.75, 0.5, 1.0], [0.5, 0.25, 0.75]))
    assert found is not None
    assert (found["interval"], found["verdict"], found["as_expected"]) == (None, "undecided", None)


@pytest.mark.parametrize(
    ("difference", "interval", "higher", "lower"),
    [
        (0.3, (0.2, 0.4), "better", "worse"),
        (-0.3, (-0.4, -0.2), "worse", "better"),
        (0.1, (0.05, 0.2), "better", "worse"),
        (0.02, (-0.05, 0.09), "no difference that counts", "no difference that counts"),
        (0.05, (0.02, 0.08), "no difference that counts", "no difference that counts"),
        (-0.05, (-0.08, -0.02), "no difference that counts", "no difference that counts"),
        (0.0, (0.0, 0.0), "no difference that counts", "no difference that counts"),
        (0.2, (-0.01, 0.4), "undecided", "undecided"),
        (-0.2, (-0.4, 0.01), "undecided", "undecided"),
        (0.08, (0.02, 0.15), "undecided", "undecided"),
        (0.02, (-0.05, 0.1), "undecided", "undecided"),
    ],
)
def test_verdicts(difference, interval, higher, lower):
    assert judge(HIGHER, difference, interval) == higher
    assert judge(LOWER, difference, interval) == lower


def runs_of(new, old) -> list[dict]:
    return [
        {"arm": arm, "seed": seed, "values": {"score": value}}
        for arm, values in (("new", new), ("old", old))
        for seed, value in enumerate(values)
    ]


def test_a_planted_effect_is_found_under_a_spread_that_pairing_removes():
    level = np.random.default_rng(7).normal(0.0, 5.0, (3, 1)) + np.random.default_rng(8).normal(0.0, 2.0, 200)
    noise = np.random.default_rng(9).normal(0.0, 0.2, (3, 200))
    found = compare(HIGHER, runs_of((level + 0.3 + noise).tolist(), level.tolist()))
    assert found is not None
    assert (found["verdict"], found["as_expected"], found["samples"]) == ("better", True, 200)
    assert found["interval"][0] < 0.3 < found["interval"][1]
    none = compare(HIGHER, runs_of((level + noise).tolist(), level.tolist()))
    assert none is not None
    assert (none["verdict"], none["as_expected"]) == ("no difference that counts", False)


def test_a_comparison_is_paired_by_seed_whatever_the_order_of_the_runs():
    runs = runs_of([1.0, 2.0, 3.0, 9.0], [0.5, 1.4, 2.6])
    found = compare(HIGHER, runs[::-1])
    assert found is not None
    assert found["seeds"] == [0, 1, 2]
    assert found["by_seed"] == pytest.approx([0.5, 0.6, 0.4])
    assert found["difference"] == pytest.approx(0.5)
    assert compare(HIGHER, runs_of([1.0, 2.0], [1.0, 2.0])) is None


def open_experiment(folder: Path) -> tuple[Experiment, Bench]:
    """New against old is clear after three seeds, third against old is not."""
    third = {("third", seed): 0.5 + d for seed, d in enumerate((0.4, 0.3, -0.1, 0.2, 0.3))}
    rest = {("new", seed): 0.9 + 0.01 * seed for seed in range(5)} | {("old", seed): 0.5 for seed in range(5)}
    bench = Bench(third | rest)
    expectations = [HIGHER, replace(HIGHER, arm="third")]
    return experiment(folder, bench, arms={"new": 1, "old": 2, "third": 3}, expectations=expectations), bench


def test_more_seeds_are_measured_only_where_a_verdict_hangs_on_them(tmp_path):
    one, bench = open_experiment(tmp_path)
    with pytest.raises(ConfigError, match="holds no comparisons"):
        one.undecided()
    one.run(console=QUIET)
    assert one.undecided() == [one.expectations[1]]
    extended = one.run(5, only=one.undecided(), console=QUIET)
    assert sorted(bench.asked[9:]) == [("old", 3), ("old", 4), ("third", 3), ("third", 4)]
    assert [len(c["seeds"]) for c in extended["comparisons"]] == [3, 5]


def test_a_stopped_extension_holds_no_comparisons_of_fewer_seeds(tmp_path):
    one, bench = open_experiment(tmp_path)
    one.run(console=QUIET)
    bench.fails_at = 10
    with pytest.raises(RuntimeError, match="power"):
        one.run(5, console=QUIET)
    assert (len(stored(one)["runs"]), stored(one)["comparisons"]) == (10, [])


def test_conduct_extends_and_prints(tmp_path, capsys):
    one, bench = open_experiment(tmp_path)
    results = lab.conduct(one)
    assert len(bench.asked) == 13
    assert results == stored(one)
    printed = capsys.readouterr().out
    assert "Is new better than old?" in printed
    assert "run 10 of 10 · " in printed


# --- what is told


def test_markdown_has_a_row_for_each_arm_and_each_comparison(tmp_path):
    results = experiment(tmp_path, expectations=[HIGHER, replace(HIGHER, expected="worse")]).run(console=QUIET)
    lines = markdown(results).splitlines()
    assert lines[0] == "## new-or-old"
    assert any(line.startswith("| new | 3 | 0.8 (0.7 to 0.9) | ") for line in lines)
    row = "| new − old | score (higher is better) | {} | 0.1 | +0.3333 | +0.04649 to +0.6202 | 3 | better ({}) |"
    assert row.format("better", "as expected") in lines
    assert row.format("worse", "not as expected") in lines
    assert "6 runs in 0 s on " in lines[-1]


def test_a_bar_in_a_name_does_not_break_the_table(tmp_path):
    arms = {"a|b": 1, "old": 2}
    named = experiment(tmp_path, lambda arm, seed: {"score": 0.0}, arms=arms, expectations=[replace(HIGHER, arm="a|b")])
    assert "| a\\|b | 3 |" in markdown(named.run(console=QUIET))


def test_the_table_of_the_screen_says_the_same(tmp_path):
    results = experiment(tmp_path, expectations=[replace(HIGHER, smallest=0.35)]).run(console=QUIET)
    console = Console(record=True, width=200, file=io.StringIO())
    lab.show(results, console)
    shown = console.export_text()
    for part in ("new − old", "+0.04649 to +0.6202", "undecided (open)", "0.8 (0.7 to 0.9)"):
        assert part in shown


def test_the_environment_is_recorded_and_a_change_of_it_is_told(tmp_path, monkeypatch):
    bench = Bench(fails_at=4)
    one = experiment(tmp_path, bench)
    with pytest.raises(RuntimeError, match="power"):
        one.run(console=QUIET)
    changed = {**lab.environment(), "commit": "f" * 40, "changed": ["src/frisket/types.py"]}
    monkeypatch.setattr(lab, "environment", lambda: changed)
    results = one.run(console=QUIET)
    for name in (
        "frisket",
        "commit",
        "changed",
        "source",
        "python",
        "torch",
        "transformers",
        "peft",
        "machine",
        "threads",
        "date",
    ):
        assert name in results["environments"][0]
    assert [run["environment"] for run in results["runs"]] == [0, 0, 0, 0, 1, 1]
    assert "2 runs in 0 s" in markdown(results)
    assert "commit fffffffff with 1 changed files" in markdown(results)


def test_without_git_the_commit_is_unknown(monkeypatch):
    monkeypatch.setattr(lab.shutil, "which", lambda name: None)
    found = lab.environment()
    assert (found["commit"], found["changed"]) == (None, None)


# --- training

SHORT = ["data.0.limit=40", "train.max_steps=2", "train.step_tokens=256", "train.save_every=0", "evaluate=off"]


def test_two_steps_on_the_bundled_base_leave_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(lab.tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    summary = train_on_bundled(SHORT)
    assert summary["steps"] == 2
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_kept_where_asked(tmp_path):
    train_on_bundled([*SHORT, "train.max_steps=1"], tmp_path / "kept")
    assert (tmp_path / "kept" / "summary.json").exists()


def test_too_many_tokens_are_refused_before_training():
    with pytest.raises(ConfigError, match=r"would train on [\d,]+ tokens in [\d,]+ steps") as caught:
        train_on_bundled([*SHORT, "train.max_steps=1000"])
    assert str(caught.value).endswith("Shorten it: train.step_tokens=256 train.max_steps=781")


def test_stages_are_refused():
    with pytest.raises(ConfigError, match="a run of the laboratory has one stage"):
        train_on_bundled([*SHORT, "stages=[{train: {seed: 1}}]"])
