"""Stopping early, and giving back the best step's weights: from what was measured, the same after a resume."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from frisket.errors import ConfigError
from frisket.recipe import Recipe
from frisket.run import Given, best, train
from frisket.train import checkpoint
from frisket.watch import Silent

from .test_training import adapter, records, stop_at


class Said(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


@pytest.fixture(scope="module")
def chats(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "chats.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records(30)))
    lines = [{"prompt": "alpha beta", "completion": text} for text in ("zq 17", "alpha QX", "0 1")]
    (path.parent / "foreign.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def recipe(model: Path, chats: Path, evaluate: dict | str, **train_settings) -> Recipe:
    """What is measured is not what is taught: its loss falls as turns are learned to end, and soon rises."""
    settings = {"max_steps": 12, "step_tokens": 300, "learning_rate": 0.1, "compute": "fp32", "warmup": 0}
    if isinstance(evaluate, dict):
        foreign = [{"name": "foreign", "path": str(chats.parent / "foreign.jsonl")}]
        evaluate = {"every": 1, "learning": foreign, "forgetting": [], "samples": 1, "sample_tokens": 3} | evaluate
    return Recipe.model_validate(
        {
            "model": {"path": str(model)},
            "data": [{"path": str(chats)}],
            "adapt": {"method": "lora", "rank": 4},
            "train": settings | {"schedule": "constant", "save_every": 1, "keep": 100} | train_settings,
            "evaluate": evaluate,
        }
    )


def record(step: int, loss: float | None) -> dict:
    return {"step": step, "learning": {"foreign": {} if loss is None else {"loss": loss}}}


def test_the_standing_counts_what_came_after_the_lowest_loss():
    losses = [3.0, 2.0, 2.0, None, 2.5]
    history = [record(10 * n, loss) for n, loss in enumerate(losses, 1)]
    found = [best.standing(history[:n], "foreign") for n in range(6)]
    assert found[0] is None
    assert [(s.step, s.loss, s.since) for s in found[1:] if s] == [
        (10, 3.0, 0), (20, 2.0, 0), (20, 2.0, 1), (20, 2.0, 2), (20, 2.0, 3),
    ]  # fmt: skip
    rule = best.Rule("foreign", 2, "last")
    assert [best.is_over(history[:n], rule) for n in range(6)] == [False] * 4 + [True, True]
    assert not best.is_over(history, best.Rule("foreign", None, "best"))


@pytest.fixture(scope="module")
def stopped(small_model, chats, tmp_path_factory) -> tuple[Path, dict, list[str]]:
    """A run that stops early and gives back its best step."""
    out = tmp_path_factory.mktemp("out") / "run"
    said = Said()
    summary = train(recipe(small_model, chats, {"stop_after": 2, "keep": "best"}), out=out, watcher=said)
    return out, summary, said.lines


def test_a_run_without_improvement_stops(stopped):
    out, summary, said = stopped
    told = summary["best"]
    lines = map(json.loads, (out / "evaluations.jsonl").read_text().splitlines())
    losses = {line["step"]: line["learning"]["foreign"]["loss"] for line in lines}
    assert summary["steps"] == told["ended"] == told["step"] + 2 < told["of"] == 12
    assert losses[told["step"]] == told["loss"] == min(losses.values())
    assert told["stopped"]
    assert told["without_improvement"] == 2
    (line,) = [line for line in said if line.startswith("best ")]
    assert f"at step {told['step']} of 12: loss of foreign {told['loss']:.4f}; stopped after 2 without" in line


def test_the_best_weights_are_the_result_bit_for_bit(stopped):
    out, summary, _ = stopped
    then = load_file(out / "checkpoints" / f"step-{summary['best']['step']:08d}" / "moving.safetensors")
    last = load_file(checkpoint.complete(out)[-1] / "moving.safetensors")
    saved = load_file(out / "adapter" / "adapter_model.safetensors")
    given = sorted(saved.values(), key=lambda value: value.flatten().tolist())
    assert all(map(torch.equal, given, sorted(then.values(), key=lambda value: value.flatten().tolist())))
    assert any(not torch.equal(then[name], last[name]) for name in then)
    assert summary["learning"]["foreign"]["after"]["loss"] == pytest.approx(summary["best"]["loss"], rel=1e-6)
    assert best.result_of(out).name == f"best-{summary['best']['step']:08d}"


def test_a_resumed_run_stops_at_the_same_step_with_the_same_weights(small_model, chats, stopped, tmp_path):
    out, summary, _ = stopped
    wanted = recipe(small_model, chats, {"stop_after": 2, "keep": "best"}, save_every=2, keep=1)
    for at in (1, summary["best"]["step"] + 1, summary["steps"]):
        again = tmp_path / f"again-{at}"
        with pytest.raises(KeyboardInterrupt):
            train(wanted, out=again, given=Given(on_step=stop_at(at)), resume=True)
        assert train(wanted, out=again, resume=True)["best"] == summary["best"]
        assert adapter(again) == adapter(out)
        for name in ("evaluations.jsonl", "metrics.jsonl", "samples.jsonl"):
            assert (again / name).read_bytes() == (out / name).read_bytes()


def test_a_run_that_was_killed_after_it_stopped_makes_no_further_step(
    small_model, chats, stopped, tmp_path, monkeypatch
):
    from frisket.run import finishing

    out, summary, _ = stopped
    wanted = recipe(small_model, chats, {"stop_after": 2, "keep": "best"})
    with monkeypatch.context() as patched:
        patched.setattr(finishing, "check_moved", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train(wanted, out=tmp_path / "killed")
    assert train(wanted, out=tmp_path / "killed", resume=True)["steps"] == summary["steps"]
    assert adapter(tmp_path / "killed") == adapter(out)


def test_only_what_a_resume_can_need_is_kept(tmp_path):
    """Losses fall until step 2 and again at 6; a checkpoint of step 4 still begins with step 2's weights."""
    history = []
    state = checkpoint.State(0, 0, 0, "", 9, "", "", 0.0, {})
    for step, loss in ((1, 3.0), (2, 2.0), (4, 2.5), (6, 1.0)):
        history.append(record(step, loss))
        masters = {"w": torch.full((2,), float(step))}
        if best.standing(history, "foreign").step == step:
            best.keep(tmp_path, masters, history, "foreign")
        if step == 4:
            checkpoint.save(tmp_path, checkpoint.State(**{**vars(state), "step": 4}), masters, {}, keep=1)
    assert sorted(path.name for path in (tmp_path / "checkpoints").glob("best-*")) == ["best-00000002", "best-00000006"]
    best.refuse_if_lost(tmp_path, best.standing(history, "foreign"))
    with pytest.raises(ConfigError, match="its weights were not kept"):
        best.refuse_if_lost(tmp_path, best.standing(history[:1], "foreign"))


