"""What a person does with the mask view, in a real browser, against the reference where there is one."""

from dataclasses import replace

import numpy as np
import pytest
from playwright.sync_api import Page, expect
from tests.browser.rows import family, sequence, views

from frisket.attend.reference import visible as reference
from frisket.report.mask_data import Window, level, totals, visible

CLICK_ALL = """row => {
  const tokens = [...document.querySelectorAll(`#row-${row} .tokens :is(i, b)`)];
  return tokens.map((token) => {
    token.dispatchEvent(new MouseEvent("click", {bubbles: true}));
    const lit = tokens.map((other) => (other.closest("[data-dim]") ? "0" : "1")).join("");
    token.dispatchEvent(new MouseEvent("click", {bubbles: true}));
    return lit;
  });
}"""
FRAMES = "(async () => { for (let i = 0; i < 8; i += 1) await new Promise(requestAnimationFrame); })()"
SHOWN = "document.querySelectorAll('.tokens :is(i, b)')"


def token(page: Page, place: int, row: int = 0):
    return page.locator(f"#row-{row} .tokens :is(i, b)").nth(place)


def told(page: Page) -> dict[str, str]:
    """What the inspector says; headings of policies are left out."""
    pairs = "[...document.querySelectorAll('#inspector dd')].map(d => [d.previousSibling.textContent, d.textContent])"
    return dict(page.evaluate(pairs))


def classes(page: Page) -> list[str]:
    """Colour of each token, from its element and class."""
    return page.evaluate(f"[...{SHOWN}].map(t => t.className || (t.localName === 'b' ? 'p5' : 'p0'))")


@pytest.mark.parametrize("arrangement", ["isolated", "forest", "mask-free", "padded"])
def test_what_is_lit_is_what_the_reference_says_is_seen(open_page, arrangement):
    shown = views([*family(6), sequence("0:30", range(20, 31))], arrangement, 120)
    page = open_page([view for _, _, view in shown])
    for number, (rows, row, _) in enumerate(shown):
        wanted = reference(rows, row)[np.ix_(rows.is_real[row], rows.is_real[row])]
        lit = page.evaluate(CLICK_ALL, number)
        assert np.array_equal(np.array([[c == "1" for c in line] for line in lit]), wanted)


def test_a_click_dims_a_second_click_and_escape_clear(open_page):
    ((_, _, row),) = views(family(4), "forest", 500)
    page = open_page([row])
    token(page, 14).click()
    dims = page.locator("[data-dim]")
    assert dims.count() > 3
    colours = [token(page, i).evaluate("t => getComputedStyle(t).color") for i in (14, 16)]
    assert colours[0] != colours[1]
    assert page.locator("#segment-0-3").evaluate("s => Number(getComputedStyle(s).opacity)") < 0.5
    token(page, 14).click()
    expect(dims).to_have_count(0)
    token(page, 14).click()
    page.keyboard.press("Escape")
    expect(dims).to_have_count(0)


def test_hover_tells_all_of_a_token(open_page):
    ((rows, _, row),) = views(family(4), "forest", 500)
    page = open_page([row])
    place = row.spans[1].start
    assert "a shared prefix stands once" in page.inner_text(".tree figcaption")
    token(page, place).hover()
    said = told(page)
    assert said["token"] == visible(row.pieces[place])
    assert said["id"] == str(row.ids[place])
    assert said["provenance"] == row.provenance[place]
    assert said["position"] == str(row.positions[place])
    assert said["segment"] == f"{row.segments[place]}, child of 0, shared by 2 samples"
    assert said["sees"] == f"{reference(rows, 0)[place].sum()} of {len(row)} tokens of the row"
    assert said["by the rules"] == "policy assistant\n→ rule 1: × 1"
    page.mouse.move(5, 5)
    expect(page.locator("#inspector")).to_be_hidden()
    branch = row.spans[0].stop - 1
    page.select_option("#policy-a", label="all")
    token(page, branch).hover()
    lines = told(page)["predicts"].split("\n")
    assert len(lines) == len(row.policies["all"].targets[branch]) > 1
    assert lines[0].endswith("weight 2)")
    assert told(page)["by the rules"] == "policy all\n→ sum over the 4 samples that share it and teach it"


def test_a_window_is_told_where_it_hides_something(open_page):
    ((_, _, row),) = views(family(4), "forest", 500)
    page = open_page([replace(row, window=Window(15, 2, 3))])
    place = row.spans[-1].stop - 1
    token(page, place).hover()
    seen = row.positions[place] + 1
    assert seen > 15
    nearest = "the nearest 15 of them in 2 of 3 layers (sliding window)"
    assert told(page)["sees"] == f"{seen} of {len(row)} tokens of the row\n{nearest}"
    assert "2 of 3 layers see the nearest 15 tokens only" in page.inner_text(".mask figcaption")
    token(page, row.spans[0].start + 3).hover()
    assert told(page)["sees"] == f"4 of {len(row)} tokens of the row"


