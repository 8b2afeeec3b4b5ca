"""What PEFT's shared suite asks of its methods, asked of ours, where test_invariants.py and test_methods.py do not.

Adapters in PEFT's format are put on by plain PEFT as well: two at once, switched off, merged, taken off.
"""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from tests.adapt.cases import CASES, Put, put
from tests.adapt.test_invariants import ROWS, STEP, attached_to, copies, gradients, outputs, pytestmark, shaken, tuned
from tests.models import tiny
from torch import Tensor

from frisket.adapt.full import AttachedFull
from frisket.adapt.methods import saved_tensors
from frisket.errors import CheckError
from frisket.explain import method_name
from frisket.hf.forward import hidden_states
from frisket.hf.load import cast_parameters, recompute_layers
from frisket.train.optim import Optimizer
from frisket.train.settings import TrainSettings
from frisket.train.step import Laying, run_step

__all__ = ["pytestmark", "tuned"]  # warnings of plain PEFT, and a fine-tuned model for grafts
EACH = pytest.mark.parametrize("name", CASES)
ROOTS = ("prompt", "p-tuning", "prefix")
OURS = ("full", "mora", "mft", "spiel", "graft", *ROOTS)
IN_PEFTS_FORMAT = [name for name, case in CASES.items() if method_name(type(case.method)) not in OURS[:5]]
ON_LAYERS = [name for name in IN_PEFTS_FORMAT if method_name(type(CASES[name].method)) not in ROOTS]
IDS = torch.tensor([[5, 9, 4, 7, 11, 3]])


def written(case: Put, folder: Path) -> Tensor:
    """Write a moved adapter; its logits."""
    model, attached = attached_to(case, torch.float32)
    shaken(attached)
    attached.save(folder, attached.state())
    return outputs(model.eval())


def plain(folder: Path) -> tuple[Any, Any]:
    """The base with the adapter on it, by PEFT alone; and the base itself inside it."""
    base = tiny(dtype=torch.float32).eval()
    base.set_attn_implementation("sdpa")
    return peft.PeftModel.from_pretrained(base, str(folder)).eval(), base


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits[:, -IDS.shape[1] :]


def bare() -> Tensor:
    """Logits of the base alone."""
    base = tiny(dtype=torch.float32).eval()
    base.set_attn_implementation("sdpa")
    return logits(base)


@EACH
def test_a_folder_holds_what_moves_and_nothing_of_the_base(name, tuned, tmp_path):
    case = put(name, None, tuned)
    _, attached = attached_to(case, torch.float32)
    if isinstance(attached, AttachedFull):
        return  # the base itself is what moves
    attached.save(tmp_path, attached.state())
    assert not {"config.json", "model.safetensors", "adapter_model.bin"} & {path.name for path in tmp_path.iterdir()}
    base = {name.rpartition(".")[0] for name in copies(tiny())}
    for file in tmp_path.glob("adapter*.safetensors"):
        held = {name.removeprefix("base_model.model.").removesuffix(".weight") for name in load_file(file)}
        assert name == "ln_tuning" or not held & base


@EACH
def test_a_broken_folder_is_not_read(name, tuned, tmp_path):
    _, attached = attached_to(put(name, None, tuned), torch.float32)
    if isinstance(attached, AttachedFull) or name.startswith(("mft", "graft")):
        return  # their files hold which entries, and values of the fine-tuned model
    values = shaken(attached).state()
    next(iter(values.values())).view(-1)[0] = torch.nan
    attached.save(tmp_path, values)
    with pytest.raises(CheckError, match="tensors are not finite, first"):
        saved_tensors(tmp_path)


@EACH
def test_recomputed_layers_give_the_same_gradients(name, tuned):
    case = put(name, None, tuned)
    found = []
    for layers in (0, 2):
        model, attached = attached_to(case, torch.float32)
        shaken(attached)
        recompute_layers(model, layers)
        found.append(gradients(model, attached, [part.rows for part in STEP.micro_batches]))
    plainly, again = found
    for parameter, gradient in plainly.items():
        assert (again[parameter] - gradient).norm() <= 1e-5 * gradient.norm(), parameter


