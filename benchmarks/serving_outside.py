"""Run by `serving.py` in an environment without frisket: load what was exported with PEFT, transformers, llama.cpp.

    python serving_outside.py CASES.json    prints one JSON object

A case holds `kind`, `folder` or `file`, and `values`: an .npz file with token ids, frisket's own logits for them
(fp32), a text and its ids under the run's chat template.
"""

import json
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

PACKAGES = ("torch", "transformers", "peft", "tokenizers", "llama_cpp_python", "gguf")


def adapter_logits(folder: str, ids: np.ndarray) -> tuple[np.ndarray, object]:
    """The README's way: tokenizer from the adapter's folder, base by its name, rows for added tokens, then PEFT."""
    from peft import PeftModel

    base = json.loads((Path(folder) / "adapter_config.json").read_text())["base_model_name_or_path"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if len(tokenizer) > len(model.get_input_embeddings().weight):
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    return logits(PeftModel.from_pretrained(model, folder), ids), tokenizer


def merged_logits(folder: str, ids: np.ndarray) -> tuple[np.ndarray, object]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return logits(model, ids), AutoTokenizer.from_pretrained(folder)


def logits(model: torch.nn.Module, ids: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model.eval()(input_ids=torch.from_numpy(ids)[None]).logits[0].numpy()


def gguf_logits(file: str, ids: np.ndarray, text: str) -> tuple[np.ndarray, list[int]]:
    """Logits in llama.cpp, and the ids that its own tokenizer gives the text (special tokens parsed)."""
    from llama_cpp import Llama

    model = Llama(file, n_ctx=len(ids) + 8, n_batch=len(ids), logits_all=True, verbose=False)
    model.eval(ids.tolist())
    found = np.array(model.scores[: len(ids)])
    tokens = model.tokenize(text.encode(), add_bos=False, special=True)
    model.close()
    return found, tokens


def compared(case: dict) -> dict:
    """Differences of one case."""
    kept = np.load(case["values"])
    ids, wanted = kept["ids"], kept["logits"]
    conversation = json.loads(str(kept["conversation"]))
    if case["kind"] == "gguf":
        found, tokens = gguf_logits(case["file"], ids, str(kept["text"]))
        same_text = None
    else:
        load = adapter_logits if case["kind"] == "adapter" else merged_logits
        found, tokenizer = load(case["folder"], ids)
        text = tokenizer.apply_chat_template(conversation, tokenize=False)  # pyright: ignore
        tokens, same_text = tokenizer(text, add_special_tokens=False)["input_ids"], text == str(kept["text"])  # pyright: ignore
    return {
        "largest_difference": float(np.abs(found[:, : wanted.shape[1]] - wanted).max()),
        "largest_logit": float(np.abs(wanted).max()),
        "same_likeliest": float((found.argmax(1) == wanted.argmax(1)).mean()),
        "places": len(ids),
        "same_ids": list(tokens) == kept["text_ids"].tolist(),
        **({} if same_text is None else {"same_text": same_text}),
    }


def versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    if find_spec("frisket") is not None:
        sys.exit("frisket is installed here: this must run in an environment without it")
    cases = json.loads(Path(sys.argv[1]).read_text())
    print(json.dumps({"versions": versions(), "cases": {case["name"]: compared(case) for case in cases}}))
