"""What all arms of one comparison share: model, samples, LoRA, optimizer, and how large a step is."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.real_shape import SHAPE as QWEN3

LLAMA, BUNDLED = "llama_tokenizer.model", "bundled"
MIDDLE = {
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}
SHAPES: dict[str, dict[str, Any]] = {
    "25M": {
        "tokenizer": LLAMA,
        "model_type": "llama",
        "hidden_size": 384,
        "intermediate_size": 1024,
        "num_hidden_layers": 8,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
    },
    "26M, small vocabulary": {"tokenizer": BUNDLED, "model_type": "llama", **MIDDLE},
    "Qwen3-0.6B": {"tokenizer": LLAMA, "model_type": "qwen3", **QWEN3},
}
TARGETS = {"q-and-v": ["q_proj", "v_proj"], "all-linear": "all-linear", "full": None}
SPREAD = 0.1  # standard deviation of the embedding: losses differ from token to token, so a wrong mask shows


@dataclass(frozen=True)
class Case:
    """One comparison.

    Attributes:
        shape: a key of ``SHAPES``, or ``bundled``.
        targets: a key of ``TARGETS``.
        samples: of the file, from its first on.
        batch: samples of a step of TRL and of plain transformers.
        tokens: mean tokens of ``batch`` samples: what a step and a forward of frisket hold.
    """

    shape: str
    targets: str
    samples: int
    batch: int
    tokens: int
    rank: int = 16
    alpha: int = 32
    rate: float = 2e-4

    def lora(self) -> Any:
        """PEFT's configuration of the same adapter; None where all of the model moves."""
        from peft import LoraConfig

        targets = TARGETS[self.targets]
        if targets is None:
            return None
        return LoraConfig(r=self.rank, lora_alpha=self.alpha, target_modules=targets, task_type="CAUSAL_LM")

    @staticmethod
    def read(work: Path) -> "Case":
        """The case of a work folder."""
        return Case(**json.loads((work / "case.json").read_text()))

    def write(self, work: Path) -> None:
        """Keep it for the arms."""
        (work / "case.json").write_text(json.dumps(asdict(self)))


@dataclass(frozen=True)
class Tokens:
    """Samples as token ids, with True where a token is a target."""

    ids: list[list[int]]
    is_taught: list[list[int]]

    @staticmethod
    def read(work: Path) -> "Tokens":
        """What frisket made of the file."""
        with np.load(work / "tokens.npz") as kept:
            cuts = np.cumsum(kept["lengths"])[:-1]
            return Tokens(*([part.tolist() for part in np.split(kept[name], cuts)] for name in ("ids", "is_taught")))

    def write(self, work: Path) -> None:
        """Keep them for the arms of other libraries."""
        flat = {name: np.concatenate(getattr(self, name)).astype(np.int32) for name in ("ids", "is_taught")}
        np.savez(work / "tokens.npz", lengths=[len(ids) for ids in self.ids], **flat)

    def digest(self) -> str:
        """Of all samples, whatever their order."""
        each = sorted(json.dumps(pair) for pair in zip(self.ids, self.is_taught, strict=True))
        return hashlib.sha256("\n".join(each).encode()).hexdigest()[:16]

    def first(self, count: int) -> "Tokens":
        """The first samples."""
        return Tokens(self.ids[:count], self.is_taught[:count])
