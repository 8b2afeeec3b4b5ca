"""TRL: what `trl sft --config FILE` and SFTConfig take."""

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

_STEP = to.step(("per_device_train_batch_size", 8), ("gradient_accumulation_steps", 1), ("max_length", 1024), "packing")
FOUR_BITS = "model.load: 4bit is NF4, nested"
_ARITHMETIC = "batch size × accumulation × max_length"


_STEP_OLD = to.step(
    ("per_device_train_batch_size", 8), ("gradient_accumulation_steps", 1), ("max_seq_length", 1024), "packing"
)


def _step(draft: Draft, path: str, value: Any) -> Answer:
    if "max_seq_length" in draft.given:
        return _STEP_OLD(draft, path, value)
    if draft.given.get("max_length", 0) is not None:
        return _STEP(draft, path, value)
    counts = [
        int(to.number(draft.get(name, usual)))
        for name, usual in (("per_device_train_batch_size", 8), ("gradient_accumulation_steps", 1))
    ]
    if counts[0] > 1:
        draft.put("attend.micro_rows", counts[0])
    return to.unpacked(draft, counts[0] * counts[1], None)


def _packing_strategy(draft: Draft, path: str, value: Any) -> Answer:
    if value in ("wrapped", "bfd_split", "bfd-requeue") and not says_nothing(draft.get("packing")):
        split = draft.share("too_long", "split", f"{value}: what does not fit is split, not cut off")
        if value != "wrapped":
            return split
        return draft.put("attend.arrangement", "mask-free", "wrapped: samples in a row see each other")
    return Answer("default", "attend.arrangement: auto packs, samples kept apart")


def _truncation_mode(draft: Draft, path: str, value: Any) -> Answer:
    if value == "keep_start":
        return Answer("default", "data.N.too_long: truncate keeps the start")
    draft.check(f"truncation_mode {value}: the recipe keeps the start of a longer sample, so other tokens are trained.")
    return Answer("not supported", f"{value}: data.N.too_long=truncate keeps the start; split keeps all")


def _nested(draft: Draft, path: str, value: Any) -> Answer:
    if says_nothing(draft.get("load_in_4bit")):
        return Answer("not needed", "the file loads nothing in 4 bits")
    if value is True:
        return Answer("default", FOUR_BITS)
    return Answer("not supported", "false: a 4-bit base is NF4 with nested quantisation, always (model.load=4bit)")


def _loss_type(draft: Draft, path: str, value: Any) -> Answer:
    if value == "dft":
        return draft.put("supervise.loss", "dft")
    if value in ("nll", "chunked_nll"):
        return Answer("default", "supervise.loss: cross-entropy")
    return Answer("not supported", f"{value}: supervise.loss is cross-entropy or dft")


def _completion_only(draft: Draft, path: str, value: Any) -> Answer:
    if says_nothing(value):
        return draft.put("supervise.policy", "all", "completion_only_loss: false")
    return Answer("default", "supervise.policy: assistant teaches what the assistant wrote, completions too")


def _assistant_only(draft: Draft, path: str, value: Any) -> Answer:
    if says_nothing(value) and says_nothing(draft.get("completion_only_loss")):
        draft.check(
            "supervise.policy: without assistant_only_loss TRL teaches every token of a conversation; the recipe "
            "teaches what the assistant wrote. As before: supervise.policy=all"
        )
    return Answer("default", "supervise.policy: assistant, found without markers in the template")


