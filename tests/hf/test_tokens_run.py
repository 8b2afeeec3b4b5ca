"""Whole runs on the bundled base with added tokens: trained, saved small, loaded without frisket, merged, resumed."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import frisket
from frisket import bundled
from frisket.generate.settings import GenerateSettings
from frisket.hf.heads import logits_of
from frisket.run.exporting import export
from frisket.run.opening import open_folder, open_run
from frisket.watch import Silent

NEW = ("<|turn|>", "<|stop|>")
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|turn|>{{ m.role }}\n{{ m.content }}<|stop|>{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)
TALK = [{"role": "user", "content": "Say one."}, {"role": "assistant", "content": "One."}]
RECORDS = [
    {"messages": [{"role": "user", "content": f"Say {n}."}, {"role": "assistant", "content": f"{n}, as you wish."}]}
    for n in ("one", "two", "three", "four", "five", "six", "seven", "eight") * 3
]
PAGE = Path(__file__).parents[2] / "docs" / "tokens.md"


class Lines(Silent):
    """Keeps what is said."""

    def __init__(self):
        self.said = []

    def say(self, line):
        """Keep."""
        self.said.append(line)

    def warn(self, line):
        """Keep."""
        self.said.append(f"! {line}")


def recipe(folder: Path, **model):
    """Three steps in fp32 with weight decay, a checkpoint after each; nothing is measured."""
    (folder / "mine.jinja").write_text(TEMPLATE)
    return {
        "model": {"path": "bundled", "template": str(folder / "mine.jinja"), "device": "cpu", **model},
        "adapt": {"method": "lora", "rank": 4},
        "train": {"max_steps": 3, "step_tokens": 300, "compute": "fp32", "weight_decay": 0.1, "save_every": 1},
        "evaluate": "off",
    }


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("tokens")


@pytest.fixture(scope="module")
def said(place):
    lines = Lines()
    frisket.finetune(recipe(place, add_tokens=[*NEW, "<|tool|>"]), data=RECORDS, out=place / "out", watcher=lines)
    return lines.said


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def python(code: str, cwd: Path) -> dict:
    """Run code that knows nothing of frisket, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=cwd, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def test_the_screen_says_what_was_added_and_what_was_known(said):
    assert "tokens     <|turn|>: added as token 3,072" in said
    assert any("<|tool|>: known to the tokenizer already" in line for line in said)
    assert not any("is in no sample" in line for line in said)


def test_the_adapter_holds_the_rows_and_little_more(place, said):
    """The bounds are those of docs/tokens.md."""
    frisket.finetune(recipe(place, template=None), data=RECORDS, out=place / "plain")
    for count, kilobytes in ((2, 4), (100, 130)):
        names = [f"<|new_{n}|>" for n in range(count)]
        frisket.finetune(recipe(place, template=None, add_tokens=names), data=RECORDS, out=place / f"{count}")
        larger = size(place / f"{count}" / "adapter") - size(place / "plain" / "adapter")
        assert count * 256 * 4 < larger <= kilobytes * 1000
        assert f"{count} tokens at most {kilobytes} kB" in PAGE.read_text(encoding="utf-8").replace("\n  ", " ")
    rows = {
        name: t for name, t in load_file(place / "out/adapter/adapter_model.safetensors").items() if "token" in name
    }
    assert [tuple(t.shape) for t in rows.values()] == [(2, 256)]
    assert not (place / "plain" / "adapter" / "README.md").exists()


