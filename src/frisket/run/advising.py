"""What a plan says of the loss mask beyond the ledger: constant text that is left out, and advice from the papers."""

import numpy as np

from frisket.run.prepare import Prepared
from frisket.supervise.advice import Advice, Lengths, advise
from frisket.supervise.boilerplate import PROMPT_ROLES
from frisket.types import Provenance

_ANSWER = (Provenance.ASSISTANT, Provenance.REASONING, Provenance.TOOL_CALL)


def advice_for(prepared: Prepared) -> list[tuple[str, Advice]]:
    """Advice for each source, under the source's path; its fix changes that source alone."""
    found = []
    for index, source in enumerate(prepared.recipe.data):
        alone = len(prepared.recipe.data) == 1 and source.supervise is None
        for advice in advise(lengths_of(prepared, index), prepared.teaching[index].settings):
            fix = advice.fix if alone else f"data.{index}.{advice.fix}"
            found.append((source.path, advice._replace(fix=fix)))
    return found


def lengths_of(prepared: Prepared, source: int) -> Lengths:
    """Lengths of a source's training samples; the ratio is of those that have a prompt and an answer."""
    dataset = prepared.dataset
    mine = dataset.train[dataset.source_of[dataset.train] == source]
    ratios = []
    for sequence in dataset.walk(mine):
        counts = np.bincount(sequence.roles, minlength=len(Provenance))
        prompt, answer = counts[list(PROMPT_ROLES)].sum(), counts[list(_ANSWER)].sum()
        if prompt and answer:
            ratios.append(prompt / answer)
    tool_results = prepared.ledgers[source].taught.get("tool_result", 0)
    return Lengths(len(mine), float(np.median(ratios)) if ratios else 0.0, tool_results)


def boilerplate_of(prepared: Prepared) -> list[dict]:
    """The constant text that policy ``boilerplate`` leaves out: source, provenance, side, text, share of messages."""
    return [
        {
            "source": prepared.recipe.data[index].path,
            "role": phrase.role.name.lower(),
            "side": phrase.side,
            "text": prepared.tokenizer.decode(list(phrase.ids)),
            "share": round(phrase.share, 4),
        }
        for index, teaching in enumerate(prepared.teaching)
        for phrase in teaching.phrases
    ]
