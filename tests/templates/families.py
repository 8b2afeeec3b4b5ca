"""The published templates of TRL's wheel, and for each family a tokenizer with the special tokens that it spells.

Nothing of TRL is in this repository: the templates are read from the installed package.
"""

from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerFast

from frisket import bundled

BUILT_IN = ("plain", "chatml")
CHATML = ("<|im_start|>", "<|im_end|>")
VISION = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
THINK = ("<think>", "</think>")
CALL = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")


@dataclass(frozen=True)
class Family:
    """What a family's tokenizer knows beside bytes.

    Attributes:
        specials: special tokens; text that spells them must stay text.
        eos: the end token.
        bos: the beginning token; None where the family has none.
        words: added tokens that are no special tokens, which text may spell.
        adds_bos: whether the tokenizer itself puts ``bos`` before every text.
        swallows: whether the special tokens take the white space after them (``rstrip``).
    """

    specials: tuple[str, ...]
    eos: str
    bos: str | None = None
    words: tuple[str, ...] = ()
    adds_bos: bool = False
    swallows: bool = False


_COHERE = (
    "<|START_OF_TURN_TOKEN|>",
    "<|END_OF_TURN_TOKEN|>",
    "<|SYSTEM_TOKEN|>",
    "<|USER_TOKEN|>",
    "<|CHATBOT_TOKEN|>",
)
_DEEPSEEK = (
    *("<｜User｜>", "<｜Assistant｜>", "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>"),
    *("<｜tool▁call▁end｜>", "<｜tool▁outputs▁begin｜>", "<｜tool▁outputs▁end｜>", "<｜tool▁output▁begin｜>"),
    *("<｜tool▁output▁end｜>", "<｜tool▁sep｜>"),
)
_GEMMA4 = (
    *("<|turn>", "<turn|>", "<|channel>", "<channel|>", "<|tool>", "<tool|>", "<|tool_call>", "<tool_call|>"),
    *("<|tool_response>", "<tool_response|>", "<|think|>", '<|"|>', "<|image|>", "<|audio|>", "<|video|>"),
)
_HARMONY = ("<|start|>", "<|message|>", "<|channel|>", "<|end|>", "<|call|>")
_LFM2 = (
    *(*CHATML, "<|tool_list_start|>", "<|tool_list_end|>", "<|tool_call_start|>", "<|tool_call_end|>"),
    *("<|tool_response_start|>", "<|tool_response_end|>", "<image>"),
)
_LLAMA = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>", "<|python_tag|>")
_QWEN = Family(CHATML, "<|im_end|>", words=(*THINK, *CALL))
_QWEN_VISION = Family((*CHATML, *VISION), "<|im_end|>", words=(*THINK, *CALL))
_R1 = Family(_DEEPSEEK, "<｜end▁of▁sentence｜>", "<｜begin▁of▁sentence｜>", THINK, adds_bos=True)
_GLM = ("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")

