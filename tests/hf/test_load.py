"""Loading: what is missing is named, what cannot be right is refused, what is written loads without frisket."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.models import tiny, tiny_gpt2
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, ByT5Tokenizer, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from frisket.errors import ConfigError, UnsupportedError
from frisket.hf import load
from frisket.hf.attention import NAME
from frisket.hf.settings import ModelSettings

CPU = torch.device("cpu")


@pytest.fixture
def tokenizer():
    words = Tokenizer(models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?")


@pytest.fixture
def folder(tmp_path: Path, tokenizer):
    load.save_model(tiny(dtype=torch.float32), tokenizer, tmp_path, torch.float32)
    return tmp_path


def loaded(folder: Path, dtype=torch.float32):
    return load.load_model(ModelSettings(path=str(folder)), dtype, CPU)


def test_what_is_written_is_what_is_read_by_us_and_by_plain_transformers(folder):
    model = tiny(dtype=torch.float32)
    ours = loaded(folder)
    theirs = AutoModelForCausalLM.from_pretrained(folder)
    for other in (ours, theirs):
        state = other.state_dict()
        assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert ours.config._attn_implementation == NAME
    assert theirs.config._attn_implementation == "sdpa"
    assert load.load_tokenizer(ModelSettings(path=str(folder))).get_vocab() == {"a": 0, "b": 1, "?": 2}


def test_saving_gives_the_seam_back_and_writes_the_asked_type(tmp_path, tokenizer):
    model = tiny("gpt_oss", dtype=torch.float32)
    load.save_model(model, tokenizer, tmp_path, torch.bfloat16)
    assert model.config._attn_implementation == NAME
    settings = ModelSettings(path=str(tmp_path))
    assert load.stored_dtype(settings, None) == torch.bfloat16
    assert load.stored_dtype(settings, tiny(dtype=torch.float32)) == torch.float32


def test_a_folder_that_says_no_type_holds_fp32(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k not in ("dtype",)}))
    assert load.stored_dtype(ModelSettings(path=str(folder)), None) == torch.float32


@pytest.mark.parametrize("read", [load.load_config, lambda s: load.load_model(s, torch.float32, CPU)])
@pytest.mark.parametrize("path", ["/nowhere/at/all", "./nowhere", "a/b/c"])
def test_a_folder_that_does_not_exist(read, path):
    with pytest.raises(ConfigError, match=re.escape(f"model.path = {path!r}: no such folder.\nGive a hub id")):
        read(ModelSettings(path=path))


def test_missing_files_are_all_named(tmp_path):
    with pytest.raises(ConfigError, match=r"not a complete model; missing: config\.json, model\.safetensors\.$"):
        load.check_folder(str(tmp_path))


def test_missing_shards_are_named(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    parts = {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-3.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": parts}))
    (tmp_path / "model-2.safetensors").touch()
    with pytest.raises(ConfigError, match=r"missing: model-1\.safetensors, model-3\.safetensors\.$"):
        load.check_folder(str(tmp_path))


def test_pickled_weights_are_not_read(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"frisket does not read pickled weights: pytorch_model\.bin"):
        loaded(folder)


def test_a_misspelt_model_is_answered_with_its_neighbour(tmp_path, monkeypatch):
    (tmp_path / "llama-small").mkdir()
    (tmp_path / "llama-small" / "config.json").write_text("{}")
    (tmp_path / "lama-small.txt").touch()
    with pytest.raises(ConfigError, match=r"no such folder\.\nDid you mean this\? model\.path=.*/llama-small$"):
        load.check_folder(str(tmp_path / "lama-small"))
    monkeypatch.chdir(tmp_path)
    for word, near in (("lama-small", "llama-small"), ("bundld", "bundled")):
        with pytest.raises(ConfigError, match=rf"no such folder, .*\nDid you mean this\? model\.path={near}$"):
            load.load_config(ModelSettings(path=word))


def test_a_hub_id_is_not_a_folder():
    load.check_folder("somebody/something")
    with pytest.raises(
        ConfigError, match=r"(?s)'somebody/something' cannot be loaded.*model\.path=FOLDER.*HF_HOME.*hf auth login$"
    ):
        load.load_config(ModelSettings(path="somebody/something"))


def test_weights_that_do_not_fit_the_configuration_are_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": 64}))
    with pytest.raises(ConfigError, match=r"model\.path = '.*' cannot be loaded"):
        loaded(folder)


def test_a_truncated_file_is_refused(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ConfigError, match=r"model\.path = '.*' cannot be loaded"):
        loaded(folder)


def test_tensors_that_are_not_in_the_files_are_not_made_up(folder):
    weights = load_file(folder / "model.safetensors")
    for name in list(weights):
        if ".1.mlp." in name:
            del weights[name]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ConfigError, match=r"lack 3 of the model's tensors, which would be random: model\.layers\.1\.mlp"
    ):
        loaded(folder)


def test_a_tied_head_need_not_be_in_the_files(tmp_path, tokenizer):
    model = tiny(dtype=torch.float32, tie_word_embeddings=True)
    load.save_model(model, tokenizer, tmp_path, torch.float32)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    again = loaded(tmp_path)
    assert again.get_output_embeddings().weight is again.get_input_embeddings().weight


def test_a_family_that_transformers_does_not_know_is_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "unheard_of"}))
    with pytest.raises(UnsupportedError, match=r"model\.path = '.*' is refused: .*unheard_of"):
        loaded(folder)
    with pytest.raises(ConfigError, match=r"cannot be loaded: .*unheard_of"):
        load.load_config(ModelSettings(path=str(folder)))


def test_a_tokenizer_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match="is no folder"):
        load.load_tokenizer(ModelSettings(tokenizer=str(tmp_path / "none")))
    with pytest.raises(ConfigError, match=f"no tokenizer could be loaded from '{tmp_path}'"):
        load.load_tokenizer(ModelSettings(tokenizer=str(tmp_path)))


def test_a_slow_tokenizer_is_refused(tmp_path):
    ByT5Tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"has no fast .Rust. implementation, so no token can be traced"):
        load.load_tokenizer(ModelSettings(path=str(tmp_path)))


def test_an_empty_tokenizer_is_refused(tmp_path):
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE())).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="the tokenizer that was loaded has an empty vocabulary"):
        load.load_tokenizer(ModelSettings(path=str(tmp_path)))


def test_a_bare_sentencepiece_file_gives_its_own_ids(tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog\n" * 20)
    sentencepiece.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(tmp_path / "tokenizer"),
        vocab_size=60,
        model_type="bpe",
        byte_fallback=False,
        minloglevel=2,
    )
    for extra in ("text.txt", "tokenizer.vocab"):
        (tmp_path / extra).unlink()
    tokenizer = load.load_tokenizer(ModelSettings(path=str(tmp_path)))
    pieces = sentencepiece.SentencePieceProcessor(str(tmp_path / "tokenizer.model"))
    said = "the lazy fox jumps"
    assert tokenizer(said, add_special_tokens=False)["input_ids"] == pieces.encode(said)


def test_bundled_is_a_folder_of_the_package():
    assert (Path(load.resolve_path("bundled")) / "config.json").exists()
    assert load.resolve_path("elsewhere") == "elsewhere"
    assert load.context_length(load.load_config(ModelSettings())) == 32768


def test_compute_types():
    assert load.compute_type("fp32", CPU) == torch.float32
    assert load.compute_type("bf16", CPU) == torch.bfloat16
    assert load.compute_type("fp64", CPU) == torch.float64
    assert load.compute_type("auto", CPU) in (torch.bfloat16, torch.float32)
    assert load.compute_type("fp16", CPU) == torch.float16
    assert load.device_of("cpu") == CPU
    assert load.device_of("auto").type in ("cpu", "cuda", "mps")


@pytest.mark.parametrize(("capability", "dtype"), [((7, 5), torch.float16), ((8, 0), torch.bfloat16)])
def test_a_gpu_without_bf16_computes_in_fp16_and_says_so(monkeypatch, capability, dtype):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    device = torch.device("cuda")
    assert load.compute_type("auto", device) == dtype
    told = load.cautions("auto", dtype, device)
    assert any("no bf16: computing in fp16 with a scaled loss" in line for line in told) == (dtype == torch.float16)


def test_devices_that_were_not_tested_say_so():
    assert load.cautions("fp32", torch.float32, CPU) == []
    for kind in ("cuda", "mps", "xpu"):
        (line,) = load.cautions("fp32", torch.float32, torch.device(kind))
        assert f"never tested on {kind}, only on cpu" in line


@pytest.mark.parametrize(
    ("family", "changes", "attention", "recurrent"),
    [
        ("llama", {}, 2, 0),
        ("gpt2", {}, 2, 0),
        ("gemma2", {}, 2, 0),
        ("gemma4_text", {"num_hidden_layers": 6}, 6, 0),
        ("qwen3_5_text", {"num_hidden_layers": 8}, 2, 6),
        ("lfm2", {"layer_types": ["conv", "full_attention"]}, 1, 1),
        ("mamba", {}, 0, 2),
        ("falcon_h1", {}, 2, 2),
        ("nemotron_h", {"layers_block_type": ["mamba", "moe", "attention", "mlp"], "num_hidden_layers": 4}, 1, 1),
    ],
)
def test_layers_are_counted_from_the_configuration(family, changes, attention, recurrent):
    config = CONFIG_MAPPING[family](**{"num_hidden_layers": 2, **changes})
    assert load.layer_counts(config) == load.Layers(attention, recurrent)


def test_a_kind_of_layer_that_is_not_known_is_refused():
    config = CONFIG_MAPPING["llama4_text"](num_hidden_layers=4)
    with pytest.raises(
        UnsupportedError, match="has layers of type chunked_attention, whose mask frisket does not know"
    ):
        load.layer_counts(config)


def test_mixtures_are_known_by_their_experts():
    assert load.is_mixture(tiny("gpt_oss", dtype=torch.float32))
    assert not load.is_mixture(tiny(dtype=torch.float32))


def test_all_dropout_is_switched_off_and_named():
    model = tiny_gpt2()
    found = load.switch_off_dropout(model)
    assert "transformer.drop 0.1" in found
    assert "transformer.h.1.attn.attn_dropout 0.1" in found
    assert load.switch_off_dropout(model) == []
    assert all(module.p == 0 for module in model.modules() if isinstance(module, torch.nn.Dropout))


def test_dropout_that_is_a_number_in_a_module_is_switched_off_too():
    config = CONFIG_MAPPING["opt"](
        vocab_size=64, hidden_size=32, num_hidden_layers=1, ffn_dim=48, num_attention_heads=4, word_embed_proj_dim=32,
        dropout=0.1, attention_dropout=0.2, layerdrop=0.3, max_position_embeddings=32,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    found = load.switch_off_dropout(model)
    assert {entry.rpartition(".")[2] for entry in (word.split()[0] for word in found)} == {"dropout", "layerdrop"}
    model.train()
    ids = torch.arange(3, 12)[None]
    assert torch.equal(model(ids).logits, model(ids).logits)


def test_ready_puts_a_model_on_the_seam():
    model = AutoModelForCausalLM.from_config(tiny(dtype=torch.float32).config, attn_implementation="eager")
    assert load.ready(model).config._attn_implementation == NAME


def test_an_empty_model_has_every_module_and_no_weight():
    with torch.device("meta"):
        model = load.empty_model(tiny(dtype=torch.float32).config)
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert dict(model.named_modules()).keys() == dict(tiny(dtype=torch.float32).named_modules()).keys()


def test_decoder_layers_come_in_order():
    assert load.decoder_layers(model := tiny(dtype=torch.float32)) == list(model.model.layers)
    assert load.decoder_layers(model := tiny_gpt2()) == list(model.transformer.h)


def test_casting_leaves_rotary_frequencies_alone():
    model = tiny(dtype=torch.float32)
    load.cast_parameters(model, torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert {b.dtype for b in model.buffers() if b.is_floating_point()} == {torch.float32}


def test_versions_name_what_decides_the_numbers():
    assert set(load.versions()) == {"python", "torch", "transformers", "tokenizers", "numpy"}
    assert all(load.versions().values())
