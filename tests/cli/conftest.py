"""A fake `frisket.run`: the command line is tested for what it asks and what it shows."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import frisket
from frisket.cli.main import run_words
from frisket.errors import DataError
from frisket.generate.reply import Reply
from frisket.generate.settings import GenerateSettings
from frisket.run.opening import Answered
from frisket.run.system_message import SystemMessage

SUMMARY = {
    "frisket": "0.1.0",
    "recipe": "demo",
    "model": {"path": "bundled", "parameters": 2_800_000, "moving": 120_000},
    "steps": 2,
    "learning": {
        "taught": {
            "samples": 600,
            "metric": "exact_match",
            "before": {"loss": 3.41, "exact_match": 0.012, "exact_match_interval": [0.005, 0.024]},
            "after": {"loss": 0.21, "exact_match": 0.913, "exact_match_interval": [0.889, 0.934]},
            "groups": {"copy": {"samples": 100, "before": {"exact_match": 0.0}, "after": {"exact_match": 0.99}}},
        }
    },
    "forgetting": {"default": {"samples": 32, "before": {"bits_per_character": 1.92}, "after": {"kl": 0.0213}}},
    "tokens": {
        "read": 1000,
        "dropped": 0,
        "held_out": 100,
        "taught": {"assistant": 300, "end_of_turn": 0},
        "untaught": {"user": 600},
        "samples": {"held_out": 7},
        "flat": 900,
        "computed": 800,
        "shared": 100,
    },
    "rates": {
        "real_tokens_per_second": 10412.3,
        "computed_tokens_per_second": 9900.0,
        "supervised_tokens_per_second": 3102.2,
    },
    "seconds": {"total": 151.0, "training": 115.0},
    "checks": {"seam": True, "conformance": 3.2e-6, "reload": {"largest": 0.0}},
    "artifacts": {"adapter": "adapter", "report": "report.html", "metrics": "metrics.jsonl"},
    "examples": [
        {"group": "copy", "prompt": "Echo a b", "reference": "a b", "before": "the arguments", "after": "a b"},
        {"group": "copy", "prompt": "Echo c", "reference": "c", "before": "", "after": "c"},
        {"group": "sort", "prompt": "Sort b a", "reference": "a b", "before": "x", "after": "b a"},
        {"group": "double", "prompt": "Twice: g o", "reference": "g g o o", "before": "g = 4", "after": "g o"},
    ],
    "next": "frisket generate out/demo --chat",
}


class FakePlan:
    def lines(self) -> list[str]:
        return ["12 steps"]

    def as_dict(self) -> dict:
        return {"steps": 12, "rate": float("nan")}


class FakeChat:
    def __init__(self, system: SystemMessage | None = None) -> None:
        self.settings: list[GenerateSettings] = []
        self.folder = Path("out/my chats")
        self.system = system

    def answer(self, conversations: list, settings: GenerateSettings, base: bool = False) -> list[Answered]:
        """Says the last message; what the base says is as long as was asked for."""
        return [
            Answered(f"{'base' if base else 'tuned'}: {messages[-1]['content']}", base) for messages in conversations
        ]

    def stream(self, messages: list, settings: GenerateSettings, base: bool = False) -> Reply:
        """Says how many messages it was given and the last one; a letter a token."""
        self.settings.append(settings)
        if messages[-1]["content"] == "too long":
            raise DataError("the conversation has 9 tokens, and the model takes 8 with the answer.")
        system = messages[0]["content"] if messages[0]["role"] == "system" else ""
        text = f"{'base' if base else 'tuned'} [{len(messages)}] {system}{messages[-1]['content']}"
        shown = text[: settings.max_new_tokens]
        return Reply((ord(letter) for letter in shown), lambda ids: "".join(map(chr, ids)), settings.max_new_tokens)


class FakeRun(ModuleType):
    """Records what it is asked; prints a line that must never reach the stdout of ``--json``."""

    def __init__(self) -> None:
        super().__init__("frisket.run")
        self.asked: list[tuple[str, tuple, dict]] = []
        self.fails: BaseException | None = None

    def _told(self, name: str, result: Any) -> Callable[..., Any]:
        def call(*args: Any, **named: Any) -> Any:
            print("a stray line of some library")
            self.asked.append((name, args, named))
            if self.fails is not None:
                raise self.fails
            return result

        return call

    def __getattr__(self, name: str) -> Any:
        results = {
            "train": SUMMARY,
            "make_plan": FakePlan(),
            "view": {"samples": 3},
            "evaluate_run": SUMMARY,
            "open_run": FakeChat(),
            "export": {"folder": "out/merged", "largest_difference": 1e-6},
            "module_names": {"model.layers.0.q_proj": 1024},
            "match_report": FakePlan(),
        }
        if name not in results:
            raise AttributeError(name)
        return self._told(name, results[name])


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeRun:
    """The fake, in an empty current directory."""
    fake = FakeRun()
    monkeypatch.setitem(sys.modules, "frisket.run", fake)
    monkeypatch.setattr(frisket, "run", fake, raising=False)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.chdir(tmp_path)
    return fake


@pytest.fixture
def frisket_says(run: FakeRun, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command line; returns the exit code, stdout and stderr."""

    def call(*words: str) -> tuple[int, str, str]:
        code = run_words(words)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call
