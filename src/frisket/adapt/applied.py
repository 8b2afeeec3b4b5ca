"""A saved sparse adapter on a model: its entries are changed in place, and can be changed back bit for bit."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor, nn

from frisket.adapt import sparse
from frisket.adapt.base import Attached
from frisket.adapt.where import Match
from frisket.errors import UnsupportedError


class Applied(Attached):
    """Changes of the base's own tensors; nothing moves.

    Raises:
        CheckError: the model is not the base that the changes were made for, or a base with such an addition already.
    """

    def __init__(self, model: nn.Module, changes: Mapping[str, sparse.Change]) -> None:
        self._touched = {name: parameter for name, parameter in model.named_parameters() if name in changes}
        self.match = Match(tuple(name.rpartition(".")[0] for name in changes), {})
        self._indices = {name: change.indices for name, change in changes.items()}
        # As the model has them: what the artefact keeps is of the base as it is stored, in that type.
        self._old = sparse.apply(self._weights(), changes)

    def _weights(self) -> dict[str, Tensor]:
        return {name: parameter.data for name, parameter in self._touched.items()}  # which a cast replaces

    def parameters(self) -> dict[str, nn.Parameter]:
        """None."""
        return {}

    def save(self, folder: Path, values: Mapping[str, Tensor]) -> None:
        """Refused: the folder that it was read from is the adapter."""
        raise UnsupportedError("a sparse adapter that was read is not written again.\nCopy its folder.")

    def merge(self) -> None:
        """Nothing to fold in: the changes are in the weights."""

    def detach(self) -> None:
        """Change the entries back."""
        self._put(self._old)

    @contextmanager
    def switched_off(self) -> Iterator[None]:
        """The base, for as long as the context lasts."""
        weights = self._weights()
        changed = {name: sparse.entries_at(weights[name], at) for name, at in self._indices.items()}
        self._put(self._old)
        try:
            yield
        finally:
            self._put(changed)

    def _put(self, entries: Mapping[str, Tensor]) -> None:
        weights = self._weights()
        for name, at in self._indices.items():
            sparse.put(weights[name], at, entries[name])


def load(model: nn.Module, folder: Path) -> Applied:
    """Put a saved sparse adapter on the model that it was made for.

    Raises:
        CheckError: the folder is not whole, or the model is another.
    """
    return Applied(model, sparse.read(folder)[0])
