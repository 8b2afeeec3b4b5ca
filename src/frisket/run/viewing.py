"""Rows as a person sees them: `frisket view`, and the mask view of a run's report."""

import json
from codecs import IncrementalDecoder, getincrementaldecoder
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
from rich.console import Console

from frisket.attend.pack import pack
from frisket.data.alignment import token_bytes
from frisket.errors import ConfigError, DataError, nearest
from frisket.hf.load import layer_counts
from frisket.recipe import Recipe
from frisket.report.mask_data import PolicyView, RowView, Target, Window
from frisket.report.mask_terminal import print_rows
from frisket.report.mask_view import mask_view
from frisket.run.notices import tell_of_data
from frisket.run.prepare import Prepared, prepare
from frisket.supervise.predictions import path_between, predictions
from frisket.supervise.settings import TeachSettings
from frisket.types import Provenance, Rows, Sequence
from frisket.watch import Watcher

REPORT_SAMPLES = 200
REPORT_TOKENS = 200_000
VIEW_SAMPLES = 60
VIEW_TOKENS = 60_000
TERMINAL_SAMPLES = 6
COMPARED = ("all", "assistant")
"""Policies that a page is made for besides the recipe's own weights, unless others are named."""
PART = "\ufffd"
"""Shown for a token that is only a part of a character."""


class Explained(NamedTuple):
    """A sample, its weight per token as a target, and the rules that gave each weight, in the order applied."""

    sequence: Sequence
    weights: np.ndarray
    rules: Seq[tuple[str, ...]]


Samples = Mapping[str, Explained]
Pieces = Callable[[Seq[int]], list[str]]


def view(
    recipe: Recipe,
    *,
    out: Path | None,
    watcher: Watcher,
    console: Console | None = None,
    compare: Seq[str] | None = None,
    sample: str | None = None,
    samples: int | None = None,
) -> dict:
    """Show what every token of the first steps does: one offline page, or text on a terminal.

    Args:
        out: file of the page; None for none.
        console: where rows are printed; None for nowhere.
        compare: policies to compare the recipe's weights with; default: those of ``other_policies``.
        sample: show the row of this sample alone (its id or ``file:line``), whatever the caps.
        samples: at most so many samples; default: ``VIEW_SAMPLES``, on a terminal ``TERMINAL_SAMPLES``.

    Raises:
        ConfigError: there is no such policy.
        DataError: there is no such sample, or it was left out.
    """
    known = get_args(TeachSettings.model_fields["policy"].annotation)
    for name in compare or ():
        if name not in known:
            raise ConfigError(
                f"--compare {name}: there is no such policy; there are {', '.join(known)}.\n"
                f"--compare {nearest(name, known) or 'all'}"
            )
    prepared = prepare(recipe, watcher)
    tell_of_data(prepared, watcher)
    policies = other_policies(recipe) if compare is None else list(compare)
    if sample is None:
        samples = samples or (VIEW_SAMPLES if console is None else TERMINAL_SAMPLES)
        rows, note = sample_rows(prepared, samples, VIEW_TOKENS, policies)
    else:
        rows, note, sample = _row_of(prepared, sample, policies)
    if console is not None:
        print_rows(rows, console, note=note)
    if out is not None:
        page = mask_view(
            rows,
            title=recipe.name or "rows",
            facts=_facts(prepared),
            truncated_note=note,
            sources=[source.path for source in recipe.data],
            opened=sample,
        )
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(page, encoding="utf-8")
    return {
        "rows": len(rows),
        "samples": len({s for row in rows for span in row.spans for s in span.samples}),
        "note": note,
    }


def other_policies(recipe: Recipe) -> list[str]:
    """Policies that a page compares the recipe's own with: of ``COMPARED`` those that some source does not use."""
    own = {(source.supervise or recipe.supervise).policy for source in recipe.data}
    return [name for name in COMPARED if own != {name}]


def _facts(prepared: Prepared) -> list[tuple[str, str]]:
    recipe = prepared.recipe
    return [
        ("template", prepared.template.name),
        ("policy", _policies(prepared)),
        ("arrangement", prepared.laying.arrangement),
        *(
            ("data", f"{source.path}: {text}")
            for source, text in zip(recipe.data, prepared.dataset.formats, strict=True)
        ),
    ]


def _policies(prepared: Prepared) -> str:
    """The recipe's policy; those of its sources, where they differ."""
    return ", ".join(dict.fromkeys(teaching.settings.policy for teaching in prepared.teaching))


