"""Which settings differ between the arms of a comparison, and which of these nobody asked for."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from frisket.adapt.lora import Lora
from frisket.recipe import Recipe
from frisket.run.rates import AS_ASKED

TOUCH_NO_WEIGHT = ("seed", "threads", "save_every", "keep", "track")
"""Settings of ``train`` that runs of one arm may have as they like."""
_SETTLED = ("step_tokens", "learning_rate")
_ABSENT = "–"


def differing_settings(arms: Mapping[str, tuple[Recipe, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """The settings that are not the same in all arms, those that were asked for first.

    Not asked for is what `auto`, or a default that follows another setting, made of the others: a rank that is doubled
    doubles alpha and halves LoRA's rate.

    Args:
        arms: by name, the recipe of a run with every number that it settled, and its ``summary.json``.

    Returns:
        One entry each: ``{"name", "values": {arm: text}, "asked"}``.
    """
    asked = {arm: dict(_flat(identity(recipe))) for arm, (recipe, _) in arms.items()}
    derived = {arm: _derived(recipe, summary) for arm, (recipe, summary) in arms.items()}
    whole = {arm: asked[arm] | derived[arm] for arm in arms}
    found = []
    for name in dict.fromkeys(name for each in whole.values() for name in each):
        values = {arm: _text(each.get(name, _ABSENT)) for arm, each in whole.items()}
        if len(set(values.values())) > 1:
            is_asked = not all(name in each for each in derived.values())
            found.append({"name": name, "values": values, "asked": is_asked})
    return sorted(found, key=lambda each: not each["asked"])


def asked_for(recipe: Recipe, summary: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run by dotted name, without its name, its seed, and what followed from the others."""
    derived = _derived(recipe, summary)
    return {name: value for name, value in _flat(identity(recipe)) if name not in derived}


def identity(recipe: Recipe) -> dict[str, Any]:
    """What makes a run the run that it is, but for its name and its seed."""
    given = recipe.model_dump(mode="json", exclude={"name"})
    for name in TOUCH_NO_WEIGHT:
        given["train"].pop(name)
    return given


def unasked(settings: Sequence[Mapping[str, Any]]) -> str:
    """One line on the settings that differ without having been asked for, with what holds them; empty without any."""
    first = {each["name"]: next(iter(each["values"].values())) for each in settings if not each["asked"]}
    if not first:
        return ""
    differ, them = ("differs", "it") if len(first) == 1 else ("differ", "them")
    held = " ".join(f"{name}={value}" for name, value in first.items() if value != _ABSENT)
    return f"{' and '.join(first)} {differ} too, though nobody asked for that. To hold {them}: {held}"


def _derived(recipe: Recipe, summary: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of one run that follow from its other settings."""
    settled = summary.get("train") or {}
    found = {
        f"train.{name}": settled[name]
        for name in _SETTLED
        if name in settled and settled.get(f"{name}_why", AS_ASKED) != AS_ASKED
    }
    if isinstance(recipe.adapt, Lora) and recipe.adapt.alpha is None:
        found["adapt.alpha"] = 2 * recipe.adapt.rank
    return found


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """A nested section as dotted names: ``data.0.path``."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    if not inner:
        yield name, value
    for key, item in inner:
        yield from _flat(item, f"{name}.{key}" if name else str(key))


def _text(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
