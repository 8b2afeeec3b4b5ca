"""When the literature has something to say."""

import pytest

from frisket.supervise.advice import Lengths, advise
from frisket.supervise.settings import TeachSettings


@pytest.mark.parametrize(
    ("samples", "ratio", "knobs", "fixes"),
    [
        (13_533, 26.3, {}, ["supervise.policy=instructions"]),
        (1_000, 1.0, {"policy": "completion"}, ["supervise.policy=instructions"]),
        (1_000, 4.0, {"prompt_weight": 0.1}, []),
        (1_000, 0.09, {}, []),
        (50_000, 4.0, {}, []),
        (1_030, 0.09, {"policy": "instructions"}, ["supervise.policy=assistant"]),
        (52_000, 2.0, {"policy": "boilerplate"}, ["supervise.policy=assistant"]),
        (5_000, 0.57, {"policy": "all"}, []),
    ],
)
def test_advice_by_lengths_and_policy(samples, ratio, knobs, fixes):
    found = advise(Lengths(samples, ratio, 0), TeachSettings(**knobs))
    assert [advice.fix for advice in found] == fixes
    assert all("arXiv" in advice.source and f"{samples:,}" in advice.text for advice in found)


def test_taught_tool_results_are_named():
    (advice,) = advise(Lengths(5_000, 0.5, 123), TeachSettings(policy="instructions"))
    assert advice.text.startswith("tool results are taught (123 tokens)")
    assert advice.fix == "supervise.roles.tool_result=0"
