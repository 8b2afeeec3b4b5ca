"""A dumped recipe loads back equal; the schema and the list of knobs say everything once."""

import string
import tempfile
from pathlib import Path

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from frisket.recipe import Recipe, dump, knobs, load_recipe, schema

TRICKY = [
    "off",
    "2e-4",
    "null",
    "~",
    "1_0",
    "yes",
    "*x",
    "0o7",
    "",
    "2024-01-01",
    " a ",
    "a\nb",
    "a: b",
    "#x",
    "\x85",
    "[",
    "<<",
]
words = st.sampled_from(TRICKY) | st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
floats = st.floats(min_value=1e-12, max_value=1e12)
values = st.none() | st.booleans() | st.integers() | floats | words
sources = st.fixed_dictionaries(
    {"path": words},
    optional={"limit": st.integers(1, 10**12), "weight": floats, "system": words, "shots": st.just({"path": "s"})},
)
methods = st.fixed_dictionaries({}, optional={"rank": st.integers(1, 64), "alpha": floats}) | st.fixed_dictionaries(
    {
        "method": st.just("peft"),
        "peft_type": words,
        "options": st.dictionaries(words, values | st.lists(values), max_size=3),
    }
)
recipes = st.fixed_dictionaries(
    {"name": st.none() | words},
    optional={
        "data": st.lists(sources, max_size=3),
        "adapt": methods,
        "train": st.fixed_dictionaries(
            {}, optional={"learning_rate": floats | st.just("auto"), "seed": st.integers(0)}
        ),
        "evaluate": st.just("off") | st.fixed_dictionaries({"every": floats}),
        "stages": st.lists(
            st.fixed_dictionaries({}, optional={"train": st.just({"epochs": 2}), "continue": st.booleans()})
        ),
    },
)


@given(recipes)
@settings(max_examples=30, deadline=None)
def test_a_dumped_recipe_loads_back_equal(given_values: dict) -> None:
    recipe = Recipe.model_validate(given_values)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "recipe.yaml"
        file.write_text(dump(recipe), encoding="utf-8")
        assert load_recipe(file) == recipe
        assert load_recipe(folder) == recipe


@given(words)
@settings(max_examples=30, deadline=None)
def test_words_read_the_same_in_either_version_of_yaml(word: str) -> None:
    assert yaml.safe_load(dump(Recipe(model={"path": word})))["model"]["path"] == word


def test_the_resolved_recipe_holds_every_knob() -> None:
    text = yaml.safe_load(dump(Recipe(data=[{"path": "x"}])))
    assert text["train"]["step_tokens"] == "auto"
    assert text["data"][0]["bad"] == "error"
    assert text["adapt"]["method"] == "lora"
    assert yaml.safe_load(dump(Recipe(evaluate="off")))["evaluate"] == "off"


def test_the_schema_has_help_and_the_names_of_other_tools() -> None:
    found = schema()
    assert found["$defs"]["Lora"]["properties"]["rank"]["was"] == ["r", "lora_r", "lora_rank"]
    for name, section in found["$defs"].items():
        for key, knob in section["properties"].items():
            assert "description" in knob or key == "method", f"{name}.{key} has no help"
    assert found["additionalProperties"] is False


def test_knobs_name_every_field_once() -> None:
    found = knobs()
    by_name = {knob.name: knob for knob in found}
    assert by_name["train.learning_rate"].type == "a number above 0 or 'auto'"
    assert by_name["train.learning_rate"].default == "auto"
    assert by_name["data.N.path"].default is None
    assert [knob.methods for knob in found if knob.name == "adapt.rank"] == [("lora",), ("mora",)]
    assert len({(knob.name, knob.methods) for knob in found}) == len(found)
    assert all(set(knob.name) <= set(string.ascii_letters + string.digits + "._") for knob in found)
