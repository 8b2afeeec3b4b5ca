"""`frisket view` on real data of several sources: what is shown, what is found, what is refused."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from frisket.errors import ConfigError, DataError
from frisket.recipe import Recipe
from frisket.report.mask_data import RowView
from frisket.run.prepare import Prepared, prepare
from frisket.run.viewing import find_sample, sample_rows, view
from frisket.watch import Silent

SHARED = "alpha beta gamma delta " * 10


@pytest.fixture(scope="module")
def recipe(small_model, tmp_path_factory) -> Recipe:
    folder = tmp_path_factory.mktemp("data")
    chats = [
        {"prompt": f"{SHARED}{'eta ' * (n % 7)}{n}", "completion": f"gamma {'delta ' * (n % 3)}"} for n in range(40)
    ]
    extra = [{"prompt": f"theta {n} \x1b[31m <script>", "completion": "iota"} for n in range(5)]
    for name, lines in (("chats.jsonl", chats), ("extra.jsonl", [*extra, {"prompt": "only", "completion": ""}])):
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = {
        "model": {"path": str(small_model)},
        "data": [{"path": str(folder / "chats.jsonl")}, {"path": str(folder / "extra.jsonl"), "bad": "drop"}],
        "attend": {"arrangement": "forest", "row_tokens": 600},
        "train": {"step_tokens": 900},
        "evaluate": {"learning": [{"name": "hold-out"}]},
    }
    return Recipe.model_validate(settings)


@pytest.fixture
def prepared(recipe) -> Prepared:
    return prepare(recipe, Silent())


def text_of(row: RowView, name: str) -> str:
    """The text of a sample of a row: that of the segments it is the path of."""
    return "".join("".join(row.pieces[s.start : s.stop]) for s in row.spans if name in s.samples)


def test_rows_hold_the_samples_and_what_each_policy_teaches(prepared):
    rows, note = sample_rows(prepared, 1000, 100_000, ["all"])
    assert note is None
    found = {name for row in rows for span in row.spans for name in span.samples}
    assert found == {prepared.dataset.sample_ids[i] for i in prepared.dataset.train}
    assert any(len(span.samples) > 2 for row in rows for span in row.spans)
    for policy, name in (("the recipe (assistant)", None), ("all", "all")):
        summed = sum(float(np.sum(row.policies[policy].weights)) for row in rows)
        assert summed == sum(prepared.explained(int(i), name)[1].sum() for i in prepared.dataset.train)
        predicted = sum(t.weight for row in rows for told in row.policies[policy].targets for t in told)
        assert predicted == summed
    for row in rows:
        for name in {name for span in row.spans for name in span.samples}:
            index = prepared.dataset.sample_ids.index(name)
            assert text_of(row, name) == prepared.tokenizer.decode(prepared.dataset[index].input_ids)
            assert row.places[name] == prepared.dataset.place(index)


def test_a_shared_token_says_that_weights_were_summed(prepared):
    rows, _ = sample_rows(prepared, 1000, 100_000, ["all"])
    row = next(row for row in rows if len(row.spans[0].samples) > 1)
    view, shared = row.policies["all"], row.spans[0]
    assert view.weights[1] == len(shared.samples)
    assert view.rules[1] == ("policy all", f"sum over the {len(shared.samples)} samples that share it and teach it")
    assert view.rules[0] == ("policy all", "first token: nothing predicts it")
    assert row.own.rules[1] == ("not taught by policy assistant",)


def test_caps_keep_the_first_samples_and_are_said(prepared):
    rows, note = sample_rows(prepared, 3, 100_000)
    found = {name for row in rows for span in row.spans for name in span.samples}
    first = [int(i) for step in prepared.order.epoch(0) for i in step.samples][:3]
    assert found == {prepared.dataset.sample_ids[i] for i in first}
    assert note.startswith(f"3 of {len(prepared.dataset.train)} samples are shown")
    assert len({s for row in sample_rows(prepared, 9, 1)[0] for span in row.spans for s in span.samples}) == 1


def test_a_sample_is_found_by_id_and_by_place(prepared):
    index = prepared.dataset.sample_ids.index("0:17")
    place = prepared.dataset.place(index)
    assert {find_sample(prepared, name) for name in ("0:17", place, Path(place).name)} == {index}


def test_an_unknown_sample_is_refused_with_the_nearest(prepared):
    with pytest.raises(DataError, match=r"--id 0:400: there is no such sample among \d+\.\nThe nearest: --id 0:40$"):
        find_sample(prepared, "0:400")
    with pytest.raises(DataError, match="was left out: "):
        find_sample(prepared, prepared.dataset.dropped[0]["sample"])


def test_a_sample_is_shown_in_its_row_whatever_the_caps(recipe, prepared, tmp_path):
    last = prepared.order.epoch(0)[-1].samples[-1]
    name = prepared.dataset.sample_ids[last]
    facts = view(recipe, out=tmp_path / "one.html", watcher=Silent(), sample=name, samples=1)
    assert facts["rows"] == 1
    assert facts["note"].startswith(f"Only the row of {name} is shown: step")
    page = (tmp_path / "one.html").read_text()
    assert f'"open":"{name}"' in page
    assert facts["samples"] >= 1
    held = prepared.dataset.sample_ids[prepared.dataset.held_out[0]]
    assert view(recipe, out=None, watcher=Silent(), sample=held)["note"] == f"{held} alone: it is held out."


def test_the_policies_to_compare_with_can_be_named(recipe, tmp_path):
    def shown(**named) -> list[str]:
        view(recipe, out=tmp_path / "page.html", watcher=Silent(), samples=2, **named)
        page = (tmp_path / "page.html").read_text()
        return json.loads(page.partition('id="mask-data">')[2].partition("</script>")[0])["policies"]

    assert shown() == ["the recipe (assistant)", "all"]
    assert shown(compare=["completion", "instructions"]) == ["the recipe (assistant)", "completion", "instructions"]
    assert shown(compare=[]) == ["the recipe (assistant)"]
    with pytest.raises(ConfigError, match=r"--compare asistant: there is no such policy.*\n--compare assistant"):
        shown(compare=["asistant"])


def test_rows_are_printed_where_a_terminal_is_given(recipe):
    file = io.StringIO()
    facts = view(recipe, out=None, watcher=Silent(), console=Console(file=file, width=90), samples=45)
    text = file.getvalue()
    assert "⟦" in text
    assert "‹assistant›" in text
    assert "shared by" in text
    assert "\x1b" not in text
    assert "␛[31m" in text
    assert facts["samples"] > 30
    assert view(recipe, out=None, watcher=Silent(), console=Console(file=io.StringIO()))["samples"] == 6


def test_a_sample_that_the_first_epoch_leaves_out_stands_alone(recipe):
    rare = recipe.model_copy(update={"data": (recipe.data[0], recipe.data[1].model_copy(update={"weight": 0.2}))})
    prepared = prepare(rare, Silent())
    used = {int(i) for step in prepared.order.epoch(0) for i in step.samples}
    left = next(int(i) for i in prepared.dataset.train if int(i) not in used)
    name = prepared.dataset.sample_ids[left]
    note = view(rare, out=None, watcher=Silent(), sample=name)["note"]
    assert note == f"{name} alone: the first epoch does not use it."
