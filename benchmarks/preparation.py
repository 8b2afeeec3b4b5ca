"""Reading, rendering, tokenising, labelling and storing a file: against the tokenizer alone, and against TRL.

    python benchmarks/preparation.py FOLDER [--only speed|memory] [--copies 10] [--turns 3] [--case NAME]

FOLDER holds gsm8k_train.jsonl and llama_tokenizer.model; neither comes with frisket. The file is written out as
messages, so often, and every arm starts from that file or from its texts. Arms take turns (A B A B), after one turn
that is not counted. `encode_batch` is the tokenizer's own call on all rendered texts at once. `trl` is what
`SFTTrainer` does to the file: `datasets.load_dataset`, then its own preparation; of messages with
`assistant_only_loss`, of prompt and completion (each rendered and tokenised twice) with its default. Run it twice,
with TOKENIZERS_PARALLELISM=true and =false; results are kept for each.

Memory is measured in a process of its own for each size of file (in MB): the largest resident memory, anonymous and in
all, beyond what it was before the file was opened. Results go to benchmarks/results/preparation.json.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from importlib.resources import files
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaTokenizer

from frisket import bundled
from frisket.data.build import build
from frisket.data.chat import Template, load_template
from frisket.data.dataset import Dataset
from frisket.data.settings import SourceSettings
from frisket.run.folder import environment
from frisket.supervise.policies import Teaching, problem_of
from frisket.supervise.settings import SuperviseSettings
from frisket.watch import Silent

RESULTS = Path(__file__).with_name("results") / "preparation.json"
TURNS = 3
WORDS = ["<|im_start|>", "<|im_end|>"]
# ChatML as TRL needs it: with the marks that give its assistant mask. The text is that of frisket's `chatml`.
MARKED_CHATML = """{%- for message in messages -%}
{{ "<|im_start|>" + message["role"] + "\\n" }}
{%- if message["role"] == "assistant" %}{% generation %}{{ message["content"] + "<|im_end|>" }}{% endgeneration %}
{%- else %}{{ message["content"] + "<|im_end|>" }}{% endif %}{{ "\\n" }}
{%- endfor -%}
{%- if add_generation_prompt %}{{ "<|im_start|>assistant\\n" }}{% endif -%}"""
# (tokenizer, template, columns of the file)
CASES = {
    "bundled, ChatML": ("bundled", "chatml", "messages"),
    "bundled, ChatML, prompt and completion": ("bundled", "chatml", "prompt"),
    "bundled, Qwen3": ("bundled", "qwen3", "messages"),
    "Llama, ChatML": ("llama", "chatml", "messages"),
}


def tokenizer_of(name: str, folder: Path, work: Path) -> Any:
    """The bundled byte-level tokenizer or Llama's, each with the words of ChatML added in memory."""
    if name == "bundled":
        tokenizer = AutoTokenizer.from_pretrained(str(bundled.base_path()))
    else:
        target = work / "llama"
        target.mkdir(exist_ok=True)
        shutil.copy(folder / "llama_tokenizer.model", target / "tokenizer.model")
        tokenizer = LlamaTokenizer.from_pretrained(target)
    tokenizer.add_special_tokens({"additional_special_tokens": WORDS})
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return tokenizer


def template_of(name: str, tokenizer: Any) -> Template:
    """Frisket's ChatML, or the Qwen3 template that TRL's wheel holds."""
    if name == "chatml":
        return load_template("chatml", tokenizer)
    tokenizer.chat_template = (files("trl") / "chat_templates" / "qwen3.jinja").read_text()
    return load_template(None, tokenizer)


def write_messages(
    folder: Path, target: Path, copies: int | None = None, size: int | None = None, columns: str = "messages"
) -> Path:
    """Write GSM8K's training file as messages or as prompt and completion, so many times or up to so many bytes."""
    rows = [json.loads(line) for line in (folder / "gsm8k_train.jsonl").read_text().splitlines()]
    lines = [json.dumps(shaped(messages_of(row["question"], row["answer"]), columns)) + "\n" for row in rows]
    written = 0
    with target.open("w") as file:
        while copies is None or copies > 0:
            for line in lines:
                if size is not None and written >= size:
                    return target
                written += file.write(line)
            copies = None if copies is None else copies - 1
    return target


def shaped(messages: list[dict[str, str]], columns: str) -> dict[str, list[dict[str, str]]]:
    """A record: all messages in one column, or the answer in a column of its own."""
    return {"messages": messages} if columns == "messages" else {"prompt": messages[:1], "completion": messages[1:]}


