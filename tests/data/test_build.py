"""Building the data set: the store, checks, cutting, holding out, and the ledger."""

import json
import math
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import pytest
from tests.data.conftest import CHATML, QWEN3, make_tokenizer

from frisket.data import build as building
from frisket.data.build import build
from frisket.data.chat import load_template
from frisket.data.hold_out import held_out_samples
from frisket.data.settings import SourceSettings
from frisket.data.store import StoreWriter, cache_folder, open_store
from frisket.errors import ConfigError, DataError
from frisket.types import OWN_WEIGHT, Provenance
from frisket.watch import Silent


class Watching(Silent):
    """Remembers the progress that was shown."""

    def __init__(self):
        self.seen = []

    @contextmanager
    def progress(self, label, total, unit):
        amounts = []
        yield amounts.append
        self.seen.append((label, total, sum(amounts)))


def nothing_taught(sequence):
    taught = np.isin(sequence.roles, (Provenance.ASSISTANT, Provenance.TEXT)) & ~(sequence.data_weights == 0)
    return None if taught.any() else "nothing in it is supervised under 'assistant'"


def make(records, tokenizer, *, context=None, hold_out_default=False, watcher=None, template=CHATML, **knobs):
    """Build one source or several (a list of lists) of in-memory records."""
    several = records if isinstance(records[0], list) else [records]
    sources = [SourceSettings(path="memory", **knobs) for _ in several]
    tokenizer.chat_template = template
    return build(
        sources,
        load_template(None, tokenizer),
        tokenizer,
        context=context,
        seed=0,
        hold_out_default=hold_out_default,
        check_of=lambda source, sequences: nothing_taught,
        watcher=watcher or Silent(),
        records=several,
    )


def pairs(count, word="answer"):
    return [{"prompt": f"Question {i}?", "completion": f"{word} {i}"} for i in range(count)]


def assert_balanced(dataset):
    for source, ledger in enumerate(dataset.ledgers):
        train = int(dataset.lengths[dataset.train][dataset.source_of[dataset.train] == source].sum())
        terms = ledger.dropped + ledger.truncated + ledger.held_out + ledger.other_objective
        assert ledger.read == terms + train


def test_samples_come_back_as_they_were_made(tokenizer):
    dataset = make([pairs(3), pairs(2, "other")], tokenizer)
    assert len(dataset) == 5
    assert dataset.source_of.tolist() == [0, 0, 0, 1, 1]
    assert [s.sample_id for s in dataset] == ["0:1", "0:2", "0:3", "1:1", "1:2"]
    assert dataset.place(4) == "records:2"
    assert dataset.lengths.tolist() == [len(s) for s in dataset]
    assert "other 1" in tokenizer.decode(dataset[4].input_ids)
    assert dataset.formats == ("prompt-completion (prompt, completion)",) * 2
    assert not dataset[0].input_ids.flags.writeable
    with pytest.raises(IndexError, match=r"sample 5 of 5"):
        dataset[5]
    assert_balanced(dataset)


