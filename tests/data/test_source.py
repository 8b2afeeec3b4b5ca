"""Every format and file kind into conversations; everything wrong with a place."""

import json
import sys
import types

import pytest

from frisket.data.settings import Shots, SourceSettings
from frisket.data.source import Source, read_conversations
from frisket.errors import DataError
from frisket.types import Conversation, Message

QA = {"prompt": "Q", "completion": "A"}


def read(records, **knobs):
    return read_conversations(SourceSettings(path="memory", **knobs), 0, records)


def only(record, **knobs):
    reading = read([record], **knobs)
    assert not reading.problems, reading.problems
    (conversation,) = reading.conversations
    return conversation


def turns(conversation):
    return [(m.role, m.content) for m in conversation.messages]


def problem_of(record, **knobs) -> str:
    reading = read([record], **knobs)
    assert not reading.conversations
    (problem,) = reading.problems
    assert problem.place == "records:1"
    return problem.message


# --- formats -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record", "said", "expected"),
    [
        (
            {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]},
            "messages",
            None,
        ),
        (
            {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]},
            "sharegpt (conversations)",
            None,
        ),
        (
            {"conversations": [{"role": "human", "content": "Q"}, {"role": "model", "content": "A"}]},
            "messages (conversations)",
            None,
        ),
        ({"instruction": "Q", "input": "", "output": "A"}, "alpaca (instruction, input, output)", None),
        (
            {"instruction": "Q", "input": "I", "output": "A"},
            "alpaca (instruction, input, output)",
            [("user", "Q\n\nI"), ("assistant", "A")],
        ),
        ({"instruction": "Q", "response": "A"}, "alpaca (instruction, response)", None),
        (QA, "prompt-completion (prompt, completion)", None),
        (
            {"prompt": [{"role": "user", "content": "Q"}], "completion": [{"role": "assistant", "content": "A"}]},
            "prompt-completion (prompt, completion)",
            None,
        ),
        ({"prompt": "Q", "chosen": "A", "rejected": "B"}, "preference (prompt, chosen, rejected)", None),
        (
            {
                "conversations": [{"from": "human", "value": "Q"}],
                "chosen": {"from": "gpt", "value": "A"},
                "rejected": {"from": "gpt", "value": "B"},
            },
            "preference (conversations, chosen, rejected)",
            None,
        ),
        (
            {
                "chosen": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}],
                "rejected": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "B"}],
            },
            "preference (chosen, rejected)",
            None,
        ),
    ],
)
def test_formats_are_detected_and_said(record, said, expected):
    assert read([record]).format == said
    assert turns(only(record)) == (expected or [("user", "Q"), ("assistant", "A")])


def test_preference_rows_keep_the_worse_answer_or_make_two_samples():
    row = {"prompt": "Q", "chosen": "A", "rejected": "B"}
    assert only(row).rejected == (Message("assistant", "B"),)
    both = read([row], answers="both").conversations
    assert [(c.sample_id, c.messages[-1].content, c.rejected) for c in both] == [
        ("0:1/chosen", "A", ()),
        ("0:1/rejected", "B", ()),
    ]


def test_columns_are_mapped_and_the_unused_are_named_once():
    rows = [{"question": "Q", "answer": "A", "level": 3}, {"question": "Q", "answer": "A", "other": 1}]
    reading = read(rows, prompt="question", completion="answer")
    assert reading.format == "prompt-completion (question, answer)"
    assert reading.notes == ["data.0: columns not used for training: level, other"]
    assert reading.conversations[0].fields == {"level": 3}


def test_text_and_tokens():
    assert only({"text": "Once"}).text == "Once"
    assert only({"body": "Once"}, text="body").text == "Once"
    tokens = only({"input_ids": [1, 2], "labels": [-100, 2]})
    assert (tokens.input_ids, tokens.token_weights) == ((1, 2), (0.0, 1.0))
    assert only({"input_ids": [1, 2]}).token_weights is None


