"""Small configurations as users of the three tools write them, and what becomes of a text."""

from pathlib import Path

from frisket.migrate.translate import Migration, translate
from frisket.migrate.write import recipe_text
from frisket.recipe import Recipe, load_recipe


def migrated(folder: Path, text: str, name: str = "config.yaml", named: str | None = None) -> Migration:
    """Migrate a text as a file of that name."""
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return translate(file, named)


def recipe_of(folder: Path, migration: Migration) -> Recipe:
    """The recipe of a migration, written and loaded."""
    file = folder / "recipe.yaml"
    file.write_text(recipe_text(migration), encoding="utf-8")
    return load_recipe(file)


AXOLOTL = """
base_model: Qwen/Qwen3-0.6B
load_in_4bit: true
adapter: qlora
lora_r: 8
lora_alpha: 16
lora_dropout: 0.05
lora_target_modules: [q_proj, v_proj]
chat_template: qwen3
datasets:
  - path: chats.jsonl
    type: chat_template
    field_messages: talk
    message_property_mappings: {role: from, content: value}
    roles_to_train: [assistant]
  - path: questions
    type: alpaca
    split: train[:10]
val_set_size: 0.05
sequence_len: 1024
sample_packing: true
micro_batch_size: 2
gradient_accumulation_steps: 4
num_epochs: 2
optimizer: paged_adamw_8bit
lr_scheduler: cosine
learning_rate: 2e-4
warmup_ratio: 0.1
evals_per_epoch: 2
bf16: auto
fp16:
gradient_checkpointing: true
flash_attention: true
output_dir: ./out
deepspeed: deepspeed_configs/zero1.json
fsdp:
wandb_project: mine
special_tokens: {pad_token: "<pad>"}
tokens: ["<a>", "<b>"]
dataset_prepared_path: last_run
early_stopping_patience: 3
"""
LLAMA_FACTORY = """
model_name_or_path: Qwen/Qwen3-0.6B
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 8
lora_target: all
dataset: mine, theirs
template: qwen3
cutoff_len: 512
max_samples: 100
packing: true
output_dir: saves/mine
overwrite_output_dir: true
per_device_train_batch_size: 2
gradient_accumulation_steps: 8
learning_rate: 1.0e-4
num_train_epochs: 3.0
lr_scheduler_type: constant_with_warmup
warmup_steps: 20
bf16: true
val_size: 0.1
eval_strategy: steps
eval_steps: 50
report_to: wandb
flash_attn: fa2
"""
TRL = """
model_name_or_path: Qwen/Qwen3-0.6B
dataset_name: trl-lib/Capybara
dataset_config: main
use_peft: true
lora_r: 32
lora_alpha: 16
lora_target_modules: all-linear
learning_rate: 2.0e-4
packing: true
max_length: 2048
per_device_train_batch_size: 2
gradient_accumulation_steps: 8
eval_strategy: epoch
save_steps: 100
report_to: [tensorboard]
loss_type: dft
gradient_checkpointing: true
gradient_checkpointing_kwargs: {use_reentrant: false}
max_steps: -1
seed: 7
"""
BY_TOOL = {"axolotl": AXOLOTL, "llama-factory": LLAMA_FACTORY, "trl": TRL}