_MODEL: dict[str, Row] = {
    "use_peft": mapped("adapt.method", weights.use_peft, "lora, or full"),
    "model_name_or_path": mapped("model.path"),
    "model_revision": mapped("model.revision"),
    "trust_remote_code": mapped("model.remote_code", to.switch("model.remote_code", True, "model.remote_code: false")),
    **rows("dtype torch_dtype", mapped("train.compute", to.compute_type, "auto: as the device has it")),
    "attn_implementation": default(
        "attend.backend: auto; every arrangement is checked against the model's own forward"
    ),
    "lora_r": mapped("adapt.rank", weights.rank_number("adapt.rank")),
    "lora_alpha": mapped("adapt.alpha", weights.rank_number("adapt.alpha")),
    "lora_dropout": Row(
        "not supported",
        to.NO_DROPOUT,
        "",
        weights.of_lora(to.no_dropout),
    ),
    "lora_target_modules": mapped("adapt.where", weights.of_lora(weights.targets), "names become patterns"),
    "lora_target_parameters": mapped("adapt.where", weights.of_lora(weights.target_parameters), "beside the layers"),
    "lora_modules_to_save": lacking("LoRA moves its factors only: adapt.method=full where whole modules must move"),
    "lora_task_type": default_for(
        ("CAUSAL_LM",), "causal language modelling", "frisket trains causal language models only"
    ),
    "use_rslora": mapped("adapt.rslora", to.switch("adapt.rslora", True, "adapt.rslora: false")),
    "use_dora": mapped("adapt.dora", to.switch("adapt.dora", True, "adapt.dora: false")),
    "load_in_4bit": mapped("model.load", weights.quantised("4bit")),
    "load_in_8bit": mapped("model.load", weights.quantised("8bit")),
    "bnb_4bit_quant_type": default_for(("nf4",), FOUR_BITS, "a 4-bit base is NF4 (model.load=4bit)"),
    "use_bnb_nested_quant": Row("default", FOUR_BITS, "true", _nested),
    "bnb_4bit_quant_storage": unneeded("a type for sharding over devices"),
    **rows(
        "model_init_kwargs model_init_kwargs.*", lacking("the model is loaded as its configuration says: model.path")
    ),
    **rows(
        "router_aux_loss_coef output_router_logits",
        lacking("the loss that balances a mixture's router is left out, so a router that moves may become lopsided"),
    ),
}
_DATA: dict[str, Row] = {
    "dataset_name": mapped("data.0.path", sources.trl_dataset),
    **rows("dataset_config dataset_config_name", mapped("data.0.subset")),
    "dataset_train_split": mapped("data.0.split"),
    "dataset_test_split": lacking("a split to measure on is a file or a share: data.0.hold_out=0.02"),
    **rows("dataset_streaming streaming", lacking("data is tokenised into a store first; data.0.limit cuts it")),
    "datasets[].path": mapped("data.N.path", sources.of_entry("path")),
    "datasets[].name": mapped("data.N.subset", sources.of_entry("subset")),
    "datasets[].split": mapped("data.N.split", sources.of_entry("split")),
    "datasets[].data_files": mapped("data.N.path", sources.entry_files, "a local file only"),
    **rows("datasets[].data_dir datasets[].columns", lacking("name a file or folder, data.N.path, and its columns")),
    "test_split_size": mapped("data.N.hold_out", to.hold_out),
    "dataset_text_field": mapped("data.0.text", sources.trl_text_field),
    **rows("dataset_kwargs dataset_kwargs.* dataset_num_proc dataset_batch_size", unneeded("data is tokenised once")),
    **rows("max_length max_seq_length", mapped("data.N.max_tokens", to.length("truncate"), "and attend.row_tokens")),
    "truncation_mode": Row("default", "data.N.too_long: truncate keeps the start", "keep_start", _truncation_mode),
    "shuffle_dataset": default("the order is shuffled by train.seed"),
    "chat_template_path": mapped("model.template", to.template({}, frozenset())),
    "eos_token": default("the token that ends a turn is the template's, found in its rendering"),
    "pad_token": default("padding is never taught and never seen"),
    **rows("per_device_train_batch_size gradient_accumulation_steps", mapped("train.step_tokens", _step, _ARITHMETIC)),
    **rows("packing eval_packing padding_free", default("attend.arrangement: auto packs, samples kept apart")),
    "packing_strategy": mapped(
        "attend.arrangement", _packing_strategy, "wrapped: mask-free; wrapped and bfd_split: too_long: split"
    ),
    "pad_to_multiple_of": unneeded("rows are as long as what they hold"),
    "completion_only_loss": mapped("supervise.policy", _completion_only, "false: all"),
    "assistant_only_loss": Row(
        "default", "supervise.policy: assistant, found without markers in the template", "", _assistant_only
    ),
    "loss_type": mapped("supervise.loss", _loss_type, "nll: cross-entropy; dft: dft"),
    "ignore_bias_buffers": unneeded("one device a run"),
    **rows("accelerate_config num_processes num_machines", lacking(ONE_DEVICE)),
}
_OTHER_JOBS = rows(
    "beta reward_model_path num_generations max_prompt_length max_completion_length reward_funcs ref_model_path"
    " label_pad_token_id precompute_ref_log_probs desirable_weight undesirable_weight teacher_model_name_or_path",
    refused("preference optimisation, reinforcement learning and distillation from a teacher"),
)
TRL = Tool(
    name="trl",
    title="TRL",
    version="1.16.0 with transformers 5.23.0",
    rows={**_MODEL, **_DATA, **TRAINER, **_OTHER_JOBS},
    defaults={
        "use_peft": False,
        "assistant_only_loss": False,
        "max_length": 1024,
        "lora_alpha": 32,
        "lora_dropout": 0.05,
        "use_bnb_nested_quant": False,
        "router_aux_loss_coef": "as the model's configuration has it, for a mixture of experts",
        "per_device_train_batch_size": 8,
        "learning_rate": 2e-5,
        "lr_scheduler_type": "linear",
        "warmup_steps": 0,
        "num_train_epochs": 3.0,
    },
    null_says=frozenset({"max_length"}),
    older_names={"max_length": "max_seq_length"},
)
