import json
import math
import re
from dataclasses import replace
from itertools import chain, repeat

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from frisket.report.mask_data import PolicyView, RowView, Target, Window, largest_weight, level, totals, visible
from frisket.report.mask_view import mask_fragment, mask_view
from frisket.types import Leaf

HOSTILE = "</script><img src=x onerror=alert(1)>&\"'"
FACTS = [("model", "bundled"), ("policy", "assistant")]


def expanded(runs: list) -> list:
    return list(chain.from_iterable(repeat(v, n) for v, n in zip(runs[::2], runs[1::2], strict=True)))


def blob(outline) -> dict:
    return json.loads(outline.scripts[0])


def told(outline, row: int = 0, policy: int = 0) -> dict[str, list]:
    """What the page's script reads of each token of a row."""
    facts = blob(outline)
    row_facts = facts["rows"][row]
    found = {name: expanded(runs) for name, runs in row_facts["policies"][policy].items()}
    found["rule"] = [facts["rules"][i] for i in found["rule"]]
    found["from"] = [facts["from"][i] for i in expanded(row_facts["from"])]
    found["position"] = [o + i for i, o in enumerate(expanded(row_facts["offset"]))]
    return {**found, "ids": row_facts["ids"]}


def with_policy(row: RowView, **changes) -> RowView:
    """The row with other weights, rules or targets of its own."""
    return replace(row, policies={"assistant": replace(row.own, **changes)})


def test_page_is_well_nested_and_loads_nothing(rows, read, assert_offline):
    outline = read(mask_view(rows, title="Rows", facts=FACTS, truncated_note=None))
    assert_offline(outline)
    assert len(outline.scripts) == 3
    assert "policy" in outline.text


def test_each_real_token_is_there_once_with_the_colour_of_its_weight(rows, read):
    outline = read(mask_view(rows, title="Rows", facts=[], truncated_note=None))
    styles = {0.0: "i", 1.0: "b", 0.25: "b p2", -0.5: "b n3"}
    real = [(row, i) for row in rows for i, s in enumerate(row.segments) if s >= 0]
    assert [style for style, _ in outline.tokens] == [styles[row.own.weights[i]] for row, i in real]
    assert [text for _, text in outline.tokens] == [visible(row.pieces[i]) for row, i in real]


def test_legend_names_every_weight_on_the_page(rows, read):
    text = read(mask_fragment(rows)).text
    for said in ("not taught", "weight -0.5 (pushed away)", "weight 0.25", "weight 1"):
        assert said in text


def test_legend_tells_the_sums_of_shared_tokens_from_what_one_sample_gives(read):
    text = " ".join(read(mask_fragment([forest()])).text.split())
    assert "weight 1; where samples share a token, the sum of theirs: 2" in text
    assert "A coloured token is taught" in text


def test_totals_equal_the_values(rows, read):
    found = {t.name: t for t in totals(rows)}
    real = [(row, i) for row in rows for i, s in enumerate(row.segments) if s >= 0]
    for name, t in found.items():
        weights = [row.own.weights[i] for row, i in real if row.provenance[i] == name]
        assert (t.tokens, t.taught) == (len(weights), sum(w != 0 for w in weights))
        assert t.negative == sum(w < 0 for w in weights)
        assert t.weight == pytest.approx(math.fsum(weights))
    assert sum(t.tokens for t in found.values()) == len(real)
    outline = read(mask_fragment(rows))
    shown = {line[0]: line[1:4] for line in outline.cells}
    assistant = found["assistant"]
    assert shown["assistant"] == [str(assistant.tokens), str(assistant.taught), str(assistant.negative)]
    assert shown["all"][0] == str(len(real))
    assert "5 of padding" in outline.text


