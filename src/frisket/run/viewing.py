"""Rows as a person sees them: `frisket view`, and the mask view of a run's report."""

from collections.abc import Sequence as Seq
from pathlib import Path
from typing import Any

import numpy as np

from frisket.attend.pack import pack
from frisket.recipe import Recipe
from frisket.report.mask_view import RowView, Target, mask_view
from frisket.run.prepare import Prepared, prepare
from frisket.supervise.policies import rule_names
from frisket.supervise.predictions import Weighted, path_between, predictions
from frisket.types import PADDING_SEGMENT, Provenance, Rows
from frisket.watch import Watcher

REPORT_SAMPLES = 200
REPORT_TOKENS = 200_000
VIEW_SAMPLES = 60
VIEW_TOKENS = 60_000


def view(recipe: Recipe, *, out: Path, watcher: Watcher) -> dict:
    """Write one offline page that shows what every token of the first steps does."""
    prepared = prepare(recipe, watcher)
    rows, note = sample_rows(prepared, VIEW_SAMPLES, VIEW_TOKENS)
    facts = [
        ("template", prepared.template.name),
        ("policy", recipe.supervise.policy),
        ("arrangement", prepared.laying.arrangement),
        *(
            ("data", f"{source.path}: {text}")
            for source, text in zip(recipe.data, prepared.dataset.formats, strict=True)
        ),
    ]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(mask_view(rows, title=recipe.name or "rows", facts=facts, truncated_note=note), encoding="utf-8")
    return {"rows": len(rows), "samples": sum(len(set(row.places)) for row in rows), "note": note}


def sample_rows(prepared: Prepared, samples: int, tokens: int) -> tuple[list[RowView], str | None]:
    """Rows of the first steps, as far as the caps allow; and a note of what was left out."""
    chosen: list[list[int]] = []
    used = count = 0
    total = sum(len(family) for family in prepared.order.families)
    for step in prepared.order.epoch(0):
        chosen.append([])
        for index in dict.fromkeys(int(i) for i in step.samples):
            length = int(prepared.dataset.lengths[index])
            if count and (count >= samples or used + length > tokens):
                break
            chosen[-1].append(index)
            used, count = used + length, count + 1
    views = [view for step in chosen if step for view in row_views(prepared, step)]
    shown = len({index for step in chosen for index in step})
    if shown == total:
        return views, None
    return (
        views,
        f"{shown:,} of {total:,} samples are shown, those of the first steps (at most {samples} samples and "
        f"{tokens:,} tokens).",
    )


def row_views(prepared: Prepared, samples: Seq[int]) -> list[RowView]:
    """Lay samples of one step into rows as training does, and make them visible."""
    weighted = {s.sample_id: (s, w) for s, w in (prepared.weighted(i) for i in samples)}
    places = {prepared.dataset.sample_ids[i]: prepared.dataset.place(i) for i in samples}
    laying = prepared.laying
    batches = pack([s for s, _ in weighted.values()], laying.arrangement, laying.row_tokens, 1)
    pieces = _Pieces(prepared.tokenizer)
    return [
        _row_view(rows, row, weighted, places, prepared, pieces)
        for rows in batches
        for row in range(len(rows.input_ids))
    ]


class _Pieces:
    """Tokens as text: the pieces of a run join to its text, also where a character takes several tokens."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, str] = {}

    def __call__(self, token: int) -> str:
        if token not in self._known:
            text = self._tokenizer.decode([token])
            raw = self._tokenizer.convert_ids_to_tokens(token) or ""
            if raw.startswith("\u2581") and not text.startswith(" "):
                text = " " + text  # SentencePiece: decoding one piece alone drops its leading space
            self._known[token] = raw if "\ufffd" in text else text
        return self._known[token]


def _row_view(
    rows: Rows, row: int, weighted: dict[str, Weighted], places: dict[str, str], prepared: Prepared, pieces: _Pieces
) -> RowView:
    segments = rows.segment_ids[row]
    width = len(segments)
    provenance, weights, rules = ["padding"] * width, np.zeros(width), ["padding"] * width
    for leaf in rows.leaves:
        at = np.flatnonzero(np.isin(segments, path_between(rows, leaf.first, leaf.last)))
        if len(at):
            sequence, own = weighted[leaf.sample_id]
            names = rule_names(sequence, prepared.recipe.supervise)
            for place, role, weight, name in zip(at, sequence.roles, own, names, strict=True):
                if weight or rules[place] == "padding":  # of samples that share a token, one that teaches it speaks
                    provenance[place], rules[place] = Provenance(role).name.lower(), name
                weights[place] += weight
    targets: list[list[Target]] = [[] for _ in range(width)]
    told = predictions(rows, weighted)
    for position, target, weight in zip(told.position, told.target_ids, told.weights, strict=True):
        if position // width == row:
            targets[position % width].append(Target(pieces(int(target)), int(target), float(weight)))
    ids = rows.input_ids[row]
    shown = [
        "" if segment == PADDING_SEGMENT else pieces(int(token)) for token, segment in zip(ids, segments, strict=True)
    ]
    return RowView(
        shown,
        ids.tolist(),
        rows.position_ids[row].tolist(),
        segments.tolist(),
        rows.parent_segment.tolist(),
        rows.leaves,
        places,
        provenance,
        weights.tolist(),
        rules,
        targets,
    )
