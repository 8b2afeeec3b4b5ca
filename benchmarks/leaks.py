"""Who lets packed samples see each other, and what does it say: other tools and frisket on the same tiny models.

    python benchmarks/leaks.py          (TRL's rows need: pip install trl)

Two samples share a row; every token of the first is replaced, its length kept, and the second is watched. *Change* is
the largest change of a logit of the second sample; *to alone* is its largest difference from the same tool running the
second sample by itself. Both are 0, or rounding, where samples are isolated. Positions that restart are the
padding-free packing of Kundu et al. 2024 (arXiv 2407.09105). Every figure is measured in this run, on the releases
installed here. *What the user is told* is what Python's warnings and the libraries' loggers said while the case ran, or
the error that ended it; documentation is not counted. Results go to benchmarks/results/leaks.json.
"""

import argparse
import logging
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
import torch
from accelerate.logging import MultiProcessAdapter
from datasets import Dataset, disable_progress_bars
from peft import LoraConfig, PeftConfig, PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, get_peft_model
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, models
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    DataCollatorWithFlattening,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import logging as transformers_logging

import frisket
from frisket.attend.pack import Arrangement, pack
from frisket.errors import FrisketError
from frisket.hf.attention import NAME
from frisket.hf.forward import hidden_states
from frisket.hf.heads import head_of
from frisket.run.folder import environment, write_json
from frisket.types import Provenance, Sequence
from frisket.watch import Silent

RESULTS = Path(__file__).parent / "results" / "leaks.json"
LIBRARIES = ("peft", "accelerate", "datasets", "trl")
VOCAB, SHARED, FIRST, SECOND, VIRTUAL, ROW = 64, 10, 9, 7, 4, 64
QUOTED = 130  # characters of a warning in the table; the file has all of it
ROUNDING = 1e-5  # of logits of order 1 in float32
SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
HYBRID = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
QWEN = "qwen3_5_text"
FAMILIES = {"llama": {}, QWEN: HYBRID}
ARRANGEMENTS: dict[Arrangement, str] = {
    "padded": "padded",
    "isolated": "isolated",
    "forest": "forest, the samples share a prefix",
    "mask-free": "mask-free (each sees those before it, as documented)",
}
ON_PACKING = re.compile(r"pack|position.?id|isolat|contaminat|leak|attend|each other|across|\brows?\b", re.IGNORECASE)
SENTENCE_END = re.compile(r"(?<=[.;])\s")
TRL_STRATEGIES = {"bfd": "bfd", "bfd_split": "bfd_split", "wrapped": "wrapped (borders ignored, as documented)"}
NOT_RUN = (
    "flash attention and the CUDA kernels of linear attention: this table is of the CPU",
    "Axolotl, LLaMA-Factory and Unsloth: they want a GPU or heavy installations",
)
NO_TRL = "TRL: it is not installed (pip install trl)"

LORA = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], init_lora_weights=False)
PROMPT_TUNING = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=VIRTUAL)
P_TUNING = PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=VIRTUAL, encoder_hidden_size=16)
PREFIX_TUNING = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=VIRTUAL)

Samples = list[list[int]]


@dataclass(frozen=True)
class Case:
    """One way of laying samples together.

    Attributes:
        logits: from samples, laid together in this order, to [token, vocab] of the last one (or of its last tokens).
        told: what the tool says, where that is not a warning of the forward itself.
        shares: the samples begin with the same tokens.
    """

    tool: str
    setting: str
    logits: Callable[[Samples], Tensor]
    told: Callable[[], str] | None = None
    shares: bool = False


@dataclass(frozen=True)
class Finding:
    """One row of the table.

    Attributes:
        change: largest change of a logit of the second sample when every token of the first is replaced.
        to_alone: largest difference of a logit of the second sample from running it alone with the same tool.
        largest_logit: of the second sample, alone; the scale of both.
        verdict: ``isolated``, ``leaks``, ``wrong`` (no leak, but not what the sample is alone) or ``refused`` (an error
            came instead of logits).
        told: what the user is told about it.
        heard: all warnings that were given.
    """

    tool: str
    setting: str
    change: float | None
    to_alone: float | None
    largest_logit: float | None
    verdict: str
    told: str
    heard: tuple[str, ...]