def test_alpaca_header_system_and_history():
    record = {"instruction": "Add", "input": "1 2", "output": "3", "system": "S", "history": [["a", "b"]]}
    assert turns(only(record)) == [
        ("system", "S"), ("user", "a"), ("assistant", "b"), ("user", "Add\n\n1 2"), ("assistant", "3")
    ]  # fmt: skip
    plain = only({"instruction": "Add", "output": "3"}, render="alpaca")
    assert plain.messages[0].content.startswith("Below is an instruction that describes a task. Write")
    assert plain.messages[0].content.endswith("### Instruction:\nAdd\n\n### Response:")
    prompted = only(QA, render="alpaca")
    assert "### Instruction:\nQ\n\n### Response:" in prompted.messages[0].content
    with_input = only({"instruction": "Add", "input": "1 {x}", "output": "3"}, render="alpaca")
    assert "further context" in with_input.messages[0].content
    assert "### Input:\n1 {x}\n\n" in with_input.messages[0].content
    assert "this record has a history" in problem_of(record, render="alpaca")


def test_tool_calls_in_both_manners():
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    tool = {"name": "f", "parameters": {}}
    shared = only({
        "conversations": [
            {"from": "human", "value": "Q"},
            {"from": "function_call", "value": json.dumps({"name": "f", "arguments": {"x": 1}})},
            {"from": "observation", "value": "7"},
            {"from": "gpt", "value": "A"},
        ],
        "tools": json.dumps([tool]),
        "system": "S",
    })  # fmt: skip
    assert shared.messages[2].tool_calls == (call,)
    assert [m.role for m in shared.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert shared.tools == ({"type": "function", "function": tool},)
    openai = only({"messages": [
        {"role": "user", "content": [{"type": "text", "text": "Q"}, {"type": "text", "value": "!"}]},
        {"role": "assistant", "content": None, "reasoning": "hm",
         "tool_calls": [{"id": "c1", "function": {"name": "f", "arguments": '{"x": 1}'}}]},
        {"role": "tool", "content": {"result": 7}, "tool_call_id": "c1", "name": "f"},
        {"role": "assistant", "content": "A"},
    ]})  # fmt: skip
    assert openai.messages[0].content == "Q!"
    assert openai.messages[1].tool_calls == ({"id": "c1", **call},)
    assert openai.messages[1].reasoning == "hm"
    assert openai.messages[2].content == '{"result": 7}'
    assert openai.messages[2].extra == {"tool_call_id": "c1", "name": "f"}


@pytest.mark.parametrize(
    ("given", "weight"),
    [
        ({"train": False}, 0.0),
        ({"train": 1}, 1.0),
        ({"loss": 0}, 0.0),
        ({"weight": 0.5}, 0.5),
        ({"loss_scale": 2}, 2.0),
        ({"loss_weight": -1.5}, -1.5),
        ({"masked": True}, 0.0),
        ({"masked": 0}, 1.0),
        ({"train": None}, None),
    ],
)
def test_message_weights_under_all_their_names(given, weight):
    conversation = only(
        {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A", **given}]}
    )
    assert conversation.messages[1].weight == weight
    assert conversation.messages[1].extra == {}


# --- options -------------------------------------------------------------------------------------------------------

TWO_TURNS = {"messages": [{"role": r, "content": c} for r, c in (("user", "a"), ("assistant", "b")) * 2]}


def test_system_prompt_is_put_before_conversations_that_have_none():
    assert turns(only(QA, system="S"))[0] == ("system", "S")
    own = {"messages": [{"role": "system", "content": "mine"}, {"role": "user", "content": "Q"}]}
    assert turns(only(own, system="S")) == [("system", "mine"), ("user", "Q")]


def test_without_prompt_leaves_the_answers():
    assert turns(only(QA, without_prompt=True)) == [("assistant", "A")]
    assert [c.sample_id for c in read([TWO_TURNS], without_prompt=True).conversations] == ["0:1/turn1", "0:1/turn2"]
    assert "without_prompt leaves nothing" in problem_of(
        {"messages": [{"role": "user", "content": "Q"}]}, without_prompt=True
    )


def test_each_turn_becomes_a_sample_that_ends_there():
    first, second = read([TWO_TURNS], expand="turns").conversations
    assert (len(first.messages), first.taught_turn, first.sample_id) == (2, 1, "0:1/turn1")
    assert (len(second.messages), second.taught_turn, second.sample_id) == (4, 3, "0:1/turn2")
    asked = {"messages": [{"role": "user", "content": "Q"}]}
    assert only(asked, expand="turns").taught_turn is None


def test_shots_stand_before_the_prompt_and_are_not_taught(tmp_path):
    shots = tmp_path / "shots.jsonl"
    shots.write_text("\n".join(json.dumps({"prompt": f"q{i}", "completion": f"a{i}"}) for i in range(3)))
    knobs = {"shots": Shots(path=str(shots), count=2), "system": "S"}
    conversation = only(QA, **knobs)
    assert [c for _, c in turns(conversation)] == ["S", "q0", "a0", "q1", "a1", "Q", "A"]
    assert [m.weight for m in conversation.messages] == [None, 0, 0, 0, 0, None, None]
    assert only(QA, expand="turns", **knobs).taught_turn == 6
    before = read([QA], **knobs).fingerprint
    shots.write_text(shots.read_text().replace("q0", "q9"))
    assert read([QA], **knobs).fingerprint != before
    shots.write_text('{"prompt": "", "completion": "x"}')
    with pytest.raises(DataError, match=r"data.0.shots: .*shots.jsonl:1: prompt is empty"):
        only(QA, **knobs)


# --- files ---------------------------------------------------------------------------------------------------------


def write(path, records):
    text = "\n".join(json.dumps(r) for r in records)
    if path.suffix == ".json":
        text = json.dumps(records)
    if path.suffix in (".csv", ".tsv"):
        separator = "," if path.suffix == ".csv" else "\t"
        text = "\n".join(separator.join(f'"{v}"' for v in row) for row in [records[0], *(r.values() for r in records)])
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(records), path)
    else:
        path.write_text(text)
    return SourceSettings(path=str(path))


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".tsv", ".parquet"])
def test_every_kind_of_file(tmp_path, suffix):
    rows = [{"prompt": f"Q{i}, \n?", "completion": "007"} for i in range(3)]
    settings = write(tmp_path / f"data{suffix}", rows)
    reading = read_conversations(settings, 2)
    assert [turns(c) for c in reading.conversations] == [[("user", r["prompt"]), ("assistant", "007")] for r in rows]
    last = reading.conversations[-1]
    assert (last.sample_id, last.place, last.source) == ("2:3", f"{settings.path}:3", 2)
    limited = read_conversations(settings.model_copy(update={"limit": 2}), 2)
    assert len(limited.conversations) == 2
    assert limited.fingerprint != reading.fingerprint


