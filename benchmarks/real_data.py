"""Train on real files, on the bundled base and on random models of many families, and compare with plain libraries.

    python benchmarks/real_data.py FOLDER [--steps 4] [--only qwen3]

FOLDER holds the files named in FILES and `llama_tokenizer.model`; none of them comes with frisket. For every run: does
it train; does plain PEFT give frisket's logits (fp32); does plain transformers on the merged files,
and how far are these from the unmerged model. Results go to benchmarks/results/real-data.json.
"""

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, LlamaTokenizer
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from frisket.errors import FrisketError
from frisket.hf.forward import hidden_states
from frisket.hf.heads import head_of
from frisket.recipe import Recipe, load_recipe
from frisket.run import export, train
from frisket.run.exporting import real_rows
from frisket.run.folder import environment
from frisket.run.opening import open_folder
from frisket.watch import Silent

RESULTS = Path(__file__).with_name("results") / "real-data.json"
FILES = {
    "gsm8k_train.jsonl": {"prompt": "question", "completion": "answer"},
    "gsm8k_test.jsonl": {"prompt": "question", "completion": "answer"},
    "codealpaca.json": {},
    "alpaca_en_demo.json": {},
    "glaive_toolcall_en_demo.json": {},
    "dpo_en_demo.json": {},
}
SHAPE = {
    "vocab_size": 32000,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 16,
    "max_position_embeddings": 16384,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
FAMILIES = {
    "qwen3": {},
    "gemma2": {"sliding_window": 64, "query_pre_attn_scalar": 16},
    "mistral": {"sliding_window": 64},
    "qwen3_5_text": {
        "layer_types": ["linear_attention", "linear_attention", "linear_attention", "full_attention"],
        "linear_num_key_heads": 4,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
    },
    "gpt_oss": {
        "sliding_window": 64,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
}


def random_model(family: str, tokenizer_file: Path, folder: Path) -> Path:
    """Save a random model of a family with the Llama tokenizer."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[family](**{**SHAPE, **FAMILIES[family]}))
    target = folder / family
    model.save_pretrained(target)
    bare = folder / "tokenizer"
    bare.mkdir(exist_ok=True)
    shutil.copy(tokenizer_file, bare / "tokenizer.model")
    LlamaTokenizer.from_pretrained(bare).save_pretrained(target)
    return target


@torch.no_grad()
def compare(out: Path) -> dict:
    """Largest differences of logits: plain PEFT, merged files, merged against unmerged."""
    opened = open_folder(out, compute="fp32")
    rows = real_rows(opened.recipe, opened.tokenizer)
    ours = [head_of(opened.model).logits(hidden_states(opened.model, batch)) for batch in rows]
    base = opened.recipe.model.path
    if base == "bundled":
        from frisket import bundled

        base = str(bundled.base_path())
    plain = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), str(out / "adapter")
    )
    facts = export(out, to="merged", into=None, watcher=Silent())
    merged = AutoModelForCausalLM.from_pretrained(out / "merged", dtype=torch.float32)
    ids = [torch.from_numpy(batch.input_ids) for batch in rows]
    with_peft = [plain(input_ids=i, use_cache=False).logits[0] for i in ids]
    with_merged = [merged(input_ids=i, use_cache=False).logits[0] for i in ids]
    own = load_recipe(out).model.model_copy(update={"path": str(out / "merged"), "tokenizer": None})
    from frisket.hf.load import load_model

    ours_merged_model = load_model(own, torch.float32, torch.device("cpu")).eval()
    ours_merged = [head_of(ours_merged_model).logits(hidden_states(ours_merged_model, batch)) for batch in rows]
    return {
        "largest_logit": max(float(x.abs().max()) for x in ours),
        "plain_peft": largest(ours, with_peft),
        "merged_plain_transformers": largest(ours_merged, with_merged),
        "merged_against_unmerged_fp32": facts["difference_fp32"],
        "merged_against_unmerged_written": facts["difference_written"],
        "base_type": facts["dtype"],
    }


def largest(a: list[torch.Tensor], b: list[torch.Tensor]) -> float:
    """Largest difference of an entry."""
    return max(float((x - y).abs().max()) for x, y in zip(a, b, strict=True))


def one(name: str, model: str, source: dict, steps: int, folder: Path) -> dict:
    """Train one combination and say what came out."""
    recipe = Recipe.model_validate(
        {
            "name": name,
            "model": {"path": model},
            "data": [source],
            "train": {"max_steps": steps, "step_tokens": 8192, "learning_rate": 2e-3},
            "evaluate": {"forgetting": [{"prompts": 4, "answer_tokens": 8, "text_tokens": 2048}], "budget_seconds": 10},
        }
    )
    started = time.perf_counter()
    try:
        summary = train(recipe, out=folder / name)
    except FrisketError as error:
        return {"refused": str(error)}
    hold_out = summary["learning"].get("hold-out", {})
    return {
        "format": summary["data"][0]["format"],
        "samples": summary["data"][0]["samples"],
        "tokens_read": summary["tokens"]["read"],
        "steps": summary["steps"],
        "hold_out_loss": [hold_out.get(side, {}).get("loss") for side in ("before", "after")],
        "real_tokens_per_second": summary["rates"]["real_tokens_per_second"],
        "seconds": round(time.perf_counter() - started, 1),
        "checks": summary["checks"],
        "logits": compare(folder / name),
    }


def falling_loss(tokenizer_file: Path, source: dict, folder: Path, steps: int = 100) -> dict:
    """Train all weights of a small random model, and compare the loss of the first tenth of the steps with the last."""
    FAMILIES["llama"] = {}
    recipe = Recipe.model_validate(
        {
            "name": "falling",
            "model": {"path": str(random_model("llama", tokenizer_file, folder))},
            "data": [source],
            "adapt": {"method": "full"},
            "train": {"max_steps": steps, "step_tokens": 4096, "learning_rate": 2e-3},
            "evaluate": "off",
        }
    )
    summary = train(recipe, out=folder / "falling")
    losses = [json.loads(line)["loss"] for line in (folder / "falling" / "metrics.jsonl").read_text().splitlines()]
    tenth = steps // 10
    first, last = sum(losses[:tenth]) / tenth, sum(losses[-tenth:]) / tenth
    return {
        "steps": steps,
        "tokens": summary["tokens"]["flat"],
        "seconds": summary["seconds"]["steps"],
        "first_tenth": round(first, 4),
        "last_tenth": round(last, 4),
        "falls_by": round(1 - last / first, 4),
    }


def main() -> None:
    """Run everything and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--only", help="runs whose name holds this; nothing is written")
    parser.add_argument("--falling", action="store_true", help="only the 100 steps from scratch; added to the results")
    given = parser.parse_args()
    results: dict = {
        "environment": environment(torch.device("cpu"), torch.bfloat16, ""),
        "steps": given.steps,
        "runs": {},
    }
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        jobs = [
            (f"bundled {file}", "bundled", {"path": str(given.folder / file), **columns})
            for file, columns in FILES.items()
        ]
        gsm8k = {"path": str(given.folder / "gsm8k_test.jsonl"), "prompt": "question", "completion": "answer"}
        if given.falling:
            long = {**gsm8k, "path": str(given.folder / "gsm8k_train.jsonl")}
            known = json.loads(RESULTS.read_text())
            known["falling_loss"] = falling_loss(given.folder / "llama_tokenizer.model", long, folder)
            print(known["falling_loss"])
            RESULTS.write_text(json.dumps(known, indent=1) + "\n")
            return
        jobs += [(f"{family} gsm8k_test.jsonl", family, gsm8k) for family in FAMILIES]
        for name, model, source in jobs:
            if given.only and given.only not in name:
                continue
            path = (
                model
                if model == "bundled"
                else str(random_model(model, given.folder / "llama_tokenizer.model", folder))
            )
            results["runs"][name] = one(name, path, source, given.steps, folder)
            print(name, json.dumps(results["runs"][name], indent=1), flush=True)
    if not given.only:
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