# A template belongs to the longest of these names that its own begins with.
FAMILIES = {
    "plain": Family((), "<|end|>", "<|begin|>", adds_bos=True),
    "chatml": Family(CHATML, "<|im_end|>"),
    "cohere": Family(_COHERE, "<|END_OF_TURN_TOKEN|>", "<BOS_TOKEN>", adds_bos=True),
    "cohere2": Family((*_COHERE, "<|START_RESPONSE|>", "<|END_RESPONSE|>"), "<|END_OF_TURN_TOKEN|>", "<BOS_TOKEN>"),
    "deepseek_r1_distill": _R1,
    "deepseekv3": _R1,
    "diffusion_gemma": Family(_GEMMA4, "<turn|>", "<bos>", adds_bos=True),
    "gemma": Family(("<start_of_turn>", "<end_of_turn>"), "<eos>", "<bos>", adds_bos=True),
    "gemma3": Family(("<start_of_turn>", "<end_of_turn>", "<start_of_image>"), "<eos>", "<bos>", adds_bos=True),
    "gemma4": Family(_GEMMA4, "<turn|>", "<bos>", adds_bos=True),
    "glm4moe": Family(
        _GLM, "<|endoftext|>", words=(*THINK, *CALL, "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>")
    ),
    "gptoss": Family(_HARMONY, "<|return|>", "<|startoftext|>"),
    "idefics3": Family(("<end_of_utterance>", "<image>"), "<|end_of_text|>", "<|begin_of_text|>", adds_bos=True),
    "lfm2": Family(_LFM2, "<|im_end|>", "<|startoftext|>", THINK, adds_bos=True),
    "llama3": Family(_LLAMA, "<|eot_id|>", "<|begin_of_text|>", adds_bos=True),
    "llava_next": Family(("<image>",), "</s>", "<s>", adds_bos=True),
    "muse_glimmer": Family(
        ("<|start|>", "<|message|>", "<|eom|>", "<|patch|>", "<|video|>"), "<|eot|>", "<|begin_of_text|>"
    ),
    "nemotron_3": Family(CHATML, "<|im_end|>", "<s>", (*THINK, *CALL)),
    "phi3": Family(("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"), "<|endoftext|>", "<s>", swallows=True),
    "qwen2_5": _QWEN,
    "qwen2_5_vl": _QWEN_VISION,
    "qwen3": _QWEN,
    "qwen3_5": _QWEN_VISION,
    "qwen3_6": _QWEN_VISION,
    "qwen3_8": _QWEN_VISION,
    "qwen3_vl": _QWEN_VISION,
    "smolvlm": Family(("<|im_start|>", "<end_of_utterance>", "<image>"), "<end_of_utterance>"),
}


def installed() -> bool:
    """Whether TRL is there to be compared with."""
    return find_spec("trl") is not None


def trl_version() -> str:
    """Version of the templates."""
    return version("trl")


@cache
def published() -> dict[str, str]:
    """Name and source of every template that TRL ships; empty where it is not installed."""
    found = find_spec("trl")
    if found is None or found.origin is None:
        return {}
    folder = Path(found.origin).parent / "chat_templates"
    return {path.stem: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.jinja"))}


def marked() -> list[str]:
    """Templates that tell what the assistant generates, with ``{% generation %}``."""
    return [name for name, text in published().items() if "endgeneration" in text]


def unmarked() -> list[str]:
    """Templates without such markers."""
    return [name for name in published() if name not in marked()]


def twin(name: str) -> str | None:
    """The template with markers that was made from ``name``."""
    return f"{name}_training" if f"{name}_training" in published() else None


def family(name: str) -> Family:
    """The family that a template belongs to."""
    return FAMILIES[max((known for known in FAMILIES if name.startswith(known)), key=len)]


@cache
def tokenizer_of(name: str) -> PreTrainedTokenizerFast:
    """The bundled byte-level tokenizer with the special tokens of the template's family."""
    kind = family(name)
    backend = Tokenizer.from_file(str(bundled.base_path() / "tokenizer.json"))
    if not kind.adds_bos:
        backend.post_processor = None  # type: ignore[assignment]
    ends = (kind.eos, *([kind.bos] if kind.bos else []))
    specials = [AddedToken(word, special=True, normalized=False, rstrip=kind.swallows) for word in kind.specials]
    backend.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in ends] + specials)
    backend.add_tokens([AddedToken(word, special=False, normalized=False) for word in kind.words])
    if kind.adds_bos and kind.bos:
        from tokenizers.processors import TemplateProcessing

        begin = (kind.bos, backend.token_to_id(kind.bos))
        backend.post_processor = TemplateProcessing(single=f"{kind.bos} $A", special_tokens=[begin])  # type: ignore[assignment]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=kind.bos, eos_token=kind.eos)
    tokenizer.chat_template = published().get(name)
    return tokenizer
