"""Grafting: gamma against its formulas, the rounded mask, what is saved, and what is refused."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tests.models import samples, tiny, tiny_gpt2

from frisket.adapt import sparse
from frisket.adapt.full import Full
from frisket.adapt.graft import Graft
from frisket.adapt.lora import Lora
from frisket.adapt.methods import load_adapter
from frisket.adapt.tuned import top_moved, tuned_weights
from frisket.attend.pack import pack
from frisket.errors import CheckError, ConfigError, UnsupportedError
from frisket.hf.forward import hidden_states
from frisket.hf.heads import head_of
from frisket.hf.load import cast_parameters
from frisket.supervise.loss import summed_loss
from frisket.supervise.predictions import predictions
from frisket.train.optim import Optimizer
from frisket.train.settings import TrainSettings
from frisket.train.step import Laying, lay_out, run_step

SEQUENCES = samples(0, [14, 9, 17, 11])
PAIRS = {s.sample_id: (s, torch.ones(len(s), dtype=torch.float64).numpy()) for s in SEQUENCES}
for _, weights in PAIRS.values():
    weights[0] = 0
ROWS = pack(SEQUENCES, "isolated", 64)
LAYING = Laying("isolated", 64, 8, "grouped", 64)


def stored(model: torch.nn.Module, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({n: p.detach().clone() for n, p in model.named_parameters()}, folder / "model.safetensors")
    return folder


def loss_of(model) -> float:
    total = 0.0
    model.eval()
    with torch.no_grad():
        for rows in ROWS:
            total += float(summed_loss(hidden_states(model, rows), predictions(rows, PAIRS), head_of(model), 64))
    model.train()
    return total


def steps(model, attached, count, rate, optimizer="adamw"):
    moving = Optimizer(attached.parameters(), TrainSettings(optimizer=optimizer), torch.float64, method=attached)
    step = lay_out(list(PAIRS.values()), LAYING, "weights")
    for number in range(1, count + 1):
        run_step(model, attached, moving, step, LAYING, number=number, rate=rate)
    return moving


@pytest.fixture(scope="module")
def tuned(tmp_path_factory) -> Path:
    """A model that was fully fine-tuned until it knows the samples."""
    model = tiny()
    before = loss_of(model)
    steps(model, Full().attach(model, torch.Generator()), 12, 5e-3)
    assert loss_of(model) < 0.6 * before
    return stored(model, tmp_path_factory.mktemp("tuned") / "model").parent


def grafted(of: Path, keep=0.01, dtype=torch.float64, seed=0, where="all-linear"):
    model = tiny(dtype=dtype)
    attached = Graft(of=str(of), keep=keep, where=where).attach(model, torch.Generator().manual_seed(seed))
    return model, attached


def linears(model) -> list[str]:
    return [f"{n}.weight" for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"]


def both(of: Path) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Base and fine-tuned value of every matched weight."""
    base = tiny()
    found, _ = tuned_weights(base, of, linears(base))
    return {name: (base.get_parameter(name).detach(), value) for name, value in found.items()}


def set_scores(attached, value: float) -> None:
    with torch.no_grad():
        for scores in attached.parameters().values():
            scores.fill_(value)


def weights_of(model) -> dict[str, torch.Tensor]:
    """Every matched weight as the model computes with it."""
    return {name: model.get_submodule(name.removesuffix(".weight")).weight.detach() for name in linears(model)}


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("training", [True, False])
def test_gamma_0_is_the_base_and_gamma_1_the_fine_tuned_model_bit_for_bit(tuned, training):
    values = both(tuned)
    model, attached = grafted(tuned, keep=1.0)
    model.train(training)
    set_scores(attached, -torch.inf)
    assert all(bits(weight) == bits(values[name][1]) for name, weight in weights_of(model).items())
    set_scores(attached, torch.inf)
    assert all(bits(weight) == bits(values[name][0]) for name, weight in weights_of(model).items())


