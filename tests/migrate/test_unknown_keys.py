"""Keys of other tools in a recipe are answered from the tables, without loading anything heavy."""

import subprocess
import sys

import pytest

from frisket.errors import ConfigError
from frisket.migrate.tables import TOOLS
from frisket.recipe import Recipe, load_recipe

LIGHT = """
import sys
from frisket.migrate.tables import answer_for
assert answer_for("deepspeed")
print(sorted({"torch", "transformers", "peft", "pydantic", "datasets"} & set(sys.modules)))
"""


def answer(word: str) -> list[str]:
    with pytest.raises(ConfigError, match="there is no such key") as caught:
        load_recipe(None, [word])
    return str(caught.value).splitlines()


@pytest.mark.parametrize(
    ("word", "fix"),
    [
        ("deepspeed=ds.json", "deepspeed (TRL, Axolotl, LLaMA-Factory) is not supported: one device a run"),
        ("train.flash_attention=true", "flash_attention (Axolotl) is done here without a key: attend.backend: auto"),
        ("micro_batch_size=2", "Axolotl: train.step_tokens = micro_batch_size × gradient_accumulation_steps"),
        ("lora_dropout=0.1", "is not supported: frisket has no dropout; against overfitting: evaluate.stop_after=3 or"),
        ("num_epochs=3", "In frisket it is train.epochs=3 (passes over the data"),
        ("train.num_epochs=3", "In frisket it is train.epochs=3 (max_steps, where"),
        ("train.use_wandb=true", "In frisket it is 'train.track=[wandb]' ("),
        ("rl=dpo", "rl (Axolotl) is not supported: preference optimisation"),
        ("logging_steps=1", "is not needed: every step is in metrics.jsonl"),
        ("train.saves_per_epoch=2", "saves_per_epoch (Axolotl) is train.save_every: as a share of the run"),
    ],
)
def test_a_key_of_the_tables_is_answered_with_its_mapping_or_its_reason(word: str, fix: str) -> None:
    *_, last = answer(word)
    assert fix in last


def test_every_plain_key_of_the_tables_gets_an_answer_in_a_recipe() -> None:
    keys = {key for tool in TOOLS.values() for key in tool.rows if key.isidentifier()} - set(Recipe.model_fields)
    assert len(keys) > 700
    for key in sorted(keys)[::9]:
        lines = answer(f"{key}=1")
        assert len(lines) == 2
        assert "Keys of" not in lines[1], key


def test_the_tables_load_nothing_heavy() -> None:
    done = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
