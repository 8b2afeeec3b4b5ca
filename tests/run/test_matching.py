"""`frisket plan --names`: what each pattern and policy matches, what is left out; the choice in the run folder."""

import pytest
import torch
from tests.run.test_training import recipe, records

from frisket.errors import ConfigError, UnsupportedError
from frisket.hf import load
from frisket.hf.settings import ModelSettings
from frisket.run import make_plan, match_report, module_names, train
from frisket.run.folder import read_json
from frisket.run.matching import Found, MatchReport
from frisket.watch import Silent


@pytest.fixture(scope="module")
def chats(tmp_path_factory):
    import json

    path = tmp_path_factory.mktemp("data") / "chats.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records(40)))
    return path


def report(small_model, where, method="full", **more):
    return match_report(recipe(small_model, "none", adapt={"method": method, "where": where, **more}), watcher=Silent())


def whole(small_model):
    return load.load_model(ModelSettings(path=str(small_model)), torch.float32, torch.device("cpu"))


def test_patterns_are_counted_each_by_itself_and_everything_adds_up(small_model):
    total = sum(p.numel() for p in whole(small_model).parameters())
    told = report(small_model, ["attention", "*.q_proj", {"layers": 1}])
    assert [(each.name, each.parameters, each.entries) for each in told.patterns] == [
        ("attention", 4, 2 * 32 * 32 + 2 * 16 * 32),
        ("*.q_proj", 1, 32 * 32),
    ]
    assert told.whole.entries == 3072
    assert told.whole.share == 3072 / total
    assert told.whole.entries + sum(each.entries for each in told.left_out) == total
    assert {each.name: each.parameters for each in told.left_out}["q_proj"] == 1  # that of the other layer
    assert any(line.startswith("where ") and "3,072" in line for line in told.lines())


def test_rows_and_policies_have_lines_of_their_own(small_model):
    told = report(small_model, "embeddings[100:200]")
    assert (told.whole.entries, told.whole.parameters) == (100 * 32, 1)
    assert {each.name: each.entries for each in told.left_out}["other rows of model.embed_tokens.weight"] == 220 * 32
    half = report(small_model, [{"half": "category"}])
    (policy,) = half.policies
    assert policy.name == "half"
    assert policy.parameters < half.patterns[0].parameters == 21
    assert any(line.startswith("note       half: ") for line in half.lines())


def test_kappa_has_a_table_of_every_matrix(small_model):
    told = report(small_model, [{"kappa": 0.2}], "lora")
    assert len(told.kappa) == 15  # the head too, which is never chosen
    assert [entry[1] for entry in told.kappa] == sorted(entry[1] for entry in told.kappa)
    without_head = [entry for entry in told.kappa if entry[0] != "lm_head"]
    assert [entry[2] for entry in without_head] == [True] * 2 + [False] * 12
    assert sum(line.endswith(" *") for line in told.lines()) == 2


def test_what_cannot_be_matched_is_refused_as_training_would(small_model):
    with pytest.raises(ConfigError, match="matched 0 of 21"):
        report(small_model, "*.qproj")
    with pytest.raises(UnsupportedError, match=r"adapt\.method=lora does not"):
        report(small_model, "embeddings[1:2]", "lora")
    assert module_names(recipe(small_model, "none"), watcher=Silent())["lm_head"] == 320 * 32


def test_a_run_keeps_what_its_policy_chose_and_its_model_has_only_that(small_model, chats, tmp_path):
    where = ["embeddings[100:200]", "norms"]
    wanted = recipe(
        small_model,
        chats,
        adapt={"method": "full", "where": where},
        train={"max_steps": 2, "save_every": 0, "weight_decay": 0.1},
    )
    out = tmp_path / "out"
    train(wanted, out=out)
    kept = read_json(out / "where.json")
    assert kept["rows"] == {"model.embed_tokens.weight": [[100, 200]]}
    before = dict(whole(small_model).named_parameters())
    after = dict(
        load.load_model(ModelSettings(path=str(out / "model")), torch.float32, torch.device("cpu")).named_parameters()
    )
    for name, parameter in before.items():
        if name == "model.embed_tokens.weight":
            moved = (parameter != after[name]).any(1).nonzero()[:, 0]
            assert set(moved.tolist()) == set(range(100, 200))  # decay moves rows that no token reads, too
        else:
            assert torch.equal(parameter, after[name]) == ("norm" not in name)


def test_a_plan_with_kappa_counts_the_largest_matrices(small_model, chats):
    plan = make_plan(recipe(small_model, chats, adapt={"method": "full", "where": [{"kappa": 0.2}]}), watcher=Silent())
    assert plan.moving == 2 * 48 * 32


def test_a_plan_says_nothing_of_a_policy_that_it_refuses(small_model, chats):
    said: list[str] = []
    watcher = Silent()
    watcher.say = said.append  # pyright: ignore[reportAttributeAccessIssue]
    for where in ([{"kappa": 0}], [{"half": "category"}, {"kappa": 0.5}]):
        bad = recipe(small_model, chats, adapt={"method": "full", "where": where})
        with pytest.raises(ConfigError, match=r"adapt.where: (kappa = 0 must|`half` and `kappa` both)"):
            make_plan(bad, watcher=watcher)
    assert said == []


def test_a_line_counts_tensors_and_keeps_the_digits_of_a_small_share():
    told = MatchReport((Found("norms", 1, 256, 256 / 3_541_248),), (), Found("in all", 2, 7, 1.0), (), (), ()).lines()
    assert told == [
        "pattern                256  0.0072%  norms (1 tensor)",
        "where                    7     100%  in all (2 tensors)",
    ]
