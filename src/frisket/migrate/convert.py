"""Conversions that several tools share; each writes into the draft and answers for its key."""

import re
from collections.abc import Mapping
from typing import Any

from frisket.migrate.length import mean_tokens
from frisket.migrate.table import Answer, Convert, Draft, says_nothing, shown

ADAMW = frozenset({"adamw", "adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw_apex_fused", "adamw_torch_xla"})
PAGED = {"paged_adamw", "paged_adamw_32bit"}
ADAMW_8BIT = {"adamw_8bit", "adamw_bnb_8bit", "adamw_torch_8bit", "paged_adamw_8bit"}
SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant", "constant_with_warmup": "constant"}
WITH_FLOOR = {"cosine_with_min_lr", "cosine_warmup_with_min_lr"}
FLOORS = {"min_lr", "min_lr_rate"}
NO_DROPOUT = "frisket has no dropout; against overfitting: evaluate.stop_after=3 or train.weight_decay=0.01"
DECIDED_BY_STEPS = "max_steps, where the file gives it, decides instead"
TYPES = {
    "bfloat16": "bf16",
    "bf16": "bf16",
    "float16": "fp16",
    "fp16": "fp16",
    "half": "fp16",
    "float32": "fp32",
    "fp32": "fp32",
    "float": "fp32",
}


class BadValueError(ValueError):
    """A value of the file that cannot be what its key needs; says what is required."""


class OtherJobError(ValueError):
    """The file is for a job that frisket does not do: where it says so, and the job by name."""

    def __init__(self, place: str, job: str) -> None:
        super().__init__(place, job)
        self.place, self.job = place, job


