"""Which tokens teach on real files: ledgers, what each policy teaches, and spans that were worked out by hand.

    python benchmarks/masks.py FOLDER [--file codealpaca.json]

FOLDER holds the files named in SOURCES; none of them comes with frisket, and no text of theirs is kept here. Three
things are looked at with the bundled tokenizer and template (no weights are read):

1. The ledger of each file, read whole, truncated, and with long samples dropped: both identities are added up here
   from the single counts, and the same tokens must have been read each time, whatever became of them.
2. What each policy teaches, by provenance, and the constant text that was found: provenance, side, tokens, share.
3. Five samples a file against `expected_masks.json`. Its spans are [message, start, end]: characters of the message's
   text as the file has it; [message, "tool_call"] is a whole call. Message 0 is the first of `conversations` (`chosen`
   follows the last), or the prompt; then the answer is message 1.

How the spans were worked out, from the records alone (a text editor and `len` are enough):

- `assistant`: every `gpt`, `function_call`, `chosen`, `output`, `answer`, whole. `completion`: those after the last
  `human`. `last-turn`: the last of them. `instructions`: every message, whole. `all`: every message, and what the
  template writes between them too.
- A prompt of Alpaca under `chat` is instruction, two newlines, input. Under `alpaca` it is the header published in
  stanford_alpaca's train.py. Up to the instruction that has 176 characters with an input and 124 without; between
  instruction and input 13; `\\n\\n### Response:` has 15.
- `boilerplate`: under `alpaca` all but the first 176 or 124 and the last 15 characters of a prompt: every message has
  them, and no beginning of instructions is shared by a fifth of a file (at most `Write a`, 16 %). Of the 80 system
  messages of dpo_en_demo.json two are shared by a fifth (25 times, 184 characters; 17 times, 96 characters): they do
  not teach, nor do the first 23 characters of another that begins like both. Nothing else is shared by so many.
- `tokens` stands beside `taught` where tokens cannot do what is meant, with the reason under `because`.

A run of taught tokens, decoded without its end token, must be the text of its spans, character by character; spans
that touch are one run. An assistant's text that is taught to its end must be followed by a taught end token, no other.
Results go to benchmarks/results/masks.json.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table

from frisket.recipe import Recipe
from frisket.run.folder import environment, write_json
from frisket.run.prepare import Prepared, prepare
from frisket.types import Ledger
from frisket.watch import Silent

RESULTS = Path(__file__).with_name("results") / "masks.json"
EXPECTED = Path(__file__).with_name("expected_masks.json")
GSM = {"prompt": "question", "completion": "answer"}
SOURCES: tuple[dict[str, Any], ...] = (
    {"path": "alpaca_en_demo.json", "render": "chat"},
    {"path": "alpaca_en_demo.json", "render": "alpaca"},
    {"path": "codealpaca.json", "render": "chat"},
    {"path": "codealpaca.json", "render": "alpaca"},
    {"path": "glaive_toolcall_en_demo.json", "render": "chat"},
    {"path": "gsm8k_train.jsonl", "render": "chat", **GSM},
    {"path": "gsm8k_test.jsonl", "render": "chat", **GSM},
    {"path": "dpo_en_demo.json", "render": "chat"},
)
WAYS: dict[str, dict[str, Any]] = {
    "whole": {"max_tokens": 100_000},
    "truncated": {"max_tokens": 200, "too_long": "truncate", "bad": "drop"},
    "long ones dropped": {"max_tokens": 200, "too_long": "drop"},
}
POLICIES = ("assistant", "completion", "last-turn", "instructions", "boilerplate", "all")

# Stanford Alpaca's train.py, PROMPT_DICT; written out again, so that frisket's own copy is compared with something.
_BELOW = "Below is an instruction that describes a task"
_WRITE = "Write a response that appropriately completes the request.\n\n### Instruction:\n"
WITH_INPUT = f"{_BELOW}, paired with an input that provides further context. {_WRITE}"
WITHOUT_INPUT = f"{_BELOW}. {_WRITE}"
INPUT, RESPONSE = "\n\n### Input:\n", "\n\n### Response:"
ASSISTANT = ("gpt", "function_call")

Span = Seq[Any]


class Written(NamedTuple):
    """One message of a record: whether the assistant wrote it, its text, and whether that is a tool call."""

    by_assistant: bool
    text: str
    is_call: bool = False


class Run(NamedTuple):
    """Taught tokens that stand together: their text, whether an end token is among them, the message they end in."""

    text: str
    ends: bool
    message: int


@dataclass(frozen=True)
class Finding:
    """One sample under one policy.

    Attributes:
        verdict: ``equal``; ``as explained`` where tokens cannot do what is meant and do what was foreseen; ``differs``.
        expected: the spans that tokens should teach.
        found: what they teach.
    """

    file: str
    record: int
    render: str
    policy: str
    verdict: str
    expected: list
    found: list


def messages_of(record: Mapping[str, Any], render: str) -> list[Written]:
    """The messages of a record, read without frisket."""
    if "conversations" in record:
        turns = [*record["conversations"], *([record["chosen"]] if "chosen" in record else [])]
        return [Written(t["from"] in ASSISTANT, t["value"], t["from"] == "function_call") for t in turns]
    if "question" in record:
        return [Written(False, record["question"]), Written(True, record["answer"])]
    instruction, given = record["instruction"], record["input"]
    if render == "alpaca":
        prompt = f"{WITH_INPUT}{instruction}{INPUT}{given}" if given else f"{WITHOUT_INPUT}{instruction}"
        return [Written(False, prompt + RESPONSE), Written(True, record["output"])]
    return [Written(False, f"{instruction}\n\n{given}" if given else instruction), Written(True, record["output"])]


def expected_runs(spans: Iterable[Span], messages: Seq[Written], *, joined: bool) -> list[Run]:
    """What the taught tokens of these spans decode to.

    Args:
        joined: whether nothing stands between two messages (``render: alpaca``), so that spans can touch.
    """
    runs: list[Run] = []
    reaches_end = False
    for message, *place in spans:
        written = messages[message]
        start, end = (0, len(written.text)) if written.is_call else place
        ends = written.by_assistant and end == len(written.text)
        text = written.text[start:end]
        if joined and reaches_end and start == 0 and runs and runs[-1].message == message - 1:
            text = runs.pop().text + text
        runs.append(Run(text, ends, message))
        reaches_end = end == len(written.text)
    return runs


def taught_runs(prepared: Prepared, index: int, policy: str) -> list[Run]:
    """The maximal runs of tokens that a policy teaches, decoded without their end token."""
    sequence, weights, _ = prepared.explained(index, policy)
    end = prepared.tokenizer.eos_token_id
    runs = []
    for taught, group in groupby(range(len(sequence)), key=lambda place: bool(weights[place])):
        if not taught:
            continue
        places = list(group)
        ids = sequence.input_ids[places]
        ends = bool(ids[-1] == end)
        text = prepared.tokenizer.decode(ids[:-1] if ends else ids, clean_up_tokenization_spaces=False)
        runs.append(Run(text, ends, int(sequence.turns[places[-1]])))
    return runs


def compare(prepared: Prepared, index: int, messages: Seq[Written], case: Mapping[str, Any]) -> Finding:
    """One sample under one policy against its spans.

    Args:
        index: of the sample in ``prepared.dataset``.
        case: an entry of ``expected_masks.json``.
    """
    spans = case.get("tokens", case["taught"])
    found = taught_runs(prepared, index, case["policy"])
    if case["policy"] == "all":
        _, weights, _ = prepared.explained(index, "all")
        taught = bool(weights[1:].all()) and not weights[0] and len(found) == 1
        same = taught and [*spans] == _whole(messages) and _in_order(found[0].text, messages)
    else:
        wanted = expected_runs(spans, messages, joined=case["render"] == "alpaca")
        same = len(found) == len(wanted)
        same = same and all(_same(a, b, messages) for a, b in zip(found, wanted, strict=True))
    verdict = ("as explained" if "tokens" in case else "equal") if same else "differs"
    where = (case["file"], case["record"], case["render"], case["policy"])
    return Finding(*where, verdict, list(spans), list(spans) if same else [_located(r, messages) for r in found])


def _same(found: Run, wanted: Run, messages: Seq[Written]) -> bool:
    if (found.ends, found.message) != (wanted.ends, wanted.message):
        return False
    if messages[wanted.message].is_call:
        return _call(found.text) == json.loads(wanted.text)
    return found.text == wanted.text


def _call(text: str) -> Any:
    """The JSON of a call that a template wrote between its tags; None where it is not whole."""
    inner = text.strip().removeprefix("<tool_call>").removesuffix("</tool_call>")
    try:
        return json.loads(inner) if len(inner) == len(text.strip()) - len("<tool_call></tool_call>") else None
    except ValueError:
        return None


def _whole(messages: Seq[Written]) -> list[list]:
    return [[i, "tool_call"] if m.is_call else [i, 0, len(m.text)] for i, m in enumerate(messages)]


def _in_order(text: str, messages: Iterable[Written]) -> bool:
    """Whether the messages stand in ``text`` one after another; calls are passed over, for templates rewrite them."""
    at = 0
    for message in messages:
        if message.is_call:
            continue
        place = text.find(message.text, at)
        if place < 0:
            return False
        at = place + len(message.text)
    return True


def _located(run: Run, messages: Seq[Written]) -> list:
    """Where a run that was not expected stands, without its text."""
    if 0 <= run.message < len(messages):
        place = messages[run.message].text.find(run.text)
        if place >= 0:
            return [run.message, place, place + len(run.text)]
    return [run.message, f"{len(run.text)} characters that are not in this message"]


def recipe_of(source: Mapping[str, Any], folder: Path, policy: str, way: str) -> Recipe:
    """The bundled model on one file; 2 % are held out."""
    data = {**source, **WAYS[way], "path": str(folder / source["path"]), "hold_out": 0.02}
    return Recipe.model_validate(
        {"model": {"path": "bundled"}, "data": [data], "supervise": {"policy": policy}, "evaluate": "off"}
    )


def sums(ledger: Ledger) -> dict[str, list[int]]:
    """Both sides of the two identities, added up from the single counts."""
    terms = [ledger.dropped, ledger.truncated, ledger.held_out, ledger.other_objective]
    told = sum(terms) + sum(ledger.taught.values()) + sum(ledger.untaught.values())
    return {
        "read = told": [ledger.read, told],
        "flat = computed + shared": [ledger.flat, ledger.computed + ledger.shared],
    }


def ledgers_of(source: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The ledger of a file in each way of reading it, under ``assistant``, over one epoch."""
    told: dict[str, Any] = {}
    for way in WAYS:
        prepared = prepare(recipe_of(source, folder, "assistant", way), Silent())
        (ledger,) = prepared.ledger_of_steps(prepared.total_steps)
        both = sums(ledger)
        told[way] = {**ledger.as_dict(), "sums": both, "adds_up": all(a == b for a, b in both.values())}
    return {"ways": told, "same_read": len({way["read"] for way in told.values()}) == 1}


