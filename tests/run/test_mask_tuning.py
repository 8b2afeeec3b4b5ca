"""Whether a learnt mask is shipped: four candidates on held-out data, the verdict, the search over layers."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from frisket.adapt import sparse
from frisket.adapt.mft import Mft, switched_on
from frisket.errors import ConfigError
from frisket.evaluate.compare import Measure, intervals
from frisket.evaluate.looks import widened
from frisket.evaluate.losses import sample_losses
from frisket.hf import load
from frisket.recipe import Recipe
from frisket.run import Given, export, make_plan, mask_tuning, measuring, open_run, train
from frisket.run.layer_search import groups
from frisket.run.prepare import prepare
from frisket.run.training import stage_seed
from frisket.watch import Silent

from .test_training import records, stop_at

CANDIDATES = ["none", "random", "magnitude", "learnt"]


class Said(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)

    def warn(self, line: str) -> None:
        self.lines.append(f"! {line}")


@pytest.fixture(scope="module")
def chats(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "chats.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records(60)))
    return path


def recipe(model: Path, chats: Path, evaluate: dict | str | None = None, train: dict | None = None, **adapt) -> Recipe:
    """The model was never trained, so that a mask finds much to gain: it beats no mask."""
    measured = {"every": 0, "forgetting": [], "samples": 0}
    settings = {"max_steps": 8, "step_tokens": 600, "learning_rate": 0.01, "compute": "fp32", "warmup": 0}
    return Recipe.model_validate(
        {
            "model": {"path": str(model)},
            "data": [{"path": str(chats), "hold_out": 0.3}],
            "attend": {"row_tokens": 96},
            "adapt": {"method": "mft"} | adapt,
            "train": settings | {"schedule": "constant", "save_every": 2} | (train or {}),
            "evaluate": measured | evaluate if isinstance(evaluate, dict) else evaluate or measured,
        }
    )


@pytest.fixture(scope="module")
def shipped(small_model, chats, tmp_path_factory) -> tuple[Path, dict, Said]:
    out, said = tmp_path_factory.mktemp("run") / "out", Said()
    return out, train(recipe(small_model, chats), out=out, watcher=said), said


@pytest.fixture(scope="module")
def unshipped(small_model, chats, tmp_path_factory) -> tuple[Path, dict, Said]:
    """Everything is kept, so the learnt mask is no mask."""
    out, said = tmp_path_factory.mktemp("run") / "out", Said()
    return out, train(recipe(small_model, chats, keep=1), out=out, watcher=said), said


def test_a_mask_that_beats_no_mask_is_shipped_and_opens(shipped):
    out, summary, said = shipped
    told = summary["mask_tuning"]
    assert told["shipped"]
    assert told["sets"]["hold-out"]["learnt"]["verdict"] == "better"
    assert told["sets"]["hold-out"]["learnt"]["difference_interval"][1] < 0
    assert 0 < told["moved"] < told["off"]
    assert "exit_code" not in summary
    assert summary["artifacts"]["adapter"] == "adapter"
    assert any(line.startswith("mask       on hold-out") and "it beats no mask" in line for line in said.lines)
    assert open_run(out, watcher=Silent()).answer([[{"role": "user", "content": "alpha"}]], _short())
    facts = export(out, to="merged", into=None, watcher=Silent())
    assert facts["difference_fp32"] == 0
    with pytest.raises(Exception, match="which PEFT does not have"):
        export(out, to="peft", into=None, watcher=Silent())
    assert "Is the learnt mask worth it?" in (out / "report.html").read_text()
    assert "smallest weights off" in (out / "report.html").read_text()


def _short():
    from frisket.generate.settings import GenerateSettings

    return GenerateSettings(max_new_tokens=2)


def test_the_four_candidates_are_those_of_dense_models(shipped, small_model, chats):
    """Each one again: multiply the weights, measure, compare unit by unit."""
    out, summary, _ = shipped
    wanted = recipe(small_model, chats)
    prepared = prepare(wanted, Silent())
    told = summary["mask_tuning"]["sets"]["hold-out"]
    assert list(told) == CANDIDATES
    changes, _ = sparse.read(out / "adapter")
    scores = mask_tuning._random({n: torch.empty(change.shape) for n, change in changes.items()}, 0)
    found = {}
    for name in CANDIDATES:
        model = load.load_model(wanted.model, torch.float32, torch.device("cpu"))
        sets = measuring.make_sets(prepared, model, Silent(), None)
        assert sets is not None
        with torch.no_grad():
            for tensor, change in changes.items():
                weight = model.get_parameter(tensor)
                if name == "random":
                    weight.mul_(switched_on(scores[tensor].abs(), 0.9))
                elif name == "magnitude":
                    weight.mul_(switched_on(weight.abs(), 0.9))
                elif name == "learnt":
                    weight.view(-1)[change.indices] = 0
        found[name] = sample_losses(model, sets.learning[0].samples, sets.instruments)
        assert told[name]["loss"] == pytest.approx(found[name].value, rel=1e-6)
        _, (low, high) = intervals([found["none"], found[name]])
        if name != "none":
            assert told[name]["difference"] == pytest.approx(found[name].value - found["none"].value, abs=1e-6)
            assert told[name]["difference_interval"] == pytest.approx([low, high], abs=1e-6)
    learning = summary["learning"]["hold-out"]
    assert learning["before"]["loss"] == pytest.approx(told["none"]["loss"], rel=1e-6)
    assert learning["after"]["loss"] == pytest.approx(told["learnt"]["loss"], rel=1e-6)
    entries = {name: (len(change.indices), int(np.prod(change.shape))) for name, change in changes.items()}
    assert all(off == n - round(0.9 * n) for off, n in entries.values())
    assert summary["mask_tuning"]["off"] == sum(off for off, _ in entries.values())
    assert summary["mask_tuning"]["entries"] == sum(n for _, n in entries.values())


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_the_random_mask_is_not_the_start_of_the_learnt_one(stage, small_model):
    """Two independent masks with a tenth off share a hundredth."""
    for seed in (0, 42):
        model, rng = _loaded(small_model), torch.Generator().manual_seed(stage_seed(seed, stage))
        attached = Mft(method="mft").attach(model, rng)
        start = attached.masks_of(attached.parameters())
        other = attached.masks_of(mask_tuning._random(attached.weights(), seed))
        entries = sum(mask.numel() for mask in start.values())
        both = sum(int((~start[name] & ~other[name]).sum()) for name in start) / entries
        assert both == pytest.approx(0.01, abs=5 * (0.01 * 0.99 / entries) ** 0.5)


def test_a_mask_that_does_not_beat_no_mask_is_not_shipped(unshipped, small_model):
    out, summary, said = unshipped
    told = summary["mask_tuning"]
    assert not told["shipped"]
    assert told["sets"]["hold-out"]["learnt"]["difference"] == 0
    assert told["sets"]["hold-out"]["learnt"]["verdict"] == "same"
    assert summary["exit_code"] == mask_tuning.NOT_SHIPPED == 4
    assert json.loads((out / "summary.json").read_text())["mask_tuning"] == told
    assert not (out / "adapter").exists()
    assert not (out / "adapter.partial").exists()
    assert "adapter" not in summary["artifacts"]
    assert summary["next"] == f"frisket train {out} --out {out}-2 adapt.keep=0.99"
    assert summary["model"]["parameters"] == sum(p.numel() for p in _loaded(small_model).parameters())
    assert any("does not beat no mask" in line for line in said.lines)
    assert any(line.startswith("! no adapter is written: use ") for line in said.lines)
    assert "No mask is shipped" in (out / "report.html").read_text()


def _loaded(path: str | Path):
    settings = Recipe.model_validate({"model": {"path": str(path)}}).model
    return load.load_model(settings, torch.float32, torch.device("cpu"))


def test_what_was_not_shipped_is_refused_by_name(unshipped, small_model):
    out, *_ = unshipped
    for use in (lambda: open_run(out, watcher=Silent()), lambda: export(out, to="merged", into=None, watcher=Silent())):
        with pytest.raises(
            ConfigError, match=r"ships no mask: on hold-out the learnt mask .* does not beat no mask"
        ) as no:
            use()
        assert str(no.value).endswith(f"Use {small_model} as it is, or try other settings: adapt.keep=0.99")


def test_a_little_better_by_chance_is_not_shipped(monkeypatch, small_model, chats, tmp_path):
    """A planted loss: lower on average, and the interval of the difference holds 0."""
    noise = np.random.default_rng(0).normal(-0.01, 1.0, 18)
    plain, measured = mask_tuning.sample_losses, []

    def planted(model, samples, instruments):
        measured.append(plain(model, samples, instruments))
        none, is_learnt = measured[0], len(measured) == len(CANDIDATES)
        return Measure(none.total + noise * none.count, none.count) if is_learnt else measured[-1]

    monkeypatch.setattr(mask_tuning, "sample_losses", planted)
    summary = train(recipe(small_model, chats), out=tmp_path / "out")
    learnt = summary["mask_tuning"]["sets"]["hold-out"]["learnt"]
    low, high = learnt["difference_interval"]
    assert low < learnt["difference"] < 0 < high
    assert not summary["mask_tuning"]["shipped"]


def test_the_watched_set_decides(small_model, chats, tmp_path):
    """On answers that the model never saw, and that nobody taught, the mask is worse."""
    lines = [{"prompt": "alpha beta", "completion": f"0 {n} QXZ 17"} for n in range(8)]
    (tmp_path / "other.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    sets = [{"name": "hold-out"}, {"name": "other", "path": str(tmp_path / "other.jsonl")}]
    wanted = recipe(small_model, chats, {"learning": sets, "watch": "other"})
    summary = train(wanted, out=tmp_path / "out")
    told = summary["mask_tuning"]
    assert told["decided_by"] == "other"
    assert set(told["sets"]) == {"hold-out", "other"}
    assert told["sets"]["hold-out"]["learnt"]["verdict"] == "better"
    assert told["shipped"] == (told["sets"]["other"]["learnt"]["verdict"] == "better")


def test_a_resumed_run_ships_the_same_bytes_and_tells_the_same(shipped, small_model, chats, tmp_path):
    whole, summary, _ = shipped
    wanted, out = recipe(small_model, chats), tmp_path / "out"
    for at in (3, 6):
        with pytest.raises(KeyboardInterrupt):
            train(wanted, out=out, resume=True, given=Given(on_step=stop_at(at)))
    again = train(wanted, out=out, resume=True)
    assert again["mask_tuning"] == summary["mask_tuning"]
    for name in ("adapter/adapter.safetensors", "metrics.jsonl"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()


def test_the_reach_of_the_scores_is_said_and_a_short_one_warned_of(shipped, small_model, chats):
    _, _, said = shipped
    (line,) = [line for line in said.lines if line.startswith("mft ")]
    assert "10 % off; rates sum to 0.08, 4 of adapt.score_spread" in line
    heard = Said()
    make_plan(recipe(small_model, chats, train={"learning_rate": 1e-4}), watcher=heard)
    (warned,) = [line for line in heard.lines if "hardly leave its random start" in line]
    assert "train.learning_rate to 0.0025" in warned
    heard = Said()
    make_plan(recipe(small_model, chats, train={"learning_rate": "auto", "schedule": "cosine"}), watcher=heard)
    assert not [line for line in heard.lines if "hardly leave" in line]


@pytest.mark.parametrize(("keep", "ratio", "share"), [(0.9, 0.47, 0.45), (0.9, 0.235, 0.28), (1.0, 5, 0.0)])
def test_which_share_of_the_scores_can_be_switched_off(keep, ratio, share):
    """The first two are the sheet's figures of the authors' runs on maths and code: 45 % and 28 %."""
    rng = np.random.default_rng(0)
    drawn = np.sort(np.abs(rng.normal(size=200_000)))
    within = (drawn <= drawn[int((1 - keep) * len(drawn))] + ratio).mean() if keep < 1 else 0.0
    assert mask_tuning._share_within(keep, ratio) == pytest.approx(share, abs=5e-3)
    assert within == pytest.approx(share, abs=5e-3)


@pytest.mark.parametrize("verb", [train, make_plan])
def test_what_could_not_be_judged_is_refused_before_training(verb, small_model, chats, tmp_path):
    more = {"out": tmp_path / "out"} if verb is train else {"watcher": Silent()}
    with pytest.raises(ConfigError, match=r"beats the model without one on held-out data, and evaluate is off"):
        verb(recipe(small_model, chats, "off"), **more)
    with pytest.raises(ConfigError, match=r"held-out data, and evaluate.learning is empty"):
        verb(recipe(small_model, chats, {"learning": []}), **more)
    few = recipe(small_model, chats)
    few = few.model_copy(update={"data": (few.data[0].model_copy(update={"hold_out": 0.05}),)})
    with pytest.raises(
        ConfigError, match=r"judged on held-out samples; there are 3, and an interval needs 5"
    ) as refused:
        verb(few, **more)
    assert str(refused.value).endswith("data.0.hold_out=0.1")
    with pytest.raises(ConfigError, match=r"adapt.search = 1 chooses the layers, and adapt.where restricts them too"):
        verb(recipe(small_model, chats, search=1, where=["mlp", {"layers": 0}]), **more)
    assert not (tmp_path / "out").exists()


def test_overfit_is_refused(small_model, chats, tmp_path):
    with pytest.raises(ConfigError, match="learned by heart, which a mask over frozen weights cannot"):
        train(recipe(small_model, chats), out=tmp_path / "out", overfit=2)


def test_groups_of_layers_cover_all_once():
    for layers in range(2, 12):
        for size in range(1, layers):
            spans = [tuple(map(int, group.split("-"))) for group in groups(layers, size)]
            assert [layer for a, b in spans for layer in range(a, b + 1)] == list(range(layers))
            assert all(b - a + 1 == size for a, b in spans[:-1])
    with pytest.raises(ConfigError, match=r"adapt.search = 4: the model has 4 layers, which make one group"):
        groups(4, 4)


def test_the_search_takes_the_group_of_lowest_loss_and_masks_nothing_else(small_model, chats, tmp_path):
    out, said = tmp_path / "out", Said()
    wanted = recipe(small_model, chats, search=1, search_steps=4)
    with pytest.raises(KeyboardInterrupt):
        train(wanted, out=out, given=Given(model=None, on_step=None), watcher=_StopsAt("search     2 of 2"))
    assert not (out / "search.json").exists()
    summary = train(wanted, out=out, resume=True, watcher=said)
    search = summary["layer_search"]
    losses = {entry["layers"]: entry["loss"] for entry in search["groups"]}
    assert set(losses) == {"0-0", "1-1"}
    assert search["best"] == min(losses, key=lambda group: losses[group])
    for group, loss in losses.items():
        told = json.loads((out / "search" / f"layers-{group}" / "summary.json").read_text())
        assert told["steps"] == 4
        assert told["learning"]["hold-out"]["after"]["loss"] == pytest.approx(loss, rel=1e-6)
        assert not (out / "search" / f"layers-{group}" / "checkpoints").exists()
    changes, settings = sparse.read(out / "adapter")
    best = search["best"].split("-")[0]
    assert changes
    assert all(name.startswith(f"model.layers.{best}.") for name in changes)
    assert settings["search"] is None
    assert summary["steps"] == 8
    assert (said.lines.index(next(line for line in said.lines if "of 2: layers 0-0" in line))) < len(said.lines)
    again = train(wanted, out=out, resume=True, watcher=said)
    assert again["mask_tuning"] == summary["mask_tuning"]
    assert "Groups of layers that were tried" in (out / "report.html").read_text()
    with pytest.raises(ConfigError, match="holds a run of another recipe"):
        train(recipe(small_model, chats, search=1, search_steps=5), out=out, resume=True)


class _StopsAt(Silent):
    """Ctrl-C while the second group is being tried."""

    def __init__(self, label: str) -> None:
        self._label = label

    def progress(self, label, total, unit):
        if label.startswith(self._label):
            raise KeyboardInterrupt
        return super().progress(label, total, unit)


def test_the_table_of_a_terminal_says_the_verdict(shipped, unshipped):
    from rich.console import Console

    from frisket.cli.final import summary_screen

    for (out, summary, _), verdict in ((shipped, "The mask is shipped"), (unshipped, "No mask is shipped")):
        console = Console(width=100, record=True, file=io.StringIO())
        console.print(summary_screen(summary, out, 100))
        text = console.export_text()
        assert verdict in " ".join(text.split())
        assert "random mask" in text


def test_a_rejected_mask_is_the_first_thing_said_and_nothing_is_called_its_result(unshipped, small_model):
    from rich.console import Console

    from frisket.cli.final import summary_screen

    out, summary, _ = unshipped
    console = Console(width=110, record=True, file=io.StringIO())
    console.print(summary_screen(summary, out, 110))
    screen = " ".join(console.export_text().split())
    card, page = (out / "README.md").read_text(), (out / "report.html").read_text()
    assert screen.startswith("No mask is shipped: on hold-out")
    assert "frisket train" in screen
    assert "rejected mask" in screen
    assert " after " not in screen.partition("Mask on")[0]
    assert "**No mask is shipped: on hold-out" in card.split("## ")[0]
    assert "from_pretrained" not in card
    assert f"There is nothing to load in this folder: use {small_model}".replace("_", r"\_") in card
    assert "| set | samples | metric | before | rejected mask | change |" in card
    assert "fine-tuned" not in card.split("## Measured")[0]
    assert page.index("No mask is shipped") < page.index("scores were searched")
    assert '<th scope="col">rejected mask</th>' in page
    assert '<th scope="col">after</th>' not in page
    for text in (screen, card, page):
        assert "0 of the base" in text


@pytest.mark.parametrize("first", [{"method": "full"}, {"method": "lora", "rank": 2}], ids=["full", "lora"])
def test_a_mask_over_what_the_stage_before_it_made(first, small_model, chats, tmp_path):
    wanted = recipe(small_model, chats).model_dump(mode="json")
    wanted |= {
        "adapt": first,
        "stages": [{"train": {"max_steps": 1, "learning_rate": 1e-4}}, {"adapt": {"method": "mft"}}],
    }
    summary = train(Recipe.model_validate(wanted), out=tmp_path / "out")
    assert [each["model"]["method"] for each in summary["stages"]] == [first["method"], "mft"]
    assert summary["mask_tuning"]["shipped"]
    base = Path(summary["model"]["path"])
    assert base == (tmp_path / "out" / "stage-1" / ("model" if first["method"] == "full" else "merged")).resolve()
    changes, _ = sparse.read(tmp_path / "out" / "adapter")
    weights = dict(_loaded(base).named_parameters())
    assert all(sparse.is_digest_of(weights[name].data, change.before) for name, change in changes.items())
    answers = []
    for folder in (tmp_path / "out", tmp_path / "out" / "stage-2"):
        answers.append(open_run(folder, watcher=Silent()).answer([[{"role": "user", "content": "alpha"}]], _short()))
    assert answers[0] == answers[1]


def test_a_stage_that_could_not_be_judged_is_refused_before_the_first_one(small_model, chats, tmp_path):
    wanted = recipe(small_model, chats).model_dump(mode="json")
    wanted |= {"adapt": {"method": "full"}, "stages": [{}, {"adapt": {"method": "mft"}, "evaluate": "off"}]}
    with pytest.raises(ConfigError, match="beats the model without one on held-out data, and evaluate is off"):
        train(Recipe.model_validate(wanted), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def in_stages(wanted: Recipe, first: dict, *stages: dict) -> Recipe:
    return Recipe.model_validate(wanted.model_dump(mode="json") | {"adapt": first, "stages": list(stages)})


def test_stages_that_share_a_search_search_once(small_model, chats, tmp_path):
    adapt = {"method": "mft", "search": 1, "search_steps": 2}
    wanted = in_stages(recipe(small_model, chats), adapt, {}, {"train": {"max_steps": 2}})
    out, heard = tmp_path / "out", Said()
    with pytest.raises(KeyboardInterrupt):  # in the second stage, whose steps begin anew
        train(wanted, out=out, given=Given(on_step=_after(8, 1)), watcher=heard)
    summary = train(wanted, out=out, resume=True, watcher=heard)
    assert len([line for line in heard.lines if line.startswith("search     2 groups")]) == 1
    assert not (out / "stage-2" / "search").exists()
    first, second = summary["stages"]
    assert first["layer_search"] == second["layer_search"] == summary["layer_search"]
    names = [set(sparse.read(out / f"stage-{number}" / "adapter")[0]) for number in (1, 2)]
    assert names[0] == names[1]
    assert all(f".layers.{summary['layer_search']['best'].split('-')[0]}." in name for name in names[0])


def _after(last: int, step: int):
    """Ctrl-C at a step that comes after the last step of the stage before."""
    seen = []

    def look(record):
        seen.append(record.step)
        if seen[-1] == step and last in seen:
            raise KeyboardInterrupt

    return look


def test_a_stage_without_a_mask_hands_on_its_own_base(small_model, chats, tmp_path):
    nothing = {"adapt": {"method": "mft", "keep": 1}}
    last = {"adapt": {"method": "lora", "rank": 2}, "train": {"max_steps": 1}}
    short = {"train": {"max_steps": 1, "learning_rate": 1e-4}}
    wanted, heard = in_stages(recipe(small_model, chats), {"method": "full"}, short, nothing, last), Said()
    out = tmp_path / "out"
    summary = train(wanted, out=out, watcher=heard)
    model = str((out / "stage-1" / "model").resolve())
    assert [each["model"]["path"] for each in summary["stages"]] == [str(small_model), model, model]
    assert any(
        line == f"! the stage before this one shipped no mask: this one starts from {model}, as that one did"
        for line in heard.lines
    )
    assert "exit_code" not in summary
    assert open_run(out, watcher=Silent()).answer([[{"role": "user", "content": "alpha"}]], _short())


def test_a_first_stage_without_a_mask_hands_on_the_base_of_the_recipe(small_model, chats, tmp_path):
    last = {"adapt": {"method": "lora", "rank": 2}, "train": {"max_steps": 1}}
    wanted = in_stages(recipe(small_model, chats), {"method": "mft", "keep": 1}, {"train": {"max_steps": 1}}, last)
    summary = train(wanted, out=tmp_path / "out")
    assert [each["model"]["path"] for each in summary["stages"]] == [str(small_model)] * 2
    assert "adapter" in summary["artifacts"]


def test_a_mask_that_the_judging_samples_chose_is_judged_by_a_wider_interval(shipped, small_model, chats, tmp_path):
    """The same mask: of twice four, where groups and steps were chosen, and of one, where nothing was."""
    plain = shipped[1]["mask_tuning"]
    assert plain["chosen_among"] == 1
    wanted = recipe(small_model, chats, {"every": 2, "keep": "best"}, search=1, search_steps=1)
    told = train(wanted, out=tmp_path / "out")["mask_tuning"]
    assert told["chosen_among"] == 2 * 4
    assert "wider because these samples chose it among 8" in told["sentence"]
    changes, _ = sparse.read(tmp_path / "out" / "adapter")
    wanted = recipe(small_model, chats)
    prepared, found = prepare(wanted, Silent()), []
    for masked in (False, True):
        model = load.load_model(wanted.model, torch.float32, torch.device("cpu"))
        sets = measuring.make_sets(prepared, model, Silent(), None)
        assert sets is not None
        with torch.no_grad():
            for tensor, change in changes.items() if masked else ():
                model.get_parameter(tensor).view(-1)[change.indices] = 0
        found.append(sample_losses(model, sets.learning[0].samples, sets.instruments))
    _, interval = intervals(found)
    difference = found[1].value - found[0].value
    assert told["sets"]["hold-out"]["learnt"]["difference_interval"] == pytest.approx(
        widened(interval, difference, 8, len(found[0])), abs=1e-5
    )


@pytest.mark.parametrize(
    ("evaluate", "steps", "expected"),
    [
        ({"every": 0}, 8, 1),
        ({"every": 3}, 8, 1),
        ({"every": 3, "keep": "best"}, 8, 3),
        ({"every": 0.1, "stop_after": 2}, 8, 8),
    ],
)
def test_how_many_steps_could_have_been_kept(evaluate, steps, expected, small_model, chats, tmp_path):
    wanted = recipe(small_model, chats, evaluate, {"max_steps": steps})
    assert mask_tuning.looks(prepare(wanted, Silent()), tmp_path) == expected
