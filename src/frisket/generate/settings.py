"""How answers are generated."""

from frisket.settings import Section, knob


class GenerateSettings(Section):
    """Length and choice of generated tokens; greedy unless a temperature is given."""

    max_new_tokens: int = knob(256, "longest generated answer", was=("max_tokens", "max_length"), gt=0)
    temperature: float = knob(0.0, "0: always the most likely token; above: sample, the flatter the higher", ge=0)
    top_p: float = knob(
        1.0, "when sampling: only the likeliest tokens that together reach this probability", gt=0, le=1
    )
    seed: int = knob(0, "seed of sampling; with it the same prompts in the same batches give the same answers", ge=0)
