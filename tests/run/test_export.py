"""Exports are loaded as any other tool would load them, and give what was trained; what cannot be is refused."""

import io
import json
import re
import shutil
import socket
import struct
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from peft import PeftModel
from rich.console import Console
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from frisket.cli.final import summary_screen
from frisket.errors import CheckError, ConfigError, UnsupportedError
from frisket.recipe import Recipe
from frisket.run import export, gguf, hub, merging, train
from frisket.watch import Silent

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # plain PEFT reads it
MESSAGES = [{"role": "user", "content": "alpha"}, {"role": "assistant", "content": "beta"}]


class Heard(Silent):
    """A watcher that keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)

    warn = say

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


def trained_run(base: Path, out: Path, **sections) -> Path:
    data = out.parent / f"{out.name}.jsonl"
    lines = [{"prompt": f"alpha {'beta ' * n}", "completion": f"gamma {'delta ' * (n % 3)}"} for n in range(1, 9)]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = {"max_steps": 2, "step_tokens": 200, "learning_rate": 0.01, "compute": "fp32"}
    given = {"model": {"path": str(base)}, "data": [{"path": str(data)}], "train": settings, "evaluate": "off"}
    for name, section in sections.items():
        given[name] = given.get(name, {}) | section
    train(Recipe.model_validate(given), out=out)
    return out


@pytest.fixture(scope="module")
def lora(small_model, tmp_path_factory) -> Path:
    return trained_run(small_model, tmp_path_factory.mktemp("runs") / "lora", model={"template": "plain"})


@pytest.fixture(scope="module")
def full(small_model, tmp_path_factory) -> Path:
    return trained_run(small_model, tmp_path_factory.mktemp("runs") / "full", adapt={"method": "full"})


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(6, 40)[None]).logits[0]


def with_adapter(base: Path, adapter: Path) -> torch.nn.Module:
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(adapter))


def rendered(folder: Path) -> str:
    return AutoTokenizer.from_pretrained(folder).apply_chat_template(MESSAGES, tokenize=False)


def test_a_merged_model_needs_nothing_but_transformers(small_model, lora, tmp_path):
    heard = Heard()
    facts = export(lora, to="merged", into=tmp_path / "merged", watcher=heard)
    assert f'load       AutoModelForCausalLM.from_pretrained("{tmp_path / "merged"}", dtype="auto")' in heard.text
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    wanted = logits(with_adapter(small_model, lora / "adapter"))
    assert (logits(merged) - wanted).abs().max() <= 1e-5 * max(1.0, float(wanted.abs().max()))
    assert (logits(merged) - logits(AutoModelForCausalLM.from_pretrained(small_model))).abs().max() > 1e-3
    assert facts["difference_written"] <= 1e-5 * max(1.0, facts["largest_logit"])
    assert rendered(tmp_path / "merged") == "User:\nalpha\n\nAssistant:\nbeta<|end|>"  # the run's, not the base's


def test_after_full_fine_tuning_the_model_is_copied(full, tmp_path):
    heard = Heard()
    facts = export(full, to="merged", into=tmp_path / "merged", watcher=heard)
    assert facts["difference_written"] == 0
    assert "nothing to merge" in heard.text
    copied = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert torch.equal(logits(copied), logits(AutoModelForCausalLM.from_pretrained(full / "model")))


def test_a_copy_that_differs_is_not_kept(full, tmp_path, monkeypatch):
    def scaled(source: Path, target: Path) -> None:
        original(source, target)
        path = target / "model.safetensors"
        save_file({n: 2 * v for n, v in load_file(path).items()}, path, metadata={"format": "pt"})

    original = shutil.copytree
    monkeypatch.setattr(merging.shutil, "copytree", scaled)
    with pytest.raises(CheckError, match=r"the copy of .* differs by"):
        export(full, to="merged", into=tmp_path / "merged", watcher=Silent())
    assert not list(tmp_path.iterdir())


def test_the_adapter_alone_loads_in_plain_peft(small_model, lora, tmp_path):
    heard = Heard()
    facts = export(lora, to="peft", into=tmp_path / "peft", watcher=heard)
    assert facts["difference"] == 0
    assert facts["serving"]["as_it_is"]
    assert "vllm serve" in heard.text
    assert f"load       as the lines in {tmp_path / 'peft' / 'README.md'} do" in heard.text
    assert "names its base by a folder of this machine" in heard.text
    wanted = logits(with_adapter(small_model, lora / "adapter"))
    assert torch.equal(logits(with_adapter(small_model, tmp_path / "peft")), wanted)
    assert rendered(tmp_path / "peft").endswith("beta<|end|>")
    card = (tmp_path / "peft" / "README.md").read_text()
    code = card.split("```python\n")[1].split("```")[0].replace('"."', repr(str(tmp_path / "peft")))
    names: dict = {}
    exec(code, names)  # the lines of the card, as a reader would run them
    assert torch.equal(logits(names["model"].float()), wanted)


def test_an_adapter_that_was_copied_wrongly_is_not_kept(lora, tmp_path, monkeypatch):
    def scaled(source: Path, target: Path) -> None:
        original(source, target)
        path = target / "adapter_model.safetensors"
        save_file({n: 3 * v for n, v in load_file(path).items()}, path)

    original = shutil.copytree
    monkeypatch.setattr(merging.shutil, "copytree", scaled)
    with pytest.raises(CheckError, match="the copied adapter gives logits that differ"):
        export(lora, to="peft", into=tmp_path / "peft", watcher=Silent())
    assert not list(tmp_path.iterdir())


def test_a_whole_model_has_no_adapter_to_export(full, tmp_path):
    fix = f"holds no adapter: the model itself was fine-tuned.\nExport the model: frisket export {full} --to merged"
    with pytest.raises(UnsupportedError, match=f"{re.escape(fix)}$"):
        export(full, to="peft", into=tmp_path / "peft", watcher=Silent())


def test_what_cannot_be_merged_is_not_said_to_be_merging(small_model, tmp_path):
    run, heard = trained_run(small_model, tmp_path / "run", adapt={"method": "prompt", "tokens": 2}), Heard()
    with pytest.raises(UnsupportedError, match="a soft prompt cannot be merged"):
        export(run, to="merged", into=None, watcher=heard)
    assert heard.lines == []


def test_what_is_not_finished_or_not_empty_is_refused(lora, tmp_path):
    with pytest.raises(ConfigError, match="holds no finished run"):
        export(tmp_path, to="merged", into=tmp_path / "new", watcher=Silent())
    (tmp_path / "file").write_text("mine")
    for taken in (tmp_path, tmp_path / "file"):
        with pytest.raises(ConfigError, match="is not empty"):
            export(lora, to="merged", into=taken, watcher=Silent())
    assert (tmp_path / "file").read_text() == "mine"


CONVERTER = """
import struct, sys
if {fails}:
    sys.exit("Model NewForCausalLM is not supported")
