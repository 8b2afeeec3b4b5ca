"""For whoever has a network: one model from the hub, checked from template to merge.

    make check-real MODEL=Qwen/Qwen3-0.6B

Template and provenance, logits against transformers, twenty LoRA steps on the bundled instructions, reload, merge.
"""

import sys
import tempfile
from pathlib import Path

from frisket.cli.screen import Screen
from frisket.recipe import Recipe
from frisket.run import export, make_plan, train


def main(model: str) -> None:
    """Run all checks; any refusal is printed and ends with exit code 1."""
    recipe = Recipe.model_validate(
        {
            "name": "check-real",
            "model": {"path": model},
            "data": [{"path": "bundled", "limit": 400}],
            "train": {"max_steps": 20, "step_tokens": 2048},
            "evaluate": {"every": 0, "forgetting": [{"prompts": 8, "answer_tokens": 16, "text_tokens": 4096}]},
        }
    )
    with Screen.open(False) as screen, tempfile.TemporaryDirectory() as scratch:
        for line in make_plan(recipe, watcher=screen).lines():
            screen.say(line)
        out = Path(scratch) / "run"
        summary = train(recipe, out=out, watcher=screen)
        export(out, to="merged", into=None, watcher=screen)
        for name, text in summary["checks"].items():
            screen.say(f"{name:12}{text}")


if __name__ == "__main__":
    main(sys.argv[1])
