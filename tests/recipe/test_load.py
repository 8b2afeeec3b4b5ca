"""Reading a recipe: files, overrides, the meaning of words, stages."""

import re
from pathlib import Path

import pytest

from frisket.errors import ConfigError
from frisket.recipe import Recipe, load_recipe


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text("data:\n  - {path: a.jsonl, prompt: q}\n  - {path: b.jsonl}\ntrain: {epochs: 2}\n")
    return path


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("2e-4", 2e-4),
        ("1e3", 1000.0),
        ("3", 3),
        ("010", 10),
        ("0x10", 16),
        ("-.5", -0.5),
        ("true", True),
        ("null", None),
        ("~", None),
        ("", None),
        ("off", "off"),
        ("no", "no"),
        ("yes", "yes"),
        ("on", "on"),
        ("1_000", "1_000"),
        ("12:30", "12:30"),
        ("2024-01-01", "2024-01-01"),
        ("*.q_proj", "*.q_proj"),
        ("#### (-?[0-9]+)", "#### (-?[0-9]+)"),
        ("a: b", "a: b"),
        ('"2e-4"', "2e-4"),
        ("[a, 1, 2e-4]", ["a", 1, 2e-4]),
        ("[*.q_proj, &x]", ["*.q_proj", "&x"]),
        ("{layers: 4-7}", {"layers": "4-7"}),
    ],
)
def test_words_mean_what_yaml_1_2_says(word: str, value: object) -> None:
    given = load_recipe(None, ["adapt.method=peft", "adapt.peft_type=VERA", f"adapt.options.x={word}"])
    found = given.adapt.options["x"]
    assert found == value
    assert type(found) is type(value)


