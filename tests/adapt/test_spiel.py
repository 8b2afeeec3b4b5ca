"""SpIEL against closed formulas and a dense, slow reference of the whole cycle; resume within a phase; refusals."""

import math
from dataclasses import dataclass, field

import pytest
import torch
from safetensors.torch import load_file
from tests.models import samples, tiny, tiny_gpt2
from torch import nn

from frisket.adapt.aged import AgedAdamW, Sm3
from frisket.adapt.base import Moment
from frisket.adapt.delta import SparseLinear
from frisket.adapt.methods import load_adapter
from frisket.adapt.spiel import Spiel
from frisket.adapt.support import largest, replaced, smallest_first
from frisket.attend.pack import pack
from frisket.errors import CheckError, ConfigError, UnsupportedError
from frisket.hf.forward import hidden_states
from frisket.hf.heads import head_of
from frisket.hf.load import recompute_layers, switch_off_dropout
from frisket.supervise.loss import summed_loss
from frisket.supervise.predictions import predictions
from frisket.train import checkpoint
from frisket.train.optim import Optimizer
from frisket.train.settings import TrainSettings
from frisket.train.step import Laying, lay_out, run_step

SEQUENCES = samples(0, [7, 3, 12, 5])
PAIRS = [(s, torch.linspace(0.0, 1.5, len(s)).double().numpy()) for s in SEQUENCES]
NAMED = {s.sample_id: (s, w) for s, w in PAIRS}
ROWS = pack(SEQUENCES, "isolated", 64)[0]
LAYING = Laying("isolated", 20, 1, "grouped", 64)
STEPS = [lay_out(PAIRS[:3], LAYING, "weights"), lay_out(PAIRS[1:], LAYING, "weights")]
SHORT = {"density": 0.03, "reselect_every": 8, "accumulate": 3}  # 8 steps a cycle
DECAY = TrainSettings(weight_decay=0.1)
TOTAL = 30


def layers_of(model) -> dict[str, SparseLinear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, SparseLinear)}


@dataclass
class Trained:
    """A run by the very code of the loop."""

    settings: Spiel
    dtype: torch.dtype = torch.float64
    train: TrainSettings = DECAY
    rate: float = 1e-2
    step: int = 0
    history: list = field(default_factory=list)

    def __post_init__(self):
        self.model = tiny(dtype=self.dtype)
        self.attached = self.settings.attach(self.model, torch.Generator().manual_seed(0))
        self.optimizer = Optimizer(self.attached.parameters(), self.train, self.dtype, (), self.attached)
        self.layers = layers_of(self.model)

    def run(self, steps: int) -> "Trained":
        self.attached.begin(TOTAL)
        for _ in range(steps):
            self.step += 1
            made = STEPS[self.step % 2]
            args = (self.model, self.attached, self.optimizer, made, LAYING)
            run_step(*args, number=self.step, rate=self.rate)
            self.history.append({n: layer.indices.tolist() for n, layer in self.layers.items()})
        return self

    def tensors(self):
        return self.optimizer.moving(), self.optimizer.state()


# the layer


