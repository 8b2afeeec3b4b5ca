"""Loading a recipe stays light."""

import subprocess
import sys

SCRIPT = """
import sys
from frisket.recipe import load_recipe
load_recipe(None, ["adapt.method=peft", "adapt.peft_type=VERA"], data=["x"])
load_recipe(None, ["adapt.rank=8"], data=["x"])
print(sorted({"transformers", "peft", "datasets"} & set(sys.modules)))
"""


def test_loading_a_recipe_imports_neither_transformers_nor_peft() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