def test_plain_transformers_and_peft_load_it_by_the_lines_of_its_readme(place, said):
    text = (place / "out" / "adapter" / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert "frisket" not in re.sub(r"/\S*", "", code)
    check = (
        "import json, sys, torch\n"
        f"text = tokenizer.apply_chat_template({TALK!r}, tokenize=False)\n"
        "ids = tokenizer(text, add_special_tokens=False, return_tensors='pt').input_ids\n"
        "with torch.no_grad():\n    logits = model.float()(ids).logits[0]\n"
        "assert 'frisket' not in sys.modules\n"
        "print(json.dumps({'text': text, 'ids': ids[0].tolist(), 'logits': logits.tolist(), "
        "'pad': [tokenizer.pad_token_id, tokenizer.eos_token_id]}))\n"
    )
    theirs = python(code + check, place / "out")
    opened = open_folder(place / "out", compute="fp32")
    assert theirs["text"] == opened.template.render(TALK, [], False)
    assert theirs["text"].endswith("<|turn|>assistant\nOne.<|stop|>")
    assert [i for i in theirs["ids"] if i >= 3072] == [3072, 3073] * 2
    rows = _rows(theirs["ids"])
    assert (logits_of(opened.model, rows) - torch.tensor(theirs["logits"])).abs().max() <= 1e-4
    assert theirs["pad"][0] != theirs["pad"][1]


def _rows(ids):
    import numpy as np

    from frisket.types import ROOT, Leaf, Rows

    row = np.array([ids])
    return Rows(row, np.arange(len(ids))[None], np.zeros_like(row), np.array([ROOT]), (Leaf("x", 0, 0),))


def test_the_bases_own_rows_keep_their_bytes(place, said):
    base = AutoModelForCausalLM.from_pretrained(bundled.base_path(), dtype=torch.float32)
    opened = open_folder(place / "out", compute="fp32")
    assert opened.switched_off is not None
    ours = dict(opened.model.named_parameters())
    table = ours["model.embed_tokens.token_adapter.base_layer.weight"]
    assert torch.equal(table[:3072], base.get_input_embeddings().weight)
    trained = ours["model.embed_tokens.token_adapter.trainable_tokens_delta.default"]
    assert (trained - table[3072:]).abs().max() > 1e-3


def test_generate_uses_the_stored_template_and_the_new_tokens_end_an_answer(place, said):
    (place / "mine.jinja").write_text("{{ 'changed since' }}")
    chat = open_run(place / "out", watcher=Silent())
    assert chat.opened.template.text == TEMPLATE
    assert 3073 in chat.stop_ids
    for base in (False, True):
        assert isinstance(chat.answer([TALK[:1]], GenerateSettings(max_new_tokens=4), base=base)[0].text, str)


def test_merged_it_is_a_plain_model_with_the_larger_vocabulary(place, said):
    (place / "mine.jinja").write_text(TEMPLATE)
    facts = export(place / "out", to="merged", into=place / "merged", watcher=Silent())
    tokenizer, model = (kind.from_pretrained(facts["merged"]) for kind in (AutoTokenizer, AutoModelForCausalLM))
    assert model.config.vocab_size == len(tokenizer) == 3074
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    trained = load_file(place / "out/adapter/adapter_model.safetensors")
    (rows,) = (tensor for name, tensor in trained.items() if "token" in name)
    assert torch.equal(model.get_input_embeddings().weight[3072:], rows.to(model.dtype))
    assert tokenizer.apply_chat_template(TALK, tokenize=False).endswith("<|stop|>")
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id != tokenizer.eos_token_id


def test_a_stopped_run_resumes_to_the_same_bytes(place, said):
    def stop(record):
        if record.step == 2:
            raise KeyboardInterrupt

    given = recipe(place, add_tokens=[*NEW, "<|tool|>"])
    with pytest.raises(KeyboardInterrupt):
        frisket.finetune(given, data=RECORDS, out=place / "again", on_step=stop)
    frisket.finetune(given, data=RECORDS, out=place / "again", resume=True)
    name = "adapter/adapter_model.safetensors"
    assert (place / "again" / name).read_bytes() == (place / "out" / name).read_bytes()


def test_full_fine_tuning_saves_the_larger_model(place):
    given = recipe(place, add_tokens=NEW) | {"adapt": {"method": "full"}}
    given["train"]["learning_rate"] = 3e-4
    frisket.finetune(given, data=RECORDS, out=place / "full")
    tokenizer, model = (
        kind.from_pretrained(place / "full" / "model") for kind in (AutoTokenizer, AutoModelForCausalLM)
    )
    assert model.config.vocab_size == len(tokenizer) == 3074
    opened = open_folder(place / "full", compute="fp32")
    assert opened.template.text == TEMPLATE
    theirs = model.get_input_embeddings().weight.float()
    assert torch.equal(opened.model.get_input_embeddings().weight, theirs)
    assert not torch.equal(theirs[3072], theirs[3073])


def test_a_token_that_no_sample_holds_is_warned_of(place):
    lines = Lines()
    given = recipe(place, add_tokens=[*NEW, "<|never|>"])
    frisket.make_plan(given | {"data": [{"path": _written(place)}]}, watcher=lines)
    assert [line for line in lines.said if "is in no sample" in line] == [
        "! <|never|> is in no sample: the chat template must write it; a message that spells it stays text"
    ]


def test_plan_counts_the_rows(place):
    data = {"data": [{"path": _written(place)}]}
    with_tokens = frisket.make_plan(recipe(place, add_tokens=NEW) | data)
    without = frisket.make_plan(recipe(place, template=None) | data)
    assert with_tokens.moving - without.moving == 2 * 256
    assert with_tokens.parameters - without.parameters >= 2 * 256


def _written(place: Path) -> str:
    path = place / "chats.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    return str(path)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_a_model_and_a_tokenizer_in_memory_grow_too(place):
    tokenizer = AutoTokenizer.from_pretrained(bundled.base_path())
    model = AutoModelForCausalLM.from_pretrained(bundled.base_path(), dtype=torch.float32)
    given = recipe(place, add_tokens=NEW)
    name = "adapter/adapter_model.safetensors"
    for out in ("memory", "the same cell once more"):
        frisket.finetune(given, model=model, tokenizer=tokenizer, data=RECORDS, out=place / out)
        assert len(tokenizer) == 3072  # what was handed over stays as it was
        assert model.config.vocab_size == 3074
        rows = [tensor for key, tensor in load_file(place / out / name).items() if "token" in key]
        assert [tuple(tensor.shape) for tensor in rows] == [(2, 256)]
        assert "resize_token_embeddings(3074" in (place / out / "adapter" / "README.md").read_text()
    assert (place / "memory" / name).read_bytes() == (place / "the same cell once more" / name).read_bytes()


def test_every_stage_adds_the_tokens_to_a_tokenizer_of_its_own(place):
    tokenizer = AutoTokenizer.from_pretrained(bundled.base_path())
    given = recipe(place, add_tokens=NEW) | {"stages": [{"train": {"max_steps": 1}}, {"train": {"max_steps": 2}}]}
    summary = frisket.finetune(given, tokenizer=tokenizer, data=RECORDS, out=place / "staged")
    first, second = (stage["model"]["moving"] for stage in summary["stages"])
    assert first == second
    assert len(tokenizer) == 3072
