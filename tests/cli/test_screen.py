"""The screen: plain lines, the live display, the final screen at several widths."""

import io
import time
from pathlib import Path

import pytest
from rich.console import Console

from frisket.cli import final, screen, words
from frisket.cli.screen import Screen, sparkline
from frisket.report.plots import run_charts, steps_of
from frisket.watch import StepRecord

from .conftest import SUMMARY


def record(step: int, total: int = 30, loss: float | None = None) -> StepRecord:
    value = 3.0 / step if loss is None else loss
    return StepRecord(step, total, step / total, value, 10.0, 1e-4, 0.5, 10_000, 11_000, 2_500, 0.5)


def plain(width: int = 100) -> tuple[Screen, io.StringIO]:
    file = io.StringIO()
    return Screen(Console(file=file, width=width, force_terminal=False)), file


def test_plain_steps_come_every_ten_and_at_the_edges() -> None:
    shown, file = plain()
    for step in range(1, 31):
        shown.step(record(step))
    lines = file.getvalue().splitlines()
    assert [line.split()[1] for line in lines[:-1]] == ["1/30", "10/30", "20/30", "30/30"]
    assert "loss 0.3000  rate 1.00e-04  norm 0.500  20,000 real tokens/s (5,000 supervised)  10 s left" in lines[1]
    assert lines[-1].strip() == "trained 30 steps in 15 s: loss 3.000 → 0.100, 20,000 real tokens/s"
    assert lines[-2].endswith("supervised)"), "nothing is left behind the last step"


def test_a_long_run_is_told_with_the_means_of_its_report() -> None:
    shown, file = plain()
    losses = [6.0, 4.0, *(float(n) for n in range(40, 4, -1)), 0.5, 0.1]
    for step, loss in enumerate(losses, 1):
        shown.step(record(step, total=40, loss=loss))
    assert "loss 5.000 → 0.300 (means of the first and last 2 steps)" in file.getvalue().splitlines()[-1]
    metrics = [{"step": step, "loss": loss, "flat_tokens": 10} for step, loss in enumerate(losses, 1)]
    assert "fell from 5 to 0.3 over" in run_charts(steps_of(metrics), [], {}, [])[0].sentence


def test_slow_steps_are_shown_each(monkeypatch: pytest.MonkeyPatch) -> None:
    shown, file = plain()
    now = iter(range(0, 10_000, 20))
    monkeypatch.setattr(screen.time, "monotonic", lambda: next(now))
    for step in (1, 2, 3):
        shown.step(record(step))
    assert len(file.getvalue().splitlines()) == 3


def test_a_second_stage_and_a_resumed_run_begin_anew() -> None:
    shown, file = plain()
    for step in (1, 2, 1, 2):
        shown.step(record(step, total=2, loss=float(step)))
    shown.step(record(7, total=7, loss=9.0))
    closing = [line.strip() for line in file.getvalue().splitlines() if "trained" in line]
    assert closing[0].startswith("trained 2 steps in ")
    assert closing[2].startswith("trained 1 step (7 to 7) in 0.5 s")
    assert [line.partition(":")[2].split(",")[0] for line in closing] == [" loss 1.000 → 2.000"] * 2 + [
        " loss 9.000 → 9.000"
    ]


def test_progress_leaves_a_line_only_where_it_was_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    shown, file = plain()
    with shown.progress("read", 5, "samples") as advance:
        advance(5)
    assert file.getvalue() == ""
    now = [0.0]
    monkeypatch.setattr(screen.time, "monotonic", lambda: now[0])
    with shown.progress("tokenise", 9000, "samples") as advance:
        now[0] = 16.0
        advance(4500)
    assert file.getvalue().strip() == "tokenise: 4,500 samples · 16 s"


def test_long_work_is_heard_of_in_a_pipe_even_while_nothing_is_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    shown, file = plain()
    monkeypatch.setattr(screen, "_PLAIN_SECONDS", 0.01)
    now = [0.0]
    monkeypatch.setattr(screen.time, "monotonic", lambda: now[0])

    def wait_for(text: str) -> None:
        until = time.perf_counter() + 5
        while text not in file.getvalue() and time.perf_counter() < until:
            time.sleep(0.005)
        assert text in file.getvalue()

    with shown.progress("measuring hold-out", 200, "samples") as advance:
        now[0] = 10.0
        wait_for("  measuring hold-out: 0/200 samples · 10 s\n")
        advance(50)
        wait_for("  measuring hold-out: 50/200 samples · 10 s · 5.000/s, 30 s left\n")
    silent = len(file.getvalue())
    time.sleep(0.05)
    assert len(file.getvalue()) == silent, "it speaks after the work is over"


