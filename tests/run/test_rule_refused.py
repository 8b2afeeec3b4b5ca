"""What the recipe alone forbids about stopping and keeping is refused before a weight is loaded; a plan says it too."""

import pytest
from tests.run.test_best import chats, recipe

from frisket.errors import CheckError, ConfigError
from frisket.hf import load
from frisket.run import grid, make_plan, train
from frisket.watch import Silent

__all__ = ["chats"]


@pytest.mark.parametrize(
    ("evaluate", "message"),
    [
        ({"stop_after": 1, "every": 0}, "evaluate.every is 0"),
        ({"keep": "best", "learning": []}, "there is no learning set"),
        ({"watch": "forein"}, r"no learning set with a loss; there are foreign.\nevaluate.watch=foreign"),
    ],
)
def test_it_is_refused_before_the_model_is_loaded(evaluate, message, small_model, chats, tmp_path, monkeypatch):
    wanted = recipe(small_model, chats, evaluate)
    monkeypatch.setattr(load, "load_model", lambda *given: pytest.fail("the model was loaded"))
    with pytest.raises(ConfigError, match=message):
        train(wanted, out=tmp_path / "out")
    with pytest.raises(ConfigError, match=message):
        make_plan(wanted, watcher=Silent())
    with pytest.raises(ConfigError, match=message):
        grid._read_data([wanted])


def test_overfit_measures_nothing_and_asks_for_nothing(small_model, chats, tmp_path):
    wanted = recipe(small_model, chats, {"stop_after": 1, "every": 0}, max_steps=1)
    with pytest.raises(CheckError, match="loss"):  # one step fits nothing: it came as far as that
        train(wanted, out=tmp_path / "out", overfit=1)
