"""The summed loss against torch's own cross-entropy and against finite differences."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from frisket.supervise.loss import Head, LossRule, LowRank, summed_loss, token_losses
from frisket.types import Predictions

PLACES, HIDDEN, VOCAB = 9, 5, 7
HEADS = {
    "plain": {},
    "bias": {"bias": True},
    "scale": {"scale": 0.3},
    "softcap": {"softcap": 1.7},
    "all": {"bias": True, "scale": -2.0, "softcap": 2.5},
}


def guesses(count=6, seed=0, places=PLACES, vocab=VOCAB):
    """Signed weights; a place may predict several targets."""
    rng = np.random.default_rng(seed)
    return Predictions(
        np.sort(rng.integers(0, places, count)), rng.integers(0, vocab, count), rng.normal(size=count).round(3) + 1e-3
    )


def tensors(dtype=torch.float64, seed=0, places=PLACES, hidden=HIDDEN, vocab=VOCAB):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(places, hidden), (vocab, hidden), (vocab,)]
    return [torch.randn(*shape, dtype=torch.float64, generator=generator).to(dtype) for shape in shapes]


def head_from(weight, bias, kind):
    options = {**HEADS[kind]}
    return Head(weight, bias if options.pop("bias", False) else None, **options)


RULES = {
    "cross-entropy": LossRule(),
    "smoothed": LossRule(smoothing=0.2),
    "dft": LossRule("dft"),
}


def naive(hidden, predictions, head, rule=RULES["cross-entropy"]):
    """All logits at once, then torch's cross-entropy; for DFT times the probability, held fixed."""
    logits = F.linear(hidden, head.weight, head.bias).to(torch.promote_types(hidden.dtype, torch.float32)) * head.scale
    if head.softcap:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    chosen = logits[torch.from_numpy(predictions.position)]
    target_ids = torch.from_numpy(predictions.target_ids)
    losses = F.cross_entropy(chosen, target_ids, reduction="none", label_smoothing=rule.smoothing)
    if rule.kind == "dft":
        losses = losses * (-losses).exp().detach()
    return (losses * torch.from_numpy(predictions.weights).to(losses.dtype)).sum()


def grads(function, *inputs):
    leaves = [x.clone().requires_grad_() for x in inputs]
    loss = function(*leaves)
    loss.backward()
    return loss.detach(), [x.grad for x in leaves]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_equal_to_torchs_loss_with_all_gradients(kind, chunk, rule):
    inputs, found, rule = tensors(), guesses(), RULES[rule]
    ours = grads(lambda h, w, b: summed_loss(h, found, head_from(w, b, kind), chunk, rule) + 0 * b.sum(), *inputs)
    truth = grads(lambda h, w, b: naive(h, found, head_from(w, b, kind), rule) + 0 * b.sum(), *inputs)
    assert abs(ours[0] - truth[0]) <= 1e-12
    for mine, theirs in zip(ours[1], truth[1], strict=True):
        assert (mine - theirs).abs().max() <= 1e-12


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("rule", ["cross-entropy", "smoothed"])
def test_gradients_are_those_of_finite_differences(kind, rule):
    leaves = [x.requires_grad_() for x in tensors()]
    assert torch.autograd.gradcheck(
        lambda h, w, b: summed_loss(h, guesses(), head_from(w, b, kind), 2, RULES[rule]), leaves
    )


def test_dft_has_the_gradient_of_cross_entropy_times_the_probability_of_the_target():
    """Finite differences would see the factor move, so the formula is tried itself: d = p_t (p - onehot)."""
    hidden, weight, _ = tensors()
    one = Predictions(np.array([3]), np.array([2]), np.array([-1.5]))
    dft, (ours,) = grads(lambda h: summed_loss(h, one, Head(weight), 4, RULES["dft"]), hidden)
    plain, (plainly,) = grads(lambda h: summed_loss(h, one, Head(weight)), hidden)
    p = torch.softmax(hidden[3] @ weight.T, 0)[2]
    assert torch.allclose(ours, p * plainly, atol=1e-14)
    assert torch.allclose(dft, p * plain, atol=1e-14)


def test_label_smoothing_of_zero_is_cross_entropy_and_a_uniform_model_pays_log_vocab_at_any_smoothing():
    hidden, weight, _ = tensors()
    plain = summed_loss(hidden, guesses(), Head(weight))
    assert torch.equal(summed_loss(hidden, guesses(), Head(weight), rule=LossRule(smoothing=0.0)), plain)
    one = Predictions(np.array([0]), np.array([1]), np.array([1.0]))
    uniform = summed_loss(hidden, one, Head(torch.zeros_like(weight)), rule=LossRule(smoothing=0.3))
    assert abs(uniform - np.log(VOCAB)) <= 1e-12


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("chunk", [2, 100])
def test_a_low_rank_change_of_the_head_is_the_head_with_the_change_folded_in(rule, chunk):
    hidden, weight, bias = tensors()
    down, up = torch.randn(2, HIDDEN, dtype=torch.float64), torch.randn(VOCAB, 2, dtype=torch.float64)

    def ours(h, w, a, b):
        head = Head(w, bias, 0.7, 2.0, LowRank(a, b, 1.5))
        return summed_loss(h, guesses(), head, chunk, RULES[rule])

    def folded(h, w, a, b):
        return summed_loss(h, guesses(), Head(w + 1.5 * b @ a, bias, 0.7, 2.0), chunk, RULES[rule])

    mine, truth = grads(ours, hidden, weight, down, up), grads(folded, hidden, weight, down, up)
    assert abs(mine[0] - truth[0]) <= 1e-12
    for own, other in zip(mine[1], truth[1], strict=True):
        assert (own - other).abs().max() <= 1e-12
    assert torch.allclose(
        Head(weight, low_rank=LowRank(down, up, 1.5)).logits(hidden), hidden @ (weight + 1.5 * up @ down).T
    )


