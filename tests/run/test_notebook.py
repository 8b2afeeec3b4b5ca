"""Notebooks: the mask view is a document of its own, and a run shows its progress without being asked."""

import html
import json
import re
import sys
from types import ModuleType
from typing import Any

import pytest

import frisket
from frisket import notebook
from frisket.notebook import Block, MaskView
from frisket.watch import StepRecord

from .test_best import recipe
from .test_training import records


def step(number: int, loss: float, total: int = 4) -> StepRecord:
    return StepRecord(number, total, 0.5, loss, 10.0, 1e-4, 0.5, 100, 120, 40, 0.1)


class ZMQInteractiveShell:
    """The name of the shell in a Jupyter kernel."""


class FakeIPython(ModuleType):
    """What of IPython is used: the shell, and one display that is updated."""

    def __init__(self) -> None:
        super().__init__("IPython")
        self.shown: list[str] = []
        self.display_module = ModuleType("IPython.display")
        self.display_module.HTML = str  # pyright: ignore[reportAttributeAccessIssue]
        self.display_module.display = lambda value, display_id: self  # pyright: ignore[reportAttributeAccessIssue]

    def get_ipython(self) -> Any:
        return ZMQInteractiveShell()

    def update(self, value: str) -> None:
        self.shown.append(value)


@pytest.fixture
def ipython(monkeypatch) -> FakeIPython:
    fake = FakeIPython()
    monkeypatch.setitem(sys.modules, "IPython", fake)
    monkeypatch.setitem(sys.modules, "IPython.display", fake.display_module)
    return fake


def test_only_a_kernel_is_a_notebook(ipython, monkeypatch):
    assert notebook.in_notebook()
    monkeypatch.setattr(ipython, "get_ipython", lambda: None)
    assert not notebook.in_notebook()
    monkeypatch.delitem(sys.modules, "IPython")
    assert not notebook.in_notebook()


def test_the_page_stands_in_a_frame_and_comes_out_whole(tmp_path):
    page = '<!doctype html><p title="a&b">\'x\' <script>"</iframe>"</script>'
    view = MaskView(page)
    shown = view._repr_html_()
    (inner,) = re.findall(r'srcdoc="([^"]*)"', shown)
    assert html.unescape(inner) == page
    assert "<" not in inner
    assert 'sandbox="allow-scripts"' in shown
    assert view.save(tmp_path / "deep" / "view.html").read_text() == page
    assert "MaskView" in repr(view)


def test_masks_of_a_recipe_and_of_a_finished_run_are_the_same(small_model, tmp_path, ipython):
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records(6)))
    wanted = recipe(small_model, path, "off", max_steps=1)
    summary = frisket.finetune(wanted, out=tmp_path / "out")
    assert summary["steps"] == 1
    assert "step 1 of 1 · loss " in ipython.shown[-1]
    assert "checked    all 3 passed · seam: " in ipython.shown[-1]
    before, after = frisket.show_masks(wanted, samples=2), frisket.show_masks(tmp_path / "out", samples=2)
    assert "chats.jsonl:" in before.page
    assert before.page.count("chats.jsonl:") == after.page.count("chats.jsonl:")
    assert f"{path}:3" in frisket.show_masks(wanted, sample=f"{path}:3").page


def test_a_script_hears_warnings_on_stderr_and_nothing_else(small_model, tmp_path, capsys):
    rows = [*records(20), {"messages": []}]
    given = {"model": {"path": str(small_model)}, "evaluate": "off", "train": {"compute": "fp32"}}
    path = tmp_path / "c.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    frisket.make_plan({**given, "data": [{"path": str(path), "bad": "drop"}]})
    out, err = capsys.readouterr()
    assert not out
    assert "warning dropped 1 of 21 samples; " in err
    assert all(line.startswith("warning ") for line in err.splitlines())


def test_a_block_shows_bar_curve_work_and_lines():
    shown: list[str] = []
    block = Block(shown.append)
    block.say("data <x>")
    block.warn("careful")
    for number in (1, 2, 3):
        block.step(step(number, 4.0 - number))
    with block.progress("measuring", 8, "samples") as advance:
        advance(3)
        now = block.html()
    assert "step 3 of 4 · loss 1.0000" in now
    assert '<progress value="3" max="4"' in now
    assert "measuring: 3 of 8 samples" in now
    assert "data &lt;x&gt;\n<b>warning</b> careful" in now
    assert 'aria-label="loss from 3.000 to 1.000"' in now
    assert "measuring" not in block.html()
    assert len(shown) == 1  # drawn a few times a second, not at every call
    block.close()
    assert shown[-1] == block.html()


def test_a_second_run_begins_its_curve_anew_and_long_ones_stay_small():
    block = Block(lambda html: None)
    for number in range(1, 2000):
        block.step(step(number, float(number), 2000))
    assert len(block.html()) < 6000
    block.step(step(1, 5.0))
    block.step(step(2, 4.0))
    assert 'aria-label="loss from 5.000 to 4.000"' in block.html()


def test_a_failed_run_leaves_its_last_state(ipython):
    def fail() -> None:
        with notebook.live_block() as block:
            block.say("one")
            block.say("two")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert "one\ntwo" in ipython.shown[-1]