def policies_of(source: Mapping[str, Any], folder: Path) -> tuple[dict[str, Any], Prepared]:
    """What each policy teaches of a file; and the file prepared for `boilerplate`, whose constant text is known."""
    told, kept = {}, None
    for policy in POLICIES:
        prepared = prepare(recipe_of(source, folder, policy, "whole"), Silent())
        (ledger,), (teaching,) = prepared.ledger_of_steps(prepared.total_steps), prepared.teaching
        told[policy] = {"taught": dict(ledger.taught), "untaught": dict(ledger.untaught)}
        told[policy]["adds_up"] = all(a == b for a, b in sums(ledger).values())
        if policy == "boilerplate":
            kept = prepared
            told[policy]["phrases"] = [
                {"role": p.role.name.lower(), "side": p.side, "tokens": len(p.ids), "share": round(p.share, 4)}
                for p in teaching.phrases
            ]
    assert kept is not None
    return told, kept


def compare_file(prepared: Prepared, path: Path, render: str, cases: Iterable[Mapping[str, Any]]) -> list[Finding]:
    """All expected spans of one file under one rendering."""
    text = path.read_text(encoding="utf-8")
    records = [json.loads(line) for line in text.split("\n") if line] if path.suffix == ".jsonl" else json.loads(text)
    index_of = {place.rpartition(":")[2]: index for index, place in enumerate(prepared.dataset.places)}
    return [
        compare(prepared, index_of[str(case["record"])], messages_of(records[case["record"] - 1], render), case)
        for case in cases
        if (case["file"], case["render"]) == (path.name, render)
    ]


