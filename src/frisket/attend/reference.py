"""The meaning of attention in rows, as dense booleans: slow, obvious, and what every backend must equal."""

import numpy as np
from jaxtyping import Bool

from frisket.types import PADDING_SEGMENT, ROOT, Rows


def visible(rows: Rows, row: int, window: int | None = None) -> Bool[np.ndarray, "query key"]:
    """Say which token of a row sees which.

    A token sees itself, the earlier tokens of its segment and all tokens of its ancestors; in a layer with a sliding
    window only where its position is less than ``window`` ahead. Padding sees and is seen by nothing.

    Two segments that do not see each other, then padding:

    >>> from frisket.types import Leaf, Rows
    >>> ids = np.array([[5, 6, 7, 8, 0]])
    >>> rows = Rows(ids, np.array([[0, 1, 0, 1, 0]]), np.array([[0, 0, 1, 1, -1]]), np.array([-1, -1]),
    ...             (Leaf("a", 0, 0), Leaf("b", 1, 1)))
    >>> visible(rows, 0).astype(int)
    array([[1, 0, 0, 0, 0],
           [1, 1, 0, 0, 0],
           [0, 0, 1, 0, 0],
           [0, 0, 1, 1, 0],
           [0, 0, 0, 0, 0]])

    The second as a child of the first (a chain: plain causal attention):

    >>> chain = Rows(ids, np.array([[0, 1, 2, 3, 0]]), rows.segment_ids, np.array([-1, 0]), rows.leaves)
    >>> visible(chain, 0)[3].astype(int)
    array([1, 1, 1, 1, 0])
    """
    segments, positions = rows.segment_ids[row], rows.position_ids[row]
    is_ancestor = np.zeros((len(rows.parent_segment) + 1,) * 2, dtype=bool)  # the last line and column are padding's
    for segment in range(len(rows.parent_segment)):
        is_ancestor[segment, path_to(rows, segment)[:-1]] = True
    place = np.arange(len(segments))
    earlier_in_own = (segments[:, None] == segments[None]) & (place[None] <= place[:, None])
    near = True if window is None else positions[:, None] - positions[None] < window
    is_real = segments != PADDING_SEGMENT
    return (earlier_in_own | is_ancestor[segments[:, None], segments[None]]) & near & is_real[:, None] & is_real[None]


def path_to(rows: Rows, segment: int) -> list[int]:
    """Segments from the root down to ``segment``."""
    path = [segment]
    while (parent := int(rows.parent_segment[path[-1]])) != ROOT:
        path.append(parent)
    return path[::-1]
