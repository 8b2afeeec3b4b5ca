"""In Jupyter: the progress of a run as one block that renews itself, and the mask view as a value that shows itself."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import Any

from frisket.watch import StepRecord

_EVERY_SECONDS = 0.3
_LAST_LINES = 400
_WIDTH, _HEIGHT = 320, 60


class MaskView:
    """What every token does, as one self-contained page; shown where it is the value of a notebook's cell.

    Attributes:
        page: the HTML document.
    """

    def __init__(self, page: str, height: int = 720) -> None:
        self.page = page
        self._height = height

    def save(self, path: str | Path) -> Path:
        """Write the page to a file and return its path."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.page, encoding="utf-8")
        return path

    def _repr_html_(self) -> str:
        # A document of its own: neither its style sheet nor its script can touch the notebook's.
        return (
            f'<iframe srcdoc="{escape(self.page)}" sandbox="allow-scripts" title="frisket: what every token does" '
            f'style="width:100%;height:{self._height}px;border:1px solid #8884;border-radius:6px"></iframe>'
        )

    def __repr__(self) -> str:
        return f"<MaskView of {len(self.page):,} characters; save('view.html') writes it>"


def in_notebook() -> bool:
    """Whether this is the kernel of a notebook (Jupyter or Colab), which shows HTML."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return type(shell).__name__ in ("ZMQInteractiveShell", "Shell")


class Block:
    """A watcher that shows a run as one block of HTML: bar, loss, pace, and what was said.

    Args:
        show: puts HTML where the block stands.
    """

    def __init__(self, show: Callable[[str], None]) -> None:
        self._show = show
        self._lines: list[str] = []
        self._losses: list[float] = []
        self._steps: tuple[int, int] | None = None
        self._told = ""
        self._work: dict[str, tuple[int, int | None, str]] = {}
        self._drawn = 0.0

    def say(self, line: str) -> None:
        """Show one line."""
        self._lines.append(escape(line))
        self._draw()

    def warn(self, line: str) -> None:
        """Show one line that stands out."""
        self._lines.append(f"<b>warning</b> {escape(line)}")
        self._draw()

    @contextmanager
    def progress(self, label: str, total: int | None, unit: str) -> Iterator[Callable[[int], None]]:
        """Show a second bar while long work lasts."""

        def advance(more: int) -> None:
            self._work[label] = (self._work[label][0] + more, total, unit)
            self._draw()

        self._work[label] = (0, total, unit)
        try:
            yield advance
        finally:
            del self._work[label]
            self._draw()

    def step(self, record: StepRecord) -> None:
        """Show one optimizer step; a step that was shown before begins the curve anew."""
        if self._steps is None or record.step <= self._steps[0]:
            self._losses = []
        self._steps = (record.step, record.total_steps)
        self._losses.append(record.loss)
        self._told = (
            f"step {record.step:,} of {record.total_steps:,} · loss {record.loss:.4f} · rate {record.rate:.2e} · "
            f"{record.flat_tokens / max(record.seconds, 1e-9):,.0f} real tokens/s"
        )
        self._draw()

    def close(self) -> None:
        """Show the last state, however short the time since the one before."""
        self._show(self.html())

    def html(self) -> str:
        """The block as it is now."""
        parts = []
        if self._steps:
            parts.append(f"<div>{escape(self._told)}</div>{_bar(*self._steps)}{_curve(self._losses)}")
        for label, (done, total, unit) in self._work.items():
            of = f" of {total:,}" if total else ""
            parts.append(f"<div>{escape(label)}: {done:,}{of} {escape(unit)}</div>{_bar(done, total)}")
        lines = "\n".join(self._lines[-_LAST_LINES:])
        # Reversed columns begin at their end: the newest line is in sight.
        box = '<div style="max-height:22em;overflow:auto;display:flex;flex-direction:column-reverse;margin-top:6px">'
        pre = f'<pre style="white-space:pre-wrap;font-size:12px;margin:0">{lines}</pre>'
        return f'<div style="font-size:13px">{"".join(parts)}{box}{pre}</div></div>'

    def _draw(self) -> None:
        if time.monotonic() - self._drawn >= _EVERY_SECONDS:
            self._drawn = time.monotonic()
            self._show(self.html())


@contextmanager
def live_block() -> Iterator[Block]:
    """A block in the output of the cell that is running."""
    from IPython.display import HTML, display  # pyright: ignore[reportMissingImports]

    handle: Any = display(HTML(""), display_id=True)
    block = Block(lambda html: handle.update(HTML(html)))
    try:
        yield block
    finally:
        block.close()


def _bar(done: int, total: int | None) -> str:
    value = f' value="{done}" max="{total}"' if total else ""
    return f'<progress{value} style="width:100%;max-width:640px;display:block"></progress>'


def _curve(losses: Sequence[float]) -> str:
    """Loss over steps as a small line; at most one point a unit of width."""
    if len(losses) < 2:
        return ""
    shown = [losses[n * (len(losses) - 1) // (_WIDTH - 1)] for n in range(_WIDTH)] if len(losses) > _WIDTH else losses
    low, high = min(shown), max(shown)
    scale = (_HEIGHT - 4) / ((high - low) or 1.0)
    points = " ".join(
        f"{n * _WIDTH / (len(shown) - 1):.1f},{2 + (high - loss) * scale:.1f}" for n, loss in enumerate(shown)
    )
    return (
        f'<svg width="{_WIDTH}" height="{_HEIGHT}" role="img" aria-label="loss from {high:.3f} to {low:.3f}">'
        f'<polyline points="{points}" fill="none" stroke="#0b8fa8" stroke-width="1.8"/></svg>'
    )
