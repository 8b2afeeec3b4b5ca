"""What every method must keep to, on every `where` that makes sense of it: one suite over ``cases.CASES``."""

import math
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tests.adapt.cases import CASES, EVERY_WHERE, METHODS, WHERES, Put, made, put
from tests.models import samples, tiny
from torch import Tensor, nn

from frisket.adapt import full, mora, peft, policies, sparse, spiel
from frisket.adapt.aged import AgedAdamW, Sm3
from frisket.adapt.base import Attached, MethodSettings
from frisket.adapt.full import AttachedFull
from frisket.adapt.methods import load_adapter
from frisket.attend.pack import pack
from frisket.errors import UnsupportedError
from frisket.explain import method_name
from frisket.hf import forward
from frisket.hf.forward import hidden_states
from frisket.hf.heads import head_of, logits_of
from frisket.hf.load import cast_parameters
from frisket.supervise.loss import summed_loss
from frisket.supervise.predictions import predictions
from frisket.train import optim
from frisket.train.optim import Optimizer
from frisket.train.settings import TrainSettings
from frisket.train.step import Laying, lay_out, run_step
from frisket.types import Rows

pytestmark = [  # plain PEFT warns of these, and torch once of what SHIRA does
    pytest.mark.filterwarnings(f"ignore:{message}")
    for message in (
        "`is_gradient_checkpointing`:FutureWarning",
        "Unsupported layer type:UserWarning",
        "Failed to load the CUDA extension:UserWarning",
        "Setting boft_n_butterfly_factor:UserWarning",
        "Sparse invariant checks:UserWarning",
    )
]

LONE = samples(0, [14, 3, 17, 5])
SHARED = samples(1, [10])[0].input_ids  # a prefix that a forest computes once
for _sequence in (LONE[0], LONE[2]):
    _sequence.input_ids[: len(SHARED)] = SHARED
PAIRS = {s.sample_id: (s, np.r_[0.0, np.linspace(0.5, 1.5, len(s) - 1)]) for s in LONE}
ROWS = pack(LONE, "isolated", 64)
LAYING = Laying("isolated", 24, 1, "grouped", 64)
STEP = lay_out(list(PAIRS.values()), LAYING, "weights")
EACH = pytest.mark.parametrize("name", CASES)
ON_EACH_WHERE = pytest.mark.parametrize(
    ("name", "where"),
    [(name, None) for name in CASES] + [(n, where) for n, all_ in EVERY_WHERE.items() for where in all_],
)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory) -> Path:
    """A model that was fine-tuned, for grafts."""
    model, folder = tiny(), tmp_path_factory.mktemp("tuned") / "model"
    folder.mkdir()
    generator = torch.Generator().manual_seed(5)
    noise = {n: 0.02 * torch.randn(p.shape, generator=generator, dtype=p.dtype) for n, p in model.named_parameters()}
    save_file({n: (p + noise[n]).detach() for n, p in model.named_parameters()}, folder / "model.safetensors")
    return folder.parent


def attached_to(case: Put, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Any, Attached]:
    wide = torch.promote_types(dtype, torch.float32)
    model = tiny(dtype=wide if case.method.starts_wide else dtype)
    attached = case.method.attach(model, torch.Generator().manual_seed(seed))
    if case.method.starts_wide:  # as a run does: what a method keeps beside the parameters stays wide
        cast_parameters(model, dtype)
        return model, attached
    return model.to(dtype), attached


def optimizer_of(attached: Attached, dtype: torch.dtype = torch.float64, decay: float = 0.1) -> Optimizer:
    return Optimizer(attached.parameters(), TrainSettings(weight_decay=decay), dtype, (), attached)


def step(model: Any, attached: Attached, optimizer: Optimizer, first: int, last: int, rate: float = 1e-2) -> None:
    attached.begin(8)
    for number in range(first, last + 1):
        run_step(model, attached, optimizer, STEP, LAYING, number=number, rate=rate)


def outputs(model: Any) -> Tensor:
    """Logits in evaluation mode, where the rounded mask of a graft holds."""
    return logits_of(model, ROWS[0])


def shaken(attached: Attached) -> Attached:
    """Every moving parameter moved, so that zero factors hide no fault."""
    generator = torch.Generator().manual_seed(1)
    values = attached.state()
    attached.load({n: v + 0.05 * torch.randn(v.shape, generator=generator).to(v.dtype) for n, v in values.items()})
    attached.refresh()
    return attached