def measure(case: Case) -> Finding:
    """Replace the first sample, and run the second one alone; a tool that refuses has nothing to measure."""
    prefix, first, replaced, second = tokens(case.shares)
    pair, other, single = [prefix + first, prefix + second], [prefix + replaced, prefix + second], [prefix + second]
    messages: list[str] = []
    try:
        with heard(messages), torch.no_grad():
            together, again, changed, alone = (case.logits(laid)[-SECOND:] for laid in (pair, pair, other, single))
    except (FrisketError, ValueError) as refusal:  # the latter is what the others raise for what they cannot do
        if not ON_PACKING.search(str(refusal)):
            raise
        messages.append(str(refusal))
        return Finding(case.tool, case.setting, None, None, None, "refused", condensed(messages), tuple(messages))
    assert (again - together).abs().max() <= ROUNDING, "the same samples gave other logits: a change would mean nothing"
    change, to_alone = float((changed - together).abs().max()), float((alone - together).abs().max())
    verdict = "leaks" if change > ROUNDING else "isolated" if to_alone <= ROUNDING else "wrong"
    told = condensed(messages) if case.told is None else said(case.told)
    largest = float(alone.abs().max())
    return Finding(case.tool, case.setting, change, to_alone, largest, verdict, told, tuple(messages))


def tokens(shares: bool) -> tuple[list[int], list[int], list[int], list[int]]:
    """A prefix (empty unless shared), a first sample, one that replaces it in every token, a second sample."""
    drawn = (np.random.default_rng(0).permutation(VOCAB - 3) + 3).tolist()
    prefix, rest = drawn[:SHARED], drawn[SHARED:]
    own = rest[:FIRST], rest[FIRST : 2 * FIRST], rest[2 * FIRST : 2 * FIRST + SECOND]
    return prefix if shares else [], *own


@contextmanager
def heard(messages: list[str]) -> Iterator[None]:
    """Collect every warning of Python and of the libraries' loggers, also those that are given once a process."""
    ear = _Ear(messages)
    loggers = [logging.getLogger(name) for name in (None, "transformers")]  # the latter does not pass on to the root
    transformers_logging.warning_once.cache_clear()
    MultiProcessAdapter.warning_once.cache_clear()
    transformers_logging.disable_default_handler()
    for logger in loggers:
        logger.addHandler(ear)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield
        finally:
            for logger in loggers:
                logger.removeHandler(ear)
            transformers_logging.enable_default_handler()
            messages += [str(warning.message) for warning in caught]
            messages[:] = dict.fromkeys(messages)  # each once


class _Ear(logging.Handler):
    def __init__(self, messages: list[str]) -> None:
        super().__init__(logging.WARNING)
        self.messages = messages

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def condensed(messages: list[str]) -> str:
    """The first sentence of each warning that has to do with packed rows."""
    sentences = [SENTENCE_END.split(text.strip())[0] for text in messages if ON_PACKING.search(text)]
    return "; ".join(f"“{shorten(sentence, QUOTED, placeholder=' …')}”" for sentence in sentences) or "nothing"


def tiny(family: str = "llama", attention: str = "sdpa") -> PreTrainedModel:
    """Two random layers in float32, the same at every call; matrices wide enough for logits of order 1."""
    torch.manual_seed(0)
    config: PretrainedConfig = CONFIG_MAPPING[family](**SHAPE, **FAMILIES[family])
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=torch.float32)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, 0, 0.2)
    return model.eval()


def said(told: Callable[[], str]) -> str:
    """What a run of frisket says, be it that it refuses."""
    try:
        return told()
    except FrisketError as refusal:
        return f"refused: {condensed([str(refusal)])}"


def bare_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer for those that want one; the samples are tokens already."""
    vocabulary = {"<unk>": 0, "<end>": 2} | {f"w{token}": token for token in range(VOCAB) if token not in (0, 2)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="<end>")


def flattened(samples: Samples, **asked: bool) -> dict[str, Any]:
    """One packed row as transformers' own collator lays it: position ids restart, no attention mask."""
    batch = DataCollatorWithFlattening(**asked)([{"input_ids": sample} for sample in samples])
    return {name: value for name, value in batch.items() if name != "labels"}


def restarting(samples: Samples, attention: str = "sdpa", family: str = "llama", **asked: bool) -> Tensor:
    """Position ids restart and no cache."""
    return tiny(family, attention)(**flattened(samples, **asked), use_cache=False).logits[0]


def default_cache(samples: Samples) -> Tensor:
    """Position ids restart; the cache is left as the model's configuration has it."""
    return tiny()(**flattened(samples)).logits[0]


def ones_mask(samples: Samples) -> Tensor:
    """Position ids restart, and a mask of ones, as a tokenizer gives it, goes along."""
    batch = flattened(samples)
    return tiny()(**batch, attention_mask=torch.ones_like(batch["input_ids"]), use_cache=False).logits[0]


def contiguous(samples: Samples) -> Tensor:
    """The samples as one text."""
    return tiny()(input_ids=flattened(samples)["input_ids"], use_cache=False).logits[0]


def two_rows(samples: Samples) -> Tensor:
    """A batch of two packed rows; the second is watched."""
    batch = {name: value.repeat(2, 1) for name, value in flattened(samples).items()}
    return tiny()(**batch, use_cache=False).logits[1]


