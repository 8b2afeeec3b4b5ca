"""The synthetic world: exercises with one right answer, as pure functions of a random generator.

An exercise is a skill, the slots that word it and its answer. The base model reads exercises as *plain text* in the
wordings of ``PLAIN``; the instruction set asks the same exercises in other words (``instructions.py``). One exercise in
twenty is held out from all training text, by a hash of its slots, so that measuring needs no list.
"""

import random
import zlib
from dataclasses import dataclass

SKILLS = ("copy", "reverse", "sort", "arithmetic", "lookup", "facts")
UNSEEN_SKILL = "double"

LETTERS = "abcdefghijklmnopqrstuvwxyz"
HELD_OUT_SHARE = 20
ATTRIBUTES = ("river", "ruler", "dish", "craft", "animal")
TOWN_COUNT = 60
WORLD_SEED = 1803

_TOWN_HEADS = """
    bal cor dra el fen gar hol ist jor kel lum mor nar ost pel quin rav sel tor ul ven wyr yar zel
"""
_TOWN_TAILS = "mora dale vik holm grad stead ford una"
_VALUES = {
    "river": "Tarn Ossel Ilva Brune Kessa Merrow Dwina Sarre Olmet Rusk Vela Narrow Istra Hollin Yarra Quell",
    "ruler": "Odra Benno Calla Dorrin Esme Fulk Greta Hamo Ivo Jarla Kuno Lisbet Matho Nelda Orson Petra",
    "dish": "soup pie bread stew dumplings porridge cake noodles beans cheese pancakes fish rice eggs plums salad",
    "craft": "glass rope paper bells clocks boats carpets pottery lace lamps drums shoes candles maps knives hats",
    "animal": "fox owl bear hare swan wolf crow deer goat otter horse eagle bull lynx seal cat",
}

# What stands behind the bar is the completion.
PLAIN = {
    "copy": (
        "copy: {items} =>| {answer}",
        "Copy the letters {items}\nAnswer:| {answer}",
        "copy {items}\n=>\n|{answer}",
    ),
    "reverse": (
        "reverse: {items} =>| {answer}",
        "Reverse the letters {items}\nAnswer:| {answer}",
        "reverse {items}\n=>\n|{answer}",
    ),
    "sort": (
        "sort: {items} =>| {answer}",
        "Sort the letters {items}\nAnswer:| {answer}",
        "sort {items}\n=>\n|{answer}",
    ),
    "arithmetic": (
        "{a} {sign} {b} =| {answer}",
        "{a} {word} {b}\nAnswer:| {answer}",
        "{a} {sign} {b}\n=>\n|{answer}",
    ),
    "lookup": (
        "table: {table} ; {key} =>| {answer}",
        "table: {table} ; {key}=|{answer}",
        "Table {table} row {key}\nAnswer:| {answer}",
        "table {table} ; {key}\n=>\n|{answer}",
    ),
    "facts": (
        "{attribute} of {town} =>| {answer}",
        "What is the {attribute} of {town}\nAnswer:| {answer}",
        "{attribute} of {town}\n=>\n|{answer}",
    ),
}

STATEMENTS = {
    "river": ("{town} lies on the river {value}.", "The river {value} runs through {town}."),
    "ruler": ("{town} is ruled by {value}.", "The people of {town} obey {value}."),
    "dish": ("In {town} they eat {value}.", "The cooks of {town} are proud of their {value}."),
    "craft": ("{town} is known for its {value}.", "The workshops of {town} make {value}."),
    "animal": ("The flag of {town} shows a {value}.", "The animal on the arms of {town} is the {value}."),
}


@dataclass(frozen=True)
class Lesson:
    """What the documents of a part of the training practise.

    Attributes:
        shares: How often a document begins with each skill.
        small: How often an exercise in arithmetic has a number of one digit.
        drills: How often a document that begins with a look-up asks for all rows of one table.
        rows: A table reads k47 b12 and a look-up answers with the row. Otherwise k=47 b=12, answered with the number
            alone: this model did not learn that in 1,400 steps, and the other within 200.
        real: Share of the tokens that are real prose and code.
    """

    shares: dict[str, float]
    small: float
    drills: float
    rows: bool
    real: float


