"""Which samples are kept for evaluation: a seeded choice, the same on every machine."""

from collections.abc import Sequence as Seq

import numpy as np
from jaxtyping import Int64

from frisket.data.settings import SourceSettings
from frisket.errors import ConfigError, counted

DEFAULT_SHARE = 0.02
DEFAULT_LEAST = 8
DEFAULT_MOST = 200
_LARGEST_SHARE = 4  # of few samples at most a quarter is held out, even where that is less than ``DEFAULT_LEAST``
_WORTHWHILE = 20  # samples from which on something is held out


def held_out_samples(
    sources: Seq[SourceSettings],
    source_of: Int64[np.ndarray, "sample"],
    group_of: Int64[np.ndarray, "sample"],
    seed: int,
    by_default: bool,
) -> Int64[np.ndarray, "held_out"]:
    """Choose the held-out samples.

    Args:
        sources: for their ``hold_out``.
        source_of: source of each sample.
        group_of: samples of one group (made of one record) are held out together or not at all.
        seed: of the choice.
        by_default: whether of the sources that say nothing ``default_count`` samples are held out.

    Raises:
        ConfigError: a source would be held out as a whole.
    """
    chosen = []
    for index, settings in enumerate(sources):
        if not settings.hold_out:
            continue
        samples = np.flatnonzero(source_of == index)
        count = _count(settings.hold_out, len(samples))
        if count >= len(samples):
            raise ConfigError(
                f"data.{index}.hold_out = {settings.hold_out:g} keeps all of {counted(len(samples), 'sample')} for "
                f"evaluation; it must leave some to train on\nHold out a tenth: data.{index}.hold_out=0.1"
            )
        chosen.append(_choose(samples, group_of, count, np.random.SeedSequence([seed, index + 1])))
    if by_default:
        silent = [index for index, settings in enumerate(sources) if settings.hold_out is None]
        samples = np.flatnonzero(np.isin(source_of, silent))
        count = default_count(len(samples))
        chosen.append(_choose(samples, group_of, count, np.random.SeedSequence([seed, 0])))
    return np.sort(np.concatenate(chosen)) if chosen else np.zeros(0, np.int64)


def default_count(samples: int) -> int:
    """How many of so many samples are held out unless something else is said: 2 %, at least 8, at most 200.

    One or two say nothing about a run, so few samples give up to a quarter; fewer than 20 give none.

    >>> [default_count(samples) for samples in (19, 20, 60, 1_000, 50_000)]
    [0, 5, 8, 20, 200]
    """
    if samples < _WORTHWHILE:
        return 0
    return min(DEFAULT_MOST, max(round(DEFAULT_SHARE * samples), min(DEFAULT_LEAST, samples // _LARGEST_SHARE)))


def _count(hold_out: float, samples: int) -> int:
    if hold_out >= 1:
        return int(hold_out)
    return max(round(hold_out * samples), int(samples >= _WORTHWHILE))


def _choose(
    samples: Int64[np.ndarray, "sample"],
    group_of: Int64[np.ndarray, "sample"],
    count: int,
    seed: np.random.SeedSequence,
) -> Int64[np.ndarray, "held_out"]:
    groups, inverse, sizes = np.unique(group_of[samples], return_inverse=True, return_counts=True)
    taken = np.zeros(len(groups), bool)
    left = count
    for group in np.random.Generator(np.random.Philox(seed)).permutation(len(groups)):
        if left == 0:
            break
        if sizes[group] <= left:
            taken[group] = True
            left -= sizes[group]
    return samples[taken[inverse]]
