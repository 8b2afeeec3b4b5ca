"""Fine-tune language models under four explicit masks.

``frisket.Recipe`` says what a run does, ``frisket.make_plan`` what it would cost, ``frisket.finetune`` does it, and
``frisket.show_masks`` shows what every token of it does.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from frisket.version import __version__

if TYPE_CHECKING:
    from frisket.python import finetune, make_plan, show_masks
    from frisket.recipe import Recipe, load_recipe

_HOMES = {
    "Recipe": "frisket.recipe",
    "load_recipe": "frisket.recipe",
    "finetune": "frisket.python",
    "make_plan": "frisket.python",
    "show_masks": "frisket.python",
}
__all__ = ["Recipe", "__version__", "finetune", "load_recipe", "make_plan", "show_masks"]


def __getattr__(name: str) -> Any:
    # Loaded on first use, so that `frisket --help` and `import frisket` cost nothing.
    if name not in _HOMES:
        raise AttributeError(f"module 'frisket' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