def messages_of(question: str, answer: str) -> list[dict[str, str]]:
    """One question and its answer."""
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def prepare_with_frisket(file: Path, template: Template, tokenizer: Any, cache: Path) -> Dataset:
    """Everything up to a checked data set, into an empty cache."""
    shutil.rmtree(cache, ignore_errors=True)
    os.environ["FRISKET_CACHE"] = str(cache)
    settings = SuperviseSettings()
    return build(
        [SourceSettings(path=str(file))],
        template,
        tokenizer,
        context=None,
        seed=0,
        hold_out_default=False,
        check_of=lambda source, sequences: partial(
            problem_of, teaching=Teaching(settings), normaliser=settings.normaliser
        ),
        watcher=Silent(),
    )


def trl_preparation(file: Path, template_name: str, columns: str, tokenizer: Any, work: Path) -> Callable[[], Any]:
    """What TRL's trainer does with the file before it trains; the trainer itself is made before."""
    import datasets
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    datasets.disable_progress_bars()
    if template_name == "chatml":
        tokenizer.chat_template = MARKED_CHATML
    one = datasets.Dataset.from_list([shaped(messages_of("1 + 1?", "2"), columns)])
    config = AutoConfig.from_pretrained(str(bundled.base_path()))
    settings = SFTConfig(
        output_dir=str(work / "trl"),
        assistant_only_loss=columns == "messages",
        max_length=None,
        report_to="none",
        use_cpu=True,
    )
    model = AutoModelForCausalLM.from_config(config)
    trainer = SFTTrainer(model=model, args=settings, train_dataset=one, processing_class=tokenizer)

    def run() -> Any:
        with tempfile.TemporaryDirectory(dir=work) as cache:
            loaded = datasets.load_dataset("json", data_files=str(file), split="train", cache_dir=cache)
            return trainer._prepare_dataset(loaded, tokenizer, settings, False, None, "train")

    return run


def measure_speed(folder: Path, cases: list[str], copies: int, turns: int, with_trl: bool) -> dict[str, dict]:
    """Seconds of each arm, by turns."""
    found = {}
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        for case in cases:
            kind, template_name, columns = CASES[case]
            file = write_messages(folder, work / f"{columns}.jsonl", copies=copies, columns=columns)
            tokenizer = tokenizer_of(kind, folder, work)
            template = template_of(template_name, tokenizer)
            rows = [list(chain(*json.loads(line).values())) for line in file.read_text().splitlines()]
            texts = [template.render(messages, [], add_generation_prompt=False) for messages in rows]
            arms: dict[str, Callable[[], Any]] = {
                "encode_batch": partial(tokenizer.backend_tokenizer.encode_batch, texts, add_special_tokens=False),
                "frisket": partial(prepare_with_frisket, file, template, tokenizer, work / "cache"),
            }
            if with_trl:
                peer = tokenizer_of(kind, folder, work)
                template_of(template_name, peer)
                arms["trl"] = trl_preparation(file, template_name, columns, peer, work)
            seconds = by_turns(arms, turns)
            found[case] = {"copies": copies, **summary(seconds, len(rows), int(arms["frisket"]().lengths.sum()))}
            Console().print(case, found[case])
    return found


def by_turns(arms: Mapping[str, Callable[[], Any]], turns: int = TURNS) -> dict[str, list[float]]:
    """Seconds of each arm, one after the other; a first turn warms up. What an arm made is freed within its time."""
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(turns + 1):
        for name, arm in arms.items():
            begun = time.perf_counter()
            arm()
            if turn:
                seconds[name].append(time.perf_counter() - begun)
    return seconds


def summary(seconds: Mapping[str, list[float]], samples: int, tokens: int) -> dict[str, Any]:
    """Medians, and the medians of the ratios of each turn."""
    medians = {arm: statistics.median(times) for arm, times in seconds.items()}
    own = seconds["frisket"]
    told: dict[str, Any] = {
        "samples": samples,
        "tokens": tokens,
        "seconds": {arm: round(value, 3) for arm, value in medians.items()},
        "of_encode_batch": round(ratio(seconds["encode_batch"], own), 3),
        "samples_per_second": round(samples / medians["frisket"]),
        "tokens_per_second": round(tokens / medians["frisket"]),
    }
    if "trl" in seconds:
        told["faster_than_trl"] = round(ratio(seconds["trl"], own), 2)
    return told


