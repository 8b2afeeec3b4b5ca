"""Rows for the browser: samples that share prefixes, laid by the packer itself, under three policies."""

from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq

import numpy as np

from frisket.attend.pack import Arrangement, pack
from frisket.report.mask_data import RowView
from frisket.run.viewing import Explained, view_of_row
from frisket.types import Provenance, Rows, Sequence

PREFIX = 12


def sequence(name: str, ids: Seq[int], source: int = 0) -> Sequence:
    """A token of the template, then a prompt, then as many tokens of an answer, ended."""
    count = len(ids)
    roles = np.full(count, Provenance.USER, np.uint8)
    roles[0] = Provenance.TEMPLATE
    roles[count // 2 :] = Provenance.ASSISTANT
    roles[-1] = Provenance.END_OF_TURN
    nothing = np.full(count, np.nan)
    return Sequence(
        name, source, np.array(ids, np.int32), roles, np.zeros(count, np.int32), np.zeros(count, np.uint32), nothing
    )


def family(members: int, source: int = 0, own: int = 10, line: int = 1) -> list[Sequence]:
    """Samples that begin with the same tokens; every other pair shares some more."""
    rng = np.random.default_rng(17 + line)
    prefix = rng.integers(10, 90, PREFIX).tolist()
    pairs = [rng.integers(10, 90, 9).tolist() for _ in range(members)]
    ids = [
        [*prefix, *(pairs[i // 2] if i % 4 < 2 else []), 100 + i, *rng.integers(10, 90, own)] for i in range(members)
    ]
    return [sequence(f"{source}:{line + i}", each, source) for i, each in enumerate(ids)]


def told(samples: Seq[Sequence]) -> dict[str, dict[str, Explained]]:
    """Weights of three policies: answers, everything, and answers of which the end counts a quarter, negative."""
    policies: dict[str, dict[str, Explained]] = {"the recipe (assistant)": {}, "all": {}, "odd": {}}
    for sample in samples:
        taught = np.isin(sample.roles, (Provenance.ASSISTANT, Provenance.END_OF_TURN))
        weights = [taught.astype(float), np.ones(len(sample)), np.where(taught, 1.0, 0.0)]
        weights[1][0] = 0.0
        weights[2][-1] = -0.25
        rules = [("policy assistant", "rule 1: × 1"), ("policy all",), ("policy odd", "the token's own weight")]
        for policy, weight, rule in zip(policies.values(), weights, rules, strict=True):
            policy[sample.sample_id] = Explained(sample, weight, [rule] * len(sample))
    return policies


def views(
    samples: Seq[Sequence],
    arrangement: Arrangement,
    row_tokens: int,
    *,
    pieces: Callable[[int], str] = lambda token: f" t{token}",
    places: Mapping[str, str] | None = None,
) -> list[tuple[Rows, int, RowView]]:
    """Each row of the packed samples: the micro-batch, its index in it, and what is shown of it."""
    shown = []
    for rows in pack(samples, arrangement, row_tokens):
        here = {leaf.sample_id for leaf in rows.leaves}
        policies = told([sample for sample in samples if sample.sample_id in here])
        for row in range(len(rows.input_ids)):
            names = places or {name: f"data/chats.jsonl:{name.partition(':')[2]}" for name in here}
            shown.append((rows, row, view_of_row(rows, row, policies, names, lambda ids: [*map(pieces, ids)])))
    return shown
