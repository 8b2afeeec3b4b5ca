"""What a file means to its tool, its defaults included, is what the recipe says, or a person is told."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.migrate.configs import LLAMA_FACTORY, migrated, recipe_of

from frisket.data.messages import ROLES
from frisket.migrate.sources import KNOWN_ROLES

TRL = "model_name_or_path: m\ndataset_name: d\n"
AXOLOTL = "base_model: m\nlearning_rate: 1e-4\ndatasets: [{path: d, type: chat_template}]\n"
FACTORY = "model_name_or_path: m\nfinetuning_type: lora\ntemplate: qwen3\ndataset: d\n"
FACTORY_1 = "model: m\nmodel_class: llm\ntrain_dataset: x.jsonl\n"
BY_NAME = {"trl": TRL, "axolotl": AXOLOTL, "llama-factory": FACTORY, "llama-factory-1": FACTORY_1}


def test_lora_of_trl_has_its_own_alpha_and_dropout(tmp_path: Path) -> None:
    migration = migrated(tmp_path, f"{TRL}use_peft: true\nlora_r: 64\n")
    assert recipe_of(tmp_path, migration).adapt.model_dump(include={"rank", "alpha"}) == {"rank": 64, "alpha": 32}
    assert migration.assumed["lora_dropout"].outcome == "not supported"
    full = migrated(tmp_path, TRL)
    assert not {"lora_alpha", "lora_dropout"} & set(full.assumed)
    assert "adapt.alpha" not in full.knobs


def test_an_explicit_null_as_length_is_no_limit_in_trl(tmp_path: Path) -> None:
    migration = migrated(tmp_path, f"{TRL}max_length: null\n")
    (source,) = recipe_of(tmp_path, migration).data
    assert (source.max_tokens, source.too_long) == (None, "error")
    assert {"train.step_tokens", "attend.row_tokens"} & set(migration.knobs) == set()
    assert "the model's context is the limit" in migration.answers["max_length"].text
    assert any("8 samples a step, of any length" in check for check in migration.checks)
    data = tmp_path / "chats.jsonl"
    data.write_text(json.dumps({"prompt": "a" * 100, "completion": "b" * 7900}) + "\n", encoding="utf-8")
    text = f"model_name_or_path: m\ndataset_name: {data}\nmax_length: null\n"
    assert migrated(tmp_path, text).knobs["train.step_tokens"] == 8 * 2000
    (missing,) = recipe_of(tmp_path, migrated(tmp_path, TRL)).data
    assert (missing.max_tokens, missing.too_long) == (1024, "truncate")


def test_the_older_name_of_trls_length_is_no_second_length(tmp_path: Path) -> None:
    migration = migrated(tmp_path, f"{TRL}max_seq_length: 2048\npacking: true\n")
    assert recipe_of(tmp_path, migration).data[0].max_tokens == 2048
    assert migration.knobs["train.step_tokens"] == 8 * 2048
    assert "max_length" not in migration.assumed


def test_version_1_of_llama_factory_is_silent_about_other_values(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, migrated(tmp_path, f"{FACTORY_1}peft_config: {{name: lora}}\n"))
    assert recipe.adapt.model_dump(include={"rank", "alpha"}) == {"rank": 8, "alpha": 16}
    assert (recipe.train.schedule, recipe.train.warmup, recipe.train.weight_decay) == ("constant", 0, 0.01)
    own = f"{FACTORY_1}peft_config: {{name: lora, r: 32}}\nlr_scheduler_config: {{name: linear}}\n"
    migration = migrated(tmp_path, f"{own}optim_config: {{name: adamw, wd: 0.1}}\n")
    recipe = recipe_of(tmp_path, migration)
    assert recipe.adapt.model_dump(include={"rank", "alpha"}) == {"rank": 32, "alpha": 16}
    assert (recipe.train.schedule, recipe.train.weight_decay) == ("linear", 0.1)


def test_special_tokens_of_axolotl_are_added_but_padding(tmp_path: Path) -> None:
    text = f"{AXOLOTL}tokens: [<a>]\nspecial_tokens:\n  eos_token: <end>\n  bos_token: <a>\n  pad_token: <pad>\n"
    migration = migrated(tmp_path, text)
    assert set(recipe_of(tmp_path, migration).model.add_tokens) == {"<end>", "<a>"}
    assert len(migration.knobs["model.add_tokens"]) == 2
    assert migration.answers["special_tokens.pad_token"].outcome == "default"
    assert any("special_tokens.eos_token: <end>" in check for check in migration.checks)


@pytest.mark.parametrize("name", ["default", "llama3"])
def test_a_named_template_of_llama_factory_is_said(tmp_path: Path, name: str) -> None:
    checks = migrated(tmp_path, FACTORY.replace("qwen3", name)).checks
    assert any(check.startswith(f"template {name}: frisket takes the template") for check in checks)
    raw = migrated(tmp_path, FACTORY.replace("qwen3", name) + "stage: pt\n")
    assert raw.answers["template"].outcome == "not needed"


@pytest.mark.parametrize(
    ("lines", "final_rate", "outcome"),
    [
        ("lr_scheduler_type: cosine_with_min_lr\nlr_scheduler_kwargs: {min_lr_rate: 0.1}", 0.1, "mapped"),
        ("lr_scheduler_type: cosine_with_min_lr\nlr_scheduler_kwargs: {min_lr: 1.0e-5}", 0.05, "mapped"),
        ("lr_scheduler_type: cosine_with_min_lr", 0.0, "not supported"),
        ("lr_scheduler_type: cosine\nlr_scheduler_kwargs: {min_lr_rate: 0.1}", 0.0, "mapped"),
    ],
)
def test_the_floor_of_a_cosine(tmp_path: Path, lines: str, final_rate: float, outcome: str) -> None:
    migration = migrated(tmp_path, f"{TRL}learning_rate: 2.0e-4\n{lines}\n")
    train = recipe_of(tmp_path, migration).train
    assert (train.schedule, train.final_rate) == ("cosine", final_rate)
    assert migration.answers["lr_scheduler_type"].outcome == outcome


def test_other_options_of_a_schedule_are_not_supported(tmp_path: Path) -> None:
    migration = migrated(tmp_path, f"{TRL}lr_scheduler_type: cosine\nlr_scheduler_kwargs: {{num_cycles: 2}}\n")
    assert migration.answers["lr_scheduler_kwargs.num_cycles"].outcome == "not supported"


@pytest.mark.parametrize(
    ("kind", "columns"),
    [
        ("alpaca_chat", (None, None)),
        ("alpaca_chat.load_qa", ("question", "answer")),
        ("alpaca_chat.load_camel_ai", ("message_1", "message_2")),
    ],
)
def test_the_chat_wording_of_alpaca_is_not_alpacas(tmp_path: Path, kind: str, columns: tuple[str | None, ...]) -> None:
    migration = migrated(tmp_path, AXOLOTL.replace("chat_template", kind))
    (source,) = recipe_of(tmp_path, migration).data
    assert (source.render, source.prompt, source.completion) == ("chat", *columns)
    assert migration.answers["datasets[0].type"].outcome == "not supported"
    assert any(f"wording of type '{kind}' is not known" in check for check in migration.checks)


def test_what_trl_cuts_and_what_it_splits(tmp_path: Path) -> None:
    migration = migrated(tmp_path, f"{TRL}truncation_mode: keep_end\n")
    assert migration.answers["truncation_mode"].outcome == "not supported"
    assert any("other tokens are trained" in check for check in migration.checks)
    for strategy, too_long, arrangement in (
        ("bfd", "truncate", "auto"),
        ("bfd_split", "split", "auto"),
        ("wrapped", "split", "mask-free"),
    ):
        recipe = recipe_of(tmp_path, migrated(tmp_path, f"{TRL}packing: true\npacking_strategy: {strategy}\n"))
        assert (recipe.data[0].too_long, recipe.attend.arrangement) == (too_long, arrangement)
    unpacked = migrated(tmp_path, f"{TRL}packing_strategy: wrapped\n")
    assert recipe_of(tmp_path, unpacked).data[0].too_long == "truncate"


@pytest.mark.parametrize(
    ("tool", "line", "outcome", "text"),
    [
        ("llama-factory", "shift_attn: true", "not supported", "shifted sparse attention"),
        ("axolotl", "s2_attention: true", "not supported", "shifted sparse attention"),
        ("trl", "load_in_4bit: true\nbnb_4bit_quant_type: fp4", "not supported", "NF4"),
        ("trl", "bnb_4bit_quant_type: nf4", "default", "NF4"),
        ("trl", "load_in_4bit: true\nuse_bnb_nested_quant: false", "not supported", "nested"),
        ("trl", "load_in_4bit: true\nuse_bnb_nested_quant: true", "default", "nested"),
        ("trl", "use_bnb_nested_quant: false", "not needed", "4 bits"),
        ("trl", "train_sampling_strategy: sequential", "not supported", "shuffled by train.seed"),
        ("trl", "train_sampling_strategy: random", "default", "train.seed"),
        ("trl", "dataloader_drop_last: true", "not supported", "smaller step"),
        ("trl", "metric_for_best_model: accuracy", "not supported", "evaluate.watch"),
        ("llama-factory", "quantization_type: fp4", "not supported", "NF4"),
        ("llama-factory", "double_quantization: false", "not supported", "quantised twice"),
        ("llama-factory", "enable_thinking: false", "not supported", "model.template"),
        ("llama-factory", "split_special_tokens: true", "default", "stays text"),
        ("llama-factory", "split_special_tokens: false", "not supported", "stays text"),
        ("llama-factory", "additional_target: embed_tokens", "not supported", "adapt.method=full"),
        ("axolotl", "shuffle_merged_datasets: false", "not supported", "train.seed"),
        ("axolotl", "shuffle_merged_datasets: true", "default", "shuffled"),
        ("axolotl", "bnb_config_kwargs: {bnb_4bit_quant_type: fp4}", "not supported", "NF4"),
        ("trl", "auto_find_batch_size: true", "not supported", "forecasts the memory"),
        ("trl", "push_to_hub: true", "not supported", "frisket export OUT --push user/name"),
    ],
)
def test_a_value_that_asks_for_the_contrary_is_not_answered_with_default(
    tmp_path: Path, tool: str, line: str, outcome: str, text: str
) -> None:
    migration = migrated(tmp_path, f"{BY_NAME[tool]}{line}\n")
    *_, answer = migration.answers.values()
    assert answer.outcome == outcome
    assert text in answer.text


@pytest.mark.parametrize(
    ("entry", "key", "outcome", "checked"),
    [
        ("message_field_training: train", "message_field_training", "default", ""),
        ("message_field_training: training", "message_field_training", "not supported", "rename it in the data to 'tr"),
        ("message_field_training_detail: spans", "message_field_training_detail", "not supported", "by characters"),
        ("roles: {assistant: [gpt, model]}", "roles.assistant", "default", ""),
        ("roles: {critic: [agent]}", "roles.critic", "not supported", ""),
    ],
)
def test_names_inside_axolotls_messages(tmp_path: Path, entry: str, key: str, outcome: str, checked: str) -> None:
    migration = migrated(tmp_path, AXOLOTL.replace("type: chat_template", f"type: chat_template, {entry}"))
    assert migration.answers[f"datasets[0].{key}"].outcome == outcome
    checks = [check for check in migration.checks if check.startswith("data.0: ")]
    assert [checked in check for check in checks] == ([True] if checked else [])


def test_names_of_roles_are_taken_over(tmp_path: Path) -> None:
    entry = "roles: {assistant: [agent, gpt, human], user: client}"
    migration = migrated(tmp_path, AXOLOTL.replace("type: chat_template", f"type: chat_template, {entry}"))
    assert migration.answers["datasets[0].roles.assistant"].outcome == "mapped"
    assert recipe_of(tmp_path, migration).data[0].roles == {
        "agent": "assistant",
        "human": "assistant",
        "client": "user",
    }


def test_the_roles_that_the_tables_know_are_those_that_are_read() -> None:
    assert KNOWN_ROLES == ROLES


@pytest.mark.parametrize(
    ("entry", "knobs", "checked"),
    [
        ({"columns": {"prompt": "q", "query": "more", "response": "a"}}, {"format": "alpaca"}, ["'more'"]),
        ({"columns": {"prompt": "q", "response": "a", "history": "h"}}, {"format": "alpaca", "prompt": "q"}, ["'h'"]),
        ({"columns": {"prompt": "q", "response": "a", "system": "s"}}, {"prompt": "q", "completion": "a"}, ["'s'"]),
        ({"columns": {"system": "system", "tools": "tools"}}, {"format": "alpaca"}, ["tools beside instructions"]),
        ({"ranking": True, "columns": {"prompt": "q", "chosen": "good"}}, {"prompt": "q"}, ["'good'"]),
        (
            {
                "formatting": "sharegpt",
                "columns": {"messages": "talk"},
                "tags": {"role_tag": "speaker", "content_tag": "content", "user_tag": "customer", "system_tag": None},
            },
            {"messages": "talk", "roles": {"customer": "user"}},
            ["'speaker'"],
        ),
    ],
)
def test_columns_of_dataset_info_are_mapped_or_said(
    tmp_path: Path, entry: dict[str, Any], knobs: dict[str, str], checked: list[str]
) -> None:
    listed = {"mine": {"file_name": "x.json", **entry}, "theirs": {"file_name": "y.json"}}
    (tmp_path / "dataset_info.json").write_text(json.dumps(listed), encoding="utf-8")
    migration = migrated(tmp_path, LLAMA_FACTORY)
    assert {name: migration.knobs.get(f"data.0.{name}") for name in knobs} == knobs
    checks = [check for check in migration.checks if check.startswith("data.0: ")]
    assert len(checks) == len(checked)
    assert all(word in check for word, check in zip(checked, checks, strict=True))
    recipe_of(tmp_path, migration)


def test_an_estimate_of_a_step_is_called_one(tmp_path: Path) -> None:
    data = tmp_path / "chats.jsonl"
    data.write_text(json.dumps({"prompt": "a" * 100, "completion": "b" * 300}) + "\n", encoding="utf-8")
    checks = migrated(tmp_path, f"model_name_or_path: m\ndataset_name: {data}\n").checks
    assert any("train.step_tokens = 800 is an estimate" in check for check in checks)
    for text, tokens in (
        (f"model: m\ntrain_dataset: {data}\nglobal_batch_size: 4\n", 400),
        (f"model: m\ntrain_dataset: {data}\nglobal_batch_size: 4\npacking: true\n", 4 * 2048),
        (f"base_model: m\ndatasets: [{{path: {data}}}]\nbatch_size: 4\n", 400),
        (f"base_model: m\ndatasets: [{{path: {data}}}]\nbatch_size: 4\nsample_packing: true\n", 4 * 512),
    ):
        assert migrated(tmp_path, f"{text}learning_rate: 1e-4\n").knobs["train.step_tokens"] == tokens


def test_what_the_tool_does_and_frisket_does_not_is_said(tmp_path: Path) -> None:
    silent = migrated(tmp_path, TRL)
    assert silent.assumed["router_aux_loss_coef"].outcome == "not supported"
    assert any(check.startswith("data.0.hold_out: TRL trains on every sample") for check in silent.checks)
    assert not any("hold_out" in check for check in migrated(tmp_path, f"{AXOLOTL}val_set_size: 0\n").checks)
