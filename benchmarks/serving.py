"""What `frisket export` writes, loaded by plain PEFT, plain transformers and llama.cpp in an environment of their own.

    python benchmarks/serving.py [--environment FOLDER] [--llama-cpp SOURCE --binding PACKAGE] [--sentencepiece FILE]

Runs of a few steps on the bundled base (LoRA, DoRA, added tokens, a 4-bit base, full) are trained and exported. Then a
fresh virtual environment gets torch, transformers and peft in the versions of constraints.txt, and nothing of frisket;
`serving_outside.py` loads each export there and compares its logits with those that frisket computed (fp32).

GGUF needs llama.cpp's converter and its Python binding, both of which the source package of llama-cpp-python holds:

    pip download --no-deps --no-binary :all: llama-cpp-python     # unpack it; SOURCE is its vendor/llama.cpp
    pip wheel --no-deps llama-cpp-python                          # some minutes; PACKAGE is that wheel

The converter recognises a byte-level BPE tokenizer by a hash of the ids of one text, and the bundled base is on no such
list: it is refused, which is recorded. So that its logits can be compared all the same, `named` starts the converter
with the splitting rule given by hand (that of SmolLM: single digits, then GPT-2's). FILE, a SentencePiece model such as
Llama's, makes a second model, which the converter takes as it is. Results: benchmarks/results/serving.json.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaTokenizer

from frisket.errors import FrisketError
from frisket.hf.heads import logits_of
from frisket.recipe import Recipe
from frisket.run import export, train
from frisket.run.folder import environment
from frisket.run.gguf import CONVERTER, FOLDER
from frisket.run.merging import real_rows, trained
from frisket.run.opening import open_folder
from frisket.watch import Silent

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "serving.json"
CONSTRAINTS = HERE.parent / "constraints.txt"
TYPES = ("f32", "auto", "q8_0")
RUNS: dict[str, dict[str, Any]] = {
    "lora": {"adapt": {"method": "lora"}},
    "dora": {"adapt": {"method": "lora", "dora": True}},
    "lora with 2 added tokens": {"model": {"add_tokens": ["<|note|>", "<|end_note|>"]}, "adapt": {"method": "lora"}},
    "lora on a 4-bit base": {"model": {"load": "4bit"}, "adapt": {"method": "lora"}},
    "full": {"adapt": {"method": "full"}},
}
# Names the splitting rule that the converter would look up by hash.
NAMED = """
import runpy, sys
sys.path[:0] = [{source!r}, {source!r} + "/gguf-py"]
from conversion.base import TextModel
TextModel.get_vocab_base_pre = lambda self, tokenizer: "smollm"
sys.argv = sys.argv[1:]
runpy.run_path({source!r} + "/" + {converter!r}, run_name="__main__")
"""


def make_run(name: str, sections: dict[str, Any], folder: Path, model: dict[str, Any]) -> Path:
    """Train three steps on small sums."""
    data = folder / "chats.jsonl"
    chats = [(f"What is {n} and {n}?", f"It is {2 * n}.") for n in range(60)]
    data.write_text("".join(json.dumps({"prompt": q, "completion": a}) + "\n" for q, a in chats))
    settings = {"max_steps": 3, "step_tokens": 1024, "compute": "fp32", "learning_rate": 3e-3}
    given = {"data": [{"path": str(data)}], "train": settings, "evaluate": "off", **sections}
    given["model"] = model | sections.get("model", {})
    out = folder / name.replace(" ", "-")
    train(Recipe.model_validate(given), out=out)
    return out


def keep_values(out: Path, file: Path) -> None:
    """What frisket itself computes with the trained adapter or model: one real sample, and a conversation's ids."""
    opened, run = open_folder(out, compute="fp32"), trained(out)
    rows = real_rows(run.recipe, run.tokenizer)[0]
    conversation = [
        {"role": "user", "content": "What is 7 and 7?"},
        {"role": "assistant", "content": "It is 14, Ünal."},
    ]
    text = run.template.render(conversation, [], add_generation_prompt=False)
    np.savez(
        file,
        ids=rows.input_ids[0],
        logits=logits_of(opened.model, rows).float().numpy(),
        conversation=json.dumps(conversation),
        text=text,
        text_ids=run.tokenizer(text, add_special_tokens=False)["input_ids"],
    )