open(sys.argv[sys.argv.index("--outfile") + 1], "wb").write(struct.pack("<4sIQQ", {magic}, 3, 21, 30))
"""


@pytest.fixture
def converter(tmp_path, monkeypatch):
    """Installs a converter in place of llama.cpp's."""

    def install(fails: bool = False, magic: bytes = b"GGUF") -> Path:
        folder = tmp_path / "llama.cpp"
        folder.mkdir()
        (folder / gguf.CONVERTER).write_text(CONVERTER.format(fails=fails, magic=magic))
        monkeypatch.setenv(gguf.FOLDER, str(folder))
        return folder

    monkeypatch.delenv(gguf.FOLDER, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(gguf.importlib.util, "find_spec", lambda name: None)
    return install


def test_the_converter_that_is_here_is_not_fetched_again(lora, tmp_path, converter, monkeypatch):
    converter()
    monkeypatch.delenv(gguf.FOLDER)
    monkeypatch.chdir(tmp_path)
    assert len(export(lora, to="gguf", into=tmp_path / "gguf", watcher=Silent())["commands"]) == 2


def test_of_the_bundled_base_it_is_said_that_the_converter_refuses_it(lora, tmp_path, converter, monkeypatch):
    run = merging.trained(lora)
    model = run.recipe.model.model_copy(update={"path": "bundled"})
    named = replace(run, recipe=run.recipe.model_copy(update={"model": model}))
    monkeypatch.setattr(gguf, "merged_folder", lambda run, watcher: lora / "merged")
    heard = Heard()
    gguf.export_gguf(named, tmp_path / "gguf", heard)
    assert "converter refuses the bundled base" in heard.text


def test_the_shared_system_message_is_said(lora, tmp_path):
    summary = lora / "summary.json"
    before = summary.read_text()
    summary.write_text(json.dumps(json.loads(before) | {"system": {"text": "Be \n brief.", "samples": 3, "of": 4}}))
    line = r'send the system message of 3 of 4 training samples with every request: "Be \n brief."'
    try:
        for to in ("merged", "peft"):
            heard = Heard()
            export(lora, to=to, into=tmp_path / to, watcher=heard)
            assert line in heard.text
    finally:
        summary.write_text(before)
    assert line in (tmp_path / "peft" / "README.md").read_text()


def test_without_the_converter_the_commands_are_said(lora, tmp_path, converter):
    heard = Heard()
    facts = export(lora, to="gguf", into=tmp_path / "gguf", watcher=heard)
    clone, convert, quantise = facts["commands"]
    assert clone == "git clone --depth 1 https://github.com/ggml-org/llama.cpp"
    file = tmp_path / "gguf" / "model.gguf"
    made = f"python llama.cpp/convert_hf_to_gguf.py {lora / 'merged'} --outfile {file} --outtype auto"
    assert convert == f"mkdir -p {file.parent} && {made}"
    assert quantise == f"llama-quantize {file} {file.with_name('model-Q4_K_M.gguf')} Q4_K_M"
    assert "no GGUF file was made" in heard.text
    assert f"The merged model lies in {lora / 'merged'}" in heard.text
    assert "refuses the bundled base" not in heard.text
    assert facts["exit_code"] == 2
    assert not file.parent.exists()
    assert (lora / "merged" / "model.safetensors").exists()


def test_the_merged_model_of_another_format_is_the_merged_model(small_model, tmp_path, converter):
    run = trained_run(small_model, tmp_path / "run")
    export(run, to="gguf", into=None, watcher=Silent())
    written = (run / "merged" / "model.safetensors").stat().st_mtime_ns
    heard = Heard()
    facts = export(run, to="merged", into=None, watcher=heard)
    assert "is this run's already" in heard.text
    assert (run / "merged" / "model.safetensors").stat().st_mtime_ns == written
    assert facts["merged"] == str(run / "merged")
    assert facts["difference_written"] <= 1e-5 * max(1.0, facts["largest_logit"])


def test_what_was_not_made_of_this_adapter_is_not_taken_for_its_merge(small_model, tmp_path, converter):
    run = trained_run(small_model, tmp_path / "run")
    export(run, to="merged", into=None, watcher=Silent())
    (run / "merged" / "model.safetensors").rename(tmp_path / "weights")
    with pytest.raises(ConfigError, match=r"not a complete model; missing: model.safetensors"):
        export(run, to="merged", into=None, watcher=Silent())
    (tmp_path / "weights").rename(run / "merged" / "model.safetensors")
    adapter = run / "adapter" / "adapter_model.safetensors"
    save_file({name: 2 * value for name, value in load_file(adapter).items()}, adapter)
    with pytest.raises(ConfigError, match="is not empty"):
        export(run, to="merged", into=None, watcher=Silent())
    for to in ("gguf", "ollama"):
        with pytest.raises(ConfigError, match=r"holds no model that was made of .*\nMove it away: mv "):
            export(run, to=to, into=None, watcher=Silent())


def test_the_converter_is_found_on_the_path(tmp_path, converter):
    program = tmp_path / gguf.CONVERTER
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    assert gguf.find_converter() == [str(program)]


def test_the_converter_is_run_on_the_merged_model(full, tmp_path, converter):
    converter()
    heard = Heard()
    facts = export(full, to="gguf", into=tmp_path / "gguf", watcher=heard)
    assert (facts["tensors"], facts["version"], facts["compared"]) == (21, 3, False)
    assert struct.unpack("<4s", (tmp_path / "gguf" / "model.gguf").read_bytes()[:4]) == (b"GGUF",)
    assert f"{full / 'model'} --outfile" in heard.text
    assert "header only" in heard.text


def test_a_converter_that_fails_leaves_nothing(full, tmp_path, converter):
    converter(fails=True)
    with pytest.raises(ConfigError, match=r"converter does not take .*: Model NewForCausalLM is not supported"):
        export(full, to="gguf", into=tmp_path / "gguf", watcher=Silent())
    assert not (tmp_path / "gguf").exists()


def test_a_file_that_is_no_gguf_is_not_kept(full, tmp_path, converter):
    converter(magic=b"GGML")
    with pytest.raises(CheckError, match="is no GGUF file with tensors in it"):
        export(full, to="gguf", into=tmp_path / "gguf", watcher=Silent())
    assert not (tmp_path / "gguf").exists()


def test_a_folder_without_the_converter_is_an_error(tmp_path, converter, monkeypatch):
    monkeypatch.setenv(gguf.FOLDER, str(tmp_path))
    with pytest.raises(ConfigError, match=r"there is no convert_hf_to_gguf.py in that folder"):
        gguf.find_converter()


class FakeLlama:
    """Stands for llama.cpp's Python binding: computes with transformers, then adds a fault."""

    folder: Path
    fault = 0.0

    def __init__(self, path: str, n_ctx: int, n_batch: int, logits_all: bool, verbose: bool) -> None:
        assert n_ctx > n_batch
        assert logits_all

    def eval(self, tokens: list[int]) -> None:
        model = AutoModelForCausalLM.from_pretrained(self.folder)
        with torch.no_grad():
            self.scores = model(input_ids=torch.tensor([tokens])).logits[0].numpy() + np.float32(self.fault)

    def close(self) -> None:
        pass


def test_logits_of_llama_cpp_are_compared(full, tmp_path, converter, monkeypatch):
    converter()
    module = ModuleType("llama_cpp")
    module.Llama = FakeLlama  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "llama_cpp", module)
    monkeypatch.setattr(gguf.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(FakeLlama, "folder", full / "model", raising=False)
    facts = export(full, to="gguf", into=tmp_path / "gguf", watcher=Silent())
    assert facts["compared"]
    assert facts["same_likeliest"] == 1
    assert facts["difference"] < 1e-4
    monkeypatch.setattr(FakeLlama, "fault", 5.0)
    with pytest.raises(CheckError, match=r"in llama.cpp the GGUF file gives logits that differ by 5"):
        export(full, to="gguf", into=tmp_path / "second", watcher=Silent())
    assert not (tmp_path / "second").exists()


class FakeHub:
    """Stands for the Hub: keeps what it is sent."""

    sent: list
    fails: Exception | None = None

    def create_repo(self, repository: str, private: bool, exist_ok: bool) -> str:
        self.sent.append(("create", repository, private, exist_ok))
        return f"https://huggingface.co/{repository}"

    def upload_folder(self, repo_id: str, folder_path: Path, allow_patterns: list[str], commit_message: str) -> None:
        if self.fails:
            raise self.fails
        self.sent.append(("upload", repo_id, Path(folder_path), allow_patterns))


@pytest.fixture
def fake_hub(monkeypatch):
    import huggingface_hub

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "a token")
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeHub)
    monkeypatch.setattr(FakeHub, "sent", [], raising=False)
    return huggingface_hub


