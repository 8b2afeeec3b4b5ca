"""Files in their three forms, and the tool that is found."""

import json
from pathlib import Path

import pytest
from tests.migrate.configs import AXOLOTL, TRL

from frisket.errors import ConfigError, UnsupportedError
from frisket.migrate.read import read_file, tool_of
from frisket.migrate.translate import translate


def written(folder: Path, text: str, name: str = "c.yaml") -> Path:
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return file


def test_a_script_that_starts_trl(tmp_path: Path) -> None:
    script = """#!/bin/bash
MODEL=Qwen/Qwen3-0.6B
accelerate launch --config_file zero3.yaml trl/scripts/sft.py \\
    --model_name_or_path ${MODEL} --dataset_name=trl-lib/Capybara \\
    --learning_rate 2.0e-4 --packing --use_peft --lora_target_modules q_proj v_proj  # as published
"""
    given = read_file(written(tmp_path, script, "run.sh"))
    assert given.tool == "trl"
    assert given.keys == {
        "model_name_or_path": "Qwen/Qwen3-0.6B",
        "dataset_name": "trl-lib/Capybara",
        "learning_rate": 2e-4,
        "packing": True,
        "use_peft": True,
        "lora_target_modules": ["q_proj", "v_proj"],
    }


def test_a_command_that_names_a_file_reads_it(tmp_path: Path) -> None:
    written(tmp_path, TRL)
    given = read_file(written(tmp_path, "trl sft --config c.yaml --lora_r 4\n", "run.sh"))
    assert given.keys["lora_r"] == 4
    assert given.keys["lora_alpha"] == 16
    given = read_file(written(tmp_path, "llamafactory-cli train c.yaml\n", "run.sh"))
    assert given.tool == "llama-factory"
    given = read_file(written(tmp_path, "accelerate launch src/train.py c.yaml\n", "run.sh"))
    assert given.tool == "llama-factory"
    with pytest.raises(ConfigError, match="which is not here"):
        read_file(written(tmp_path, "trl sft --config other.yaml\n", "run.sh"))


def test_a_dump_of_the_training_arguments(tmp_path: Path) -> None:
    file = written(
        tmp_path, json.dumps({"max_length": 64, "assistant_only_loss": True, "debug": [], "fsdp": []}), "args.json"
    )
    migration = translate(file)
    assert migration.tool.name == "trl"
    assert migration.answers["fsdp"].outcome == "default"
    assert [check for check in migration.checks if "names no" in check] == [
        "the file names no data: frisket train … --data chats.jsonl",
        "the file names no model: frisket train … --model Qwen/Qwen3-0.6B",
    ]


@pytest.mark.parametrize(
    ("text", "tool"),
    [
        (AXOLOTL, "axolotl"),
        ("model_name_or_path: m\ndataset_name: d\n", "trl"),
        ("model_name_or_path: m\nstage: sft\n", "llama-factory"),
        ("model: m\ntrain_dataset: d\n", "llama-factory"),
    ],
)
def test_the_tool_is_found_by_its_keys(tmp_path: Path, text: str, tool: str) -> None:
    file = written(tmp_path, text)
    assert tool_of(file, read_file(file).keys, None).name == tool


def test_an_uncertain_tool_is_asked_for(tmp_path: Path) -> None:
    file = written(tmp_path, "learning_rate: 1e-4\nseed: 3\n")
    with pytest.raises(ConfigError, match="so the tool is not certain") as uncertain:
        translate(file)
    assert "keys are those of TRL or Axolotl or LLaMA-Factory" in str(uncertain.value)
    assert str(uncertain.value).endswith("Say which: --from trl")
    assert translate(file, "trl").knobs["train.seed"] == 3
    with pytest.raises(ConfigError, match="none of the known tools"):
        translate(written(tmp_path, "wibble: 1\n"))
    with pytest.raises(ConfigError, match="--from axo: must be one of trl, axolotl, llama-factory"):
        translate(file, "axo")


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("compute_environment: LOCAL\nmixed_precision: bf16\n", "a configuration of accelerate"),
        ("zero_optimization: {stage: 3}\n", "a configuration of DeepSpeed"),
        ("model_name_or_path: m\nexport_dir: out\n", "for merging a model"),
        ("model_name_or_path: m\ninfer_backend: vllm\n", "for generating answers"),
        ("provider: x\ngpu_count: 2\n", "for renting machines"),
    ],
)
def test_a_file_without_training_is_named(tmp_path: Path, text: str, what: str) -> None:
    with pytest.raises(UnsupportedError, match=what):
        translate(written(tmp_path, text))


@pytest.mark.parametrize(
    ("command", "what"),
    [
        ("trl dpo --model_name_or_path m", "dpo is preference optimisation"),
        ("python trl/scripts/grpo.py --x 1", "grpo is preference optimisation or reinforcement"),
        ("trl reward --x 1", "reward is training of a reward model"),
        ("python sft_vlm_gemma3.py --x 1", "sft_vlm_gemma3 is training on images"),
    ],
)
def test_another_script_is_refused_by_name(tmp_path: Path, command: str, what: str) -> None:
    with pytest.raises(UnsupportedError, match=what):
        translate(written(tmp_path, command, "run.sh"))


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no such file"):
        read_file(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="not a text file"):
        read_file(tmp_path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_file(written(tmp_path, "a: [1"))
    with pytest.raises(ConfigError, match="cannot be read"):
        read_file(written(tmp_path, "{", "c.json"))
    with pytest.raises(ConfigError, match="holds no keys and values"):
        read_file(written(tmp_path, "- 1\n"))
    with pytest.raises(ConfigError, match="no training command was found"):
        read_file(written(tmp_path, "echo hello\n", "run.sh"))
    with pytest.raises(ConfigError, match="a quote is not closed"):
        read_file(written(tmp_path, "echo 'hello\n", "run.sh"))