@pytest.mark.parametrize(
    "where", ["piece", "place", "provenance", "rule", "target", "policy", "source", "title", "fact", "note"]
)
def test_texts_from_outside_are_never_markup(packed, sample_tokens, read, assert_offline, where):
    row = packed([sample_tokens("a b", "c", 1.0)])
    n = len(row)
    changed = {
        "piece": replace(row, pieces=[HOSTILE] * n),
        "place": replace(row, places={"0:1": HOSTILE}),
        "provenance": replace(row, provenance=[HOSTILE] * n),
        "rule": with_policy(row, rules=[(HOSTILE,)] * n),
        "target": with_policy(row, targets=[[Target(HOSTILE, 1, 1.0)]] * n),
        "policy": replace(row, policies={HOSTILE: row.own, "all": row.own}),
    }.get(where, row)
    title, fact = (HOSTILE if where == w else "x" for w in ("title", "fact"))
    note = HOSTILE if where == "note" else None
    sources = [HOSTILE, "b"] if where == "source" else []
    outline = read(mask_view([changed], title=title, facts=[(fact, fact)], truncated_note=note, sources=sources))
    assert_offline(outline)
    assert len(outline.scripts) == 3
    assert outline.attributes("onerror") == []
    if where == "rule":
        assert set(map(tuple, told(outline)["rule"])) == {(HOSTILE,)}
    elif where == "target":
        assert told(outline)["predicts"][0] == [[HOSTILE.replace(" ", "·"), 1, 1.0]]
    elif where == "provenance":
        assert set(outline.attributes("data-from")) == {HOSTILE}
    else:
        assert (HOSTILE if where != "piece" else visible(HOSTILE)) in outline.text


def test_no_text_can_end_or_nest_the_script_that_holds_the_data(packed):
    row = packed([[("a", "user", 0.0)]])
    html = mask_fragment([with_policy(row, rules=[("<!--<script></script <img src=x>",)])])
    held = re.findall(r'id="mask-data">(.*)</script>', html)[0]
    assert not set("<>&") & set(held)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_what_the_pointer_reads_is_what_was_given(read, data):
    n = data.draw(st.integers(1, 12))
    ids = data.draw(st.lists(st.integers(0, 3), min_size=n, max_size=n))
    weights = data.draw(st.lists(st.sampled_from([0.0, 1.0, -0.5, 0.1]), min_size=n, max_size=n))
    targets = [[Target("x", ids[i], weights[i])] if weights[i] else [] for i in range(1, n)] + [[]]
    row = RowView(
        pieces=["x"] * n,
        ids=ids,
        positions=data.draw(st.lists(st.integers(0, 4), min_size=n, max_size=n)),
        segments=[0] * n,
        parent_segments=[-1],
        leaves=[],
        places={},
        sources={},
        provenance=data.draw(st.lists(st.sampled_from(["user", "assistant"]), min_size=n, max_size=n)),
        policies={
            "assistant": PolicyView(
                weights=weights,
                rules=data.draw(st.lists(st.sampled_from([("a",), ("a", "b"), ()]), min_size=n, max_size=n)),
                targets=targets,
            )
        },
    )
    found = told(read(mask_fragment([row])))
    assert found["ids"] == ids
    assert found["position"] == row.positions
    assert found["from"] == row.provenance
    assert found["weight"] == weights
    assert [tuple(rules) for rules in found["rule"]] == row.own.rules
    assert found["predicts"] == [1 if target else 0 for target in targets]


def forest() -> RowView:
    """A prefix of three tokens with two continuations of two tokens each."""
    return RowView(
        pieces=["a", "b", "c", "d", "e", "f", "g"],
        ids=[1, 2, 3, 4, 5, 6, 7],
        positions=[0, 1, 2, 3, 4, 3, 4],
        segments=[0, 0, 0, 1, 1, 2, 2],
        parent_segments=[-1, 0, 0],
        leaves=[Leaf("0:1", 0, 1), Leaf("0:2", 0, 2)],
        places={"0:1": "x.jsonl:1"},
        sources={"0:2": 1},
        provenance=["user"] * 3 + ["assistant"] * 4,
        policies={
            "assistant": PolicyView(
                weights=[0, 0, 0, 1.0, 1.0, 1.0, 1.0],
                rules=[("policy assistant",)] * 7,
                targets=[
                    [],
                    [],
                    [Target("d", 4, 1.0), Target("f", 6, 1.0)],
                    [Target("e", 5, 1.0)],
                    [],
                    [Target("g", 7, 1.0)],
                    [],
                ],
            ),
            "all": PolicyView([0, 2.0, 2.0, 1.0, 1.0, 1.0, 1.0], [("policy all",)] * 7, [[]] * 7),
        },
    )


