"""`full`: the matched weights themselves move; nothing can be taken off."""

import pytest
import torch
from safetensors.torch import load_file
from tests.models import tiny, tiny_gpt2

from frisket.adapt.full import Full
from frisket.errors import ConfigError, UnsupportedError
from frisket.types import Rows


@pytest.fixture
def attached():
    return Full(where=["attention", {"layers": 1}]).attach(tiny(dtype=torch.float32), torch.Generator())


def test_only_the_matched_weights_ask_for_gradients():
    model = tiny(dtype=torch.float32)
    attached = Full(where="norms").attach(model, torch.Generator())
    asking = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert asking == set(attached.parameters())
    assert len(asking) == 5
    assert all("norm" in name for name in asking)


def test_a_tied_embedding_moves_once_and_the_head_with_it():
    model = tiny_gpt2()
    attached = Full(where="embeddings").attach(model, torch.Generator())
    assert list(attached.parameters()) == ["transformer.wte.weight"]
    assert attached.parameters()["transformer.wte.weight"] is model.get_output_embeddings().weight


def test_what_moves_is_written_from_the_given_values(attached, tmp_path):
    values = {name: value + 1 for name, value in attached.state().items()}
    attached.save(tmp_path / "moving", values)
    written = load_file(tmp_path / "moving" / "moving.safetensors")
    assert written.keys() == values.keys()
    assert all(torch.equal(written[name], value) for name, value in values.items())


def test_state_is_a_copy_and_load_puts_it_back(attached):
    before = attached.state()
    with torch.no_grad():
        for parameter in attached.parameters().values():
            parameter.zero_()
    attached.load(before)
    assert all(torch.equal(parameter, before[name]) for name, parameter in attached.parameters().items())
    assert all(value.any() for value in before.values())


def test_weights_of_another_run_are_refused(attached):
    values = attached.state()
    values["other"] = values.pop(next(iter(values)))
    with pytest.raises(
        ConfigError, match=r"the saved weights do not fit this method: .*model\.layers\.1.* unknown \['other'\]"
    ):
        attached.load(values)


def test_there_is_no_base_to_go_back_to(attached):
    with pytest.raises(UnsupportedError, match="nothing can be detached"):
        attached.detach()
    with pytest.raises(UnsupportedError, match="the base is no longer in memory"), attached.switched_off():
        pass
    before = attached.state()
    attached.merge()
    assert all(torch.equal(parameter, before[name]) for name, parameter in attached.parameters().items())


def test_the_hooks_of_a_method_that_needs_none_do_nothing(attached):
    rows = Rows.__new__(Rows)
    assert attached.extra_loss(rows) is None
    assert attached.penalty() is None
    before = attached.state()
    attached.after_backward(0)
    attached.before_update()
    attached.after_update(1)
    assert all(torch.equal(parameter, before[name]) for name, parameter in attached.parameters().items())
