"""Many small arrays in one: what a million families need is 16 bytes each, not an object each."""

from collections.abc import Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import overload

import numpy as np
from jaxtyping import Int64


@dataclass(frozen=True, eq=False)
class Ragged(Seq[np.ndarray]):
    """Arrays of several lengths, end to end.

    Attributes:
        flat: all of them.
        starts: where each begins in ``flat``, and the end of the last.
    """

    flat: Int64[np.ndarray, "value"]
    starts: Int64[np.ndarray, "array_1"]

    @staticmethod
    def of(flat: np.ndarray, sizes: np.ndarray) -> "Ragged":
        """Cut an array into parts of these sizes.

        >>> [part.tolist() for part in Ragged.of(np.array([7, 8, 9]), np.array([1, 2]))]
        [[7], [8, 9]]
        """
        return Ragged(flat, np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64))

    @staticmethod
    def joined(parts: Iterable["Ragged"]) -> "Ragged":
        """The arrays of several, one after the other."""
        every = list(parts)
        empty = np.zeros(0, np.int64)
        return Ragged.of(
            np.concatenate([empty, *(part.flat for part in every)]),
            np.concatenate([empty, *(part.sizes for part in every)]),
        )

    @property
    def sizes(self) -> Int64[np.ndarray, "array"]:
        """Entries of each."""
        return np.diff(self.starts)

    def __len__(self) -> int:
        return len(self.starts) - 1

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...

    @overload
    def __getitem__(self, index: slice) -> list[np.ndarray]: ...

    def __getitem__(self, index: int | slice) -> np.ndarray | list[np.ndarray]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        at = range(len(self))[index]
        return self.flat[self.starts[at] : self.starts[at + 1]]

    def taken(self, order: np.ndarray) -> "Ragged":
        """The arrays in another order, or some of them.

        >>> [part.tolist() for part in Ragged.of(np.array([7, 8, 9]), np.array([1, 2])).taken(np.array([1, 0]))]
        [[8, 9], [7]]
        """
        sizes = self.sizes[order]
        ends = np.cumsum(sizes)
        places = np.arange(ends[-1] if len(ends) else 0) + np.repeat(self.starts[order] - (ends - sizes), sizes)
        return Ragged.of(self.flat[places], sizes)

    def sums(self, values: np.ndarray) -> Int64[np.ndarray, "array"]:
        """For each array the sum of what its entries, as indices, name among the values.

        >>> Ragged.of(np.array([2, 0, 1]), np.array([1, 0, 2])).sums(np.array([10, 20, 40])).tolist()
        [40, 0, 30]
        """
        totals = np.concatenate([[0], np.cumsum(values[self.flat])])
        return totals[self.starts[1:]] - totals[self.starts[:-1]]
