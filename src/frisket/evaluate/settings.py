"""The ``evaluate`` section of the recipe: what was learned, what was forgotten, and how often to look."""

from typing import Literal

from frisket.settings import Section, knob


class LearningSettings(Section):
    """One set that measures the taught task."""

    name: str = knob(..., "name in the table and in summary.json")
    path: str | None = knob(None, "file of conversations; without it, the run's own hold-out")
    prompt: str | None = knob(None, "column that holds the prompt")
    completion: str | None = knob(None, "column that holds the completion")
    metric: Literal["loss", "exact_match"] = knob("loss", "loss only, or loss and exact match of greedy answers")
    extract: str | None = knob(None, "regular expression; its group 1 is compared instead of the whole answer")
    limit: int | None = knob(None, "use only the first samples", gt=0)
    max_new_tokens: int = knob(256, "longest generated answer", gt=0)
    by: str | None = knob(None, "column whose values get a line each (for example 'skill')")


class ForgettingSettings(Section):
    """One set that measures what the base model knew."""

    name: str = knob("default", "name in the table and in summary.json")
    path: str | None = knob(
        None, "file of text or conversations; without it, KL on own prompts and standard-library text"
    )
    prompts: int = knob(32, "prompts whose greedy base answers are compared (KL)", ge=0)
    answer_tokens: int = knob(64, "tokens of each base answer", gt=0)
    text_tokens: int = knob(16384, "tokens of prose and of code from the installed Python that are measured", ge=0)


class EvaluateSettings(Section):
    """Before and after always; in between as often as ``every`` says."""

    every: float = knob(
        0.25, "a share of the run below 1, or a number of steps; 0: before and after only", was=("eval_steps",), ge=0
    )
    learning: tuple[LearningSettings, ...] | None = knob(None, "sets of the taught task; default: a hold-out")
    forgetting: tuple[ForgettingSettings, ...] = knob((ForgettingSettings(),), "sets of what was known")
    budget_seconds: float = knob(
        60.0, "longest evaluation before training; fewer samples are used, said so, where it would be longer", gt=0
    )
    stop_after: int | None = knob(
        None,
        "stop when the loss of `watch` was not improved by so many evaluations in a row",
        was=("early_stopping_patience",),
        gt=0,
    )
    watch: str | None = knob(
        None, "learning set whose loss decides; default: the first", was=("metric_for_best_model",)
    )
    keep: Literal["last", "best"] = knob(
        "last",
        "which weights are the result: of the last step, or of the evaluation with the lowest loss of `watch`",
        was=("load_best_model_at_end",),
    )
    samples: int = knob(
        3, "prompts of the first learning set that are answered at every evaluation (samples.jsonl); 0: none", ge=0
    )
    sample_tokens: int = knob(64, "longest of these answers", gt=0)
    batch_tokens: int = knob(8192, "tokens of a batch while evaluating and generating", gt=0)
