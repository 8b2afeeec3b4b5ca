"""The masks of the experiment on grafting, and that its cells come from real runs of the product."""

import pytest
import torch
from lab.experiment import Arm
from lab.grafting import ARMS, EXPERIMENT, at_indices, masks, picture

from frisket import bundled
from frisket.adapt import sparse
from lab import grafting

SHAPES = {"a": (6, 5), "b": (4, 5)}
BASE = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
AFTER = {name: torch.arange(1.0, 21.0 if name == "b" else 31.0).view(shape) for name, shape in SHAPES.items()}


def test_every_penalty_and_size_has_every_mask() -> None:
    assert len(ARMS) == 2 * 3 * 4 + 2
    assert len({tuple(arm.values()) for arm in ARMS.values()}) == len(ARMS)
    assert {each.metric for each in EXPERIMENT.expectations} == {"kept", "kept_loss", "calibration_error"}


def test_random_and_most_moved_masks_are_of_one_size() -> None:
    arm = {"l1": 0.0, "keep": 0.1}
    top = masks(BASE, AFTER, arm | {"mask": "most moved"}, 0)
    drawn = [masks(BASE, AFTER, arm | {"mask": "random"}, seed) for seed in (0, 0, 1)]
    assert [sum(int(mask.sum()) for mask in each.values()) for each in (top, *drawn)] == [5] * 4
    assert top["a"].flatten().nonzero()[:, 0].tolist() == [25, 26, 27, 28, 29]
    flat = [torch.cat([mask.flatten() for mask in each.values()]) for each in drawn]
    assert torch.equal(flat[0], flat[1])
    assert not torch.equal(flat[0], flat[2])


def test_a_learnt_mask_is_held_against_as_many_of_the_most_moved(tmp_path, monkeypatch) -> None:
    change = sparse.change_of(BASE["b"], "replace", torch.tensor([0, 3, 7]), torch.ones(3))
    sparse.write(tmp_path / "adapter", "graft", {"b": change}, {})
    monkeypatch.setattr(grafting, "learnt", lambda l1, seed, keep: tmp_path)
    arm = {"l1": 0.0, "keep": 0.02}
    learnt = masks(BASE, AFTER, arm | {"mask": "learnt"}, 0)
    assert [int(mask.sum()) for mask in learnt.values()] == [0, 3]
    assert learnt["b"].flatten()[[0, 3, 7]].all()
    same = masks(BASE, AFTER, arm | {"mask": "most moved, as many"}, 0)
    assert same["a"].flatten().nonzero()[:, 0].tolist() == [27, 28, 29]
    assert not same["b"].any()


def test_a_tensor_that_nothing_touches_has_an_empty_mask() -> None:
    assert not at_indices(BASE["a"], None).any()


def test_the_picture_has_a_line_for_every_kind_of_mask(tmp_path) -> None:
    values = [{"entries": 10.0, "kept_loss": 0.2}, {"entries": 20.0, "kept_loss": 0.4}]
    runs = [{"arm": arm, "values": each} for arm in ARMS for each in values]
    picture({"runs": runs}, tmp_path / "p.svg")
    text = (tmp_path / "p.svg").read_text(encoding="utf-8")
    assert all(f"{penalty}, {mask}" in text for penalty in grafting.PENALTIES for mask in grafting.MASKS)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_cell_is_measured_end_to_end(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(grafting, "WORK", tmp_path)
    few = ["train.threads=1", "train.max_steps=2", "train.step_tokens=256", "data.0.hold_out=4"]
    monkeypatch.setattr(grafting, "TUNE", [*grafting.TUNE, *few])
    monkeypatch.setattr(grafting, "SEARCH", [*grafting.SEARCH, *few])
    held = tmp_path / "held.jsonl"
    held.write_text("".join(bundled.unseen_path().read_text(encoding="utf-8").splitlines(keepends=True)[:3]))
    monkeypatch.setattr(bundled, "unseen_path", lambda: held)
    grafting.judge.cache_clear()
    grafting.judged.cache_clear()
    try:
        values = {
            mask: grafting.measure(Arm(mask, {"l1": 1e-3, "keep": keep, "mask": mask}), 0)
            for mask, keep in {"learnt": 0.01, "most moved": 1.0}.items()
        }
    finally:
        grafting.judge.cache_clear()
        grafting.judged.cache_clear()
    assert values["most moved"]["loss"] == pytest.approx(values["most moved"]["tuned_loss"], abs=1e-6)
    assert values["learnt"]["loss"] != values["learnt"]["tuned_loss"]
    assert len([each for each in tmp_path.iterdir() if each.is_dir()]) == 2
