"""The verb: what it writes, prints and returns."""

import json
import re
from pathlib import Path

import pytest
from tests.migrate.configs import AXOLOTL

from frisket.cli.main import run_words
from frisket.recipe import load_recipe


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "axolotl.yml"
    file.write_text(AXOLOTL, encoding="utf-8")
    return file


def test_it_writes_a_recipe_and_shows_every_key(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_words(["migrate", str(config)]) == 0
    shown = capsys.readouterr().out
    assert "Axolotl, 40 keys: " in shown
    assert "datasets[1].split" in shown
    assert "frisket train recipe.yaml --out ./out" in shown
    assert "look at: " in shown
    assert load_recipe("recipe.yaml").adapt.method == "lora"


def test_a_narrow_screen_folds_a_key_and_cuts_nothing(
    config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    config.write_text(AXOLOTL + "lr_scheduler_kwargs: {a_name_of_many_words: 1}\n", encoding="utf-8")
    assert run_words(["migrate", str(config)]) == 0
    shown = capsys.readouterr().out
    assert "…" not in shown
    first_column = "".join(line[2:32].strip() for line in shown.splitlines())
    assert "lr_scheduler_kwargs.a_name_of_many_words" in first_column


def test_as_json_every_key_has_its_outcome(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_words(["migrate", str(config), "--out", "new/r.yaml", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["from"] == "axolotl"
    assert facts["keys"]["micro_batch_size"]["text"].startswith("train.step_tokens = 8192")
    assert sum(facts["counts"].values()) == len(facts["keys"]) == 40
    assert (facts["unknown"], facts["exit_code"]) == ([], 0)
    assert (config.parent / "new" / "r.yaml").is_file()


def test_empty_keys_share_a_line_and_what_is_lost_is_named(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lost = "neftune_noise_alpha: 5\ndeepspeed: zero2.json\nlearning_ratee: 1\nwibble: 1\n"
    config.write_text(AXOLOTL + "hub_model_id:\nresume_from_checkpoint:\n" + lost, encoding="utf-8")
    assert run_words(["migrate", str(config)]) == 3
    shown = capsys.readouterr().out
    assert "nothing is given" not in shown
    assert re.search(r"\d empty keys +default +.*hub_model_id,\s+resume_from_checkpoint", shown)
    one_line = " ".join(shown.split())
    assert re.search(
        r"not in the recipe: lora_dropout, deepspeed, neftune_noise_alpha, learning_ratee, wibble", one_line
    )
    assert "a slip of learning_rate? Then mend it" in one_line
    assert "Exit code 3: 2 keys unknown. Mend a slip in the file" in one_line
    written = Path("recipe.yaml").read_text(encoding="utf-8")
    assert "# Not in this recipe: neftune_noise_alpha: " in written
    assert "# Not in this recipe: wibble: unknown to this version" in written


def test_unknown_keys_change_the_exit_code(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config.write_text(AXOLOTL + "wibble: 1\n", encoding="utf-8")
    assert run_words(["migrate", str(config), "--json"]) == 3
    facts = json.loads(capsys.readouterr().out)
    assert (facts["unknown"], facts["counts"]["unknown"]) == (["wibble"], 1)
    assert load_recipe("recipe.yaml").data


def test_nothing_is_overwritten(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (config.parent / "recipe.yaml").write_text("mine", encoding="utf-8")
    assert run_words(["migrate", str(config)]) == 2
    assert "recipe.yaml is there already, and nothing is overwritten" in capsys.readouterr().err
    assert (config.parent / "recipe.yaml").read_text(encoding="utf-8") == "mine"


def test_a_recipe_that_would_not_load_is_not_written(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config.write_text(AXOLOTL.replace("2e-4", "-1"), encoding="utf-8")
    assert run_words(["migrate", str(config)]) == 2
    error = capsys.readouterr().err
    assert "The recipe would not load, so it was not written." in error
    assert "train.learning_rate = -1" in error
    assert [file.name for file in config.parent.iterdir()] == ["axolotl.yml"]


def test_another_job_writes_nothing(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config.write_text(AXOLOTL + "rl: kto\n", encoding="utf-8")
    assert run_words(["migrate", str(config)]) == 2
    assert "no recipe was written" in capsys.readouterr().err
    assert not (config.parent / "recipe.yaml").exists()