# The later lessons practise what the earlier ones leave behind.
LESSONS = (
    Lesson(
        {"copy": 0.08, "reverse": 0.10, "sort": 0.12, "arithmetic": 0.28, "lookup": 0.17, "facts": 0.25},
        small=0.0,
        drills=0.0,
        rows=False,
        real=0.5,
    ),
    Lesson(
        {"copy": 0.04, "reverse": 0.06, "sort": 0.08, "arithmetic": 0.43, "lookup": 0.28, "facts": 0.11},
        small=0.6,
        drills=0.0,
        rows=False,
        real=0.3,
    ),
    Lesson(
        {"copy": 0.03, "reverse": 0.06, "sort": 0.06, "arithmetic": 0.42, "lookup": 0.35, "facts": 0.08},
        small=0.5,
        drills=0.7,
        rows=False,
        real=0.2,
    ),
    Lesson(
        {"copy": 0.04, "reverse": 0.07, "sort": 0.07, "arithmetic": 0.45, "lookup": 0.29, "facts": 0.08},
        small=0.5,
        drills=0.5,
        rows=True,
        real=0.3,
    ),
)


@dataclass(frozen=True)
class Exercise:
    """One question with one right answer.

    Attributes:
        skill: One of ``SKILLS`` or ``UNSEEN_SKILL``.
        slots: The words that fill a wording, as sorted (name, text) pairs, so that an exercise can be hashed.
        answer: The only right answer.
    """

    skill: str
    slots: tuple[tuple[str, str], ...]
    answer: str

    def word(self, wording: str) -> str:
        """Fill a wording with the slots."""
        return wording.format(**dict(self.slots))

    @property
    def held_out(self) -> bool:
        """Whether this exercise is kept from every training text (a fact never is: it could not be known)."""
        return self.skill != "facts" and _hash(f"{self.skill}{self.slots}") % HELD_OUT_SHARE == 0

    @property
    def asked_in_training(self) -> bool:
        """Whether the instruction set may ask this exercise in training; the others are for its evaluation."""
        if self.skill == "facts":
            return _hash(str(self.slots)) % 5 >= 2
        return not self.held_out


def _hash(text: str) -> int:
    return zlib.crc32(text.encode())


def _exercise(skill: str, answer: str, **slots: str) -> Exercise:
    return Exercise(skill, tuple(sorted(slots.items())), answer)


def _letters(rng: random.Random, low: int, high: int) -> list[str]:
    return rng.sample(LETTERS, rng.randint(low, high))


def _on_letters(skill: str, rng: random.Random) -> Exercise:
    items = _letters(rng, 3, 5 if skill == UNSEEN_SKILL else 7)
    answers = {
        "copy": items,
        "reverse": items[::-1],
        "sort": sorted(items),
        "double": [letter for letter in items for _ in range(2)],
    }
    return _exercise(skill, " ".join(answers[skill]), items=" ".join(items))


def _arithmetic(rng: random.Random, small: float) -> Exercise:
    if small and rng.random() < small:
        a, b = rng.randint(1, 99), rng.randint(1, 9)
    else:
        a, b = rng.randint(10, 99), rng.randint(10, 99)
    if rng.random() < 0.5:
        return _exercise("arithmetic", str(a + b), a=str(a), b=str(b), sign="+", word="plus")
    a, b = max(a, b), min(a, b)
    return _exercise("arithmetic", str(a - b), a=str(a), b=str(b), sign="-", word="minus")


def _table(rng: random.Random, lesson: Lesson) -> tuple[list[str], str, list[str]]:
    """Draw a table and return its keys, its text and the answers in the order of the keys."""
    values = {key: str(rng.randint(10, 99)) for key in _letters(rng, 3, 6)}
    rows = [f"{key}{'' if lesson.rows else '='}{value}" for key, value in values.items()]
    return list(values), " ".join(rows), rows if lesson.rows else list(values.values())


def _lookups(rng: random.Random, lesson: Lesson) -> list[Exercise]:
    """Draw a table and ask for all its rows, in random order."""
    keys, table, answers = _table(rng, lesson)
    known = dict(zip(keys, answers, strict=True))
    return [_exercise("lookup", known[key], table=table, key=key) for key in rng.sample(keys, len(keys))]


