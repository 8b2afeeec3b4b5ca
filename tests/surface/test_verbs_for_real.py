"""The commands of the README, on the bundled base, from the first word to the last file."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from frisket.cli.main import run_words

SMALL = [
    "train.max_steps=3",
    "train.step_tokens=1024",
    "train.learning_rate=3e-3",
    "evaluate.forgetting.0.prompts=4",
    "evaluate.forgetting.0.answer_tokens=4",
    "evaluate.forgetting.0.text_tokens=512",
]


@pytest.fixture(scope="module")
def chats(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("chats") / "chats.jsonl"
    lines = [
        {
            "messages": [
                {"role": "user", "content": f"What is {n} and {n}?"},
                {"role": "assistant", "content": f"It is {2 * n}."},
            ]
        }
        for n in range(60)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def run_folder(chats, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("out") / "chats"
    assert run_words(["train", "--model", "bundled", "--data", str(chats), "--out", str(out), *SMALL]) == 0
    return out


def told(capsys, words) -> dict:
    """Exit code 0, and nothing but one JSON object on standard output."""
    capsys.readouterr()
    assert run_words([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_train_leaves_a_whole_folder(run_folder):
    summary = json.loads((run_folder / "summary.json").read_text())
    assert summary["steps"] == 3
    assert summary["learning"]["hold-out"]["after"]["loss"] > 0
    for path in summary["artifacts"].values():
        assert (run_folder / path).exists()


def test_plan_and_view(chats, capsys, tmp_path):
    plan = told(capsys, ["plan", "--model", "bundled", "--data", str(chats), *SMALL])
    assert plan["samples"] == 52
    assert plan["held_out"] == 8
    assert plan["model"]["moving"] == 573_440
    page = tmp_path / "deep" / "view.html"
    told(capsys, ["view", "--model", "bundled", "--data", str(chats), "--out", str(page)])
    assert "chats.jsonl:" in page.read_text()
    names = told(capsys, ["plan", "--model", "bundled", "--names"])
    assert "model.layers.0.self_attn.q_proj" in names["modules"]


def test_generate_answers_several_prompts_beside_the_base(run_folder, capsys):
    words = ["generate", str(run_folder), "--prompt", "What is 2 and 2?", "--prompt", "What is 3?", "--beside-base"]
    answers = told(capsys, [*words, "--max-new-tokens", "4"])["answers"]
    assert len(answers) == 2
    assert {"messages", "answer", "base"} <= set(answers[0])


def test_evaluate_measures_again(run_folder, capsys):
    before = (run_folder / "summary.json").read_bytes()
    measured = told(capsys, ["evaluate", str(run_folder)])
    known = json.loads(before)["learning"]["hold-out"]["after"]["loss"]
    assert abs(measured["learning"]["hold-out"]["after"]["loss"] - known) < 0.02
    assert (run_folder / "summary.json").read_bytes() == before


def test_export_equals_the_unmerged_model(run_folder, capsys, tmp_path):
    target = tmp_path / "merged"
    facts = told(capsys, ["export", str(run_folder), "--to", "merged", "--into", str(target)])
    assert facts["difference_fp32"] <= 1e-5 * max(1, facts["largest_logit"])
    model = AutoModelForCausalLM.from_pretrained(target)
    assert model.dtype == torch.bfloat16
    assert told(capsys, ["export", str(run_folder), "--into", str(target)]) == facts
    assert run_words(["export", str(run_folder), "--into", str(tmp_path), "--json"]) == 2


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # plain PEFT reads it
def test_the_adapter_gives_the_same_logits_in_plain_peft(run_folder):
    from peft import PeftModel

    from frisket import bundled
    from frisket.hf.forward import hidden_states
    from frisket.hf.heads import head_of
    from frisket.run.exporting import real_rows
    from frisket.run.opening import open_folder

    opened = open_folder(run_folder, compute="fp32")
    plain = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(bundled.base_path(), dtype=torch.float32), str(run_folder / "adapter")
    )
    with torch.no_grad():
        for rows in real_rows(opened.recipe, opened.tokenizer):
            ours = head_of(opened.model).logits(hidden_states(opened.model, rows))
            theirs = plain(input_ids=torch.from_numpy(rows.input_ids), use_cache=False).logits[0]
            assert (ours - theirs).abs().max() <= 1e-5 * max(1.0, float(theirs.abs().max()))


def test_resume_of_a_finished_run_changes_nothing(run_folder, capsys):
    before = (run_folder / "summary.json").read_bytes()
    assert told(capsys, ["train", str(run_folder), "--resume"])["steps"] == 3
    assert (run_folder / "summary.json").read_bytes() == before


BAD = {
    "not json": ('{"messages": [', "not valid JSON"),
    "unknown role": ('{"messages": [{"role": "wizard", "content": "x"}]}', "wizard"),
    "empty messages": ('{"messages": []}', "empty"),
    "wrong type": ('{"messages": "hello"}', "messages"),
    "ends with the user": ('{"messages": [{"role": "user", "content": "x"}]}', "nothing is supervised"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_with_its_line_and_leaves_nothing(case, capsys, tmp_path):
    line, word = BAD[case]
    good = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
    path = tmp_path / "bad.jsonl"
    path.write_text(good * 2 + line + "\n" + good)
    capsys.readouterr()
    code = run_words(
        ["train", "--model", "bundled", "--data", str(path), "--out", str(tmp_path / "out"), "--json", *SMALL]
    )
    message = json.dumps(json.loads(capsys.readouterr().out)["error"])
    assert code == 2
    assert "bad.jsonl:3" in message
    assert word in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("override", "word"),
    [
        ("train.lerning_rate=1", "learning_rate"),
        ("adapt.where=*.qproj", "matched 0 of"),
        ("model.template=nowhere.jinja", "nowhere.jinja"),
        ("data.0.max_tokens=5", "too_long"),
        ("model.path=./no/such/folder", "no such folder"),
        ("adapt={method: peft, peft_type: PROMPT_TUNING}", "soft prompts"),
    ],
)
def test_bad_settings_are_refused_with_the_fix(override, word, chats, capsys, tmp_path):
    capsys.readouterr()
    words = ["train", "--model", "bundled", "--data", str(chats), "--out", str(tmp_path / "out"), "--json"]
    assert run_words([*words, *SMALL, override]) == 2
    assert word in json.dumps(json.loads(capsys.readouterr().out)["error"])
    assert not (tmp_path / "out").exists()
