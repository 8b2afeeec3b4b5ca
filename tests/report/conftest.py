"""Rows, ledgers and a summary as a run leaves them, and a reader of the pages made from them."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from html.parser import HTMLParser

import pytest

from frisket.report.mask_data import PolicyView, RowView, Target
from frisket.types import Leaf, Ledger, total

BLOCKS = {"td", "th", "p", "div", "dt", "dd", "li", "h1", "h2", "h3", "h4"}
VOID = {"meta", "br", "input", "path", "link", "img", "hr"}


@dataclass
class Outline(HTMLParser):
    """What a browser would find in a page."""

    starts: list[tuple[str, dict]] = field(default_factory=list)
    open: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    scripts: list[str] = field(default_factory=list)
    tokens: list[tuple[str, str]] = field(default_factory=list)
    cells: list[list[str]] = field(default_factory=list)
    text: str = ""

    def __post_init__(self) -> None:
        super().__init__()
        self.in_tokens = False

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.starts.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag in BLOCKS:
            self.text += " "
        if tag == "p":
            self.in_tokens = dict(attrs).get("class") == "tokens"
        if tag in ("i", "b") and self.in_tokens:
            self.tokens.append((f"{tag} {dict(attrs).get('class', '')}".strip(), ""))
        if tag == "script":
            self.scripts.append("")
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th") and self.cells:
            self.cells[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.starts.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.broken.append(tag)
        if tag == "p":
            self.in_tokens = False

    def handle_data(self, data: str) -> None:
        here = self.open[-1] if self.open else ""
        if here == "script":
            self.scripts[-1] += data
        elif here != "style":
            self.text += data
        if self.in_tokens and here in ("i", "b") and self.tokens:
            style, text = self.tokens[-1]
            self.tokens[-1] = (style, text + data)
        if self.cells and self.cells[-1] and ("td" in self.open or "th" in self.open):
            self.cells[-1][-1] += data

    def attributes(self, name: str) -> list[str]:
        return [attrs[name] for _, attrs in self.starts if name in attrs]

    def tags(self) -> set[str]:
        return {tag for tag, _ in self.starts}


def read(html: str) -> Outline:
    outline = Outline()
    outline.feed(str(html))
    outline.close()
    return outline


def assert_offline(outline: Outline) -> None:
    """Well nested, and nothing in it makes a browser fetch anything."""
    assert outline.broken == []
    assert outline.open == []
    assert not outline.tags() & {"img", "link", "iframe", "object", "embed", "base"}
    assert outline.attributes("src") == []
    assert all(target.startswith("#") for target in outline.attributes("href"))
    assert any("default-src 'none'" in content for content in outline.attributes("content"))


@pytest.fixture(name="read")
def read_fixture() -> Callable[[str], Outline]:
    return read


@pytest.fixture(name="assert_offline")
def assert_offline_fixture() -> Callable[[Outline], None]:
    return assert_offline


def sample_tokens(question: str, answer: str, weight: float) -> list[tuple[str, str, float]]:
    """(piece, provenance, weight) of a two-turn chat, cut by hand as a byte-pair tokeniser would."""
    return [
        ("<s>", "bos", 0.0),
        ("<|user|>", "template", 0.0),
        ("\n", "template", 0.0),
        *((piece, "user", 0.0) for piece in pieces(question)),
        ("<|end|>", "template", 0.0),
        ("<|assistant|>", "template", 0.0),
        ("\n", "template", 0.0),
        *((piece, "assistant", weight) for piece in pieces(answer)),
        ("<|end|>", "end_of_turn", weight),
    ]


def pieces(text: str) -> list[str]:
    """Words with their leading space, cut after five letters."""
    words = [word if i == 0 else " " + word for i, word in enumerate(text.split(" "))]
    return [piece for word in words for piece in (word[:5], word[5:]) if piece]


def packed(samples: list[list[tuple[str, str, float]]], padding: int = 0) -> RowView:
    """An isolated row: one root segment a sample."""
    flat = [(*token, segment, place) for segment, s in enumerate(samples) for place, token in enumerate(s)]
    flat += [("<pad>", "template", 0.0, -1, 0)] * padding
    ids = [7 + len(token[0]) for token in flat]
    targets: list[list[Target]] = []
    for i, token in enumerate(flat):
        follows = flat[i + 1] if i + 1 < len(flat) else None
        is_taught = follows is not None and follows[3] == token[3] and follows[2] != 0
        targets.append([Target(follows[0], ids[i + 1], follows[2])] if follows and is_taught else [])
    return RowView(
        pieces=[t[0] for t in flat],
        ids=ids,
        positions=[t[4] for t in flat],
        segments=[t[3] for t in flat],
        parent_segments=[-1] * len(samples),
        leaves=[Leaf(f"0:{i + 1}", i, i) for i in range(len(samples))],
        places={f"0:{i + 1}": f"chats.jsonl:{i + 1}" for i in range(len(samples))},
        sources={},
        provenance=[t[1] for t in flat],
        policies={
            "assistant": PolicyView(
                weights=[t[2] for t in flat],
                rules=[("policy assistant",) if t[3] >= 0 else ("padding",) for t in flat],
                targets=targets,
            )
        },
    )


@pytest.fixture
def rows() -> list[RowView]:
    first = [
        sample_tokens("How many clips did Natalia sell altogether?", "She sold 48 + 24 = 72 clips.\n\n#### 72", 1.0),
        sample_tokens("Sort: pear, fig", "fig\tpear", 0.25),
    ]
    return [packed(first, padding=5), packed([sample_tokens("Say something rude", "No way, sir", -0.5)])]


@pytest.fixture(name="packed")
def packed_fixture() -> Callable[..., RowView]:
    return packed


@pytest.fixture(name="sample_tokens")
def sample_tokens_fixture() -> Callable[..., list]:
    return sample_tokens


@pytest.fixture
def ledgers() -> dict[str, Ledger]:
    first = Ledger(
        read=1000,
        dropped=20,
        held_out=80,
        taught={"assistant": 300, "end_of_turn": 20},
        untaught={"user": 500, "template": 80},
        straddling=3,
        samples={"read": 40, "dropped": 1},
        flat=2000,
        computed=1500,
        shared=500,
    )
    second = Ledger(read=50, taught={"assistant": 10}, untaught={"user": 40}, samples={"read": 2}, flat=50, computed=50)
    return {"chats.jsonl": first, "extra.csv": second}


@pytest.fixture
def summary(ledgers: dict[str, Ledger]) -> dict:
    def side(match: float, loss: float) -> dict:
        return {
            "exact_match": match,
            "exact_match_interval": [max(match - 0.05, 0.0), min(match + 0.05, 1.0)],
            "loss": loss,
            "loss_interval": [loss * 0.9, loss * 1.1],
        }

    groups = {
        "copy": {"samples": 50, "before": side(0.02, 3.0), "after": side(0.98, 0.1)},
        "sort": {"samples": 50, "before": side(0.0, 3.5), "after": side(0.64, 0.4)},
    }
    return {
        "frisket": "0.1.0",
        "recipe": "recipes/demo.yaml",
        "model": {"path": "bundled", "parameters": 2_800_000, "moving": 140_000},
        "data": [
            {"path": "chats.jsonl", "format": "messages", "samples": 40},
            {"path": "extra.csv", "format": "alpaca", "samples": 2},
        ],
        "steps": 60,
        "learning": {
            "skills": {"samples": 100, "metric": "exact_match", "before": side(0.01, 3.2), "after": side(0.81, 0.3)}
            | {
                "of": 500,
                "groups": groups,
                "difference": {"exact_match": 0.8, "exact_match_interval": [0.7, 0.9], "exact_match_verdict": "better"},
            }
        },
        "forgetting": {
            "default": {
                "samples": 32,
                "kl_is": "exact",
                "units": {"kl": 32, "bits_per_character": 4},
                "before": {"kl": 0.0, "bits_per_character": 2.1, "bits_per_character_interval": [2.0, 2.2]},
                "difference": {
                    "bits_per_character": 0.05,
                    "bits_per_character_interval": [-0.01, 0.1],
                    "bits_per_character_verdict": "same",
                },
                "after": {"kl": 0.043, "kl_interval": [0.03, 0.05], "bits_per_character": 2.15}
                | {"bits_per_character_interval": [2.05, 2.25]},
            }
        },
        "tokens": total(list(ledgers.values())).as_dict() | {"sources": [led.as_dict() for led in ledgers.values()]},
        "rates": {"real_tokens_per_second": 8812.4, "supervised_tokens_per_second": 2100.0},
        "seconds": {"total": 142.2, "training": 98.0},
        "checks": {"conformance": {"largest_difference": 3.1e-6, "bar": 1e-4}, "isolation": "identical"},
        "artifacts": {"adapter": "adapter", "report": "report.html"},
        "examples": [
            {"group": "copy", "prompt": "Copy: ink", "reference": "ink", "before": "the of", "after": "ink\n"},
            {"group": "double", "prompt": "Double: ink", "reference": "iinnkk", "before": "", "after": "iink"},
        ],
        "next": "frisket generate out/demo --chat",
    }


@pytest.fixture
def metrics() -> list[dict]:
    return [
        {
            "step": s,
            "loss": 0.3 + 3 * math.exp(-s / 12),
            "rate": 1e-3 * s / 60,
            "gradient_norm": 1 / s,
            "flat_tokens": 900,
        }
        for s in range(1, 61)
    ]


@pytest.fixture
def timings() -> list[dict]:
    return [{"step": s, "seconds": 0.1} for s in range(1, 61)]
