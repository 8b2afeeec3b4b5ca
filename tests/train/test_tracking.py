"""Trackers: what they are told, that they stay offline, and that a missing package is said at once."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from frisket.errors import ConfigError
from frisket.train.tracking import require, tracked
from frisket.watch import Silent, StepRecord

RECORD = StepRecord(7, 9, 0.5, 2.5, 10.0, 1e-4, 0.5, 100, 120, 40, 0.1)
LEARNING = {"hold-out": {"loss": 1.5, "loss_interval": [1.0, 2.0], "exact_match": 0.25}}
ENTRIES = [{"step": 7, "id": "a", "prompt": "p", "answer": "x\ny", "reference": "r", "tokens": 2}]


class FakeRun:
    def __init__(self, told: list) -> None:
        self.told = told

    def log(self, figures: dict, step: int) -> None:
        self.told.append((step, figures))

    def finish(self) -> None:
        self.told.append("finished")


class FakeWandb(ModuleType):
    """What of Weights & Biases is used."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.begun: list[dict] = []
        self.told: list = []

    def init(self, **settings: Any) -> FakeRun:
        self.begun.append(settings)
        return FakeRun(self.told)

    def Settings(self, console: str) -> str:  # noqa: N802
        return console

    def Table(self, columns: list, data: list) -> tuple:  # noqa: N802
        return (columns, data)


class Said(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    return fake


def tell(out: Path, names: list, done: int = 0) -> list[str]:
    said = Said()
    with tracked(names, out, done=done, config={"train": {"max_steps": 9}}, watcher=said) as tracker:
        tracker.step(RECORD)
        tracker.evaluation(7, LEARNING)
        tracker.samples(7, ENTRIES)
    return said.lines


def test_wandb_gets_recipe_steps_evaluations_and_samples_offline(wandb, tmp_path):
    require(["wandb"])
    (line,) = tell(tmp_path / "run", ["wandb"])
    (begun,) = wandb.begun
    assert begun["mode"] == "offline"
    assert begun["config"] == {"train": {"max_steps": 9}}
    assert (begun["project"], begun["name"], begun["dir"]) == ("frisket", "run", str(tmp_path / "run"))
    assert "nothing is sent" in line
    (first, figures), (_, evaluation), (_, samples), end = wandb.told
    assert (first, figures["train/loss"], figures["train/rate"]) == (7, 2.5, 1e-4)
    assert evaluation == {"evaluate/hold-out/loss": 1.5, "evaluate/hold-out/exact_match": 0.25}
    assert samples["samples"][1] == [[7, "a", "p", "x\ny", "r"]]
    assert end == "finished"


def test_a_resumed_run_is_the_same_run_and_only_the_user_switches_sending_on(wandb, tmp_path, monkeypatch):
    tell(tmp_path, ["wandb"])
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    (line,) = tell(tmp_path, ["wandb"], done=3)
    first, second = wandb.begun
    assert first["id"] == second["id"]
    assert (second["mode"], second["resume"], second["project"]) == ("online", "allow", "mine")
    assert "wandb: online" in line


def test_trackers_are_closed_when_a_run_fails(wandb, tmp_path):
    with pytest.raises(KeyError), tracked(["wandb"], tmp_path, done=0, config={}, watcher=Silent()):
        raise KeyError
    assert wandb.told == ["finished"]


@pytest.mark.parametrize(("name", "module"), [("wandb", "wandb"), ("tensorboard", "torch.utils.tensorboard")])
def test_a_missing_package_is_named_with_what_installs_it(monkeypatch, name, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=rf"pip install 'frisket\[{name}\]', or leave it out: 'train.track=\[\]'"):
        require([name])


def test_nothing_is_imported_for_no_tracker(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    require([])
    assert tell(tmp_path, []) == []
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_holds_everything(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tell(tmp_path, ["tensorboard"])
    found = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in found.Scalars("train/loss")] == [(7, 2.5)]
    assert [e.value for e in found.Scalars("evaluate/hold-out/exact_match")] == [0.25]
    assert "samples/a/text_summary" in found.Tags()["tensors"]