def counted(findings: Seq[Finding]) -> dict[str, Any]:
    """How many samples and policies were compared, how that went, and each that is not simply equal."""
    verdicts = [finding.verdict for finding in findings]
    counts = {verdict: verdicts.count(verdict) for verdict in ("equal", "as explained", "differs")}
    others = [asdict(finding) for finding in findings if finding.verdict != "equal"]
    return {"compared": len(findings), **counts, "not_equal": others}


def show(results: Mapping[str, Any]) -> None:
    """The tables for a person."""
    ledger = Table("data", "way", *_TERMS, "adds up", title="ledger, in tokens")
    policies = Table("data", *POLICIES, "constant text: role, side, tokens, share", title="taught tokens")
    spans = Table("data", "compared", "equal", "as explained", "differ", title="spans worked out by hand")
    for name, each in results["files"].items():
        for way, counts in each["ledger"]["ways"].items():
            shown = [counts[term] if isinstance(counts[term], int) else sum(counts[term].values()) for term in _TERMS]
            ledger.add_row(name, way, *(f"{n:,}" for n in shown), "yes" if counts["adds_up"] else "NO")
        taught = [f"{sum(each['policies'][policy]['taught'].values()):,}" for policy in POLICIES]
        found = [
            f"{p['role']} {p['side']} {p['tokens']} {p['share']}" for p in each["policies"]["boilerplate"]["phrases"]
        ]
        policies.add_row(name, *taught, "\n".join(found) or "none")
        counts = [each["spans"][key] for key in ("compared", "equal", "as explained", "differs")]
        spans.add_row(name, *map(str, counts))
    for table in (ledger, policies, spans):
        Console(width=200).print(table)


