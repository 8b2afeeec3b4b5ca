"""A run that runs out of memory ends with what helps."""

import pytest
import torch
from tests.run.test_training import chats, recipe

from frisket.errors import ConfigError
from frisket.run import train, training

__all__ = ["chats"]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee the documentation"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_no_memory_left_names_the_knobs_that_help(error, small_model, chats, tmp_path, monkeypatch):
    def failing(*given):
        raise error

    wanted = recipe(small_model, chats)
    with monkeypatch.context() as patched:
        patched.setattr(training, "run_loop", failing)
        with pytest.raises(ConfigError, match="ran out of memory") as caught:
            train(wanted, out=tmp_path / "out")
    assert "attend.row_tokens=48" in str(caught.value).splitlines()[-1]
    assert "train.recompute=all" in str(caught.value).splitlines()[-1]
    assert str(caught.value).count("\n") < 4
    assert caught.value.__context__ is None  # what the failed run held is not held by its error
    assert not (tmp_path / "out").exists()


def test_other_errors_stay_what_they_are(small_model, chats, tmp_path, monkeypatch):
    def failing(*given):
        raise RuntimeError("a planted fault")

    monkeypatch.setattr(training, "run_loop", failing)
    with pytest.raises(RuntimeError, match="a planted fault"):
        train(recipe(small_model, chats), out=tmp_path / "out")
