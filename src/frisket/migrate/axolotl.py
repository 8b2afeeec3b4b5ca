"""Axolotl: what `axolotl train FILE` takes."""

from typing import Any

from frisket.migrate import convert as to
from frisket.migrate import sources, weights
from frisket.migrate.axolotl_other import OTHER
from frisket.migrate.table import (
    Answer,
    Draft,
    Row,
    Tool,
    default,
    default_for,
    lacking,
    mapped,
    rows,
    says_nothing,
    unneeded,
)
from frisket.migrate.trainer import TRAINER

_STEP = to.step(("micro_batch_size", 1), ("gradient_accumulation_steps", 1), ("sequence_len", 512), "sample_packing")
_ARITHMETIC = "micro_batch_size × gradient_accumulation_steps × sequence_len"
_ALREADY_SEPARATE = "attend.arrangement: auto packs, samples kept apart"
_FOUR_BITS = "model.load: 4bit is NF4 with double quantisation"
_SHUFFLED = "all sources are shuffled together"
_LOSS_IN_PIECES = "the loss never holds all logits at once (supervise.chunk_tokens)"


def _on_inputs(draft: Draft, path: str, value: Any) -> Answer:
    return draft.put("supervise.policy", "all") if value else Answer("default", "supervise.policy: assistant")


def _recompute(draft: Draft, path: str, value: Any) -> Answer:
    if value == "offload":
        return Answer("not supported", "offloaded activations: train.recompute: auto computes them again instead")
    return Answer("default", "train.recompute: auto recomputes the layers that would not fit")


def _processor(draft: Draft, path: str, value: Any) -> Answer:
    if draft.get("skip_prepare_dataset"):
        raise to.OtherJobError("processor_type, skip_prepare_dataset", "training on images or sound")
    return Answer("not supported", "images and sound: frisket trains the text part of such a model, on text")


def _wandb(draft: Draft, path: str, value: Any) -> Answer:
    if says_nothing(value):
        return Answer("default", "train.track: [] tells nobody")
    draft.check(f"W&B stays offline unless the environment says: WANDB_MODE=online WANDB_PROJECT={value}")
    return to.tracker("wandb")(draft, path, value)


def _pretraining(draft: Draft, path: str, value: Any) -> Answer:
    draft.put("supervise.policy", "all", "raw text")
    draft.put(f"data.{sources.entry_index(path)}.format", "text")
    if "[" in path:
        return sources.entry_path(draft, path, value)
    return draft.put("data.0.path", str(value))


def _reference_batch(draft: Draft, path: str, value: Any) -> Answer:
    if draft.get("gradient_accumulation_steps") is not None:
        return Answer("not needed", "micro_batch_size × gradient_accumulation_steps says it")
    samples, longest = int(to.number(value)), int(to.number(draft.get("sequence_len", 512)))
    sum_ = f"{samples:,} samples × {longest:,} sequence_len"
    if says_nothing(draft.get("sample_packing")):
        return to.unpacked(draft, samples, longest, sum_)
    return draft.put("train.step_tokens", samples * longest, sum_)


