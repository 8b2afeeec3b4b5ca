"""What is counted on the meta device is what generation really keeps."""

import pytest
import torch
from tests.models import configuration, tiny

from frisket.hf import load
from frisket.hf.attention import own_attention
from frisket.hf.kv_cache import cache_bytes

ROWS, PROMPT, ANSWER = 3, 30, 11


def kept_by_generation(family: str) -> int:
    model = tiny(family, torch.bfloat16).eval()
    ids = torch.full((ROWS, PROMPT), 5)
    choice = {"do_sample": False, "min_new_tokens": ANSWER, "max_new_tokens": ANSWER, "pad_token_id": 0}
    with own_attention(model):
        out = model.generate(ids, attention_mask=torch.ones_like(ids), return_dict_in_generate=True, **choice)
    found = [value for layer in out.past_key_values.layers for value in vars(layer).values()]
    states = [value for each in found if isinstance(each, dict) for value in each.values()]
    return sum(value.nbytes for value in (*found, *states) if isinstance(value, torch.Tensor))


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma4", "mistral", "deepseek_v3", "qwen3_5", "granite4"])
def test_every_key_value_and_state_is_counted(family):
    """Windows forget, latent attention keeps all heads, recurrent layers a state: the last token is never run."""
    with torch.device("meta"):
        model = load.empty_model(configuration(family)).to(torch.bfloat16).eval()
    assert cache_bytes(model, ROWS, PROMPT + ANSWER - 1) == kept_by_generation(family) > 0
