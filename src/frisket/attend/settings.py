"""The ``attend`` section of the recipe: which tokens see which, and how rows are filled."""

from typing import Literal

from frisket.settings import Section, knob


class AttendSettings(Section):
    """Arrangement of samples in rows, and the backend that computes attention."""

    arrangement: Literal["auto", "padded", "isolated", "forest", "mask-free"] = knob(
        "auto",
        "'padded': one sample a row; 'isolated': several samples a row that do not see each other; 'forest': the same, "
        "but what samples begin with alike is computed once; 'mask-free': each sample also sees those before it in its "
        "row (another training, not a faster one: see docs). 'auto': the forest where it saves 5 % or more",
        was=("packing",),
    )
    compare: bool = knob(
        False, "mask-free only: train isolated rows for the same steps too, into OUT/isolated, and say which is better"
    )
    row_tokens: int = knob(
        4096, "tokens a row is filled up to (a budget, not a limit: a longer sample gets a row of its own)", gt=0
    )
    micro_rows: int = knob(
        1, "rows that go through the model together", was=("per_device_train_batch_size", "micro_batch_size"), gt=0
    )
    backend: Literal["auto", "grouped", "sdpa", "varlen", "flex"] = knob(
        "auto",
        "'grouped': samples of like length together, no mask, forests by parts; 'sdpa': dense mask, for checking; "
        "'varlen' and 'flex' need CUDA and are refused in this version",
        was=("attn_implementation",),
    )
