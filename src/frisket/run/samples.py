"""Answers to the same few prompts before, during and after training: what a person looks at beside the loss."""

import json
from collections.abc import Sequence as Seq
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from frisket.data.chat import ANSWER_ROLES
from frisket.evaluate.losses import Instruments
from frisket.evaluate.settings import EvaluateSettings
from frisket.generate.sample import generate
from frisket.generate.settings import GenerateSettings
from frisket.hf.forward import Model
from frisket.run.folder import read_lines
from frisket.train.loop import keep_records
from frisket.types import Provenance, Sequence

SAMPLES = "samples.jsonl"
_EXAMPLES = 3
_ASKED = (Provenance.USER, Provenance.TOOL_RESULT)


@dataclass(frozen=True)
class Asked:
    """One prompt that is answered again and again.

    Attributes:
        id: of the sample it comes from.
        ids: tokens after which the answer begins.
        prompt: the question in them, for showing.
        reference: the sample's own answer.
    """

    id: str
    ids: list[int]
    prompt: str
    reference: str


@dataclass(frozen=True)
class Sample:
    """A line of ``samples.jsonl``."""

    step: int
    id: str
    prompt: str
    answer: str
    reference: str
    tokens: int


def choose(
    candidates: Seq[Sequence], tokenizer: Any, settings: EvaluateSettings, context: int | None
) -> tuple[Asked, ...]:
    """The first samples of a set that can be asked: a fixed choice, not a flattering one.

    Args:
        candidates: tokens of the set's samples, in its order.
        tokenizer: of the model.
        settings: how many, and how long an answer may be.
        context: longest sequence of the model, or None.
    """
    chosen: list[Asked] = []
    for sequence in candidates:
        if len(chosen) == settings.samples:
            break
        asked = _asked(sequence, tokenizer)
        if asked is not None and (context is None or len(asked.ids) + settings.sample_tokens <= context):
            chosen.append(asked)
    return tuple(chosen)


def _asked(sequence: Sequence, tokenizer: Any) -> Asked | None:
    """The last answer of a sample and what comes before it; of raw text its two halves, the first at most 64 tokens."""
    is_answer = np.isin(sequence.roles, ANSWER_ROLES)
    if is_answer.any():
        last = sequence.turns[is_answer].max()
        places = np.flatnonzero(is_answer & (sequence.turns == last))
        begin, answer = int(places[0]), sequence.input_ids[places]
    else:
        begin = min(64, len(sequence) // 2)
        answer = sequence.input_ids[begin : begin + 64]
    if not begin:
        return None
    is_question = np.isin(sequence.roles[:begin], _ASKED)
    question = sequence.input_ids[:begin]
    if is_question.any():
        turns = sequence.turns[:begin]
        question = question[is_question & (turns == turns[is_question].max())]
    shown = [tokenizer.decode(ids.tolist(), skip_special_tokens=True).strip() for ids in (question, answer)]
    return Asked(sequence.sample_id, sequence.input_ids[:begin].tolist(), *shown)


class Samples:
    """Answers the prompts and appends them to ``OUT/samples.jsonl``; a resumed run keeps what it had by then.

    Decoding is greedy, so no random number is drawn, and nothing is merged: training goes on as without it.
    """

    def __init__(self, asked: Seq[Asked], model: Model, instruments: Instruments, tokens: int, out: Path, done: int):
        self._asked, self._model, self._instruments = asked, model, instruments
        self._settings = GenerateSettings(max_new_tokens=tokens)
        self._path = out / SAMPLES
        keep_records(self._path, done)

    def write(self, step: int) -> list[dict]:
        """Answer now, unless this step's answers are there already; returns the new lines."""
        if not self._asked or any(entry["step"] == step for entry in read_lines(self._path)):
            return []
        with self._instruments.watcher.progress("answering samples", len(self._asked), "prompts") as progress:
            answers = generate(
                self._model,
                [asked.ids for asked in self._asked],
                stop_ids=self._instruments.stop_ids,
                pad_id=self._instruments.pad_id,
                settings=self._settings,
                batch_tokens=self._instruments.batch_tokens,
                progress=progress,
            )
        decode = self._instruments.tokenizer.decode
        lines = [
            asdict(Sample(step, a.id, a.prompt, decode(ids, skip_special_tokens=True), a.reference, len(ids)))
            for a, ids in zip(self._asked, answers, strict=True)
        ]
        with self._path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        return lines

    def summary(self, step: int) -> dict[str, Any]:
        """What ``summary.json`` holds: how many prompts and moments, their tokens, and the first answers themselves.

        Args:
            step: whose weights are the result.
        """
        found = read_lines(self._path)
        if not found:
            return {}
        answers = {(entry["step"], entry["id"]): entry["answer"] for entry in found}
        told = {
            "prompts": len(self._asked),
            "moments": len({entry["step"] for entry in found}),
            "tokens": sum(entry["tokens"] for entry in found),
            "examples": [
                {"prompt": a.prompt, "reference": a.reference, "before": answers[0, a.id], "after": answers[step, a.id]}
                for a in self._asked[:_EXAMPLES]
                if (0, a.id) in answers and (step, a.id) in answers
            ],
        }
        return {"samples": told}
