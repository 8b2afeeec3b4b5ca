"""LLaMA-Factory: what `llamafactory-cli train FILE` takes, and the keys of its version 1."""

from dataclasses import replace
from typing import Any

from frisket.migrate import convert as to
from frisket.migrate import sources, weights
from frisket.migrate.table import (
    Answer,
    Draft,
    Row,
    Tool,
    default,
    default_for,
    lacking,
    mapped,
    refused,
    rows,
    says_nothing,
    unneeded,
)
from frisket.migrate.trainer import ONE_DEVICE, TRAINER

_STEP = to.step(("per_device_train_batch_size", 8), ("gradient_accumulation_steps", 1), ("cutoff_len", 2048), "packing")
_STEP_1 = to.step(("micro_batch_size", 1), ("gradient_accumulation_steps", 1), ("cutoff_len", 2048), "packing")
_ARITHMETIC = "batch size × accumulation × cutoff_len"
_STAGES = {
    "dpo": "preference optimisation (to train on the chosen answers: data.0.answers=chosen)",
    "kto": "preference optimisation (KTO)",
    "rm": "training of a reward model",
    "ppo": "reinforcement learning (PPO)",
}


_FOUR_BITS = "model.load: 4bit is NF4 with double quantisation, through bitsandbytes"
_SPELLED = "a special token that the data spells stays text; only the template writes special ones"
_REASONING = "reasoning in the data is rendered as the template does"
_NAMED_TEMPLATE = to.template({"chatml": "chatml"}, frozenset())


def _template(draft: Draft, path: str, value: Any) -> Answer:
    if draft.get("stage") == "pt":
        return Answer("not needed", "raw text has no template")
    return _NAMED_TEMPLATE(draft, path, value)


def _stage(draft: Draft, path: str, value: Any) -> Answer:
    if value == "pt":
        draft.put("supervise.policy", "all", "stage: pt, raw text")
        draft.share("format", "text")
        return Answer("mapped", "supervise.policy = all, data.N.format = text")
    if value == "sft":
        return Answer("default", "supervised fine-tuning")
    raise to.OtherJobError(f"stage: {value}", _STAGES.get(str(value), "another job than supervised fine-tuning"))


def _packing(draft: Draft, path: str, value: Any) -> Answer:
    if not says_nothing(value) and says_nothing(draft.get("neat_packing")):
        draft.check(
            "packing: LLaMA-Factory lets packed samples see each other; attend.arrangement=mask-free does so too."
        )
    return Answer("default", "attend.arrangement: auto packs, samples kept apart")


def _on_prompt(draft: Draft, path: str, value: Any) -> Answer:
    return draft.put("supervise.policy", "all") if value else Answer("default", "supervise.policy: assistant")


def _last_turn(draft: Draft, path: str, value: Any) -> Answer:
    return draft.put("supervise.policy", "last-turn") if value else Answer("default", "supervise.policy: assistant")


def _loss(draft: Draft, path: str, value: Any) -> Answer:
    return draft.put("supervise.loss", "dft") if value else Answer("default", "supervise.loss: cross-entropy")


def _global_batch(draft: Draft, path: str, value: Any) -> Answer:
    samples, longest = int(to.number(value)), int(to.number(draft.get("cutoff_len", 2048)))
    sum_ = f"{samples:,} samples × {longest:,} cutoff_len"
    if says_nothing(draft.get("packing")):
        return to.unpacked(draft, samples, longest, sum_)
    return draft.put("train.step_tokens", samples * longest, sum_)


def _micro_batch(draft: Draft, path: str, value: Any) -> Answer:
    if draft.get("global_batch_size") is None:
        return _STEP_1(draft, path, value)
    return draft.put("attend.micro_rows", int(to.number(value)))


def _every_so_many_epochs(draft: Draft, path: str, value: Any) -> Answer:
    if to.number(value) <= 0:
        return Answer("default", "train.save_every has its own default")
    return to.times_an_epoch(draft, "train.save_every", 1 / to.number(value))


