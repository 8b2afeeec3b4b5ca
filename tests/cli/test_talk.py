"""A conversation from a pipe: every command, both sides, interrupts, and what is asked of the model."""

import io
import json
import sys
from collections.abc import Callable

import pytest
from rich.console import Console

from frisket.cli import answers as shown_answers
from frisket.cli.answers import Answer, show_answers
from frisket.cli.main import run_words
from frisket.cli.screen import Screen
from frisket.cli.talk import Talk, Turn
from frisket.generate.reply import Reply
from frisket.generate.settings import GenerateSettings
from frisket.run.system_message import SystemMessage

from .conftest import FakeChat


@pytest.fixture
def talk(run, monkeypatch, capsys) -> Callable[..., str]:
    """Lines of a conversation to what was shown; the settings of each answer are in ``run.chat.settings``."""
    run.chat = FakeChat()
    monkeypatch.setattr(run, "open_run", lambda out, watcher: run.chat, raising=False)

    def call(lines: str, *words: str) -> str:
        monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
        assert run_words(["generate", ".", "--chat", *words]) == 0
        return capsys.readouterr().out

    return call


def test_turns_add_up_and_reset_forgets(talk):
    out = talk("hello\n\nagain\n/reset\nafresh\n/new\nnew\n/quit\nnever\n", "--beside-base")
    for part in ("tuned [1] hello", "base [1] hello", "tuned [3] again", "base [3] again", "tuned [1] afresh"):
        assert part in out
    assert "tuned [1] new" in out
    assert "you    hello" in out
    assert "never" not in out


def test_the_system_message_stays_until_it_is_removed(talk):
    out = talk("one\n/reset\ntwo\n/system\nthree\n/system Rhyme. \nfour\n", "--system", "Be brief. ")
    for part in ("tuned [2] Be brief. one", "tuned [2] Be brief. two", "system message: none", "tuned [3] three"):
        assert part in out
    assert "tuned [6] Rhyme.four" in out
    assert "a new conversation, under the same system message" in out


def test_undo_takes_back_one_turn(talk):
    out = talk("/undo\none\ntwo\n/undo\nthree\n")
    assert "nothing has been asked yet" in out
    assert "taken back; 1 question before it stays" in out
    assert "tuned [3] three" in out


def test_again_asks_the_same_with_the_next_seed(talk, run):
    out = talk("one\n/again\n/again\ntwo\n", "--temperature", "0.5", "--top-p", "0.9", "--seed", "7")
    assert out.count("tuned [1] one") == 3
    assert "tuned [3] two" in out
    assert [s.seed for s in run.chat.settings] == [7, 8, 9, 7]
    assert {(s.temperature, s.top_p) for s in run.chat.settings} == {(0.5, 0.9)}


def test_again_asks_nothing_where_the_answer_would_be_the_same(talk, run):
    out = talk("one\n/again\ntwo\n")
    assert "not asked again: at temperature 0 the answer is always the same" in out
    assert "frisket generate 'out/my chats' --chat --temperature 0.8" in out
    assert len(run.chat.settings) == 2
    assert "tuned [3] two" in out


def test_again_at_temperature_0_asks_what_was_stopped(run, monkeypatch):
    """What was stopped is another answer when it is let go on."""
    talker = Talk(FakeChat(), Screen(Console(file=io.StringIO())), GenerateSettings(), False, None)
    asked = []
    monkeypatch.setattr(talker, "_ask", lambda question, attempt: asked.append(question) or True)
    for is_whole in (True, False):
        talker._turns = [Turn("one", {"tuned": "1"}, is_whole)]
        talker._obey("/again")
    assert asked == ["one"]


def test_help_and_unknown_commands(talk):
    out = talk("/help\n/rset\n/etc/passwd\n /etc is a folder\n")
    assert all(command in out for command in ("/reset", "/system", "/undo", "/again", "/quit", '"""'))
    assert "  /system  with a text behind it: the system message from now on; alone: none\n" in out
    assert "/rset is no command. Did you mean /reset?" in out
    assert "/etc/passwd is no command. /help lists them." in out
    assert "tuned [1] /etc is a folder" in out


def test_a_message_of_several_lines_is_one(talk):
    out = talk('"""\nfirst\n/undo\n  third\n"""\n')
    assert "tuned [1] first\n/undo\n  third" in out
    assert talk('"""\nnever closed\n').count("tuned [1]") == 0


def test_what_cannot_be_asked_leaves_the_conversation_as_it_was(talk):
    out = talk("one\ntoo long\n/again\ntwo\n", "--temperature", "0.5")
    assert "the model takes 8 with the answer" in out
    assert out.count("tuned [1] one") == 2
    assert "tuned [3] two" in out


def test_each_answer_says_how_fast_it_came_and_why_it_ended(talk):
    out = talk("hello\n", "--max-new-tokens", "100")
    assert "15 tokens · " in out
    assert out.count("tokens/s · end of turn") == 1
    assert "4 tokens · " in (cut := talk("hello\n", "--max-new-tokens", "4"))
    assert "max_new_tokens (4) reached" in cut