def test_a_file_means_the_same_as_overrides(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text("train: {learning_rate: 2e-4, deterministic: off}\nadapt: {where: '*.q_proj'}\nname: x\n")
    words = ["train.learning_rate=2e-4", "train.deterministic=off", "adapt.where=*.q_proj", "name=x"]
    assert load_recipe(file) == load_recipe(None, words)
    assert load_recipe(file).train.learning_rate == 2e-4


def test_overrides_create_entries_in_order_and_the_last_wins() -> None:
    words = ["data.0.path=a", "data.1.path=b", "data.0.limit=3", "data.0.limit=4", "train.betas=[0.8, 0.9]"]
    recipe = load_recipe(None, words)
    assert [source.path for source in recipe.data] == ["a", "b"]
    assert recipe.data[0].limit == 4
    assert recipe.train.betas == (0.8, 0.9)


def test_model_and_data_are_sugar_and_data_replaces_the_list(file: Path) -> None:
    recipe = load_recipe(file, ["data.0.limit=5"], model="M", data=["c.jsonl"])
    assert recipe.model.path == "M"
    assert [(source.path, source.prompt, source.limit) for source in recipe.data] == [("c.jsonl", "q", 5)]
    assert [source.path for source in load_recipe(file, data=["x", "y", "z"]).data] == ["x", "y", "z"]


def test_the_default_method_is_lora() -> None:
    assert load_recipe(None, ["adapt.rank=8"]).adapt.rank == 8
    assert Recipe(adapt={"rank": 8}).adapt.method == "lora"
    assert Recipe().adapt.method == "lora"


def test_evaluation_can_be_switched_off_and_on_again(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text("evaluate: off\n")
    assert load_recipe(file).evaluate is None
    assert load_recipe(file, ["evaluate.every=0.5"]).evaluate.every == 0.5
    assert load_recipe(None).evaluate.every == 0.25


def test_names(file: Path, tmp_path: Path) -> None:
    assert load_recipe(file).name == "mine"
    assert load_recipe(None, data=["openai/gsm8k"]).name == "gsm8k"
    assert load_recipe(None).name == "run"
    (tmp_path / "recipe.yaml").write_text("name: told\n")
    assert load_recipe(tmp_path).name == "told"


def test_a_path_is_looked_for_here_first_then_beside_the_recipe(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.jsonl").touch()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert [source.path for source in load_recipe(file).data] == [str(tmp_path / "a.jsonl"), "b.jsonl"]
    (tmp_path / "elsewhere" / "a.jsonl").touch()
    assert load_recipe(file).data[0].path == "a.jsonl"


def test_stages_are_deltas_over_the_recipe(file: Path) -> None:
    stages = "[{train: {epochs: 5}}, {adapt: {method: full}, continue: true}, {evaluate: off, data: [{path: c}]}]"
    recipe = load_recipe(file, ["adapt.rank=4", f"stages={stages}"])
    first, second, third = (recipe.stage(index) for index in range(3))
    assert (first.train.epochs, first.adapt.rank, first.stages) == (5.0, 4, ())
    assert (second.train.epochs, second.adapt.method) == (2.0, "full")
    assert (third.evaluate, [source.path for source in third.data]) == (None, ["c"])
    assert [recipe.continues(index) for index in range(3)] == [False, True, False]


def test_the_recipes_of_the_repository_load() -> None:
    files = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
    assert {file.stem for file in files} >= {"demo", "gsm8k", "full"}
    for file in files:
        assert load_recipe(file).data


def test_a_recipe_does_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Recipe().name = "x"  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["=4"], r"'=4' is no override.*train\.epochs=2"),
        (["train..epochs=4"], "is no override"),
        (["adapt.where=[*"], "cannot be read as a list.*quote them twice"),
        (
            ["adapt.where=[embeddings[100:200], *.q_proj[:4], {layers: 4}]"],
            re.escape("\"adapt.where=['embeddings[100:200]', '*.q_proj[:4]', {layers: 4}]\""),
        ),
        (["adapt.where=[head[0:4]"], re.escape("Quote each text in it: \"adapt.where=['…', '…']\"")),
        (["data.2.path=x"], r"data has 0 entries.*data\.0\.path="),
        (["data.0.path=x", "data.path=y"], r"data is a list.*data\.0\.path="),
        (["model=x", "model.path=y"], r"model = 'x' has no keys.*Remove model"),
        (["train.epochs=1", "0.x=1"], "a recipe is no list"),
        (["train={}", "train.0=1"], r"train is no list"),
        (["=4", "data.3.path=x"], "2 overrides are wrong"),
    ],
)
def test_overrides_that_cannot_be_applied(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        load_recipe(None, words)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {epochs: 1\n", r"bad\.yaml:\d+: .*Close the bracket that opens in line 1"),
        ("train:\n  x: [1, 2\nname: a\n", r"bad\.yaml:\d+: .*Close the bracket that opens in line 2"),
        ("name: 'a\n", r"bad\.yaml:\d+: .*Close the quotes that open in line 1"),
        ("name: a: b\n", r"bad\.yaml:1: .*one `key: value` on a line"),
        ("train:\n\tepochs: 1\n", r"bad\.yaml:2: .*no tabs"),
        ("name: @me\n", r"bad\.yaml:1: .*needs quotes"),
        ("name: !me\n", r"bad\.yaml:1: .*needs quotes"),
        ("adapt:\n  where: *.q_proj\n", r"bad\.yaml:2: .*needs quotes"),
        ("- 1\n", r"holds a list, but a recipe is a mapping.\nIf these are samples: --data .*bad.yaml"),
        (
            "train: {epochs: 1}\ntrain: {epochs: 2}\n",
            r"bad\.yaml:2: no YAML: 'train' is given twice.\nKeep one of them",
        ),
        ("a: \x07\n", "not a text file"),
    ],
)
def test_files_that_are_no_recipe(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        load_recipe(file)


def test_a_list_and_what_is_no_yaml_are_told_apart(tmp_path: Path) -> None:
    file = tmp_path / "chats.json"
    file.write_text('[{"prompt": "a", "completion": "b"}]')
    with pytest.raises(ConfigError, match=r"holds a list, but a recipe is a mapping\.\nIf these are samples: --data "):
        load_recipe(file)
    file.write_text('[{"prompt": ')
    with pytest.raises(ConfigError, match=r"chats\.json:1: no YAML: "):
        load_recipe(file)


@pytest.mark.parametrize("name", ["chats.jsonl", "my chats.parquet", "chats.csv"])
def test_data_where_a_recipe_belongs(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text('{"messages": []}\n{"messages": []}\n')
    with pytest.raises(ConfigError, match=f"{name} is data, not a recipe.\nName it so: --data '?{tmp_path / name}"):
        load_recipe(tmp_path / name)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "demo.yaml").touch()
    with pytest.raises(ConfigError, match=r"there is no such recipe.\nThere is .*demo\.yaml"):
        load_recipe(tmp_path / "dmeo.yaml")
    with pytest.raises(ConfigError, match=r"no such recipe.\nGive a YAML file"):
        load_recipe(tmp_path / "nothing-like-it")
    with pytest.raises(ConfigError, match=r"a folder without recipe\.yaml"):
        load_recipe(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"name: \xe9\n")
    with pytest.raises(ConfigError, match="not a text file"):
        load_recipe(tmp_path / "latin.yaml")
