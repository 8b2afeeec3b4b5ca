"""A run that is killed while the weights of its last step, the best one, are written."""

import pytest
from tests.run.test_best import chats, recipe
from tests.run.test_training import adapter

from frisket.run import best, train

__all__ = ["chats"]


@pytest.mark.parametrize("half", [False, True])
def test_it_goes_on_and_ends_as_a_whole_run(half, small_model, chats, tmp_path, monkeypatch):
    wanted = recipe(small_model, chats, {"keep": "best", "every": 2}, learning_rate=1e-4, max_steps=3)
    whole = train(wanted, out=tmp_path / "whole")
    assert whole["best"]["step"] == 3
    write = best.keep

    def killed(out, masters, evaluations, watch):
        if evaluations[-1]["step"] < 3:
            return write(out, masters, evaluations, watch)
        if half:
            best.folder_of(out, 3).mkdir()
            (best.folder_of(out, 3) / "moving.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(best, "keep", killed)
        with pytest.raises(KeyboardInterrupt):
            train(wanted, out=tmp_path / "killed")
    again = train(wanted, out=tmp_path / "killed", resume=True)
    assert again["best"] == whole["best"]
    assert adapter(tmp_path / "killed") == adapter(tmp_path / "whole")
    assert best.result_of(tmp_path / "killed").is_dir()