def test_what_is_stored_is_not_tokenised_again(tokenizer, monkeypatch):
    watcher = Watching()
    first = make(pairs(70), tokenizer, watcher=watcher)
    assert watcher.seen == [("tokenising memory", None, 70), ("checking memory", 70, 70)]
    monkeypatch.setattr(building, "fill_store", lambda *a: pytest.fail("tokenised again"))
    again = make(pairs(70), tokenizer, max_tokens=1000)
    assert again.fingerprint == first.fingerprint
    assert all(np.array_equal(a.roles, b.roles) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("change", ["data", "template", "tokenizer", "settings"])
def test_the_key_follows_everything_that_decides_the_tokens(tokenizer, change):
    first = make(pairs(2), tokenizer)
    other = {
        "data": lambda: make(pairs(2, "changed"), tokenizer),
        "template": lambda: make(pairs(2), tokenizer, template=CHATML + " "),
        "tokenizer": lambda: make(pairs(2), make_tokenizer(adds_bos=True)),
        "settings": lambda: make(pairs(2), tokenizer, system="S"),
    }[change]()
    assert other.stores[0].key != first.stores[0].key
    assert other.fingerprint != first.fingerprint


def test_data_weights_survive_the_store(tokenizer):
    weights = [0.5, None, 0]
    rows = [
        {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A", "weight": w}, *tail]}
        for w in weights
        for tail in [[{"role": "user", "content": "Q"}, {"role": "assistant", "content": "B"}]]
    ]
    dataset = make(rows, tokenizer)
    for sequence, weight in zip(dataset, weights, strict=True):
        found = sequence.data_weights[(sequence.roles == Provenance.ASSISTANT) & (sequence.turns == 1)]
        assert all(math.isnan(w) if weight is None else w == weight for w in found)
        assert np.isnan(sequence.data_weights[sequence.turns == 3]).all()


def test_weights_of_single_tokens_are_marked_as_their_own(tokenizer):
    labelled = {"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}
    dataset = make([[labelled, {"input_ids": [5, 6]}], [{**GOOD, "messages": GOOD["messages"]}]], tokenizer)
    assert (dataset[0].marks == OWN_WEIGHT).tolist() == [True] * 3
    assert dataset[0].data_weights.tolist() == [0, 1, 1]
    assert not dataset[1].marks.any()
    weighted = {"messages": [GOOD["messages"][0], {**GOOD["messages"][1], "weight": 0.5}]}
    by_message = make([weighted], tokenizer)[0]
    assert not by_message.marks.any()
    assert (by_message.data_weights == 0.5).any()


def test_walking_gives_the_same_samples_and_gives_memory_back(tokenizer, monkeypatch):
    dataset = make(pairs(20), tokenizer)
    whole = [dataset[i].input_ids.tolist() for i in range(20)]
    monkeypatch.setattr("frisket.data.dataset.WALKED_TOKENS", 1)
    assert [sequence.input_ids.tolist() for sequence in dataset] == whole
    assert [s.sample_id for s in dataset.walk([3, 1])] == ["0:4", "0:2"]
    assert [ids.tolist() for ids in dataset.token_ids] == whole


def test_names_and_places_are_made_when_asked_for(tokenizer):
    dataset = make([*pairs(3), {"prompt": "Q", "completion": "long " * 60}], tokenizer, max_tokens=50, too_long="split")
    assert list(dataset.sample_ids[:4]) == ["0:1", "0:2", "0:3", "0:4/part1"]
    assert dataset.sample_ids[-1] == f"0:4/part{len(dataset) - 3}"
    assert list(dataset.places) == [dataset.place(i) for i in range(len(dataset))]
    assert len(dataset.token_ids) == len(dataset)
    with pytest.raises(IndexError, match=r"range object index out of range"):
        dataset.sample_ids[len(dataset)]


def test_a_folder_keeps_its_names_in_the_store(tokenizer, tmp_path):
    folder = tmp_path / "chats"
    folder.mkdir()
    for name in ("a.jsonl", "b.jsonl"):
        folder.joinpath(name).write_text(json.dumps(GOOD) + "\n\n" + json.dumps(NO_ANSWER))
    tokenizer.chat_template = CHATML
    for _ in range(2):
        dataset = build(
            [SourceSettings(path=str(folder), bad="drop")],
            load_template(None, tokenizer),
            tokenizer,
            context=None,
            seed=0,
            hold_out_default=False,
            check_of=lambda source, sequences: nothing_taught,
            watcher=Silent(),
        )
        assert list(dataset.sample_ids) == ["0:a.jsonl:1", "0:b.jsonl:1"]
        assert list(dataset.places) == [f"{folder}/a.jsonl:1", f"{folder}/b.jsonl:1"]
        assert [entry["place"] for entry in dataset.dropped] == [f"{folder}/a.jsonl:3", f"{folder}/b.jsonl:3"]


def test_records_that_come_once_are_enough(tokenizer):
    dataset = build(
        [SourceSettings(path="memory")],
        load_template("plain", tokenizer),
        tokenizer,
        context=None,
        seed=0,
        hold_out_default=False,
        check_of=lambda source, sequences: nothing_taught,
        watcher=Silent(),
        records=[iter(pairs(3))],
    )
    assert len(dataset) == 3


# --- the store itself ----------------------------------------------------------------------------------------------


def test_a_torn_store_is_made_again(tokenizer, cache):
    first = make(pairs(3), tokenizer)
    roles = [sequence.roles.tolist() for sequence in first]
    folder = cache / "stores" / first.stores[0].key
    (folder / "run_roles").write_bytes(b"x")
    assert open_store(first.stores[0].key) is None
    again = make(pairs(3), tokenizer)
    assert [sequence.roles.tolist() for sequence in again] == roles
    (folder / "meta.json").write_text("{")
    assert len(make(pairs(3), tokenizer)) == 3
    assert [p.name for p in (cache / "stores").iterdir()] == [first.stores[0].key], "nothing half-written stays"


def test_the_second_of_two_writers_leaves_the_first_ones_store(tokenizer, cache):
    key = make(pairs(1), tokenizer).stores[0].key
    with StoreWriter(key) as second:
        second.append({"is_text": np.zeros(9)})
    assert len(open_store(key)) == 1


def test_a_failed_writer_leaves_nothing(cache):
    with pytest.raises(RuntimeError, match=r"stop"), StoreWriter("k" * 40):
        raise RuntimeError("stop")
    assert list((cache / "stores").iterdir()) == []


def test_a_cache_that_cannot_be_written_is_named(tokenizer, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("FRISKET_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match=r"token store cannot be written in .*file: .*\n.*set FRISKET_CACHE=FOLDER"):
        make(pairs(1), tokenizer)


def test_the_cache_lies_in_the_users_folder_by_default(monkeypatch, tmp_path):
    monkeypatch.delenv("FRISKET_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "frisket"


# --- bad samples ---------------------------------------------------------------------------------------------------

NO_ANSWER = {"messages": [{"role": "user", "content": "Q"}]}
GOOD = {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]}
UNREADABLE = {"messages": [{"role": "nobody", "content": "Q"}]}


def test_all_problems_of_all_sources_are_raised_once(tokenizer):
    with pytest.raises(DataError) as error:
        make([[GOOD, UNREADABLE, NO_ANSWER], [NO_ANSWER, GOOD]], tokenizer)
    lines = str(error.value).splitlines()
    assert lines[0] == "3 of 5 samples cannot be used:"
    assert "records:2: messages[0] has the unknown role 'nobody'" in lines[1]
    assert lines[1].endswith("what this names: data.0.roles='{nobody: assistant}'")
    assert lines[2] == "  - records:3: nothing in it is supervised under 'assistant'"
    assert lines[3].startswith("  - records:1: nothing")
    assert lines[-1] == "Leave them out: data.0.bad=drop data.1.bad=drop"


def test_twenty_problems_are_shown(tokenizer):
    with pytest.raises(DataError, match=r"… and 5 more"):
        make([NO_ANSWER] * 25, tokenizer)


def test_bad_samples_can_be_dropped_and_are_counted(tokenizer):
    dataset = make([GOOD, UNREADABLE, NO_ANSWER], tokenizer, bad="drop")
    assert len(dataset) == 1
    assert [(d["place"], d["tokens"] is None) for d in dataset.dropped] == [("records:2", True), ("records:3", False)]
    ledger = dataset.ledgers[0]
    assert ledger.dropped == dataset.dropped[1]["tokens"] > 0
    assert (ledger.samples["read"], ledger.samples["dropped"], ledger.samples["dropped_unread"]) == (3, 2, 1)
    assert_balanced(dataset)
    with pytest.raises(DataError, match=r"data.0 \(memory\): all of 2 samples dropped; the first: records:1"):
        make([UNREADABLE, NO_ANSWER], tokenizer, bad="drop")


def test_a_role_that_the_recipe_names_is_read(tokenizer):
    rows = [{"messages": [{"role": "Customer", "content": "Q"}, {"role": "Agent Smith", "content": "A"}]}] * 2
    named = make(rows, tokenizer, roles={"customer": "user", "agent smith": "assistant"})
    plain = make(
        [{"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]}] * 2, tokenizer
    )
    assert [named[i].roles.tolist() for i in range(2)] == [plain[i].roles.tolist() for i in range(2)]
    with pytest.raises(DataError, match=r"messages\[0\] has the unknown role 'Customer'"):
        make(rows, tokenizer)  # the setting is part of what names the store


def test_columns_that_nothing_uses_are_named_but_not_those_of_the_bundled_file(tokenizer):
    assert make([{**row, "skill": "x"} for row in pairs(2)], tokenizer).notes == (
        "data.0: columns not used for training: skill",
    )
    tokenizer.chat_template = CHATML
    dataset = build(
        [SourceSettings(path="bundled", limit=5)],
        load_template(None, tokenizer),
        tokenizer,
        context=None,
        seed=0,
        hold_out_default=False,
        check_of=lambda source, sequences: nothing_taught,
        watcher=Silent(),
    )
    assert dataset.notes == ()


def test_conversations_without_an_answer_at_their_end_are_found(tokenizer):
    user, assistant = {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}
    rows = [
        {"messages": [user, assistant]},
        {"messages": [user, assistant, user]},
        {"messages": [user, assistant, user, assistant]},
        {"messages": [user, assistant, user]},
        {"text": "raw"},
    ]
    dataset = make([rows[:4], rows[4:]], tokenizer)
    assert [dataset.place(int(i)) for i in dataset.unanswered()] == ["records:2", "records:4"]


def test_conversations_that_the_template_refuses_are_told_also_from_the_store(tokenizer):
    tools = [{"name": "f", "parameters": {}}]
    for _ in range(2):
        with pytest.raises(DataError, match=r"records:2: template .* leaves out the tool declarations"):
            make([GOOD, {**GOOD, "tools": tools}], tokenizer)
    dropped = make([GOOD, {**GOOD, "tools": tools}], tokenizer, bad="drop")
    assert (len(dropped), dropped.dropped[0]["sample"]) == (1, "0:2")


def test_a_missing_end_token_is_told(tokenizer):
    with pytest.raises(DataError, match=r"records:1: no end token follows messages\[1\] \(assistant\)"):
        make([GOOD], tokenizer, template="{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}")


def test_a_doubled_beginning_token_is_told(tokenizer):
    begin = tokenizer.bos_token_id
    with pytest.raises(DataError, match=r"records:1: it begins with two beginning tokens \(<s>\)"):
        make([{"input_ids": [begin, begin, 5]}], tokenizer)
    with pytest.raises(DataError, match=r"two beginning tokens"):
        make([GOOD], tokenizer, template="{{ bos_token }}{{ bos_token }}" + CHATML)


# --- long samples --------------------------------------------------------------------------------------------------

LONG = {"prompt": "Q", "completion": "long " * 60}


def test_too_long_samples_are_an_error_that_gives_the_longest(tokenizer):
    with pytest.raises(
        DataError, match=r"memory: 1 of 3 samples longer than 50 tokens; the longest is records:3 with \d+ "
    ) as error:
        make([*pairs(2), LONG], tokenizer, context=50)
    assert str(error.value).endswith("Leave them out: data.0.too_long=drop")


def test_too_long_samples_can_be_dropped_truncated_or_split(tokenizer):
    rows = [*pairs(2), LONG]
    whole = make(rows, tokenizer)[2]
    dropped = make(rows, tokenizer, max_tokens=50, too_long="drop")
    assert (len(dropped), dropped.ledgers[0].dropped) == (2, len(whole))
    truncated = make(rows, tokenizer, max_tokens=50, too_long="truncate")
    assert truncated[2].input_ids.tolist() == whole.input_ids[:50].tolist()
    assert (truncated.ledgers[0].truncated, truncated.ledgers[0].samples["truncated"]) == (len(whole) - 50, 1)
    split = make(rows, tokenizer, max_tokens=50, too_long="split")
    pieces = [split[i].input_ids.tolist() for i in range(2, len(split))]
    assert [*pieces[0], *(token for piece in pieces[1:] for token in piece[1:])] == whole.input_ids.tolist()
    assert all(a[-1] == b[0] for a, b in pairwise(pieces))
    assert split[3].sample_id == "0:3/part2"
    assert split.ledgers[0].samples["split"] == len(split) - 3
    for dataset in (dropped, truncated, split):
        assert_balanced(dataset)


def test_pieces_that_teach_nothing_are_dropped_and_counted(tokenizer):
    row = {"prompt": "long " * 60, "completion": "A"}
    split = make([row, *pairs(1)], tokenizer, max_tokens=50, too_long="split")
    assert split.ledgers[0].dropped > 0
    assert {d["reason"] for d in split.dropped} == {"nothing in it is supervised under 'assistant'"}
    assert_balanced(split)
    with pytest.raises(DataError, match=r"records:1: after truncation nothing in it is supervised"):
        make([row], tokenizer, max_tokens=50, too_long="truncate")


@pytest.mark.parametrize("adds_bos", [False, True])
def test_raw_text_is_split_without_losing_a_token(adds_bos):
    tokenizer = make_tokenizer(adds_bos=adds_bos)
    text = "The quick brown fox jumps over the lazy dog. " * 20
    dataset = make([{"text": text}], tokenizer, max_tokens=16)
    assert len(dataset) > 5
    assert max(dataset.lengths) == 16
    pieces = [piece.input_ids.tolist() for piece in dataset]
    ids = [*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    if adds_bos:
        assert all(piece[0] == tokenizer.bos_token_id for piece in pieces)
    else:
        assert pieces[0][0] == ids.pop(0)  # nothing predicts a text's first token; every other one is a target once
    assert [target for piece in pieces for target in piece[1:]] == ids
    assert_balanced(dataset)


# --- preferences, removed reasoning --------------------------------------------------------------------------------


def test_rejected_answers_are_counted_as_another_objective(tokenizer):
    rows = [{"prompt": "Q", "chosen": "A", "rejected": "B and more"}]
    dataset = make(rows, tokenizer)
    ids = tokenizer("B and more<|im_end|>", add_special_tokens=False).input_ids
    assert dataset.ledgers[0].other_objective >= len(ids)
    assert dataset.ledgers[0].samples["other_objective"] == 1
    assert_balanced(dataset)
    both = make(rows, tokenizer, answers="both")
    assert (len(both), both.ledgers[0].other_objective) == (2, 0)


def test_a_rejected_answer_that_cannot_be_rendered_is_told(tokenizer):
    worse = [{"role": "assistant", "content": "B", "reasoning": "why"}]
    with pytest.raises(DataError, match=r"records:1: the rejected answer: template .* leaves out the reasoning"):
        make([{"prompt": "Q", "chosen": "A", "rejected": worse}], tokenizer)


def test_removed_reasoning_stands_in_the_ledger(tokenizer):
    turns = [("user", "a"), ("assistant", "<think>secret</think>b"), ("user", "c"), ("assistant", "d")]
    rows = [{"messages": [{"role": role, "content": content} for role, content in turns]}]
    assert make(rows, tokenizer, template=QWEN3).ledgers[0].removed_characters == len("secret")


# --- hold-out ------------------------------------------------------------------------------------------------------


def test_by_default_a_few_percent_are_held_out(tokenizer):
    dataset = make(pairs(100), tokenizer, hold_out_default=True)
    assert (len(dataset.held_out), len(dataset.train)) == (8, 92)
    assert sorted([*dataset.held_out, *dataset.train]) == list(range(100))
    assert dataset.ledgers[0].held_out == dataset.lengths[dataset.held_out].sum()
    assert len(make(pairs(100), tokenizer).held_out) == 0
    assert len(make(pairs(100), tokenizer, hold_out_default=True, hold_out=0).held_out) == 0
    assert_balanced(dataset)


@pytest.mark.parametrize(
    ("samples", "held"),
    [(19, 0), (20, 5), (31, 7), (32, 8), (60, 8), (400, 8), (500, 10), (5_000, 100), (10_000, 200), (20_000, 200)],
)
def test_how_many_are_held_out(samples, held):
    sources = [SourceSettings(path="a")]
    numbers = np.arange(samples)
    chosen = held_out_samples(sources, np.zeros(samples, int), numbers, 0, True)
    assert len(set(chosen.tolist())) == held


def test_hold_out_as_a_number_or_a_share_of_each_source():
    sources = [SourceSettings(path="a", hold_out=3), SourceSettings(path="b", hold_out=0.5), SourceSettings(path="c")]
    source_of = np.repeat([0, 1, 2], 10)
    chosen = held_out_samples(sources, source_of, np.arange(30), 0, False)
    assert np.bincount(source_of[chosen], minlength=3).tolist() == [3, 5, 0]
    again = held_out_samples(sources, source_of, np.arange(30), 0, False)
    assert chosen.tolist() == again.tolist()
    assert chosen.tolist() != held_out_samples(sources, source_of, np.arange(30), 1, False).tolist()


def test_samples_of_one_record_are_held_out_together():
    sources = [SourceSettings(path="a", hold_out=10)]
    chosen = held_out_samples(sources, np.zeros(40, int), np.arange(40) // 2, 0, False)
    assert len(chosen) == 10
    assert np.unique(chosen // 2, return_counts=True)[1].tolist() == [2] * 5


def test_holding_out_everything_is_refused(tokenizer):
    with pytest.raises(ConfigError, match=r"data.0.hold_out = 5 keeps all of 3 samples .*\n.*data.0.hold_out=0.1"):
        make(pairs(3), tokenizer, hold_out=5)


def test_files_are_named_as_they_were_given(tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "chats.jsonl").write_text("\n".join(json.dumps(r) for r in [GOOD, NO_ANSWER]))
    tokenizer.chat_template = CHATML
    with pytest.raises(DataError, match=r"\n  - chats.jsonl:2: nothing in it is supervised"):
        build(
            [SourceSettings(path="chats.jsonl")],
            load_template(None, tokenizer),
            tokenizer,
            context=None,
            seed=0,
            hold_out_default=True,
            check_of=lambda source, sequences: nothing_taught,
            watcher=Silent(),
        )