def copies(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def base_tensors(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.named_parameters())


def rows_of(case: Put, name: str) -> list[int]:
    """The rows of a base tensor that `where` lets move; all where it names no rows."""
    return [row for first, end in case.match.rows[name] for row in range(first, end)] if name in case.match.rows else []


def check_frozen(case: Put) -> None:
    """Invariants 1, 2 and 6: three steps with decay."""
    model = tiny()
    own = base_tensors(model)
    base = {name: tensor.detach().clone() for name, tensor in own.items()}
    attached = case.method.attach(model, torch.Generator().manual_seed(0))
    model.to(torch.float64)
    optimizer = optimizer_of(attached)
    start, before = attached.state(), copies(model)
    step(model, attached, optimizer, 1, 3)
    end, after = attached.state(), copies(model)
    assert [name for name in start if torch.equal(start[name], end[name])] == []
    moving = {id(p) for p in attached.parameters().values()}
    held = {n for n, p in model.named_parameters(remove_duplicate=False) if id(p) in moving}
    is_full = isinstance(attached, AttachedFull)
    stated = (set(case.matched.tensors) if is_full else set()) | held
    assert {name for name in before if not torch.equal(before[name], after[name])} == stated
    for name, tensor in own.items():
        still = torch.ones(len(tensor), dtype=torch.bool)
        if is_full and name in case.matched.tensors:
            still[rows_of(case, name) or slice(None)] = False
        assert torch.equal(tensor[still], base[name][still]), name
        assert is_full or torch.equal(tensor, base[name]), name
    assert sum(p.numel() for p in attached.parameters().values()) == case.promise.entries(case.matched)
    assert set(optimizer.masters) == set(attached.parameters())
    check_state(attached, optimizer)


def check_state(attached: Attached, optimizer: Optimizer) -> None:
    """Invariant 1: the update rule holds state of what moves and of nothing else, as many bytes as it should."""
    state, moving = optimizer._update.state, {id(master) for master in optimizer.masters.values()}
    assert {id(each) for each in state} == (set() if isinstance(optimizer._update, torch.optim.SGD) else moving)
    held, entries = sum(t.nbytes for each in state.values() for t in each.values()), sum(each.numel() for each in state)
    if isinstance(optimizer._update, Sm3):  # a row and a column in float64
        assert held == 8 * sum(sum(x.base.weight.shape) for x in attached._layers.values())  # pyright: ignore
    elif isinstance(optimizer._update, AgedAdamW):  # two moments, and an age of four bytes
        assert held == entries * (2 * 8 + 4)
    else:  # two moments, and a count of steps
        assert held == entries * 2 * 8 + 4 * len(state)


@ON_EACH_WHERE
def test_what_moves_is_counted_stated_and_alone_has_optimizer_state(name, where, tuned):
    check_frozen(put(name, where, tuned))


def check_start(case: Put) -> None:
    """Invariant 3, and that what is put on comes off again."""
    model = tiny().eval()
    base, before = copies(model), outputs(model)
    attached = case.method.attach(model, torch.Generator().manual_seed(0))
    model.to(torch.float64).eval()
    started = float((outputs(model) - before).abs().max())
    if case.promise.starts_at_base is None:
        assert started > 1e-4
    else:
        assert started <= case.promise.starts_at_base
    shaken(attached)
    assert not torch.equal(outputs(model), before)
    if isinstance(attached, AttachedFull):
        with pytest.raises(UnsupportedError):
            attached.detach()
        return
    with attached.switched_off():
        assert torch.equal(outputs(model), before)
    attached.detach()
    assert model.state_dict().keys() == base.keys()
    assert all(torch.equal(tensor, base[n]) for n, tensor in model.state_dict().items())
    assert torch.equal(outputs(model), before)


@ON_EACH_WHERE
def test_it_starts_where_it_says_and_comes_off_bit_for_bit(name, where, tuned):
    check_start(put(name, where, tuned))


@ON_EACH_WHERE
def test_merged_equals_attached(name, where, tuned):
    case = put(name, where, tuned)
    model, attached = attached_to(case)
    shaken(attached)
    model.eval()
    before = outputs(model)
    if not case.method.about.merges:
        with pytest.raises(UnsupportedError, match="cannot be merged"):
            attached.merge()
        return
    attached.merge()
    assert (outputs(model) - before).abs().max() <= case.promise.bar
    assert set(model.state_dict()) == set(tiny().state_dict())


@ON_EACH_WHERE
def test_saved_and_loaded_it_is_the_same_and_a_sparse_one_can_be_undone(name, where, tuned, tmp_path):
    case = put(name, where, tuned)
    model, attached = attached_to(case, torch.float32)
    shaken(attached)
    model.eval()
    before = outputs(model)
    attached.save(tmp_path, attached.state())
    if isinstance(attached, AttachedFull):
        return  # the whole model is what such a run writes: hf.load.save_model
    again = tiny(dtype=torch.float32).eval()
    loaded = load_adapter(again, tmp_path)
    assert loaded.packs == attached.packs
    assert (outputs(again) - before).abs().max() <= 1e-5
    with loaded.switched_off():
        assert torch.equal(outputs(again), outputs(tiny(dtype=torch.float32)))
    if (tmp_path / sparse.OLD).exists():
        changes, _ = sparse.read(tmp_path)
        assert sparse.undo(base_tensors(again), changes) == len(changes)
        assert all(torch.equal(t, again.state_dict()[n]) for n, t in tiny(dtype=torch.float32).state_dict().items())


@EACH
def test_the_seed_decides_and_the_global_generator_is_not_touched(name, tuned):
    case = put(name, None, tuned)
    chosen = []
    for seed in (0, 0, 1):
        _, attached = attached_to(case, torch.float32, seed)
        chosen.append(attached.state() | attached.extra())
    first, again, other = chosen
    assert all(torch.equal(value, again[n]) for n, value in first.items())
    assert any(not torch.equal(value, other[n]) for n, value in first.items()) == case.promise.draws
    model, state = tiny(dtype=torch.float32), torch.get_rng_state()
    case.method.attach(model, torch.Generator().manual_seed(5))
    assert torch.equal(torch.get_rng_state(), state)


def check_gradients(case: Put) -> None:
    """Padded, isolated and forest rows give the gradients of lone samples."""
    model, attached = attached_to(case)
    shaken(attached)
    alone = gradients(model, attached, pack(LONE, "alone", 1))
    assert all(gradient.norm() > 0 for gradient in alone.values())
    for arrangement in ("padded", "isolated", "forest"):
        batches = pack(LONE, arrangement, 64)
        if arrangement == "forest":
            assert sum(rows.real_tokens for rows in batches) < sum(map(len, LONE))
        found = gradients(model, attached, batches)
        for parameter, gradient in alone.items():
            assert (found[parameter] - gradient).norm() <= case.promise.bar * gradient.norm(), (arrangement, parameter)


def gradients(model: Any, attached: Attached, batches: list) -> dict[str, Tensor]:
    parameters = attached.parameters()
    for parameter in parameters.values():
        parameter.grad = None
    for rows in batches:
        summed_loss(hidden_states(model, rows), predictions(rows, PAIRS), head_of(model), 8).backward()
    return {name: parameter.grad.clone() for name, parameter in parameters.items()}


@ON_EACH_WHERE
def test_padded_isolated_and_forest_rows_give_the_gradients_of_lone_samples(name, where, tuned):
    check_gradients(put(name, where, tuned))


def check_resume(case: Put) -> None:
    """Four steps are two, a stop, and two."""
    dtype = case.promise.resumes_in

    def begun() -> tuple[Any, Attached, Optimizer]:
        wide = torch.promote_types(dtype, torch.float32)
        model = tiny(dtype=wide if case.method.starts_wide else dtype)
        attached = case.method.attach(model, torch.Generator().manual_seed(0))
        optimizer = optimizer_of(attached, dtype)
        if case.method.starts_wide:
            cast_parameters(model, dtype)
            return model, attached, optimizer
        return model.to(dtype), attached, optimizer

    model, attached, optimizer = begun()
    step(model, attached, optimizer, 1, 2)
    kept = [{n: t.detach().clone() for n, t in each.items()} for each in (optimizer.moving(), optimizer.state())]
    step(model, attached, optimizer, 3, 6)
    again, fresh, resumed = begun()
    resumed.load(*kept)
    step(again, fresh, resumed, 3, 6)
    for one, other in ((optimizer.moving(), resumed.moving()), (optimizer.state(), resumed.state())):
        assert one.keys() == other.keys()
        assert [name for name in one if not torch.equal(one[name], other[name])] == []


@EACH
def test_stopped_and_resumed_is_bit_for_bit_the_same(name, tuned):
    check_resume(put(name, None, tuned))


def test_every_method_and_every_pair_with_a_policy_is_here():
    """A method that is added without an entry, or a policy without a case, makes this fail."""
    assert {method_name(type(case.method)) for case in CASES.values()} == set(METHODS)
    for name, kind in {name: method_name(type(CASES[name].method)) for name in EVERY_WHERE}.items():
        allowed = {policy for policy, methods in policies.POLICIES.items() if kind in methods}
        tried = {policy for where in EVERY_WHERE[name] for policy in policies.asked(WHERES[where])}
        assert tried == allowed, name


REFUSED = [
    (name, where)
    for name in CASES
    for where, value in WHERES.items()
    for policy in policies.asked(value)
    if method_name(type(CASES[name].method)) not in policies.POLICIES[policy]
]


@pytest.mark.parametrize(("name", "where"), REFUSED)
def test_every_other_pair_is_refused_by_name(name, where, tuned):
    method = put(name, None, tuned).method.model_copy(update={"where": WHERES[where]})
    with pytest.raises(UnsupportedError, match=r"adapt\.where: `.*does not|moves nothing of the base"):
        method.attach(tiny(), torch.Generator())


@pytest.mark.parametrize("name", [name for name, wheres in EVERY_WHERE.items() if "head" not in wheres])
def test_the_head_is_refused_where_the_loss_would_pass_the_method_by(name, tuned):
    with pytest.raises(UnsupportedError, match="the output head"):
        gradients(*attached_to(put(name, "head", tuned)), ROWS)


def after_steps(method: MethodSettings, steps: int = 3, decay: float = 0.0) -> Tensor:
    """Logits of the trained model."""
    model = tiny()
    attached = method.attach(model, torch.Generator().manual_seed(0))
    model.to(torch.float64)
    step(model, attached, optimizer_of(attached, decay=decay), 1, steps)
    return outputs(model)


SQUARE = ["*.q_proj", "*.o_proj"]  # of as many inputs as outputs
SIMPLER = {
    "mora truncation, R = in = out": (made("mora", rank=16, compression="truncation", where=SQUARE), "full", SQUARE),
    "mora sharing, R = in = out": (made("mora", rank=16, compression="sharing", where=SQUARE), "full", SQUARE),
    "mora neighbours, R = in = out": (
        made("mora", rank=16, compression="sharing-contiguous", where=SQUARE),
        "full",
        SQUARE,
    ),
    "mora decoupling, R = in = out": (made("mora", rank=16, compression="decoupling", where=SQUARE), "full", SQUARE),
    "mora rotation, R = in = out": (made("mora", rank=16, where=SQUARE), "full", SQUARE),
    "kappa of all": (made("full", where=["all-linear", {"kappa": 1.0}]), "full", "all-linear"),
    "locate by its name": (
        made("full", where=[{"locate": {"layer": 1, "module": "mlp.down_proj"}}]),
        "full",
        "*.1.mlp.down_proj",
    ),
    "all rows": (made("full", where=["*.q_proj[0:32]"]), "full", "*.q_proj"),
    "last-layer by its number": (made("full", where="last-layer"), "full", ["all", {"layers": 1}]),
    "spiel of every entry": (made("spiel", entries=2 * 2 * 32 * 32, reselect=0, where=SQUARE), "full", SQUARE),
}


@pytest.mark.parametrize("name", SIMPLER)
def test_a_degenerate_setting_is_the_simpler_method(name):
    method, simpler, where = SIMPLER[name]
    same = after_steps(made(simpler, where=where))
    assert (same - outputs(tiny())).abs().max() > 1e-2
    assert (after_steps(method) - same).abs().max() <= (0 if isinstance(method, full.Full) else 1e-9)


def test_settings_that_are_named_twice_are_one_method():
    lora = after_steps(made("lora", rank=4), decay=0.1)
    assert not torch.equal(after_steps(made("lora", rank=4, b_rate_factor=16.0), decay=0.1), lora)
    for other in (
        made("lora", rank=8, rank_pattern={"*.q_proj": 16, "*": 4}),
        made("peft", peft_type="LORA", options={"r": 4, "lora_alpha": 8}),
        made("lora", rank=4, where=[f"*.{leaf}_proj" for leaf in ("q", "k", "v", "o", "gate", "up", "down")]),
        made("lora", rank=4, where=["all-linear", {"kappa": 1.0}]),
    ):
        assert torch.equal(after_steps(other, decay=0.1), lora)


def test_a_mask_that_keeps_all_is_the_base(tuned):
    assert torch.equal(after_steps(made("mft", keep=1.0)), outputs(tiny()))
    grafted = outputs(attached_to(put("graft", None, tuned), torch.float32)[0])
    model = tiny(dtype=torch.float32)  # what has moved is ranked in float32
    attached = made("graft", of=str(tuned), keep=1.0).attach(model, torch.Generator().manual_seed(0))
    with attached.showing("tuned"):  # pyright: ignore[reportAttributeAccessIssue]
        fine_tuned = outputs(model)
    assert torch.equal(outputs(model), fine_tuned)
    assert not torch.equal(grafted, fine_tuned)


def test_a_spiel_that_replaces_nothing_keeps_its_entries_and_one_that_does_moves_their_state_too():
    for reselect, same in ((0, True), (0.5, False)):
        model = tiny()
        method = made("spiel", entries=200, reselect=reselect, reselect_every=4, accumulate=2)
        attached = method.attach(model, torch.Generator().manual_seed(0))
        optimizer = optimizer_of(attached)
        before = {n: t.clone() for n, t in attached.extra().items() if n.endswith("indices")}
        step(model, attached, optimizer, 1, 7)
        assert all(torch.equal(attached.extra()[n], t) for n, t in before.items()) == same
        assert {n.rpartition("/")[0] for n in optimizer.state()} == set(attached.parameters())


FAULTS = {
    "decay on a frozen entry": ("full", "rows", check_frozen, r"q_proj|assert \["),
    "a frozen weight among what moves": ("lora", None, check_frozen, "assert"),
    "a hook that stays on when the method is switched off": ("mora rotation", None, check_start, "equal"),
    "indices that a checkpoint forgets": ("spiel", None, check_resume, "indices|assert"),
    "a sample that sees its neighbour": ("prompt", None, check_gradients, "isolated"),
    "moments of a frozen weight": ("spiel", None, check_frozen, "assert"),
    "moments as large as the whole weight": ("spiel", None, check_frozen, "assert"),
    "moments of what is no parameter": ("lora", None, check_frozen, "assert"),
    "a count that is not the formula's": ("mora sharing", None, check_frozen, "assert"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault, tuned, monkeypatch):
    name, where, check, told = FAULTS[fault]
    case = put(name, where, tuned)
    check(case)
    plant(fault, monkeypatch)
    with pytest.raises(AssertionError, match=told):
        check(case)


def plant(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put one fault into a method."""
    if fault == "decay on a frozen entry":  # the whole tensor shrinks where only its rows should

        def decayed(self: AttachedFull) -> None:
            with torch.no_grad():
                for each in self._slices:
                    each.weight.mul_(1 - 1e-3)
                    each.weight[each.first : each.end].copy_(each.moving)

        monkeypatch.setattr(full.AttachedFull, "refresh", decayed)
    elif fault == "a frozen weight among what moves":
        own = peft.AttachedPeft.parameters

        def one_more(self: Any) -> dict[str, nn.Parameter]:
            frozen = self._model.get_parameter("model.layers.0.self_attn.q_proj.base_layer.weight")
            return own(self) | {"model.layers.0.self_attn.q_proj.base_layer.weight": frozen}

        monkeypatch.setattr(peft.AttachedPeft, "parameters", one_more)
    elif fault == "a hook that stays on when the method is switched off":
        monkeypatch.setattr(mora.AttachedMora, "switched_off", lambda self: nullcontext())
    elif fault == "indices that a checkpoint forgets":
        monkeypatch.setattr(spiel.AttachedSpiel, "extra", lambda self: {"done": self._done})
    elif fault == "a sample that sees its neighbour":
        prepare = forward.prepare
        monkeypatch.setattr(forward, "prepare", lambda rows, *others: prepare(in_a_chain(rows), *others))
    elif fault.startswith("moments"):
        plant_state(fault, monkeypatch)
    else:
        monkeypatch.setattr(mora, "math", SimpleNamespace(sqrt=lambda x: math.sqrt(x) + 1, ceil=math.ceil))


def plant_state(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let an update rule keep more than it needs."""
    own_rule, torchs_rule = spiel.AttachedSpiel.make_update, optim._make_update

    def wasteful(self: Any, masters: Any, moment: Any) -> torch.optim.Optimizer:
        update = own_rule(self, masters, moment)
        for name, layer in self._layers.items():
            weight = layer.base.get_parameter("weight")
            of = weight if fault == "moments of a frozen weight" else masters[name]
            update.state[of]["dense"] = torch.zeros_like(weight)
        return update

    def more(groups: Any, settings: Any) -> torch.optim.Optimizer:
        update = torchs_rule(groups, settings)
        update.state[nn.Parameter(torch.zeros(2))] = {"exp_avg": torch.zeros(2)}
        return update

    if fault == "moments of what is no parameter":
        monkeypatch.setattr(optim, "_make_update", more)
    else:
        monkeypatch.setattr(spiel.AttachedSpiel, "make_update", wasteful)


def in_a_chain(rows: Rows) -> Rows:
    """The same rows, each segment seeing the one before it."""
    row_of = {int(segment): row for row, ids in enumerate(rows.segment_ids) for segment in ids}
    count = len(rows.parent_segment)
    chain = [i - 1 if i and row_of[i] == row_of[i - 1] else int(rows.parent_segment[i]) for i in range(count)]
    return replace(rows, parent_segment=np.array(chain))