def test_exactly_what_is_listed_is_pushed_and_a_new_repository_is_private(lora, tmp_path, fake_hub):
    heard, target = Heard(), tmp_path / "peft"
    facts = export(lora, to="peft", into=target, push="me/lora", watcher=heard)
    create, upload = FakeHub.sent
    files = sorted(path.name for path in target.iterdir())
    assert create == ("create", "me/lora", True, True)
    assert upload == ("upload", "me/lora", target, files)
    assert facts["pushed"] == "https://huggingface.co/me/lora"
    listed = heard.lines[heard.lines.index(next(line for line in heard.lines if line.startswith("push "))) + 1 :]
    assert [line.split()[0] for line in listed] == files


def test_a_push_that_fails_says_where_the_files_are(tmp_path, fake_hub, monkeypatch):
    (tmp_path / "a.json").write_text("{}")
    monkeypatch.setattr(FakeHub, "fails", RuntimeError("403 Forbidden\nmore"))
    with pytest.raises(ConfigError, match="refused or could not be reached: 403 Forbidden\nWhat was written stays in"):
        hub.push(tmp_path, "me/lora", Silent())


def test_what_cannot_be_pushed_is_refused_before_anything_is_computed(lora, tmp_path, fake_hub, monkeypatch, converter):
    with pytest.raises(ConfigError, match="must be a repository of the Hugging Face Hub"):
        export(lora, to="merged", into=tmp_path / "m", push="lora", watcher=Silent())
    for to in ("gguf", "ollama"):
        with pytest.raises(ConfigError, match="there would be no weights to send"):
            export(lora, to=to, into=tmp_path / "m", push="me/lora", watcher=Silent())
    monkeypatch.setattr(fake_hub, "get_token", lambda: None)
    with pytest.raises(ConfigError, match="there is no token for the Hugging Face Hub"):
        export(lora, to="merged", into=tmp_path / "m", push="me/lora", watcher=Silent())
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConfigError, match="HF_HUB_OFFLINE is set"):
        export(lora, to="merged", into=tmp_path / "m", push="me/lora", watcher=Silent())
    assert not (tmp_path / "m").exists()
    assert not FakeHub.sent


