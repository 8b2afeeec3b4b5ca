"""The ``train`` section of the recipe: the step, the optimizer, the schedule, checkpoints."""

from typing import Annotated, Literal

from pydantic import Field

from frisket.settings import Section, knob

OptimizerName = Literal["adamw", "adamw-8bit", "sgd", "schedule-free"]


class TrainSettings(Section):
    """How the weights are moved."""

    epochs: float | None = knob(
        None, "passes over the data; default 1 unless max_steps is given", was=("num_train_epochs", "num_epochs"), gt=0
    )
    max_steps: int | None = knob(
        None, "optimizer steps; alone it repeats the data as often as needed", was=("num_steps", "iters"), gt=0
    )
    step_tokens: Annotated[int, Field(gt=0)] | Literal["auto"] = knob(
        "auto",
        "tokens of samples in one optimizer step; 'auto': the most from 1,024 to 32,768 that make at least 128 steps, "
        "or 1,024",
        was=("gradient_accumulation_steps", "per_device_train_batch_size", "train_batch_size"),
    )
    learning_rate: Annotated[float, Field(gt=0)] | Literal["auto"] = knob(
        "auto", "peak rate; 'auto': the method's own, for the model's width", was=("lr",)
    )
    schedule: Literal["auto", "cosine", "linear", "constant"] = knob(
        "auto",
        "shape of the rate after the warm-up; 'auto': cosine, but constant where the optimizer is schedule-free",
        was=("lr_scheduler_type", "lr_scheduler"),
    )
    warmup: float = knob(
        0.03,
        "steps of linear warm-up: a share of the run below 1, or a number",
        was=("warmup_ratio", "warmup_steps"),
        ge=0,
    )
    final_rate: float = knob(0.0, "rate at the end, as a share of the peak", was=("min_lr_ratio",), ge=0, le=1)
    optimizer: OptimizerName = knob(
        "adamw",
        "fused AdamW, AdamW with 8-bit moments, plain SGD, or schedule-free AdamW",
        was=("optim", "optimizer_name"),
    )
    betas: tuple[float, float] = knob((0.9, 0.999), "AdamW's decay rates", was=("adam_beta1", "adam_beta2"))
    epsilon: float = knob(1e-8, "AdamW's epsilon", was=("adam_epsilon",), gt=0)
    weight_decay: float = knob(0.0, "decoupled weight decay", ge=0)
    clip: float = knob(
        1.0,
        "largest norm of a step's gradient; 0 switches clipping off",
        was=("max_grad_norm", "gradient_clipping"),
        ge=0,
    )
    seed: int = knob(0, "seed of data order and initialisation", ge=0)
    compute: Literal["auto", "bf16", "fp16", "fp32", "fp64"] = knob(
        "auto",
        "type of the model's matmuls; moving weights keep fp32 masters",
        was=("bf16", "fp16", "torch_dtype", "dtype"),
    )
    recompute: Literal["auto", "none", "all"] | int = knob(
        "auto", "layers whose activations are computed again in the backward pass", was=("gradient_checkpointing",)
    )
    save_every: float = knob(
        0.25,
        "checkpoint: a share of the run below 1, or a number of steps; 0: only at the end",
        was=("save_steps",),
        ge=0,
    )
    keep: int = knob(2, "newest checkpoints kept", was=("save_total_limit",), ge=1)
    deterministic: bool = knob(False, "on CUDA: deterministic kernels, so that resume is byte-identical")
    threads: int | None = knob(None, "CPU threads; default: physical cores", gt=0)
    order: Literal["families", "samples"] = knob(
        "families", "whether samples that share a long prefix stay in one step"
    )
    track: tuple[Literal["tensorboard", "wandb"], ...] = knob(
        (),
        "also tell TensorBoard or Weights & Biases (offline unless WANDB_MODE says otherwise)",
        was=("report_to", "tensorboard", "use_wandb", "wandb_project"),
    )