def branches(samples: Samples) -> Tensor:
    """A shared prefix once, then each sample's own tokens; position ids go on from the prefix in each."""
    trunk = samples[0][:SHARED]
    own = [sample[SHARED:] for sample in samples]
    positions = [*range(SHARED), *(SHARED + i for part in own for i in range(len(part)))]
    ids = [*trunk, *(token for part in own for token in part)]
    return tiny()(input_ids=torch.tensor([ids]), position_ids=torch.tensor([positions]), use_cache=False).logits[0]


def with_peft(samples: Samples, adapter: PeftConfig) -> Tensor:
    """A packed row through a ``PeftModel``; virtual tokens stand before the row."""
    model = tiny()
    torch.manual_seed(1)
    # a copy, because PEFT writes the model's sizes into the configuration
    return get_peft_model(model, deepcopy(adapter)).eval()(**flattened(samples), use_cache=False).logits[0]


def with_trl(
    samples: Samples,
    strategy: str = "bfd",
    attention: str = "sdpa",
    family: str = "llama",
    adapter: PeftConfig | None = None,
) -> Tensor:
    """The trainer's own packing, collator and loss; the backbone's output on its way to the loss is what is read."""
    from trl import SFTConfig, SFTTrainer  # pyright: ignore[reportMissingImports]  # optional

    disable_progress_bars()
    model = tiny(family, attention)
    with tempfile.TemporaryDirectory() as scratch:
        torch.manual_seed(1)
        trainer = SFTTrainer(
            model,
            args=SFTConfig(
                output_dir=scratch,
                packing=True,
                packing_strategy=strategy,
                max_length=sum(len(sample) for sample in samples),
                per_device_train_batch_size=1,
                use_cpu=True,
                bf16=False,
                report_to="none",
            ),
            train_dataset=Dataset.from_dict({"input_ids": samples}),
            processing_class=bare_tokenizer(),
            peft_config=deepcopy(adapter),
        )
        batch = next(iter(trainer.get_train_dataloader()))
        assert batch["input_ids"][0].tolist() == [token for sample in samples for token in sample], "another order"
        states: list[Tensor] = []
        model.model.register_forward_hook(lambda module, given, output: states.append(output.last_hidden_state))
        trainer.model.train()
        trainer.compute_loss(trainer.model, trainer._prepare_inputs(batch))
    return model.lm_head(states[0][0])


def with_frisket(samples: Samples, arrangement: Arrangement, family: str = "llama") -> Tensor:
    """Rows as frisket lays them, through frisket's attention."""
    model = tiny(family, NAME)
    last = f"sample {len(samples) - 1}"
    for rows in pack(sequences(samples), arrangement, ROW):
        segment = next((leaf.last for leaf in rows.leaves if leaf.sample_id == last), None)
        if segment is not None:
            states = hidden_states(model, rows)
            return head_of(model).logits(states)[torch.from_numpy(rows.segment_ids.ravel() == segment)]
    raise AssertionError("pack lost a sample")


def sequences(samples: Samples) -> list[Sequence]:
    """The samples as frisket's values."""
    return [
        Sequence(
            f"sample {i}",
            0,
            np.array(sample, np.int32),
            np.full(len(sample), Provenance.TEXT, np.uint8),
            np.zeros(len(sample), np.int32),
            np.zeros(len(sample), np.uint32),
            np.full(len(sample), np.nan),
        )
        for i, sample in enumerate(samples)
    ]


def run_says(arrangement: str, family: str = "llama") -> str:
    """What a run of one step warns of; where it does not warn, what its isolation probe found first.

    Raises:
        FrisketError: the run is refused.
    """
    prefix, first, _, second = tokens(shares=True)
    listener = _Listener()
    with tempfile.TemporaryDirectory() as scratch:
        summary = frisket.finetune(
            {
                "attend": {"arrangement": arrangement, "row_tokens": ROW},
                "train": {"max_steps": 1, "step_tokens": ROW, "compute": "fp32"},
                "evaluate": "off",
            },
            out=Path(scratch) / "run",
            model=tiny(family, NAME),
            tokenizer=bare_tokenizer(),
            data=[{"input_ids": prefix + own} for own in (first, second)],
            watcher=listener,
        )
    warned = "; ".join(f"“{line}”" for line in listener.warned if ON_PACKING.search(line))
    return warned or "probe: " + summary["checks"]["isolation"].split("; ")[0]


def refused_run(samples: Samples, arrangement: str, family: str) -> Tensor:
    """A run that is expected to be refused."""
    raise AssertionError(f"the run was not refused: {run_says(arrangement, family)}")


class _Listener(Silent):
    """Keeps what a run warns of."""

    def __init__(self) -> None:
        self.warned: list[str] = []

    def warn(self, line: str) -> None:
        self.warned.append(line)


