"""The only list of built-in methods."""

from typing import Annotated

from pydantic import Field

from frisket.adapt.full import Full
from frisket.adapt.peft import Ia3, LnTuning, Lora, Peft

Method = Annotated[Full | Lora | Ia3 | LnTuning | Peft, Field(discriminator="method")]
