"""Write the instruction set: python -m lab.base.instructions. The skills of the base, and one it never saw, as chats.

Every skill is asked in several wordings, the same in training and evaluation; none is a wording of the base's texts.
What is asked never recurs: the evaluation draws from the exercises that are held out from all training, and of the
facts, which the base must know, the training file asks three fifths and the evaluation the rest.
"""

import json
import random
from pathlib import Path

from .world import FACT_KEYS, SKILLS, UNSEEN_SKILL, Exercise, draw, fact

OUT = Path("src/frisket/bundled/instructions")
SEED = 11
# The harder a skill carries over, the more samples; of the facts, all that training may ask, in every wording.
TRAIN_COUNTS = {
    "copy": 900,
    "reverse": 1400,
    "sort": 1200,
    "arithmetic": 3200,
    "lookup": 1600,
    "facts": 1000,
    "double": 1000,
}
EVAL_PER_SKILL = 100

ASKED = {
    "copy": (
        "Please repeat this exactly: {items}",
        "Say the same thing back to me: {items}",
        "Here is a list: {items}\nWrite that once more.",
        "Can you echo {items} for me?",
    ),
    "reverse": (
        "Please write this in the opposite direction: {items}",
        "Say these from last to first: {items}",
        "Here is a list: {items}\nTurn that around.",
        "Can you give me {items} backwards?",
    ),
    "sort": (
        "Please put this in alphabetical order: {items}",
        "Arrange these from a to z: {items}",
        "Here is a list: {items}\nBring that into order.",
        "Can you order {items} for me?",
    ),
    "arithmetic": (
        "Please work out {a} {sign} {b}",
        "How much is {a} {word} {b}?",
        "{a} {sign} {b}\nWhat does that make?",
        "Can you compute {a} {word} {b} for me?",
    ),
    "lookup": (
        "In the list {table} please find the row {key}",
        "Given {table} which row begins with {key}?",
        "Here is a list: {table}\nWhich of these has {key}?",
        "Can you tell me from {table} the row of {key}?",
    ),
    "facts": (
        "Please name the {attribute} of {town}",
        "Which {attribute} belongs to {town}?",
        "I am thinking of {town}.\nTell me its {attribute}.",
        "Can you tell me the {attribute} of {town}?",
        "About {town}: which {attribute}?",
    ),
    "double": (
        "Please write every letter twice: {items}",
        "Say each of these two times: {items}",
        "Here is a list: {items}\nDouble each letter of that.",
        "Can you give me two of each of {items}?",
    ),
}


def _sample(exercise: Exercise, wording: str) -> dict[str, object]:
    messages = [
        {"role": "user", "content": exercise.word(wording)},
        {"role": "assistant", "content": exercise.answer},
    ]
    return {"messages": messages, "skill": exercise.skill}


def _facts(rng: random.Random, *, training: bool) -> list[tuple[Exercise, str]]:
    """Pair every fact that may be asked with every wording, in random order."""
    asked = [exercise for exercise in (fact(*key) for key in FACT_KEYS) if exercise.asked_in_training == training]
    pairs = [(exercise, wording) for exercise in asked for wording in ASKED["facts"]]
    rng.shuffle(pairs)
    return pairs


def _drawn(skill: str, rng: random.Random, count: int, training: bool) -> list[tuple[Exercise, str]]:
    """Draw so many different exercises, each with one wording."""
    exercises: dict[Exercise, str] = {}
    while len(exercises) < count:
        exercises.setdefault(draw(skill, rng, held_out=not training), rng.choice(ASKED[skill]))
    return list(exercises.items())


def build(skills: tuple[str, ...], seed: int, *, training: bool) -> list[dict[str, object]]:
    """Build the training set or an evaluation set.

    Args:
        skills: What is asked.
        seed: Seed of the exercises and of their order.
        training: Draw from what training may ask, or from the rest.

    Returns:
        Samples with ``messages`` and ``skill``, every prompt once.
    """
    rng = random.Random(f"{seed} {training} {skills}")
    pairs = []
    for skill in skills:
        count = TRAIN_COUNTS[skill] if training else EVAL_PER_SKILL
        if skill == "facts":
            pairs += _facts(rng, training=training)[:count]
        else:
            pairs += _drawn(skill, rng, count, training)
    rng.shuffle(pairs)
    return [_sample(exercise, wording) for exercise, wording in pairs]


def main() -> None:
    """Write ``train.jsonl``, ``eval.jsonl`` (the taught skills) and ``eval-unseen.jsonl`` (the other)."""
    OUT.mkdir(parents=True, exist_ok=True)
    files = {
        "train": build((*SKILLS, UNSEEN_SKILL), SEED, training=True),
        "eval": build(SKILLS, SEED, training=False),
        "eval-unseen": build((UNSEEN_SKILL,), SEED, training=False),
    }
    for name, samples in files.items():
        lines = [json.dumps(sample, ensure_ascii=False) for sample in samples]
        (OUT / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