def test_loading_is_said_only_where_it_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(screen, "_SLOW", 0.01)
    told, written = plain()
    with told.loading():
        time.sleep(0.2)
    assert written.getvalue() == "  loading torch and transformers …\n"
    monkeypatch.setattr(screen, "_SLOW", 60.0)
    quick, written = plain()
    with quick.loading():
        pass
    assert not written.getvalue()


def test_dropped_samples_that_never_became_tokens_are_not_shown_as_none() -> None:
    def row(dropped: int, unread: int) -> str:
        samples = SUMMARY["tokens"]["samples"] | {"dropped": 3, "dropped_unread": unread}
        tokens = SUMMARY["tokens"] | {"dropped": dropped, "samples": samples}
        shown, written = plain(140)
        shown.show_summary(SUMMARY | {"tokens": tokens}, Path("out"))
        lines = written.getvalue().splitlines()
        return next(" ".join(line.split()) for line in lines if line.strip().startswith("dropped"))

    assert row(0, 3) == "dropped – 3 samples, of which 3 never became tokens, so that theirs are not counted"
    assert row(120, 1).startswith("dropped 120 3 samples, of which 1 never became tokens")
    assert row(120, 0) == "dropped 120 12.0 % 3 samples"


def test_lines_are_shown_as_they_are_and_warnings_stand_out() -> None:
    shown, file = plain(width=40)
    shown.head("frisket 0.1.0 · train")
    shown.say("[bold]x[/bold] " + "y" * 60)
    shown.warn("the tokenizer has no template")
    assert file.getvalue().splitlines() == [
        "frisket 0.1.0 · train",
        "[bold]x[/bold] " + "y" * 60,
        "warning the tokenizer has no template",
    ]


@pytest.mark.parametrize("width", [80, 140])
def test_the_live_panel_shows_bar_curve_and_rates_within_its_width(width: int) -> None:
    paper = Console(file=io.StringIO(), width=width, color_system=None)
    shown = Screen(Console(file=io.StringIO(), width=width, force_terminal=True))
    with shown, shown.progress("evaluate", 600, "prompts") as advance:
        for step in range(990, 1010):
            shown.step(record(step, total=12_000, loss=2000.0 - step))
        advance(60)
        with paper.capture() as capture:
            paper.print(shown._render())
    text = capture.get()
    for part in (
        "training",
        "1,009/12,000 steps · 20,000 real tokens/s · 1 h 31 min left",
        "loss 991.0000",
        "█",
        "60/600",
    ):
        assert part in text
    assert "5,000 supervised tokens/s" in text
    assert len([line for line in text.splitlines() if line.strip()]) == 3


def test_the_live_display_ends_with_the_verb_even_after_an_error() -> None:
    shown = Screen(Console(file=io.StringIO(), width=80, force_terminal=True))
    shown.step(record(1))
    assert shown._live is not None
    with pytest.raises(KeyError), shown:
        raise KeyError
    assert shown._live is None


@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_the_final_screen_shows_everything_and_fits(width: int) -> None:
    shown, file = plain(width)
    shown.show_summary(SUMMARY, Path("out/demo"))
    text = file.getvalue()
    assert max(len(line) for line in text.splitlines()) <= width
    for part in (
        "3 of 4 shown", "Echo a b", "the arguments", "Sort b a", "wanted: a b", "Twice: g o", "g = 4",
        "wanted: g g o o",
        "1.2 %", "91.3 %", "88.9–93.4", "copy", "99.0 %", "3.410", "0.210",
        "bits/character", "1.920", "KL to the base", "0.021",
        "300", "30.0 %", "assistant 300", "7 samples", "800 computed + 100 shared",
        "10,412 real, 3,102 supervised, 9,900 computed", "2 min 31 s", "120,000 of 2,800,000 parameters moved",
        "seam passed", "out/demo/adapter", "out/demo/report.html", "frisket generate out/demo --chat",
    ):  # fmt: skip
        assert part in text, part
    words = {word for line in text.splitlines() for word in line.split()}
    assert {"bits/character", "88.9–93.4", "600"} <= words, "a word is broken"
    assert "Echo c" not in text
    assert "wanted: c" not in text


