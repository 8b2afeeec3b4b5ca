"""What is said of what moved, of a mask that was not shipped, and of stages."""

import pytest

from frisket.report.moved import changed, moved_told, rejection, sides, stage_rows

PLAIN = {"model": {"path": "base", "method": "lora", "moving": 50, "parameters": 1000}, "loss": 2.0}
MASK = PLAIN | {"mask_tuning": {"shipped": True, "off": 7, "sentence": "it beats no mask"}}
REJECTED = PLAIN | {"mask_tuning": {"shipped": False, "off": 7, "sentence": "it does not beat no mask"}}


@pytest.mark.parametrize(
    ("summary", "entries", "told"),
    [
        (PLAIN, 50, "50 of 1,000 parameters moved (5 %)"),
        (
            PLAIN | {"graft": {"entries": 3}},
            3,
            "3 of the base's 1,000 entries change (0.3 %); 50 scores were searched",
        ),
        (MASK, 7, "7 of the base's 1,000 entries change (0.7 %); 50 scores were searched"),
        (REJECTED, 0, "0 of the base's 1,000 entries change (0 %); 50 scores were searched"),
    ],
)
def test_scores_are_not_called_weights_that_moved(summary, entries, told):
    assert changed(summary) == entries
    assert moved_told(summary) == told


def test_a_rejected_mask_is_named_so():
    assert rejection(PLAIN) == rejection(MASK) == ""
    assert rejection(REJECTED) == "No mask is shipped: it does not beat no mask. Use base as it is."
    assert sides(MASK) == ("before", "after")
    assert sides(REJECTED) == ("before", "rejected mask")


def test_a_later_stage_says_what_it_stands_on():
    earlier = [{"path": "base"}]
    assert stage_rows(PLAIN) == []
    assert [row["path"] for row in stage_rows(PLAIN | {"earlier": earlier})] == ["base", "base"]
    assert sides(PLAIN | {"earlier": earlier}) == ("before", "after")
    merged = PLAIN | {"model": PLAIN["model"] | {"path": "o/stage-1/merged"}, "earlier": earlier}
    assert sides(merged) == ("before this stage", "after")
    assert stage_rows(merged)[1]["measured"] == "training loss at the end 2"
