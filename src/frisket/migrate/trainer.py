"""Keys of Hugging Face's TrainingArguments, which TRL and LLaMA-Factory share."""

from frisket.migrate import convert as to
from frisket.migrate.table import Row, default, default_for, lacking, mapped, rows, unneeded

ONE_DEVICE = "one device a run: for memory take model.load=4bit, train.recompute=all or a smaller attend.row_tokens"
CHECKPOINTS = "checkpoints hold what moves, with the optimizer: frisket train … --resume goes on to the byte"
NO_SENDING = "nothing is sent while training: frisket export OUT --push user/name sends the result"
FILES = "every step is in metrics.jsonl and timings.jsonl; the screen shows it"
READING = "data is tokenised once, into a store; no loader processes are needed"
BEST_BY_LOSS = "the loss of the learning set in evaluate.watch decides, the lowest"
SMALL_STEP = "the last, smaller step of an epoch is taken, divided by its own weight"
BY_LENGTH = "rows are filled by length within a step; the order of samples is train.seed's"
MEASURED = "frisket evaluates before, during and after by itself (evaluate.every)"

TRAINER: dict[str, Row] = {
    "seed": mapped("train.seed", to.as_whole("train.seed")),
    "data_seed": unneeded("one seed, train.seed, decides order and initialisation"),
    "full_determinism": mapped(
        "train.deterministic", to.switch("train.deterministic", True, "train.deterministic: false")
    ),
    "output_dir": mapped("--out", to.as_flag("--out")),
    "resume_from_checkpoint": mapped("--resume", to.resume),
    "num_train_epochs": mapped("train.epochs", to.epochs, to.DECIDED_BY_STEPS),
    "max_steps": mapped("train.max_steps", to.max_steps),
    "learning_rate": mapped("train.learning_rate", to.as_number("train.learning_rate")),
    "lr_scheduler_type": mapped("train.schedule", to.schedule, "others than cosine, linear, constant become cosine"),
    **rows(
        "lr_scheduler_kwargs.min_lr_rate lr_scheduler_kwargs.min_lr",
        mapped("train.final_rate", to.floor, "under cosine_with_min_lr; min_lr divided by the learning rate"),
    ),
    **rows(
        "lr_scheduler_kwargs lr_scheduler_kwargs.*",
        lacking("schedules have no options but train.final_rate and train.warmup"),
    ),
    **rows("warmup_ratio warmup_steps", mapped("train.warmup", to.warmup, "a share below 1, else steps")),
    "optim": mapped("train.optimizer", to.optimizer, "*_8bit → adamw-8bit; paging is dropped; others → adamw"),
    "optim_args": lacking("AdamW's options are train.betas, train.epsilon, train.weight_decay"),
    "optim_target_modules": lacking("layer-wise optimizers are not there: adapt.method=lora saves the same memory"),
    "adam_beta1": mapped("train.betas", to.beta(0)),
    "adam_beta2": mapped("train.betas", to.beta(1)),
    "adam_epsilon": mapped("train.epsilon", to.as_number("train.epsilon")),
    "weight_decay": mapped("train.weight_decay", to.as_number("train.weight_decay")),
    "max_grad_norm": mapped("train.clip", to.as_number("train.clip")),
    "label_smoothing_factor": mapped("supervise.label_smoothing", to.as_number("supervise.label_smoothing")),
    "neftune_noise_alpha": lacking("no noise is added to embeddings"),
    "bf16": mapped("train.compute", to.compute("bf16"), "false or auto: train.compute: auto"),
    "fp16": mapped("train.compute", to.compute("fp16"), "false: train.compute: auto"),
    "tf32": unneeded("matmuls run in train.compute's type"),
    **rows("bf16_full_eval fp16_full_eval", unneeded("evaluation runs in train.compute's type")),
    **rows(
        "gradient_checkpointing activation_checkpointing activation_offloading",
        default("train.recompute: auto recomputes the layers that would not fit; all or none force it"),
    ),
    **rows(
        "gradient_checkpointing_kwargs gradient_checkpointing_kwargs.* activation_checkpointing_kwargs"
        " activation_checkpointing_kwargs.*",
        unneeded("train.recompute has no options"),
    ),
    **rows("save_steps", mapped("train.save_every", to.every("train.save_every", "save_strategy"))),
    "save_strategy": mapped("train.save_every", to.every("train.save_every", "save_strategy"), "epoch: as a share"),
    "save_total_limit": mapped("train.keep", to.as_whole("train.keep")),
    **rows(
        "save_only_model save_on_each_node save_safetensors restore_callback_states_from_checkpoint"
        " ignore_data_skip enable_jit_checkpoint save_first_step",
        unneeded(CHECKPOINTS),
    ),
    "eval_steps": mapped("evaluate.every", to.every("evaluate.every", "eval_strategy")),
    **rows(
        "eval_strategy evaluation_strategy",
        mapped("evaluate.every", to.every("evaluate.every", "eval_strategy"), "no: 0; epoch: as a share"),
    ),
    **rows(
        "do_eval do_train do_predict eval_on_start eval_delay prediction_loss_only batch_eval_metrics"
        " eval_accumulation_steps eval_do_concat_batches eval_use_gather_object include_for_metrics label_names",
        unneeded(MEASURED),
    ),
    "per_device_eval_batch_size": unneeded("evaluate.batch_tokens counts tokens; it changes no result"),
    "load_best_model_at_end": mapped("evaluate.keep", to.switch("evaluate.keep", "best", "evaluate.keep: last")),
    "metric_for_best_model": default_for(
        ("loss", "eval_loss"), BEST_BY_LOSS, "the loss of the learning set in evaluate.watch decides instead"
    ),
    "greater_is_better": default_for((False,), BEST_BY_LOSS, "the lowest loss of evaluate.watch is the best"),
    **rows(
        "logging_steps logging_strategy logging_first_step logging_dir logging_nan_inf_filter log_level"
        " log_level_replica log_on_each_node disable_tqdm include_num_input_tokens_seen include_tokens_per_second",
        unneeded(FILES),
    ),
    "report_to": mapped("train.track", to.report_to, "tensorboard and wandb; others are listed"),
    **rows(
        "trackio_space_id trackio_bucket_id trackio_static_space_id", lacking("Trackio: 'train.track=[wandb]' is there")
    ),
    **rows("run_name project", unneeded("the recipe's file name names the run; `name:` changes it")),
    **rows(
        "push_to_hub hub_model_id hub_strategy hub_token hub_private_repo hub_always_push hub_revision"
        " push_to_hub_model_id push_to_hub_organization push_to_hub_token",
        lacking(NO_SENDING),
    ),
    **rows(
        "dataloader_num_workers dataloader_pin_memory dataloader_prefetch_factor dataloader_persistent_workers"
        " dataloader_in_order dataloader_multiprocessing_context remove_unused_columns",
        unneeded(READING),
    ),
    "dataloader_drop_last": default_for((False,), SMALL_STEP, SMALL_STEP),
    "train_sampling_strategy": default_for(
        ("random", "group_by_length"), BY_LENGTH, "the order is shuffled by train.seed"
    ),
    **rows("group_by_length length_column_name", default(BY_LENGTH)),
    "average_tokens_across_devices": default("the loss of a step is a sum divided once, by all its taught tokens"),
    **rows(
        "deepspeed deepspeed.* fsdp fsdp.* fsdp_config fsdp_config.* fsdp_min_num_params"
        " fsdp_transformer_layer_cls_to_wrap parallelism_config parallelism_config.*",
        lacking(ONE_DEVICE),
    ),
    **rows(
        "ddp_backend ddp_bucket_cap_mb ddp_find_unused_parameters ddp_broadcast_buffers ddp_static_graph ddp_timeout"
        " local_rank accelerator_config accelerator_config.* tpu_num_cores use_legacy"
        " tp_size mp_parameters",
        unneeded("one device a run"),
    ),
    "auto_find_batch_size": lacking("rows stay as given; frisket plan forecasts the memory: smaller attend.row_tokens"),
    **rows(
        "torch_compile torch_compile_backend torch_compile_mode torch_compile_options", lacking("nothing is compiled")
    ),
    **rows(
        "use_liger_kernel liger_kernel_config liger_kernel_config.*",
        default("the loss never holds all logits at once (supervise.chunk_tokens)"),
    ),
    "use_cpu": mapped("model.device", to.switch("model.device", "cpu", "model.device: auto")),
    "no_cuda": mapped("model.device", to.switch("model.device", "cpu", "model.device: auto")),
    **rows("use_cache torch_empty_cache_steps skip_memory_metrics", unneeded("frisket's own loop decides")),
    "debug": unneeded("for finding faults of the other tool"),
    "overwrite_output_dir": lacking("a folder that is not empty is never overwritten: take another --out"),
}
"""Checked against the fields of TrainingArguments in transformers 5.23."""