def test_json_lines_under_any_name_blank_lines_and_bom(tmp_path):
    file = tmp_path / "data.json"
    file.write_bytes(b"\xef\xbb\xbf" + json.dumps(QA).encode() + b"\n\n" + json.dumps(QA).encode() + b"\n")
    assert [c.line for c in read_conversations(SourceSettings(path=str(file)), 0).conversations] == [1, 3]
    listed = tmp_path / "data.jsonl"
    listed.write_text(json.dumps([QA, QA], indent=1))
    assert len(read_conversations(SourceSettings(path=str(listed)), 0).conversations) == 2


def test_a_folder_is_read_in_order_with_names_of_its_own(tmp_path):
    for name in ("b.jsonl", "a.jsonl"):
        write(tmp_path / name, [{"prompt": name, "completion": "x"}])
    (tmp_path / "notes.md").write_text("no data")
    reading = read_conversations(SourceSettings(path=str(tmp_path)), 0)
    assert [(c.sample_id, c.messages[0].content) for c in reading.conversations] == [
        ("0:a.jsonl:1", "a.jsonl"),
        ("0:b.jsonl:1", "b.jsonl"),
    ]


def test_tool_arguments_of_different_types_survive(tmp_path):
    """Arrow would give every call the keys of all others."""
    rows = [
        {"messages": [{"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": arguments}]}]}
        for arguments in ({"x": 1}, {"y": [1, "a"]})
    ]
    reading = read_conversations(write(tmp_path / "calls.jsonl", rows), 0)
    found = [c.messages[0].tool_calls[0]["function"]["arguments"] for c in reading.conversations]
    assert found == [{"x": 1}, {"y": [1, "a"]}]


