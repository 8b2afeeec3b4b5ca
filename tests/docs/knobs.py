"""Write docs/recipe.md: every knob of a recipe, from the settings that declare it.

python -m tests.docs.knobs
"""

from pathlib import Path

from frisket.explain import Knob, show
from frisket.recipe import knobs

PAGE = Path(__file__).parents[2] / "docs" / "recipe.md"
HEAD = """# Every knob

A recipe is a YAML file with these names; each is also an override on the command line, `name=value`, and a key of the
dict in Python. An unknown key is an error that names the nearest one. *Elsewhere* lists what other tools call it: such
a key is answered with the name that stands here. `frisket plan --schema` prints the same as JSON Schema.

Written by `python -m tests.docs.knobs` from the settings themselves; a test compares it.

```yaml
model: {path: Qwen/Qwen3-4B}
data: [{path: chats.jsonl, hold_out: 0.02}]
supervise: {policy: assistant}
adapt: {method: lora, rank: 16, where: all-linear}
train: {epochs: 1}
evaluate: {every: 0.25}
```
"""


def page() -> str:
    """The page."""
    parts = [HEAD]
    for section in dict.fromkeys(_section(knob) for knob in knobs()):
        parts += [f"\n## {section}\n", "| knob | type | default | what | elsewhere |", "|---|---|---|---|---|"]
        parts += [_row(knob) for knob in knobs() if _section(knob) == section]
    return "\n".join(parts) + "\n"


def _section(knob: Knob) -> str:
    return knob.name.split(".")[0] if "." in knob.name else "the run"


def _row(knob: Knob) -> str:
    is_section = "mapping" in knob.type
    default = "" if knob.default is None or is_section else f"`{show(knob.default)}`"
    of = f" ({', '.join(knob.methods)})" if knob.methods else ""
    was = ", ".join(f"`{name}`" for name in knob.was)
    cells = [f"`{knob.name}`", knob.type, default, knob.help + of, was]
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
