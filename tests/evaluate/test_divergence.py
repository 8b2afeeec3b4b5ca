"""KL against its formula, and the bucketed bound below it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from frisket.evaluate.divergence import bucketed_kl, exact_kl, keep


def logits(seed: int, scale: float = 2.0, size: tuple[int, int] = (130, 97)) -> torch.Tensor:
    return scale * torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_kl_is_its_formula():
    p, q = torch.softmax(logits(0), -1), torch.softmax(logits(1), -1)
    expected = (p * (p / q).log()).sum(-1)
    assert torch.allclose(exact_kl(logits(0), logits(1)), expected, rtol=1e-12)
    assert exact_kl(logits(0), logits(0)).abs().max() == 0


def test_the_bucket_is_its_formula():
    p, q = torch.softmax(logits(0), -1), torch.softmax(logits(1), -1)
    top = p.topk(8).indices
    kept_p, kept_q = p.gather(1, top), q.gather(1, top)
    rest_p, rest_q = 1 - kept_p.sum(-1), 1 - kept_q.sum(-1)
    expected = (kept_p * (kept_p / kept_q).log()).sum(-1) + rest_p * (rest_p / rest_q).log()
    assert torch.allclose(bucketed_kl(keep(logits(0), 8), logits(1)), expected, rtol=1e-9)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.integers(0, 1000), st.floats(0.01, 30), st.integers(1, 97))
def test_the_bound_never_exceeds_the_exact_kl(one, two, scale, count):
    p, q = logits(one, scale, (5, 97)), logits(two, scale, (5, 97))
    bound, exact = bucketed_kl(keep(p, count), q), exact_kl(p, q)
    assert torch.isfinite(bound).all()
    assert (bound >= -1e-12).all()
    assert (bound <= exact + 1e-9 * exact.abs() + 1e-12).all()


def test_with_everything_kept_the_bound_is_exact():
    assert torch.allclose(bucketed_kl(keep(logits(0), 500), logits(1)), exact_kl(logits(0), logits(1)), rtol=1e-12)


def test_an_unchanged_model_has_no_divergence():
    assert bucketed_kl(keep(logits(3)), logits(3)).abs().max() == pytest.approx(0, abs=1e-15)