def test_sides_are_what_they_are_called(tuned):
    values = both(tuned)
    model, attached = grafted(tuned, keep=0.02)
    model.eval()
    set_scores(attached, 1.0)  # everything turned over
    tops = top_moved([(after - before).float() for before, after in values.values()], 0.02)
    expected = {
        "base": [before for before, _ in values.values()],
        "tuned": [after for _, after in values.values()],
        "top": [torch.where(top, *pair[::-1]) for pair, top in zip(values.values(), tops, strict=True)],
        "graft": [torch.where(top, *pair) for pair, top in zip(values.values(), tops, strict=True)],
    }
    for side, wanted in expected.items():
        with attached.showing(side):
            assert all(torch.equal(w, e) for w, e in zip(weights_of(model).values(), wanted, strict=True)), side
    assert all(torch.equal(w, e) for w, e in zip(weights_of(model).values(), expected["graft"], strict=True))


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.lists(st.integers(-3, 3), min_size=1, max_size=8), min_size=1, max_size=4),
    st.floats(0.01, 1.0),
)
def test_exactly_the_stated_number_moved_most_and_ties_fall_to_the_first(rows, keep):
    changes = [torch.tensor(row, dtype=torch.float32) for row in rows]
    flat = [value for row in rows for value in row]
    order = sorted(range(len(flat)), key=lambda i: (-abs(flat[i]), i))
    wanted = {i for i in order[: max(1, round(keep * len(flat)))] if flat[i]}
    chosen = torch.cat(top_moved(changes, keep)).nonzero()[:, 0].tolist()
    assert set(chosen) == wanted


def test_the_search_starts_at_the_top_and_counts_it(tuned):
    _, attached = grafted(tuned, keep=0.01)
    entries = sum(p.numel() for p in attached.parameters().values())
    masks = attached.masks(attached.parameters())
    assert sum(int(mask.sum()) for mask in masks.values()) == round(0.01 * entries)
    assert sum(p.numel() for p in attached.parameters().values()) == sum(
        tiny().get_parameter(name).numel() for name in linears(tiny())
    )
    shares = torch.cat([p.detach().flatten().sigmoid() for p in attached.parameters().values()])
    assert shares.max() < 1.3e-4  # sigmoid(-9)
    assert f"the {round(0.01 * entries):,} entries of {entries:,}" in attached.match.notes[-1]
    assert "lies outside of adapt.where" in attached.match.notes[-1]


def test_the_gradient_is_that_of_the_closed_formula_by_autograd(tuned):
    """A slow model whose weights are made of the formula, by torch's own operations."""
    values = both(tuned)
    model, attached = grafted(tuned, keep=0.05)
    generator = torch.Generator().manual_seed(3)
    scores = {n: torch.randn(p.shape, generator=generator, dtype=p.dtype) for n, p in attached.parameters().items()}
    attached.load(scores)
    for rows in ROWS:
        summed_loss(hidden_states(model, rows), predictions(rows, PAIRS), head_of(model), 64).backward()
    slow = tiny()
    tops = top_moved([(after - before).float() for before, after in values.values()], 0.05)
    leaves, made = {}, {}
    for (key, score), (name, (before, after)), top in zip(scores.items(), values.items(), tops, strict=True):
        leaves[key] = score.clone().requires_grad_(True)
        gamma = top.double() + (1 - 2 * top.double()) * torch.sigmoid(leaves[key])
        made[name] = before + gamma * (after - before)

    def of_rows(rows):
        hidden = torch.func.functional_call(_Hidden(slow), {f"model.{n}": w for n, w in made.items()}, (rows,))
        return summed_loss(hidden, predictions(rows, PAIRS), head_of(slow), 64)

    sum(of_rows(rows) for rows in ROWS).backward()
    for name, leaf in leaves.items():
        ours = attached.parameters()[name].grad
        assert leaf.grad.norm() > 0
        assert (ours - leaf.grad).norm() <= 1e-10 * leaf.grad.norm(), name


class _Hidden(torch.nn.Module):
    def __init__(self, model) -> None:
        super().__init__()
        self.model = model

    def forward(self, rows):
        return hidden_states(self.model, rows)


def test_one_step_is_plain_descent_without_decay(tuned):
    model, attached = grafted(tuned)
    start = attached.state()
    for rows in ROWS:
        summed_loss(hidden_states(model, rows), predictions(rows, PAIRS), head_of(model), 64).backward()
    grads = {n: p.grad.clone() for n, p in attached.parameters().items()}
    model.zero_grad()
    moving = Optimizer(attached.parameters(), TrainSettings(weight_decay=0.5, clip=0.0), torch.float64, method=attached)
    step = lay_out(list(PAIRS.values()), LAYING, 1.0)
    run_step(model, attached, moving, step, LAYING, number=1, rate=100.0)
    for name, value in moving.masters.items():
        assert torch.allclose(value, start[name] - 100.0 * grads[name], rtol=0, atol=1e-12)
    assert moving.state() == {}


