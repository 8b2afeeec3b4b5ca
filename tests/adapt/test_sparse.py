"""The sparse artefact: applied once, taken back bit for bit, refused on any other base."""

import json

import numpy as np
import pytest
import torch

from frisket.adapt import sparse
from frisket.adapt.applied import Applied
from frisket.errors import CheckError

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def weights(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(6, 10, generator=generator).to(dtype) for name in ("a.weight", "b.weight")}


def changes_of(base):
    at = torch.tensor([41, 3, 17])
    return {
        "a.weight": sparse.change_of(base["a.weight"], "add", at, torch.tensor([0.5, -1.0, 2.0])),
        "b.weight": sparse.change_of(base["b.weight"], "zero", torch.arange(0, 60, 2)),
    }


@pytest.mark.parametrize("dtype", DTYPES)
def test_written_read_applied_and_taken_back_bit_for_bit(dtype, tmp_path):
    base = weights(dtype)
    sparse.write(tmp_path, "spiel", changes_of(base), {"density": 0.1})
    changes, settings = sparse.read(tmp_path)
    assert settings == {"density": 0.1}
    now = {name: tensor.clone() for name, tensor in base.items()}
    old = sparse.apply(now, changes)
    assert all(torch.equal(old[name], base[name].flatten()[change.indices]) for name, change in changes.items())
    moved = {name: (now[name] != base[name]).flatten().nonzero().flatten().tolist() for name in base}
    assert moved == {"a.weight": [3, 17, 41], "b.weight": list(range(0, 60, 2))}
    assert now["a.weight"].flatten()[41] == (base["a.weight"].flatten()[41].double() + 0.5).to(dtype)
    assert not now["b.weight"].flatten()[::2].any()
    assert sparse.undo(now, changes) == 2
    assert all(torch.equal(now[name], tensor) for name, tensor in base.items())
    assert sparse.undo(now, changes) == 0


def test_a_base_of_another_type_is_known_and_restored():
    base = weights()
    changes = changes_of(base)
    narrow = {name: tensor.to(torch.bfloat16) for name, tensor in base.items()}
    start = {name: tensor.clone() for name, tensor in narrow.items()}
    sparse.apply(narrow, changes)
    half = weights(torch.bfloat16)
    wide = {name: tensor.float() for name, tensor in half.items()}
    sparse.apply(wide, changes_of(half))
    assert sparse.undo({"b.weight": narrow["b.weight"]}, {"b.weight": changes["b.weight"]}) == 1
    assert torch.equal(narrow["b.weight"], start["b.weight"])


def test_applying_twice_is_refused_for_an_addition_and_idempotent_for_the_rest():
    base = weights()
    changes = changes_of(base)
    sparse.apply(base, changes)
    with pytest.raises(CheckError, match="has this change already: adding it twice"):
        sparse.apply(base, changes)
    before = base["b.weight"].clone()
    replaced = sparse.change_of(base["a.weight"], "replace", torch.tensor([7]), torch.tensor([9.0]))
    both = {"a.weight": replaced, "b.weight": changes["b.weight"]}
    first = sparse.apply(base, both)
    again = sparse.apply(base, both)
    assert all(torch.equal(first[name], again[name]) for name in both)
    assert torch.equal(base["b.weight"], before)
    assert base["a.weight"].flatten()[7] == 9.0


