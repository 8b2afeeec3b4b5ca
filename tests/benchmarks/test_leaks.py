"""The table of leaks: a case that isolates, cases that leak or go wrong, one that is refused, and what is written."""

import json
import warnings
from dataclasses import fields
from functools import partial

import pytest
import torch
from benchmarks.leaks import (
    FIRST,
    FRISKET,
    PEFT,
    PLAIN,
    ROUNDING,
    Case,
    Finding,
    as_table,
    condensed,
    default_cache,
    measure,
    restarting,
    tokens,
    with_trl,
    write,
)
from rich.console import Console

from frisket.errors import UnsupportedError


def named(cases: tuple[Case, ...], beginning: str) -> Case:
    (case,) = [case for case in cases if case.setting.startswith(beginning)]
    return case


def largest(found: Finding) -> float:
    """The larger of the two differences."""
    assert found.change is not None
    assert found.to_alone is not None
    return max(found.change, found.to_alone)


def test_replacing_a_sample_replaces_every_token_of_it_and_no_length():
    prefix, first, replaced, second = tokens(shares=True)
    assert len(first) == len(replaced) == FIRST
    assert len({*prefix, *first, *replaced, *second}) == len(prefix) + 2 * FIRST + len(second)


def test_restarting_positions_isolate_and_the_default_cache_undoes_it():
    apart = measure(Case("transformers", "restart", restarting))
    cached = measure(Case("transformers", "cache", default_cache))
    assert apart.verdict == "isolated"
    assert largest(apart) <= ROUNDING
    assert largest(cached) > 1e-3
    assert (cached.verdict, cached.told) == ("leaks", "nothing")


def test_a_shared_prefix_by_positions_does_not_leak_but_loses_the_prefix():
    lost = measure(named(PLAIN, "shared prefix"))
    assert lost.verdict == "wrong"
    assert lost.change is not None
    assert lost.change <= ROUNDING


def test_prompt_tuning_leaks_with_a_warning_and_prefix_tuning_without():
    prompt, prefix = measure(named(PEFT, "prompt tuning")), measure(named(PEFT, "prefix tuning"))
    assert prompt.verdict == prefix.verdict == "leaks"
    assert "Position ids are not supported" in prompt.told
    assert prefix.told == "nothing"


@pytest.mark.parametrize("arrangement", ["padded", "isolated", "forest"])
def test_friskets_samples_do_not_see_each_other(arrangement):
    found = measure(named(FRISKET, arrangement))
    assert found.verdict == "isolated"
    assert largest(found) <= ROUNDING
    assert found.told.startswith("probe: ")


def test_mask_free_leaks_as_it_must_and_the_run_says_so():
    found = measure(named(FRISKET, "mask-free"))
    assert found.verdict == "leaks"
    assert "see each other" in found.told


def test_a_run_that_refuses_is_quoted():
    def refuses():
        raise UnsupportedError("attend.arrangement = 'forest': not here.\nUse another.")

    found = measure(Case("frisket", "setting", lambda samples: torch.zeros(len(samples[-1]), 3), refuses))
    assert found.told == "refused: “attend.arrangement = 'forest': not here.”"


def test_trl_isolates_with_bfd_and_not_with_wrapped():
    pytest.importorskip("trl")
    apart = measure(Case("TRL", "bfd", partial(with_trl, strategy="bfd")))
    mixed = measure(Case("TRL", "wrapped", partial(with_trl, strategy="wrapped")))
    assert apart.verdict == "isolated"
    assert mixed.verdict == "leaks"


def test_a_tool_that_refuses_has_nothing_to_measure():
    def refuses(samples):
        raise ValueError("Cannot keep packed samples apart. Install something.")

    found = measure(Case("tool", "setting", refuses))
    assert (found.change, found.verdict, found.told) == (None, "refused", "“Cannot keep packed samples apart.”")


def test_an_error_that_is_not_about_packing_is_not_called_a_refusal():
    def fails(samples):
        raise ValueError("expected 3 dimensions")

    with pytest.raises(ValueError, match="expected 3 dimensions"):
        measure(Case("tool", "setting", fails))


def test_chance_is_not_taken_for_a_leak():
    generator = torch.Generator().manual_seed(0)

    def random(samples):
        return torch.rand(len(samples[-1]), 3, generator=generator)

    with pytest.raises(AssertionError, match="the same samples gave other logits"):
        measure(Case("tool", "setting", random))


def test_only_warnings_about_packing_are_told_and_all_are_kept():
    def warns(samples):
        warnings.warn("Something is deprecated.", FutureWarning, stacklevel=2)
        warnings.warn("Samples may contaminate one another: be careful.", UserWarning, stacklevel=2)
        return torch.zeros(len(samples[-1]), 3)

    found = measure(Case("tool", "setting", warns))
    assert found.told == "“Samples may contaminate one another: be careful.”"
    assert found.heard == ("Something is deprecated.", "Samples may contaminate one another: be careful.")
    assert condensed([]) == "nothing"


def test_what_is_written_has_every_field_and_the_versions(tmp_path):
    findings = [measure(Case("transformers", "eager", partial(restarting, attention="eager")))]
    write(findings, ("something",), tmp_path / "leaks.json")
    written = json.loads((tmp_path / "leaks.json").read_text())
    assert {"torch", "transformers", "peft", "commit"} <= set(written["environment"])
    assert set(written["rows"][0]) == {field.name for field in fields(Finding)}
    assert written["left_out"] == ["something"]
    console = Console(width=200)
    with console.capture() as captured:
        console.print(as_table(findings))
    assert "isolated" in captured.get()