def test_what_moved_most_beats_what_was_drawn_and_what_was_learnt_is_no_worse(tuned):
    """Qualitative, as in the paper; zeros in the place of the base's own values destroy the skill."""
    model, attached = grafted(tuned, keep=0.05)
    with attached.showing("base"):
        base = loss_of(model)
    with attached.showing("tuned"):
        whole = loss_of(model)
    top = loss_of(model)
    assert whole < top < base
    generator = torch.Generator().manual_seed(0)
    entries = sum(p.numel() for p in attached.parameters().values())
    flat = torch.zeros(entries, dtype=torch.bool)
    flat[torch.randperm(entries, generator=generator)[: round(0.05 * entries)]] = True
    values, drawn = both(tuned), tiny()
    parts = flat.split([before.numel() for before, _ in values.values()])
    with torch.no_grad():
        for (name, (_, after)), chosen in zip(values.items(), parts, strict=True):
            weight = drawn.get_parameter(name)
            weight.copy_(torch.where(chosen.view_as(weight), after, weight))
    assert top < loss_of(drawn)
    steps(model, attached, 10, 2e5)
    learnt = loss_of(model)
    assert learnt < top
    emptied = tiny()
    with torch.no_grad():
        for (name, (_, after)), mask in zip(
            values.items(), attached.masks(attached.parameters()).values(), strict=True
        ):
            emptied.get_parameter(name).copy_(torch.where(mask, after, 0))
    assert loss_of(emptied) > learnt


def test_what_is_saved_is_what_was_computed_and_comes_off_again(tuned, tmp_path):
    model, attached = grafted(tuned)
    steps(model, attached, 5, 2e5)
    model.eval()
    wanted = hidden_states(model, ROWS[0])
    chosen = weights_of(model)
    attached.save(tmp_path, attached.state())
    attached.detach()
    base = tiny().state_dict()
    assert all(bits(value) == bits(base[name]) for name, value in model.state_dict().items())
    again = load_adapter(model, tmp_path)
    assert all(bits(model.get_parameter(name)) == bits(value) for name, value in chosen.items())
    assert torch.equal(hidden_states(model, ROWS[0]), wanted)
    with again.switched_off():
        assert all(torch.equal(value, base[name]) for name, value in model.state_dict().items())
    again.detach()
    assert all(bits(value) == bits(base[name]) for name, value in model.state_dict().items())
    changes, told = sparse.read(tmp_path)
    moved = {n for n, v in chosen.items() if not torch.equal(v, base[n])}
    assert moved == set(changes)
    assert told["among"] == sum(base[name].numel() for name in linears(model))


