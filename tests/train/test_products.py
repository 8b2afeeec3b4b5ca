"""float32 products by oneDNN: only where they are float32's, and only while a run lasts."""

import os
import subprocess
import sys

import pytest
import torch

from frisket.train import products
from frisket.train.products import by_onednn, is_exact, uses_onednn

SETTING = torch.backends.mkldnn.matmul


def test_what_torch_takes_by_itself_is_exact():
    assert is_exact()


def test_rounded_operands_are_found(monkeypatch):
    plain = torch.Tensor.__matmul__
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda a, b: plain(rounded(a), rounded(b)))
    assert not is_exact()


def rounded(x: torch.Tensor) -> torch.Tensor:
    return x.bfloat16().float() if x.dtype == torch.float32 else x


def test_the_setting_lasts_as_long_as_the_context():
    before = SETTING.fp32_precision
    with by_onednn() as is_used:
        assert is_used == (SETTING.fp32_precision == "bf16") == uses_onednn(torch.float32)
        assert is_exact()
    assert SETTING.fp32_precision == before
    with pytest.raises(ZeroDivisionError), by_onednn():
        raise ZeroDivisionError
    assert SETTING.fp32_precision == before


def test_the_last_of_several_puts_it_back():
    before = SETTING.fp32_precision
    first, second = by_onednn(), by_onednn()
    is_used = first.__enter__()
    assert second.__enter__() == is_used
    first.__exit__(None, None, None)
    assert uses_onednn(torch.float32) == is_used  # two runs in threads need not end in order
    second.__exit__(None, None, None)
    assert SETTING.fp32_precision == before


def test_a_probe_that_is_interrupted_leaves_nothing(monkeypatch):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(products, "is_exact", interrupted)
    before = SETTING.fp32_precision
    if products._is_possible():
        with pytest.raises(KeyboardInterrupt), by_onednn():
            pass
    assert SETTING.fp32_precision == before
    monkeypatch.undo()
    with by_onednn():
        pass
    assert SETTING.fp32_precision == before


def test_the_probe_does_not_hang_on_torchs_defaults():
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert is_exact()
    finally:
        torch.set_default_dtype(torch.float32)


def test_where_products_are_rounded_it_is_not_used(monkeypatch):
    monkeypatch.setattr(products, "is_exact", lambda: False)
    before = SETTING.fp32_precision
    with by_onednn() as is_used:
        assert not is_used
        assert SETTING.fp32_precision == before


def test_with_amx_it_is_not_even_tried(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    monkeypatch.setattr(products, "is_exact", lambda: pytest.fail("tried"))
    with by_onednn() as is_used:
        assert not is_used


def test_sixteen_bits_are_always_onednns():
    assert uses_onednn(torch.bfloat16)
    assert uses_onednn(torch.float16)
    assert not uses_onednn(torch.float64)


def test_the_cache_of_kernels_is_bounded_before_the_probe():
    """oneDNN reads its bound at its first product: a probe before it would cost a gigabyte (docs/log.md)."""
    code = (
        "import os, torch; from frisket.train import products;"
        "products.is_exact = lambda: print(os.environ['ONEDNN_PRIMITIVE_CACHE_CAPACITY']) or True\n"
        "with products.by_onednn(): pass"
    )
    own = {name: value for name, value in os.environ.items() if name != "ONEDNN_PRIMITIVE_CACHE_CAPACITY"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=own)
    assert done.stdout.strip() in ("64", "")  # nothing is probed where there is no oneDNN, or AMX
