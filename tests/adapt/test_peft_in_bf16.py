"""Every type that PEFT knows, in bf16, a run's default: it trains and reads back, or is refused by name."""

import numpy as np
import pytest
import torch
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from tests.adapt.cases import OPTIONS
from tests.models import samples, tiny

from frisket.adapt.methods import load_adapter
from frisket.adapt.peft import NEEDS_OWN_LOOP, NOT_OF_LINEARS, SOFT_PROMPTS, Peft
from frisket.attend.pack import pack
from frisket.errors import UnsupportedError
from frisket.hf.forward import hidden_states
from frisket.hf.load import cast_parameters
from frisket.train.optim import Optimizer
from frisket.train.settings import TrainSettings
from frisket.train.step import Laying, lay_out, run_step

pytestmark = [  # plain PEFT warns of these, and torch once of what SHIRA does
    pytest.mark.filterwarnings(f"ignore:{message}")
    for message in (
        "`is_gradient_checkpointing`:FutureWarning",
        "Failed to load the CUDA extension:UserWarning",
        "Setting boft_n_butterfly_factor:UserWarning",
        "Sparse invariant checks:UserWarning",
        "Detected that the base layer has no bias:UserWarning",
    )
]
REFUSED = {*SOFT_PROMPTS, *NEEDS_OWN_LOOP, *NOT_OF_LINEARS}
SMALL = OPTIONS | {"LILY": {"r": 4, "num_B": 2, "stride_A": 1}, "PSOFT": {"r": 4}, "PVERA": {"r": 4}, "LORA": {"r": 4}}
LONE = samples(0, [14, 3])
ROWS = pack(LONE, "isolated", 64)[0]
LAYING = Laying("isolated", 24, 1, "grouped", 64)
STEP = lay_out([(s, np.r_[0.0, np.ones(len(s) - 1)]) for s in LONE], LAYING, "weights")


@pytest.mark.parametrize("kind", sorted(kind.value for kind in PEFT_TYPE_TO_CONFIG_MAPPING))
def test_every_type_trains_a_step_in_bf16_and_reads_back_or_is_refused_by_name(kind, tmp_path):
    model, method = tiny(dtype=torch.bfloat16), Peft(peft_type=kind, options=SMALL.get(kind, {}))
    if kind in REFUSED:
        with pytest.raises(UnsupportedError, match=f"adapt.peft_type = {kind}"):
            method.attach(model, torch.Generator().manual_seed(0))
        return
    attached = method.attach(model, torch.Generator().manual_seed(0))
    optimizer = Optimizer(attached.parameters(), TrainSettings(), torch.bfloat16, (), attached)
    cast_parameters(model, torch.bfloat16)
    start = {name: master.clone() for name, master in optimizer.masters.items()}
    record = run_step(model.train(), attached, optimizer, STEP, LAYING, number=1, rate=1e-2)
    assert np.isfinite(record.loss)
    assert any(not torch.equal(start[name], master) for name, master in optimizer.masters.items())
    trained = hidden_states(model.eval(), ROWS)
    assert trained.dtype == torch.bfloat16
    attached.save(tmp_path, optimizer.masters)
    again = tiny(dtype=torch.bfloat16)
    load_adapter(again, tmp_path)
    cast_parameters(again, torch.bfloat16)
    assert torch.equal(hidden_states(again.eval(), ROWS), trained)
