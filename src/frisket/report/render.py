"""How figures become words, and templates become self-contained pages."""

import json
import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import jinja2
from markupsafe import Markup

from frisket.watch import duration

_TEMPLATES = Path(__file__).parent / "templates"


def count(number: float) -> str:
    """A whole number with thousands separators.

    >>> count(1234567)
    '1,234,567'
    """
    return f"{number:,.0f}"


def figure(number: float) -> str:
    """A measured number with four significant digits, never more than a reader needs.

    >>> figure(0.0123456), figure(1234.5), figure(2.0), figure(3.2e-7)
    ('0.01235', '1,234', '2', '3.2e-07')
    """
    if not math.isfinite(number):
        return str(number)
    if abs(number) >= 1000:
        return f"{number:,.0f}"
    return f"{number:.4g}"


def times(summary: Mapping) -> list[tuple[str, str]]:
    """The seconds of a summary as (name, time); of a resumed run it is said which part of the run each is of.

    >>> resumed = {"step": 10, "steps": 5, "seconds": 2.5}
    >>> times({"seconds": {"total": 9.0, "steps": 7.5}, "resumed": resumed, "steps": 15})
    [('total since the resume at step 10', '9.0 s'), ('all 15 steps', '7.5 s'), ('the 5 since the resume', '2.5 s')]
    """
    resumed = summary.get("resumed")
    if not resumed:
        return [(words(name), duration(value)) for name, value in summary["seconds"].items()]
    found = [
        (f"{words(name)} since the resume at step {count(resumed['step'])}", duration(value))
        for name, value in summary["seconds"].items()
        if name != "steps"
    ]
    found.append((f"all {count(summary['steps'])} steps", duration(summary["seconds"]["steps"])))
    return [*found, (f"the {count(resumed['steps'])} since the resume", duration(resumed["seconds"]))]


def words(name: str) -> str:
    """The name of a field as words: ``bits_per_character`` becomes ``bits per character``."""
    return name.replace("_", " ")


def plain(value: object) -> str:
    """One value of a JSON document as a short text."""
    if value is None:
        return "—"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return count(value)
    if isinstance(value, float):
        return figure(value)
    if isinstance(value, list | tuple):
        return ", ".join(plain(item) for item in value) or "—"
    return str(value)


def quoted(text: str, most: int) -> str:
    """A text as it is written in code, its middle left out where it is longer.

    >>> print(quoted("a\\n", 9), quoted("abcdefghij", 4))
    'a\\n' 'ab … ij'
    """
    return repr(text if len(text) <= most else f"{text[: most // 2]} … {text[-most // 2 :]}")


def facts(document: Mapping, prefix: str = "") -> list[tuple[str, str]]:
    """A nested JSON object as (name, text) pairs; inner names are joined with `` · ``."""
    found = []
    for name, value in document.items():
        label = f"{prefix}{words(str(name))}"
        found += facts(value, f"{label} · ") if isinstance(value, Mapping) else [(label, plain(value))]
    return found


def json_blob(value: object) -> Markup:
    """JSON that may stand inside a ``<script>`` element whatever texts are in it."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def page(template: str, **values: object) -> str:
    """Fill an HTML template; every value is escaped but ``Markup``.

    Args:
        template: file name in ``templates/``.
        values: what the template names; a name that is missing is an error.
    """
    return _environment(html=True).get_template(template).render(values)


def document(template: str, **values: object) -> str:
    """Fill a plain-text template, without escaping."""
    return _environment(html=False).get_template(template).render(values)


def asset(name: str) -> Markup:
    """Text of our own style sheet or script, to be put into a page as it is."""
    return Markup((_TEMPLATES / name).read_text(encoding="utf-8"))


@cache
def _environment(html: bool) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=html,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals["asset"] = asset
    environment.filters.update(count=count, figure=figure, duration=duration, words=words, plain=plain)
    return environment
