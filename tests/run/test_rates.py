"""What `auto` becomes: enough steps, the method's rate, fixed for the whole run and recorded."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.run.test_training import recipe, records, stop_at

from frisket.adapt.rates import rate_of
from frisket.errors import CheckError, ConfigError
from frisket.recipe import Recipe, load_recipe
from frisket.run import Given, make_plan, train
from frisket.run.rates import ENOUGH_STEPS, LEAST_TOKENS, MOST_TOKENS, kept, peak_rate, step_size
from frisket.train.optim import rate_at
from frisket.watch import Silent

AUTO = {"step_tokens": "auto", "learning_rate": "auto"}


@pytest.fixture(scope="module")
def chats(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "chats.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records(60)))
    return path


@given(tokens=st.integers(1, 10**9), epochs=st.sampled_from([None, 0.5, 1.0, 3.0]))
def test_a_step_is_the_largest_power_of_two_that_makes_enough_steps(tokens: int, epochs: float | None) -> None:
    step = step_size(Recipe(train={"epochs": epochs}), tokens).tokens
    whole = tokens * (epochs or 1)
    assert step.bit_count() == 1
    assert LEAST_TOKENS <= step <= MOST_TOKENS
    assert step == LEAST_TOKENS or whole >= ENOUGH_STEPS * step
    assert step == MOST_TOKENS or whole < ENOUGH_STEPS * 2 * step


def test_what_the_recipe_says_is_taken() -> None:
    asked = Recipe(train={"step_tokens": 77, "learning_rate": 0.5})
    assert (step_size(asked, 10**9).tokens, peak_rate(asked, 4096, 1).value) == (77, 0.5)
    assert step_size(asked, 1).why == peak_rate(asked, 4096, 1).why == "as the recipe says"


def test_a_run_records_what_it_settled_and_plan_says_the_same(small_model, chats, tmp_path) -> None:
    wanted = recipe(small_model, chats, train={**AUTO, "save_every": 0})
    plan = make_plan(wanted, watcher=Silent())
    summary = train(wanted, out=tmp_path / "run")
    stored = load_recipe(tmp_path / "run").train
    rate = rate_of(wanted.adapt.declared_rate, 32, summary["steps"])
    assert (stored.step_tokens, stored.learning_rate) == (LEAST_TOKENS, rate.value)
    assert summary["train"] == plan.settled.as_dict()
    assert summary["train"]["learning_rate_why"] == rate.why
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert max(record["rate"] for record in metrics) == pytest.approx(rate.value)
    told = "\n".join(plan.lines())
    assert f"rate       {rate.value:g}: LoRA Without Regret" in told
    assert "step       1,024 tokens: the smallest that auto takes" in told


def test_a_resumed_run_keeps_what_it_settled(small_model, chats, tmp_path) -> None:
    wanted = recipe(small_model, chats, train={**AUTO, "epochs": 3})
    with pytest.raises(KeyboardInterrupt):
        train(wanted, out=tmp_path, given=Given(on_step=stop_at(1)))
    file = tmp_path / "recipe.yaml"
    settled = load_recipe(tmp_path).train.learning_rate
    file.write_text(file.read_text().replace(f"learning_rate: {settled}", "learning_rate: 0.0123"))
    assert kept(wanted, tmp_path).train.learning_rate == 0.0123
    summary = train(wanted, out=tmp_path, resume=True)
    assert summary["train"]["learning_rate"] == 0.0123
    assert summary["train"]["learning_rate_why"] == "as the recipe says"  # it is not the number that was settled
    other = recipe(small_model, chats, train={"step_tokens": 512, "learning_rate": "auto", "epochs": 3})
    with pytest.raises(ConfigError, match="holds a run of another recipe"):
        train(other, out=tmp_path, resume=True)


def test_a_resumed_run_keeps_the_reasons_too(small_model, chats, tmp_path) -> None:
    wanted = recipe(small_model, chats, train={**AUTO, "max_steps": 2})
    whole = train(wanted, out=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(wanted, out=tmp_path / "stopped", given=Given(on_step=stop_at(1)))
    resumed = train(wanted, out=tmp_path / "stopped", resume=True)
    assert resumed["train"] == whole["train"]
    assert "LoRA Without Regret" in resumed["train"]["learning_rate_why"]
    assert json.loads((tmp_path / "stopped" / "settled.json").read_text()) == whole["train"]


@pytest.mark.parametrize("name", ["learning_rate", "step_tokens"])
def test_a_run_with_a_number_is_not_resumed_with_auto(small_model, chats, tmp_path, name) -> None:
    stated = recipe(small_model, chats, train={"max_steps": 2, "step_tokens": 512, "learning_rate": 1e-3})
    with pytest.raises(KeyboardInterrupt):
        train(stated, out=tmp_path, given=Given(on_step=stop_at(1)))
    train_settings = stated.train.model_copy(update={name: "auto"})
    with pytest.raises(ConfigError, match="holds a run of another recipe"):
        train(stated.model_copy(update={"train": train_settings}), out=tmp_path, resume=True)
    assert train(stated, out=tmp_path, resume=True)["train"][f"{name}_why"] == "as the recipe says"


def test_auto_is_refused_for_plain_sgd_which_learns_with_the_rate_that_is_named() -> None:
    asked = Recipe(train={"optimizer": "sgd"})
    with pytest.raises(ConfigError, match=r"are AdamW's, with which sgd hardly learns.\n.*train.learning_rate=1$"):
        peak_rate(asked, 256, 100)
    assert peak_rate(Recipe(train={"optimizer": "sgd", "learning_rate": 1}), 256, 100).value == 1


def test_overfit_says_that_a_step_holds_all_samples(small_model, chats, tmp_path) -> None:
    wanted = recipe(small_model, chats, train={**AUTO, "max_steps": 1, "learning_rate": 0.01})
    with pytest.raises(CheckError):
        train(wanted, out=tmp_path, overfit=3)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["train"]["step_tokens"] == summary["tokens"]["flat"]
    assert summary["train"]["step_tokens_why"] == "--overfit takes all of its samples in every step"


@pytest.mark.parametrize(
    "changes", [{}, {"schedule": "linear"}, {"schedule": "constant"}, {"optimizer": "schedule-free"}]
)
def test_the_rates_of_a_whole_run_sum_to_what_is_declared_whatever_their_schedule(changes) -> None:
    asked = Recipe(adapt={"method": "mft"}, train={"warmup": 0, "final_rate": 0, **changes})
    rate = peak_rate(asked, 256, 200)
    summed = sum(rate_at(step, 200, rate.value, asked.train) for step in range(1, 201))
    assert summed == pytest.approx(asked.adapt.declared_rate.value, rel=0.05)
    assert ("does not fall" in rate.why) == (rate_at(200, 200, 1.0, asked.train) == 1)
