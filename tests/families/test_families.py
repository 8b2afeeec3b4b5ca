"""Every family of `tests/models.py` trains exactly, and what it saves is what plain transformers and PEFT read."""

import pytest
import torch
from tests.families import measure, page
from tests.models import FAMILIES, REFUSED

pytestmark = [  # of plain PEFT: it reads what transformers calls deprecated, and looks for experts' names in vain
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated"),
    pytest.mark.filterwarnings("ignore:The following .*_pattern keys did not match"),
]


# The others' full fine-tuning is measured for the page only: one minute for all families.
FULL_TOO = {"llama", "qwen2", "qwen3", "qwen3_5", "gemma2", "gemma3", "gemma4", "gemma4_moe", "mistral", "phi3"}
FULL_TOO |= {"gpt_oss", "qwen3_moe", "gemma3_image"}


@pytest.mark.parametrize("name", FAMILIES)
def test_loss_and_every_gradient_are_those_of_transformers(name):
    for arrangement, difference in measure.differences(name).items():
        assert difference <= 1e-10, arrangement


@pytest.mark.parametrize("name", FAMILIES)
def test_recomputed_layers_give_the_same_gradients(name):
    assert measure.recomputed_is_kept(name)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_checks_of_a_run_pass_in_bf16_on_real_conversations(name):
    """In fp32 the runs below make them."""
    checks = measure.checks(name, torch.bfloat16)
    assert ("a shared segment replaced" in checks.isolation) == measure.packs(name)


@pytest.mark.parametrize("name", FAMILIES)
def test_what_four_steps_save_is_what_plain_peft_and_transformers_read(name, tmp_path):
    measure.save_base(name, tmp_path / "base")
    for method in measure.METHODS if name in FULL_TOO else ("lora",):
        trained = measure.train(name, method, tmp_path / "base", tmp_path / method)
        assert trained.last < trained.first
        assert trained.apart <= 1e-4
        assert trained.moved > 0.1


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("llama4", "Llama4TextConfig has layers of type chunked_attention, whose mask frisket does not know"),
        ("deepseek_v32", "DeepseekV32Config has layers of type indexed_attention, whose mask frisket does not know"),
        ("stablelm", "StableLmAttention did not pass on the layout of the rows"),
    ],
)
def test_what_cannot_be_trained_exactly_is_refused_by_name(name, reason):
    assert reason in measure.refusal(name)
    assert page.recorded()["refused"][name] == measure.refusal(name)


def test_every_refused_family_has_a_reason():
    assert set(page.recorded()["refused"]) == set(REFUSED)


def test_a_family_that_trains_is_not_called_refused():
    with pytest.raises(AssertionError, match="llama is not refused"):
        measure.refusal("llama")


def test_a_leak_is_seen(monkeypatch):
    """Planted: the rows are chains, in which each sample sees those before it."""
    from frisket.attend.pack import pack

    monkeypatch.setattr(measure, "pack", lambda sequences, arrangement, *rest: pack(sequences, "mask-free", *rest))
    assert measure.differences("mistral")["isolated"] > 1e-3


def test_the_page_is_up_to_date():
    assert page.PAGE.read_text(encoding="utf-8") == page.page(page.recorded())


def test_every_family_was_measured():
    found = page.recorded()["families"]
    assert list(found) == list(FAMILIES)
    for name, entry in found.items():
        assert list(entry["differences"]) == measure.arrangements(name)
        assert max(entry["differences"].values()) <= 1e-10