def shaken(model, settings, seed=1):
    attached = settings.attach(model, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for values in attached.parameters().values():
            values.copy_(0.1 * torch.randn(values.shape, generator=generator, dtype=torch.float64))
    return attached


def gpt2():
    model = tiny_gpt2(torch.float64)
    switch_off_dropout(model)
    return model


@pytest.mark.parametrize("make", [tiny, gpt2], ids=["linear", "conv1d"])
def test_output_and_gradients_are_those_of_the_dense_weight(make):
    """Of every layer: y = x (W + D)^T + b, the gradient of the values is the dense one at their indices."""
    model, dense = make(), make()
    before = hidden_states(model, ROWS)
    attached = Spiel(density=0.05).attach(model, torch.Generator().manual_seed(0))
    assert torch.equal(hidden_states(model, ROWS), before)
    attached.detach()
    attached = shaken(model, Spiel(density=0.05))
    with torch.no_grad():
        for name, layer in layers_of(model).items():
            flat = dense.get_parameter(f"{name}.weight").view(-1)
            for index, value in zip(layer.indices.tolist(), layer.values.tolist(), strict=True):
                flat[index] += value
    for each in (model, dense):
        guesses = predictions(ROWS, NAMED)
        summed_loss(hidden_states(each, ROWS), guesses, head_of(each), 8).backward()
    assert torch.equal(hidden_states(model, ROWS), hidden_states(dense, ROWS))
    for name, layer in layers_of(model).items():
        wanted = dense.get_parameter(f"{name}.weight").grad.flatten()[layer.indices.long()]
        assert wanted.norm() > 0
        assert (layer.values.grad - wanted).norm() <= 1e-12 * wanted.norm()
    assert all(p.grad is None for n, p in model.named_parameters() if not n.endswith(".values"))


def test_nothing_as_large_as_the_weight_is_kept_for_the_backward():
    base = nn.Linear(40, 30)
    layer = SparseLinear(base.requires_grad_(False), torch.tensor([3, 5]), watches=False)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        layer(torch.randn(7, 40, requires_grad=True)).sum().backward()
    assert [tuple(tensor.shape) for tensor in kept] == [(7, 40)]
    assert [buffer.numel() for buffer in layer.buffers()] == [2, 0, 0, 0, 0, 1]


def test_recomputed_layers_give_the_same_gradients_and_candidates():
    made = []
    for layers in (0, 2):
        trained = Trained(Spiel(**SHORT), torch.float32)
        recompute_layers(trained.model, layers)
        made.append(trained.run(5).tensors()[0])
    assert all(torch.equal(value, made[1][name]) for name, value in made[0].items())


# budget, start, frozen base


@pytest.mark.parametrize("criterion", ["gradient", "momentum"])
def test_as_many_entries_as_the_budget_says_always_and_no_other_byte_moves(criterion):
    base = tiny()
    whole = sum(p.numel() for p in base.parameters())
    trained = Trained(Spiel(criterion=criterion, **SHORT))
    sizes = {name: layer.base.weight.numel() for name, layer in trained.layers.items()}
    wanted = {name: int(int(0.03 * whole) * size / sum(sizes.values())) for name, size in sizes.items()}
    trained.run(TOTAL)
    for supports in trained.history:
        assert {name: len(set(support)) for name, support in supports.items()} == wanted
        assert all(min(support) >= 0 and max(support) < sizes[name] for name, support in supports.items())
    assert len({str(supports) for supports in trained.history}) == 5  # selections after steps 3, 11, 19, 27
    assert set(trained.optimizer.masters) == {f"{name}.values" for name in sizes}
    per_entry = {"gradient": {"age", "exp_avg", "exp_avg_sq"}, "momentum": {"rows", "columns"}}[criterion]
    assert {name.rpartition("/")[2] for name in trained.optimizer.state()} == per_entry
    trained.attached.detach()
    assert list(trained.model.state_dict()) == list(base.state_dict())
    assert all(torch.equal(value, base.state_dict()[name]) for name, value in trained.model.state_dict().items())


def test_the_random_start_follows_the_seed_and_hits_every_entry_alike():
    def start(seed):
        model = tiny()
        Spiel(density=0.05).attach(model, torch.Generator().manual_seed(seed))
        return {name: layer.indices for name, layer in layers_of(model).items()}

    assert all(torch.equal(a, b) for a, b in zip(start(1).values(), start(1).values(), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(start(1).values(), start(2).values(), strict=True))
    halves = [float((i < 512).double().mean()) for seed in range(20) for n, i in start(seed).items() if "q_proj" in n]
    assert 0.45 < sum(halves) / len(halves) < 0.55


def test_a_budget_of_all_entries_takes_each_once():
    model = tiny()
    sizes = [m.weight.numel() for n, m in model.named_modules() if isinstance(m, nn.Linear) and n != "lm_head"]
    Spiel(entries=sum(sizes)).attach(model, torch.Generator())
    assert [layer.indices.tolist() for layer in layers_of(model).values()] == [list(range(size)) for size in sizes]


# update rules

MOMENT = Moment((0.9, 0.999), 1e-8, 0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_adamw_with_ages_is_torchs_adamw_bit_for_bit_while_nobody_moves(dtype):
    """On a dense delta under a mask, whose gradient outside is 0: same bytes at the indices, over 1,100 steps."""
    generator = torch.Generator().manual_seed(0)
    indices = torch.randperm(500, generator=generator)[:60]
    dense, mask = torch.zeros(500, dtype=dtype, requires_grad=True), torch.zeros(500, dtype=dtype)
    mask[indices] = 1
    values = torch.zeros(60, dtype=dtype, requires_grad=True)
    plain = torch.optim.AdamW([dense], betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1, foreach=False)
    aged = AgedAdamW({"values": values}, MOMENT)
    for step in range(1100):
        gradient = torch.randn(500, generator=generator, dtype=dtype) * (1 + step % 7)
        dense.grad, values.grad = gradient * mask, gradient[indices]
        for rule in (plain, aged):
            rule.param_groups[0]["lr"] = 1e-2 / (1 + step)
            rule.step()
        assert torch.equal(dense[indices], values)
    assert not dense[mask == 0].any()
    assert aged.state[values]["age"].eq(1100).all()


def test_a_run_without_selections_is_a_dense_delta_under_a_mask():
    """p0 = 0: the same as AdamW on all of W, whose gradient is masked and whose decay is towards the base."""
    trained = Trained(Spiel(reselect=0.0, density=0.03), train=TrainSettings(weight_decay=0.1, clip=0)).run(20)
    model = tiny()
    masks = {n: torch.zeros_like(model.get_parameter(f"{n}.weight")) for n in trained.layers}
    for name, layer in trained.layers.items():
        masks[name].view(-1)[layer.indices.long()] = 1
    deltas = {name: torch.zeros_like(mask, requires_grad=True) for name, mask in masks.items()}
    rule = torch.optim.AdamW(deltas.values(), lr=1e-2, weight_decay=0.1, foreach=False)
    base = {name: model.get_parameter(f"{name}.weight").detach().clone() for name in masks}
    for step in range(1, 21):
        gradients = dense_gradients(model, base, {n: d.detach() for n, d in deltas.items()}, step)
        for name, parts in gradients.items():
            deltas[name].grad = sum(parts) * masks[name]
        rule.step()
    for name, layer in trained.layers.items():
        assert (deltas[name].view(-1)[layer.indices.long()] - layer.values).norm() <= 1e-9 * layer.values.norm()
        assert layer.values.norm() > 0
    assert len(trained.history) == 20
    assert all(supports == trained.history[0] for supports in trained.history)


def test_sm3_never_thinks_less_of_an_entry_than_its_squared_gradients_sum_to():
    layer = SparseLinear(nn.Linear(12, 9).double(), torch.randperm(108)[:40].sort().values, watches=False)
    values = layer.values
    rule = Sm3({"": values}, {"": layer}, MOMENT)
    rule.param_groups[0]["lr"] = 0.1
    total, delta = torch.zeros(40, dtype=torch.float64), torch.zeros(40, dtype=torch.float64)
    rows, columns = [0.0] * 9, [0.0] * 12
    for _ in range(15):
        values.grad = torch.randn(40, dtype=torch.float64)
        rule.step()
        total += values.grad**2
        seen = [
            min(rows[i // 12], columns[i % 12]) + g**2
            for i, g in zip(layer.indices.tolist(), values.grad.tolist(), strict=True)
        ]
        for nu, i in zip(seen, layer.indices.tolist(), strict=True):
            rows[i // 12], columns[i % 12] = max(rows[i // 12], nu), max(columns[i % 12], nu)
        delta = 0.99 * delta - 0.1 * values.grad / (torch.tensor(seen, dtype=torch.float64) + 1e-8).sqrt()
        state = rule.state[values]
        assert state["rows"].tolist() == pytest.approx(rows, rel=1e-12)
        assert state["columns"].tolist() == pytest.approx(columns, rel=1e-12)
        row, column = layer.indices // 12, layer.indices % 12
        assert (torch.minimum(state["rows"][row], state["columns"][column]) >= total * (1 - 1e-12)).all()
        assert torch.allclose(values, delta, rtol=1e-12, atol=1e-15)


# the whole cycle, dense and slow


def dense_gradients(model, base, deltas, step):
    """Of one step of the run: for each layer the gradient of each micro-batch with respect to all of W + D."""
    made, parts = STEPS[step % 2], {name: [] for name in base}
    model.requires_grad_(False)
    for name in base:
        weight = model.get_parameter(f"{name}.weight").requires_grad_(True)
        weight.data = base[name] + deltas[name]
    for batch in made.micro_batches:
        model.zero_grad()
        loss = summed_loss(hidden_states(model, batch.rows, "grouped"), batch.predictions, head_of(model), 64)
        (loss / made.divisor).backward()
        for name in base:
            parts[name].append(model.get_parameter(f"{name}.weight").grad.clone())
    return parts


def share_of(settings, step, is_first):
    if settings.policy == "cosine":
        return settings.reselect * (1 + math.cos(math.pi * step / TOTAL)) / 2
    return 1 if is_first else settings.reselect * (1 - step / TOTAL)


FRESH = {"d": 0.0, "m": 0.0, "v": 0.0, "age": 0}


class Reference:
    """The sheet, with dictionaries: entry -> what it holds. No clipping."""

    def __init__(self, settings, start, rate, decay):
        self.settings, self.rate, self.decay = settings, rate, decay
        self.model = tiny()
        self.base = {n: self.model.get_parameter(f"{n}.weight").detach().clone() for n in start}
        self.entries = {n: {i: dict(FRESH) for i in each} for n, each in start.items()}
        self.rows = {n: [0.0] * len(w) for n, w in self.base.items()}
        self.columns = {n: [0.0] * w.shape[1] for n, w in self.base.items()}
        self.phase, self.is_open, self.selections = {}, True, 0

    def step(self, t):
        deltas = {n: torch.zeros_like(w) for n, w in self.base.items()}
        for name, each in self.entries.items():
            for i, entry in each.items():
                deltas[name].view(-1)[i] = entry["d"]
        for name, parts in dense_gradients(self.model, self.base, deltas, t).items():
            self.move(name, sum(parts).flatten().tolist(), parts[0].flatten())
        every, last = self.settings.reselect_every, self.settings.accumulate
        if t % every == last:
            share = share_of(self.settings, t, not self.selections)
            for name, each in self.entries.items():
                self.select(name, each, int(len(each) * share))
            self.is_open, self.phase, self.selections = False, {}, self.selections + 1
        if (t + 1) % every == 0:
            self.is_open, self.phase = True, {}

    def move(self, name, gradient, first):
        each, width = self.entries[name], self.base[name].shape[1]
        if self.settings.criterion == "momentum":
            seen = {i: min(self.rows[name][i // width], self.columns[name][i % width]) + gradient[i] ** 2 for i in each}
            for i, entry in each.items():
                entry["d"] *= 1 - self.rate * self.decay
                entry["d"] -= self.rate * gradient[i] / math.sqrt(seen[i] + 1e-8)
                self.rows[name][i // width] = max(self.rows[name][i // width], seen[i])
                self.columns[name][i % width] = max(self.columns[name][i % width], seen[i])
            return
        for i, entry in each.items():
            entry["age"] += 1
            entry["m"] = 0.9 * entry["m"] + 0.1 * gradient[i]
            entry["v"] = 0.999 * entry["v"] + 0.001 * gradient[i] ** 2
            entry["d"] *= 1 - self.rate * self.decay
            unbiased = math.sqrt(entry["v"] / (1 - 0.999 ** entry["age"]))
            entry["d"] -= self.rate * entry["m"] / (1 - 0.9 ** entry["age"]) / (unbiased + 1e-8)
        if self.is_open:
            if name not in self.phase:
                order = sorted(range(len(gradient)), key=lambda i: (-abs(float(first[i])), i))
                self.phase[name] = {i: [0.0, 0.0, 0] for i in order[: len(each)]}
            for i, seen in self.phase[name].items():
                seen[0], seen[1], seen[2] = seen[0] + gradient[i], seen[1] + gradient[i] ** 2, seen[2] + 1

    def select(self, name, each, count):
        dropped = sorted(each, key=lambda i: (abs(each[i]["d"]), i))[:count]
        if self.settings.criterion == "momentum":
            rows, columns, width = self.rows[name], self.columns[name], self.base[name].shape[1]
            inactive = [i for i in range(len(rows) * width) if i not in each]
            grown = sorted(inactive, key=lambda i: (-math.sqrt(rows[i // width]) * math.sqrt(columns[i % width]), i))
            for old, new in zip(dropped, grown[:count], strict=True):
                del each[old]
                each[new] = dict(FRESH)
            return
        phase = self.phase[name]
        kept = set(each) - set(dropped)
        grown = sorted((i for i in phase if i not in kept), key=lambda i: (-abs(phase[i][0]), i))[:count]
        leaving = [i for i in dropped if i not in grown]
        for old, new in zip(leaving, [i for i in grown if i not in dropped], strict=False):
            total, squares, steps = phase[new]
            m, v = total / steps * (1 - 0.9**steps), squares / steps * (1 - 0.999**steps)
            del each[old]
            each[new] = FRESH | {"m": m, "v": v, "age": steps}


@pytest.mark.parametrize(
    ("criterion", "policy"), [("gradient", "linear"), ("gradient", "cosine"), ("momentum", "linear")]
)
def test_the_whole_cycle_is_that_of_a_dense_reference(criterion, policy):
    settings = Spiel(criterion=criterion, policy=policy, **SHORT | {"reselect": 0.6})
    trained = Trained(settings, train=TrainSettings(weight_decay=0.1, clip=0))
    start = {name: layer.indices.tolist() for name, layer in trained.layers.items()}
    reference = Reference(settings, start, trained.rate, 0.1)
    for step in range(1, 21):
        trained.run(1)
        reference.step(step)
        for name, layer in trained.layers.items():
            entries = reference.entries[name]
            assert set(layer.indices.tolist()) == set(entries), (step, name)
            wanted = torch.tensor([entries[i]["d"] for i in layer.indices.tolist()], dtype=torch.float64)
            assert (layer.values - wanted).abs().max() <= 1e-9
    assert reference.selections == 3
    changed = [len(set(a) ^ set(b)) for a, b in zip(trained.history[2].values(), start.values(), strict=True)]
    assert all(changed)


# who goes and who comes


def test_a_selection_drops_exactly_the_smallest_and_the_newcomers_change_nothing():
    trained = Trained(Spiel(**SHORT, policy="cosine")).run(2)
    seen = {}
    replace = trained.attached._update.replace

    def spied(values, layer, count):
        seen[id(layer)] = (layer.indices.tolist(), values.detach().clone(), count, layer.weight)
        return replace(values, layer, count)

    trained.attached._update.replace = spied
    trained.run(1)
    for layer in trained.layers.values():
        before, values, count, weight = seen[id(layer)]
        now = layer.indices.tolist()
        order = sorted(range(len(before)), key=lambda place: abs(float(values[place])))
        left = set(before) - set(now)
        assert count == int(len(before) * 0.2 * (1 + math.cos(math.pi * 3 / TOTAL)) / 2) > 0
        assert left <= {before[place] for place in order[:count]}
        new = [place for place, index in enumerate(now) if index not in before]
        assert len(new) == len(left) > 0
        assert not layer.values.detach()[new].any()
        moved = (layer.weight - weight).flatten().nonzero()[:, 0].tolist()
        assert set(moved) <= set(before)  # to zero, or by the step itself; nothing new is felt yet
        assert torch.equal(layer.weight.flatten()[now][new], layer.base.weight.flatten()[now][new])


def test_ties_go_by_index_and_candidates_that_are_not_free_do_not_count():
    assert largest(torch.tensor([2.0, 5.0, 2.0, 2.0]), 3).tolist() == [0, 1, 2]
    assert largest(torch.tensor([1.0, math.nan, 3.0]), 2).tolist() == [1, 2]
    assert smallest_first(torch.zeros(4), torch.tensor([9, 2, 7, 1])).tolist() == [3, 1, 2, 0]
    indices, values = torch.tensor([5, 1, 3]), torch.tensor([3.0, 0.5, -0.1])
    candidates = torch.tensor([1, 3, 5, 8])
    places, chosen = replaced(indices, values, candidates, torch.tensor([1.0, 0.0, 9.0, 2.0]), 2)
    assert (places.tolist(), chosen.tolist()) == ([2], [3])  # 5 is kept; 1 stays; 8 takes the place of 3
    places, chosen = replaced(indices, values, candidates[:3], torch.tensor([1.0, 0.0, 9.0]), 3)
    assert (places.tolist(), chosen.tolist()) == ([], [])  # dropped and chosen again: all stay
    places, chosen = replaced(indices, values, candidates[3:], torch.tensor([1.0]), 3)
    assert (places.tolist(), chosen.tolist()) == ([2], [0])  # one candidate: the smallest goes


def test_a_step_counts_as_one_gradient_however_it_is_cut():
    layer = SparseLinear(nn.Linear(4, 3), torch.tensor([0, 7]), watches=True)
    layer.is_watching = True
    whole = torch.arange(12.0).view(3, 4)
    layer.watch(whole * 0.25)
    layer.watch(whole * 0.75)
    layer.end_step()
    layer.watch(whole)
    layer.end_step()
    assert (layer.candidates.tolist(), int(layer.steps)) == ([10, 11], 2)
    assert layer.sums.tolist() == [20.0, 22.0]
    assert layer.squares.tolist() == [200.0, 242.0]


def test_gradients_before_the_run_and_between_phases_are_not_looked_at():
    """The speed test before the first step runs two backwards; between phases there is nothing to gather."""
    trained = Trained(Spiel(**SHORT))
    summed_loss(hidden_states(trained.model, ROWS), predictions(ROWS, NAMED), head_of(trained.model), 8).backward()
    assert not any(layer.steps or layer.candidates.any() for layer in trained.layers.values())
    trained.optimizer.clear()
    counts = [int(next(iter(trained.run(1).layers.values())).steps) for _ in range(TOTAL)]
    assert counts == [1, 2, 0, *[0] * 4, 1, 2, 3, 0, *[0] * 4, 1, 2, 3, 0, *[0] * 4, 1, 2, 3, *[0] * 4]


def test_it_finds_planted_entries_that_a_fixed_random_support_does_not():
    """A teacher whose weights differ from the base in a few entries; half of the budget is theirs."""

    def overlap(**changes):
        teacher, model = tiny(), tiny()
        generator = torch.Generator().manual_seed(7)
        planted = {}
        for name, layer in teacher.named_modules():
            if isinstance(layer, nn.Linear) and ".mlp." in name:
                chosen = torch.randperm(layer.weight.numel(), generator=generator)[:10]
                layer.weight.data.view(-1)[chosen] += 0.5
                planted[name] = set(chosen.tolist())
        settings = Spiel(entries=120, reselect_every=10, accumulate=5, where="mlp", **changes)
        attached = settings.attach(model, torch.Generator().manual_seed(0))
        optimizer = Optimizer(attached.parameters(), TrainSettings(), torch.float64, (), attached)
        wanted = hidden_states(teacher, ROWS).detach()
        attached.begin(80)
        for step in range(1, 81):
            (hidden_states(model, ROWS) - wanted).square().mean().backward()
            attached.after_backward(0)
            optimizer.accumulate()
            optimizer.update(2e-2)
            attached.after_update(step)
            optimizer.write_back()
        found = {name: set(layer.indices.tolist()) for name, layer in layers_of(model).items()}
        return sum(len(planted[name] & found[name]) for name in planted) / sum(map(len, planted.values()))

    fixed, moving = overlap(reselect=0.0), overlap()
    assert moving > 2 * fixed


# resume, saving, types


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("criterion", ["gradient", "momentum"])
@pytest.mark.parametrize("stop", [2, 9, 12], ids=["first phase", "second phase", "between phases"])
def test_stopped_and_resumed_is_the_same_to_the_byte(criterion, dtype, stop, tmp_path):
    settings = Spiel(criterion=criterion, **SHORT)
    whole = Trained(settings, dtype).run(20)
    first = Trained(settings, dtype).run(stop)
    state = checkpoint.State(stop, 0, stop, "", TOTAL, "", "", 0.0, {})
    folder = checkpoint.save(tmp_path, state, *first.tensors(), keep=1)
    again = Trained(settings, dtype, step=checkpoint.load_state(folder).step)
    again.optimizer.load(*checkpoint.load_tensors(folder))
    again.run(20 - stop)
    assert {name.rpartition(".")[2] for name in first.optimizer.moving()} >= {"values", "indices", "extra/done"}
    for straight, resumed in zip(whole.tensors(), again.tensors(), strict=True):
        assert straight.keys() == resumed.keys()
        assert all(torch.equal(value, resumed[name]) for name, value in straight.items())
    assert whole.history[stop:] == again.history


def test_a_support_that_was_trained_before_is_not_thrown_away():
    """A further stage starts with the weights of the one before: the first selection replaces p0, not all."""
    first = Trained(Spiel(**SHORT)).run(20)
    second = Trained(Spiel(**SHORT))
    second.optimizer.load_masters(first.optimizer.moving())
    second.run(3)
    for name, layer in second.layers.items():
        stayed = len(set(layer.indices.tolist()) & set(first.history[-1][name]))
        assert stayed >= 0.8 * len(layer.indices) - 1


@pytest.mark.parametrize("end", [1, 9, 20], ids=["in the first phase", "in a later one", "between phases"])
def test_a_further_stage_has_a_clock_and_candidates_of_its_own(end):
    first, second = Trained(Spiel(**SHORT)).run(end), Trained(Spiel(**SHORT))
    second.optimizer.load_masters(first.optimizer.moving())
    second.attached.begin_stage()
    kept = {name: tensor.clone() for name, tensor in second.attached.extra().items()}
    assert int(kept["done"][0]) == 0
    assert not any(kept[name].any() for name in kept if name.rpartition(".")[2] in ("candidates", "sums", "steps"))
    moved, watched = [], []
    for _ in range(12):
        before = {name: layer.indices.clone() for name, layer in second.layers.items()}
        second.run(1)
        watched.append(max(int(layer.steps) for layer in second.layers.values()))
        moved.append(any(not torch.equal(layer.indices, before[name]) for name, layer in second.layers.items()))
    assert [step for step, has in enumerate(moved, 1) if has] == [3, 11]
    assert watched == [1, 2, 0, 0, 0, 0, 0, 1, 2, 3, 0, 0]


def test_a_cycle_that_is_too_long_for_the_run_is_told_with_overrides_that_mend_it():
    assert "the run ends before entries are chosen (adapt.accumulate = 5): all stay" in Spiel().cycle.too_long(5)
    assert "chosen after step 5 of 6, which drops all that was learned" in Spiel().cycle.too_long(6)
    assert [steps for steps in range(1, 40) if Spiel().cycle.too_long(steps)] == list(range(1, 10))
    assert not Spiel(reselect=0).cycle.too_long(1)
    assert Spiel(policy="cosine").cycle.too_long(5)
    for steps in range(1, 10):
        words = Spiel().cycle.too_long(steps).rpartition(": ")[2].split()
        mended = Spiel(**{name.removeprefix("adapt."): int(n) for name, n in (word.split("=") for word in words)})
        mended.check()
        assert not mended.cycle.too_long(steps)
        assert steps < 2 or any(mended.cycle.selects(step, steps) for step in range(1, steps))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_what_is_saved_is_what_was_trained(dtype, tmp_path):
    trained = Trained(Spiel(**SHORT), dtype).run(12)
    assert {layer.values.dtype for layer in trained.layers.values()} == {dtype}
    assert {master.dtype for master in trained.optimizer.masters.values()} == {torch.float32}
    logits = head_of(trained.model).logits(hidden_states(trained.model, ROWS))
    trained.attached.save(tmp_path, trained.optimizer.masters)
    again = tiny(dtype=dtype)
    base = {name: value.clone() for name, value in again.state_dict().items()}
    loaded = load_adapter(again, tmp_path)
    assert torch.equal(head_of(again).logits(hidden_states(again, ROWS)), logits)
    for name, layer in trained.layers.items():
        weight = again.get_parameter(f"{name}.weight")
        assert set((weight != base[f"{name}.weight"]).flatten().nonzero()[:, 0].tolist()) <= set(layer.indices.tolist())
    trained.attached.merge()
    assert torch.equal(head_of(trained.model).logits(hidden_states(trained.model, ROWS)), logits)
    loaded.detach()
    assert all(torch.equal(value, base[name]) for name, value in again.state_dict().items())
    values = load_file(tmp_path / "adapter.safetensors")
    assert sum(value.numel() for name, value in values.items() if name.endswith(".values")) == sum(
        len(layer.values) for layer in trained.layers.values()
    )
    with pytest.raises(CheckError, match="is not the tensor that this change was made for"):
        load_adapter(tiny(dtype=dtype, seed=1), tmp_path)


def test_switched_off_is_the_base():
    model = tiny()
    before = hidden_states(model, ROWS)
    attached = shaken(model, Spiel())
    changed = hidden_states(model, ROWS)
    with attached.switched_off():
        assert torch.equal(hidden_states(model, ROWS), before)
    assert torch.equal(hidden_states(model, ROWS), changed)
    assert not torch.equal(changed, before)


def test_rates_follow_the_rule():
    assert Spiel().declared_rate != Spiel(criterion="momentum").declared_rate
    with pytest.raises(ConfigError, match="brings an update rule of its own"):
        Trained(Spiel(), train=TrainSettings(optimizer="sgd"))


# what is refused


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"accumulate": 20}, r"adapt.accumulate = 20 steps do not fit.*\n?.*adapt.accumulate=19"),
        (
            {"density": 0.9, "where": "attention"},
            r"entries are to move, and the matched layers have .*\n.*adapt.entries=",
        ),
        ({"entries": 3}, r"3 entries over 14 layers by size leave none to model.layers.0.*\nUse adapt.entries=30"),
        ({"where": "norms"}, "matched 5 modules but no linear layer"),
    ],
)
def test_budgets_and_cycles_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        Spiel(**settings).attach(tiny(), torch.Generator())


def test_the_fixes_that_refusals_name_work():
    Spiel(entries=30).attach(tiny(), torch.Generator())
    Spiel(accumulate=19).attach(tiny(), torch.Generator())


def test_quantised_weights_expert_tensors_and_scaled_gradients_are_refused():
    model = tiny()
    layer = model.model.layers[0].self_attn.q_proj
    layer.weight = nn.Parameter(torch.zeros(32, 32, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(UnsupportedError, match=r"spiel needs plain weights: model.layers.0.self_attn.q_proj"):
        Spiel().attach(model, torch.Generator())
    with pytest.raises(UnsupportedError, match="expert tensors, and spiel adapts linear layers only"):
        Spiel(where=["all-linear", "experts"]).attach(tiny("qwen3_moe"), torch.Generator())
    with pytest.raises(UnsupportedError, match=r"gradients as they are, and train.compute = fp16 scales"):
        Trained(Spiel(), torch.float16)
    assert Trained(Spiel(criterion="momentum"), torch.float16)


def test_modules_that_are_no_linear_layers_are_told_of():
    attached = Spiel(where=["all-linear", "norms"]).attach(tiny(), torch.Generator())
    assert attached.match.notes[-1] == "5 matched modules are no linear layers: left as they are"
