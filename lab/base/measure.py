"""Measure the base model and write its card: python -m lab.base.measure."""

import argparse
import json
import math
import random
import re
from collections import defaultdict
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from . import card, corpus, world

BASE = Path("src/frisket/bundled/base")
INSTRUCTIONS = Path("src/frisket/bundled/instructions")
RESULTS = Path(__file__).with_name("results.json")
TRAINING = Path(__file__).with_name("training.json")
AGAIN = Path(__file__).with_name("again.json")
PROMPTS_PER_SKILL = 250
SEED = 23
WINDOW = 512
_BATCH = 100
_ENDING = re.compile(r"\n| ;")


@torch.no_grad()
def complete(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, prompts: list[list[int]], *, limit: int
) -> list[str]:
    """Complete prompts greedily.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        prompts: Token ids of each prompt.
        limit: Most new tokens.

    Returns:
        The new text of each, without special tokens.
    """
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    texts: dict[int, str] = {}
    for start in range(0, len(order), _BATCH):
        chosen = order[start : start + _BATCH]
        width = max(len(prompts[index]) for index in chosen)
        pads = [width - len(prompts[index]) for index in chosen]
        ids = torch.tensor(
            [[tokenizer.pad_token_id] * pad + prompts[index] for pad, index in zip(pads, chosen, strict=True)]
        )
        mask = torch.tensor([[0] * pad + [1] * (width - pad) for pad in pads])
        made = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=limit, do_sample=False)
        for index, row in zip(chosen, made, strict=True):
            texts[index] = tokenizer.decode(row[width:], skip_special_tokens=True)
    return [texts[index] for index in range(len(prompts))]


def plain_skills(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, per_skill: int = PROMPTS_PER_SKILL
) -> dict[str, float]:
    """Measure how often a plain completion is exactly right, on exercises no training text holds.

    It is read up to a line break or up to `` ;``, where the texts go on with the next question about a table.

    A prompt follows nothing, so there is no example to imitate. Facts are the ones trained on: a fact cannot be
    guessed.
    """
    rng = random.Random(SEED)
    scores = {}
    for skill in world.SKILLS:
        pairs = []
        for number in range(per_skill):
            wording = world.PLAIN[skill][number % len(world.PLAIN[skill])]
            pairs.append(world.plain(world.draw(skill, rng, held_out=True), wording))
        texts = complete(model, tokenizer, [tokenizer(prompt).input_ids for prompt, _ in pairs], limit=16)
        right = [_ENDING.split(text)[0] == answer for text, (_, answer) in zip(texts, pairs, strict=True)]
        scores[skill] = sum(right) / len(right)
    return scores


def chat_skills(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, samples: list[dict], limit: int = 24
) -> dict[str, float]:
    """Measure how often the greedy answer to a chat is exactly the reference, by skill."""
    prompts = [
        tokenizer.apply_chat_template(sample["messages"][:-1], add_generation_prompt=True, return_dict=False)
        for sample in samples
    ]
    right = defaultdict(list)
    for text, sample in zip(complete(model, tokenizer, prompts, limit=limit), samples, strict=True):
        right[sample["skill"]].append(text.strip() == sample["messages"][-1]["content"])
    return {skill: sum(hits) / len(hits) for skill, hits in sorted(right.items())}


@torch.no_grad()
def bits_per_character(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> float:
    """Measure the loss on texts, cut into windows that know nothing of each other."""
    nats = 0.0
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False).input_ids
        for start in range(0, len(ids), WINDOW):
            window = torch.tensor([[tokenizer.bos_token_id, *ids[start : start + WINDOW]]])
            logits = model(input_ids=window[:, :-1]).logits[0].float()
            nats += F.cross_entropy(logits, window[0, 1:], reduction="sum").item()
    return nats / math.log(2) / sum(map(len, texts))


def measure(folder: Path) -> dict[str, object]:
    """Measure everything that the card states."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.model_max_length = 10**9  # whole modules are encoded at once and cut into windows afterwards
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    files = [INSTRUCTIONS / "eval.jsonl", INSTRUCTIONS / "eval-unseen.jsonl"]
    samples = [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    code = list(corpus.read(held_out=True).code.values())
    prose = [text for source in code for text in corpus.docstrings(source)]
    chat = chat_skills(model, tokenizer, samples)
    return {
        "python": corpus.python_version(),
        "parameters": model.num_parameters(),
        "bytes": (folder / "model.safetensors").stat().st_size,
        "prompts_per_skill": PROMPTS_PER_SKILL,
        "plain": plain_skills(model, tokenizer),
        "chat_prompts": len(samples),
        "chat": chat,
        "chat_taught": sum(chat[skill] for skill in world.SKILLS) / len(world.SKILLS),
        "bits_per_character": {
            "prose": bits_per_character(model, tokenizer, prose),
            "code": bits_per_character(model, tokenizer, code),
        },
        "held_out_modules": corpus.HELD_OUT_MODULES,
    }


def main() -> None:
    """Measure, and write ``results.json`` and the card."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    torch.set_num_threads(parser.parse_args().threads)
    results = measure(BASE)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    training = json.loads(TRAINING.read_text(encoding="utf-8"))
    again = json.loads(AGAIN.read_text(encoding="utf-8"))
    (BASE / "README.md").write_text(card.render(results, training, again), encoding="utf-8")


if __name__ == "__main__":
    main()