def test_characters_of_several_tokens_and_new_lines_are_shown_as_such(open_page):
    texts = ["�", "�", "日", "�本", "語\n", "↵", "👩\u200d", "e", "\u0301"]
    ((_, _, row),) = views([sequence("0:1", range(9))], "isolated", 50, pieces=texts.__getitem__)
    page = open_page([row])
    assert page.evaluate(f"[...{SHOWN}].map(t => t.textContent)") == [visible(text) for text in texts]
    assert page.locator(".tokens br").count() == 1
    token(page, 3).hover()
    assert told(page)["predicts"].startswith("語↵  (id 4, weight 1)")


def test_the_keyboard_does_what_the_pointer_does(open_page):
    ((_, _, row),) = views(family(3), "isolated", 500)
    page = open_page([row])
    page.locator("#find").focus()
    while page.evaluate("!document.activeElement.matches('.tokens')"):
        page.keyboard.press("Tab")
    assert told(page)["token"] == visible(row.pieces[0])
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert told(page)["position"] == "2"
    page.keyboard.press("Enter")
    assert page.locator("[data-dim]").count() == len(row.spans) - 1 + row.spans[0].stop - 3
    page.keyboard.press("End")
    assert told(page)["position"] == str(row.spans[0].stop - 1)
    page.keyboard.press("Home")
    assert told(page)["position"] == "0"
    page.keyboard.press("Escape")
    expect(page.locator("[data-dim]")).to_have_count(0)
    page.keyboard.press("Escape")
    expect(page.locator("#inspector")).to_be_hidden()


def test_two_policies_are_compared(open_page):
    shown = [view for _, _, view in views(family(5), "forest", 60)]
    page = open_page(shown)
    first = classes(page)
    page.select_option("#policy-b", label="all")
    real = [(row, i) for row in shown for i, s in enumerate(row.segments) if s >= 0]
    differs = [row.own.weights[i] != row.policies["all"].weights[i] for row, i in real]
    assert page.evaluate(f"[...{SHOWN}].map(t => t.hasAttribute('data-differs'))") == differs
    new = sum(row.own.weights[i] == 0 for (row, i), hit in zip(real, differs, strict=True) if hit)
    counted = f"{sum(differs)} of {len(real)} tokens differ: {new} taught only by “all”, {sum(differs) - new} with"
    assert counted in page.inner_text("#differing")
    assert 0 < new < sum(differs)
    page.check(".differing-only")
    assert page.evaluate(f"[...{SHOWN}].map(t => t.offsetParent !== null)") == differs
    page.select_option("#policy-b", label="no other")
    assert page.is_checked(".show-all")
    assert page.locator("[data-differs]").count() == 0
    for name in ("odd", "all"):
        page.select_option("#policy-a", label=name)
        weights = [row.policies[name].weights[i] for row, i in real]
        assert classes(page) == [f"{'n' if w < 0 else 'p'}{level(w, 1.0)}" for w in weights]
        found = {t.name: t for t in totals(shown, name)}
        line = page.locator("#totals tr", has_text="assistant").locator("td").all_inner_texts()
        assert line[1:3] == [str(found["assistant"].taught), str(found["assistant"].negative)]
        whole = page.locator("#totals tr").last.locator("td").all_inner_texts()
        assert whole[1] == str(sum(w != 0 for w in weights))
        in_heads = page.evaluate("[...document.querySelectorAll('summary .taught')].map(t => Number(t.textContent))")
        assert sum(in_heads) == sum(w != 0 for w in weights)
    page.select_option("#policy-a", label="the recipe (assistant)")
    assert classes(page) == first


def test_filters_by_source_and_by_what_is_taught(open_page):
    samples = family(3, source=0) + family(2, source=1, line=40)
    shown = [view for _, _, view in views(samples, "isolated", 60)]
    page = open_page(shown, sources=["chats.jsonl", "extra.csv"])
    page.select_option("#source", label="extra.csv")
    wanted = [row.source_of(span) == 1 for row in shown for span in row.spans]
    assert page.evaluate("[...document.querySelectorAll('.segment')].map(s => s.offsetParent !== null)") == wanted
    counted = sum(t.tokens for t in totals(shown, source=1))
    assert page.locator("#totals tr").last.locator("td").first.inner_text() == str(counted)
    page.check(".taught-only")
    seen = page.evaluate(f"[...{SHOWN}].filter(t => t.offsetParent !== null).length")
    assert seen == sum(t.taught for t in totals(shown, source=1))
    page.fill("#find", "chats.jsonl:2")  # hidden by the source: finding it shows all sources
    page.press("#find", "Enter")
    expect(page.locator(".segment.found")).to_be_in_viewport()
    assert page.input_value("#source") == ""


