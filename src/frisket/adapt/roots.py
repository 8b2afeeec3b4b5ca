"""A root: virtual tokens in front of every row, which every sample of the row sees and which nobody predicts.

A root belongs to a model as long as it lies there; ``hf.forward`` and ``hf.roots`` ask for it wherever rows or prompts
go through the model.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from jaxtyping import Float
from torch import Tensor, nn


@dataclass(frozen=True)
class KeyShape:
    """Of the keys (and of the values) that a layer of the model computes for one token.

    Attributes:
        layers: layers of the model; all have this shape.
        heads: key heads.
        width: of a head.
    """

    layers: int
    heads: int
    width: int

    @property
    def size(self) -> int:
        """Numbers of one token: keys and values of all layers."""
        return 2 * self.layers * self.heads * self.width


@dataclass(frozen=True)
class Root:
    """Virtual tokens: either input vectors, or keys and values of every layer.

    Attributes:
        tokens: how many.
        table: makes [virtual, hidden] input vectors or [virtual, ``keys.size``] keys and values, in PEFT's order.
        keys: shape of the keys and values; None for input vectors.
    """

    tokens: int
    table: Callable[[], Tensor]
    keys: KeyShape | None = None

    def vectors(self, like: Tensor) -> Float[Tensor, "virtual hidden"]:
        """Input vectors in type and place of ``like`` [..., hidden]; zeros, which no layer reads, beside keys."""
        if self.keys is None:
            return self.table().to(like)
        return like.new_zeros(self.tokens, like.shape[-1])

    def keys_and_values(self, like: Tensor) -> Float[Tensor, "layer pair head virtual width"] | None:
        """Keys (0) and values (1) of every layer in type and place of ``like``; None for input vectors."""
        if self.keys is None:
            return None
        layers, heads, width = self.keys.layers, self.keys.heads, self.keys.width
        return self.table().to(like).view(self.tokens, layers, 2, heads, width).permute(1, 2, 3, 0, 4)


_ROOTS: WeakKeyDictionary[nn.Module, Root] = WeakKeyDictionary()


def root_of(model: nn.Module) -> Root | None:
    """The root of a model; None where it has none."""
    return _ROOTS.get(model)


def put(model: nn.Module, root: Root) -> None:
    """Give the model a root, in place of the one it had."""
    _ROOTS[model] = root


def remove(model: nn.Module) -> None:
    """Take the root away, where there is one."""
    _ROOTS.pop(model, None)


@contextmanager
def taken_off(model: nn.Module) -> Iterator[None]:
    """The model without its root while the context lasts."""
    root = _ROOTS.pop(model, None)
    try:
        yield
    finally:
        if root is not None:
            _ROOTS[model] = root