def test_the_last_step_may_be_the_best(small_model, chats, tmp_path):
    easy = recipe(small_model, chats, {"keep": "best", "every": 2}, learning_rate=1e-4, max_steps=3)
    summary = train(easy, out=tmp_path / "out")
    assert summary["best"]["step"] == 3
    assert not summary["best"]["stopped"]
    assert best.result_of(tmp_path / "out").name == "step-00000003"


def test_without_a_wish_the_last_step_is_kept_and_a_better_one_named(small_model, chats, tmp_path):
    said = Said()
    summary = train(recipe(small_model, chats, {}, max_steps=4), out=tmp_path / "out", watcher=said)
    assert summary["steps"] == 4
    assert summary["best"]["kept"] == "last"
    assert not list((tmp_path / "out" / "checkpoints").glob("best-*"))
    assert any("evaluate.keep=best keeps the best" in line for line in said.lines)


def test_the_last_step_stands_among_the_evaluations(small_model, chats, tmp_path):
    """Measured at 2 of 3 and after the last step, which is lower: summary, screen and report say the same."""
    said, out = Said(), tmp_path / "out"
    summary = train(recipe(small_model, chats, {"every": 2}, learning_rate=1e-4, max_steps=3), out=out, watcher=said)
    after = summary["learning"]["foreign"]["after"]["loss"]
    (line,) = map(json.loads, (out / "evaluations.jsonl").read_text().splitlines())
    assert line["step"] == 2
    assert after < line["learning"]["foreign"]["loss"]
    assert (summary["best"]["step"], summary["best"]["loss"], summary["best"]["kept"]) == (3, after, "last")
    assert summary["best"]["without_improvement"] == 0
    assert not [line for line in said.lines if line.startswith("best ")]
    page = (out / "report.html").read_text()
    assert "Best at step 3 of 3" in page
    assert re.findall(r'<th scope="col">([^<]*) <b class="better">best</b>', page) == ["step 3"]


@pytest.mark.parametrize(
    ("evaluate", "message"),
    [
        ({"stop_after": 1, "every": 0}, "evaluate.every is 0"),
        ({"keep": "best", "learning": []}, "there is no learning set"),
        ({"watch": "forein"}, r"no learning set with a loss; there are foreign.\nevaluate.watch=foreign"),
    ],
)
def test_rules_that_cannot_be_obeyed_are_refused(small_model, chats, evaluate, message):
    wanted = recipe(small_model, chats, evaluate)
    with pytest.raises(ConfigError, match=message):
        best.rule_of(wanted, [] if evaluate.get("learning") == [] else ["foreign"])


def test_a_comparison_at_equal_steps_refuses_early_stop(small_model, chats):
    wanted = recipe(small_model, chats, {"stop_after": 1})
    wanted = wanted.model_copy(update={"attend": wanted.attend.model_copy(update={"compare": True})})
    with pytest.raises(ConfigError, match="would end two runs at different steps"):
        best.rule_of(wanted, ["foreign"])
    assert best.rule_of(recipe(small_model, chats, "off"), []) is None


def test_the_next_stage_begins_with_the_best_weights(small_model, chats, tmp_path):
    wanted = recipe(small_model, chats, {"stop_after": 1, "keep": "best"}, max_steps=6)
    given = wanted.model_dump(mode="json") | {"stages": [{}, {"train": {"max_steps": 1, "learning_rate": 1e-7}}]}
    summary = train(Recipe.model_validate(given), out=tmp_path / "out")
    told = summary["stages"][0]["best"]
    assert told["step"] < told["ended"]
    first = tmp_path / "out" / "stage-1" / "checkpoints"
    kept, last = (checkpoint.load_masters(first / f"{kind}-{step:08d}") for kind, step in
                  (("best", told["step"]), ("step", told["ended"])))  # fmt: skip
    second = checkpoint.load_masters(checkpoint.complete(tmp_path / "out" / "stage-2")[-1])
    assert all(torch.allclose(second[name], kept[name], atol=1e-6) for name in kept)
    assert not all(torch.allclose(second[name], last[name], atol=1e-3) for name in last)
