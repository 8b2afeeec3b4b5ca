"""Where frisket keeps what is slow to make again."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """``$FRISKET_CACHE``, or frisket's part of the user's cache folder."""
    if os.environ.get("FRISKET_CACHE"):
        return Path(os.environ["FRISKET_CACHE"]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "frisket"
