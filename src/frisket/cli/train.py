"""``frisket train``: fine-tune, and show what was learned."""

from pathlib import Path
from typing import Annotated

import typer

from frisket.cli.options import AsJson, Data, Model, Words, greet, load, split_words
from frisket.cli.screen import Screen


def command(
    words: Words = None,
    model: Model = None,
    data: Data = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write; default: out/NAME.", show_default=False)] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest complete checkpoint.")] = False,
    overfit: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Drive N samples below a loss of 0.05, to see that they can be learned."),
    ] = None,
    as_json: AsJson = False,
) -> dict:
    """Fine-tune a model.

    Examples:
      frisket train --model Qwen/Qwen3-0.6B --data chats.jsonl --out out/chats
      frisket train recipes/gsm8k.yaml adapt.rank=32
      frisket train out/chats --resume
    """
    with Screen.open(as_json) as screen:
        greet(screen, "train", words, model, data or ())
        recipe = load(words, model, data)
        place, _ = split_words(words)
        if out is None and resume and place is not None and Path(place).is_dir():
            out = Path(place)
        folder = out or Path("out") / (recipe.name or "run")
        from frisket import run

        try:
            summary = run.train(recipe, out=folder, resume=resume, overfit=overfit, watcher=screen)
        except KeyboardInterrupt as stop:
            hint = f"Go on with: frisket train {folder} --resume" if folder.exists() else "Nothing was left behind."
            raise KeyboardInterrupt(f"Stopped. {hint}") from stop
    if not as_json:
        screen.show_summary(summary, folder)
    return {**summary, "out": str(folder)}