@EACH
def test_a_step_in_bf16_is_finite_and_moves_every_parameter(name, tuned):
    method = put(name, None, tuned).method
    model = tiny(dtype=torch.float32 if method.starts_wide else torch.bfloat16)
    attached = shaken(method.attach(model, torch.Generator().manual_seed(0)))
    optimizer = Optimizer(attached.parameters(), TrainSettings(), torch.bfloat16, (), attached)
    cast_parameters(model, torch.bfloat16)
    attached.begin(8)
    before = {name: master.clone() for name, master in optimizer.masters.items()}
    laying = Laying("isolated", 24, 1, "grouped", 64)
    rate = 1e7 if name == "graft" else 1e-2
    moved = run_step(model, attached, optimizer, STEP, laying, number=1, rate=rate)
    assert moved.norm > 0
    assert hidden_states(model, ROWS[0]).dtype == torch.bfloat16
    assert [name for name, master in optimizer.masters.items() if torch.equal(before[name], master)] == []


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name].method.about.merges and name != "full"])
def test_a_merged_model_is_read_by_transformers_alone(name, tuned, tmp_path):
    model, attached = attached_to(put(name, None, tuned), torch.float32)
    shaken(attached)
    attached.merge()
    merged = outputs(model.eval())
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path, attn_implementation=model.config._attn_implementation)
    assert torch.equal(outputs(again.eval()), merged)


@pytest.mark.parametrize("name", IN_PEFTS_FORMAT)
def test_plain_peft_switches_it_off_and_on_again(name, tuned, tmp_path):
    written(put(name, None, tuned), tmp_path)
    wrapper, _ = plain(tmp_path)
    on = logits(wrapper)
    with wrapper.disable_adapter():
        assert (logits(wrapper) - bare()).abs().max() <= 1e-6
    assert torch.equal(logits(wrapper), on)
    assert not torch.allclose(on, bare())


@pytest.mark.filterwarnings("ignore:Unmerge result can be inaccurate:UserWarning")  # PEFT of (IA)^3
@pytest.mark.parametrize("name", ON_LAYERS)
def test_plain_peft_merges_it_unmerges_it_and_takes_it_off(name, tuned, tmp_path):
    written(put(name, None, tuned), tmp_path)
    wrapper, _ = plain(tmp_path)
    on, bar = logits(wrapper), 1e-4
    wrapper.merge_adapter()
    assert (logits(wrapper) - on).abs().max() <= bar
    wrapper.unmerge_adapter()
    assert (logits(wrapper) - on).abs().max() <= bar
    assert (logits(plain(tmp_path)[0].merge_and_unload(safe_merge=True)) - on).abs().max() <= bar
    off = plain(tmp_path)[0].unload()
    if name != "ln_tuning":  # PEFT leaves the trained norms in place
        assert torch.equal(logits(off), bare())


@pytest.mark.parametrize("name", IN_PEFTS_FORMAT)
def test_two_adapters_lie_side_by_side_in_plain_peft(name, tuned, tmp_path):
    case = put(name, None, tuned)
    written(case, tmp_path / "one")
    _, attached = attached_to(case, torch.float32)
    attached.load({n: value + 0.1 for n, value in shaken(attached).state().items()})
    attached.save(tmp_path / "two", attached.state())
    wrapper, _ = plain(tmp_path / "one")
    first, second = logits(wrapper), logits(plain(tmp_path / "two")[0])
    assert not torch.allclose(first, second)
    wrapper.load_adapter(str(tmp_path / "two"), "two")
    assert torch.equal(logits(wrapper), first)
    wrapper.set_adapter("two")
    assert torch.equal(logits(wrapper.eval()), second)
