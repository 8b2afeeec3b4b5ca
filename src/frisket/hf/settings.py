"""The ``model`` section of the recipe."""

from typing import Literal

from frisket.settings import Section, knob


class ModelSettings(Section):
    """Which model, tokenizer and chat template."""

    path: str = knob(
        "bundled",
        "hub id, local folder, or 'bundled' for the small base model that ships with frisket",
        was=("model_name_or_path", "base_model", "model_name", "model"),
    )
    revision: str | None = knob(None, "branch, tag or commit of a hub model")
    tokenizer: str | None = knob(None, "folder or hub id of the tokenizer, where it is not the model's own")
    template: str | None = knob(
        None,
        "chat template: a file, or 'chatml' or 'plain' (built in); default: the model's own, else 'plain'",
        was=("chat_template", "chat_template_path", "chat_template_jinja"),
    )
    add_tokens: tuple[str, ...] = knob(
        (),
        "new special tokens for the chat template to write; with LoRA only their rows move, beside the adapter",
        was=("special_tokens", "add_special_tokens", "additional_special_tokens", "new_special_tokens"),
    )
    load: Literal["none", "4bit", "8bit"] = knob(
        "none",
        "quantise the frozen linear layers when loading: NF4 with double quantisation, or LLM.int8 (bitsandbytes)",
        was=("load_in_4bit", "load_in_8bit", "quantization_bit", "quantization_config", "bnb_4bit_quant_type"),
    )
    remote_code: bool = knob(False, "run Python code that comes with the model", was=("trust_remote_code",))
    device: str = knob("auto", "'auto' (cuda, else cpu), 'cpu', 'cuda', 'cuda:1'")