def number(value: Any) -> float:
    """A number, also where YAML 1.1 reads ``2e-5`` as text.

    Raises:
        BadValueError: it is none.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    try:
        found = float(value)
    except (TypeError, ValueError):
        raise BadValueError(f"= {value!r} must be a number") from None
    return int(found) if isinstance(value, str) and value.isdecimal() else found


def words(value: Any) -> list[str]:
    """A list of words, also where they are one text with commas.

    Raises:
        BadValueError: neither a text nor a list of plain values.
    """
    if isinstance(value, str):
        return [word.strip() for word in value.split(",") if word.strip()]
    if not isinstance(value, list) or any(isinstance(item, dict | list) for item in value):
        raise BadValueError(f"= {value!r} must be a list of words")
    return [str(item) for item in value]


def as_number(knob: str) -> Convert:
    """Take over a number."""
    return lambda draft, path, value: draft.put(knob, number(value))


def as_whole(knob: str) -> Convert:
    """Take over a whole number."""
    return lambda draft, path, value: draft.put(knob, int(number(value)))


def as_shared(name: str) -> Convert:
    """Take over a value for every source of data."""
    return lambda draft, path, value: draft.share(name, value)


def as_flag(flag: str) -> Convert:
    """A value that is given on the command line."""

    def convert(draft: Draft, path: str, value: Any) -> Answer:
        if says_nothing(value):
            return Answer("default", f"nothing is asked for; here it is the flag {flag}")
        draft.flags[flag] = str(value)
        return Answer("mapped", f"{flag} {value}, on the command line")

    return convert


def resume(draft: Draft, path: str, value: Any) -> Answer:
    """Continuing is a flag here, and always from the newest checkpoint."""
    if says_nothing(value):
        return Answer("default", "a run starts afresh; to continue it: --resume")
    draft.flags["--resume"] = ""
    return Answer("mapped", "--resume, on the command line: from the newest checkpoint of the frisket run")


def switch(knob: str, on: Any, off: str) -> Convert:
    """A key that sets a knob where it is true; ``off`` says what holds where it is not."""

    def convert(draft: Draft, path: str, value: Any) -> Answer:
        return Answer("default", off) if says_nothing(value) else draft.put(knob, on)

    return convert


def epochs(draft: Draft, path: str, value: Any) -> Answer:
    """Passes over the data, unless a number of steps overrides them."""
    if number(draft.get("max_steps", -1)) > 0:
        return Answer("not needed", f"max_steps = {draft.get('max_steps')} decides when training ends")
    return draft.put("train.epochs", number(value))


def no_dropout(draft: Draft, path: str, value: Any) -> Answer:
    """Dropout of an adapter: there is none here, so that a loss is the same each time it is computed."""
    if number(value) == 0:
        return Answer("default", "no dropout")
    return Answer("not supported", f"{shown(value)} is left out: {NO_DROPOUT}")


def max_steps(draft: Draft, path: str, value: Any) -> Answer:
    """Steps of the run; -1 and 0 say nothing."""
    if number(value) <= 0:
        return Answer("default", "no limit of steps")
    return draft.put("train.max_steps", int(number(value)))


def optimizer(draft: Draft, path: str, value: Any) -> Answer:
    """The optimizer by its nearest kind here."""
    name = str(value)
    if name in ADAMW:
        return draft.put("train.optimizer", "adamw")
    if name in PAGED:
        return draft.put("train.optimizer", "adamw", f"{name}: without paging")
    if name in ADAMW_8BIT:
        comment = f"{name}: without paging" if name.startswith("paged") else ""
        return draft.put("train.optimizer", "adamw-8bit", comment)
    if name in ("sgd", "adamw_schedule_free", "schedule_free_adamw"):
        return draft.put("train.optimizer", "sgd" if name == "sgd" else "schedule-free")
    nearest = "adamw-8bit" if name in ("adamw_torch_4bit", "ao_adamw_4bit") else "adamw"
    draft.put("train.optimizer", nearest, f"instead of {name}, which frisket lacks")
    draft.check(f"{name} became {nearest}: its learning rate may not fit; train.learning_rate=auto takes the method's.")
    return Answer("not supported", f"{name}: the recipe has train.optimizer: {nearest}; look at the learning rate")


def schedule(draft: Draft, path: str, value: Any) -> Answer:
    """The shape of the rate by its nearest kind here."""
    name = str(value)
    if name == "constant":
        draft.put("train.warmup", 0, "the plain constant schedule has no warm-up")
    if name in SCHEDULES:
        return draft.put("train.schedule", SCHEDULES[name])
    if name in WITH_FLOOR and _floor_of(draft):
        return draft.put("train.schedule", "cosine", "its floor is train.final_rate")
    if name in WITH_FLOOR:
        draft.put("train.schedule", "cosine", f"{name} without its floor")
        return Answer("not supported", f"{name}: lr_scheduler_kwargs names no floor; give it: train.final_rate=0.1")
    draft.put("train.schedule", "cosine", f"instead of {name}, which frisket lacks")
    return Answer("not supported", f"{name}: the recipe has train.schedule: cosine (there are linear, constant too)")


def _floor_of(draft: Draft) -> set[str]:
    options = draft.get("lr_scheduler_kwargs")
    return FLOORS & set(options) if isinstance(options, Mapping) else set()


def floor(draft: Draft, path: str, value: Any) -> Answer:
    """The lowest rate of a cosine, as a share of the peak (``min_lr_rate``) or as a rate (``min_lr``)."""
    name = str(draft.get("lr_scheduler_type", draft.get("lr_scheduler")))
    if name not in WITH_FLOOR:
        return Answer("not needed", f"the schedule {name} has no floor")
    if path.endswith(".min_lr_rate"):
        return draft.put("train.final_rate", number(value))
    peak = draft.knobs.get("train.learning_rate")
    if peak is None:
        return Answer("not supported", "a rate, and the file gives no peak to divide it by: train.final_rate=0.1")
    share = round(number(value) / peak, 6)
    return draft.put("train.final_rate", share, f"min_lr {shown(value)} of a peak of {peak:g}")


def warmup(draft: Draft, path: str, value: Any) -> Answer:
    """Warm-up as a share or in steps; steps win where both are given."""
    if path.startswith("warmup_ratio") and number(draft.get("warmup_steps", 0)) > 0:
        return Answer("not needed", "warmup_steps is given too, and wins")
    if path == "warmup_steps" and number(value) == 0 and number(draft.get("warmup_ratio", 0)) > 0:
        return Answer("not needed", "it is 0, so warmup_ratio decides")
    if "constant" in (draft.get("lr_scheduler"), draft.get("lr_scheduler_type")):
        return Answer("not needed", "the constant schedule of the file has no warm-up (constant_with_warmup has)")
    return draft.put("train.warmup", number(value))


def beta(place: int) -> Convert:
    """One of AdamW's two decay rates; the other is the file's or the usual one."""

    def convert(draft: Draft, path: str, value: Any) -> Answer:
        betas = [number(draft.get("adam_beta1", 0.9)), number(draft.get("adam_beta2", 0.999))]
        betas[place] = number(value)
        return draft.put("train.betas", betas)

    return convert


def compute(kind: str) -> Convert:
    """A key that is true for one type of the matmuls."""

    def convert(draft: Draft, path: str, value: Any) -> Answer:
        if value == "auto" or says_nothing(value):
            return Answer("default", "train.compute: auto takes bf16 where the device has it")
        if kind == "fp16" and draft.get("bf16") is True:
            return Answer("not needed", "bf16 is on too, and wins")
        return draft.put("train.compute", kind)

    return convert


def compute_type(draft: Draft, path: str, value: Any) -> Answer:
    """A type by its name in torch."""
    name = TYPES.get(str(value).removeprefix("torch."))
    if name is None:
        return Answer("default", "train.compute: auto takes bf16 where the device has it")
    if draft.get("bf16") is True or draft.get("fp16") is True:
        return Answer("not needed", "bf16 or fp16 decides the type of the matmuls")
    return draft.put("train.compute", name)


def hold_out(draft: Draft, path: str, value: Any) -> Answer:
    """A share or a number of samples; 0 keeps none."""
    size = number(value)
    return draft.share("hold_out", size, "" if size else "nothing is held out, so learning is not measured")


def length(too_long: str) -> Convert:
    """The longest sample: a limit of each source, and the length of a row; ``too_long`` is what the tool does."""

    def convert(draft: Draft, path: str, value: Any) -> Answer:
        if value is None or number(value) <= 1:
            return Answer("default", "the model's context is the limit, and a longer sample is an error")
        tokens = int(number(value))
        draft.put("attend.row_tokens", tokens, "rows of that length")
        action = draft.get("excess_length_strategy", too_long)
        draft.share("too_long", {"raise": "error"}.get(action, action), "what happens to longer ones, as before")
        return draft.share("max_tokens", tokens)

    return convert


def step(micro: tuple[str, int], accumulated: tuple[str, int], longest: tuple[str, int], packed: str) -> Convert:
    """Samples a device × accumulated batches × tokens a sample, as one size in tokens.

    Args:
        micro: key of the micro-batch size, and its default in the tool; so the two others.
        packed: key that says whether samples fill each row.
    """

    def convert(draft: Draft, path: str, value: Any) -> Answer:
        if any(draft.get(name) == "auto" for name, _ in (micro, accumulated)):
            return Answer("default", "train.step_tokens: the file leaves the batch to DeepSpeed")
        counts = [int(number(draft.get(name, usual))) for name, usual in (micro, accumulated, longest)]
        sum_ = " × ".join(
            f"{count:,} {name}" for count, (name, _) in zip(counts, (micro, accumulated, longest), strict=True)
        )
        if counts[0] > 1:
            draft.put("attend.micro_rows", counts[0])
        if not says_nothing(draft.get(packed, draft.get("stage") == "pt")):  # LLaMA-Factory packs raw text unasked
            return draft.put("train.step_tokens", counts[0] * counts[1] * counts[2], sum_)
        return unpacked(draft, counts[0] * counts[1], counts[2], sum_)

    return convert


def unpacked(draft: Draft, samples: int, longest: int | None, sum_: str = "") -> Answer:
    """The size of a step of whole samples: so many times the mean of local files, else the most they can hold.

    Args:
        longest: tokens that no sample is longer than; None: the file sets no limit.
        sum_: the arithmetic of the most.
    """
    mean = mean_tokens([path for knob, path in draft.knobs.items() if re.fullmatch(r"data\.\d+\.path", knob)])
    as_before = f"frisket plan prints the mean sample; {samples:,} times that makes steps as before."
    if mean is None and longest is None:
        draft.check(f"train.step_tokens: the file counts {samples:,} samples a step, of any length. {as_before}")
        return Answer("default", f"train.step_tokens: auto; the file counts {samples:,} samples of any length")
    if mean is None:
        tokens = samples * (longest or 1)
        draft.check(
            f"train.step_tokens = {tokens:,} is the most that {samples:,} unpacked samples a step can hold. {as_before}"
        )
        return draft.put("train.step_tokens", tokens, sum_)
    each = min(round(mean), longest or round(mean))
    tokens = max(1, samples * each)
    draft.check(
        f"train.step_tokens = {tokens:,} is an estimate: 4 characters a token, without the chat template's own tokens. "
        f"{as_before}"
    )
    comment = f"{samples:,} samples, unpacked, × about {each:,} tokens (4 characters each; see frisket plan)"
    return draft.put("train.step_tokens", tokens, comment)


def every(knob: str, strategy: str, per_epoch: str = "") -> Convert:
    """How often something is done: steps, or so many times an epoch, as a share of the run."""

    def convert(draft: Draft, path: str, value: Any) -> Answer:
        if path == strategy:
            return _by_strategy(draft, knob, str(value))
        if draft.get(strategy) in ("no", "epoch", False):
            return Answer("not needed", f"{strategy} = {draft.get(strategy)} decides")
        if says_nothing(value) or number(value) <= 0:
            return Answer("default", f"{knob} has its own default")
        if path == per_epoch:
            return times_an_epoch(draft, knob, number(value))
        return draft.put(knob, number(value))

    return convert


def _by_strategy(draft: Draft, knob: str, strategy: str) -> Answer:
    if strategy in ("no", "False", "none"):
        return draft.put(knob, 0, "before and after training only" if "evaluate" in knob else "only at the end")
    return times_an_epoch(draft, knob, 1) if strategy == "epoch" else Answer("default", f"{knob} counts steps")


def times_an_epoch(draft: Draft, knob: str, times: float) -> Answer:
    """So many times an epoch, as a share of the run."""
    passes = number(draft.get("num_epochs", draft.get("num_train_epochs", 1)))
    if number(draft.get("max_steps", -1)) > 0:
        return Answer("default", f"{knob}: a share of the run; the file counts it in epochs, but ends by max_steps")
    if times * passes <= 1:
        return draft.put(knob, 0, "once: at the end")
    told = f"{times:g} an epoch, {passes:g} epochs" if passes != 1 else f"{times:g} times in the run"
    return draft.put(knob, round(1 / (times * passes), 4), told)


def report_to(draft: Draft, path: str, value: Any) -> Answer:
    """Trackers: files in the run folder always, TensorBoard and W&B on demand."""
    wanted = set() if says_nothing(value) else set(words(value)) - {"none"}
    tracked = sorted(wanted & {"tensorboard", "wandb"})
    if wanted - set(tracked):
        draft.check(f"{path}: frisket tells TensorBoard and W&B only (train.track); metrics.jsonl has every step.")
    if not tracked and wanted:
        return Answer(
            "not supported", f"{', '.join(sorted(wanted))}: read metrics.jsonl, or 'train.track=[tensorboard]'"
        )
    if not tracked:
        return Answer("default", "metrics.jsonl, timings.jsonl and report.html are written to OUT; nothing is sent")
    return _tracked(draft, tracked)


def tracker(name: str) -> Convert:
    """A key that switches one tracker on."""

    def convert(draft: Draft, path: str, value: Any) -> Answer:
        if says_nothing(value):
            return Answer("default", "train.track: [] tells nobody")
        return _tracked(draft, sorted({*draft.knobs.get("train.track", ()), name}))

    return convert


def _tracked(draft: Draft, names: list[str]) -> Answer:
    for name in names:
        draft.check(f"train.track: {name} is a package of its own: pip install 'frisket[{name}]'")
    return draft.put("train.track", names)


def template(known: Mapping[str, str], own: frozenset[str]) -> Convert:
    """A chat template by its name in the tool.

    Args:
        known: names that frisket has built in.
        own: names that mean the tokenizer's own template.
    """

    def convert(draft: Draft, path: str, value: Any) -> Answer:
        name = str(value)
        if says_nothing(value) or name in own:
            return Answer("default", "the model's own template")
        if name in known:
            return draft.put("model.template", known[name])
        if name.endswith((".jinja", ".j2", ".jinja2", ".txt")):
            return draft.put("model.template", name)
        draft.check(
            f"template {name}: frisket takes the template that comes with the model. Where that differs, or a base "
            "model has none, give a file: model.template=my.jinja (frisket view shows the rendering)."
        )
        return Answer("default", f"the model's own template, not the tool's copy of {name}; others: model.template")

    return convert


def add_tokens(draft: Draft, path: str, value: Any) -> Answer:
    """Tokens that the tokenizer gets, with rows of their own."""
    if says_nothing(value):
        return Answer("default", "no tokens are added")
    known = draft.knobs.get("model.add_tokens", [])
    return draft.put("model.add_tokens", list(dict.fromkeys([*known, *words(value)])))


def special_token(draft: Draft, path: str, value: Any) -> Answer:
    """A special token by its part (``eos_token``): added where the tokenizer lacks it."""
    if says_nothing(value):
        return Answer("default", "the tokenizer's own")
    if path.endswith("eos_token"):
        draft.check(
            f"{path}: {value} is added where the tokenizer lacks it; it ends a taught turn only where the chat "
            "template writes it: model.template=my.jinja, and frisket view shows the rendering."
        )
    return add_tokens(draft, path, [value])


def fixed(knob: str, setting: Any) -> Convert:
    """A key that, where it says anything, sets a knob to one value."""
    return lambda draft, path, value: (
        Answer("default", "it is off") if says_nothing(value) else draft.put(knob, setting, f"{path}: {shown(value)}")
    )
