"""What small configurations of the three tools become."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.migrate.configs import AXOLOTL, BY_TOOL, LLAMA_FACTORY, TRL, migrated, recipe_of
from tests.migrate.page import RESULT

from frisket.errors import ConfigError, UnsupportedError
from frisket.migrate.table import leaves
from frisket.migrate.write import recipe_text


@pytest.mark.parametrize("tool", BY_TOOL)
def test_every_key_gets_an_answer_and_the_recipe_loads(tmp_path: Path, tool: str) -> None:
    migration = migrated(tmp_path, BY_TOOL[tool])
    keys = {key for key, _ in leaves(yaml.safe_load(BY_TOOL[tool]))}
    assert set(migration.answers) == keys
    assert migration.tool.name == tool
    assert sum(migration.counts.values()) == len(keys)
    assert migration.unknown == []
    assert recipe_of(tmp_path, migration).data


@pytest.mark.parametrize("tool", BY_TOOL)
def test_every_knob_of_the_recipe_stands_beside_a_key(tmp_path: Path, tool: str) -> None:
    migration = migrated(tmp_path, BY_TOOL[tool])
    texts = [answer.text for answer in [*migration.answers.values(), *migration.assumed.values()]]
    several = sum(knob.endswith(".path") and knob.startswith("data.") for knob in migration.knobs) > 1
    for knob, value in migration.knobs.items():
        name = re.sub(r"^data\.\d+", "data.N", knob) if several and not any(knob in text for text in texts) else knob
        assert any(name in text for text in texts), (knob, value)


def test_one_source_is_called_by_its_number(tmp_path: Path) -> None:
    one = "base_model: m\ndatasets: [{path: d}]\nadapter: lora\nsequence_len: 64\nval_set_size: 0.1\n"
    migration = migrated(tmp_path, one)
    assert migration.answers["val_set_size"].text == "data.0.hold_out = 0.1"
    assert migration.answers["sequence_len"].text == (
        "data.0.max_tokens = 64; attend.row_tokens = 64 (rows of that length); "
        "data.0.too_long = drop (what happens to longer ones, as before)"
    )
    assert not any("data.N." in answer.text for answer in migration.answers.values())


def test_packages_that_the_recipe_needs_are_named(tmp_path: Path) -> None:
    checks = migrated(tmp_path, AXOLOTL).checks
    assert any(check.endswith("pip install 'frisket[quantised]'") for check in checks)
    assert any(check.endswith("pip install 'frisket[wandb]'") for check in checks)


def test_an_axolotl_qlora_file(tmp_path: Path) -> None:
    migration = migrated(tmp_path, AXOLOTL)
    recipe = recipe_of(tmp_path, migration)
    assert (recipe.model.path, recipe.model.load) == ("Qwen/Qwen3-0.6B", "4bit")
    assert recipe.model.add_tokens == ("<a>", "<b>")
    assert recipe.adapt.model_dump(include={"method", "rank", "alpha", "where"}) == {
        "method": "lora",
        "rank": 8,
        "alpha": 16,
        "where": ["*.q_proj", "*.v_proj"],
    }
    chats, questions = recipe.data
    assert (chats.messages, chats.max_tokens, chats.too_long, chats.hold_out) == ("talk", 1024, "drop", 0.05)
    assert (questions.format, questions.render, questions.split) == ("alpaca", "alpaca", "train[:10]")
    train = recipe.train
    assert (train.step_tokens, train.optimizer, train.learning_rate) == (8192, "adamw-8bit", 2e-4)
    assert (train.epochs, train.warmup, train.track) == (2, 0.1, ("wandb",))
    assert recipe.evaluate is not None
    assert (recipe.evaluate.every, recipe.evaluate.stop_after) == (0.25, 3)
    assert (recipe.attend.row_tokens, recipe.attend.micro_rows) == (1024, 2)
    assert migration.flags == {"--out": "./out"}
    arithmetic = "# 2 micro_batch_size × 4 gradient_accumulation_steps × 1,024 sequence_len"
    assert f"step_tokens: 8192  {arithmetic}\n" in recipe_text(migration)
    outcomes = {key: answer.outcome for key, answer in migration.answers.items()}
    assert outcomes["deepspeed"] == outcomes["lora_dropout"] == "not supported"
    assert outcomes["fsdp"] == outcomes["flash_attention"] == outcomes["chat_template"] == "default"
    assert outcomes["dataset_prepared_path"] == "not needed"


def test_a_llama_factory_file_with_its_list_of_data_sets(tmp_path: Path) -> None:
    listed = {
        "mine": {"file_name": "mine.json", "columns": {"prompt": "q", "response": "a"}},
        "theirs": {"hf_hub_url": "them/talks", "formatting": "sharegpt", "columns": {"messages": "talk"}, "split": "x"},
    }
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps(listed), encoding="utf-8")
    migration = migrated(tmp_path, LLAMA_FACTORY)
    recipe = recipe_of(tmp_path, migration)
    mine, theirs = recipe.data
    assert (mine.path, mine.prompt, mine.completion) == (str(tmp_path / "data" / "mine.json"), "q", "a")
    assert (theirs.path, theirs.messages, theirs.split, theirs.limit) == ("them/talks", "talk", "x", 100)
    assert (recipe.train.step_tokens, recipe.train.schedule, recipe.train.warmup) == (8192, "constant", 20)
    assert (recipe.train.compute, recipe.train.track) == ("bf16", ("wandb",))
    assert any("mask-free" in check for check in migration.checks)


def test_a_name_that_no_list_has_is_taken_and_said(tmp_path: Path) -> None:
    migration = migrated(tmp_path, LLAMA_FACTORY)
    assert migration.knobs["data.0.path"] == "mine"
    assert any(check.startswith("data.0.path = mine is a name only") for check in migration.checks)
    (tmp_path / "dataset_info.json").write_text(json.dumps({"mime": {"file_name": "x.json"}}), encoding="utf-8")
    checks = migrated(tmp_path, LLAMA_FACTORY).checks
    assert any("mine is not in dataset_info.json (there is mime)" in check for check in checks)


def test_a_trl_file(tmp_path: Path) -> None:
    migration = migrated(tmp_path, TRL)
    recipe = recipe_of(tmp_path, migration)
    assert (recipe.data[0].path, recipe.data[0].subset) == ("trl-lib/Capybara", "main")
    assert recipe.adapt.model_dump(include={"rank", "alpha", "where"}) == {
        "rank": 32,
        "alpha": 16,
        "where": "all-linear",
    }
    assert (recipe.train.step_tokens, recipe.train.seed, recipe.train.save_every) == (2 * 8 * 2048, 7, 100)
    assert (recipe.supervise.loss, recipe.train.track) == ("dft", ("tensorboard",))


def test_what_the_tool_does_unasked_is_written_down(tmp_path: Path) -> None:
    migration = migrated(tmp_path, "model_name_or_path: m\ndataset_name: d\n")
    recipe = recipe_of(tmp_path, migration)
    assert recipe.adapt.method == "full"
    assert (recipe.train.epochs, recipe.train.schedule, recipe.train.warmup) == (3.0, "linear", 0)
    assert recipe.train.learning_rate == 2e-5
    assert "learning_rate" in migration.assumed
    assert "learning_rate" not in migration.answers
    assert "# TRL's default for learning_rate" in recipe_text(migration)


def test_version_1_of_llama_factory_has_other_defaults(tmp_path: Path) -> None:
    text = "model: m\nmodel_class: llm\ntrain_dataset: x.jsonl\nglobal_batch_size: 4\ncutoff_len: 100\n"
    migration = migrated(tmp_path, text)
    assert migration.knobs["adapt.method"] == "full"
    assert migration.knobs["train.step_tokens"] == 400


def test_raw_text(tmp_path: Path) -> None:
    text = "model_name_or_path: m\nstage: pt\ndataset: web\nfinetuning_type: full\ntemplate: default\ncutoff_len: 64\n"
    recipe = recipe_of(tmp_path, migrated(tmp_path, text))
    assert (recipe.supervise.policy, recipe.data[0].format) == ("all", "text")
    assert recipe.train.step_tokens == 8 * 64
    web = "base_model: m\nlearning_rate: 1e-4\npretraining_dataset:\n  - {path: web, name: en, type: pretrain}\n"
    recipe = recipe_of(tmp_path, migrated(tmp_path, web))
    assert (recipe.supervise.policy, recipe.data[0].format, recipe.data[0].subset) == ("all", "text", "en")


def test_unpacked_samples_of_a_local_file_are_measured(tmp_path: Path) -> None:
    data = tmp_path / "chats.jsonl"
    data.write_text(json.dumps({"prompt": "a" * 100, "completion": "b" * 300}) + "\n", encoding="utf-8")
    text = f"model_name_or_path: m\ndataset_name: {data}\nper_device_train_batch_size: 4\n"
    migration = migrated(tmp_path, text)
    assert migration.knobs["train.step_tokens"] == 400
    assert "4 samples, unpacked, × about 100 tokens" in migration.comments["train.step_tokens"]
    data.unlink()
    migration = migrated(tmp_path, text)
    assert migration.knobs["train.step_tokens"] == 4 * 1024
    assert any("is the most that 4 unpacked samples" in check for check in migration.checks)


@pytest.mark.parametrize(
    ("lines", "knob", "value"),
    [
        ("optimizer: adamw_torch_fused", "train.optimizer", "adamw"),
        ("optimizer: paged_adamw_32bit", "train.optimizer", "adamw"),
        ("optimizer: adamw_torch_4bit", "train.optimizer", "adamw-8bit"),
        ("optimizer: lion_8bit", "train.optimizer", "adamw"),
        ("optimizer: schedule_free_adamw", "train.optimizer", "schedule-free"),
        ("lr_scheduler: one_cycle", "train.schedule", "cosine"),
        ("lr_scheduler: constant\nwarmup_ratio: 0.1", "train.warmup", 0),
        ("warmup_steps: 0\nwarmup_ratio: 0.1", "train.warmup", 0.1),
        ("warmup_steps: 12\nwarmup_ratio: 0.1", "train.warmup", 12),
        ("adam_beta2: 0.95", "train.betas", [0.9, 0.95]),
        ("num_epochs: 4\nevals_per_epoch: 5", "evaluate.every", 0.05),
        ("num_epochs: 1\nsaves_per_epoch: 1", "train.save_every", 0),
        ("max_steps: 9\nnum_epochs: 2", "train.max_steps", 9),
        ("save_strategy: 'no'\nsave_steps: 5", "train.save_every", 0),
        ("num_epochs: 4\neval_strategy: epoch", "evaluate.every", 0.25),
        ("train_on_inputs: true", "supervise.policy", "all"),
        ("float16: true", "train.compute", "fp16"),
        ("bf16: true\nfp16: true", "train.compute", "bf16"),
        ("torch_dtype: torch.bfloat16", "train.compute", "bf16"),
        ("adapter: lora\nload_in_8bit: true", "model.load", "8bit"),
        ("adapter: lora\nlora_target_linear: true\nlora_target_modules: [q_proj]", "adapt.where", "all-linear"),
        (
            "adapter: lora\nlora_target_linear: true\nlora_target_parameters: [mlp.experts.down_proj]",
            "adapt.where",
            ["all-linear", "*.mlp.experts.down_proj"],
        ),
        ("adapter: lora\nlora_target_parameters: '(a|b)'", "adapt.method", "lora"),
        ("unfrozen_parameters: ['^lm_head.weight$', '^model.layers.[0-7].']", "adapt.where", None),
        ("chat_template: chatml", "model.template", "chatml"),
        ("chat_template_jinja: my.jinja", "model.template", "my.jinja"),
        ("excess_length_strategy: raise\nsequence_len: 64", "data.0.too_long", "error"),
        ("val_set_size: 0", "data.0.hold_out", 0),
        ("cosine_min_lr_ratio: 0.1", "train.final_rate", 0.1),
        ("use_tensorboard: true", "train.track", ["tensorboard"]),
        ("batch_size: 8\nsequence_len: 100\nsample_packing: true", "train.step_tokens", 800),
    ],
)
def test_values_of_axolotl(tmp_path: Path, lines: str, knob: str, value: Any) -> None:
    text = f"base_model: m\nlearning_rate: 1e-4\ndatasets: [{{path: d, type: completion}}]\n{lines}\n"
    migration = migrated(tmp_path, text)
    expected = ["*lm_head", "*model.layers.[0-7]."] if value is None else value
    assert migration.knobs[knob] == expected
    assert "train.epochs" not in migration.knobs or "max_steps" not in lines
    recipe_of(tmp_path, migration)


@pytest.mark.parametrize(
    ("entry", "knobs"),
    [
        ("{path: json, data_files: a.jsonl, type: completion}", {"path": "a.jsonl", "format": "text"}),
        ("{path: d, type: sharegpt}", {"format": "sharegpt"}),
        ("{path: d, type: 'alpaca:phi'}", {"format": "alpaca"}),
        ("{path: d, type: {field_instruction: q, field_output: a}}", {"prompt": "q", "completion": "a"}),
        (
            "{path: d, type: chat_template, train_on_eos: none}",
            {"supervise.rules": [{"roles": ["end_of_turn"], "weight": 0.0}]},
        ),
        ("{path: d, type: completion, field: body}", {"text": "body"}),
        (
            "{path: d, roles_to_train: [human]}",
            {"supervise.policy": "roles", "supervise.roles": {"user": 1.0}},
        ),
    ],
)
def test_data_of_axolotl(tmp_path: Path, entry: str, knobs: dict[str, Any]) -> None:
    migration = migrated(tmp_path, f"base_model: m\nlearning_rate: 1e-4\ndatasets:\n  - {entry}\n")
    assert {name: migration.knobs[f"data.0.{name}"] for name in knobs} == knobs
    recipe_of(tmp_path, migration)


def test_wordings_and_files_that_cannot_be_taken_over_are_said(tmp_path: Path) -> None:
    text = """
