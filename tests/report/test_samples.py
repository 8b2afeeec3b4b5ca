"""Answers over time: which steps are shown, what is marked, and that texts stay texts."""

from hypothesis import given
from hypothesis import strategies as st

from frisket.report.samples import MOST_COLUMNS, changes, columns, samples_html


def line(step: int, answer: str, name: str = "a") -> dict:
    return {
        "step": step,
        "id": name,
        "prompt": f"prompt {name}",
        "answer": answer,
        "reference": "it is ink",
        "tokens": 3,
    }


def test_a_row_a_prompt_and_a_column_a_step(read):
    lines = [
        line(0, ""),
        line(0, "x", "b"),
        line(9, "it was"),
        line(9, "x", "b"),
        line(20, "it is ink"),
        line(20, "y", "b"),
    ]
    outline = read(samples_html(lines, {"step": 9}))
    head, first, second = [[" ".join(cell.split()) for cell in row] for row in outline.cells]
    assert head == ["prompt and reference", "before", "step 9 best", "step 20"]
    assert first == ["prompt ait is ink", "(empty)", "it was", "it is ink✓ equals the reference"]
    assert second == ["prompt bit is ink", "x", "as before", "y"]
    assert (outline.broken, outline.open) == ([], [])


def test_what_is_new_is_marked(read):
    html = str(samples_html([line(0, "it was ink"), line(5, "it is ink")]))
    assert "it <mark>is</mark> ink" in html
    assert html.count("<mark>") == 1


@given(st.text(max_size=30), st.text(max_size=30))
def test_the_parts_are_the_whole_answer(before, after):
    parts = changes(before, after)
    assert "".join(text for text, _ in parts) == after
    assert all(not is_new for _, is_new in changes(after, after))


@given(st.sets(st.integers(0, 999), min_size=1, max_size=60), st.integers(0, 999))
def test_the_first_the_last_and_the_best_are_always_shown(steps, best):
    steps = sorted(steps)
    shown = columns(steps, best)
    assert {steps[0], steps[-1]} <= set(shown) <= set(steps)
    assert best in shown or best not in steps
    assert len(shown) <= MOST_COLUMNS
    assert len(shown) == len(steps) or len(shown) >= MOST_COLUMNS - 1


def test_steps_that_are_left_out_are_counted(read):
    text = read(samples_html([line(step, str(step)) for step in range(20)])).text
    assert f"in samples.jsonl: {20 - MOST_COLUMNS} more" in text


def test_texts_cannot_become_markup(read):
    outline = read(samples_html([line(0, "<script>x</script>"), line(1, "<b>y</b>")]))
    assert "script" not in outline.tags()
    assert "<b>" in outline.text


def test_nothing_gives_nothing():
    assert samples_html([]) == ""
