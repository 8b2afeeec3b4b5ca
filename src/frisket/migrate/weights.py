"""Which weights move: adapters, their targets, full fine-tuning and quantised bases of the three tools."""

import re
from typing import Any

from frisket.migrate.convert import number, words
from frisket.migrate.table import Answer, Convert, Draft, says_nothing

_REGEX_ONLY = re.compile(r"[()|+?{}]|\\d|\\w|\[\^")


def adapter(draft: Draft, path: str, value: Any) -> Answer:
    """Axolotl's ``adapter``: the method, and with ``qlora`` a 4-bit base."""
    kind = str(value or "")
    if kind in ("", "None", "none"):
        return draft.put("adapt.method", "full")
    if kind == "qlora":
        _few_bits(draft, "4bit", "adapter: qlora")
    elif kind != "lora":
        draft.put("adapt.method", "lora", f"instead of {kind}")
        return Answer("not supported", f"{kind}: the recipe has adapt.method: lora; the methods: frisket plan --schema")
    return draft.put("adapt.method", "lora", "adapter: qlora, with model.load" if kind == "qlora" else "")


def finetuning_type(draft: Draft, path: str, value: Any) -> Answer:
    """LLaMA-Factory's ``finetuning_type``, and the ``name`` of its version 1's ``peft_config``."""
    match str(value):
        case "lora":
            return draft.put("adapt.method", "lora")
        case "full":
            return draft.put("adapt.method", "full")
        case "oft":
            draft.put("adapt.peft_type", "OFT")
            return draft.put("adapt.method", "peft")
        case "freeze":
            draft.put("adapt.method", "full")
            draft.check("finetuning_type freeze: name the layers that move, for example 'adapt.where={layers: 30-31}'.")
            return Answer("not supported", "the last layers by count: say which, 'adapt.where={layers: 30-31}'")
        case other:
            return Answer("not supported", f"{other}: the methods: frisket plan --schema")


def use_peft(draft: Draft, path: str, value: Any) -> Answer:
    """TRL's ``use_peft``: LoRA, or all weights."""
    if not says_nothing(value) and draft.get("lora_target_modules") is None:
        draft.check(
            "adapt.where: the file leaves the layers to PEFT, for many models q_proj and v_proj alone; frisket takes "
            'all linear layers. As before: \'adapt.where=["*.q_proj", "*.v_proj"]\''
        )
    return draft.put("adapt.method", "full" if says_nothing(value) else "lora")


def of_lora(convert: Convert) -> Convert:
    """A key that is read only where LoRA is on."""

    def only(draft: Draft, path: str, value: Any) -> Answer:
        if says_nothing(value) and not isinstance(value, int | float):
            return Answer("default", "nothing is given")
        if draft.knobs.get("adapt.method") != "lora":
            return Answer("not needed", "the file trains without LoRA, and leaves this unread")
        return convert(draft, path, value)

    return only


def rank_number(knob: str) -> Convert:
    """A number that belongs to LoRA."""
    return of_lora(lambda draft, path, value: draft.put(knob, number(value)))


def targets(draft: Draft, path: str, value: Any) -> Answer:
    """Names of layers as patterns; a regular expression becomes a pattern where it can."""
    if draft.get("lora_target_linear"):
        return Answer("not needed", "lora_target_linear is on too, and takes all linear layers")
    names = [value] if isinstance(value, str) and "\\" in value else words(value)
    if "all-linear" in names or "all" in names:
        return draft.put("adapt.where", "all-linear")
    patterns = [pattern_of(name) for name in names]
    if None in patterns:
        draft.put("adapt.where", "all-linear", "the file's regular expression has no pattern here")
        draft.check("adapt.where: the file names layers by a regular expression; list them: frisket plan --names.")
        return Answer("not supported", "a regular expression: the recipe has all-linear; patterns: adapt.where")
    return draft.put("adapt.where", patterns)


def target_parameters(draft: Draft, path: str, value: Any) -> Answer:
    """Tensors that are no layers (experts of a mixture), beside the layers that the file names."""
    patterns = [pattern_of(name) for name in words(value)]
    if None in patterns:
        return Answer("not supported", "a regular expression: name tensors in adapt.where, or experts for all of them")
    before = draft.knobs.get("adapt.where", [])
    return draft.put("adapt.where", [*([before] if isinstance(before, str) else before), *patterns])


def target_linear(draft: Draft, path: str, value: Any) -> Answer:
    """Axolotl's ``lora_target_linear``."""
    if says_nothing(value):
        return Answer("default", "lora_target_modules decides; without it, all-linear")
    return draft.put("adapt.where", "all-linear")


def unfrozen(draft: Draft, path: str, value: Any) -> Answer:
    """Axolotl's ``unfrozen_parameters``: expressions over names of parameters."""
    if says_nothing(value):
        return Answer("default", "all weights move")
    names = words(value)
    patterns = [pattern_of(re.sub(r"\\?\.(weight|bias)\$?$", "", name), rooted=True) for name in names]
    if draft.knobs.get("adapt.method") != "full":
        return Answer("not needed", "the adapter decides what moves")
    if None in patterns or any("[" in name and ":" in name for name in names):
        draft.check("adapt.where: the file unfreezes parameters by expressions; list names: frisket plan --names.")
        return Answer("not supported", "these expressions: the recipe moves all weights; patterns: adapt.where")
    return draft.put("adapt.where", patterns)


def pattern_of(expression: str, rooted: bool = False) -> str | None:
    """A shell pattern for a simple regular expression, or None.

    >>> [pattern_of("q_proj"), pattern_of(r"^model\\.layers\\.[0-7]\\..*", rooted=True), pattern_of("(a|b)")]
    ['*.q_proj', '*model.layers.[0-7].*', None]
    """
    if _REGEX_ONLY.search(expression):
        return None
    plain = expression.removeprefix("^").removesuffix("$").replace("\\.", ".").replace(".*", "*")
    if rooted:
        return f"*{plain}".replace("**", "*")
    return plain if plain.startswith("*") else f"*.{plain}"


def quantised(bits: str) -> Convert:
    """A key that is true where the base is loaded in few bits."""

    def convert(draft: Draft, path: str, value: Any) -> Answer:
        if says_nothing(value):
            return Answer("default", "model.load: none" if "model.load" not in draft.knobs else "the other width is on")
        if draft.knobs.get("adapt.method") == "full":
            return Answer("not supported", "a quantised base does not move: use LoRA, adapt.method=lora")
        if draft.knobs.get("model.load") == "4bit":
            return Answer("mapped", "model.load = 4bit")
        return _few_bits(draft, bits)

    return convert


def _few_bits(draft: Draft, bits: str, comment: str = "") -> Answer:
    draft.check(f"model.load: {bits} needs bitsandbytes: pip install 'frisket[quantised]'")
    return draft.put("model.load", bits, comment)


def quantization_bit(draft: Draft, path: str, value: Any) -> Answer:
    """LLaMA-Factory's ``quantization_bit``, by the method beside it."""
    if says_nothing(value):
        return Answer("default", "model.load: none")
    if number(value) not in (4, 8):
        return Answer("not supported", f"{value} bits: model.load=4bit or 8bit")
    if draft.get("quantization_method", "bnb") not in ("bnb", "bitsandbytes"):
        _few_bits(draft, f"{value}bit", f"instead of {draft.get('quantization_method')}")
        return Answer("not supported", f"{draft.get('quantization_method')}: the recipe has model.load: {value}bit")
    return _few_bits(draft, f"{value}bit")
