"""What a recipe says of teaching reaches the ledger, the step and the saved adapter."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from frisket.errors import ConfigError, DataError, UnsupportedError
from frisket.recipe import Recipe
from frisket.run import advising, export, make_plan, prepare, teaching, train
from frisket.run.overlap import overlap_of
from frisket.supervise.loss import CROSS_ENTROPY
from frisket.types import Ledger
from frisket.watch import Silent


class Heard(Silent):
    """Keeps the warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, line: str) -> None:
        self.warnings.append(line)


LAST = {"turns": "last", "weight": 2}
HEADER = "alpha beta gamma delta epsilon: "


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> tuple[Path, Path]:
    """Prompts that begin alike; and a chat with a weight on a message."""
    folder = tmp_path_factory.mktemp("data")
    pairs = [{"prompt": f"{HEADER}{'zeta eta theta ' * (n % 4)}{n}", "completion": "iota"} for n in range(12)]
    chats = [
        {
            "messages": [
                {"role": "user", "content": "alpha"},
                {"role": "assistant", "content": "beta", "weight": 0},
                {"role": "user", "content": "gamma"},
                {"role": "assistant", "content": f"delta {n}"},
            ]
        }
        for n in range(4)
    ]
    for name, rows in (("pairs", pairs), ("chats", chats)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "pairs.jsonl", folder / "chats.jsonl"


def recipe(model: Path, *sources: dict, **sections) -> Recipe:
    given = {"model": {"path": str(model)}, "data": list(sources), "evaluate": "off", **sections}
    return Recipe.model_validate(given)


def prepared(model: Path, *sources: dict, **supervise):
    return prepare.prepare(recipe(model, *sources, supervise=supervise), Silent())


def test_each_source_has_a_teaching_of_its_own(small_model, files):
    pairs, chats = files
    own = {"policy": "roles", "roles": {"assistant": 1, "end_of_turn": 0.5, "user": 0.25}}
    found = prepared(small_model, {"path": str(pairs)}, {"path": str(chats), "supervise": own})
    assert "user" not in found.ledgers[0].taught
    assert found.ledgers[1].taught["user"] > 0
    chat = next(i for i in range(len(found.dataset)) if found.dataset.source_of[i] == 1)
    _, weights = found.weighted(chat)
    assert set(weights) == {0, 0.25, 0.5, 1}


def test_the_recipes_own_section_says_normaliser_and_loss_for_all_sources(small_model, files):
    with pytest.raises(ConfigError, match=r"data\.0\.supervise\.normaliser"):
        recipe(small_model, {"path": str(files[0]), "supervise": {"normaliser": "tokens"}})


def test_a_sources_contradictions_name_the_source(small_model, files):
    with pytest.raises(ConfigError, match=r"data\.0\.supervise\.policy = 'roles'"):
        prepared(small_model, {"path": str(files[0]), "supervise": {"policy": "roles"}})


def test_dft_has_no_smoothed_form(small_model, files):
    with pytest.raises(ConfigError, match="no form with label smoothing"):
        prepared(small_model, {"path": str(files[0])}, loss="dft", label_smoothing=0.1)


def test_constant_text_is_found_left_out_and_shown(small_model, files):
    found = prepared(small_model, {"path": str(files[0])}, policy="boilerplate")
    (phrase,) = advising.boilerplate_of(found)
    assert (phrase["role"], phrase["side"], phrase["share"]) == ("user", "start", 1.0)
    assert phrase["text"].startswith(HEADER.strip()[:-1])
    sequence, weights, rules = found.explained(0)
    constant = ["constant across the source" in names for names in rules]
    assert found.tokenizer.decode(sequence.input_ids[constant]).strip() == phrase["text"].strip()
    assert not weights[constant].any()
    assert found.ledgers[0].taught["user"] < sum(int(np.sum(s.roles == 3)) for s in found.dataset)


def test_given_texts_are_left_out_instead(small_model, files):
    found = prepared(small_model, {"path": str(files[0])}, policy="boilerplate", boilerplate=["alpha beta"])
    (phrase,) = advising.boilerplate_of(found)
    assert phrase["text"] == "alpha beta"


def test_another_policy_is_explained_on_demand(small_model, files):
    found = prepared(small_model, {"path": str(files[1])})
    sequence, weights, rules = found.explained(0, "all")
    assert weights[1:].sum() == len(sequence) - 1 - np.sum(~np.isnan(sequence.data_weights))
    assert any("the message's weight 0" in names for names in rules)
    assert found.explained(0)[1].sum() < weights.sum()


def test_the_constant_text_is_found_for_a_comparison_too(small_model, files):
    asked = prepared(small_model, {"path": str(files[0])}, policy="boilerplate").explained(0)
    shown = prepared(small_model, {"path": str(files[0])}).explained(0, "boilerplate")
    assert np.array_equal(asked[1], shown[1])
    assert asked[2] == shown[2]


def test_advice_is_given_on_the_sources_own_lengths(small_model, files):
    found = prepared(small_model, {"path": str(files[0])}, {"path": str(files[1])})
    lengths = advising.lengths_of(found, 0)
    assert lengths.samples == 12
    assert lengths.ratio > 1
    assert [(path, advice.fix) for path, advice in advising.advice_for(found)] == [
        (str(files[0]), "data.0.supervise.policy=instructions")
    ]
    alone = prepared(small_model, {"path": str(files[0])})
    assert [advice.fix for _, advice in advising.advice_for(alone)] == ["supervise.policy=instructions"]


@pytest.mark.parametrize("too_long", ["split", "truncate"])
@pytest.mark.parametrize("knobs", [{"policy": "last-turn"}, {"policy": "completion"}, {"rules": [LAST]}])
def test_what_looks_at_the_end_of_a_conversation_is_refused_where_conversations_are_cut(
    small_model, files, too_long, knobs
):
    with pytest.raises(UnsupportedError, match=r"looks at the end of a conversation.*\nUse data\.0\.too_long=drop"):
        prepared(small_model, {"path": str(files[1]), "too_long": too_long, "max_tokens": 40}, **knobs)


def test_a_sample_of_nothing_but_constant_text_is_a_problem_with_its_line(small_model, tmp_path):
    lines = [
        {"messages": [{"role": "user", "content": HEADER * 2}, {"role": "assistant", "content": "a", "weight": 0}]}
    ]
    lines = [*lines * 11, {"messages": [{"role": "user", "content": HEADER * 2 + "zeta"}, *lines[0]["messages"][1:]]}]
    path = tmp_path / "constant.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(DataError, match=r"constant\.jsonl:1: nothing is supervised under `boilerplate`"):
        prepared(small_model, {"path": str(path)}, policy="boilerplate")
    kept = prepared(small_model, {"path": str(path), "bad": "drop"}, policy="boilerplate")
    assert len(kept.dataset) == 1


def test_each_sources_ledger_must_balance_by_itself(small_model, files, monkeypatch):
    ledgers = (Ledger(read=5, dropped=4), Ledger(read=5, dropped=6))
    with pytest.raises(ConfigError, match=r"data\.0: 5 tokens were read but 4 .*data\.1: 5 tokens were read but 6"):
        teaching._check_balance(ledgers)


@pytest.mark.parametrize("broken", ["taught", "untaught", "read"])
def test_a_broken_counter_of_the_first_identity_is_seen(small_model, files, monkeypatch, broken):
    found = prepared(small_model, {"path": str(files[0])})
    real = teaching._named
    wrong = iter([broken == "taught", broken == "untaught"])
    monkeypatch.setattr(teaching, "_named", lambda counts: real(counts * 2 if next(wrong, False) else counts))
    if broken == "read":
        monkeypatch.setattr(teaching, "_without_aside", lambda ledger, *rest: replace(ledger, read=ledger.read - 1))
    with pytest.raises(ConfigError, match="the ledger does not balance"):
        teaching.taught_ledgers(found.teaching, found.dataset, found.dataset.train)


@pytest.mark.parametrize("which", [0, 1])
def test_a_broken_counter_of_the_second_identity_is_seen(small_model, files, monkeypatch, which):
    forest = recipe(small_model, {"path": str(files[0])}, attend={"arrangement": "forest"})
    found = prepare.prepare(forest, Silent())
    (ledger,) = found.ledger_of_steps(2)
    assert ledger.shared > 0
    assert not ledger.imbalances()
    real = prepare.shared_by_source

    def wrong(*arguments):
        counts = list(real(*arguments))
        counts[which] = counts[which] + 1
        return counts

    monkeypatch.setattr(prepare, "shared_by_source", wrong)
    assert found.ledger_of_steps(2)[0].imbalances()


def test_a_section_that_decides_nothing_is_named(small_model, files):
    said = Heard()
    own = {"path": str(files[0]), "supervise": {"policy": "assistant"}}
    prepare.prepare(recipe(small_model, own, supervise={"policy": "all"}), said)
    assert "supervise.policy decides nothing: every source has a `supervise` of its own" in said.warnings


@pytest.mark.parametrize("knobs", [{"loss": "dft"}, {"label_smoothing": 0.3}])
def test_overfit_judges_by_cross_entropy(small_model, files, knobs):
    said = Heard()
    found = prepare.prepare(recipe(small_model, {"path": str(files[0])}, supervise=knobs), said, overfit=2)
    assert found.laying.loss == CROSS_ENTROPY
    assert any("plain cross-entropy" in line for line in said.warnings)
    assert found.ledgers[0].samples["train"] == 2
    assert not found.ledgers[0].imbalances()


def test_overlap_is_found_whatever_the_recipe_puts_around_a_record(small_model, files, tmp_path):
    records = [{"instruction": f"Tell me of {n}.", "input": "", "output": f"Of {n} {'word ' * n}"} for n in range(30)]
    path = tmp_path / "alpaca.json"
    path.write_text(json.dumps(records))
    evaluate = {"learning": [{"name": "same", "path": str(path)}]}
    for knobs in ({"render": "alpaca"}, {"system": "Be kind."}, {"expand": "turns"}):
        source = {"path": str(path), "hold_out": 0, **knobs}
        found = prepare.prepare(recipe(small_model, source, evaluate=evaluate), Silent())
        assert overlap_of(found, None, Silent())["same"]["duplicates"] == 30


def test_a_method_that_does_not_pack_gets_a_row_a_sample_in_every_verb(small_model, files):
    method = {"method": "peft", "peft_type": "PVERA"}
    found = prepare.prepare(recipe(small_model, {"path": str(files[0])}, adapt=method), Silent())
    assert (found.laying.arrangement, found.why_so) == ("alone", "PVERA is not shown to be exact in packed rows")
    with pytest.raises(UnsupportedError, match="PVERA is not shown to be exact where rows hold several"):
        prepare.prepare(
            recipe(small_model, {"path": str(files[0])}, adapt=method, attend={"arrangement": "forest"}), Silent()
        )


def test_a_plan_says_where_no_constant_text_was_found_and_that_stages_are_left_out(small_model, files):
    given = recipe(
        small_model,
        {"path": str(files[1])},
        supervise={"policy": "boilerplate"},
        stages=[{"train": {"max_steps": 1}}],
    )
    lines = make_plan(given, watcher=Silent()).lines()
    assert f"constant   {files[1]}: none was found, so nothing more is left out" in lines
    assert "stages     1, which change train; planned here is the recipe without them" in lines


@pytest.mark.parametrize("tied", [False, True])
def test_lora_on_the_head_trains_saves_and_merges(small_model, files, tmp_path, tied):
    base = small_model
    if tied:
        base = tmp_path / "tied"
        model = AutoModelForCausalLM.from_pretrained(small_model, tie_word_embeddings=False)
        model.lm_head.weight = model.model.embed_tokens.weight
        model.config.tie_word_embeddings = True
        model.save_pretrained(base)
        AutoTokenizer.from_pretrained(small_model).save_pretrained(base)
    sections = {
        "adapt": {"where": ["attention", "head"], "rank": 2},
        "train": {"max_steps": 3, "step_tokens": 200, "learning_rate": 0.05, "compute": "fp32"},
        "supervise": {"loss": "dft"},
    }
    said = Heard()
    summary = train(recipe(base, {"path": str(files[0])}, **sections), out=tmp_path / "run", watcher=said)
    assert any("PEFT's merge would move both" in line for line in said.warnings) == tied
    assert summary["model"]["moving"] > 0
    facts = export(tmp_path / "run", to="merged", into=None, watcher=Silent())
    assert facts["difference_fp32"] <= 1e-4
    merged = AutoModelForCausalLM.from_pretrained(facts["merged"])
    head, embedding = merged.lm_head.weight, merged.model.embed_tokens.weight
    plain = AutoModelForCausalLM.from_pretrained(base)
    assert torch.equal(embedding, plain.model.embed_tokens.weight)
    assert (head - plain.lm_head.weight).abs().max() > 1e-4