def test_find_by_id_by_place_and_in_vain(open_page):
    samples = [sample for start in range(1, 200, 4) for sample in family(4, line=start)]
    shown = [view for _, _, view in views(samples, "isolated", 120)]
    page = open_page(shown)
    for text in ("0:150", "chats.jsonl:150", "data/chats.jsonl:150"):
        page.evaluate("scrollTo({top: 0, behavior: 'instant'})")
        page.evaluate("document.querySelectorAll('.row').forEach(row => { row.open = false; })")
        page.fill("#find", text)
        page.press("#find", "Enter")
        assert "data/chats.jsonl:150" in page.locator(".segment.found .sample").inner_text()
        expect(page.locator(".segment.found")).to_be_in_viewport()
    page.fill("#find", "jsonl:15")
    page.press("#find", "Enter")
    assert page.locator(".segment.found .sample").inner_text().endswith("data/chats.jsonl:15")
    page.fill("#find", "l:19")
    page.press("#find", "Enter")
    assert "(1 of 11; Enter for the next)" in page.inner_text("#found")
    page.press("#find", "Enter")
    assert page.locator(".segment.found .sample").inner_text().endswith("data/chats.jsonl:190")
    page.fill("#find", "0:999")
    page.press("#find", "Enter")
    assert page.inner_text("#found") == "No sample “0:999” on this page. Any other: frisket view RECIPE --id 0:999"


def test_a_page_opens_at_the_sample_it_was_made_for(open_page):
    shown = [view for _, _, view in views([s for i in range(1, 80, 4) for s in family(4, line=i)], "isolated", 90)]
    page = open_page(shown, opened="0:70")
    page.evaluate(FRAMES)
    heading = page.locator(".segment.found .sample")
    assert "chats.jsonl:70" in heading.inner_text()
    assert heading.bounding_box()["y"] >= page.locator(".controls").bounding_box()["height"]
    expect(page.locator("#inspector")).to_be_hidden()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#inspector")).to_be_visible()


HOSTILE = (
    "<script>window.pwned=1</script>",
    "</script><img src=x onerror=alert(1)>",
    "<!--<script>",
    "\u2028window.pwned=2;//",
    "\u202egnp.exe\u2066",
    "\x1b[31mred\x07",
    "${window.pwned=3}`'\"&amp;",
    "\ud800",
)


def test_a_hostile_sample_is_text(open_page):
    ((_, _, row),) = views([sequence("0:1", range(16))], "isolated", 500, pieces=lambda t: HOSTILE[t % len(HOSTILE)])
    evil = HOSTILE[1]
    own = replace(row.own, rules=[(evil, HOSTILE[0])] * len(row))
    row = replace(
        row,
        places={"0:1": evil + "\u202e\x1b"},
        policies={evil: own, **row.policies},
        provenance=[HOSTILE[0]] * len(row),
    )
    page = open_page([row], sources=[evil + "\u2066", HOSTILE[0]], truncated_note=evil, opened="0:1")
    for i in range(len(row)):
        token(page, i).hover()
    token(page, 9).click()
    page.select_option("#policy-b", label="all")
    page.select_option("#source", index=1)
    page.fill("#find", evil)
    page.press("#find", "Enter")
    page.fill("#find", HOSTILE[0])
    page.press("#find", "Enter")
    page.select_option("#policy-b", label="no other")
    token(page, 1).hover()
    assert page.evaluate("window.pwned") is None
    assert page.evaluate(f"[...{SHOWN}].map(t => t.textContent)") == [visible(HOSTILE[i % 8]) for i in range(16)]
    assert told(page)["by the rules"].startswith(evil)
    assert evil in page.inner_text(".segment .sample")
    assert page.locator("img").count() == 0
    assert not set(page.inner_text("main")) & set("\u2028\u202e\u2066\x1b\x07")


