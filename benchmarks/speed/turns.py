"""How an arm, which is a process of its own, runs so many steps at the parent's word and tells what they took.

The parent writes ``go 10`` or ``stop`` to standard input; every answer is a line of JSON on what was standard output.
Between two turns an arm waits, so arms of different libraries can be interleaved in one run.
"""

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


class Stop(SystemExit):
    """The parent has seen enough."""


class Turns:
    """The arm's end."""

    def __init__(self) -> None:
        self._told = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)  # what a library prints goes to standard error
        self._left, self._begun = 0, 0.0
        self._sums: dict[str, Any] = {}
        self._resident = 0

    def imported(self) -> None:
        """All libraries are there: memory counts from here."""
        self._resident = resident_bytes()

    def ready(self, **told: Any) -> None:
        """Everything is there but the first step."""
        self._tell(told)
        self._wait()

    def step(self, tokens: int, taught: int, loss: float = 0.0, loader_seconds: float = 0.0) -> None:
        """One optimizer step is done.

        Args:
            tokens: real ones, no padding.
            taught: targets.
            loss: mean over targets.
            loader_seconds: of the step, what went into samples and rows, where it is known.
        """
        self._sums["tokens"] += tokens
        self._sums["taught"] += taught
        self._sums["losses"].append(loss)
        self._sums["loader_seconds"] += loader_seconds
        self._left -= 1
        if not self._left:
            seconds = time.perf_counter() - self._begun
            memory = {"extra_bytes": peak_bytes() - self._resident, "resident_bytes": resident_bytes()}
            self._tell({**self._sums, "seconds": seconds, **memory})
            self._wait()

    def _tell(self, told: dict[str, Any]) -> None:
        self._told.write(json.dumps(told) + "\n")

    def _wait(self) -> None:
        words = sys.stdin.readline().split()
        if words[:1] != ["go"]:
            raise Stop(0)
        self._left = int(words[1])
        self._sums = {"steps": self._left, "tokens": 0, "taught": 0, "losses": [], "loader_seconds": 0.0}
        self._begun = time.perf_counter()


class Arm:
    """The parent's end of one process."""

    def __init__(self, name: str, work: Path, log: Path) -> None:
        self.name = name
        self._log = log
        words = [sys.executable, "-m", "benchmarks.speed.arm", name, str(work)]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "2"}
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
            )
        self.told = self._read()

    def go(self, steps: int) -> dict[str, Any]:
        """Let it run so many steps."""
        self._write(f"go {steps}")
        return self._read()

    def stop(self) -> None:
        """End the process."""
        self._write("stop")
        self._process.wait(60)

    def _write(self, words: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(words + "\n")
        self._process.stdin.flush()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended early:\n{self._log.read_text()[-3000:]}")
        return json.loads(line)


def resident_bytes() -> int:
    """Memory of this process now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak_bytes() -> int:
    """Most memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
