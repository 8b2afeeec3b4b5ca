"""The first forward and backward of one of PEFT's further types: what its own code raises there is refused by name."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from frisket.adapt.base import MethodSettings
from frisket.adapt.peft import Peft
from frisket.errors import UnsupportedError
from frisket.run.exhausted import is_exhausted

_RAISED = (RuntimeError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError, AssertionError)


@contextmanager
def refused_by_name(method: MethodSettings, compute: torch.dtype) -> Iterator[None]:
    """Name the type of PEFT whose layers fail; other methods' errors, and those of exhausted memory, pass.

    Raises:
        UnsupportedError: with the first line of what was raised.
    """
    try:
        yield
    except _RAISED as error:
        if not isinstance(method, Peft) or is_exhausted(error):
            raise
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        named = str(compute).removeprefix("torch.")
        instead = "adapt.method=lora" if compute == torch.float32 else "train.compute=fp32, else adapt.method=lora"
        raise UnsupportedError(
            f"adapt.peft_type = {method.label}: PEFT's layers of this type fail here in {named}: {said[:200]}\n"
            f"Use {instead}"
        ) from error
