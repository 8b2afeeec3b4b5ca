"""LoRA+ and ranks by pattern: what the optimizer and PEFT make of them."""

import json

import pytest
import torch
from tests.models import tiny

from frisket.adapt.lora import Lora
from frisket.errors import ConfigError
from frisket.train.optim import Optimizer
from frisket.train.settings import TrainSettings

FACTOR = 16.0


def test_with_lora_plus_the_factor_b_moves_by_so_many_times_the_rate_of_a():
    """Hayou et al. 2024, section 4: after one step of Adam without decay each entry has moved by its rate."""
    model = tiny(dtype=torch.float32)
    attached = Lora(rank=4, b_rate_factor=FACTOR).attach(model, torch.Generator().manual_seed(0))
    optimizer = Optimizer(attached.parameters(), TrainSettings(weight_decay=0.0), torch.float32, (), attached)
    before = attached.state()
    for parameter in attached.parameters().values():
        parameter.grad = torch.ones_like(parameter)
    optimizer.update(1e-3)
    for name, value in attached.state().items():
        moved = (before[name] - value).mean().item()
        assert moved == pytest.approx(1e-3 * (FACTOR if ".lora_B." in name else 1.0), rel=1e-3), name


def test_with_a_factor_of_one_the_optimizer_has_one_group():
    attached = Lora(rank=4).attach(tiny(dtype=torch.float32), torch.Generator())
    optimizer = Optimizer(attached.parameters(), TrainSettings(), torch.float32, (), attached)
    assert len(optimizer._update.param_groups) == 1


def test_ranks_by_pattern_are_those_of_the_last_that_fits_and_are_saved_for_peft(tmp_path):
    method = Lora(rank=4, rank_pattern={"*.self_attn.*": 2, "*.layers.1.*.q_proj": 8})
    attached = method.attach(tiny(dtype=torch.float32), torch.Generator())
    ranks = {n.partition(".lora_A")[0]: len(p) for n, p in attached.parameters().items() if ".lora_A." in n}
    for name, rank in ranks.items():
        assert rank == (8 if name.endswith("layers.1.self_attn.q_proj") else 2 if "self_attn" in name else 4), name
    attached.save(tmp_path, attached.state())
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert saved["rank_pattern"]["model.layers.1.self_attn.q_proj"] == 8
    assert all(saved["alpha_pattern"][name] == 2 * rank for name, rank in saved["rank_pattern"].items())


@pytest.mark.parametrize(
    ("pattern", "why"),
    [({"*.qproj": 4}, r"adapt\.rank_pattern: .* fits none of the 14 linear layers"), ({"*.q_proj": 0}, "above 0")],
)
def test_a_pattern_that_fits_nothing_or_no_rank_is_refused(pattern, why):
    with pytest.raises(ConfigError, match=why):
        Lora(rank_pattern=pattern).attach(tiny(), torch.Generator())