_METHOD: dict[str, Row] = {
    "finetuning_type": mapped("adapt.method", weights.finetuning_type, "lora, full, oft"),
    "peft_config.name": mapped("adapt.method", weights.finetuning_type, "lora, full"),
    "stage": mapped("supervise.policy", _stage, "pt: all, on raw text; sft: assistant; others are refused"),
    **rows("lora_rank peft_config.r", mapped("adapt.rank", weights.rank_number("adapt.rank"))),
    **rows("lora_alpha peft_config.lora_alpha", mapped("adapt.alpha", weights.rank_number("adapt.alpha"))),
    **rows(
        "lora_dropout module_dropout peft_config.lora_dropout",
        Row(
            "not supported",
            to.NO_DROPOUT,
            "",
            weights.of_lora(to.no_dropout),
        ),
    ),
    **rows("lora_target peft_config.target_modules", mapped("adapt.where", weights.of_lora(weights.targets))),
    "oft_target": mapped("adapt.where", weights.targets),
    "oft_block_size": mapped("adapt.options.oft_block_size"),
    "oft_rank": mapped("adapt.options.r"),
    **rows(
        "use_rslora peft_config.use_rslora",
        mapped("adapt.rslora", to.switch("adapt.rslora", True, "adapt.rslora: false")),
    ),
    **rows("use_dora peft_config.use_dora", mapped("adapt.dora", to.switch("adapt.dora", True, "adapt.dora: false"))),
    "loraplus_lr_ratio": mapped("adapt.b_rate_factor"),
    **rows("loraplus_lr_embedding", lacking("one rate for all but the factor B: train.learning_rate")),
    **rows(
        "pissa_init pissa_iter pissa_convert", lacking("PiSSA: the adapter begins at zero change, LoRA as published")
    ),
    **rows(
        "freeze_trainable_layers freeze_trainable_modules freeze_extra_modules peft_config.freeze_trainable_layers"
        " peft_config.freeze_trainable_modules peft_config.freeze_extra_modules",
        lacking("layers by count: name them, adapt.method=full 'adapt.where={layers: 30-31}'"),
    ),
    **rows(
        "additional_target peft_config.modules_to_save",
        lacking("LoRA moves its factors only: adapt.method=full where whole modules must move"),
    ),
    **rows(
        "create_new_adapter adapter_name_or_path adapter_folder peft_config.adapter_name_or_path",
        lacking("a run begins at a base model: export the adapter merged, and give that as model.path"),
    ),
    **rows(
        "use_galore galore_target galore_rank galore_update_interval galore_scale galore_proj_type galore_layerwise"
        " use_apollo apollo_target apollo_rank apollo_update_interval apollo_scale apollo_proj apollo_proj_type"
        " apollo_scale_type apollo_layerwise apollo_scale_front use_badam badam_mode badam_start_block"
        " badam_switch_mode badam_switch_interval badam_update_ratio badam_mask_mode badam_verbose use_adam_mini"
        " use_muon",
        lacking("optimizers: adamw, adamw-8bit, sgd, schedule-free (train.optimizer)"),
    ),
    "use_llama_pro": lacking("no layers are added: adapt.method=lora"),
    "mixture_of_depths": lacking("the model's layers stay as they are"),
    "use_dft_loss": mapped("supervise.loss", _loss, "dft"),
    **rows("use_asft_loss asft_alpha use_eaft_loss eaft_alpha", lacking("losses: cross-entropy, dft (supervise.loss)")),
    **rows(
        "use_mca use_megatron_bridge megatron_bridge_args use_hyper_parallel hyper_parallel_args"
        " hyper_parallel_cp_size",
        lacking(ONE_DEVICE),
    ),
    **rows("freeze_vision_tower freeze_multi_modal_projector freeze_language_model", unneeded("text models only")),
    "compute_accuracy": lacking("exact match of answers: evaluate.learning.0.metric=exact_match"),
    "early_stopping_steps": mapped("evaluate.stop_after", to.as_whole("evaluate.stop_after")),
    "disable_shuffling": lacking("the order is shuffled by train.seed"),
    **rows("plot_loss include_effective_tokens_per_second", default("report.html and summary.json hold it")),
    "pure_bf16": mapped("train.compute", to.compute("bf16"), "the weights that move keep fp32 masters"),
    **rows(
        "pref_beta pref_ftx pref_bco_weight pref_loss dpo_label_smoothing kto_chosen_weight kto_rejected_weight"
        " simpo_gamma ppo_buffer_size ppo_epochs ppo_score_norm ppo_target ppo_whiten_rewards ref_model"
        " ref_model_adapters ref_model_quantization_bit reward_model reward_model_adapters"
        " reward_model_quantization_bit reward_model_type ld_alpha",
        refused("preference optimisation and reinforcement learning"),
    ),
}
_MODEL: dict[str, Row] = {
    **rows("model_name_or_path model", mapped("model.path")),
    "model_revision": mapped("model.revision"),
    "trust_remote_code": mapped("model.remote_code", to.switch("model.remote_code", True, "model.remote_code: false")),
    "template": mapped("model.template", _template, "chatml is built in"),
    "custom_chat_template": mapped("model.template", to.template({}, frozenset())),
    **rows("quantization_bit quant_config.quantization_bit", mapped("model.load", weights.quantization_bit, "4, 8")),
    "quantization_type": default_for(("nf4",), _FOUR_BITS, "a 4-bit base is NF4 (model.load=4bit)"),
    "double_quantization": default_for(
        (True,), _FOUR_BITS, "a 4-bit base is quantised twice, always (model.load=4bit)"
    ),
    **rows("quantization_method quantization_device_map quant_config.name quant_config", default(_FOUR_BITS)),
    **rows(
        "add_tokens", mapped("model.add_tokens", to.add_tokens, "as special tokens, which only the template writes")
    ),
    **rows("add_special_tokens", mapped("model.add_tokens", to.add_tokens)),
    "split_special_tokens": default_for((True,), _SPELLED, _SPELLED),
    "resize_vocab": default("the embedding grows where tokens are added"),
    **rows(
        "new_special_tokens_config init_special_tokens", lacking("rows of new tokens begin at the mean of the others")
    ),
    **rows(
        "cache_dir use_fast_tokenizer low_cpu_mem_usage offload_folder print_param_status download_dir device_map",
        unneeded("the model is loaded in the usual way"),
    ),
    **rows("hf_hub_token ms_hub_token om_hub_token", unneeded("the hub's own login is used")),
    "rope_scaling": lacking("the context is the model's own; longer samples are split or cut (data.N.too_long)"),
    "flash_attn": default("attend.backend: auto; checked against the model's own forward"),
    "shift_attn": lacking("shifted sparse attention hides tokens from each other: a shorter data.N.max_tokens instead"),
    **rows("use_unsloth use_unsloth_gc enable_liger_kernel use_v1_kernels use_kv_cache", unneeded("own fast paths")),
    "moe_aux_loss_coef": lacking("a router's own loss is left out"),
    **rows(
        "disable_gradient_checkpointing use_reentrant_gc enable_activation_checkpointing",
        default("train.recompute: auto recomputes the layers that would not fit"),
    ),
    **rows("upcast_layernorm upcast_lmhead_output", unneeded("moving weights have fp32 masters; the loss is fp32")),
    "train_from_scratch": refused("training from random weights"),
    **rows(
        "use_kt kt_cpu_activation kt_weight_path kt_non_expert_weight_path kt_expert_checkpoint_path"
        " kt_use_lora_experts kt_lora_expert_num kt_lora_expert_intermediate_size kt_config kt_config.*",
        lacking("experts stay on the device of the model: model.load=4bit"),
    ),
    **rows(
        "image_max_pixels image_min_pixels image_do_pan_and_scan crop_to_patches video_max_pixels video_min_pixels"
        " video_fps video_maxlen use_audio_in_video audio_sampling_rate media_dir",
        refused("training on images, video or sound"),
    ),
    "model_class": default_for(
        ("llm",), "causal language models", "frisket trains the language model, with its own head and on text"
    ),
    **rows("init_config init_config.* kernel_config kernel_config.*", unneeded("the model is loaded in the usual way")),
    **rows("infer_dtype compute_dtype", unneeded("train.compute decides")),
    **rows("fp8 fp8_backend fp8_enable_fsdp_float8_all_gather", lacking("types: train.compute=bf16, fp16, fp32")),
}
_DATA: dict[str, Row] = {
    "dataset": mapped("data.N.path", sources.named_sets, "looked up in dataset_info.json"),
    "train_dataset": mapped("data.0.path", sources.set_list),
    "eval_dataset": lacking("a set to measure on: evaluate.learning.0.path=FILE, or data.0.hold_out=0.02"),
    "dataset_dir": unneeded("the folder of dataset_info.json, where the names are looked up"),
    "cutoff_len": mapped("data.N.max_tokens", to.length("truncate"), "and attend.row_tokens"),
    "max_samples": mapped("data.N.limit", lambda draft, path, value: draft.share("limit", int(to.number(value)))),
    "val_size": mapped("data.N.hold_out", to.hold_out),
    "default_system": mapped("data.N.system", to.as_shared("system")),
    "train_on_prompt": mapped("supervise.policy", _on_prompt, "all"),
    "mask_history": mapped("supervise.policy", _last_turn, "last-turn"),
    "packing": Row("default", "attend.arrangement: auto packs, samples kept apart", "", _packing),
    "neat_packing": default("attend.arrangement: auto packs, samples kept apart"),
    "batching_strategy": default("attend.arrangement: auto packs by tokens"),
    **rows("per_device_train_batch_size gradient_accumulation_steps", mapped("train.step_tokens", _STEP, _ARITHMETIC)),
    "global_batch_size": mapped("train.step_tokens", _global_batch, "samples × cutoff_len"),
    "micro_batch_size": mapped("train.step_tokens", _micro_batch, "samples × cutoff_len; and attend.micro_rows"),
    **rows("streaming buffer_size tokenized_path", lacking("data is tokenised once into frisket's own store")),
    **rows("mix_strategy interleave_probs", lacking("sources are shuffled together; data.N.weight repeats one")),
    **rows(
        "overwrite_cache preprocessing_batch_size preprocessing_num_workers data_shared_file_system"
        " ignore_pad_token_for_loss eval_num_beams eval_on_each_dataset batching_workers",
        unneeded("data is tokenised once; padding is never taught"),
    ),
    **rows("tool_format", default("tools are written by the model's own template")),
    "enable_thinking": default_for((True,), _REASONING, f"{_REASONING}; change it with model.template"),
    "preserve_thinking": default_for((False,), _REASONING, f"{_REASONING}; change it with model.template"),
    "predict_with_generate": lacking("evaluate.learning.0.metric=exact_match generates answers"),
}
_REST: dict[str, Row] = {
    **rows("optim_config.name", mapped("train.optimizer", to.optimizer)),
    "optim_config.adamw_betas": mapped("train.betas"),
    "optim_config.adamw_eps": mapped("train.epsilon", to.as_number("train.epsilon")),
    "optim_config.wd": mapped("train.weight_decay", to.as_number("train.weight_decay")),
    **rows("optim_config.*", lacking("options of an optimizer that frisket lacks: train.optimizer")),
    **rows("lr_scheduler_config.name", mapped("train.schedule", to.schedule)),
    **rows("lr_scheduler_config.*", lacking("schedules have no options but train.final_rate and train.warmup")),
    **rows(
        "dist_config dist_config.* dp_size cp_size cp_mode mp_replicate_size mp_shard_size tensor_model_parallel_size"
        " pipeline_model_parallel_size expert_model_parallel_size context_parallel_size"
        " virtual_pipeline_model_parallel_size sequence_parallel use_distributed_optimizer overlap_param_gather"
        " overlap_grad_reduce",
        lacking(ONE_DEVICE),
    ),
    **rows(
        "dist_timeout ray_num_workers ray_init_kwargs ray_init_kwargs.* master_addr master_port resources_per_worker"
        " placement_strategy ray_storage_path",
        unneeded("one device a run"),
    ),
    **rows("recompute_granularity recompute_method recompute_num_layers", default("train.recompute: auto")),
    **rows(
        "account_for_embedding_in_pipeline_split account_for_loss_in_pipeline_split bias_activation_fusion"
        " apply_rope_fusion masked_softmax_fusion cross_entropy_loss_fusion moe_grouped_gemm"
        " moe_token_dispatcher_type calculate_per_token_loss use_packed_sequences mixed_precision"
        " megatron_pretrained_checkpoint extra_config",
        unneeded("options of Megatron"),
    ),
    "save_epochs": mapped("train.save_every", _every_so_many_epochs, "as a share of the run"),
    "save_ckpt_as_hf": unneeded("the result is in PEFT's or Hugging Face's format"),
    **rows(
        "sample_backend max_new_tokens do_sample temperature top_p top_k num_beams max_length repetition_penalty"
        " length_penalty skip_special_tokens",
        unneeded("for generating: frisket generate OUT --chat"),
    ),
    **rows(
        "export_dir export_size export_device export_quantization_bit export_quantization_dataset"
        " export_quantization_nsamples export_quantization_maxlen export_legacy_format export_hub_model_id"
        " export_hf_on_finish infer_backend vllm_maxlen vllm_gpu_util vllm_enforce_eager vllm_max_lora_rank"
        " vllm_config sglang_maxlen sglang_mem_fraction sglang_tp_size sglang_config sglang_lora_backend"
        " peft_config.export_dir peft_config.export_size peft_config.infer_dtype",
        unneeded("for writing and serving a model: frisket export OUT --to merged"),
    ),
    **rows(
        "use_swanlab swanlab_project swanlab_workspace swanlab_run_name swanlab_mode swanlab_api_key swanlab_logdir"
        " swanlab_lark_webhook_url swanlab_lark_secret",
        lacking("SwanLab: 'train.track=[wandb]' is there"),
    ),
    **rows(
        "enable_torch_profiler profiler_output_dir profiler_wait_steps profiler_warmup_steps profiler_active_steps"
        " profiler_repeat profiler_record_shapes profiler_profile_memory profiler_with_stack profile_modules",
        lacking("no profiler: timings.jsonl has the seconds of each step"),
    ),
}
LLAMA_FACTORY = Tool(
    name="llama-factory",
    title="LLaMA-Factory",
    version="0.9.6.dev0 (August 2026)",
    rows={**_METHOD, **_MODEL, **_DATA, **_REST, **{key: row for key, row in TRAINER.items() if key not in _REST}},
    defaults={
        "finetuning_type": "lora",
        "lora_rank": 8,
        "cutoff_len": 2048,
        "per_device_train_batch_size": 8,
        "learning_rate": 5e-5,
        "lr_scheduler_type": "linear",
        "warmup_steps": 0,
        "num_train_epochs": 3.0,
    },
)
LLAMA_FACTORY_1 = replace(
    LLAMA_FACTORY,
    title="LLaMA-Factory (version 1)",
    defaults={
        "peft_config.name": "full",
        "peft_config.r": 8,
        "peft_config.lora_alpha": 16,
        "peft_config.lora_dropout": 0.05,
        "cutoff_len": 2048,
        "micro_batch_size": 1,
        "learning_rate": 1e-4,
        "lr_scheduler_config.name": "constant",
        "optim_config.wd": 0.01,
        "num_train_epochs": 3,
    },
)
"""The same keys with other defaults: files that name their model by `model`."""
