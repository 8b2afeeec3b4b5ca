"""The base of every section of the recipe: strict, frozen, each knob declared once with its help."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """A part of the recipe. Unknown keys are refused; the recipe loader names the nearest known one."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False, use_attribute_docstrings=False
    )


def knob(default: Any, help: str, *, was: tuple[str, ...] = (), **limits: Any) -> Any:
    """Declare one knob.

    Args:
        default: its default; ``...`` where it is required.
        help: one line in the words a user knows; command line, docs, schema and errors read it.
        was: what other tools call it (a refused key of that name is answered with this knob).
        limits: pydantic bounds such as ``gt=0``.
    """
    extra: dict[str, Any] = {"was": list(was)} if was else {}
    return Field(default, description=help, json_schema_extra=extra, **limits)