def test_merged_is_what_was_attached(tuned):
    model, attached = grafted(tuned)
    model.eval()
    wanted = weights_of(model)
    attached.merge()
    assert set(model.state_dict()) == set(tiny().state_dict())
    assert all(bits(model.get_parameter(name)) == bits(value) for name, value in wanted.items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_narrow_scores_choose_the_entries_that_are_saved(tuned, dtype, tmp_path):
    model = tiny(dtype=torch.float32)
    attached = Graft(of=str(tuned)).attach(model, torch.Generator().manual_seed(0))
    cast_parameters(model, dtype)
    optimizer = Optimizer(attached.parameters(), TrainSettings(), dtype, method=attached)
    generator = torch.Generator().manual_seed(1)
    tiny_scores = {n: 1e-8 * torch.randn(p.shape, generator=generator) for n, p in attached.parameters().items()}
    optimizer.load_masters(tiny_scores | {"extra/of": attached.extra()["of"]})
    model.eval()
    wanted = weights_of(model)
    attached.save(tmp_path, optimizer.masters)
    attached.detach()
    load_adapter(model, tmp_path)
    assert all(bits(model.get_parameter(name)) == bits(value) for name, value in wanted.items())


def slightly_moved(folder: Path) -> Path:
    """Less than the steps of bfloat16 in most entries."""
    model, generator = tiny(dtype=torch.float32), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(3e-4 * torch.randn(parameter.shape, generator=generator))
    return stored(model, folder / "model").parent


def test_computing_in_bfloat16_changes_no_entry_and_no_saved_value(tmp_path):
    of = slightly_moved(tmp_path)
    wide, narrow = (grafted(of, dtype=torch.float32) for _ in range(2))
    cast_parameters(narrow[0], torch.bfloat16)
    masks = [attached.masks(attached.parameters()) for _, attached in (wide, narrow)]
    assert sum(int(mask.sum()) for mask in masks[0].values()) > 100
    assert all(torch.equal(mask, masks[1][name]) for name, mask in masks[0].items())
    narrow[1].save(tmp_path / "graft", narrow[1].state())
    after = load_file(of / "model" / "model.safetensors")
    for name, change in sparse.read(tmp_path / "graft")[0].items():
        assert torch.equal(change.values, after[name].flatten()[change.indices])
        assert not torch.equal(change.values, change.values.bfloat16().float())


def test_scores_of_a_bfloat16_model_have_the_gradient_of_the_true_movement(tmp_path):
    """Made of rounded tensors, a quarter of them would be 0."""
    model, attached = grafted(slightly_moved(tmp_path), dtype=torch.float32)
    cast_parameters(model, torch.bfloat16)
    base, after = tiny(dtype=torch.float32), load_file(tmp_path / "model" / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    model.train()
    for name in linears(base):
        layer = model.get_submodule(name.removesuffix(".weight"))
        gradient = torch.randn(layer.weight.shape, generator=generator).bfloat16()
        layer.weight.backward(gradient)
        scores = attached.parameters()[name.removesuffix(".weight") + ".parametrizations.weight.0.scores"]
        share = scores.detach().float().sigmoid()
        sign = torch.where(layer.parametrizations.weight[0].top, -1.0, 1.0)
        wanted = gradient.float() * (after[name] - base.get_parameter(name)) * sign * share * (1 - share)
        assert (scores.grad.float() - wanted).norm() < 0.01 * wanted.norm()


def test_a_base_that_was_rounded_is_refused(tuned):
    with pytest.raises(UnsupportedError, match=r"far below the steps of torch.bfloat16, in which model.layers.0"):
        grafted(tuned, dtype=torch.bfloat16)


def test_the_change_of_a_lora_on_a_tied_head_is_read_and_leaves_the_base_tied(tmp_path):
    def tied():
        return tiny(dtype=torch.float32, tie_word_embeddings=True)

    lora = Lora(rank=4, where=["all-linear", "head"]).attach(tied(), torch.Generator().manual_seed(0))
    lora.load({name: value + 0.05 for name, value in lora.state().items()})
    lora.save(tmp_path / "adapter", lora.state())
    model, before = tied(), tied().state_dict()
    attached = Graft(of=str(tmp_path)).attach(model, torch.Generator().manual_seed(0))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert not attached.match.notes[-1].endswith("; 0.0% lies outside of adapt.where")  # but in the head
    attached.detach()
    assert all(bits(value) == bits(before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("family", ["gemma3_image", "qwen3_moe", "gemma3"])
def test_models_that_are_stored_under_other_names_are_read(family, tmp_path):
    other = tiny(family, dtype=torch.float32)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator))
    other.save_pretrained(tmp_path)
    names = [name for name, _ in other.named_parameters()]
    found, outside = tuned_weights(tiny(family, dtype=torch.float32), tmp_path, names)
    assert outside == pytest.approx(0, abs=1e-12)
    assert all(torch.equal(value, other.get_parameter(name)) for name, value in found.items())


def test_the_seed_decides_the_start_and_nothing_of_the_top(tuned):
    first, again, other = (grafted(tuned, seed=seed)[1] for seed in (0, 0, 1))
    assert all(torch.equal(value, again.state()[n]) for n, value in first.state().items())
    assert not any(torch.equal(value, other.state()[n]) for n, value in first.state().items())
    masks = [each.masks(each.parameters()) for each in (first, other)]
    assert all(torch.equal(mask, masks[1][n]) for n, mask in masks[0].items())


def test_a_resumed_run_goes_on_exactly_and_only_with_the_same_fine_tuned_model(tuned, tmp_path):
    model, attached = grafted(tuned)
    ended = steps(*grafted(tuned), 4, 1e5).masters
    half = steps(model, attached, 2, 1e5)
    saved = {name: value.clone() for name, value in half.moving().items()}
    model, attached = grafted(tuned, seed=7)
    resumed = Optimizer(attached.parameters(), TrainSettings(), torch.float64, method=attached)
    resumed.load(saved, half.state())
    step = lay_out(list(PAIRS.values()), LAYING, "weights")
    for number in (3, 4):
        run_step(model, attached, resumed, step, LAYING, number=number, rate=1e5)
    assert all(torch.equal(value, ended[name]) for name, value in resumed.masters.items())
    other = tiny()
    steps(other, Full().attach(other, torch.Generator()), 1, 1e-3)
    model, attached = grafted(stored(other, tmp_path))
    with pytest.raises(CheckError, match="is not what this run began with"):
        Optimizer(attached.parameters(), TrainSettings(), torch.float64, method=attached).load(saved, {})


def test_the_change_of_a_lora_is_grafted_as_well(tmp_path):
    model = tiny(dtype=torch.float32)
    lora = Lora(rank=4, where="attention").attach(model, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in lora.parameters().values():
            parameter.add_(0.05)
    lora.save(tmp_path / "adapter", lora.state())
    lora.merge()
    wanted = {name: value.clone() for name, value in model.state_dict().items()}
    model, attached = grafted(tmp_path, keep=1.0, dtype=torch.float32, where=["attention", {"layers": 1}])
    base = tiny(dtype=torch.float32).state_dict()
    attached.merge()
    for name, value in model.state_dict().items():
        assert torch.equal(value, wanted[name] if "layers.1.self_attn" in name else base[name]), name


def test_files_that_leave_out_the_backbone_s_name_are_read(tmp_path):
    base, other = tiny_gpt2(), tiny_gpt2()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.01)
    names = {n: p.detach().clone() for n, p in other.named_parameters()}
    save_file({n.removeprefix("transformer."): v for n, v in names.items()}, tmp_path / "model.safetensors")
    found, outside = tuned_weights(base, tmp_path, ["transformer.h.0.attn.c_attn.weight"])
    assert torch.equal(found["transformer.h.0.attn.c_attn.weight"], names["transformer.h.0.attn.c_attn.weight"])
    assert 0 < outside < 1
    attached = Graft(of=str(tmp_path), keep=1.0).attach(base, torch.Generator().manual_seed(0))
    attached.merge()
    assert torch.equal(base.transformer.h[0].attn.c_attn.weight, names["transformer.h.0.attn.c_attn.weight"])


def test_two_grafts_overlap_as_sets_do(tuned, tmp_path):
    for name, keep in (("a", 0.02), ("b", 0.05)):
        _, attached = grafted(tuned, keep=keep)
        attached.save(tmp_path / name, attached.state())
    a, b = (sparse.read(tmp_path / name)[0] for name in "ab")
    among = sparse.read(tmp_path / "a")[1]["among"]
    sets = [{(n, i) for n, c in each.items() for i in c.indices.tolist()} for each in (a, b)]
    found = sparse.overlap(a, b, among)
    assert found.shared == len(sets[0] & sets[1]) == len(sets[0])  # what moved most is nested
    assert found.jaccard == len(sets[0] & sets[1]) / len(sets[0] | sets[1])
    assert found.entries == (len(sets[0]), len(sets[1]))
    assert found.chance == pytest.approx(0.05 * len(sets[0]), rel=1e-3)
    assert found.chance_jaccard < found.jaccard
    assert sparse.overlap(a, a, among).jaccard == 1
    assert sparse.overlap(a, {}, among).jaccard == 0


def test_random_sets_overlap_at_the_level_of_chance():
    def drawn(seed):
        at = torch.randperm(100_000, generator=torch.Generator().manual_seed(seed))[:5_000]
        return {"w": sparse.change_of(torch.zeros(100_000), "zero", at)}

    found = sparse.overlap(drawn(0), drawn(1), 100_000)
    assert found.chance == 250
    assert abs(found.shared - found.chance) < 60
    assert found.chance_jaccard == pytest.approx(250 / 9750)
    with pytest.raises(CheckError, match=r"w has the shapes \[100000\] and \[5\]: these are changes of two models"):
        sparse.overlap(drawn(0), {"w": sparse.change_of(torch.zeros(5), "zero", torch.tensor([1]))}, 5)


def test_bad_input_is_refused_before_anything_moves(tuned, tmp_path):
    rng = torch.Generator().manual_seed(0)
    with pytest.raises(ConfigError, match=r"adapt.of = .*: there is no such folder"):
        Graft(of=str(tmp_path / "none")).attach(tiny(), rng)
    with pytest.raises(ConfigError, match="holds no finished run and no model"):
        Graft(of=str(tmp_path)).attach(tiny(), rng)
    with pytest.raises(ConfigError, match=r"is model.path itself in every module of adapt.where: nothing has moved"):
        Graft(of=str(stored(tiny(), tmp_path / "same"))).attach(tiny(), rng)
    with pytest.raises(CheckError, match=r"differs from model.path by more than that itself: it has another base"):
        Graft(of=str(stored(tiny(seed=5), tmp_path / "other"))).attach(tiny(), rng)
    with pytest.raises(
        CheckError, match=r"is \[32, 48\], and the base has \[32, 64\]: it was fine-tuned from another base"
    ):
        Graft(of=str(tuned)).attach(tiny(intermediate_size=64), rng)
    with pytest.raises(CheckError, match=r"lacks 7 matched tensors, first model.layers.2"):
        Graft(of=str(tuned)).attach(tiny(num_hidden_layers=3), rng)
    for where in ("head", "embeddings-and-head", "all"):
        with pytest.raises(UnsupportedError, match=r"which a graft leaves alone|moves two tables of the base"):
            Graft(of=str(tuned), where=where).attach(tiny(), rng)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "model.safetensors").write_text("no")
    with pytest.raises(CheckError, match="holds no readable model"):
        Graft(of=str(tmp_path / "broken")).attach(tiny(), rng)
    for keep in (0.0, 1.5):
        with pytest.raises(ValueError, match="keep"):
            Graft(of="x", keep=keep)


def test_l1_to_start_pulls_towards_the_base_and_starts_at_nothing():
    model = tiny()
    attached = Full(l1_to_start=1e-3).attach(model, torch.Generator())
    attached.begin(10)
    assert float(attached.penalty().detach()) == 0
    weight = model.get_parameter("model.layers.0.mlp.up_proj.weight")
    with torch.no_grad():
        weight[0, :3] += torch.tensor([0.5, -2.0, 0.0])
    penalty = attached.penalty()
    assert float(penalty.detach()) == pytest.approx(2.5e-3)
    penalty.backward()
    assert weight.grad[0, :3].tolist() == pytest.approx([1e-3, -1e-3, 0.0])
    assert weight.grad.count_nonzero() == 2
    assert sum(int(p.grad.count_nonzero()) for p in attached.parameters().values()) == 2
    assert Full().attach(tiny(), torch.Generator()).penalty() is None


def test_the_l1_start_stays_the_base_in_a_resumed_run():
    """``begin`` is called again when the weights are those of the checkpoint."""
    model = tiny(dtype=torch.float32)
    attached = Full(l1_to_start=1.0, where="norms").attach(model, torch.Generator())
    optimizer = Optimizer(attached.parameters(), TrainSettings(), torch.bfloat16, method=attached)
    optimizer.load_masters({name: value + 1 for name, value in optimizer.masters.items()})
    attached.begin(10)
    count = sum(p.numel() for p in attached.parameters().values())
    assert float(attached.penalty().detach()) == pytest.approx(count, rel=1e-2)


def test_under_l1_fewer_entries_carry_more_of_the_fine_tuning(tuned, tmp_path):
    """AdamW alone spreads the change over all entries."""
    carried = {}
    for strength in (0.0, 1.0):
        model = tiny()
        attached = Full(l1_to_start=strength, where="all-linear").attach(model, torch.Generator())
        attached.begin(12)
        steps(model, attached, 12, 5e-3)
        base = tiny()
        changes = [(model.get_parameter(n) - base.get_parameter(n)).detach().float() for n in linears(base)]
        tops = top_moved(changes, 0.05)
        total = sum(float(change.square().sum()) for change in changes)
        carried[strength] = sum(float((c * top).square().sum()) for c, top in zip(changes, tops, strict=True)) / total
    assert carried[1.0] > 1.2 * carried[0.0]
