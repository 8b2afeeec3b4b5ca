import re

import pytest
import yaml

from frisket.report.card import model_card

RECIPE = "model:\n  path: bundled\n"


def front(card: str) -> dict:
    _, matter, _ = card.split("---\n", 2)
    return yaml.safe_load(matter)


def code(card: str) -> str:
    return re.findall(r"```python\n(.*?)```", card, re.DOTALL)[0]


def model(summary: dict, path: str) -> dict:
    return summary["model"] | {"path": path}


def test_front_matter_of_an_adapter(summary):
    summary["model"] = model(summary, "Qwen/Qwen3-4B")
    matter = front(model_card(summary, RECIPE, {}))
    assert matter["base_model"] == "Qwen/Qwen3-4B"
    assert matter["base_model_relation"] == "adapter"
    assert matter["library_name"] == "peft"
    assert "frisket" in matter["tags"]


@pytest.mark.parametrize("path", ["bundled", "/models/mine", "./mine", "C:\\models\\a: b"])
def test_a_base_that_is_no_hub_id_is_named_in_the_text_only(summary, path):
    summary["model"] = model(summary, path)
    card = model_card(summary, RECIPE, {})
    assert "base_model" not in front(card)
    assert path.replace("\\", "\\\\") in card


def test_an_adapter_is_loaded_by_plain_peft(summary):
    summary["model"] = model(summary, 'odd "name"')
    text = code(model_card(summary, RECIPE, {}))
    compile(text, "card", "exec")
    assert 'base = "odd \\"name\\""' in text
    assert 'PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), "adapter")' in text
    assert "frisket" not in text


def test_the_bundled_base_is_found_through_frisket(summary):
    text = code(model_card(summary, RECIPE, {}))
    compile(text, "card", "exec")
    assert "from frisket.bundled import base_path" in text
    assert "base = base_path()" in text


def test_a_full_model_is_loaded_by_plain_transformers(summary):
    summary["artifacts"] = {"model": "model"}
    card = model_card(summary, RECIPE, {})
    assert front(card)["library_name"] == "transformers"
    compile(code(card), "card", "exec")
    assert 'AutoModelForCausalLM.from_pretrained("model")' in code(card)
    assert "peft" not in code(card).lower()


def test_figures_ledger_and_cost_are_told(summary):
    card = model_card(summary, RECIPE, {"python": "3.11.2", "packages": {"torch": "2.13"}})
    for said in (
        "| skills | 100 | exact match | 1.0 % (0.0 % to 6.0 %) | 81.0 % (76.0 % to 86.0 %) | ",
        " | +80.0 points (+70.0 to +90.0) |",
        "| skills · sort | 50 | exact match |",
        "| default | 32 | KL from the base | 0 | 0.043 (0.03 to 0.05) | +0.043 |",
        "| taught: assistant | 300 | 10 | 310 |",
        "- 2,050 flat = 1,550 computed + 500 shared",
        "- real tokens per second: 8,812",
        "- total: 2 min 22 s",
        "- python: 3.11.2",
        "## Limits",
    ):
        assert said in card
    assert "None" not in card


def test_a_run_without_evaluation_says_so(summary):
    card = model_card(summary | {"learning": {}, "forgetting": {}}, RECIPE, {})
    assert "Not measured: evaluation was switched off" in card
    assert "Not measured.\n" in card


def test_a_ledger_that_does_not_balance_is_not_hidden(summary):
    summary["tokens"]["sources"][0]["read"] += 1
    assert "DOES NOT HOLD" in model_card(summary, RECIPE, {})


def test_names_cannot_break_tables_or_fences(summary):
    summary["data"][0]["path"] = "a|b\n<img src=x>*.jsonl"
    card = model_card(summary, "note: '```'\n", {})
    assert "| a\\|b \\<img src=x\\>\\*.jsonl | messages | 40 |" in card
    assert "````yaml\nnote: '```'\n````" in card


def test_overlap_of_evaluation_and_training_data_is_told(summary):
    share = {"most": 1, "some": 2}
    entry = {"samples": 9, "duplicates": 1, "same_prompt": 1, "whole": share, "prompt": share, "answer": share}
    told = summary | {"overlap": {"hold|out": entry | {"sentence": "1 of 9 <b> is in the training data."}}}
    card = model_card(told, "", {})
    assert "- hold|out: 1 of 9 \\<b\\> is in the training data." in card
    assert "| hold\\|out | 9 | 1 | 1 | 1 | 2 | 1 | 2 | 1 | 2 |" in card
    assert "Was the evaluation data trained on?" not in model_card(summary, "", {})