def depths_of(outline) -> list[str]:
    return [style.partition(";")[0] for style in outline.attributes("style") if "--depth" in style]


def test_a_forest_shows_parents_samples_and_several_predictions(read):
    outline = read(mask_fragment([forest()]))
    assert "shared by 2 samples x.jsonl:1, 0:2 segment 0, root" in outline.text
    assert "0:2 segment 2, child of segment 0" in outline.text
    assert "2 samples · 7 tokens · 3 more saved by sharing prefixes · 4 taught · 0 padding" in outline.text
    assert depths_of(outline) == ["--depth:0", "--depth:1", "--depth:1"]
    found = told(outline)
    assert found["predicts"] == [0, 0, [["d", 4, 1], ["f", 6, 1]], 1, 0, 1, 0]
    assert found["position"] == [0, 1, 2, 3, 4, 3, 4]


def test_the_script_knows_segments_samples_and_sources(read):
    facts = blob(read(mask_fragment([forest()], sources=["x.jsonl", "y.jsonl"], opened="0:2")))
    assert facts["rows"][0]["segments"] == [[0, -1, 0, 3, 2, [0, 1]], [1, 0, 3, 5, 1, [0]], [2, 0, 5, 7, 1, [1]]]
    assert facts["samples"] == [["0:1", "x.jsonl:1", 0, 0, 1], ["0:2", "", 1, 0, 2]]
    assert (facts["sources"], facts["open"], facts["policies"]) == (["x.jsonl", "y.jsonl"], "0:2", ["assistant", "all"])


def test_a_second_policy_has_its_own_weights_rules_and_totals(read):
    row = forest()
    outline = read(mask_fragment([row], sources=["x.jsonl", "y.jsonl"]))
    assert told(outline, policy=1)["weight"] == row.policies["all"].weights
    assert told(outline, policy=1)["rule"] == [["policy all"]] * 7
    lines = blob(outline)["totals"]
    assert lines[0][0] == [
        [*line[:5], f"{share:.1f}"] for line, share in zip(_shown(outline), (0, 100, 4 / 7 * 100), strict=True)
    ]
    assert lines[1][0][0] == ["user", "3", "2", "0", "4", "66.7"]
    # the shared prefix counts for the source of its first sample
    assert [lines[0][source][-1][1] for source in (1, 2)] == ["5", "2"]


def _shown(outline) -> list[list[str]]:
    return [line for line in outline.cells if line and line[0] != "provenance"]


def test_colours_are_by_what_one_sample_gives(packed):
    row = forest()
    assert largest_weight([row]) == 1.0
    assert [level(weight, 1.0) for weight in (0, 0.1, 0.2, 0.21, 1.0, 2.0, -0.5)] == [0, 1, 1, 2, 5, 5, 3]


def test_a_chain_is_not_indented_and_its_samples_are_one_segment_each(read):
    chain_leaves = [Leaf("0:1", 0, 0), Leaf("0:2", 1, 1), Leaf("0:3", 2, 2)]
    row = replace(forest(), parent_segments=[-1, 0, 1], leaves=chain_leaves)
    outline = read(mask_fragment([row]))
    assert depths_of(outline) == ["--depth:0"] * 3
    assert "0:3 segment 2, child of segment 1" in outline.text
    assert row.flat_tokens == row.real_tokens == 7


def test_a_shared_segment_names_three_samples_and_counts_the_rest(read):
    leaves = [Leaf(f"0:{i}", 0, 1) for i in range(6)]
    assert (
        "shared by 6 samples 0:0, x.jsonl:1, 0:2 and 3 more segment 0"
        in read(mask_fragment([replace(forest(), leaves=leaves)])).text
    )


def test_a_long_segment_stands_in_blocks_that_join_to_it(packed, read):
    tokens = [(f"w{i}" + "\n" * (i % 90 == 0), "user", 0.0) for i in range(2000)]
    outline = read(mask_fragment([packed([tokens])]))
    assert len(outline.tokens) == 2000
    assert outline.attributes("class").count("tokens") == 5
    one_line = read(mask_fragment([packed([[("w", "user", 0.0)] * 1700])]))
    assert one_line.attributes("class").count("tokens") == 3


