"""What the summed loss is divided by."""

import numpy as np
import pytest

from frisket.errors import DataError
from frisket.supervise.normaliser import normaliser

WEIGHTS = [np.array([0, 0.5, 2.0]), np.array([0.0, 0.0]), np.array([0, 1.0])]
SIGNED = [np.array([0, -1.0, 0.5])]


@pytest.mark.parametrize(
    ("rule", "divisor"), [("weights", 3.5), ("tokens", 3.0), ("sequences", 3.0), (7, 7.0), (0.5, 0.5)]
)
def test_each_rule(rule, divisor):
    assert normaliser(WEIGHTS, rule) == divisor


def test_signed_weights_are_counted_but_not_summed():
    assert normaliser(SIGNED, "tokens") == 2
    with pytest.raises(DataError, match=r"a weight is negative.*\n.*supervise.normaliser=tokens"):
        normaliser(SIGNED, "weights")


@pytest.mark.parametrize("rule", ["weights", "tokens"])
def test_a_step_without_anything_to_teach_is_refused(rule):
    with pytest.raises(DataError, match="a step has nothing to teach: every weight is 0"):
        normaliser([np.zeros(4)], rule)


def test_a_weight_near_zero_is_near_zero():
    """lambda -> 0 equals lambda = 0, for the divisor as for the sum."""
    near = normaliser([np.array([0, 1e-300, 1.0])], "weights")
    assert near == normaliser([np.array([0, 0.0, 1.0])], "weights")