def sample_rows(
    prepared: Prepared, samples: int, tokens: int, compare: Seq[str] = ()
) -> tuple[list[RowView], str | None]:
    """Rows of the first steps, as far as the caps allow; and a note of what was left out.

    Args:
        compare: policies whose weights are shown beside the recipe's own.
    """
    chosen = _first_samples(prepared, samples, tokens)
    total = len(prepared.order.families.flat)
    pieces = pieces_of(prepared.tokenizer)
    views = [view for step in chosen for view in row_views(prepared, step, compare, pieces)]
    shown = len({index for step in chosen for index in step})
    if shown == total:
        return views, None
    return (
        views,
        f"{shown:,} of {total:,} samples are shown, those of the first steps (at most {samples} samples and "
        f"{tokens:,} tokens). Any other: frisket view --id ID",
    )


def _first_samples(prepared: Prepared, samples: int, tokens: int) -> list[list[int]]:
    """Samples of the first steps, step by step; at least one, then only what both caps allow."""
    chosen: list[list[int]] = []
    used = count = 0
    for step in prepared.order.epoch(0):
        chosen.append([])
        for index in dict.fromkeys(int(i) for i in step.samples):
            length = int(prepared.dataset.lengths[index])
            if count and (count >= samples or used + length > tokens):
                return [step for step in chosen if step]
            chosen[-1].append(index)
            used, count = used + length, count + 1
    return chosen


def row_views(prepared: Prepared, samples: Seq[int], compare: Seq[str], pieces: Pieces) -> list[RowView]:
    """Lay samples of one step into rows as training does, and make them visible."""
    dataset, laying = prepared.dataset, prepared.laying
    batches = pack([dataset[i] for i in samples], laying.arrangement, laying.row_tokens, 1)
    views = []
    for rows in batches:
        here = {leaf.sample_id for leaf in rows.leaves}
        indices = [i for i in samples if dataset.sample_ids[i] in here]
        views += _views_of(prepared, rows, indices, compare, pieces)
    return views


def _views_of(prepared: Prepared, rows: Rows, samples: Seq[int], compare: Seq[str], pieces: Pieces) -> list[RowView]:
    dataset = prepared.dataset
    names = {policy: policy or f"the recipe ({_policies(prepared)})" for policy in (None, *compare)}
    told = {
        names[policy]: {dataset.sample_ids[i]: Explained(*prepared.explained(i, policy)) for i in samples}
        for policy in names
    }
    places = {dataset.sample_ids[i]: dataset.place(i) for i in samples}
    views = [view_of_row(rows, row, told, places, pieces) for row in range(len(rows.input_ids))]
    window = window_of(prepared.config)
    return [replace(view, window=window) for view in views]


def _row_of(prepared: Prepared, asked: str, compare: Seq[str]) -> tuple[list[RowView], str | None, str]:
    """The row that one sample lies in, as training lays it; a note; and the sample's id."""
    dataset = prepared.dataset
    index = find_sample(prepared, asked)
    name = dataset.sample_ids[index]
    for step in prepared.order.epoch(0):
        if index not in step.samples:
            continue
        indices = list(dict.fromkeys(int(i) for i in step.samples))
        laying = prepared.laying
        for rows in pack([dataset[i] for i in indices], laying.arrangement, laying.row_tokens, 1):
            here = {leaf.sample_id for leaf in rows.leaves}
            if name in here:
                samples = [i for i in indices if dataset.sample_ids[i] in here]
                views = _views_of(prepared, rows, samples, compare, pieces_of(prepared.tokenizer))
                kept = [v for v in views if any(name in span.samples for span in v.spans)]
                return kept, f"Only the row of {name} is shown: step {step.index + 1} of {step.of}.", name
    alone = pack([dataset[index]], "padded", prepared.laying.row_tokens, 1)[0]
    why = "it is held out" if index in dataset.held_out else "the first epoch does not use it"
    return _views_of(prepared, alone, [index], compare, pieces_of(prepared.tokenizer)), f"{name} alone: {why}.", name


def window_of(config: Any) -> Window | None:
    """The sliding window of a model's configuration; None where all its layers see everything."""
    text = config.get_text_config()
    layers = layer_counts(config).attention
    kinds = getattr(text, "layer_types", None)
    windowed = layers if kinds is None else sum("sliding" in kind for kind in kinds)
    window = getattr(text, "sliding_window", None)
    return Window(window, windowed, layers) if window and windowed else None


def find_sample(prepared: Prepared, asked: str) -> int:
    """Index of the sample that is called so, by its id or its ``file:line``; the folder of the file may be left out.

    Raises:
        DataError: there is none, or it was left out.
    """
    dataset = prepared.dataset
    index = _called(asked, dataset.sample_ids, dataset.places)
    if index is not None:
        return index
    dropped = dataset.dropped
    index = _called(asked, [entry["sample"] for entry in dropped], [entry["place"] for entry in dropped])
    if index is not None:
        entry = dropped[index]
        raise DataError(f"sample {asked} was left out: {entry['reason']}.\nMend it at {entry['place']}")
    like = max((*dataset.sample_ids, *dataset.places), key=lambda name: _likeness(name, asked))
    raise DataError(f"--id {asked}: there is no such sample among {len(dataset):,}.\nThe nearest: --id {like}")