def test_too_few_samples_are_shown_without_an_interval() -> None:
    shown, file = plain(80)
    few = {"samples": 6, "units": {"kl": 4, "bits_per_character_prose": 6}}
    after = {"kl": 0.5, "bits_per_character_prose": 1.2, "bits_per_character_prose_interval": [1.1, 1.3]}
    one = {"samples": 1, "before": {"loss": 5.576}, "after": {"loss": 1.468}}
    shown.show_summary({"learning": {"hold-out": one}, "forgetting": {"default": few | {"after": after}}}, Path("o"))
    lines = [" ".join(line.split()) for line in file.getvalue().splitlines()]
    assert "hold-out loss 1 5.576 no interval 1.468 no interval" in lines
    assert "default KL to the base 4 – 0.500 no interval" in lines
    assert any("6 – 1.200 1.100–1.300" in line for line in lines)


@pytest.mark.parametrize(("width", "is_stacked"), [(60, True), (80, False)])
def test_a_table_that_would_break_words_puts_intervals_below(width: int, is_stacked: bool) -> None:
    shown, file = plain(width)
    side = {"bits_per_character_prose": 0.819, "bits_per_character_prose_interval": [0.726, 0.921]}
    shown.show_summary({"learning": {"a-long-named-set": {"samples": 38, "before": side, "after": side}}}, Path("o"))
    lines = file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    (first,) = [line for line in lines if "a-long-named-set" in line]
    assert ("0.726–0.921" in first) != is_stacked
    assert any("0.726–0.921" in line and "prose" in line for line in lines) == is_stacked


def test_a_run_without_answers_to_check_shows_those_of_its_samples() -> None:
    shown, file = plain()
    said = {"prompt": "Sort b a", "reference": "a b", "before": "class X", "after": "a, b"}
    shown.show_summary({"examples": [], "samples": {"prompts": 3, "examples": [said]}}, Path("o"))
    for part in ("Sort b a", "class X", "a, b", "wanted: a b", "1 of 3 shown, whatever they say; all: report.html"):
        assert part in file.getvalue()


def test_an_overfit_ends_with_its_verdict() -> None:
    shown, file = plain()
    shown.show_summary({"overfit": "3 samples learned to a loss of 0.049 in 80 steps"}, Path("o"))
    assert "  overfit  3 samples learned to a loss of 0.049 in 80 steps\n" in file.getvalue()


def test_of_a_resumed_run_this_part_and_the_whole_are_told_apart() -> None:
    shown, file = plain(200)
    resumed = {"step": 10, "steps": 5, "seconds": 2.5}
    seconds = {"total": 9.0, "training": 3.0, "before": 4.0, "steps": 7.5}
    rates = {"real_tokens_per_second": 100.0}
    shown.show_summary({"steps": 15, "rates": rates, "seconds": seconds, "resumed": resumed}, Path("o"))
    lines = [" ".join(line.split()) for line in file.getvalue().splitlines()]
    assert "tokens/s 100 real, over all 15 steps" in lines
    part = "4.0 s before the first step, 3.0 s training, with the evaluations between, 2.5 s in 5 steps"
    assert f"time 9.0 s since the resume at step 10 ({part}); all 15 steps 7.5 s" in lines


def test_a_sparse_summary_is_no_trouble() -> None:
    shown, file = plain()
    shown.show_summary({"next": "frisket view", "tokens": {}, "learning": {}}, Path("o"))
    assert file.getvalue().strip() == "next  frisket view"


def test_the_last_example_is_always_shown_and_groups_differ() -> None:
    many = [{"group": group, "prompt": str(n)} for n, group in enumerate("aaabbbu")]
    assert [example["prompt"] for example in final._chosen(many)] == ["0", "3", "6"]
    same = [{"group": "a", "prompt": str(n)} for n in range(5)]
    assert [example["prompt"] for example in final._chosen(same)] == ["0", "1", "4"]


def test_sparkline() -> None:
    assert sparkline([1.0], 8) == "▁"
    assert sparkline([2.0, 2.0], 8) == "▁▁"
    assert sparkline([float(n) for n in range(64)], 8) == "▁▂▃▄▅▆▇█"


def test_numbers_as_people_read_them() -> None:
    assert [words.figure(v) for v in (0.0, -0.5, 1234.5, float("nan"))] == ["0", "-0.500", "1,234", "nan"]
    assert words.shorten("  ", 5) == "(nothing)"
    assert words.shorten("abcdefgh", 5) == "abcde…"
    assert words.shorten("\n".join("abcdefghij"), 100, lines=2) == "a\nb…"
