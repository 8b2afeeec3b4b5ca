"""Whole runs on a tiny saved model: resume, accumulation, frozen bytes, what lies in the folder."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import frisket
from frisket.errors import CheckError, ConfigError, DataError, UnsupportedError
from frisket.recipe import Recipe
from frisket.run import Given, train
from frisket.train import checkpoint

WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa"]


def records(count: int, seed: int = 0) -> list[dict]:
    """Small conversations, some of them long."""
    rng = np.random.default_rng(seed)
    return [
        {
            "messages": [
                {"role": "user", "content": " ".join(rng.choice(WORDS, rng.integers(1, 12)))},
                {"role": "assistant", "content": " ".join(rng.choice(WORDS, rng.integers(1, 9)))},
            ]
        }
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def chats(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "chats.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records(60)))
    return path


def recipe(model: Path, chats: Path, **sections) -> Recipe:
    given = {
        "model": {"path": str(model)},
        "data": [{"path": str(chats)}],
        "attend": {"row_tokens": 96},
        "adapt": {"method": "lora", "rank": 4},
        "train": {
            "epochs": 1,
            "step_tokens": 400,
            "learning_rate": 0.01,
            "compute": "fp32",
            "save_every": 1,
            "keep": 100,
        },
        "evaluate": "off",
    }
    if sections.get("adapt", {}).get("method") == "full":
        given["adapt"] = {}
    for name, section in sections.items():
        given[name] = {**given[name], **section} if isinstance(given.get(name), dict) else section
    return Recipe.model_validate(given)


def adapter(out: Path) -> bytes:
    return (out / "adapter" / "adapter_model.safetensors").read_bytes()


def stop_at(step: int):
    def on_step(record):
        if record.step == step:
            raise KeyboardInterrupt

    return on_step


@pytest.mark.parametrize("compute", ["fp32", "bf16"])
def test_resume_is_byte_identical_after_stops_at_random_steps(small_model, chats, tmp_path, compute):
    wanted = recipe(small_model, chats, train={"compute": compute, "epochs": 2, "save_every": 3})
    summary = train(wanted, out=tmp_path / "whole")
    rng = np.random.default_rng(0)
    stops = behind = 0
    while stops < 12:
        out = tmp_path / f"stopped-{stops}"
        at = 0
        while at < summary["steps"] - 1:
            at = int(rng.integers(at + 1, summary["steps"]))
            with pytest.raises(KeyboardInterrupt):
                train(wanted, out=out, resume=True, given=Given(on_step=stop_at(at)))
            stops += 1
            behind += at % 3 != 0
        train(wanted, out=out, resume=True)
        assert adapter(out) == adapter(tmp_path / "whole")
        assert (out / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()
    assert behind >= 4  # stopped some steps after the last checkpoint, whose lines must be dropped


def test_a_stop_inside_accumulation_loses_nothing(small_model, chats, tmp_path, monkeypatch):
    from frisket.train.optim import Optimizer

    wanted = recipe(small_model, chats, train={"save_every": 2})
    train(wanted, out=tmp_path / "whole")
    calls = {"left": 0}
    accumulate = Optimizer.accumulate

    def stopping(self):
        accumulate(self)
        calls["left"] -= 1
        if calls["left"] == 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(Optimizer, "accumulate", stopping)
    for trial, left in enumerate((2, 6, 8, 11, 13, 14, 16, 17)):
        calls["left"] = left
        out = tmp_path / f"inside-{trial}"
        with pytest.raises(KeyboardInterrupt):
            train(wanted, out=out)
        train(wanted, out=out, resume=True)
        assert adapter(out) == adapter(tmp_path / "whole")


def test_a_killed_process_is_continued(small_model, chats, tmp_path):
    """SIGKILL, from outside, while steps are being made."""
    import os
    import signal
    import subprocess
    import sys
    import time

    from frisket.recipe import dump

    wanted = recipe(small_model, chats, train={"epochs": 40, "save_every": 5})
    path = tmp_path / "recipe.yaml"
    path.write_text(dump(wanted))
    out = tmp_path / "killed"
    program = (
        "import torch, sys; torch.set_num_threads(1); from frisket.cli.main import run_words; run_words(sys.argv[1:])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, "train", str(path), "--out", str(out)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ,
    )
    metrics = out / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if metrics.exists() and metrics.read_text().count("\n") >= 17:
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert (out / "run.lock").exists()
    train(wanted, out=out, resume=True)
    train(wanted, out=tmp_path / "whole")
    assert adapter(out) == adapter(tmp_path / "whole")
    assert not (out / "run.lock").exists()


def test_a_checkpoint_without_complete_is_not_used(small_model, chats, tmp_path):
    wanted = recipe(small_model, chats)
    train(wanted, out=tmp_path / "whole")
    out = tmp_path / "torn"
    with pytest.raises(KeyboardInterrupt):
        train(wanted, out=out, given=Given(on_step=stop_at(3)))
    newest = checkpoint.complete(out)[-1]
    (newest / checkpoint.COMPLETE).unlink()
    (newest / "moving.safetensors").write_bytes(b"half")
    train(wanted, out=out, resume=True)
    assert adapter(out) == adapter(tmp_path / "whole")


def test_changed_data_is_noticed_on_resume(small_model, chats, tmp_path):
    own = tmp_path / "own.jsonl"
    own.write_text(chats.read_text())
    wanted = recipe(small_model, own)
    with pytest.raises(KeyboardInterrupt):
        train(wanted, out=tmp_path / "out", given=Given(on_step=stop_at(3)))
    lines = own.read_text().splitlines(keepends=True)
    own.write_text("".join(lines[5:] + lines[:5]))
    with pytest.raises(CheckError, match="the data changed"):
        train(wanted, out=tmp_path / "out", resume=True)


def test_one_big_step_is_the_accumulated_step(small_model, chats, tmp_path):
    masters = []
    for name, attend in (
        ("one", {"row_tokens": 4000}),
        ("rows", {"row_tokens": 64}),
        ("padded", {"arrangement": "padded", "row_tokens": 128}),
    ):
        wanted = recipe(
            small_model,
            chats,
            attend=attend,
            train={"compute": "fp64", "max_steps": 3, "clip": 0, "optimizer": "sgd", "learning_rate": 0.1},
        )
        train(wanted, out=tmp_path / name)
        (newest,) = checkpoint.complete(tmp_path / name)[-1:]
        masters.append(load_file(newest / "moving.safetensors"))
    for other in masters[1:]:
        for name, value in masters[0].items():
            assert (value - other[name]).norm() <= 1e-5 * value.norm()  # stock norms compute in float32


def test_the_folder_holds_what_was_promised(small_model, chats, tmp_path):
    wanted = recipe(
        small_model, chats, evaluate={"forgetting": [{"prompts": 4, "answer_tokens": 4, "text_tokens": 256}]}
    )
    summary = train(wanted, out=tmp_path / "out")
    out = tmp_path / "out"
    for name in (
        "recipe.yaml",
        "environment.json",
        "metrics.jsonl",
        "timings.jsonl",
        "summary.json",
        "report.html",
        "README.md",
    ):
        assert (out / name).stat().st_size > 0, name
    assert not (out / "run.lock").exists()
    assert [p.parent.name for p in out.rglob("adapter_model.safetensors")] == ["adapter"]
    on_disk = json.loads((out / "summary.json").read_text())
    assert on_disk == summary
    tokens = summary["tokens"]
    told = sum(tokens[name] for name in ("dropped", "truncated", "held_out", "other_objective"))
    assert tokens["read"] == told + sum(tokens["taught"].values()) + sum(tokens["untaught"].values())
    assert tokens["flat"] == tokens["computed"] + tokens["shared"] > 0
    metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [m["step"] for m in metrics] == list(range(1, summary["steps"] + 1))
    assert sum(m["flat_tokens"] for m in metrics) == tokens["flat"]
    assert summary["learning"]["hold-out"]["after"]["loss"] < summary["learning"]["hold-out"]["before"]["loss"]
    assert summary["forgetting"]["default"]["before"]["kl"] == 0
    assert summary["forgetting"]["default"]["after"]["kl"] > 0


def test_frozen_weights_are_byte_identical_and_full_moves_them(small_model, chats, tmp_path):
    before = load_file(small_model / "model.safetensors")
    seen = {}

    def watch(model):
        def on_step(record):
            seen.update({n: p.detach().clone() for n, p in model.named_parameters()})

        return on_step

    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(small_model, dtype=torch.float32)
    wanted = recipe(small_model, chats, train={"weight_decay": 0.1, "max_steps": 3})
    train(wanted, out=tmp_path / "lora", given=Given(model=model, on_step=watch(model)))
    frozen = {n.replace(".base_layer", ""): v for n, v in seen.items() if "lora_" not in n}
    assert {n: v for n, v in frozen.items() if not torch.equal(v, before[n])} == {}
    full = recipe(small_model, chats, train={"max_steps": 3, "weight_decay": 0.1})
    full = Recipe.model_validate(
        {**full.model_dump(mode="json"), "evaluate": "off", "adapt": {"method": "full", "where": ["*.mlp.*"]}}
    )
    train(full, out=tmp_path / "full")
    after = load_file(tmp_path / "full" / "model" / "model.safetensors")
    assert {n for n, v in after.items() if not torch.equal(v, before[n])} == {n for n in before if ".mlp." in n}


def test_python_api_takes_records_a_model_and_on_step(small_model, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(small_model, dtype=torch.float32)
    steps = []
    summary = frisket.finetune(
        {"train": {"max_steps": 2, "learning_rate": 0.01, "compute": "fp32"}, "evaluate": "off"},
        out=tmp_path / "out",
        model=model,
        tokenizer=AutoTokenizer.from_pretrained(small_model),
        data=records(12),
        on_step=steps.append,
    )
    assert [record.step for record in steps] == [1, 2]
    assert summary["steps"] == 2
    assert summary["data"][0]["samples"] == 12


def test_output_folders_are_refused_taken_over_and_finished(small_model, chats, tmp_path):
    wanted = recipe(small_model, chats, train={"max_steps": 2})
    out = tmp_path / "out"
    train(wanted, out=out)
    with pytest.raises(ConfigError, match="is not empty"):
        train(wanted, out=out)
    before = adapter(out)
    assert train(wanted, out=out, resume=True)["steps"] == 2
    assert adapter(out) == before
    other = recipe(small_model, chats, train={"max_steps": 3})
    with pytest.raises(ConfigError, match="another recipe"):
        train(other, out=out, resume=True)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("x")
    with pytest.raises(ConfigError, match="holds no run"):
        train(wanted, out=foreign, resume=True)
    assert train(wanted, out=tmp_path / "missing", resume=True)["steps"] == 2


def test_a_lock_of_a_living_process_is_respected_and_a_dead_one_taken_over(small_model, chats, tmp_path):
    import os
    import platform

    wanted = recipe(small_model, chats, train={"max_steps": 2})
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        train(wanted, out=out, given=Given(on_step=stop_at(1)))
    lock = out / "run.lock"
    lock.write_text(json.dumps({"pid": os.getppid(), "host": platform.node()}))
    with pytest.raises(ConfigError, match="in use by process"):
        train(wanted, out=out, resume=True)
    lock.write_text(json.dumps({"pid": 2**22 - 3, "host": platform.node()}))
    assert train(wanted, out=out, resume=True)["steps"] == 2


def test_nothing_half_written_stays_behind(small_model, chats, tmp_path):
    wanted = recipe(small_model, chats, adapt={"where": "*.qproj"})
    with pytest.raises(ConfigError, match=r"matched 0 of"):
        train(wanted, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_step_that_is_not_finite_stops_before_anything_moves(small_model, chats, tmp_path, monkeypatch):
    from frisket.train import step

    real = step.summed_loss
    calls = {"n": 0}

    def poisoned(*args):
        calls["n"] += 1
        return real(*args) * (float("nan") if calls["n"] > 12 else 1.0)

    monkeypatch.setattr(step, "summed_loss", poisoned)
    wanted = recipe(small_model, chats)
    with pytest.raises(CheckError, match="the weights were not moved"):
        train(wanted, out=tmp_path / "out")
    newest = checkpoint.complete(tmp_path / "out")[-1]
    assert all(torch.isfinite(value).all() for value in load_file(newest / "moving.safetensors").values())


def test_an_unchanged_adapter_is_an_error(small_model, chats, tmp_path):
    wanted = recipe(small_model, chats, train={"max_steps": 2, "learning_rate": 1e-30}, adapt={"method": "full"})
    with pytest.raises(CheckError, match="what it was at the start"):
        train(wanted, out=tmp_path / "out")
    assert not (tmp_path / "out" / "adapter").exists()


def test_stages_run_in_order_and_carry_the_adapter(small_model, chats, tmp_path):
    wanted = recipe(small_model, chats, train={"max_steps": 2})
    staged = Recipe.model_validate(
        {
            **wanted.model_dump(mode="json"),
            "evaluate": "off",
            "stages": [{}, {"train": {"learning_rate": 0.001, "max_steps": 3}}],
        }
    )
    summary = train(staged, out=tmp_path / "out")
    assert [stage["steps"] for stage in summary["stages"]] == [2, 3]
    first = load_file(checkpoint.complete(tmp_path / "out" / "stage-1")[-1] / "moving.safetensors")
    last = load_file(checkpoint.complete(tmp_path / "out" / "stage-2")[-1] / "moving.safetensors")
    moved = max(float((first[n] - last[n]).abs().max()) for n in first)
    assert 0 < moved < 0.02  # three small steps away from where stage 1 ended
    assert adapter(tmp_path / "out") == adapter(tmp_path / "out" / "stage-2")


def test_a_stop_in_the_second_stage_keeps_the_first(small_model, chats, tmp_path):
    wanted = recipe(small_model, chats, train={"max_steps": 2, "save_every": 0})
    staged = Recipe.model_validate({**wanted.model_dump(mode="json"), "evaluate": "off", "stages": [{}, {}]})
    train(staged, out=tmp_path / "whole")
    seen = []

    def stop_in_the_second(record):
        seen.append(record.step)
        if seen == [1, 2, 1]:
            raise KeyboardInterrupt

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        train(staged, out=out, given=Given(on_step=stop_in_the_second))
    assert (out / "stage-1" / "summary.json").exists()
    train(staged, out=out, resume=True)
    assert adapter(out) == adapter(tmp_path / "whole")


def test_negative_weights_are_refused_before_training(small_model, tmp_path):
    lines = records(4)
    lines[2]["messages"][1]["weight"] = -1
    path = tmp_path / "signed.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(DataError, match=r"signed.jsonl:3.*a weight is negative"):
        train(recipe(small_model, path), out=tmp_path / "out")
    signed = recipe(small_model, path, supervise={"normaliser": "tokens"}, train={"max_steps": 2, "epochs": None})
    assert train(signed, out=tmp_path / "out")["steps"] == 2


def test_a_loaded_model_needs_its_tokenizer_and_cannot_move_in_full(small_model, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(small_model)
    with pytest.raises(ConfigError, match="without its tokenizer"):
        frisket.finetune({}, model=model, data=records(4), out=tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(small_model)
    with pytest.raises(ConfigError, match="needs the base's files"):
        frisket.finetune(
            {"adapt": {"method": "full"}}, model=model, tokenizer=tokenizer, data=records(4), out=tmp_path / "out"
        )


def test_the_output_folder_cannot_be_a_file(small_model, chats, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="is a file"):
        train(recipe(small_model, chats), out=tmp_path / "file")


def test_stages_cannot_go_on_with_the_optimizer_or_be_overfitted(small_model, chats, tmp_path):
    given = {**recipe(small_model, chats).model_dump(mode="json"), "evaluate": "off"}
    going_on = Recipe.model_validate({**given, "stages": [{}, {"continue": True}]})
    with pytest.raises(UnsupportedError, match="fresh optimizer and schedule"):
        train(going_on, out=tmp_path / "out")
    with pytest.raises(ConfigError, match="--overfit tries one recipe"):
        train(Recipe.model_validate({**given, "stages": [{}]}), out=tmp_path / "out", overfit=2)
    assert not (tmp_path / "out").exists()


def test_overfit_says_which_mask_stops_it(small_model, tmp_path):
    same = [{"prompt": "alpha beta", "completion": word} for word in WORDS[:8]]
    path = tmp_path / "same.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in same))
    wanted = recipe(small_model, path, train={"learning_rate": 0.02, "max_steps": 60})
    with pytest.raises(CheckError, match=r"same context is taught with different next tokens"):
        train(wanted, out=tmp_path / "out", overfit=8)
    good = recipe(small_model, path, train={"learning_rate": 0.01, "max_steps": 200}, adapt={"method": "full"})
    summary = train(good, out=tmp_path / "one", overfit=1)
    assert "learned to a loss" in summary["overfit"]


def test_updates_below_the_steps_of_the_bases_type_are_not_rounded_away(chats, tmp_path):
    """Full fine-tuning in fp32 of a bf16 base at a low rate: rounded to bf16 most of it would be lost."""
    given = {
        "model": {"path": "bundled"},
        "data": [{"path": str(chats)}],
        "adapt": {"method": "full"},
        "train": {"max_steps": 3, "step_tokens": 400, "learning_rate": 1e-4, "compute": "fp32", "warmup": 0},
        "evaluate": "off",
    }
    summary = train(Recipe.model_validate(given), out=tmp_path / "out")
    assert "written in float32, because rounded to bfloat16 a logit would change by" in summary["checks"]["reload"]
    written = load_file(tmp_path / "out" / "model" / "model.safetensors")
    assert {tensor.dtype for tensor in written.values()} == {torch.float32}
    masters = load_file(tmp_path / "out" / "checkpoints" / "step-00000003" / "moving.safetensors")
    assert all(torch.equal(written[name], master) for name, master in masters.items() if name in written)


@pytest.mark.parametrize("save_every", [0, 1])
def test_ctrl_c_finishes_the_step_and_leaves_a_checkpoint(small_model, chats, tmp_path, capfd, save_every):
    import os
    import signal

    wanted = recipe(small_model, chats, train={"save_every": save_every, "max_steps": 5})
    whole = train(wanted, out=tmp_path / "whole")

    def press(record) -> None:
        if record.step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(wanted, out=tmp_path / "out", given=Given(on_step=press))
    assert signal.getsignal(signal.SIGINT) is before
    assert "Stopping after this step" in capfd.readouterr().err
    assert checkpoint.complete(tmp_path / "out")[-1].name == "step-00000003"
    again = train(wanted, out=tmp_path / "out", resume=True)
    assert again["steps"] == whole["steps"] > 3
    first, second = (tmp_path / name / "adapter" / "adapter_model.safetensors" for name in ("whole", "out"))
    assert first.read_bytes() == second.read_bytes()