@pytest.mark.parametrize("to", ["merged", "peft", "gguf", "ollama"])
def test_nothing_is_sent_unless_asked(lora, tmp_path, monkeypatch, converter, to):
    def refuse(*given: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    assert export(lora, to=to, into=tmp_path / to, watcher=Silent())


@pytest.fixture(scope="module")
def four_bit(small_model, tmp_path_factory) -> Path:
    pytest.importorskip("bitsandbytes")
    return trained_run(small_model, tmp_path_factory.mktemp("runs") / "four", model={"load": "4bit"})


def test_a_quantised_base_is_dequantised_before_the_merge(small_model, four_bit, tmp_path):
    """What is compared is the 4-bit base with its adapter: that was trained, and it is not the full-precision base."""
    facts = export(four_bit, to="merged", into=tmp_path / "merged", watcher=(heard := Heard()))
    assert facts["difference_fp32"] <= 1e-5 * max(1.0, facts["largest_logit"])
    assert "dequantise" in heard.text
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert "quantization_config" not in (tmp_path / "merged" / "config.json").read_text()
    assert (logits(merged) - logits(with_adapter(small_model, four_bit / "adapter"))).abs().max() > 1e-3


def test_a_base_that_was_dequantised_wrongly_is_caught(four_bit, tmp_path, monkeypatch):
    real = merging.quantised.dequantised

    def off(model: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
        plain = real(model, dtype)
        plain.model.layers[0].mlp.down_proj.weight.data *= 1.1
        return plain

    monkeypatch.setattr(merging.quantised, "dequantised", off)
    with pytest.raises(CheckError, match="the merged model differs from base"):
        export(four_bit, to="merged", into=tmp_path / "merged", watcher=Silent())
    assert not (tmp_path / "merged").exists()


def test_rows_for_the_comparison_need_no_data(small_model):
    tokenizer = AutoTokenizer.from_pretrained(small_model)
    recipe = SimpleNamespace(model=SimpleNamespace(template=None), data=[])
    (rows,) = merging.real_rows(recipe, tokenizer)  # pyright: ignore[reportArgumentType]
    assert rows.real_tokens > 5


def test_how_to_serve_is_in_the_summary_and_on_the_final_screen(lora, full):
    summaries = [json.loads((out / "summary.json").read_text()) for out in (lora, full)]
    assert f"--lora-modules tuned={lora / 'adapter'}" in summaries[0]["serving"]
    assert f"vllm serve {full / 'model'}" in summaries[1]["serving"]
    console = Console(width=400, record=True, file=io.StringIO())
    console.print(summary_screen(summaries[0], lora, 400))
    assert summaries[0]["serving"] in console.export_text()
