"""What is said about unknown keys and unfit values."""

import shlex
from pathlib import Path

import pytest

from frisket.errors import ConfigError
from frisket.recipe import Recipe, knobs, load_recipe


def refused(*words: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_recipe(None, words)
    message = str(caught.value)
    assert len(message.splitlines()) <= 4
    return message


@pytest.mark.parametrize(
    ("word", "message", "fix"),
    [
        ("train.epohcs=3", "train.epohcs (override): there is no such key", "Did you mean train.epochs=3"),
        ("model.pth=x", "no such key", "model.path=x"),
        ("trian.epochs=3", "trian (override): there is no such key", "Did you mean train"),
        ("wibble=3", "no such key", "Keys of a recipe: name, model, data"),
        ("train.wibble=3", "no such key", "Keys of train: epochs"),
        ("lora_r=8", "no such key", "In frisket it is adapt.rank"),
        ("adapt.r=8", "no such key", "In frisket it is adapt.rank"),
        ("train.lora_alpha=8", "no such key", "adapt.alpha"),
        ("per_device_train_batch_size=8", "no such key", "train.step_tokens"),
        ("learning_rate=1", "no such key", "In frisket it is train.learning_rate"),
        ("sequence-len=1", "no such key", "data.0.max_tokens"),
        ("num_train_epochs=1", "no such key", "train.epochs"),
        ("output_dir=x", "no such key", "command line: --out OUT"),
        (
            "adapt={method: full, rank: 3}",
            "adapt.rank (override): there is no such key in method 'full'",
            "{method: full}",
        ),
    ],
)
def test_an_unknown_key_is_answered_with_the_right_one(word: str, message: str, fix: str) -> None:
    first, last = refused(word).splitlines()
    assert message in first
    assert fix in last


def test_every_name_of_another_tool_leads_to_its_knob() -> None:
    known = set(Recipe.model_fields)
    for knob in knobs():
        for name in knob.was:
            if name not in known:
                assert knob.name.replace(".N.", ".0.") in refused(f"{name}=1")


@pytest.mark.parametrize(
    ("word", "message", "fix"),
    [
        (
            "data=[{path: d, roles: {agent: asistant}}]",
            "data.0.roles.agent = 'asistant' (override) must be 'system', 'user', 'assistant' or 'tool'",
            "data.0.roles.agent=assistant",
        ),
        (
            "train.learning_rate=fast",
            "= 'fast' (override) must be a number above 0 or 'auto'",
            "train.learning_rate=auto",
        ),
        ("train.step_tokens=-1", "= -1 (override) must be a whole number above 0 or 'auto'", "train.step_tokens=auto"),
        ("train.final_rate=2", "must be a number of at least 0 and of at most 1", "train.final_rate=0.0"),
        ("train.epochs=x", "must be a number above 0 or null", "train.epochs=null"),
        ("train.clip=.inf", "must be a finite number", "train.clip=1.0"),
        ("train.betas=[a, 1]", "train.betas.0 = 'a' (override) must be a valid number", "train.betas=[0.9, 0.999]"),
        ("supervise.policy=asistant", "must be 'assistant', 'completion', 'last-turn'", "supervise.policy=assistant"),
        (
            "supervise.roles={asistant: 1}",
            "supervise.roles.asistant (override): the key 'asistant' must be 'bos', 'template', 'system', 'user', ",
            "supervise.roles.assistant=1",
        ),
        ("supervise.roles.asistant=0.5", "(weights by provenance, instead", "supervise.roles.assistant=0.5"),
        ("supervise.roles={asistant: .nan}", "the key 'asistant' must be", "supervise.roles.assistant=1"),
        (
            "adapt={method: peft, peft_type: VERA, options: {3: 1}}",
            "the key 3 must be text (fields",
            "adapt.options={}",
        ),
        (
            "supervise.roles={wibble: 1}",
            "supervise.roles.wibble (override): the key 'wibble' must be",
            "supervise.roles={}",
        ),
        ("supervise.roles={3: 1}", "supervise.roles.3 (override): the key 3 must be", "supervise.roles={}"),
        (
            "supervise.roles={assistant: .nan}",
            "supervise.roles.assistant = NaN (override) must be a finite number",
            "supervise.roles.assistant=1",
        ),
        (
            "supervise.roles={assistant: fast}",
            "supervise.roles.assistant = 'fast' (override) must be a number",
            "supervise.roles.assistant=1",
        ),
        ("supervise.roles=3", "supervise.roles = 3 (override) must be a mapping", "supervise.roles={}"),
        (
            "supervise.rules=[{roles: [asistant], weight: 1}]",
            "supervise.rules.0.roles.0 = 'asistant' (override) must be 'bos', 'template'",
            "supervise.rules.0.roles=null",
        ),
        ("adapt.method=loar", "must be one of full, lora", "adapt.method=lora"),
        ("adapt.method=peft", "adapt.peft_type is required", "adapt.peft_type=…"),
        ("adapt.where=3", "must be text or a list", "adapt.where=all-linear"),
        ("adapt=full", "must be a mapping", "adapt.method=full"),
        ("model=some/model", "must be a mapping", "model.path=some/model"),
        ("data=x.jsonl", "must be a list of mappings", "data.0.path=x.jsonl"),
        ("data={path: x}", "must be a list of mappings", "data.0.path=…"),
        ("data.0.limit=3", "data.0.path is required: JSONL", "data.0.path=…"),
        (
            "data=[{path: x, limit: many}]",
            "data.0.limit = 'many' (override) must be a whole number",
            "data.0.limit=null",
        ),
        ("stages=3", "stages must be a list of mappings", "stages=[{train: {epochs: 1}}]"),
        ("stages=[{train: {epochs: -1}}]", "stages.0.train.epochs = -1", "stages.0.train.epochs=null"),
        ("stages=[{train: {epohcs: 1}}]", "stages.0.train.epohcs", "stages.0.train.epochs=1"),
        (
            "stages=[{}, {model: {}}]",
            "stages.1.model (override): a stage cannot change this",
            "A stage may change: data",
        ),
        ("stages=[{continue: 3}]", "stages.0.continue = 3 must be true or false", "stages.0.continue=true"),
    ],
)
def test_an_unfit_value_is_named_with_what_is_required_and_a_fix(word: str, message: str, fix: str) -> None:
    first, last = refused(word).splitlines()
    assert message in first
    assert fix in last


ROLES = tuple(f"supervise.roles={{{entry}}}" for entry in ("asistant: 1", "wibble: 1", "assistant: .nan", "tool: fast"))


def test_the_fixes_work() -> None:
    for wrong in (
        "train.learning_rate=fast",
        "supervise.policy=asistant",
        "train.betas=[a, 1]",
        "adapt.method=loar",
        *ROLES,
    ):
        load_recipe(None, shlex.split(refused(wrong).splitlines()[-1]))  # as a shell reads it


def test_all_problems_of_a_file_are_gathered_with_their_lines(tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text("lora_r: 8\ntrain:\n  epohcs: 3\n  clip: x\ndata:\n  - {promt: q}\nstages: [{train: {clip: y}}]\n")
    with pytest.raises(ConfigError) as caught:
        load_recipe(file, ["model.path=3"])
    lines = str(caught.value).splitlines()
    assert lines[0].endswith("bad.yaml: 7 problems")
    assert len(lines) == 8
    for part in (
        "lora_r ({}:1)",
        "train.epohcs ({}:3)",
        "train.clip = 'x' ({}:4)",
        "data.0.promt ({}:6)",
        "data.0.path is required",
        "stages.0.train.clip = 'y' ({}:7)",
        "model.path = 3 (override) must be text",
    ):
        assert part.format(file) in str(caught.value)


def test_a_method_on_the_command_line_against_keys_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text("adapt: {rank: 4}\n")
    with pytest.raises(
        ConfigError, match=r"adapt\.rank \(.*x\.yaml:1\): .* belongs to lora[ a-z,]*\.\n.*'adapt=\{method: full\}'"
    ):
        load_recipe(file, ["adapt.method=full"])
    assert load_recipe(file, ["adapt={method: full}"]).adapt.method == "full"


def test_python_callers_get_the_same_words() -> None:
    with pytest.raises(ConfigError, match=r"train\.epohcs: there is no such key.\nDid you mean train\.epochs=1"):
        Recipe(train={"epohcs": 1})