def test_the_tree_is_the_forest(open_page):
    ((_, _, row),) = views([*family(6), sequence("0:30", range(100, 160))], "forest", 500)
    page = open_page([row])
    nodes = page.locator(".tree .node")
    expect(nodes).to_have_count(len(row.spans))
    boxes = [nodes.nth(i).locator("rect").first.bounding_box() for i in range(len(row.spans))]
    for box, span in zip(boxes, row.spans, strict=True):
        inside = [b for b, other in zip(boxes, row.spans, strict=True) if other.parent == span.segment]
        for child in inside:
            assert child["x"] > box["x"] + box["width"] - 1
            assert box["y"] - 1 <= child["y"]
            assert child["y"] + child["height"] <= box["y"] + box["height"] + 1
    per_token = boxes[-1]["width"] / (row.spans[-1].stop - row.spans[-1].start)
    assert boxes[0]["width"] == pytest.approx(per_token * (row.spans[0].stop - row.spans[0].start), abs=1.5)
    assert "×6" in page.locator(".tree svg").text_content()
    assert page.locator(".segment", has_text="shared by 6 samples").count() == 1
    nodes.nth(4).click()
    expect(page.locator("#segment-0-4.found")).to_be_in_viewport()
    page.locator(".tree svg").focus()
    for _ in range(2):
        page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(page.locator(".segment.found")).to_have_count(1)


PIXELS = """row => {
  const canvas = document.querySelector(`#row-${row} canvas`);
  const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  return [canvas.width, [...data].filter((_, i) => i % 4 === 3)];
}"""


@pytest.mark.parametrize("arrangement", ["isolated", "forest", "mask-free"])
@pytest.mark.parametrize("own", [10, 150])
def test_the_matrix_is_the_mask(open_page, arrangement, own):
    ((rows, row, view),) = views(family(5, own=own), arrangement, 5000)
    page = open_page([view])
    page.wait_for_selector(".mask figcaption")
    width, alpha = page.evaluate(PIXELS, 0)
    block = -(-len(view) // 200)
    seen = np.pad(reference(rows, row), (0, width * block - len(view)))
    wanted = seen.reshape(width, block, width, block).any(axis=(1, 3))
    assert width == -(-len(view) // block)
    assert np.array_equal(np.array(alpha).reshape(width, width) > 0, wanted)
    said = page.inner_text(".mask figcaption")
    assert ("One cell is one token" in said) if block == 1 else (f"One pixel is {block} × {block} tokens" in said)
    place = view.spans[2].start + 3
    token(page, place).hover()
    top = page.locator(".query").evaluate("q => parseFloat(q.style.top)")
    assert top == pytest.approx(100 * (place + 0.5) / len(view))
    frame = page.locator(".frame").bounding_box()
    page.mouse.click(frame["x"] + 50, frame["y"] + 200 * (place + 0.5) / len(view))
    assert abs(int(page.evaluate(f"[...{SHOWN}].findIndex(t => t.hasAttribute('data-looking'))")) - place) <= block


RATIO = """selector => {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = 1;
  const context = canvas.getContext("2d", {willReadFrequently: true});
  const pixel = () => [...context.getImageData(0, 0, 1, 1).data].slice(0, 3);
  const fill = (colour) => { context.fillStyle = colour; context.fillRect(0, 0, 1, 1); };
  const light = (rgb) => {
    const [r, g, b] = rgb.map((c) => c / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  return [...document.querySelectorAll(selector)].map((element) => {
    const line = [];
    for (let e = element; e; e = e.parentElement) line.unshift(e);
    fill("white");
    for (const e of line) fill(getComputedStyle(e).backgroundColor);
    const under = light(pixel());
    fill(getComputedStyle(element).color);
    const over = light(pixel());
    return (Math.max(under, over) + 0.05) / (Math.min(under, over) + 0.05);
  });
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_can_be_read_in_dark_and_in_light(open_page, scheme):
    ((_, _, row),) = views(family(3), "forest", 500)
    page = open_page([row], scheme=scheme, truncated_note="Not all.", sources=["a", "b"])
    for policy in ("the recipe (assistant)", "odd"):
        page.select_option("#policy-a", label=policy)
        for selector in (
            ".tokens i, .tokens b",
            ".quiet, .sample, small",
            "label, select, summary",
            "figcaption, td, th",
        ):
            ratios = page.evaluate(RATIO, selector)
            assert len(ratios) > 1
            assert min(ratios) >= 4.5, selector
    token(page, 3).hover()
    assert min(page.evaluate(RATIO, "#inspector dt, #inspector dd")) >= 4.5
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, background[4:-1].split(","))) < 200) is (scheme == "dark")


def test_a_narrow_window_shows_all_without_sideways_scrolling(open_page):
    ((_, _, row),) = views(family(6), "forest", 500)
    page = open_page([row], width=420)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    expect(page.locator(".tree svg")).to_be_visible()
