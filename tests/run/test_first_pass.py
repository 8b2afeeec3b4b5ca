"""A type of PEFT whose layers fail in their first forward is refused by name before a step; other errors pass."""

import json
import re

import pytest
import torch

from frisket.adapt.lora import Lora
from frisket.adapt.peft import Peft
from frisket.errors import CheckError, UnsupportedError
from frisket.recipe import Recipe
from frisket.run import train
from frisket.run.first_pass import refused_by_name

BF16 = torch.bfloat16
VERA = Peft(peft_type="vera")


def test_a_type_whose_layers_fail_is_refused_by_name_and_leaves_nothing(small_model, tmp_path, monkeypatch):
    from peft.tuners.vera.layer import Linear

    def fails(self, x, *given, **named):
        raise RuntimeError("expected m1 and m2 to have the same dtype\nat some place")

    monkeypatch.setattr(Linear, "forward", fails)
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps({"prompt": "alpha", "completion": f"gamma {n}"}) + "\n" for n in range(8)))
    given = {
        "model": {"path": str(small_model)},
        "data": [{"path": str(data)}],
        "adapt": {"method": "peft", "peft_type": "VERA", "options": {"r": 4}},
        "train": {"max_steps": 1, "step_tokens": 200, "compute": "bf16"},
        "evaluate": "off",
    }
    message = (
        "adapt.peft_type = VERA: PEFT's layers of this type fail here in bfloat16: expected m1 and m2 to have the same "
        "dtype\nUse train.compute=fp32, else adapt.method=lora"
    )
    with pytest.raises(UnsupportedError, match=re.escape(message) + "$"):
        train(Recipe.model_validate(given), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("method", "raised"),
    [
        (Lora(), RuntimeError("of frisket's own")),
        (VERA, torch.OutOfMemoryError("none left")),
        (VERA, CheckError("already said")),
    ],
)
def test_what_is_not_the_types_own_passes(method, raised):
    with pytest.raises(type(raised), match=str(raised)), refused_by_name(method, BF16):
        raise raised


@pytest.mark.parametrize(("compute", "fix"), [(BF16, "Use train.compute=fp32, else"), (torch.float32, "Use adapt.")])
def test_the_fix_is_another_type_only_where_there_is_one(compute, fix):
    with pytest.raises(UnsupportedError, match=fix), refused_by_name(VERA, compute):
        raise AssertionError
