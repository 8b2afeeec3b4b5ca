"""The ``data`` section of the recipe: a list of sources."""

from typing import Annotated, Literal

from pydantic import BeforeValidator

from frisket.settings import Section, knob

SUFFIXES = (".jsonl", ".json", ".parquet", ".csv", ".tsv")
"""What the name of a data file ends in."""

Format = Literal["auto", "messages", "sharegpt", "alpaca", "prompt-completion", "text", "tokens", "preference"]


def _off_is_false(value: object) -> object:
    return 0 if value in ("off", "none", False) else value


class Shots(Section):
    """Worked examples that are put before each prompt."""

    path: str = knob(..., "file of examples, any format that frisket reads")
    count: int = knob(8, "how many of its first samples", gt=0)


class SourceSettings(Section):
    """One source of training data."""

    path: str = knob(
        ...,
        "JSONL, JSON, Parquet or CSV file, a folder of them, a hub id, or 'bundled'",
        was=("dataset", "dataset_name", "train_file", "dataset_path"),
    )
    format: Format = knob(
        "auto", "how a record is read; 'auto' detects it from the columns and prints it", was=("type",)
    )
    split: str = knob("train", "split of a hub data set")
    subset: str | None = knob(
        None, "configuration of a hub data set, where it has several", was=("dataset_config_name",)
    )
    prompt: str | None = knob(None, "column that holds the prompt", was=("field_instruction", "prompt_column"))
    completion: str | None = knob(None, "column that holds the completion", was=("field_output", "completion_column"))
    messages: str | None = knob(None, "column that holds the messages", was=("field_messages",))
    text: str | None = knob(None, "column that holds raw text", was=("dataset_text_field",))
    roles: dict[str, Literal["system", "user", "assistant", "tool"]] = knob(
        {}, "further names of roles in the messages, and what they stand for: {bot: assistant}"
    )
    system: str | None = knob(None, "a system prompt put before conversations that have none", was=("default_system",))
    without_prompt: bool = knob(False, "response tuning: train on the answer alone, without its prompt")
    limit: int | None = knob(None, "use only the first samples", was=("max_samples",), gt=0)
    weight: float = knob(
        1.0, "how often an epoch uses each sample of this source (0.5: half of them, 2: each twice)", gt=0
    )
    max_tokens: int | None = knob(
        None,
        "longest sample allowed; default: the model's context",
        was=("max_length", "max_seq_length", "cutoff_len", "sequence_len"),
        gt=1,
    )
    too_long: Literal["error", "drop", "split", "truncate"] = knob(
        "error", "what happens to a longer sample (raw text is always split)"
    )
    bad: Literal["error", "drop"] = knob("error", "what happens to a sample that cannot be taught")
    hold_out: Annotated[float | None, BeforeValidator(_off_is_false)] = knob(
        None,
        "share of the samples (below 1) or number of samples kept for evaluation; "
        "default: 2 %, in all at least 8 and at most 200, where `evaluate` names no learning set",
        was=("val_size", "val_set_size", "test_size"),
        ge=0,
    )
    render: Literal["chat", "raw", "alpaca"] = knob(
        "chat", "how text formats become tokens: the chat template, prompt + completion + end token, or Alpaca's header"
    )
    answers: Literal["chosen", "both"] = knob("chosen", "which answers of a preference row are used")
    expand: Literal["off", "turns"] = knob("off", "'turns': one sample for each assistant turn, ending at it")
    shots: Shots | None = knob(None, "worked examples put before each prompt")