def test_hub_ids_go_through_datasets(monkeypatch):
    def load_dataset(path, subset, split):
        assert (path, subset, split) == ("someone/data", "main", "test")
        return [QA]

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    settings = SourceSettings(path="someone/data", subset="main", split="test")
    assert read_conversations(settings, 0).conversations[0].place == "someone/data:1"


def test_a_hub_id_without_a_network_says_so(monkeypatch):
    def load_dataset(path, subset, split):
        raise ConnectionError("no route")

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(
        DataError,
        match=r"'someone/data' is no file here, .*no route\n.*dataset someone/data --local-dir.*\n.*1\.path=FOLDER$",
    ):
        read_conversations(SourceSettings(path="someone/data"), 1)


def test_bundled_data_reads():
    assert read_conversations(SourceSettings(path="bundled", limit=5), 0).problems == []


def test_the_fingerprint_follows_data_and_the_settings_that_change_records():
    def fingerprint(records, **knobs):
        return read(records, **knobs).fingerprint

    assert fingerprint([QA]) == fingerprint([dict(QA)])
    assert fingerprint([QA]) != fingerprint([{**QA, "completion": "B"}])
    assert fingerprint([QA]) != fingerprint([QA], system="S")
    assert fingerprint([QA]) != fingerprint([QA], roles={"bot2": "assistant"})
    assert fingerprint([QA]) == fingerprint([QA], hold_out=0.5, weight=2, max_tokens=9, bad="drop")


def test_only_some_conversations_are_read_again(tmp_path):
    rows = [json.dumps({**QA, "prompt": f"Q{i}", "level": i}) for i in range(4)]
    (tmp_path / "a.jsonl").write_text("\n".join(["{", *rows]))
    settings = SourceSettings(path=str(tmp_path), expand="turns")
    whole = {c.sample_id: c for c in read_conversations(settings, 1).conversations}
    found = Source(settings, 1).some(["1:a.jsonl:4", "1:a.jsonl:5/part2"])
    assert found == {"1:a.jsonl:4": whole["1:a.jsonl:4"]}
    turns_of = Source(SourceSettings(path="memory", expand="turns"), 0, [TWO_TURNS, TWO_TURNS]).some(["0:2/turn1"])
    assert [len(c.messages) for c in turns_of.values()] == [2]


def test_a_source_is_a_stream(tmp_path):
    file = tmp_path / "data.jsonl"
    file.write_text("\n".join([json.dumps(QA)] * 3))
    source = Source(SourceSettings(path=str(file)), 0)
    assert source.format == "unknown"
    first = next(iter(source))
    assert isinstance(first, Conversation)
    assert len(list(source)) == len(list(source)) == 3


def test_the_fingerprint_reads_only_as_many_lines_as_are_used(tmp_path):
    file = tmp_path / "data.jsonl"

    def fingerprint(rows, **knobs):
        file.write_text("\n".join(json.dumps({**QA, "prompt": row}) for row in rows))
        return Source(SourceSettings(path=str(file), **knobs), 0).fingerprint

    assert fingerprint("abc", limit=2) == fingerprint("abd", limit=2) != fingerprint("aec", limit=2)
    assert fingerprint("abc") != fingerprint("abd")


# --- bad input -----------------------------------------------------------------------------------------------------


def test_all_bad_lines_are_told_with_their_places(tmp_path):
    file = tmp_path / "bad.jsonl"
    good = json.dumps(QA).encode()
    file.write_bytes(b"\n".join([good, b'{"prompt": ', b"[1, 2]", b'{"prompt": "\xff"}', b'{"prompt": "Q"}', good]))
    reading = read_conversations(SourceSettings(path=str(file)), 0)
    assert len(reading.conversations) == 2
    told = [(p.place.rsplit(":")[-1], p.message) for p in reading.problems]
    assert [line for line, _ in told] == ["2", "3", "4", "5"]
    assert "not valid JSON: Expecting value" in told[0][1]
    assert "the record is [1, 2]; it must be an object" in told[1][1]
    assert "not valid UTF-8" in told[2][1]
    assert told[3][1] == "completion is missing; it must be text"


