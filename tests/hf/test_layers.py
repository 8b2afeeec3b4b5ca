"""The text part of a model that has more than text."""

import re

import pytest
import torch
from tests.families import measure
from tests.models import FAMILIES, samples, tiny
from transformers import AutoModelForImageTextToText
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import frisket
from frisket.errors import UnsupportedError
from frisket.hf.layers import refuse_other_towers
from frisket.hf.load import load_model
from frisket.hf.settings import ModelSettings
from frisket.train.checks import check_model
from frisket.train.step import Laying

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["gemma3_image", "gemma4_image"])
def test_a_tower_that_no_text_reaches_is_refused(name):
    model = tiny(name, torch.float32)
    named = re.escape(f"{type(model).__name__} that no text trains, first vision_tower.")
    with pytest.raises(UnsupportedError, match=named + r".*\n.*adapt\.where='\*language_model\*'$"):
        check_model(model, samples(0, [9, 7]), Laying("isolated", 64, 1, "grouped", 64))
    measure.freeze_other_towers(model)
    refuse_other_towers(model)


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if not family.outer])
def test_a_model_of_text_has_no_other_tower(name):
    refuse_other_towers(tiny(name, torch.float32))


def test_a_run_with_the_default_where_says_what_to_do(tmp_path):
    measure.save_base("gemma3_image", tmp_path / "base")
    with pytest.raises(UnsupportedError, match=r"reaches \d+ tensors of Gemma3ForConditionalGeneration"):
        frisket.finetune(
            {"adapt": {"method": "lora", "where": "*"}, "evaluate": "off"},
            model=str(tmp_path / "base"),
            data=measure.records(),
            out=tmp_path / "out",
        )


def test_of_a_qwen_that_sees_the_text_model_is_loaded(tmp_path):
    tower = {"hidden_size": 32, "intermediate_size": 48, "depth": 1, "num_heads": 4, "out_hidden_size": 32}
    text = measure.configuration("qwen3_5").to_dict()
    config = CONFIG_MAPPING["qwen3_5"](text_config=text, vision_config=tower | {"num_position_embeddings": 16})
    whole = AutoModelForImageTextToText.from_config(config)
    whole.save_pretrained(tmp_path)
    model = load_model(ModelSettings(path=str(tmp_path)), torch.float32, CPU)
    assert type(model).__name__ == "Qwen3_5ForCausalLM"
    ids = torch.arange(3, 20)[None]
    model.set_attn_implementation("sdpa")
    with torch.no_grad():
        assert (model.eval()(ids).logits - whole.eval()(ids).logits).abs().max() <= 1e-5


def test_what_transformers_has_no_text_model_for_is_refused_by_name(tmp_path):
    tower = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    text = measure.configuration("mistral").to_dict()
    vision = tower | {"model_type": "pixtral", "image_size": 16, "patch_size": 8, "head_dim": 8}
    AutoModelForImageTextToText.from_config(
        CONFIG_MAPPING["mistral3"](text_config=text, vision_config=vision)
    ).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedError, match=r"is refused: Unrecognized configuration class .*Mistral3Config"):
        load_model(ModelSettings(path=str(tmp_path)), torch.float32, CPU)
