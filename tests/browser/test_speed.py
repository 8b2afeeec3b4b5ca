"""A page of twenty thousand tokens: how soon it is there, and how soon it answers."""

from statistics import median

import pytest
from playwright.sync_api import Page
from tests.browser.rows import family, sequence, views

TOKENS = 20_000
PAINT_MS, REACTION_MS = 2_000, 100
PAINTED = "() => new Promise(r => requestAnimationFrame(() => requestAnimationFrame(() => r(performance.now()))))"
REACT = """async ([kind, places]) => {
  const tokens = [...document.querySelectorAll(".tokens :is(i, b)")];
  const times = [];
  for (const place of places) {
    const token = tokens[Math.floor(place * (tokens.length - 1))];
    token.scrollIntoView({block: "center", behavior: "instant"});
    await new Promise((r) => requestAnimationFrame(() => requestAnimationFrame(r)));
    const begun = performance.now();
    token.dispatchEvent(new MouseEvent(kind, {bubbles: true}));
    document.body.getBoundingClientRect();
    getComputedStyle(token).color;
    times.push(performance.now() - begun);
  }
  return times;
}"""
SWITCH = """() => {
  const select = document.querySelector("#policy-a");
  return [1, 0, 1, 0, 1].map((index) => {
    const begun = performance.now();
    select.selectedIndex = index;
    select.dispatchEvent(new Event("change", {bubbles: true}));
    document.body.getBoundingClientRect();
    return performance.now() - begun;
  });
}"""
PLACES = [0.02, 0.95, 0.3, 0.7, 0.5]


def measured(page: Page) -> dict[str, float]:
    painted = page.evaluate(PAINTED)
    return {
        "painted": painted,
        "hover": median(page.evaluate(REACT, ["mouseover", PLACES])),
        "click": median(page.evaluate(REACT, ["click", PLACES])),
        "policy": median(page.evaluate(SWITCH)),
    }


def at_rest(page: Page) -> dict[str, float]:
    """The reactions once more where they were slow: another process may have had the cores meanwhile."""
    found = measured(page)
    for _ in range(3):
        if max(found["hover"], found["click"], found["policy"]) <= REACTION_MS:
            break
        page.wait_for_timeout(500)
        found = {name: min(value, found[name]) for name, value in measured(page).items()}
    return found


@pytest.mark.parametrize("shape", ["packed", "forest", "one sample"])
def test_a_page_of_20_000_tokens_is_there_and_answers(open_page, capsys, shape):
    samples = {
        "packed": [sequence(f"0:{i}", [(7 * i + j) % 900 for j in range(200 + 40 * (i % 20))]) for i in range(38)],
        "forest": [sample for i in range(1, 150, 30) for sample in family(30, own=135, line=i)],
        "one sample": [sequence("0:1", [i % 900 for i in range(TOKENS)])],
    }[shape]
    shown = [view for _, _, view in views(samples, "forest" if shape == "forest" else "isolated", 4096)]
    tokens = sum(view.real_tokens for view in shown)
    assert tokens >= TOKENS
    page = open_page(shown)
    found = at_rest(page)
    with capsys.disabled():
        told = ", ".join(f"{name} {value:.0f} ms" for name, value in found.items())
        print(f"\nmask view, {shape}, {tokens:,} tokens: {told}")
    assert found["painted"] <= PAINT_MS
    assert found["hover"] <= REACTION_MS
    assert found["click"] <= REACTION_MS
    assert found["policy"] <= REACTION_MS