base_model: m
learning_rate: 1e-4
datasets:
  - {path: d, type: context_qa.load, data_files: [a.json, b.json]}
  - {path: e, type: {format: "Q: {instruction}"}, message_field_role: speaker}
  - {path: f, data_files: one.json}
"""
    migration = migrated(tmp_path, text)
    lost = {key for key, answer in migration.answers.items() if answer.outcome == "not supported"}
    assert lost == {
        "datasets[0].type",
        "datasets[0].data_files",
        "datasets[1].type.format",
        "datasets[1].message_field_role",
        "datasets[2].data_files",
    }
    named = [check for check in migration.checks if re.match(r"data\.\d: |data\.\d\.render", check)]
    assert len(named) == 5


def test_a_key_that_no_table_has_is_counted_apart(tmp_path: Path) -> None:
    migration = migrated(tmp_path, AXOLOTL + "micro_batch_sise: 3\nzzz: 1\n")
    assert migration.unknown == ["micro_batch_sise", "zzz"]
    assert migration.counts["unknown"] == 2
    assert "a slip of micro_batch_size?" in migration.answers["micro_batch_sise"].text


def test_a_key_given_twice_is_said(tmp_path: Path) -> None:
    migration = migrated(tmp_path, AXOLOTL + "lora_r: 64\n")
    assert migration.knobs["adapt.rank"] == 64
    assert any(check.startswith("lora_r is given twice in config.yaml") for check in migration.checks)


def test_the_recipe_is_read_alike_by_both_versions_of_yaml(tmp_path: Path) -> None:
    migration = migrated(
        tmp_path, "base_model: 'off'\nlearning_rate: 1e-5\ndatasets: [{path: 1e3, type: completion}]\n"
    )
    text = recipe_text(migration)
    assert yaml.safe_load(text)["train"]["learning_rate"] == 1e-5
    recipe = recipe_of(tmp_path, migration)
    assert (recipe.model.path, recipe.data[0].path, recipe.train.learning_rate) == ("off", "1e3", 1e-5)


@pytest.mark.parametrize(
    ("line", "job"),
    [
        ("rl: dpo", "`rl: dpo` asks for preference optimisation"),
        ("trl: {beta: 0.1}", "reinforcement learning"),
        ("reward_model: true", "training of a reward model"),
        ("num_labels: 2", "training of a classifier"),
        ("diffusion: {eps: 1e-3}", "diffusion language models"),
        ("processor_type: AutoProcessor\nskip_prepare_dataset: true", "training on images or sound"),
    ],
)
def test_another_job_is_refused_by_name(tmp_path: Path, line: str, job: str) -> None:
    with pytest.raises(UnsupportedError, match=job):
        migrated(tmp_path, f"{AXOLOTL}\n{line}\n")


def test_a_switched_off_job_is_none(tmp_path: Path) -> None:
    migration = migrated(tmp_path, f"{AXOLOTL}\nrl:\nreward_model: false\nnum_labels: 0\n")
    assert {migration.answers[key].outcome for key in ("rl", "reward_model", "num_labels")} == {"default"}


@pytest.mark.parametrize("stage", ["dpo", "kto", "rm", "ppo"])
def test_a_stage_of_llama_factory_is_refused_by_name(tmp_path: Path, stage: str) -> None:
    with pytest.raises(UnsupportedError, match=f"`stage: {stage}` asks for"):
        migrated(tmp_path, LLAMA_FACTORY.replace("stage: sft", f"stage: {stage}"))


def test_values_that_do_not_fit_are_gathered(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Mend it in the file") as one:
        migrated(tmp_path, AXOLOTL.replace("2e-4", "fast"))
    assert "learning_rate = 'fast' must be a number" in str(one.value)
    with pytest.raises(ConfigError, match="values do not fit"):
        migrated(tmp_path, AXOLOTL.replace("2e-4", "fast").replace("lora_r: 8", "lora_r: many"))
    with pytest.raises(ConfigError, match=r"lora_target_modules = True must be a list of words"):
        migrated(tmp_path, AXOLOTL.replace("[q_proj, v_proj]", "true"))


def test_data_sets_with_media_and_a_broken_list_are_refused(tmp_path: Path) -> None:
    info = tmp_path / "dataset_info.json"
    info.write_text(json.dumps({"mine": {"file_name": "x", "columns": {"images": "images"}}}), encoding="utf-8")
    with pytest.raises(ConfigError, match="dataset names mine, which has images; frisket trains on text"):
        migrated(tmp_path, LLAMA_FACTORY)
    info.write_text("{", encoding="utf-8")
    with pytest.raises(ConfigError, match="which is no JSON"):
        migrated(tmp_path, LLAMA_FACTORY)


def test_what_trl_teaches_unasked_is_said(tmp_path: Path) -> None:
    unasked = migrated(tmp_path, "model_name_or_path: m\ndataset_name: d\n")
    assert any("supervise.policy=all" in check for check in unasked.checks)
    asked = migrated(tmp_path, "model_name_or_path: m\ndataset_name: d\nassistant_only_loss: true\n")
    assert not any("supervise.policy" in check for check in asked.checks)


def test_layers_that_trl_leaves_to_peft_are_said(tmp_path: Path) -> None:
    migration = migrated(tmp_path, "model_name_or_path: m\ndataset_name: d\nuse_peft: true\n")
    assert any("""'adapt.where=["*.q_proj", "*.v_proj"]'""" in check for check in migration.checks)


def test_a_published_result_is_whole() -> None:
    found = json.loads(RESULT.read_text(encoding="utf-8"))
    for name in ("axolotl", "LLaMA-Factory", "trl"):
        done = [record for record in found[name]["files"] if "refused" not in record]
        assert len(done) == found[name]["summary"]["migrated"]
        assert all(record["accounted"] and record["loads"] is True for record in done)
        assert all(record["keys"] == sum(record["counts"].values()) for record in done)
    assert sum(found[name]["summary"]["whole"] for name in found) >= 20
