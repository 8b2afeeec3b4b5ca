"""One browser for all tests here, and a page that may do nothing it should not."""

import shutil
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from frisket.report.mask_data import RowView
from frisket.report.mask_view import mask_view

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """The system's Chromium, headless; without one all tests here are skipped."""
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        pytest.skip(f"none of {', '.join(PROGRAMS)} is in PATH: the mask view is not tested in a browser")
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        yield found
        found.close()


@pytest.fixture
def open_page(browser: Browser, tmp_path: Path) -> Iterator[Callable[..., Page]]:
    """Show rows in the browser. Afterwards: no error was logged, and nothing but the file itself was asked for."""
    heard: list[str] = []
    contexts = []

    def show(rows: Seq[RowView], *, scheme: str = "light", width: int = 1200, **named) -> Page:
        context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 900})
        contexts.append(context)
        page = context.new_page()
        path = tmp_path / f"page-{len(contexts)}.html"
        path.write_text(mask_view(rows, title="Rows", facts=[("policy", "assistant")], **named), encoding="utf-8")
        page.on("console", lambda message: heard.append(f"console {message.type}: {message.text}"))
        page.on("pageerror", lambda error: heard.append(f"error: {error}"))
        page.on("dialog", lambda dialog: heard.append(f"dialog: {dialog.message}"))
        page.on("request", lambda request: heard.append(request.url) if request.url != path.as_uri() else None)
        page.goto(path.as_uri())
        return page

    yield show
    for context in contexts:
        context.close()
    assert heard == []
