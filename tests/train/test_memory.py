"""Which layers are computed again, and that they really are."""

import torch
from tests.models import samples, tiny

from frisket.attend.pack import pack
from frisket.hf.attention import counted
from frisket.hf.forward import hidden_states
from frisket.hf.load import recompute_layers
from frisket.train.memory import activation_bytes


def test_a_recomputed_layer_runs_twice_and_the_others_once():
    model = tiny(dtype=torch.float32)
    recompute_layers(model, 1)
    with counted() as count:
        hidden_states(model, pack(samples(0, [9]), "alone", 1)[0]).sum().backward()
    layers = {module.layer_idx: calls for module, calls in count.calls.items()}
    assert layers == {0: 2, 1: 1}


def test_the_estimate_grows_with_tokens_and_type():
    model = tiny(dtype=torch.float32)
    one = activation_bytes(model, 100, torch.bfloat16)
    assert activation_bytes(model, 200, torch.bfloat16) == 2 * one
    assert activation_bytes(model, 100, torch.float32) == 2 * one
