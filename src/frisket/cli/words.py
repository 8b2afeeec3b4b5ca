"""Numbers as people read them."""

import math


def figure(value: float) -> str:
    """Write a number in about three digits.

    >>> [figure(v) for v in (0, 0.00123, 0.82, 12.34, 8412.3)]
    ['0', '1.23e-03', '0.820', '12.3', '8,412']
    """
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    size = abs(value)
    if size < 0.01:
        return f"{value:.2e}"
    return f"{value:.3f}" if size < 10 else f"{value:,.1f}" if size < 100 else f"{value:,.0f}"


def percent(share: float) -> str:
    """Write a share: ``91.3 %``."""
    return f"{100 * share:.1f} %"


def shorten(text: str, limit: int, lines: int = 8) -> str:
    """Cut a text to so many characters and lines and say so with an ellipsis; empty text is named."""
    text = text.strip()
    if not text:
        return "(nothing)"
    short = "\n".join(text[:limit].splitlines()[:lines]).rstrip()
    return text if short == text else f"{short}…"
