"""Axolotl's other jobs, kernels, trackers and plugins: nearly all without work here, or lacking."""

from frisket.migrate.table import Row, lacking, refused, rows, unneeded
from frisket.migrate.trainer import ONE_DEVICE

OTHER: dict[str, Row] = {
    **rows(
        "rl trl.* vllm.* rl_beta dpo_beta orpo_alpha simpo_gamma cpo_alpha rpo_alpha kto_desirable_weight"
        " kto_undesirable_weight dpo_use_weighting dpo_label_smoothing precompute_ref_log_probs"
        " dpo_use_liger_kernel dpo_padding_free dpo_loss_type dpo_loss_weights dpo_use_logits_to_keep"
        " dpo_generate_during_eval dpo_norm_loss ebft ebft.*",
        refused("preference optimisation and reinforcement learning (chosen answers: data.0.answers=chosen)"),
    ),
    **rows("reward_model process_reward_model center_rewards_coefficient", refused("training of a reward model")),
    **rows("num_labels cls_model_config", refused("training of a classifier")),
    **rows("diffusion diffusion.*", refused("diffusion language models")),
    **rows(
        "kd_trainer kd_ce_alpha kd_alpha kd_temperature kd_beta kd_normalize_topk kd_online_server_base_url"
        " kd_online_topk kd_online_server kd_online_timeout kd_temperature_min",
        refused("distillation from a teacher's logits"),
    ),
    **rows(
        "nemo_gym_enabled nemo_gym_dir nemo_gym_auto_clone nemo_gym_config_paths nemo_gym_head_port"
        " nemo_gym_server_timeout nemo_gym_verify_timeout nemo_gym_run_timeout nemo_gym_datasets"
        " nemo_gym_auto_start nemo_gym_model_name nemo_gym_multi_turn nemo_gym_max_turns",
        refused("reinforcement learning"),
    ),
    **rows(
        "processor_kwargs image_size image_resize_algorithm role_boundaries",
        lacking("images and sound: frisket trains the text part of such a model, on text"),
    ),
    **rows(
        "relora relora_prune_ratio relora_prune_method relora_cpu_offload jagged_restart_steps"
        " jagged_restart_warmup_steps jagged_restart_anneal_steps",
        lacking("ReLoRA's restarts: adapt.method=lora runs through; `stages` begin again"),
    ),
    **rows("lisa_n_layers lisa_step_interval lisa_layers_attribute", lacking("LISA: name layers, adapt.where")),
    **rows(
        "qat qat.* quantization quantization.*", lacking("quantisation-aware training: quantise the exported model")
    ),
    **rows(
        "use_pose pose_split_on_token_ids pose_max_context_len pose_num_chunks rope_scaling"
        " overrides_of_model_config overrides_of_model_config.* overrides_of_model_kwargs"
        " overrides_of_model_kwargs.* model_config model_config.*",
        lacking("the model is taken as its configuration says: change config.json in a copy, model.path"),
    ),
    **rows(
        "gptq gptq_groupsize gptq_model_v1 gptq_disable_exllama model_quantization_config"
        " model_quantization_config_kwargs model_quantization_config_kwargs.*",
        lacking("models quantised before: take the original, with model.load=4bit"),
    ),
    **rows("neftune_noise_alpha noisy_embedding_alpha", lacking("no noise is added to embeddings")),
    **rows(
        "use_eaft eaft_alpha eaft_k scaling_softmax scaling_softmax_factor scaling_softmax_bias",
        lacking("losses: cross-entropy, dft (supervise.loss)"),
    ),
    **rows(
        "mean_resizing_embeddings resize_token_embeddings_to_32x shrink_embeddings embeddings_skip_upcast"
        " fix_untrained_tokens",
        unneeded("only rows of added tokens are new, and begin at the mean of the others"),
    ),
    **rows("reinit_weights", refused("training from random weights")),
    "trainer_cls": lacking("there is one training loop"),
    **rows("plugins", unneeded("nothing is plugged in: the keys of a plug-in are answered one by one")),
    **rows(
        "deepcompile fp32_norms fp32_norm_classes fsdp_version fsdp_final_state_dict_type dp_shard_size"
        " dp_replicate_size sequence_parallel_degree context_parallel_size heads_k_stride ring_attn_func"
        " tensor_parallel_size expert_parallel_size expert_parallel_backend expert_parallel_num_nvl_bytes"
        " expert_parallel_num_rdma_bytes expert_parallel_token_capacity expert_parallel_fallback_on_unsupported",
        lacking(ONE_DEVICE),
    ),
    **rows(
        "world_size ddp use_ray ray_run_name ray_num_workers resources_per_worker resources_per_worker.*"
        " dynamic_checkpoint dynamic_checkpoint.*",
        unneeded("one device a run"),
    ),
    **rows("fp8 fp8_enable_fsdp_float8_all_gather use_onebitllms", lacking("types: train.compute=bf16, fp16, fp32")),
    **rows(
        "liger_rope liger_rms_norm liger_rms_norm_gated liger_layer_norm liger_swiglu liger_glu_activation"
        " use_kernels experts_implementation quantize_moe_experts tiled_mlp tiled_mlp_num_shards"
        " tiled_mlp_use_original_mlp llama4_linearized_experts use_scattermoe use_sonicmoe use_dsv4_kernels"
        " use_glm_dsa_kernels dsv4_fp8_nonexpert_mode dsv4_fp8_lora_kernel dsv4_shared_mlp_lora_kernel dsv4_bf16_all"
        " dsv4_fp4_grouped_mode gemma4_fp8_nonexpert gemma4_nf4_nonexpert nvfp4_merge_aware"
        " nvfp4_merge_aware_start_step expert_backend nonexpert_quantization moe_grouped_backend"
        " moe_dequant_chunk_size moe_bnb_fast flash_attn_fuse_mlp flash_attn_fuse_qkv",
        unneeded("a kernel, not a setting: the same model is trained"),
    ),
    **rows("tokenizer_use_mistral_common", lacking("the tokenizer of Hugging Face: model.tokenizer")),
    **rows("spectrum_top_fraction spectrum_model_name", lacking("Spectrum: name the layers it finds, adapt.where")),
    **rows("grokfast_alpha grokfast_lamb", lacking("Grokfast: no filter on gradients")),
    **rows(
        "lm_eval_tasks lm_eval_batch_size lm_eval_post_train lm_eval_model do_bench_eval bench_dataset bench_split"
        " do_causal_lm_eval eval_causal_lm_metrics eval_table_size eval_max_new_tokens",
        lacking("sets to measure on: evaluate.learning.0.path=FILE, metric exact_match"),
    ),
    **rows("llmcompressor llmcompressor.*", lacking("sparsity: compress the exported model")),
    **rows(
        "loss_watchdog_threshold loss_watchdog_patience gc_steps gc_collect_steps profiler_steps"
        " profiler_steps_start include_tkps strict axolotl_config_path debug project_name",
        unneeded("a loss that is not finite stops the run; timings.jsonl has the seconds of each step"),
    ),
    **rows(
        "use_mlflow mlflow_tracking_uri mlflow_experiment_name mlflow_run_name hf_mlflow_log_artifacts use_comet"
        " comet_api_key comet_workspace comet_project_name comet_experiment_key comet_mode comet_online"
        " comet_experiment_config use_otel_metrics otel_metrics_host otel_metrics_port use_trackio"
        " trackio_project_name trackio_run_name trackio_space_id use_swanlab swanlab_project"
        " swanlab_experiment_name swanlab_description swanlab_mode swanlab_workspace swanlab_api_key"
        " swanlab_log_model swanlab_web_host swanlab_api_host swanlab_lark_webhook_url swanlab_lark_secret"
        " swanlab_log_completions swanlab_completion_log_interval swanlab_completion_max_buffer",
        lacking("trackers: 'train.track=[wandb]' or [tensorboard]; metrics.jsonl is always written"),
    ),
    **rows(
        "gradio_title gradio_share gradio_server_name gradio_server_port gradio_max_new_tokens gradio_temperature",
        unneeded("frisket generate OUT --chat talks to the model"),
    ),
}