def test_another_base_is_refused_and_nothing_is_changed():
    base = weights()
    changes = changes_of(base)
    base["b.weight"][0, 1] += 1
    before = {name: tensor.clone() for name, tensor in base.items()}
    with pytest.raises(CheckError, match=r"b\.weight is not the tensor that this change was made for"):
        sparse.apply(base, changes)
    with pytest.raises(CheckError, match=r"b\.weight does not hold this change"):
        sparse.undo(base, changes)
    assert all(torch.equal(base[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize(
    ("model", "told"),
    [({}, "is not there in this model"), ({"a.weight": torch.zeros(3, 10)}, r"is \[3, 10\] in this model")],
)
def test_tensors_of_other_shapes_are_refused(model, told):
    with pytest.raises(CheckError, match=rf"the adapter changes a\.weight of shape \[6, 10\], which {told}"):
        sparse.apply(model, changes_of(weights()))


def test_few_entries_are_indices_and_many_are_packed_bits(tmp_path):
    base = {"w": torch.randn(64, 64)}
    for count, part, size in ((100, "indices", 400), (2000, "bits", 512)):
        at = torch.randperm(4096)[:count]
        folder = tmp_path / part
        sparse.write(folder, "mft", {"w": sparse.change_of(base["w"], "zero", at)}, {})
        (name,) = (tensors := sparse.load_file(folder / sparse.VALUES))
        assert name == f"w.{part}"
        assert tensors[name].numel() * tensors[name].itemsize == size
        assert torch.equal(sparse.read(folder)[0]["w"].indices, at.sort().values)


def test_a_broken_artefact_is_refused(tmp_path):
    sparse.write(tmp_path, "spiel", changes_of(weights()), {})
    header = json.loads((tmp_path / sparse.HEADER).read_text())
    header["tensors"]["a.weight"]["entries"] = 4
    (tmp_path / sparse.HEADER).write_text(json.dumps(header))
    with pytest.raises(CheckError, match=r"holds no whole sparse adapter: .*3 entries instead of 4"):
        sparse.read(tmp_path)
    (tmp_path / sparse.OLD).unlink()
    with pytest.raises(CheckError, match="holds no whole sparse adapter"):
        sparse.read(tmp_path)


def _with_tensors(folder, file, **changed):
    tensors = {name: value.clone() for name, value in sparse.load_file(folder / file).items()}
    sparse.save_file({name: value for name, value in (tensors | changed).items() if value is not None}, folder / file)


def _with_header(folder, **told):
    header = json.loads((folder / sparse.HEADER).read_text())
    header["tensors"]["a.weight"] |= told
    (folder / sparse.HEADER).write_text(json.dumps(header))


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda at: _with_header(at, mode="subtract"), "mode subtract"),
        (lambda at: _with_header(at, mode="zero"), "mode zero"),
        (lambda at: _with_header(at, shape=[6, 6]), "2 entries instead of 3"),
        (lambda at: _with_header(at, shape="6x10"), "multiply"),
        (lambda at: _with_tensors(at, sparse.OLD, **{"a.weight": torch.zeros(2)}), "2 entries instead of 3"),
        (lambda at: _with_tensors(at, sparse.OLD, **{"a.weight": None}), "a.weight"),
        (lambda at: _with_tensors(at, sparse.VALUES, **{"a.weight.values": torch.zeros(4)}), "4 entries instead of 3"),
        (lambda at: _with_tensors(at, sparse.VALUES, **{"a.weight.values": None}), "mode add"),
        (
            lambda at: _with_tensors(at, sparse.VALUES, **{"a.weight.indices": torch.tensor([3, 3, 41])}),
            "indices do not ascend",
        ),
        (
            lambda at: _with_tensors(at, sparse.VALUES, **{"a.weight.indices": torch.tensor([-1, 3, 41])}),
            "an index outside",
        ),
        (lambda at: (at / sparse.VALUES).write_bytes(b"half a file"), "holds no whole"),
        (lambda at: (at / sparse.HEADER).write_text("[]"), "list indices"),
        (lambda at: (at / sparse.HEADER).write_text("{"), "Expecting"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(damage, told, tmp_path):
    base = weights()
    at = torch.tensor([41, 3, 17])
    sparse.write(tmp_path, "spiel", {"a.weight": sparse.change_of(base["a.weight"], "add", at, torch.ones(3))}, {})
    damage(tmp_path)
    with pytest.raises(CheckError, match="holds no whole sparse adapter: ") as raised:
        sparse.read(tmp_path)
    assert told in str(raised.value)


def test_what_was_never_seen_in_its_own_type_is_not_said_to_be_restored():
    """The old values of a change made in bf16 are not those of an fp32 base."""
    base = weights()
    narrow = {name: tensor.to(torch.bfloat16) for name, tensor in base.items()}
    changes = {"b.weight": changes_of(narrow)["b.weight"]}
    now = {name: tensor.clone() for name, tensor in base.items()}
    sparse.apply(now, changes)
    before = {name: tensor.clone() for name, tensor in now.items()}
    with pytest.raises(CheckError, match=r"b\.weight would not be what it was before the change"):
        sparse.undo(now, changes)
    assert all(torch.equal(now[name], tensor) for name, tensor in before.items())
    exact = {name: tensor.float() for name, tensor in narrow.items()}
    sparse.apply(exact, changes)
    sparse.undo(exact, changes)
    assert all(torch.equal(exact[name], tensor.float()) for name, tensor in narrow.items())


@pytest.mark.parametrize("stored", [torch.float32, torch.float16])
def test_a_change_made_in_bf16_becomes_one_of_the_base_as_it_is_stored(stored):
    base = weights(stored)
    changes = changes_of({name: tensor.to(torch.bfloat16) for name, tensor in base.items()})
    again = sparse.rebased(changes, {name: tensor.float() for name, tensor in base.items()})
    now = {name: tensor.clone() for name, tensor in base.items()}
    sparse.apply(now, again)
    assert sparse.undo(now, again) == 2
    assert all(torch.equal(now[name], tensor) for name, tensor in base.items())
    narrow = {name: tensor.to(torch.bfloat16) for name, tensor in base.items()}
    sparse.apply(narrow, again)
    assert narrow["a.weight"].flatten()[3] == (base["a.weight"].flatten()[3].to(torch.bfloat16).float() - 1).bfloat16()
    with pytest.raises(CheckError, match=r"a\.weight is not the tensor that this change was made for"):
        sparse.rebased(changes, {name: tensor + 1 for name, tensor in base.items()})


def test_a_dense_adapter_is_not_a_sparse_one(tmp_path):
    assert not sparse.is_sparse(tmp_path)
    (tmp_path / sparse.HEADER).write_text(json.dumps({"method": "mora", "frisket": "0", "settings": {}}))
    assert not sparse.is_sparse(tmp_path)
    sparse.write(tmp_path, "spiel", changes_of(weights()), {})
    assert sparse.is_sparse(tmp_path)


def test_a_change_needs_unique_indices_and_its_values():
    weight = torch.zeros(4)
    with pytest.raises(ValueError, match="unique indices"):
        sparse.change_of(weight, "zero", torch.tensor([1, 1]))
    with pytest.raises(ValueError, match="and values but for `zero`"):
        sparse.change_of(weight, "add", torch.tensor([1]))


def test_equal_digests_mean_equal_values():
    weight = torch.from_numpy(np.linspace(-1, 1, 7, dtype=np.float32))
    assert sparse.is_digest_of(weight.double(), sparse.digests(weight))
    assert not sparse.is_digest_of(weight + 1e-7, sparse.digests(weight))
    assert not sparse.is_digest_of(weight.to(torch.bfloat16), sparse.digests(weight.double()) | {"bfloat16": "x"})


class Holder(torch.nn.Module):
    """Two weights under the names of the changes."""

    def __init__(self, base):
        super().__init__()
        self.a, self.b = torch.nn.Module(), torch.nn.Module()
        for name, tensor in base.items():
            self.get_submodule(name[0]).weight = torch.nn.Parameter(tensor.clone(), requires_grad=False)


@pytest.mark.parametrize("loaded", DTYPES)
@pytest.mark.parametrize("trained", DTYPES)
@pytest.mark.parametrize("stored", DTYPES[1:])
def test_stored_trained_and_loaded_in_any_types_it_goes_on_and_off_bit_for_bit(stored, trained, loaded):
    files = weights(stored)
    changes = changes_of({name: tensor.to(trained) for name, tensor in files.items()})
    if stored != trained:
        changes = sparse.rebased(changes, {name: tensor.float() for name, tensor in files.items()})
    base = {name: tensor.to(loaded) for name, tensor in files.items()}
    model = Holder(base)
    own = dict(model.named_parameters())
    applied = Applied(model, changes)
    assert own["a.weight"].flatten()[41] == (base["a.weight"].flatten()[41].double() + 0.5).to(loaded)
    assert not own["b.weight"].flatten()[::2].any()
    with pytest.raises(CheckError, match=r"a\.weight has this change already"):
        Applied(model, changes)
    changed = {name: tensor.detach().clone() for name, tensor in own.items()}
    with applied.switched_off():
        assert all(torch.equal(own[name], tensor) for name, tensor in base.items())
    assert all(torch.equal(own[name], tensor) for name, tensor in changed.items())
    applied.detach()
    applied.detach()
    assert all(torch.equal(own[name], tensor) for name, tensor in base.items())


def test_a_model_that_was_cast_after_the_change_is_the_cast_base_again():
    model, base = Holder(weights()), weights()
    applied = Applied(model, changes_of(base))
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    changed = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    with applied.switched_off():
        assert all(torch.equal(tensor, base[name].bfloat16()) for name, tensor in model.named_parameters())
    assert all(torch.equal(tensor, changed[name]) for name, tensor in model.named_parameters())


def test_a_model_merged_into_narrow_files_and_opened_wider_is_said_to_have_the_change():
    base = weights(torch.bfloat16)
    changes = sparse.rebased(changes_of(base), {name: tensor.float() for name, tensor in base.items()})
    merged = {name: tensor.clone() for name, tensor in base.items()}
    sparse.apply(merged, changes)
    opened = {name: tensor.float() for name, tensor in merged.items()}
    with pytest.raises(CheckError, match=r"a\.weight has this change already"):
        sparse.apply(opened, changes)
    assert sparse.undo(opened, changes) == 2
    assert all(torch.equal(opened[name], tensor.float()) for name, tensor in base.items())


@pytest.mark.parametrize("part", ["values", "indices"])
def test_entries_that_are_not_those_that_were_saved_are_not_applied(part, tmp_path):
    base = weights()
    sparse.write(tmp_path, "spiel", changes_of(base), {})
    other = torch.full((3,), 7.0) if part == "values" else torch.tensor([3, 18, 41])
    _with_tensors(tmp_path, sparse.VALUES, **{f"a.weight.{part}": other})
    now = {name: tensor.clone() for name, tensor in base.items()}
    with pytest.raises(CheckError, match=r"a\.weight would not become what it was in training"):
        sparse.apply(now, sparse.read(tmp_path)[0])
    assert all(torch.equal(now[name], tensor) for name, tensor in base.items())


def test_a_weight_that_does_not_lie_in_one_piece_is_changed_and_restored_where_it_lies():
    base = weights()
    changes = changes_of(base)
    plain = {name: tensor.clone() for name, tensor in base.items()}
    turned = {name: tensor.T.contiguous().T for name, tensor in base.items()}
    places = {name: tensor.data_ptr() for name, tensor in turned.items()}
    assert not turned["a.weight"].is_contiguous()
    sparse.apply(plain, changes)
    sparse.apply(turned, changes)
    assert all(torch.equal(turned[name], tensor) for name, tensor in plain.items())
    assert {name: tensor.data_ptr() for name, tensor in turned.items()} == places
    assert sparse.undo(turned, changes) == 2
    assert all(torch.equal(turned[name], tensor) for name, tensor in base.items())