def test_a_system_message_for_prompts_too(frisket_says):
    _, out, _ = frisket_says("generate", ".", "--prompt", "x", "--system", "s", "--json")
    assert '"role": "system", "content": "s"' in " ".join(out.split())


def test_the_system_message_of_training_is_used_and_said_unless_another_is_given(talk, run):
    run.chat.system = SystemMessage("You are Pip.\nBe brief. ", 50, 50)
    out = talk("one\n")
    assert "system     You are Pip. Be brief. · as in all training samples; --system '' for none" in out
    assert "tuned [2] You are Pip.\nBe brief. one" in out
    for given, asked in (("", "tuned [1] one"), ("Rhyme. ", "tuned [2] Rhyme. one")):
        out = talk("one\n", "--system", given)
        assert asked in out
        assert "training" not in out


def test_a_system_message_of_most_samples_is_said_only(talk, run):
    run.chat.system = SystemMessage("You are Pip. " * 9, 40, 50)
    out = " ".join(talk("one\n").split())
    assert "none; 40 of 50 training samples have one: You are Pip. You" in out
    assert "… · --system TEXT" in out
    assert "tuned [1] one" in out


def test_prompts_get_the_system_message_of_training_too(run, frisket_says, monkeypatch, tmp_path):
    chat = FakeChat(SystemMessage("You are Pip.", 50, 50))
    monkeypatch.setattr(run, "open_run", lambda out, watcher: chat, raising=False)
    own = {"messages": [{"role": "system", "content": "mine"}, {"role": "user", "content": "x"}]}
    (tmp_path / "own.jsonl").write_text(json.dumps(own) + "\n")
    _, out, err = frisket_says("generate", ".", "y", "--file", "own.jsonl", "--json")
    first, second = (answer["messages"][0]["content"] for answer in json.loads(out)["answers"])
    assert (first, second) == ("You are Pip.", "mine")
    assert "as in all training samples" in err
    _, _, err = frisket_says("generate", ".", "--file", "own.jsonl", "--json")
    assert "training samples" not in err
    _, out, _ = frisket_says("generate", ".", "y", "--system", "", "--json")
    assert [message["role"] for message in json.loads(out)["answers"][0]["messages"]] == ["user"]


def reply(text: str, interrupt_at: int | None = None) -> Reply:
    def tokens():
        for n, letter in enumerate(text):
            if n == interrupt_at:
                raise KeyboardInterrupt
            yield ord(letter)

    return Reply(tokens(), lambda ids: "".join(map(chr, ids)), 1000)


def drawn(width: int, *given: Answer) -> str:
    console = Console(file=io.StringIO(), width=width, height=12, force_terminal=True, color_system=None, emoji=False)
    show_answers(console, given)
    return console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


def test_wide_terminals_show_two_columns_and_narrow_ones_two_blocks():
    def both() -> list[Answer]:
        return [Answer(who, lambda who=who: reply(f"{who} says " + "word " * 40), 9) for who in ("tuned", "base")]

    last = drawn(shown_answers.WIDE, *both()).split("\x1b[2K")[-1]
    assert any("tuned says" in line and "base says" in line for line in last.splitlines())
    assert all(len(line) <= shown_answers.WIDE for line in last.splitlines())
    assert last.count("word") == 80
    narrow = drawn(80, *both()).splitlines()
    assert not any("tuned says" in line and "base says" in line for line in narrow)
    heads = [number for number, line in enumerate(narrow) if line.startswith(("tuned ──", "base ──"))]
    assert [narrow[number + 1][:9] for number in heads] == ["tuned say", "base says"]
    assert not any("──" in line for line in drawn(80, both()[0]).splitlines())


def test_ctrl_c_stops_the_answer_in_the_making_only():
    stopped = Answer("tuned", lambda: reply("abcdef", interrupt_at=3), 9)
    whole = Answer("base", lambda: reply("ghi"), 9)
    out = drawn(80, stopped, whole)
    assert (stopped.text, whole.text) == ("abc", "ghi")
    assert "3 tokens" in out
    assert "· stopped" in out


def test_a_model_cannot_command_the_terminal():
    assert "␛[2Jgone" in drawn(80, Answer("tuned", lambda: reply("\x1b[2Jgone :smile: [bold]"), 9))
    assert ":smile: [bold]" in drawn(80, Answer("tuned", lambda: reply(":smile: [bold]"), 9))


def test_ctrl_c_at_the_prompt_ends_only_the_second_time(talk, monkeypatch):
    from frisket.cli.screen import Screen

    lines = iter([KeyboardInterrupt, "hello", KeyboardInterrupt, KeyboardInterrupt, "never"])

    def ask(self, go_on: bool = False) -> str:
        line = next(lines)
        if isinstance(line, str):
            return line
        raise line

    monkeypatch.setattr(Screen, "ask", ask)
    out = talk("")
    assert "tuned [1] hello" in out
    assert "once more" in out
    assert "never" not in out
