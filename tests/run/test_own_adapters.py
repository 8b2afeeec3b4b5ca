"""An adapter in frisket's own format: what is said of serving it, and what it cannot be exported to."""

from types import SimpleNamespace

import pytest
import torch
from tests.models import tiny

from frisket.adapt.mora import Mora
from frisket.adapt.prompts import Prompt
from frisket.errors import UnsupportedError
from frisket.run.exporting import _copy_adapter
from frisket.run.serving import config_of, expected_config, is_of_peft, serving_line, serving_of
from frisket.watch import Silent


@pytest.fixture
def folder(tmp_path):
    attached = Mora(rank=4).attach(tiny(dtype=torch.float32), torch.Generator())
    attached.save(tmp_path / "adapter", attached.state())
    return tmp_path


def test_it_needs_a_merge_before_and_after_training(folder):
    assert not is_of_peft(folder / "adapter")
    for config in (config_of(folder / "adapter"), expected_config(Mora(), None)):
        serving = serving_of(config)
        assert serving.needs_merge
        assert serving.merges
    line = serving_line(folder, "base", "none")
    assert "it serves LoRA only, not mora" in line
    assert line.endswith("--to merged")


def test_a_soft_prompt_is_not_said_to_merge():
    line = serving_of(expected_config(Prompt(), None)).line("base", "out/x")
    assert "it cannot be merged" in line
    assert "--to merged" not in line


def test_export_to_peft_is_refused_by_name(folder):
    run = SimpleNamespace(is_full=False, artifact=folder / "adapter", folder=folder)
    with pytest.raises(
        UnsupportedError, match=r"of mora, which PEFT does not have.\nExport the model: frisket export .* --to"
    ):
        _copy_adapter(run, folder / "peft", Silent())  # pyright: ignore[reportArgumentType]