PLAIN = (
    Case("transformers", "position ids restart, no cache, sdpa", restarting),
    Case("transformers", "position ids restart, no cache, eager", partial(restarting, attention="eager")),
    Case("transformers", "position ids restart, no cache, a batch of two rows", two_rows),
    Case("transformers", "position ids restart, cache left at its default", default_cache),
    Case("transformers", "position ids restart, attention mask of ones", ones_mask),
    Case("transformers", "one text: contiguous positions, no mask", contiguous),
    Case("transformers", "shared prefix, positions go on from it in each branch", branches, shares=True),
    Case("transformers", "hybrid (Qwen3.5), position ids restart", partial(restarting, family=QWEN)),
    Case(
        "transformers",
        "hybrid (Qwen3.5), position ids, cu_seq_lens, seq_idx",
        partial(restarting, family=QWEN, return_flash_attn_kwargs=True, return_seq_idx=True),
    ),
)
PEFT = (
    Case("PEFT", "LoRA, position ids restart, no cache", partial(with_peft, adapter=LORA)),
    Case("PEFT", "prompt tuning, position ids restart, no cache", partial(with_peft, adapter=PROMPT_TUNING)),
    Case("PEFT", "P-tuning, position ids restart, no cache", partial(with_peft, adapter=P_TUNING)),
    Case("PEFT", "prefix tuning, position ids restart, no cache", partial(with_peft, adapter=PREFIX_TUNING)),
)
TRL = (
    *(
        Case("TRL", f"packing, {name}, {attention}", partial(with_trl, strategy=strategy, attention=attention))
        for strategy, name in TRL_STRATEGIES.items()
        for attention in ("sdpa", "eager")
    ),
    Case("TRL", "packing, bfd, sdpa, hybrid (Qwen3.5)", partial(with_trl, family=QWEN)),
    Case("TRL", "packing, bfd, sdpa, PEFT prompt tuning", partial(with_trl, adapter=PROMPT_TUNING)),
    Case("TRL", "packing, bfd, sdpa, PEFT prefix tuning", partial(with_trl, adapter=PREFIX_TUNING)),
)
FRISKET = (
    *(
        Case("frisket", name, partial(with_frisket, arrangement=kind), partial(run_says, kind), shares=kind == "forest")
        for kind, name in ARRANGEMENTS.items()
    ),
    Case(
        "frisket",
        "hybrid (Qwen3.5), auto",
        partial(with_frisket, arrangement="alone", family=QWEN),
        partial(run_says, "auto", QWEN),
    ),
    Case("frisket", "hybrid (Qwen3.5), isolated", partial(refused_run, arrangement="isolated", family=QWEN)),
)


def as_table(findings: list[Finding]) -> Table:
    """The findings for a terminal."""
    largest = max(f.largest_logit for f in findings if f.largest_logit is not None)
    table = Table(
        title="Two samples in one row: the first is replaced, the second is watched",
        caption=f"change and to alone are of logits that are at most {largest:.1f} in size",
    )
    for title in ("tool", "setting"):
        table.add_column(title)
    for title in ("change", "to alone"):
        table.add_column(title, justify="right")
    for title in ("verdict", "what the user is told"):
        table.add_column(title)
    for f in findings:
        colour = "green" if f.verdict in ("isolated", "refused") else "red"
        figures = ["–" if figure is None else f"{figure:.2g}" for figure in (f.change, f.to_alone)]
        table.add_row(f.tool, f.setting, *figures, f"[{colour}]{f.verdict}[/{colour}]", f.told)
    return table


def write(findings: list[Finding], left_out: tuple[str, ...], out: Path) -> None:
    """The findings for a program, with what they were measured on."""
    versions = {name: version(name) for name in LIBRARIES if find_spec(name) is not None}
    told = {
        "environment": {**environment(torch.device("cpu"), torch.float32, ""), **versions},
        "model": {"shape": SHAPE, "families": FAMILIES, "tokens": {"first": FIRST, "second": SECOND, "shared": SHARED}},
        "rounding": ROUNDING,
        "rows": [asdict(finding) for finding in findings],
        "left_out": left_out,
    }
    write_json(out, told)


def main() -> None:
    """Measure every case, print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS)
    out = parser.parse_args().out
    has_trl = find_spec("trl") is not None
    findings = [measure(case) for case in ((*TRL, *PEFT, *PLAIN, *FRISKET) if has_trl else (*PEFT, *PLAIN, *FRISKET))]
    left_out = NOT_RUN if has_trl else (*NOT_RUN, NO_TRL)
    console = Console()
    console.print(as_table(findings))
    for line in left_out:
        console.print(f"not run: {line}")
    write(findings, left_out, out)
    console.print(f"written to {out}")


if __name__ == "__main__":
    main()
