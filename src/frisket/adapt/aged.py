"""Update rules of entries that come and go: AdamW with an age for each entry, and SM3 on a sparse matrix.

`spiel.py` replaces entries in training. What these rules keep of an entry is either its own (AdamW's moments, which are
seeded for a newcomer) or its row's and its column's (SM3).
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from frisket.adapt.base import Moment
from frisket.adapt.delta import SparseLinear
from frisket.adapt.support import largest, replaced, smallest_first


class AgedAdamW(torch.optim.Optimizer):
    """AdamW whose bias correction knows for each entry how many steps it has seen; all state exists from the start.

    Where all entries are of one age it is torch's AdamW (``foreach=False``), bit for bit.

    Source: SpIEL (arXiv 2401.16405), appendix on the optimizer, and the authors' `SftAdamW`. Differs, so that ordinary
    AdamW is the special case: weight decay comes before the step, epsilon after the correction of the root, and a
    newcomer of age A is corrected as after A + 1 steps in its first update (the authors' code: A).
    """

    def __init__(self, masters: Mapping[str, Tensor], moment: Moment) -> None:
        super().__init__(list(masters.values()), {"lr": 0.0, "weight_decay": moment.weight_decay})
        self._betas, self._epsilon = moment.betas, moment.epsilon
        self._tables: list[Tensor] = []
        for values in masters.values():
            self.state[values] = {
                "age": torch.zeros_like(values, dtype=torch.int32),
                "exp_avg": torch.zeros_like(values),
                "exp_avg_sq": torch.zeros_like(values),
            }

    def replace(self, values: Tensor, layer: SparseLinear, count: int) -> tuple[Tensor, Tensor]:
        """Choose whom the layer's candidates replace, as far as they reach, and seed the newcomers' moments.

        A newcomer begins as if it had been there for the phase, with the phase's mean gradient in every step.

        Returns:
            Places in ``values``, and the flat indices that come there; of a layer that no gradient reached, none.
        """
        steps = int(layer.steps)
        places, at = replaced(layer.indices, values, layer.candidates, layer.sums.abs(), count if steps else 0)
        state = self.state[values]
        means = {"exp_avg": layer.sums[at] / max(steps, 1), "exp_avg_sq": layer.squares[at] / max(steps, 1)}
        for beta, (name, mean) in zip(self._betas, means.items(), strict=True):
            state[name][places] = (mean * (1 - beta**steps)).to(values.dtype)
        state["age"][places] = steps
        return places, layer.candidates[at]

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Move every parameter that has a gradient."""
        beta1, beta2 = self._betas
        for group in self.param_groups:
            for values in (values for values in group["params"] if values.grad is not None):
                state, grad = self.state[values], values.grad
                state["age"] += 1
                first, root = self._corrections(state["age"])
                values.mul_(1 - group["lr"] * group["weight_decay"])
                state["exp_avg"].lerp_(grad, 1 - beta1)
                state["exp_avg_sq"].mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
                below = state["exp_avg_sq"].sqrt().div_(root.to(values.dtype)).add_(self._epsilon)
                reach = first.new_tensor(-group["lr"]) / first  # a Python number over a tensor would be rounded twice
                values.addcdiv_(state["exp_avg"] * reach.to(values.dtype), below)

    def _corrections(self, age: Tensor) -> tuple[Tensor, Tensor]:
        """1 - beta1^age and the root of 1 - beta2^age for each entry, float64; by table, since ages are few."""
        oldest = int(age.max())
        if not self._tables or oldest >= len(self._tables[0]):
            ages = range(max(1024, 2 * oldest))
            made = [[1 - self._betas[0] ** n for n in ages], [(1 - self._betas[1] ** n) ** 0.5 for n in ages]]
            self._tables = [torch.tensor(each, dtype=torch.float64, device=age.device) for each in made]
        first, root = (table.index_select(0, age) for table in self._tables)
        return first, root


class Sm3(torch.optim.Optimizer):
    """SM3 over the active entries of a matrix: one accumulator a row and one a column; all state exists from the start.

    Source: Anil et al. 2019, arXiv 1901.11150 (SM3-II, no momentum): v_ij = min(row_i, column_j) + g_ij^2, and every
    accumulator is the largest v seen in it. So v_ij is never below the sum of g_ij^2. As in SpIEL's code, accumulators
    never fall, though entries leave. Differs: decoupled weight decay, which that code leaves out here.

    Args:
        layers: whose entries the masters of the same names are.
    """

    def __init__(self, masters: Mapping[str, Tensor], layers: Mapping[str, SparseLinear], moment: Moment) -> None:
        super().__init__(list(masters.values()), {"lr": 0.0, "weight_decay": moment.weight_decay})
        self._epsilon = moment.epsilon
        self._layers = {values: layers[name] for name, values in masters.items()}
        for values, layer in self._layers.items():
            sizes = dict(zip(("rows", "columns"), layer.base.get_parameter("weight").shape, strict=True))
            self.state[values] = {name: values.new_zeros(size) for name, size in sizes.items()}

    def replace(self, values: Tensor, layer: SparseLinear, count: int) -> tuple[Tensor, Tensor]:
        """Choose the smallest values, and the inactive entries of the largest row_i * column_j in their stead.

        Ranked by the root of the product, which does not underflow; one dense matrix at a time.

        Returns:
            Places in ``values``, and the flat indices that come there.
        """
        state = self.state[values]
        scores = torch.outer(state["rows"].sqrt(), state["columns"].sqrt()).flatten()
        scores[layer.indices] = -1.0
        new = largest(scores, min(count, len(scores) - len(values)))
        return smallest_first(values, layer.indices)[: len(new)], new.to(layer.indices.dtype)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Move every parameter that has a gradient."""
        for group in self.param_groups:
            for values in (values for values in group["params"] if values.grad is not None):
                state, grad, indices = self.state[values], values.grad, self._layers[values].indices.long()
                row, column = indices // len(state["columns"]), indices % len(state["columns"])
                seen = torch.minimum(state["rows"][row], state["columns"][column]).addcmul_(grad, grad)
                state["rows"].scatter_reduce_(0, row, seen, "amax")
                state["columns"].scatter_reduce_(0, column, seen, "amax")
                values.mul_(1 - group["lr"] * group["weight_decay"])
                values.addcdiv_(grad, seen.add_(self._epsilon).sqrt_(), value=-group["lr"])
