"""Sample by sample, the same losses as one dense forward of transformers."""

import numpy as np
import pytest
import torch

from frisket.evaluate.losses import flat_places, logits_at, sample_losses
from frisket.evaluate.text import plain_sequence
from frisket.hf.attention import own_attention


def samples(seed: int = 0):
    rng = np.random.default_rng(seed)
    made = []
    for number, size in enumerate([40, 7, 90, 2, 200, 33]):
        weights = rng.choice([0.0, 1.0, 0.5], size)
        made.append((plain_sequence(f"s{number}", rng.integers(2, 258, size).tolist()), weights))
    return made


def dense_logits(model, ids) -> torch.Tensor:
    with torch.no_grad(), own_attention(model):
        return model(input_ids=torch.from_numpy(np.asarray(ids, dtype=np.int64))[None], use_cache=False).logits[0]


def test_losses_are_those_of_each_sample_alone(model, each_arrangement):
    chosen = samples()
    done = []
    found = sample_losses(model, chosen, each_arrangement, done.append)
    assert sum(done) == len(chosen)
    for (sequence, weights), total, count in zip(chosen, found.total, found.count, strict=True):
        log_p = torch.log_softmax(dense_logits(model, sequence.input_ids)[:-1], -1)
        targets = torch.from_numpy(sequence.input_ids[1:].astype(np.int64))
        nats = -log_p.gather(1, targets[:, None])[:, 0].numpy()
        assert total == pytest.approx((nats * weights[1:]).sum(), rel=1e-6, abs=1e-9)
        assert count == weights[1:].sum()


def test_only_what_has_a_positive_weight_is_measured(model, each_arrangement):
    """A negative weight would make the count, which everything is divided by, zero or less."""
    chosen = samples()
    rng = np.random.default_rng(1)
    pushed = [(s, np.where(rng.random(len(w)) < 0.3, -2.0, w)) for s, w in chosen]
    clipped = [(s, np.where(w > 0, w, 0.0)) for s, w in pushed]
    found, expected = (sample_losses(model, each, each_arrangement) for each in (pushed, clipped))
    assert np.array_equal(found.total, expected.total)
    assert np.array_equal(found.count, [w[1:].sum() for _, w in clipped])
    assert all((weights < 0).any() for _, weights in pushed if len(weights) > 30)


def test_a_sample_without_positive_weights_counts_nothing(model, each_arrangement):
    (first, ones), *rest = samples()
    found = sample_losses(model, [(first, -np.ones(len(first))), *rest], each_arrangement)
    assert (found.total[0], found.count[0]) == (0, 0)
    assert np.isfinite(found.value)
    alone = sample_losses(model, [(first, np.minimum(ones, 0.0) - 1.0)], each_arrangement)
    assert (alone.total.tolist(), alone.count.tolist()) == ([0], [0])


def test_measuring_leaves_the_mode_and_makes_no_gradients(model, instruments):
    model.train()
    sample_losses(model, samples(), instruments)
    assert model.training
    model.eval()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_no_samples_no_losses(model, instruments):
    assert len(sample_losses(model, [], instruments)) == 0


def test_logits_at_places_of_a_sample(model, each_arrangement):
    chosen = [sequence for sequence, _ in samples()]
    for rows in each_arrangement.arrange(chosen):
        for name, places in flat_places(rows).items():
            sequence = next(s for s in chosen if s.sample_id == name)
            assert rows.input_ids.ravel()[places].tolist() == sequence.input_ids.tolist()
            with torch.no_grad():
                found = logits_at(model, rows, places[-2:])
            assert torch.allclose(found, dense_logits(model, sequence.input_ids)[-2:], rtol=1e-5, atol=1e-6)
