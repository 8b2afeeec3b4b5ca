"""From the file of another tool to a recipe: every key gets an answer, the recipe grows from the answers."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frisket.errors import ConfigError, UnsupportedError, gather, nearest
from frisket.migrate.convert import BadValueError, OtherJobError
from frisket.migrate.read import read_file, tool_of
from frisket.migrate.table import NOTHING, OUTCOMES, Answer, Draft, Tool, is_off, leaves, shown


@dataclass(frozen=True)
class Migration:
    """What became of one file.

    Attributes:
        tool: whose file it is.
        answers: key of the file (``datasets[0].type``) → answer, in the file's order; every key is there.
        assumed: what the tool does where the file is silent, and frisket would do otherwise; answered alike.
        knobs: dotted knob → value: the recipe.
        comments: dotted knob → comment.
        checks: what a person should look at before training.
        flags: words for the command line of ``frisket train``.
    """

    file: Path
    tool: Tool
    answers: Mapping[str, Answer]
    assumed: Mapping[str, Answer]
    knobs: Mapping[str, Any]
    comments: Mapping[str, str]
    checks: tuple[str, ...]
    flags: Mapping[str, str]

    @property
    def counts(self) -> dict[str, int]:
        """Keys of the file by outcome."""
        found = Counter(answer.outcome for answer in self.answers.values())
        return {outcome: found[outcome] for outcome in OUTCOMES}

    @property
    def lost(self) -> dict[str, str]:
        """Keys that ask for what the recipe does not do, and why: those not supported, then those unknown."""
        wanted = ("not supported", "unknown")
        return {key: a.text for name in wanted for key, a in self.answers.items() if a.outcome == name}

    @property
    def unknown(self) -> list[str]:
        """Keys that no table has."""
        return [key for key, answer in self.answers.items() if answer.outcome == "unknown"]


def translate(file: Path, named: str | None = None) -> Migration:
    """Read the configuration of another tool.

    Args:
        named: the tool; None: it is found by the keys.

    Raises:
        ConfigError: the file cannot be read, its tool is not certain, or values do not fit their keys (gathered).
        UnsupportedError: the file is for a job that frisket does not do.
    """
    given = read_file(file)
    tool = tool_of(file, given.keys, named or given.tool)
    draft = Draft(given.keys, file.parent)
    values = dict(leaves(given.keys))
    silent = {key: value for key, value in tool.defaults.items() if _is_silent(tool, given.keys, values, key)}
    _refuse_other_jobs(file, tool, values)
    found = _converted(file, tool, draft, {**values, **silent})
    for key in given.twice:
        draft.check(f"{key} is given twice in {file.name}; as the tool does, the last one is taken.")
    if not draft.sources():
        draft.check("the file names no data: frisket train … --data chats.jsonl")
    elif "hold_out" not in draft.shared:
        draft.check(
            f"data.0.hold_out: {tool.title} trains on every sample; frisket holds out 2 % (8 to 200) to measure "
            "what is learnt. As before: data.0.hold_out=0"
        )
    if "model.path" not in draft.knobs:
        draft.check("the file names no model: frisket train … --model Qwen/Qwen3-0.6B")
    assumed = {key: found[key] for key in silent if found[key].outcome != "not needed"}
    answers = {key: found[key] if key not in silent else _null(key, value) for key, value in values.items()}
    knobs = {**draft.knobs, **_shared(draft)}
    comments = {**draft.comments, **_assumed_comments(tool, assumed, draft)}
    if draft.sources() == 1:
        answers, assumed = _of_one_source(answers), _of_one_source(assumed)
    return Migration(file, tool, answers, assumed, knobs, comments, tuple(draft.checks), draft.flags)


def _of_one_source(answers: Mapping[str, Answer]) -> dict[str, Answer]:
    return {key: answer._replace(text=answer.text.replace("data.N.", "data.0.")) for key, answer in answers.items()}


def _is_silent(tool: Tool, given: Mapping[str, Any], values: Mapping[str, Any], key: str) -> bool:
    """Whether a file leaves a key to the tool's default: it is missing, or null where null means just that."""
    if key in values:
        return values[key] is None and key not in tool.null_says
    return key not in given and tool.older_names.get(key) not in values


def _converted(file: Path, tool: Tool, draft: Draft, values: Mapping[str, Any]) -> dict[str, Answer]:
    """Answers in the order of the table: what others build on stands first there."""
    order = {name: place for place, name in enumerate(tool.rows)}
    names = {key: tool.row_name(key) for key in values}
    found, problems = {}, []
    for key in sorted(values, key=lambda key: order.get(names[key] or "", len(order))):
        try:
            found[key] = _answer(tool, draft, key, values[key])
        except BadValueError as error:
            problems.append(f"{key} {error}")
        except OtherJobError as refusal:
            raise _refusal(file, refusal.place, refusal.job) from None
    if len(problems) == 1:
        raise ConfigError(f"{file}: {problems[0]}.\nMend it in the file.")
    if problems:
        raise ConfigError(gather(problems, f"{file}: {len(problems)} values do not fit", "Mend them in the file."))
    return found


def _answer(tool: Tool, draft: Draft, key: str, value: Any) -> Answer:
    row = tool.row(key)
    if row is None:
        near = nearest(key, tool.rows)
        meant = f"; a slip of {near}? Then mend it" if near else "; what it asks for is not in the recipe"
        return Answer("unknown", f"unknown to this version of frisket{meant}")
    if value is None and key not in tool.null_says:
        return _null(key, value)
    if row.convert is not None:
        before = draft.settings()
        return _with_all(draft, before, row.convert(draft, key, value))
    if row.outcome == "not supported" and is_off(value):
        return Answer("default", f"{shown(value)}: off in the file, and here")
    return Answer(row.outcome, row.text)


def _with_all(draft: Draft, before: Mapping[str, Any], answer: Answer) -> Answer:
    """The answer with every knob that its conversion set: a key may decide several."""
    unsaid = {
        knob: value
        for knob, value in draft.settings().items()
        if knob not in answer.text and (knob not in before or before[knob] != value)
    }
    also = []
    for knob, value in unsaid.items():
        comment = draft.comments.get(knob.replace(".N.", ".0."))
        also.append(f"{knob} = {shown(value)}" + (f" ({comment})" if comment else ""))
    return answer._replace(text="; ".join([answer.text, *also]))


def _null(key: str, value: Any) -> Answer:
    return NOTHING if value is None else Answer("default", shown(value))


def _refuse_other_jobs(file: Path, tool: Tool, values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        row = tool.row(key)
        if row is not None and row.refused and not is_off(value):
            raise _refusal(file, f"{key}: {shown(value)}", row.text)


def _refusal(file: Path, place: str, job: str) -> UnsupportedError:
    return UnsupportedError(
        f"{file}: `{place}` asks for {job}, which frisket does not do.\n"
        "It does supervised fine-tuning and continued pre-training of text models; no recipe was written."
    )


def _shared(draft: Draft) -> dict[str, Any]:
    knobs = {}
    for index in range(draft.sources()):
        for name, value in draft.shared.items():
            if f"data.{index}.{name}" not in draft.knobs:
                knobs[f"data.{index}.{name}"] = value
    return knobs


def _assumed_comments(tool: Tool, assumed: Mapping[str, Answer], draft: Draft) -> dict[str, str]:
    """Beside a knob that the file says nothing of: whose default it is."""
    found = {}
    for key, answer in assumed.items():
        knob = answer.text.partition(" = ")[0].replace(".N.", ".0.")
        if answer.outcome == "mapped" and knob not in draft.comments:
            found[knob] = f"{tool.title}'s default for {key}"
    return found
