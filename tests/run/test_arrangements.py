"""Whole runs with each arrangement: what is chosen and said, that a forest trains what isolated rows train."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file
from tests.run.test_training import adapter, recipe, stop_at

from frisket.errors import CheckError, ConfigError, UnsupportedError
from frisket.run import Given, make_plan, mask_free, train
from frisket.run.prepare import prepare
from frisket.run.sharing import sharing_of
from frisket.train import checkpoint
from frisket.watch import Silent

WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa"]


class Listening(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def warn(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Path:
    """Conversations with one of two long system prompts, and several answers to each question."""
    rng = np.random.default_rng(0)
    systems = [" ".join(rng.choice(WORDS, 20)) for _ in range(2)]
    lines = []
    for _ in range(10):
        question = " ".join(rng.choice(WORDS, 12))
        system = systems[rng.integers(2)]
        for _ in range(3):
            turns = [("system", system), ("user", question), ("assistant", " ".join(rng.choice(WORDS, 4)))]
            lines.append({"messages": [{"role": role, "content": text} for role, text in turns]})
    path = tmp_path_factory.mktemp("data") / "shared.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def apart(tmp_path_factory) -> Path:
    """Conversations that share nothing worth a segment."""
    rng = np.random.default_rng(1)
    lines = [
        {"prompt": " ".join(rng.choice(WORDS, 9)), "completion": " ".join(rng.choice(WORDS, 3))} for _ in range(20)
    ]
    path = tmp_path_factory.mktemp("data") / "apart.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def masters(out: Path) -> dict:
    return load_file(checkpoint.complete(out)[-1] / "moving.safetensors")


def test_auto_takes_the_forest_where_it_saves_and_says_so(small_model, shared, tmp_path):
    heard = Listening()
    summary = train(recipe(small_model, shared, attend={"row_tokens": 512}), out=tmp_path / "out", watcher=heard)
    (line,) = [text for text in heard.said if text.startswith("attend")]
    assert "forest: shared prefixes once" in line
    assert "samples of a step share" in line
    tokens = summary["tokens"]
    assert tokens["flat"] == tokens["computed"] + tokens["shared"]
    assert tokens["shared"] > 0.3 * tokens["flat"]
    assert summary["rates"]["computed_tokens_per_second"] < summary["rates"]["real_tokens_per_second"]
    assert "a shared segment replaced" in summary["checks"]["isolation"]


def test_auto_stays_with_isolated_rows_where_little_is_shared(small_model, apart, tmp_path):
    heard = Listening()
    summary = train(recipe(small_model, apart), out=tmp_path / "out", watcher=heard)
    assert any("a forest would save" in text for text in heard.said)
    assert summary["tokens"]["shared"] == 0


@pytest.mark.parametrize("attend", [{"backend": "sdpa"}, {"row_tokens": 128}, {"row_tokens": 128, "micro_rows": 3}])
def test_a_forest_trains_what_isolated_rows_train(small_model, shared, tmp_path, attend):
    exact = {"compute": "fp64", "max_steps": 3, "clip": 0, "optimizer": "sgd", "learning_rate": 0.1}
    found = []
    for arrangement in ("forest", "isolated"):
        wanted = recipe(small_model, shared, attend={**attend, "arrangement": arrangement}, train=exact)
        train(wanted, out=tmp_path / arrangement)
        found.append(masters(tmp_path / arrangement))
    for name, value in found[0].items():
        assert (value - found[1][name]).norm() <= 1e-5 * value.norm()  # stock norms compute in float32


def test_recomputed_layers_change_no_forest(small_model, shared, tmp_path):
    found = []
    for recompute in ("none", "all"):
        wanted = recipe(small_model, shared, attend={"arrangement": "forest"}, train={"recompute": recompute})
        train(wanted, out=tmp_path / recompute)
        found.append(adapter(tmp_path / recompute))
    assert found[0] == found[1]


def test_a_stopped_forest_run_ends_at_the_same_bytes(small_model, shared, tmp_path):
    wanted = recipe(small_model, shared, attend={"arrangement": "forest"}, train={"epochs": 3, "save_every": 2})
    summary = train(wanted, out=tmp_path / "whole")
    for at in range(1, summary["steps"], 3):
        out = tmp_path / f"stopped-{at}"
        with pytest.raises(KeyboardInterrupt):
            train(wanted, out=out, resume=True, given=Given(on_step=stop_at(at)))
        train(wanted, out=out, resume=True)
        assert adapter(out) == adapter(tmp_path / "whole")


def test_plan_counts_what_a_forest_computes(small_model, shared):
    wanted = recipe(small_model, shared, attend={"row_tokens": 128, "arrangement": "forest"})
    attend = make_plan(wanted, watcher=Silent()).as_dict()["attend"]
    prepared = prepare(wanted, Silent())
    from frisket.train.step import lay_out

    steps = prepared.order.epoch(0)
    laid = [lay_out([prepared.weighted(int(i)) for i in s.samples], prepared.laying, "weights") for s in steps]
    computed = sum(m.rows.real_tokens for step in laid for m in step.micro_batches)
    assert attend["forest_tokens"] == computed == sum(x.computed for x in prepared.ledger_of_steps(len(steps)))
    assert attend["flat_tokens"] == sum(step.flat_tokens for step in laid)
    assert 1 < attend["forest_ratio"] <= attend["row_bound"] <= attend["bound"]
    assert sharing_of(prepared.dataset, steps, 10**6).forest_tokens <= computed


def test_a_forest_is_refused_where_it_would_not_be_exact(small_model, shared, tmp_path):
    for arrangement in ("forest", "mask-free"):
        other = {"method": "peft", "peft_type": "PSOFT", "options": {"r": 4}}
        wanted = recipe(small_model, shared, attend={"arrangement": arrangement})
        wanted = type(wanted).model_validate({**wanted.model_dump(mode="json", exclude={"adapt"}), "adapt": other})
        with pytest.raises(UnsupportedError, match="not shown to be exact"):
            train(wanted, out=tmp_path / arrangement)


def test_a_method_that_cannot_be_packed_is_told_everywhere(small_model, shared, tmp_path):
    wanted = recipe(small_model, shared)
    other = {"method": "peft", "peft_type": "PSOFT", "options": {"r": 4}}
    wanted = type(wanted).model_validate({**wanted.model_dump(mode="json", exclude={"adapt"}), "adapt": other})
    assert make_plan(wanted, watcher=Silent()).as_dict()["attend"]["arrangement"] == "alone"
    heard = Listening()
    summary = train(wanted, out=tmp_path / "out", watcher=heard)
    assert summary["tokens"]["shared"] == 0
    assert any("PSOFT is not shown to be exact in packed rows" in text for text in heard.said)


@pytest.mark.parametrize("backend", ["varlen", "flex"])
def test_backends_that_need_a_device_are_refused_with_the_reason(small_model, apart, backend):
    with pytest.raises(UnsupportedError, match=rf"'{backend}' calls kernels of CUDA.*\n.*attend.backend=auto"):
        prepare(recipe(small_model, apart, attend={"backend": backend}), Silent())


def test_a_leak_between_branches_stops_the_run(small_model, shared, tmp_path, monkeypatch):
    """Planted: every trunk is seen by the whole rest of its row, not by what grows from it alone."""
    from dataclasses import replace

    from frisket.attend.backends import grouped, groups
    from frisket.hf import attention

    monkeypatch.setattr(groups, "SPAN_PAIRS", 1)

    def leaking(rows, device):
        layout = grouped.prepare(rows, device)
        spans = tuple(replace(s, queries=slice(s.queries.start, rows.input_ids.size)) for s in layout.grouping.spans)
        return replace(layout, grouping=replace(layout.grouping, spans=spans))

    monkeypatch.setitem(attention.BACKENDS, "grouped", leaking)
    with pytest.raises(CheckError, match=r"see each other|differ from the model's own"):
        train(recipe(small_model, shared, attend={"row_tokens": 4096}), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def compared(model: Path, data: Path, **attend):
    return recipe(
        model,
        data,
        attend={"arrangement": "mask-free", "row_tokens": 256, "compare": True, **attend},
        adapt={"where": ["*.q_proj", "*.v_proj"]},
        train={"epochs": 2},
        evaluate={"every": 2, "learning": [{"name": "hold-out"}], "forgetting": []},
    )


def test_mask_free_is_metered_and_judged_against_isolated_rows(small_model, apart, tmp_path):
    heard = Listening()
    summary = train(compared(small_model, apart), out=tmp_path / "out", watcher=heard)
    metered = summary["contamination"]
    assert metered["before"]["foreign_mass"] > 0
    assert metered["before"]["attenuation"] is None  # LoRA starts at 0
    assert metered["after"]["attenuation"] is not None
    assert [entry["step"] for entry in metered["during"]] == [2, 4][: len(metered["during"])]
    assert metered["during"]
    judged = summary["verdict"]
    assert judged["quality"]["hold-out loss"]["told"] in ("same", "worse", "better")
    assert judged["seconds_per_step"]["ratio"] > 0
    assert "isolated" in judged["recommendation"] or "mask-free" in judged["recommendation"]
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["verdict"] == judged
    assert (tmp_path / "out" / "isolated" / "adapter").is_dir()
    assert any("see each other" in text for text in heard.said)


def test_a_comparison_that_was_stopped_is_finished_on_resume(small_model, apart, tmp_path, monkeypatch):
    def stopped(*arguments, **words):
        raise KeyboardInterrupt

    wanted = compared(small_model, apart)
    with monkeypatch.context() as patch:
        patch.setattr(mask_free, "judged", stopped)
        with pytest.raises(KeyboardInterrupt):
            train(wanted, out=tmp_path / "out")
    summary = train(wanted, out=tmp_path / "out", resume=True)
    assert "verdict" in summary
    assert train(wanted, out=tmp_path / "out", resume=True) == summary


def test_a_verdict_recommends_by_quality_first_and_time_second():
    def run(value: float, seconds: float) -> dict:
        after = {"exact_match": value, "exact_match_interval": [value - 0.05, value + 0.05]}
        return {"learning": {"taught": {"after": after}}, "seconds": {"steps": seconds}, "steps": 10}

    assert "isolated: mask-free is worse" in mask_free.verdict(run(0.5, 5), run(0.8, 10))["recommendation"]
    assert "no worse here, and no faster" in mask_free.verdict(run(0.8, 11), run(0.8, 10))["recommendation"]
    nothing = {"learning": {}, "seconds": {"steps": 1.0}, "steps": 10}
    assert mask_free.verdict(nothing, nothing)["recommendation"].startswith("nothing was measured")
    assert "50 % less time a step" in mask_free.verdict(run(0.8, 5), run(0.8, 10))["recommendation"]


def test_a_comparison_needs_something_to_compare(small_model, apart, tmp_path):
    with pytest.raises(ConfigError, match=r"attend.compare compares mask-free rows.*'isolated'"):
        train(compared(small_model, apart, arrangement="isolated"), out=tmp_path / "out")
    wanted = compared(small_model, apart)
    for broken in (wanted.model_copy(update={"evaluate": None}), wanted):
        with pytest.raises(ConfigError, match=r"judges by what `evaluate.learning` measures"):
            train(broken, out=tmp_path / "out", overfit=2 if broken is wanted else None)
    stage = {"attend": {"arrangement": "mask-free", "compare": True}}
    with pytest.raises(ConfigError, match="without stages"):
        train(recipe(small_model, apart, stages=[stage]), out=tmp_path / "out")


def test_a_mask_free_run_that_was_stopped_keeps_what_the_meter_found(small_model, apart, tmp_path):
    wanted = compared(small_model, apart, compare=False)
    whole = train(wanted, out=tmp_path / "whole")["contamination"]
    with pytest.raises(KeyboardInterrupt):
        train(wanted, out=tmp_path / "stopped", given=Given(on_step=stop_at(3)))
    assert train(wanted, out=tmp_path / "stopped", resume=True)["contamination"] == whole