@pytest.mark.parametrize("rule", RULES)
def test_a_weight_of_zero_is_the_same_as_no_prediction_gradients_included(rule):
    hidden, weight, _ = tensors()
    found = guesses()
    kept = np.arange(len(found)) % 2 == 0
    muted = Predictions(found.position, found.target_ids, np.where(kept, found.weights, 0.0))
    fewer = Predictions(found.position[kept], found.target_ids[kept], found.weights[kept])
    with_zeros = grads(lambda h, w: summed_loss(h, muted, Head(w), 3, RULES[rule]), hidden, weight)
    without = grads(lambda h, w: summed_loss(h, fewer, Head(w), 3, RULES[rule]), hidden, weight)
    assert abs(with_zeros[0] - without[0]) <= 1e-14
    for a, b in zip(with_zeros[1], without[1], strict=True):
        assert (a - b).abs().max() <= 1e-14


@pytest.mark.parametrize("trained", ["hidden", "weight"])
def test_only_what_moves_gets_a_gradient(trained):
    hidden, weight, _ = tensors()
    (hidden if trained == "hidden" else weight).requires_grad_()
    summed_loss(hidden, guesses(), Head(weight), 2).backward()
    assert (hidden.grad is None, weight.grad is None) == (trained != "hidden", trained != "weight")


def test_the_gradient_is_where_something_is_predicted_and_nowhere_else():
    hidden, weight, _ = tensors()
    hidden.requires_grad_()
    found = Predictions(np.array([2, 2, 5]), np.array([1, 3, 0]), np.array([1.0, -0.5, 2.0]))
    summed_loss(hidden, found, Head(weight)).backward()
    assert hidden.grad.abs().sum(1).nonzero().ravel().tolist() == [2, 5]


def test_nothing_supervised_is_zero_and_gives_zero_gradients():
    hidden, weight, _ = tensors()
    hidden.requires_grad_()
    weight.requires_grad_()
    empty = Predictions(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
    loss = summed_loss(hidden, empty, Head(weight))
    loss.backward()
    assert loss == 0
    assert not hidden.grad.any()
    assert not weight.grad.any()
    assert token_losses(hidden, empty, Head(weight)).shape == (0,)


def test_a_negative_weight_pushes_away():
    hidden, weight, _ = tensors()
    up = Predictions(np.array([0]), np.array([1]), np.array([1.0]))
    down = Predictions(up.position, up.target_ids, -up.weights)
    loss, (gradient,) = grads(lambda h: summed_loss(h, up, Head(weight)), hidden)
    opposite, (other,) = grads(lambda h: summed_loss(h, down, Head(weight)), hidden)
    assert opposite == -loss
    assert torch.equal(other, -gradient)


def test_the_loss_is_linear_in_its_scale_and_cannot_be_derived_twice():
    hidden, weight, _ = tensors()
    _, (once,) = grads(lambda h: summed_loss(h, guesses(), Head(weight)), hidden)
    _, (thrice,) = grads(lambda h: summed_loss(h, guesses(), Head(weight)) * 3, hidden)
    assert torch.allclose(thrice, 3 * once, atol=1e-14)
    hidden.requires_grad_()
    (gradient,) = torch.autograd.grad(summed_loss(hidden, guesses(), Head(weight)), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match=r"once_differentiable|does not require grad"):
        gradient.sum().backward()


@settings(max_examples=30, deadline=None)
@given(count=st.integers(1, 30), chunk=st.integers(1, 40), seed=st.integers(0, 50))
def test_the_chunk_changes_nothing(count, chunk, seed):
    hidden, weight, bias = tensors(seed=seed)
    found = guesses(count, seed)
    head = head_from(weight, bias, "all")
    whole, (gradient,) = grads(lambda h: summed_loss(h, found, head, 1000), hidden)
    parts, (other,) = grads(lambda h: summed_loss(h, found, head, chunk), hidden)
    assert abs(whole - parts) <= 1e-12 * max(1, abs(whole))
    assert (gradient - other).abs().max() <= 1e-12


@pytest.mark.parametrize("kind", HEADS)
def test_token_losses_are_the_terms_of_the_sum(kind):
    hidden, weight, bias = tensors()
    found = guesses(20)
    losses = token_losses(hidden, found, head_from(weight, bias, kind), chunk_tokens=3)
    assert losses.dtype == torch.float64
    assert not losses.requires_grad
    total = summed_loss(hidden, found, head_from(weight, bias, kind))
    assert abs((losses * torch.from_numpy(found.weights)).sum() - total) <= 1e-12


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_narrow_types_are_as_near_the_truth_as_torch_itself(dtype):
    size = {"places": 64, "hidden": 96, "vocab": 1000}
    inputs, found = tensors(dtype, **size), guesses(200, places=64, vocab=1000)
    wide = [x.double() for x in inputs]
    truth = grads(lambda h, w: naive(h, found, Head(w)), *wide[:2])
    ours = grads(lambda h, w: summed_loss(h, found, Head(w), 32), *inputs[:2])
    theirs = grads(lambda h, w: naive(h, found, Head(w)), *inputs[:2])
    assert ours[0].dtype == torch.float32
    assert abs(ours[0] - truth[0]) <= abs(theirs[0] - truth[0]) + 1e-3
    for mine, naively, exact in zip(ours[1], theirs[1], truth[1], strict=True):
        assert mine.dtype == dtype
        assert (mine - exact).norm() <= 1.1 * (naively - exact).norm()
