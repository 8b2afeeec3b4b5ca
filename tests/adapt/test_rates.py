"""Default rates: the source's formula, and one for every type of PEFT that may share rows."""

import pytest

from frisket.adapt.full import Full
from frisket.adapt.lora import Lora
from frisket.adapt.peft import PACKS, Ia3, Peft
from frisket.adapt.rates import PEFT_RATES, UNKNOWN, rate_of

LONG, SHORT = 200, 199


@pytest.mark.parametrize("width", [256, 2000, 4096, 8192])
def test_lora_takes_ten_times_the_rate_of_full_fine_tuning_and_fifteen_in_short_runs(width: int) -> None:
    full = 5e-5 * (2000 / width) ** (0.781 if width > 2000 else 1.3)
    as_in_the_source = Lora(rank=32, alpha=32).declared_rate
    assert rate_of(Full().declared_rate, width, LONG).value == pytest.approx(full, rel=0.05)
    assert rate_of(Full().declared_rate, width, SHORT).value == pytest.approx(full, rel=0.05)
    assert rate_of(as_in_the_source, width, LONG).value == pytest.approx(10 * full, rel=0.05)
    assert rate_of(as_in_the_source, width, SHORT).value == pytest.approx(15 * full, rel=0.05)
    assert rate_of(Lora().declared_rate, width, LONG).value == pytest.approx(5 * full, rel=0.05)


def test_an_update_of_lora_is_as_large_at_every_rank_and_alpha() -> None:
    reference = Lora(rank=32, alpha=32).declared_rate
    for lora in (Lora(), Lora(rank=8), Lora(rank=64), Lora(rank=4, alpha=32), Lora(rank=16, rslora=True)):
        alpha = lora.alpha or 2 * lora.rank
        scale = alpha / lora.rank**0.5 if lora.rslora else alpha / lora.rank
        assert lora.declared_rate.value * scale * lora.rank**0.5 == pytest.approx(reference.value * 32**0.5)
    assert Lora(rank=8, alpha=16).declared_rate.source == reference.source
    assert "here at rank 8 and alpha 64" in Lora(rank=8, alpha=64).declared_rate.source


def test_the_words_say_what_was_applied() -> None:
    told = rate_of(Lora().declared_rate, 256, SHORT).why
    assert "LoRA Without Regret" in told
    assert "width 256" in told
    assert "fewer than 200 steps" in told
    assert "width" not in rate_of(Ia3().declared_rate, 256, SHORT).why


@pytest.mark.parametrize("kind", sorted(PACKS - {"LORA", "IA3", "LN_TUNING"}))
def test_every_packed_type_has_a_rate_of_its_own_or_says_that_none_is_known(kind: str) -> None:
    declared = Peft(peft_type=kind.lower()).declared_rate
    assert declared is PEFT_RATES.get(kind, UNKNOWN)
    assert 0 < declared.value < 1
    assert ("ours" in declared.source) == (kind in {"FOURIERFT", "TINYLORA"})