def ratio(a: list[float], b: list[float]) -> float:
    """Median over the turns of one arm's seconds by another's."""
    return statistics.median(x / y for x, y in zip(a, b, strict=True))


def measure_memory(folder: Path, sizes: list[int]) -> dict[str, Any]:
    """Largest resident memory beyond the start, for each size of file in a process of its own."""
    found: dict[str, Any] = {}
    for size in sizes:
        with tempfile.TemporaryDirectory() as name:
            file = write_messages(folder, Path(name) / "messages.jsonl", size=size * 1_000_000)
            command = [sys.executable, __file__, str(folder), "--watched", str(file)]
            told = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
            found[f"{size} MB"] = json.loads(told)
    least, most = (found[f"{size} MB"] for size in (min(sizes), max(sizes)))
    for kind in ("resident_mb", "anonymous_mb"):
        found[f"{kind}_grows_by"] = round(most[kind] - least[kind], 1)
    return found


def watched(folder: Path, file: Path) -> dict[str, Any]:
    """Prepare one file and walk through its samples, and watch the memory of this process."""
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        tokenizer = tokenizer_of("bundled", folder, work)
        template = template_of("chatml", tokenizer)
        small = write_messages(folder, work / "small.jsonl", size=1_000_000)
        prepare_with_frisket(small, template, tokenizer, work / "cache")
        with largest_memory() as largest:
            dataset = prepare_with_frisket(file, template, tokenizer, work / "cache")
            tokens = sum(len(sequence) for sequence in dataset)
        return {"samples": len(dataset), "tokens": tokens, **{k: round(v, 1) for k, v in largest.items()}}


@contextmanager
def largest_memory() -> Iterator[dict[str, float]]:
    """The largest resident memory of this process meanwhile, in MB beyond the start, looked at every 10 ms."""
    begun, stop = resident(), threading.Event()
    largest = dict.fromkeys(begun, 0.0)

    def watch() -> None:
        while not stop.wait(0.01):
            for kind, value in resident().items():
                largest[kind] = max(largest[kind], value - begun[kind])

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield largest
    finally:
        stop.set()
        watcher.join()


def resident() -> dict[str, float]:
    """Resident memory of this process in MB: all of it, and what is no file's."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    told = {words[0]: int(words[1]) / 1000 for words in lines if words[0] in ("VmRSS:", "RssAnon:")}
    return {"resident_mb": told["VmRSS:"], "anonymous_mb": told["RssAnon:"]}


def show(results: Mapping[str, Any]) -> None:
    """The tables for a person."""
    for threads in ("true", "false"):
        speed = Table("case", "encode_batch", "frisket", "TRL", "of encode_batch", "faster than TRL")
        speed.title = f"seconds, TOKENIZERS_PARALLELISM={threads}"
        for name, each in results.get(f"speed, parallelism {threads}", {}).items():
            seconds = [f"{each['seconds'].get(arm, float('nan')):.2f}" for arm in ("encode_batch", "frisket", "trl")]
            speed.add_row(name, *seconds, f"{each['of_encode_batch']:.2f}", str(each.get("faster_than_trl", "")))
        if speed.rows:
            Console().print(speed)
    Console().print(results.get("memory", {}))


def main() -> None:
    """Measure, show, and write what came out; parts that were not asked for keep their last results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", choices=("speed", "memory"))
    parser.add_argument("--case", choices=list(CASES), action="append")
    parser.add_argument("--copies", type=int, default=10)
    parser.add_argument("--turns", type=int, default=TURNS)
    parser.add_argument("--sizes", type=int, nargs=2, default=[20, 200])
    parser.add_argument("--without-trl", action="store_true")
    parser.add_argument("--watched", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.watched:
        print(json.dumps(watched(options.folder, options.watched)))
        return
    threads = os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    found: dict[str, Any] = {}
    if options.only != "memory":
        name = f"speed, parallelism {threads}"
        cases = options.case or list(CASES)
        measured = measure_speed(options.folder, cases, options.copies, options.turns, not options.without_trl)
        found[name] = {**results.get(name, {}), **measured}
    if options.only != "speed":
        found["memory"] = measure_memory(options.folder, options.sizes)
    packages = {name: version(name) for name in ("tokenizers", "trl", "datasets", "jinja2", "numpy")}
    where = {**environment(torch.device("cpu"), torch.float32, ""), "packages": packages}
    results |= found
    results.setdefault("environment", {}).update(dict.fromkeys(found, where))
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    show(results)


if __name__ == "__main__":
    main()
