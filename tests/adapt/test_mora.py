"""MoRA against its closed formulas, written slowly from the paper, on shapes that do and do not divide."""

import math
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from tests.models import samples, tiny, tiny_gpt2

from frisket.adapt import dense as dense_files
from frisket.adapt.methods import load_adapter
from frisket.adapt.mora import Mora, Square
from frisket.attend.pack import pack
from frisket.errors import CheckError, ConfigError, UnsupportedError
from frisket.hf.forward import hidden_states

COMPRESSIONS = ("truncation", "sharing", "sharing-contiguous", "decoupling", "rotation")
SHAPES = [(12, 8, 4), (12, 12, 6), (13, 7, 4), (7, 13, 6), (9, 23, 4), (6, 6, 6), (10, 31, 8)]  # inputs, outputs, R
ROWS = pack(samples(0, [7, 5]), "isolated", 16)[0]


def group(place, count, size, contiguous):
    """Equation 6: the group of a place among ``count``."""
    if not contiguous:
        return place % size
    bounds = [0]
    for g in range(size):
        bounds.append(bounds[-1] + count // size + (g < count % size))
    return next(g for g in range(size) if bounds[g] <= place < bounds[g + 1])


def turn(position, size):
    """Equation 11: the matrix that turns the pair (i, i + size / 2) by position times its frequency."""
    matrix = torch.zeros(size, size, dtype=torch.float64)
    for i in range(size // 2):
        angle = position * 10_000 ** (-2 * i / size)
        j = i + size // 2
        matrix[i, i] = matrix[j, j] = math.cos(angle)
        matrix[i, j], matrix[j, i] = -math.sin(angle), math.sin(angle)
    return matrix


def dense(kind, inputs, outputs, m):
    """The change of the weight, entry by entry."""
    size = len(m)
    change = torch.zeros(outputs, inputs, dtype=torch.float64)
    stretches = math.ceil(inputs / size)
    for o in range(outputs):
        if kind == "truncation":
            for i in range(size):
                change[o, i] += m[o, i] if o < size else 0.0
            continue
        if kind == "sharing-contiguous":
            for i in range(inputs):
                change[o, i] += m[group(o, outputs, size, True), group(i, inputs, size, True)]
            continue
        for place in range(stretches * size):  # those behind the last input are the first ones again
            i = place % inputs
            if kind == "sharing":
                change[o, i] += m[group(o, outputs, size, False), group(place, inputs, size, False)]
            elif (o % (stretches * size)) // size == place // size:  # the same stretch
                block = m @ turn(place // size, size) if kind == "rotation" else m
                change[o, i] += block[o % size, place % size]
    return change


@pytest.mark.parametrize(("kind", "shape"), list(product(COMPRESSIONS, SHAPES)))
def test_forward_and_merge_are_the_closed_formula(kind, shape):
    inputs, outputs, size = shape
    generator = torch.Generator().manual_seed(0)
    m = torch.randn(size, size, generator=generator, dtype=torch.float64, requires_grad=True)
    x = torch.randn(2, 3, inputs, generator=generator, dtype=torch.float64, requires_grad=True)
    square = Square(kind, inputs, outputs, size)
    change = dense(kind, inputs, outputs, m)
    assert (square.change(m) - change).abs().max() <= 1e-12
    slow, fast = F.linear(x, change), square(x, m)
    assert (fast - slow).abs().max() <= 1e-12
    weights = torch.randn(fast.shape, generator=generator, dtype=torch.float64)
    for one, other in zip(*(torch.autograd.grad((y * weights).sum(), (x, m)) for y in (fast, slow)), strict=True):
        assert (one - other).abs().max() <= 1e-12


@pytest.mark.parametrize(("kind", "shape"), list(product(COMPRESSIONS, [(12, 8, 4), (13, 11, 4), (32, 32, 8)])))
def test_the_rank_of_the_change(kind, shape):
    inputs, outputs, size = shape
    m = torch.randn(size, size, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    rank = int(torch.linalg.matrix_rank(Square(kind, inputs, outputs, size).change(m)))
    assert rank == (min(inputs, outputs) if kind in ("rotation", "decoupling") else size)


@pytest.mark.parametrize("kind", COMPRESSIONS)
def test_as_many_parameters_as_the_formula_says_and_close_to_loras(kind):
    model = tiny(dtype=torch.float32)
    shapes = {n: m.weight.shape for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"}
    attached = Mora(rank=4, compression=kind).attach(model, torch.Generator())
    own = attached.parameters()
    assert {name.removesuffix(".mora") for name in own} == set(shapes)
    for name, (outputs, inputs) in shapes.items():
        size = math.floor(math.sqrt((inputs + outputs) * 4) + 0.5)
        size -= size % 2 if kind == "rotation" else 0
        assert own[f"{name}.mora"].shape == (size, size)
    loras = sum(4 * sum(shape) for shape in shapes.values())
    assert abs(sum(p.numel() for p in own.values()) / loras - 1) < 0.1


def test_in_conv1d_layers_the_change_is_transposed():
    model = tiny_gpt2(torch.float64).eval()
    attached = Mora(rank=3, where=["*.c_attn", "*.c_fc"]).attach(model, torch.Generator())
    model.to(torch.float64)
    with torch.no_grad():
        for parameter in attached.parameters().values():
            parameter.normal_(0, 0.1, generator=torch.Generator().manual_seed(0))
    before = hidden_states(model, ROWS)
    attached.merge()
    assert (hidden_states(model, ROWS) - before).abs().max() <= 1e-10
    assert set(model.state_dict()) == set(tiny_gpt2().state_dict())


def test_a_matrix_larger_than_its_layer_is_refused_with_the_rank_that_fits():
    with pytest.raises(ConfigError, match=r"adapt.rank = 8: the matrix .* would have 20 rows") as refused:
        Mora(rank=8).attach(tiny(), torch.Generator())
    fitting = int(str(refused.value).rpartition("=")[2].rstrip("."))
    Mora(rank=fitting, compression="sharing").attach(tiny(), torch.Generator())
    with pytest.raises(ConfigError, match="the matrix for"):
        Mora(rank=fitting + 1, compression="sharing").attach(tiny(), torch.Generator())
    thin = tiny()
    thin.model.layers[0].mlp.up_proj = torch.nn.Linear(32, 4)
    with pytest.raises(ConfigError, match=r"Leave that layer out of adapt\.where"):
        Mora(rank=1, where="*.up_proj").attach(thin, torch.Generator())


def test_what_it_cannot_adapt_is_refused_before_training():
    with pytest.raises(ConfigError, match="modules but no linear layer, and mora adapts no others"):
        Mora(where="norms").attach(tiny(), torch.Generator())
    with pytest.raises(UnsupportedError, match="expert tensors, and mora adapts linear layers only"):
        Mora(where=["all-linear", "experts"]).attach(tiny("qwen3_moe"), torch.Generator())
    with pytest.raises(UnsupportedError, match="tied to the input embedding"):
        Mora(where="head").attach(tiny(tie_word_embeddings=True), torch.Generator())


def test_an_adapter_of_another_model_is_refused(tmp_path):
    model = tiny()
    attached = Mora(rank=4).attach(model, torch.Generator())
    attached.save(tmp_path, attached.state())
    for other in (tiny(num_hidden_layers=1), tiny(hidden_size=16, head_dim=4), tiny(intermediate_size=64)):
        with pytest.raises(CheckError, match="this model has no layer of that name and size"):
            load_adapter(other, tmp_path)
    (tmp_path / "adapter.safetensors").unlink()
    with pytest.raises(CheckError, match="holds no whole adapter"):
        load_adapter(tiny(), tmp_path)


def test_an_adapter_is_put_on_no_other_base_of_the_same_shape(tmp_path):
    model = tiny(dtype=torch.float32)
    attached = Mora(rank=4).attach(model, torch.Generator())
    attached.save(tmp_path, attached.state())
    with pytest.raises(CheckError, match=r"model\.layers\.0\..*_proj\.weight is not the one that this adapter was"):
        load_adapter(tiny(dtype=torch.float32, seed=7), tmp_path)
    other = tiny(dtype=torch.float32)
    with torch.no_grad():
        other.model.layers[1].mlp.up_proj.weight[3, 5] += 1e-3
    with pytest.raises(CheckError, match=r"layers\.1\.mlp\.up_proj\.weight is not the one that this adapter was"):
        load_adapter(other, tmp_path)
    assert not any(name.endswith(".mora") for name, _ in other.named_parameters())
    with torch.no_grad():
        other.model.layers[1].mlp.up_proj.weight.copy_(model.model.layers[1].mlp.up_proj.weight)
        other.model.norm.weight.add_(1)  # which it does not touch
    load_adapter(other, tmp_path)


@pytest.mark.parametrize("loaded", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("trained", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
def test_its_base_is_known_in_every_type(stored, trained, loaded, tmp_path):
    def base(dtype):
        return tiny(dtype=torch.float32).to(stored).to(dtype)

    attached = Mora(rank=4).attach(base(trained), torch.Generator())
    attached.save(tmp_path, attached.state())
    if stored != trained:
        dense_files.rebase(tmp_path, dict(base(torch.float32).named_modules()))
        with pytest.raises(CheckError, match="is not the one that this adapter was trained beside"):
            dense_files.rebase(tmp_path, dict(tiny(dtype=torch.float32, seed=7).named_modules()))
    load_adapter(base(loaded), tmp_path)