def _called(asked: str, ids: Seq[str], places: Seq[str]) -> int | None:
    """Index of what is called so."""
    for names in (ids, places):
        if asked in names:
            return names.index(asked)
    return next((index for index, place in enumerate(places) if place.endswith(f"/{asked}")), None)


def _likeness(name: str, asked: str) -> tuple[int, int]:
    """Characters alike from the beginning, then nearness in length: cheap enough for all names of a large data set."""
    alike = next((i for i, (a, b) in enumerate(zip(name, asked, strict=False)) if a != b), min(len(name), len(asked)))
    return alike, -abs(len(name) - len(asked))


def pieces_of(tokenizer: Any) -> Pieces:
    """Runs of tokens as text: without ``PART`` the pieces of a run join to its text.

    A character that takes several tokens stands at the last of them, and ``PART`` at the others; a piece depends on no
    later token, so samples that share a prefix share its pieces.
    """
    backend = tokenizer.backend_tokenizer
    table = token_bytes(backend, json.loads(backend.to_str())["decoder"])

    @cache
    def spelled(token: int) -> bytes:
        if table is None or token >= len(table.lengths) or not table.lengths[token]:
            return tokenizer.decode([token]).encode()
        start = table.starts[token]
        return table.data[start : start + table.lengths[token]].tobytes()

    def pieces(ids: Seq[int]) -> list[str]:
        decoder = getincrementaldecoder("utf-8")("replace")
        return [_next_piece(decoder, spelled(token)) for token in ids]

    return pieces


def _next_piece(decoder: IncrementalDecoder, data: bytes) -> str:
    """The text that one more token brings; the bytes that it leaves unfinished stay in the decoder."""
    if not data:
        return ""
    was_begun = decoder.getstate()[0]
    text = decoder.decode(data)
    if was_begun and text.startswith(PART):  # what was begun never ended: it has been shown where it began
        text = text[1:]
    is_begun = decoder.getstate()[0]
    return text + PART if is_begun or not text else text


def view_of_row(
    rows: Rows, row: int, told: Mapping[str, Samples], places: Mapping[str, str], pieces: Pieces
) -> RowView:
    """One row of a micro-batch, made visible.

    Args:
        told: samples of the micro-batch by id, for each policy; the recipe's own weights come first.
        places: ``file:line`` by sample id.
        pieces: text of each token of a run.
    """
    segments = rows.segment_ids[row]
    paths = {
        leaf.sample_id: np.flatnonzero(np.isin(segments, path_between(rows, leaf.first, leaf.last)))
        for leaf in rows.leaves
    }
    paths = {name: at for name, at in paths.items() if len(at)}
    own = next(iter(told.values()))
    ids = rows.input_ids[row]
    shown, provenance = [""] * len(segments), ["padding"] * len(segments)
    for name, at in paths.items():
        for place, role, piece in zip(at, own[name].sequence.roles, pieces(ids[at].tolist()), strict=True):
            shown[place], provenance[place] = piece, Provenance(role).name.lower()
    return RowView(
        pieces=shown,
        ids=ids.tolist(),
        positions=rows.position_ids[row].tolist(),
        segments=segments.tolist(),
        parent_segments=rows.parent_segment.tolist(),
        leaves=[leaf for leaf in rows.leaves if leaf.sample_id in paths],
        places=places,
        sources={name: own[name].sequence.source for name in paths},
        provenance=provenance,
        policies={policy: _policy_view(rows, row, samples, paths, pieces) for policy, samples in told.items()},
    )


def _policy_view(rows: Rows, row: int, samples: Samples, paths: Mapping[str, np.ndarray], pieces: Pieces) -> PolicyView:
    width = len(rows.segment_ids[row])
    weights, teachers = np.zeros(width), np.zeros(width, dtype=np.int64)
    rules: list[tuple[str, ...]] = [("padding",)] * width
    for name, at in paths.items():
        _, own, names = samples[name]
        for place, weight, told in zip(at, own, names, strict=True):
            if weight or rules[place] == ("padding",):  # of samples that share a token, one that teaches it speaks
                rules[place] = told
        weights[at] += own
        teachers[at] += own != 0
    for place in np.flatnonzero(teachers > 1):
        rules[place] = (*rules[place], f"sum over the {teachers[place]} samples that share it and teach it")
    targets: list[list[Target]] = [[] for _ in range(width)]
    found = predictions(rows, {name: (told.sequence, told.weights) for name, told in samples.items()})
    for position, target, weight in zip(found.position, found.target_ids, found.weights, strict=True):
        if position // width == row:
            targets[position % width].append(Target(pieces([int(target)])[0], int(target), float(weight)))
    return PolicyView(weights.tolist(), rules, targets)