def exported(name: str, out: Path, folder: Path) -> tuple[list[dict], dict]:
    """Export as a merged model and, where there is one, as an adapter; what is to be compared outside."""
    values = folder / f"{out.name}.npz"
    keep_values(out, values)
    facts = {"merged": export(out, to="merged", into=None, watcher=Silent())}
    cases = [{"name": f"{name}: merged", "kind": "merged", "folder": str(out / "merged"), "values": str(values)}]
    if (out / "adapter").is_dir():
        facts["peft"] = export(out, to="peft", into=None, watcher=Silent())
        size = (out / "peft" / "adapter_model.safetensors").stat().st_size
        facts["peft"]["adapter_bytes"] = size
        # Plain PEFT puts the adapter on the base as its config names it: not the 4-bit one that it was trained on.
        if "4-bit" not in name:
            cases.append(
                {"name": f"{name}: peft", "kind": "adapter", "folder": str(out / "peft"), "values": str(values)}
            )
    return cases, facts


def spelled(file: Path, folder: Path) -> Path:
    """A small random Llama with a SentencePiece tokenizer."""
    torch.manual_seed(0)
    tokenizer = LlamaTokenizer.from_pretrained(str(file.parent), vocab_file=str(file))
    config = LlamaConfig(
        vocab_size=32000, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=2048, dtype="bfloat16",
    )  # fmt: skip
    LlamaForCausalLM(config).bfloat16().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def as_gguf(name: str, out: Path, source: Path, folder: Path, *, is_named: bool) -> tuple[list[dict], dict]:
    """What `frisket export --to gguf` says of a run, and files of three types for comparing."""
    os.environ[FOLDER] = str(source)
    try:
        said: dict[str, Any] = export(out, to="gguf", into=folder / f"{out.name}-gguf", watcher=Silent())
    except FrisketError as error:
        said = {"refused": str(error).replace(str(folder), "FOLDER")}
    cases = []
    for kind in TYPES:
        file = folder / f"{out.name}-{kind}.gguf"
        script = str(source / CONVERTER)
        code = NAMED.format(source=str(source), converter=CONVERTER)
        start = [sys.executable, "-c", code, script] if is_named else [sys.executable, script]
        subprocess.run(
            [*start, str(out / "merged"), "--outfile", str(file), "--outtype", kind], check=True, capture_output=True
        )
        values = str(folder / f"{out.name}.npz")
        cases.append({"name": f"{name}: gguf {kind}", "kind": "gguf", "file": str(file), "values": values})
    return cases, said


def make_environment(folder: Path, binding: str | None) -> Path:
    """A fresh environment with what a server would have."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    words = ["torch", "transformers", "peft", *([binding] if binding else [])]
    subprocess.run([str(python), "-m", "pip", "install", "-q", "-c", str(CONSTRAINTS), *words], check=True)
    return python


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environment", type=Path, help="one that exists already, without frisket")
    parser.add_argument("--llama-cpp", type=Path, help="llama.cpp's source tree")
    parser.add_argument("--binding", help="what pip installs as llama_cpp")
    parser.add_argument("--sentencepiece", type=Path, help="a SentencePiece model with 32,000 tokens")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="serving-"))
    cases: list[dict] = []
    facts: dict[str, Any] = {}
    outs = {name: make_run(name, sections, folder, {}) for name, sections in RUNS.items()}
    if given.sentencepiece:
        base = spelled(given.sentencepiece, folder / "spelled-base")
        model = {"path": str(base), "template": "plain"}
        outs["sentencepiece lora"] = make_run("sentencepiece lora", RUNS["lora"], folder, model)
    for name, out in outs.items():
        new, facts[name] = exported(name, out, folder)
        cases += new
    if given.llama_cpp:
        for name in ("lora", *(["sentencepiece lora"] if given.sentencepiece else [])):
            new, facts[name]["gguf"] = as_gguf(name, outs[name], given.llama_cpp, folder, is_named=name == "lora")
            cases += new
    python = (
        given.environment / "bin" / "python" if given.environment else make_environment(folder / "env", given.binding)
    )
    listed = folder / "cases.json"
    listed.write_text(json.dumps(cases))
    ended = subprocess.run([str(python), str(HERE / "serving_outside.py"), str(listed)], capture_output=True, text=True)
    if ended.returncode:
        sys.exit(ended.stderr)
    outside = json.loads(ended.stdout.splitlines()[-1])
    record = {"environment": environment(torch.device("cpu"), torch.float32, "made here"), "outside": outside}
    RESULTS.write_text(json.dumps(record | {"exports": without_places(facts, folder)}, indent=1) + "\n")
    for name, case in outside["cases"].items():
        print(f"{name:40} {case['largest_difference']:.3g} of {case['largest_logit']:.3g}  ids {case['same_ids']}")


def without_places(value: Any, folder: Path) -> Any:
    """Values without the names of this machine's folders."""
    if isinstance(value, dict):
        return {name: without_places(inner, folder) for name, inner in value.items()}
    return value.replace(str(folder), "FOLDER") if isinstance(value, str) else value


if __name__ == "__main__":
    main()
