"""What a recipe says of teaching reaches the ledger, the step and the saved adapter."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from frisket.errors import ConfigError
from frisket.recipe import Recipe
from frisket.run import advising, export, prepare, train
from frisket.watch import Silent


class Heard(Silent):
    """Keeps the warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, line: str) -> None:
        self.warnings.append(line)


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
        (str(files[0]), "supervise.policy=instructions")
    ]


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