_WEIGHTS: dict[str, Row] = {
    "adapter": mapped("adapt.method", weights.adapter, "lora; qlora: with model.load=4bit; nothing: full"),
    "load_in_4bit": mapped("model.load", weights.quantised("4bit")),
    "load_in_8bit": mapped("model.load", weights.quantised("8bit")),
    "lora_r": mapped("adapt.rank", weights.rank_number("adapt.rank")),
    "lora_alpha": mapped("adapt.alpha", weights.rank_number("adapt.alpha")),
    "lora_dropout": Row("not supported", to.NO_DROPOUT, "", to.no_dropout),
    "lora_target_linear": mapped("adapt.where", weights.of_lora(weights.target_linear), "all-linear"),
    "lora_target_modules": mapped("adapt.where", weights.of_lora(weights.targets), "names become patterns"),
    "lora_target_parameters": mapped("adapt.where", weights.of_lora(weights.target_parameters), "beside the layers"),
    "lora_modules_to_save": lacking("LoRA moves its factors only: adapt.method=full where whole modules must move"),
    "lora_model_dir": lacking("a run begins at a base model: export the adapter merged, and give that as model.path"),
    "lora_fan_in_fan_out": default("found by the kind of the layer"),
    "peft_use_rslora": mapped("adapt.rslora", to.switch("adapt.rslora", True, "adapt.rslora: false")),
    "peft_use_dora": mapped("adapt.dora", to.switch("adapt.dora", True, "adapt.dora: false")),
    **rows(
        "lora_rank_pattern lora_alpha_pattern peft_layers_to_transform peft_layers_pattern peft.* peft"
        " peft_layer_replication peft_init_lora_weights peft_trainable_token_indices peft_ensure_weight_tying",
        lacking("options of one LoRA for all its layers: adapt.where with {layers: 4-7} restricts them"),
    ),
    "loraplus_lr_ratio": mapped("adapt.b_rate_factor"),
    **rows("loraplus_lr_embedding embedding_lr embedding_lr_scale", lacking("one rate for all")),
    **rows("lora_mlp_kernel lora_qkv_kernel lora_o_kernel lora_embedding_kernel", unneeded("a kernel, not a setting")),
    **rows("peft_autocast_adapter_dtype lora_on_cpu qlora_sharded_model_loading", unneeded("own handling of types")),
    "bnb_config_kwargs.bnb_4bit_quant_type": default_for(("nf4",), _FOUR_BITS, "a 4-bit base is NF4 (model.load=4bit)"),
    "bnb_config_kwargs.bnb_4bit_use_double_quant": default_for(
        (True,), _FOUR_BITS, "a 4-bit base is quantised twice, always (model.load=4bit)"
    ),
    **rows("bnb_config_kwargs bnb_config_kwargs.*", default(_FOUR_BITS)),
    **rows("merge_lora merge_method", unneeded("frisket export OUT --to merged")),
    "unfrozen_parameters": mapped("adapt.where", weights.unfrozen, "simple expressions become patterns"),
    **rows("freeze_mm_modules", unneeded("text models only")),
}
_MODEL: dict[str, Row] = {
    "base_model": mapped("model.path"),
    **rows("revision_of_model model_revision", mapped("model.revision")),
    "processor_type": Row("not supported", "images and sound: frisket trains on text", "", _processor),
    "tokenizer_config": mapped("model.tokenizer"),
    "trust_remote_code": mapped("model.remote_code", to.switch("model.remote_code", True, "model.remote_code: false")),
    "chat_template": mapped(
        "model.template",
        to.template({"chatml": "chatml"}, frozenset({"tokenizer_default", "jinja"})),
        "chatml is built in",
    ),
    "chat_template_jinja": mapped("model.template", to.template({}, frozenset()), "a file"),
    **rows(
        "chat_template_kwargs chat_template_kwargs.*",
        lacking("the template is rendered with messages and tools only: change its text, model.template=my.jinja"),
    ),
    "default_system_message": mapped("data.N.system", to.as_shared("system")),
    "eot_tokens": default("the token that ends a turn is the template's, found in its rendering"),
    "tokens": mapped("model.add_tokens", to.add_tokens, "as special tokens, which only the template writes"),
    "tokens.*": default("the tokenizer's own special tokens"),
    "special_tokens": default("the tokenizer's own special tokens; padding is never taught and never seen"),
    "special_tokens.additional_special_tokens": mapped("model.add_tokens", to.add_tokens),
    "special_tokens.pad_token": default("padding is never taught and never seen"),
    "special_tokens.*": mapped("model.add_tokens", to.special_token, "where the tokenizer lacks it"),
    **rows(
        "added_tokens_overrides added_tokens_overrides.*", lacking("tokens are added, not replaced: model.add_tokens")
    ),
    **rows(
        "model_type tokenizer_type tokenizer_use_fast tokenizer_legacy base_model_config is_falcon_derived_model"
        " is_llama_derived_model is_mistral_derived_model is_qwen_derived_model type_of_model"
        " base_model_ignore_patterns tokenizer_save_jinja_files experimental_skip_move_to_device low_cpu_mem_usage"
        " device_map device_map.* max_memory gpu_memory_limit hf_use_auth_token",
        unneeded("the classes follow from the model's configuration"),
    ),
    **rows("bfloat16", mapped("train.compute", to.compute("bf16"))),
    **rows("float16", mapped("train.compute", to.compute("fp16"))),
    "float32": mapped("train.compute", to.fixed("train.compute", "fp32")),
    "torch_dtype": mapped("train.compute", to.compute_type),
    "device": mapped("model.device"),
}
_DATA: dict[str, Row] = {
    "datasets[].path": mapped("data.N.path", sources.entry_path, "or its data_files, where they are local"),
    "datasets[].type": mapped("data.N.format", sources.entry_type, "completion: text; alpaca: with Alpaca's header"),
    "datasets[].type.*": mapped("data.N.prompt", sources.entry_type_part, "columns, not wordings"),
    "datasets[].data_files": mapped("data.N.path", sources.entry_files, "a local file"),
    **rows("datasets[].name pretraining_dataset[].name", mapped("data.N.subset", sources.of_entry("subset"))),
    **rows("datasets[].split pretraining_dataset[].split", mapped("data.N.split", sources.of_entry("split"))),
    **rows("datasets[].field_messages", mapped("data.N.messages", sources.of_entry("messages"))),
    **rows(
        "datasets[].field pretraining_dataset[].field pretraining_dataset[].text_column",
        mapped("data.N.text", sources.of_entry("text")),
    ),
    **rows("datasets[].field_human", mapped("data.N.prompt", sources.of_entry("prompt"))),
    **rows("datasets[].field_model", mapped("data.N.completion", sources.of_entry("completion"))),
    "datasets[].ds_type": default("the kind of file is known by its name"),
    "datasets[].field_tools": Row(
        "default", "tools are found in a column `tools`", "", sources.renamed(("tools",), "the tools' column")
    ),
    **rows(
        "datasets[].message_field_role datasets[].message_property_mappings.role",
        Row("default", "the role is found under role or from", "", sources.renamed(("role", "from"), "the role")),
    ),
    **rows(
        "datasets[].message_field_content datasets[].message_property_mappings.content",
        Row("default", "found under content or value", "", sources.renamed(("content", "value"), "the content")),
    ),
    **rows(
        "datasets[].field_thinking datasets[].template_thinking_key datasets[].split_thinking"
        " datasets[].message_property_mappings.*",
        Row(
            "default",
            "reasoning is found under reasoning_content, reasoning or thinking",
            "",
            sources.renamed(("reasoning_content", "reasoning", "thinking"), "reasoning"),
        ),
    ),
    "datasets[].roles.*": mapped("data.N.roles", sources.role_names, "where they are not known anyway"),
    "datasets[].roles": default("user, assistant, system, tool, human, gpt are known"),
    "datasets[].roles_to_train": mapped("data.N.supervise.roles", sources.roles_to_train),
    **rows("datasets[].train_on_eos datasets[].train_on_eot", mapped("data.N.supervise.rules", sources.train_on_end)),
    "datasets[].message_field_training": Row(
        "default",
        "train, loss or weight of a message decides what it teaches",
        "",
        sources.renamed(("train", "loss", "weight"), "whether a message teaches"),
    ),
    "datasets[].message_field_training_detail": Row(
        "not supported", "a message teaches whole: data.N.supervise.rules", "", sources.training_detail
    ),
    **rows(
        "datasets[].chat_template datasets[].chat_template_jinja datasets[].conversation",
        lacking("one template a run: model.template"),
    ),
    **rows("datasets[].drop_system_message", lacking("messages are used as they are: take the system one out")),
    **rows(
        "datasets[].shards datasets[].shards_idx datasets[].preprocess_shards", lacking("data.N.limit cuts a source")
    ),
    **rows(
        "datasets[].trust_remote_code datasets[].revision pretraining_dataset[].trust_remote_code",
        lacking("a hub data set is read at its newest revision, without its code"),
    ),
    **rows("datasets[].input_format datasets[].input_transform", lacking("wordings: write them into the data")),
    **rows("pretraining_dataset[].data_files pretraining_dataset[].skip", lacking("download and name the file")),
    "pretraining_dataset[].path": mapped("data.N.path", _pretraining, "raw text, every token taught"),
    "pretraining_dataset[].type": default("data.N.format: text"),
    "pretraining_dataset": mapped("data.0.path", _pretraining, "raw text, every token taught"),
    "test_datasets[].path": lacking("a set to measure on: evaluate.learning.0.path=FILE, or data.0.hold_out=0.02"),
    "test_datasets[].*": lacking("a set to measure on: evaluate.learning.0.path=FILE"),
    "train_on_inputs": mapped("supervise.policy", _on_inputs, "true: all"),
    "sequence_len": mapped("data.N.max_tokens", to.length("drop"), "and attend.row_tokens"),
    "excess_length_strategy": default("data.N.too_long: drop, truncate or error, beside sequence_len"),
    "val_set_size": mapped("data.N.hold_out", to.hold_out),
    **rows("sample_packing eval_sample_packing multipack_real_batches batch_flattening", default(_ALREADY_SEPARATE)),
    **rows(
        "pad_to_sequence_len pad_to_multiple_of sample_packing_group_size sample_packing_bin_size"
        " sample_packing_sequentially sample_packing_mp_start_method sample_packing_eff_est max_packed_sequence_len"
        " sample_packing_seq_len_multiplier pretrain_multipack_buffer_size pretrain_multipack_attn"
        " pretraining_sample_concatenation streaming_multipack_buffer_size total_num_tokens total_supervised_tokens",
        unneeded("rows are planned over the whole token store, before step 1"),
    ),
    **rows("min_sample_len max_prompt_len eval_sequence_len", lacking("one limit: data.N.max_tokens, data.N.too_long")),
    "streaming": lacking("data is tokenised into a store on disk first; data.0.limit cuts it"),
    **rows(
        "dataset_prepared_path push_dataset_to_hub dataset_processes dataset_num_proc dataset_keep_in_memory"
        " skip_prepare_dataset is_preprocess preprocess_iterable",
        unneeded("tokens are kept in a store by themselves (FRISKET_CACHE)"),
    ),
    "shuffle_merged_datasets": default_for((True,), _SHUFFLED, "all sources are shuffled together, by train.seed"),
    "shuffle_before_merging_datasets": default(_SHUFFLED),
    **rows("curriculum_sampling", lacking("the order is shuffled by train.seed")),
    "dataset_exact_deduplication": lacking("the same sample twice is trained twice: take it out of the file"),
    **rows("dataset_shard_num dataset_shard_idx num_dataset_shards_to_save", lacking("data.N.limit cuts a source")),
}
_TRAIN: dict[str, Row] = {
    "num_epochs": mapped("train.epochs", to.epochs, to.DECIDED_BY_STEPS),
    **rows(
        "micro_batch_size gradient_accumulation_steps",
        mapped("train.step_tokens", _STEP, _ARITHMETIC + "; and attend.micro_rows"),
    ),
    "batch_size": mapped("train.step_tokens", _reference_batch, "samples × sequence_len"),
    "eval_batch_size": unneeded("evaluate.batch_tokens counts tokens; it changes no result"),
    "optimizer": mapped("train.optimizer", to.optimizer, "*_8bit → adamw-8bit; paging is dropped; others → adamw"),
    "lr_scheduler": mapped("train.schedule", to.schedule, "others than cosine, linear, constant become cosine"),
    "cosine_min_lr_ratio": mapped("train.final_rate", to.as_number("train.final_rate")),
    **rows(
        "cosine_constant_lr_ratio lr_quadratic_warmup lr_div_factor lr_groups lr_groups[].* eta_min",
        lacking("schedules have no options but train.final_rate and train.warmup"),
    ),
    **rows("adam_epsilon adam_eps", mapped("train.epsilon", to.as_number("train.epsilon"))),
    **rows(
        "adam_epsilon2 adam_beta3 dion_lr dion_momentum dion_rank_fraction dion_rank_multiple_of qgalore_rank"
        " qgalore_update_proj_gap qgalore_scale qgalore_proj_type qgalore_proj_quant qgalore_proj_bits"
        " qgalore_proj_group_size qgalore_cos_threshold qgalore_gamma_proj qgalore_queue_size torchdistx_path",
        lacking("optimizers: adamw, adamw-8bit, sgd, schedule-free (train.optimizer)"),
    ),
    "gradient_checkpointing": Row("default", "train.recompute: auto", "", _recompute),
    **rows("selective_checkpointing selective_checkpointing.* layer_offloading", unneeded("train.recompute: auto")),
    "early_stopping_patience": mapped("evaluate.stop_after", to.as_whole("evaluate.stop_after")),
    **rows(
        "evals_per_epoch",
        mapped(
            "evaluate.every", to.every("evaluate.every", "eval_strategy", "evals_per_epoch"), "as a share of the run"
        ),
    ),
    "saves_per_epoch": mapped(
        "train.save_every", to.every("train.save_every", "save_strategy", "saves_per_epoch"), "as a share of the run"
    ),
    **rows("use_wandb wandb_project", mapped("train.track", _wandb, "[wandb]")),
    **rows(
        "wandb_entity wandb_name wandb_run_id wandb_watch wandb_log_model wandb_mode",
        unneeded("W&B reads WANDB_ENTITY, WANDB_NAME, WANDB_MODE of the environment"),
    ),
    "use_tensorboard": mapped("train.track", to.tracker("tensorboard"), "[tensorboard]"),
    "auto_resume_from_checkpoints": mapped("--resume", to.resume),
    **rows(
        "attn_implementation flash_attention xformers_attention sdp_attention flex_attention sage_attention"
        " eager_attention flash_optimum flash_attn_rms_norm gemma4_hybrid_attn_impl"
        " large_head_attention flash_attn_d512 sdpa_varlen fused_attn_kernel flex_attn_compile_kwargs"
        " flex_attn_compile_kwargs.*",
        default("attend.backend: auto; every arrangement is checked against the model's own forward"),
    ),
    "s2_attention": lacking(
        "shifted sparse attention hides tokens from each other: a shorter data.N.max_tokens instead"
    ),
    **rows(
        "flash_attn_cross_entropy cut_cross_entropy chunked_cross_entropy chunked_cross_entropy_num_chunks"
        " liger_cross_entropy liger_fused_linear_cross_entropy liger_use_token_scaling",
        default(_LOSS_IN_PIECES),
    ),
}
AXOLOTL = Tool(
    name="axolotl",
    title="Axolotl",
    version="0.18.0",
    rows={**_WEIGHTS, **_MODEL, **_DATA, **_TRAIN, **OTHER, **{k: row for k, row in TRAINER.items() if k not in OTHER}},
    defaults={
        "adapter": "none",
        "sequence_len": 512,
        "micro_batch_size": 1,
        "num_epochs": 1.0,
        "lr_scheduler": "cosine",
    },
)
