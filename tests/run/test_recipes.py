"""Every recipe of the repository plans on the bundled model; those with new parts train."""

import importlib.util
import json
from pathlib import Path

import pytest

from frisket.errors import UnsupportedError
from frisket.recipe import Recipe, dump, load_recipe
from frisket.run import make_plan, train
from frisket.watch import Silent

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
HAS_BITSANDBYTES = importlib.util.find_spec("bitsandbytes") is not None
SMALL = ["evaluate=off", "data.0.hold_out=0", "train.step_tokens=512", "attend.row_tokens=256", "train.max_steps=2"]


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    path = tmp_path / "chats.jsonl"
    turns = [[{"role": "user", "content": f"Echo {n}"}, {"role": "assistant", "content": f"{n}!"}] for n in range(40)]
    path.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in turns))
    return path


def small(file: Path, chats: Path, *words: str) -> Recipe:
    """A recipe on the bundled model and forty short samples."""
    data = {
        "gsm8k": {"question": "What is 2 + 3?", "answer": "It is 5. #### 5"},
        "continued-pretraining": {"text": "All work and no play makes Jack a dull boy. " * 20},
    }.get(file.stem)
    if data:
        chats = chats.with_name("other.jsonl")
        chats.write_text("".join(json.dumps(data) + "\n" for _ in range(40)))
    if file.stem == "continued-pretraining":
        words = (*words, "adapt.rank=128", "adapt.alpha=256")  # its 256 are above the bundled base's keys
    recipe = load_recipe(file, [*SMALL, *words], model="bundled", data=[str(chats)])
    if recipe.model.load != "none" and not HAS_BITSANDBYTES:
        recipe = load_recipe(file, [*SMALL, *words, "model.load=none"], model="bundled", data=[str(chats)])
    return recipe


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_every_recipe_says_what_it_is_and_plans_on_the_bundled_model(file, chats, tmp_path):
    lines = file.read_text().splitlines()
    assert all(line.startswith("#") for line in lines[:2])
    assert f"frisket train recipes/{file.name}" in lines[1]
    recipe = small(file, chats, "attend.compare=false")
    (tmp_path / "again.yaml").write_text(dump(recipe))
    assert load_recipe(tmp_path / "again.yaml").model_dump(exclude={"name"}) == recipe.model_dump(exclude={"name"})
    plan = make_plan(recipe, watcher=Silent())
    assert plan.steps == 2
    assert plan.moving


@pytest.mark.parametrize("name", ["qlora-24gb", "full-small", "continued-pretraining"])
def test_recipes_with_parts_of_their_own_train(name, chats, tmp_path):
    (file,) = (file for file in RECIPES if file.stem == name)
    recipe = small(file, chats, "train.compute=fp32", "train.learning_rate=1e-3")
    summary = train(recipe, out=tmp_path / "out", watcher=Silent())
    assert summary["steps"] == 2
    assert summary["optimizer"]["name"] == recipe.train.optimizer
    assert summary["optimizer"]["state_bytes"] > 0
    assert summary["model"]["parameters"] >= 3_541_248  # of the base, packed weights counted as what they stand for
    assert (tmp_path / "out" / summary["artifacts"]["model" if name == "full-small" else "adapter"]).is_dir()


def test_a_stopped_schedule_free_run_resumes_byte_for_byte(chats, tmp_path):
    (file,) = (file for file in RECIPES if file.stem == "demo")
    masters = []
    for name in ("whole", "stopped"):
        recipe = small(file, chats, "train.max_steps=4", "train.save_every=2", "train.optimizer=schedule-free")
        out = tmp_path / name
        if name == "stopped":
            with pytest.raises(KeyboardInterrupt):
                train(recipe, out=out, watcher=_Stop())
        train(recipe, out=out, resume=name == "stopped", watcher=Silent())
        last = sorted(out.glob("checkpoints/step-*"))[-1]
        masters.append([(last / f"{part}.safetensors").read_bytes() for part in ("moving", "optimizer")])
        masters[-1].append((out / "metrics.jsonl").read_bytes())
    assert masters[0] == masters[1]


class _Stop(Silent):
    def step(self, record):
        if record.step == 3:
            raise KeyboardInterrupt


def test_a_layer_in_four_bits_is_refused_to_full_before_anything_is_loaded(chats):
    (file,) = (file for file in RECIPES if file.stem == "full-small")
    quantised = load_recipe(None, ["model.load=4bit"]).model
    with pytest.raises(UnsupportedError, match=r"model.load = 4bit: adapt.method = full moves the base's own weights"):
        make_plan(small(file, chats).model_copy(update={"model": quantised}), watcher=Silent())