def test_a_json_list_that_is_cut_off_names_its_line(tmp_path):
    file = tmp_path / "bad.json"
    file.write_text('[\n{"prompt": "Q", "completion": "A"},\n{"prompt"')
    (problem,) = read_conversations(SourceSettings(path=str(file)), 0).problems
    assert (problem.place, problem.message[:14]) == (f"{file}:3", "not valid JSON")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"a": 1 "b": 2}', "not valid JSON: Expecting ',' delimiter at character 9"),
        ('{"a": "b}', "not valid JSON: Unterminated string starting at character 7"),
    ],
)
def test_bad_json_names_its_character_once(line, said, tmp_path):
    (tmp_path / "d.jsonl").write_text(f"{line}\n")
    (problem,) = read_conversations(SourceSettings(path=str(tmp_path / "d.jsonl")), 0).problems
    assert problem.message == said
    (tmp_path / "d.json").write_text(f"[\n{line}]")
    (problem,) = read_conversations(SourceSettings(path=str(tmp_path / "d.json")), 0).problems
    assert (problem.place, problem.message) == (f"{tmp_path / 'd.json'}:2", said)


def test_rows_of_csv_with_other_columns(tmp_path):
    file = tmp_path / "bad.csv"
    file.write_text("prompt,completion\nQ,A\nQ\nQ,A,B\n")
    reading = read_conversations(SourceSettings(path=str(file)), 0)
    assert [str(p) for p in reading.problems] == [f"{file}:{n}: this row does not have the 2 columns" for n in (2, 3)]
    file.write_bytes(b"prompt,completion\nQ,\xff\n")
    assert "not valid CSV" in read_conversations(SourceSettings(path=str(file)), 0).problems[0].message


def test_a_misspelt_source_is_answered_with_its_neighbour(tmp_path, monkeypatch):
    (tmp_path / "chats.jsonl").touch()
    (tmp_path / "chat.py").touch()
    with pytest.raises(DataError, match=r"does not exist\nDid you mean this\? data\.0\.path=.*/chats\.jsonl$"):
        read_conversations(SourceSettings(path=str(tmp_path / "chat.jsonl")), 0)

    def no_network(*_: object, **__: object) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr("datasets.load_dataset", no_network)
    with pytest.raises(DataError, match=r"no route\nDid you mean data\.0\.path=bundled\?\n"):
        read_conversations(SourceSettings(path="bundeld"), 0)