def test_segments_that_teach_nothing_can_be_filtered(rows, read):
    outline = read(mask_fragment([forest()]))
    classes = [c for c in outline.attributes("class") if c in ("segment", "segment empty")]
    assert classes == ["segment empty", "segment", "segment"]
    assert outline.attributes("class").count("run none") == 1
    assert "taught-only" in outline.attributes("class")


def test_a_cap_is_said_at_the_top(rows, read):
    note = "Shown: 200 of 9,000 samples."
    html = mask_view(rows, title="Rows", facts=[], truncated_note=note)
    assert html.index(note) < html.index('class="legend"') < html.index('class="row"')
    assert 'class="callout"' not in mask_view(rows, title="Rows", facts=[], truncated_note=None)


@pytest.mark.parametrize(
    ("piece", "shown"),
    [
        ("  x ", "··x·"),
        ("\n\n", "↵↵"),
        ("\r\n\t", "␍↵→"),
        ("\x1b[0m\x7f", "␛[0m␡"),
        ("\u200b\u202e\ufeff", "⟨U+200B⟩⟨U+202E⟩⟨U+FEFF⟩"),
        ("\ud800\ue000", "⟨U+D800⟩⟨U+E000⟩"),
        ("\u00a0\u2003", "⍽⟨U+2003⟩"),
        ("\u0301", "◌\u0301"),
        ("", "∅"),
        ("größer", "größer"),
    ],
)
def test_what_cannot_be_seen_is_made_visible(piece, shown):
    assert visible(piece) == shown


def test_lines_break_after_newlines_and_nowhere_else(packed):
    html = mask_fragment([packed([[("a↵\n\u0301", "user", 0.0), ("↵", "user", 0.0), ("\n\n", "user", 1.0)]])])
    assert "<i>a↵↵<br>◌\u0301</i> <i>↵</i> " in html
    assert "<b>↵<br>↵<br></b> " in html


def test_the_page_says_what_another_policy_keeps(read):
    said = "show what other policies would teach, with the recipe's own roles, rules and weights."
    assert said in read(mask_fragment([forest()])).text
    alone = replace(forest(), policies={"assistant": forest().own})
    assert said not in read(mask_fragment([alone])).text


def test_the_script_knows_the_window(read):
    assert blob(read(mask_fragment([forest()])))["rows"][0]["window"] is None
    windowed = replace(forest(), window=Window(128, 12, 24))
    assert blob(read(mask_fragment([windowed])))["rows"][0]["window"] == [128, 12, 24]


def test_page_can_be_written_as_utf8_whatever_the_pieces(packed, read):
    tokens = [(chr(c), "user", 0.0) for c in (*range(0x00, 0x100), 0xD800, 0x2028, 0xFFFE, 0x1F5A8)]
    html = mask_fragment([packed([tokens])])
    html.encode("utf-8")
    assert len(read(html).tokens) == len(tokens)


def test_no_rows_and_no_weights(packed, read):
    assert "There is no row to show." in read(mask_fragment([])).text
    outline = read(mask_fragment([packed([[("a", "user", 0.0)]])]))
    assert [style for style, _ in outline.tokens] == ["i"]


def test_numpy_fields_are_taken_as_they_are():
    row = forest()
    arrays = {n: np.asarray(getattr(row, n)) for n in ("ids", "positions", "segments", "parent_segments")}
    same = replace(
        row,
        **arrays,
        policies={n: replace(view, weights=np.asarray(view.weights, float)) for n, view in row.policies.items()},
    )
    assert mask_fragment([same]) == mask_fragment([row])


def test_fields_of_unequal_length_are_refused():
    with pytest.raises(ValueError, match="differ in length"):
        with_policy(forest(), rules=[("policy assistant",)])
    with pytest.raises(ValueError, match="differ in length"):
        replace(forest(), ids=[1])


def test_a_token_costs_few_bytes(packed, sample_tokens):
    samples = [sample_tokens("How many clips " * 20, "She sold seventy two clips " * 20, 1.0) for _ in range(100)]
    row = packed(samples)
    assert len(row) > 10_000
    assert len(mask_fragment([row]).encode()) / len(row) < 30