def _lookup(rng: random.Random, lesson: Lesson) -> Exercise:
    keys, table, answers = _table(rng, lesson)
    key = rng.choice(keys)
    return _exercise("lookup", answers[keys.index(key)], table=table, key=key)


def facts() -> dict[tuple[str, str], str]:
    """Return the invented world: (town, attribute) to value, always the same."""
    rng = random.Random(WORLD_SEED)
    names = [(head + tail).capitalize() for head in _TOWN_HEADS.split() for tail in _TOWN_TAILS.split()]
    towns = sorted(rng.sample(names, TOWN_COUNT))
    return {(town, attribute): rng.choice(_VALUES[attribute].split()) for town in towns for attribute in ATTRIBUTES}


FACTS = facts()
FACT_KEYS = tuple(FACTS)
TOWNS = tuple(dict.fromkeys(town for town, _ in FACT_KEYS))


def fact(town: str, attribute: str) -> Exercise:
    """Return the exercise that asks one fact."""
    return _exercise("facts", FACTS[town, attribute], town=town, attribute=attribute)


def draw(skill: str, rng: random.Random, *, held_out: bool = False, lesson: Lesson = LESSONS[-1]) -> Exercise:
    """Draw an exercise of a skill, from those held out or from the rest.

    Args:
        skill: One of ``SKILLS`` or ``UNSEEN_SKILL``.
        rng: The source of all randomness.
        held_out: Draw from the held-out share; without effect on facts.
        lesson: Settles the size of numbers and the look of tables.

    Returns:
        The exercise.
    """
    if skill == "facts":
        return fact(*rng.choice(FACT_KEYS))
    while True:
        if skill == "arithmetic":
            exercise = _arithmetic(rng, lesson.small)
        elif skill == "lookup":
            exercise = _lookup(rng, lesson)
        else:
            exercise = _on_letters(skill, rng)
        if exercise.held_out == held_out:
            return exercise


def plain(exercise: Exercise, wording: str) -> tuple[str, str]:
    """Word an exercise as plain text and return the prompt and the completion that belongs right after it."""
    prompt, _, completion = wording.format(answer=exercise.answer, **dict(exercise.slots)).partition("|")
    return prompt, completion


def _portrait(rng: random.Random) -> str:
    """Describe one town, or one attribute of several towns, in sentences."""
    if rng.random() < 0.6:
        town = rng.choice(TOWNS)
        keys = [(town, attribute) for attribute in rng.sample(ATTRIBUTES, rng.randint(2, len(ATTRIBUTES)))]
    else:
        keys = rng.sample(FACT_KEYS, rng.randint(2, 5))
    return " ".join(
        rng.choice(STATEMENTS[attribute]).format(town=town, value=FACTS[town, attribute]) for town, attribute in keys
    )


def _drill(rng: random.Random, lesson: Lesson) -> str:
    """Write a table once and look up all its rows: many questions for few tokens."""
    exercises = _lookups(rng, lesson)
    while any(exercise.held_out for exercise in exercises):
        exercises = _lookups(rng, lesson)
    wording = rng.choice((" ; ", " ; {key} => ", " ; {key}=") if lesson.rows else (" ; {key}=", " ; {key} => "))
    return exercises[0].word("table: {table}") + "".join(ex.word(wording) + ex.answer for ex in exercises)


def document(rng: random.Random, lesson: Lesson = LESSONS[0]) -> str:
    """Write one training document: a portrait, or one to six exercises of one skill or of several."""
    shares = list(lesson.shares.values())
    skill = rng.choices(SKILLS, shares)[0]
    if skill == "facts" and rng.random() < 0.4:
        return _portrait(rng)
    if skill == "lookup" and lesson.drills and rng.random() < lesson.drills:
        return _drill(rng, lesson)
    count = 1 if rng.random() < 0.5 else rng.randint(2, 6)
    skills = [skill] * count if rng.random() < 0.5 else [skill, *rng.choices(SKILLS, shares, k=count - 1)]
    exercises = (draw(skill, rng, lesson=lesson) for skill in skills)
    return "\n".join("".join(plain(exercise, rng.choice(PLAIN[exercise.skill]))) for exercise in exercises)