def test_sources_that_are_not_there(tmp_path):
    for path, message in (
        (tmp_path / "no.jsonl", "does not exist\nName a file, a folder or a hub id: data.0.path=FILE"),
        (tmp_path / "no" / "such" / "folder", "does not exist"),
        (tmp_path, "holds no data; it needs files ending in .jsonl"),
    ):
        with pytest.raises(DataError, match=message):
            read_conversations(SourceSettings(path=str(path)), 0)
    for name, content, message in (
        ("empty.jsonl", b"", "holds no records; data.0.path needs at least one"),
        ("empty.json", b"[]", "holds no records"),
        ("data.xlsx", b"x", "is of no known kind"),
        ("data.parquet", b"x", "is not a readable Parquet file"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=message):
            read_conversations(SourceSettings(path=str(tmp_path / name)), 0)


def test_unknown_columns_are_refused_with_an_override_that_works():
    rows = [{"question": "Q", "answer": "A"}]
    fix = r"Say which columns to use: data.0.prompt=question data.0.completion=answer$"
    with pytest.raises(
        DataError, match=rf"records:1: no known format has the columns question, answer\nKnown: .*\n{fix}"
    ):
        read(rows)
    assert turns(only(rows[0], prompt="question", completion="answer")) == [("user", "Q"), ("assistant", "A")]


USER = {"role": "user", "content": "Q"}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"messages": "hello"}, "messages is text; it must be a list of messages"),
        ({"messages": []}, "messages is empty"),
        ({"messages": [USER, "x"]}, "messages[1] is text; a message must be an object"),
        (
            {"messages": [{"role": "asistant", "content": "A"}]},
            "messages[0] has the unknown role 'asistant'; did you mean 'assistant'? known are",
        ),
        ({"messages": [{"role": "narrator", "content": "A"}]}, "this names: data.N.roles='{narrator: assistant}'"),
        ({"messages": [{"role": "usr 1", "content": "A"}]}, """data.N.roles='{"usr 1": user}'"""),
        ({"prompt": {"role": "x", "content": "A"}, "completion": "B"}, "prompt has the unknown role 'x'"),
        (
            {"instruction": "Q", "output": "A", "history": [["a", "b"], ["a", " "]]},
            "history[1][1] (assistant) is empty",
        ),
        ({"messages": [{"content": "A"}]}, "messages[0] has no role; it must be system, user, assistant or tool"),
        ({"messages": [USER, {"role": "assistant", "content": "  "}]}, "messages[1] (assistant) is empty"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0] (user) is empty; a message needs content"),
        (
            {"messages": [{"role": "user", "text": "x"}]},
            "messages[0] (user) has no content, only 'role', 'text'; did you mean content by 'text'?",
        ),
        ({"messages": [{"role": "user"}]}, "messages[0] (user) has no content, only 'role'"),
        ({"messages": [{"role": "user", "content": 5}]}, "the content of messages[0] is a number"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "content part of type 'image_url'"),
        ({"messages": [{**USER, "train": 1, "weight": 2}]}, "messages[0] has two weights, 'train' and 'weight'"),
        (
            {"messages": [{**USER, "weight": float("nan")}]},
            "'weight' of messages[0] is nan; it must be a finite number",
        ),
        ({"messages": [{**USER, "train": 0.5}]}, "'train' of messages[0] is 0.5; it must be 0 or 1"),
        ({"messages": [{**USER, "loss": "yes"}]}, "'loss' of messages[0] is 'yes'"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"x": 1}]}]},
            "a tool call of messages[0] has no function name",
        ),
        ({"messages": [{"role": "assistant", "tool_calls": "f()"}]}, "tool_calls of messages[0] is text"),
        (
            {"messages": [{"role": "assistant", "content": "A", "reasoning": 3}]},
            "the reasoning of messages[0] is a number",
        ),
        ({"messages": [USER], "tools": "f"}, "tools is text; it must be a list of objects"),
        ({"conversations": [{"from": "function_call", "value": "f"}]}, "function call of conversations[0] is not JSON"),
        ({"instruction": "", "output": "A"}, "instruction is empty"),
        ({"instruction": "Q", "output": ["A"]}, "output is a list; it must be text"),
        ({"instruction": "Q", "output": "A", "history": ["a"]}, "history must be a list of pairs"),
        ({"text": " "}, "text is empty"),
        ({"input_ids": [1, "2"]}, "input_ids must be a list of whole numbers"),
        ({"input_ids": [1, 2], "labels": [1]}, "labels has 1 entries and input_ids 2"),
        ({"input_ids": [1, 2], "labels": [2, 2]}, "labels must not be shifted"),
        ({"prompt": "Q", "chosen": [USER], "rejected": [USER]}, "must be two different answers of the assistant"),
    ],
)
def test_bad_records_name_the_field(record, message):
    assert message in problem_of(record)


def test_alpaca_rendering_holds_one_exchange():
    record = {"prompt": [USER, {"role": "assistant", "content": "A"}, USER], "completion": "A"}
    assert "render=alpaca holds one instruction" in problem_of(record, render="alpaca")


def test_a_call_written_as_a_plain_message_is_still_a_call():
    content = json.dumps({"name": "add", "arguments": {"a": 1}})
    conversation = only({"messages": [{"role": "user", "content": "x"}, {"role": "function_call", "content": content}]})
    assert conversation.messages[1].tool_calls[0]["function"]["name"] == "add"
    assert conversation.messages[1].content == ""