_TERMS = ("read", "dropped", "truncated", "held_out", "other_objective", "taught", "untaught", "flat", "shared")


def problems(results: Mapping[str, Any]) -> list[str]:
    """What does not hold, in words."""
    wrong = []
    for name, each in results["files"].items():
        wrong += [f"{name}, {way}: {w['sums']}" for way, w in each["ledger"]["ways"].items() if not w["adds_up"]]
        wrong += [f"{name}, {policy}: does not add up" for policy, p in each["policies"].items() if not p["adds_up"]]
        if not each["ledger"]["same_read"]:
            reads = {way: counts["read"] for way, counts in each["ledger"]["ways"].items()}
            wrong.append(f"{name}: the same file, but other counts of tokens read: {reads}")
        wrong += [
            f"{name}:{s['record']}, {s['policy']}: expected {s['expected']}, found {s['found']}"
            for s in each["spans"]["not_equal"]
            if s["verdict"] == "differs"
        ]
    return wrong


def main() -> None:
    """Read, compare, show, write; exit with 1 where something does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--file", help="only this file; nothing is written")
    given = parser.parse_args()
    cases = json.loads(EXPECTED.read_text())
    results: dict[str, Any] = {"environment": environment(torch.device("cpu"), torch.float32, ""), "files": {}}
    for source in SOURCES:
        if given.file and given.file != source["path"]:
            continue
        policies, prepared = policies_of(source, given.folder)
        found = compare_file(prepared, given.folder / source["path"], source["render"], cases)
        results["files"][f"{source['path']}, {source['render']}"] = {
            "ledger": ledgers_of(source, given.folder),
            "policies": policies,
            "spans": counted(found),
        }
    show(results)
    results["problems"] = problems(results)
    if not given.file:
        write_json(RESULTS, results)
    for problem in results["problems"]:
        Console().print(problem, style="red")
    sys.exit(bool(results["problems"]))


if __name__ == "__main__":
    main()
